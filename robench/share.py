"""What one process takes of a run: shards that nobody else works on, one by one as it needs them.

Not here: how a shard is claimed (`claims`), and what is done with it (`execution`).
"""

import itertools
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from robench.claims import Claims, Worker
from robench.runs import Run

POLL_SECONDS = (0.1, 2.0)
"""Shortest and longest time between two looks at what others finish."""
POLL_FACTOR = 20
"""Between these bounds, the pause after a look is so many times as long as the look."""
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

    def start(self, run: Run, *, save_adversarial: Path | None) -> None:
        """Set them to work on a run that is planned, and say in which folder images that fool are kept, if any."""
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
      run: the run.
      worker: this process.
      expected: workers that were started together.
      crew: who makes all shards instead of this worker.
      save_adversarial: in which folder the crew keeps images that fool.
    """

    def __init__(
        self,
        run: Run,
        worker: Worker,
        *,
        expected: int = 1,
        crew: Crew | None = None,
        save_adversarial: Path | None = None,
    ) -> None:
        self._crew, self._save_adversarial = crew, save_adversarial
        self.missing = run.missing_shards()
        self.waited = 0.0
        """Seconds in which others had all that was left."""
        self._run, self._worker, self._expected = run, worker, expected
        self._claims = Claims(run, worker)
        self._held: list[int] = []
        self._left = len(self.missing)
        self._began = time.monotonic()

    def rounds(self, waiting: Callable[[int], None]) -> Iterator[Iterator[int]]:
        """Shards to make, in rounds; each is claimed as it is drawn. Ends when the run misses none.

        The first round is what nobody has claimed. Others follow when a worker dies.

        Args:
          waiting: told again and again how many shards others still have.
        """
        shards, since = self.missing, time.monotonic()
        if shards and self._crew is not None:
            self._crew.start(self._run, save_adversarial=self._save_adversarial)
        while shards:
            self._held = []
            drawn, look = self._drawn(shards), time.monotonic()
            first = next(drawn, None)
            if first is not None:
                self.waited += time.monotonic() - since
                yield itertools.chain([first], drawn)
                since = look = time.monotonic()
            shards = [shard for shard in self._held if not self._run.shard_path(shard).exists()]
            pause = POLL_FACTOR * (time.monotonic() - look)
            if shards:
                if self._crew is not None:
                    self._crew.check()
                waiting(len(shards))
                time.sleep(min(max(pause, POLL_SECONDS[0]), POLL_SECONDS[1]))
        self.waited += time.monotonic() - since

    def _drawn(self, shards: Sequence[int]) -> Iterator[int]:
        """Those of the shards that this worker gets."""
        if self._crew is not None:
            self._held = list(shards)
            return
        for place, shard in enumerate(shards):
            self._left = len(shards) - place - 1
            if self._claims.take(shard):
                yield shard
            else:
                self._held.append(shard)

    def publish(self, load: int) -> None:
        """Let other workers know how much this one has before it, in forward passes."""
        if self._workers() > 1:
            self._worker.publish(load)

    def holds_back(self, in_flight: int, load: int, *, known: bool = True) -> bool:
        """Whether to leave the next shard to others.

        A worker takes it while it has a small part of what is left in flight, else only if it knows what it has before
        it, and nobody has less.

        Args:
          in_flight: examples that this worker has begun and not finished.
          load: what they should cost, in forward passes.
          known: whether all of them have come through the first of several stages, in which most fall that ever do.
        """
        workers, size = self._workers(), self._run.plan.shard_size
        if workers == 1 or in_flight + size <= self._left * size // (2 * workers):
            return False
        self.publish(load)
        return not known or self._worker.living() < workers or load > self._worker.least_load()

    def part(self) -> int:
        """Shards that this worker may take at once where each costs the same: a small part of what is left."""
        workers, left = self._workers(), self._left + 1  # with the one that a round begins with
        return left if workers == 1 else max(left // (2 * workers), 1)

    def _workers(self) -> int:
        """Those that live, or are expected."""
        early = time.monotonic() - self._began < ARRIVAL_SECONDS
        return max(self._worker.living(), self._expected if early else 1)
