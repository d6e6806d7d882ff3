"""Workers that share runs, simulated event by event: failures, stragglers, claims, holding back.

The rules are those of `robench.share` and `robench.sweep`, restated: a worker takes a run of its own, then helps
where most is left for each worker; it claims shards in order while it has a small part of what is left, and beyond
that while no other worker of the run has less before it; all examples in flight advance together, and what a failed
worker had is claimed again when that is noticed. Not here: the formula that this checks (`robench.forecast`).
"""

import heapq
import random
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass, field

from robench.forecast import FALLEN, Assumptions, Work


@dataclass(frozen=True)
class Simulated:
    """What came of a simulation.

    Attributes:
      wall_seconds: until the last shard is finished.
      idle: share of that time in which the worker that ended first had nothing to do.
      failures: of workers.
      repeated: shards that were begun again.
    """

    wall_seconds: float
    idle: float
    failures: int
    repeated: int


@dataclass
class _Run:
    work: Work
    costs: list[float]
    left: deque[int]
    unfinished: int
    workers: int = 0


@dataclass
class _Worker:
    speed: float
    run: _Run | None = None
    clock: float = 0.0
    """Work done on each shard in flight, all alike."""
    flight: list[tuple[float, int]] = field(default_factory=list)
    """When each is done, by that clock, and which shard."""
    since: float = 0.0
    """When the clock was set."""
    turn: int = 0
    """Events of an earlier turn are void."""
    ended: float = 0.0


def simulate(works: Sequence[Work], workers: int, assumed: Assumptions, seed: int = 0) -> Simulated:
    """Let workers make all shards of all runs.

    Args:
      works: the runs.
      workers: how many there are.
      assumed: about them.
      seed: of who survives, fails and straggles.
    """
    return _Simulation(works, workers, assumed, random.Random(seed)).result()


class _Simulation:
    def __init__(self, works: Sequence[Work], workers: int, assumed: Assumptions, dice: random.Random) -> None:
        self.assumed, self.dice = assumed, dice
        self.runs = [self._run(work) for work in works]
        self.fresh = deque(self.runs)
        speeds = [assumed.straggling if dice.random() < assumed.stragglers else 1.0 for _ in range(workers)]
        self.workers = [_Worker(speed) for speed in speeds]
        self.events: list[tuple[float, int, str, int, int]] = []
        self.number = 0
        self.now, self.failures, self.repeated = 0.0, 0, 0
        self.idle: set[int] = set()
        self.abandoned: deque[tuple[_Run, list[int]]] = deque()

    def _run(self, work: Work) -> _Run:
        costs = []
        for begin in range(0, work.examples, work.shard_size):
            size = min(work.shard_size, work.examples - begin)
            surviving = sum(self.dice.random() < work.survivors for _ in range(size))
            costs.append(work.surviving_seconds * (surviving + FALLEN * (size - surviving)))
        return _Run(work, costs, deque(range(len(costs))), len(costs))

    def result(self) -> Simulated:
        for place in range(len(self.workers)):
            self._plan_failure(place)
            self._next_run(place)
        while any(run.unfinished for run in self.runs):
            self.now, _, kind, place, turn = heapq.heappop(self.events)
            if kind == "failure":
                self._fail(place)
            elif kind == "noticed":
                self._notice()
            elif turn == self.workers[place].turn:
                getattr(self, f"_{kind}")(place)
        first = min(worker.ended if worker.run is None else self.now for worker in self.workers)
        return Simulated(self.now, 1 - first / self.now if self.now else 0.0, self.failures, self.repeated)

    def _after(self, seconds: float, kind: str, place: int) -> None:
        self.number += 1
        heapq.heappush(self.events, (self.now + seconds, self.number, kind, place, self.workers[place].turn))

    def _plan_failure(self, place: int) -> None:
        self._after(self.dice.expovariate(1 / (3600 * self.assumed.failure_hours)), "failure", place)

    def _next_run(self, place: int) -> None:
        """Take a run that nobody has begun, or the one where most is left for each worker."""
        worker = self.workers[place]
        if worker.run is not None:
            worker.run.workers -= 1
            worker.run = None
        if self.fresh:
            worker.run = self.fresh.popleft()
        else:
            open_runs = [run for run in self.runs if run.left]
            if not open_runs:
                worker.ended = self.now
                self.idle.add(place)
                return
            worker.run = max(open_runs, key=lambda run: len(run.left) * run.work.seconds / (run.workers + 1))
        worker.run.workers += 1
        self.idle.discard(place)
        self._after(self.assumed.start_seconds / worker.speed, "ready", place)

    def _ready(self, place: int) -> None:
        self.workers[place].since = self.now
        self._claim(place)

    def _load(self, worker: _Worker) -> float:
        """Work before it."""
        if not worker.flight:
            return 0.0
        return sum(end - worker.clock for end, _ in worker.flight) - (self.now - worker.since) * worker.speed

    def _holds_back(self, worker: _Worker, run: _Run) -> bool:
        """Whether the next shard is left to others, as `Share.holds_back` has it."""
        size, flying = run.work.shard_size, len(worker.flight) * run.work.shard_size
        if not flying or run.workers == 1 or flying + size <= len(run.left) * size // (2 * run.workers):
            return False
        others = (self._load(each) for each in self.workers if each.run is run and each is not worker)
        return self._load(worker) > min(others, default=0.0)

    def _claim(self, place: int) -> None:
        """Claim shards while there is room, and wait for the first that is done; without any, look for another run."""
        worker = self.workers[place]
        run = worker.run
        assert run is not None, "who claims has a run"
        size, slots = run.work.shard_size, run.work.slots
        while run.left:
            full = worker.flight and (len(worker.flight) + 1) * size > slots
            if full or self._holds_back(worker, run):
                break
            shard = run.left.popleft()
            heapq.heappush(worker.flight, (worker.clock + run.costs[shard], shard))
        if not worker.flight:
            self._next_run(place)
            return
        worker.turn += 1
        left = (worker.flight[0][0] - worker.clock) * len(worker.flight) / worker.speed
        self._after(left, "done", place)

    def _done(self, place: int) -> None:
        worker = self.workers[place]
        assert worker.run is not None, "who is done has a run"
        worker.clock, _ = heapq.heappop(worker.flight)
        worker.since = self.now
        worker.run.unfinished -= 1
        self._claim(place)

    def _fail(self, place: int) -> None:
        worker, run = self.workers[place], self.workers[place].run
        self.failures += 1
        self._plan_failure(place)
        if run is None:
            return
        lost = [shard for _, shard in worker.flight]
        self.repeated += len(lost)
        worker.flight = []
        worker.turn += 1
        run.workers -= 1
        worker.run = None
        self.abandoned.append((run, lost))
        self._after(self.assumed.notice_seconds, "noticed", place)
        self._after(self.assumed.restart_seconds, "back", place)

    def _back(self, place: int) -> None:
        self._next_run(place)

    def _notice(self) -> None:
        """What the failed worker had can be claimed again, by who has nothing to do, too."""
        run, lost = self.abandoned.popleft()
        run.left.extend(lost)
        for place in list(self.idle):
            self._next_run(place)
