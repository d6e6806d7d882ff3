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

    The work, spread over the workers at their mean speed, stretched by what failures undo; and at the end what
    the last worker still has in flight while nothing is left to claim:

        wall = starts + work / (workers x speed) / (1 - lost / between failures) + tail

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
    useful = min(workers, sum(work.shards for work in works))
    total = sum(work.seconds for work in works)
    begun = max(len(works), useful) / useful  # runs that a worker begins, at least
    spread = (total / useful + begun * assumed.start_seconds) / assumed.speed
    flight = max(_in_flight(work, useful, len(works)) * work.seconds / work.examples for work in works)
    lost = flight / 2 + assumed.restart_seconds + assumed.start_seconds
    stretched = spread / max(1 - lost / (3600 * assumed.failure_hours + lost), 0.01)
    return Forecast(workers, stretched + (_tail(works, assumed) if useful > 1 else 0.0))


def _in_flight(work: Work, workers: int, runs: int) -> float:
    """Examples that a worker has in flight."""
    beside = max(workers / runs, 1.0)
    return min(work.slots, work.examples / beside) if beside == 1 else min(work.slots, work.examples / (2 * beside))


def _tail(works: Sequence[Work], assumed: Assumptions) -> float:
    """Seconds from the last claim until the last worker ends: on average half of what a dear shard takes.

    The slowest worker decides, and its shard holds more survivors than most.
    """
    longest = 0.0
    for work in works:
        size = min(work.shard_size, work.examples)
        spread = math.sqrt(max(size * work.survivors * (1 - work.survivors), 0.0))
        full = min(size * work.survivors + 2 * spread, size) * work.surviving_seconds
        longest = max(longest, full)
    return longest / (assumed.straggling if assumed.stragglers else 1.0) / 2
