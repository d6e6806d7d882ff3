"""What one process takes of a run: shards that nobody else works on, one by one as it needs them.

Not here: how a shard is claimed (`claims`), and what is done with it (`execution`).
"""

import itertools
import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Protocol

from robench.claims import Claims, Worker
from robench.runs import Run

POLL_SECONDS = (0.1, 1.0)
"""Shortest and longest time between two looks at what others finish."""
ARRIVAL_SECONDS = 60.0
"""So long workers that were started together are expected, though they have not come yet."""


@dataclass(frozen=True)
class Rank:
    """Which of several processes that were started together this is.

    Attributes:
      index: from 0; rank 0 plans, shows progress and merges.
      size: how many attack.
      local: index among those on the same host, for the choice of a device.
    """

    index: int
    size: int
    local: int = 0


class Crew(Protocol):
    """Processes elsewhere that make the shards of a run instead of this one."""

    def start(self, run: Run) -> None:
        """Set them to work on a run that is planned."""
        ...

    def check(self) -> None:
        """See to it that somebody is at work.

        Raises:
          RunError: nobody is left.
        """
        ...


class Share:
    """The shards of a run that one worker makes.

    Args:
      worker: this process, on the run.
      expected: workers that were started together.
      crew: who makes all shards instead of this worker.
    """

    def __init__(self, worker: Worker, *, expected: int = 1, crew: Crew | None = None) -> None:
        self.missing = worker.run.missing_shards()
        self.waited = 0.0
        """Seconds in which others had all that was left."""
        self._worker, self._expected, self._crew = worker, expected, crew
        self._left = len(self.missing)
        self._began = time.monotonic()

    def rounds(self, waiting: Callable[[int], None]) -> Iterator[Iterator[int]]:
        """Shards to make, in rounds; each is claimed as it is drawn. Ends when the run misses none.

        The first round is what nobody has claimed. Others follow when a worker dies. With a crew there is none.

        Args:
          waiting: told again and again how many shards others still have.
        Raises:
          RunError: nobody is left of the crew, or the folder cannot be written.
        """
        since, pauses, left = time.monotonic(), _pauses(), self.missing
        if self._crew is not None:
            self._follow(self._crew, waiting)
            left = []
        while left:
            held: list[int] = []
            drawn = self._claimed(left, held)
            first = next(drawn, None)
            if first is not None:
                self.waited += time.monotonic() - since
                yield itertools.chain([first], drawn)
                since, pauses = time.monotonic(), _pauses()
            left = [shard for shard in held if not self._is_finished(shard)]
            if left:
                waiting(len(left))
                time.sleep(next(pauses))
        self.waited += time.monotonic() - since

    def _follow(self, crew: Crew, waiting: Callable[[int], None]) -> None:
        """Wait for a crew; shards are finished nearly in order, so each is looked at about once."""
        left, pauses = deque(self.missing), _pauses()
        if left:
            crew.start(self._worker.run)
        while left:
            if self._is_finished(left[0]):
                left.popleft()
                continue
            crew.check()
            waiting(len(left))
            time.sleep(next(pauses))

    def _claimed(self, shards: Sequence[int], held: list[int]) -> Iterator[int]:
        """Those of the shards that this worker gets; the others go to `held`."""
        claims = Claims(self._worker)
        for place, shard in enumerate(shards):
            self._left = len(shards) - place - 1
            if claims.take(shard):
                yield shard
            else:
                held.append(shard)

    def _is_finished(self, shard: int) -> bool:
        return self._worker.run.shard_path(shard).exists()

    def holds_back(self, in_flight: int) -> bool:
        """Whether to leave the next shard to others.

        Args:
          in_flight: examples that this worker has begun and not finished.
        """
        workers = self._worker.living()
        if time.monotonic() - self._began < ARRIVAL_SECONDS:
            workers = max(workers, self._expected)
        if workers == 1:
            return False
        size = self._worker.run.plan.shard_size
        return in_flight + size > max(3 * size // 2, self._left * size // (2 * workers))


def _pauses() -> Iterator[float]:
    """Seconds between looks at what others finish: longer and longer."""
    pause, longest = POLL_SECONDS
    while True:
        yield pause
        pause = min(1.5 * pause, longest)
