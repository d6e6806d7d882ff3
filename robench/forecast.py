"""How long a plan of many runs takes on many workers, from what one worker takes.

The formula is held to a simulation of the workers (`robench.bench.simulation`); `docs/scale.md` shows both. Not here:
what one evaluation costs (`estimate`).
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True)
class Work:
    """One run, as it would be for one worker.

    Attributes:
      name: of model and protocol.
      examples: those that are attacked.
      surviving_seconds: of one worker for an example that survives every attack, in full batches.
      survivors: share of the examples that survive; the others cost `FALLEN` of that.
      shard_size: examples claimed together.
      slots: examples that a worker attacks at a time.
    """

    name: str
    examples: int
    surviving_seconds: float
    survivors: float = 1.0
    shard_size: int = 16
    slots: int = 128

    @property
    def seconds(self) -> float:
        """Of one worker that never stops."""
        return self.examples * self.surviving_seconds * (self.survivors + (1 - self.survivors) * FALLEN)

    @property
    def shards(self) -> int:
        """Pieces that it can be cut into."""
        return -(-self.examples // self.shard_size)


FALLEN = 0.03
"""What an example that falls costs, of one that survives: most fall within the first steps of the first attack."""


@dataclass(frozen=True)
class Assumptions:
    """What is assumed of workers; docs/scale.md says why.

    Attributes:
      start_seconds: to load and check a model, each time a worker begins with a run.
      failure_hours: mean time between failures of one worker.
      notice_seconds: until others take over what a failed worker had.
      restart_seconds: until a failed worker begins again.
      stragglers: share of workers that are slow.
      straggling: their speed, of the others'.
    """

    start_seconds: float = 30.0
    failure_hours: float = 500.0
    notice_seconds: float = 60.0
    restart_seconds: float = 120.0
    stragglers: float = 0.05
    straggling: float = 0.5

    @property
    def speed(self) -> float:
        """Mean speed of a worker."""
        return 1 - self.stragglers * (1 - self.straggling)


@dataclass(frozen=True)
class Forecast:
    """What a plan would take.

    Attributes:
      workers: how many work on it.
      wall_seconds: from the first start to the last result.
      worker_hours: all workers together, idle or not; GPU hours where each has a GPU.
    """

    workers: int
    wall_seconds: float

    @property
    def worker_hours(self) -> float:
        """Hours that are paid for."""
        return self.workers * self.wall_seconds / 3600


def forecast(works: Sequence[Work], workers: int, assumptions: Assumptions | None = None) -> Forecast:
    """Expected time of runs on workers that each take a run of their own, and then help with the others.

    The work, spread over those who have begun before it is all claimed, stretched by what failures undo; and at the
    end the worker whose last shard takes longest, while the others have half a shard each behind them or before
    them on average:

        wall = (starts + work / workers) / speed / (1 - lost / between failures) + longest last shard - half a mean one

    Args:
      works: the runs.
      workers: how many there are.
      assumptions: about them; by default those of docs/scale.md.
    Raises:
      ValueError: there is no worker.
    """
    if workers < 1:
        raise ValueError(f"workers must be at least 1, not {workers}")
    assumed = assumptions or Assumptions()
    if not works:
        return Forecast(workers, 0.0)
    shards = sum(work.shards for work in works)
    useful, quick = min(workers, shards), min(workers * (1 - assumed.stragglers), shards)
    slow = useful * assumed.stragglers
    total = sum(work.seconds for work in works)
    starts = assumed.start_seconds * max(len(works), useful) / useful  # a worker begins with one run, at least
    spread = (total / useful + starts) / assumed.speed
    if quick and total / quick + starts < starts / assumed.straggling:
        spread, slow = total / quick + starts, 0.0  # all is claimed before a slow worker has begun
    flight = max(_in_flight(work, useful, len(works)) * work.seconds / work.examples for work in works)
    lost = flight / 2 + assumed.restart_seconds + assumed.start_seconds
    stretched = spread / max(1 - lost / (3600 * assumed.failure_hours + lost), 0.01)
    return Forecast(workers, stretched + (_tail(works, useful, slow, assumed) if useful > 1 else 0.0))


def _in_flight(work: Work, workers: int, runs: int) -> float:
    """Examples that a worker has in flight."""
    beside = max(workers / runs, 1.0)
    return min(work.slots, work.examples / beside) if beside == 1 else min(work.slots, work.examples / (2 * beside))


def _tail(works: Sequence[Work], workers: float, slow: float, assumed: Assumptions) -> float:
    """Seconds by which the last worker ends later than all would if work could be cut as one likes.

    When nothing is left to claim, each worker is somewhere within its last shard. Of n that are spread evenly over it,
    the last has n / (n + 1) of it before it; and a shard holds more survivors than most for whoever is last.
    """
    mean = sum(work.seconds for work in works) / sum(work.shards for work in works)
    dear = max(_dear_shard(work) for work in works)
    quick = workers - slow
    longest = max(dear * quick / (quick + 1), dear / assumed.straggling * slow / (slow + 1))
    return max(longest - mean / 2, 0.0)


def _dear_shard(work: Work) -> float:
    """Seconds that a shard takes with two standard deviations more survivors than the mean."""
    size = min(work.shard_size, work.examples)
    spread = math.sqrt(max(size * work.survivors * (1 - work.survivors), 0.0))
    surviving = min(size * work.survivors + 2 * spread, size)
    return (surviving + FALLEN * (size - surviving)) * work.surviving_seconds
