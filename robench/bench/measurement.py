"""What a bench is told and what it found, and whether the machine was quiet enough to believe it.

Not here: what is measured (one file each).
"""

import math
import os
import statistics
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

LOAD_LIMIT = 0.5
"""Load average of the last minute above which a machine is busy before the bench has begun."""
OTHERS_LIMIT = 0.05
"""Share of the processors that other processes may take while the bench runs."""
EVEN = 1.25
"""How many times as long as the shortest run of a side its longest may take."""
EVEN_IN_TURNS = 1.1
"""The same of the ratio of two sides that took turns at every step."""


@dataclass(frozen=True)
class Settings:
    """What a bench is told.

    Attributes:
      model: a model's name, or `photographs:NAME` for timm's NAME, its head fitted to 20 photographs.
      images: how many images at most.
      epsilon: radius as a fraction; None looks for one under which 60 to 75 % survive.
      repeats: how often each side runs, each time with another seed.
      folder: where a bench of hours keeps its finished runs, to go on from there; None keeps none.
    """

    model: str
    images: int = 256
    epsilon: str | None = None
    repeats: int = 3
    folder: Path | None = None


@dataclass(frozen=True)
class Measurement:
    """What a bench found. Seconds are medians over the repeats, accuracies and differences are means.

    What a bench has nothing to say about is NaN, and left out of the content.

    Attributes:
      name, model, examples: what was measured.
      ours_seconds, theirs_seconds: from images in memory to verdicts, or to corrupted images.
      ours_robust, theirs_robust: robust accuracy.
      verdicts_differ: examples on which the two disagree.
      overhead: our wall time over what the passes it spent cost at the best batch size; None where times do
        not matter.
      details: more, as the bench has it.
      doubts: why the figure is not valid; empty if it is.
    """

    name: str
    model: str
    examples: int
    ours_seconds: float
    theirs_seconds: float
    ours_robust: float = math.nan
    theirs_robust: float = math.nan
    verdicts_differ: float = math.nan
    overhead: float | None = None
    details: dict[str, Any] = field(default_factory=dict)
    doubts: tuple[str, ...] = ()

    @property
    def ratio(self) -> float:
        """How many times faster ours is."""
        return self.theirs_seconds / self.ours_seconds

    def line(self, against: str) -> str:
        """Seconds of both sides in one line, or their accuracies, and that they are not valid, where they are not."""
        found = f"{self.name}, {self.model}, {self.examples} images: "
        if math.isnan(self.ours_seconds):
            found += f"robust {100 * self.ours_robust:.1f} %, {against} {100 * self.theirs_robust:.1f} %"
            found += f", {self.verdicts_differ:.3g} verdicts differ"
        else:
            found += f"{self.ours_seconds:.3g} s, {against} {self.theirs_seconds:.3g} s"
            found += f", {self.ratio:.2f} times as fast"
        return f"{found}; NOT VALID, see why above" if self.doubts else found

    def content(self) -> dict[str, Any]:
        """All of it, as one flat object."""
        own = {key: value for key, value in vars(self).items() if key not in ("details", "doubts")}
        own["ratio"] = self.ratio
        own = {key: value for key, value in own.items() if not (isinstance(value, float) and math.isnan(value))}
        return {**own, "valid": not self.doubts, "doubts": list(self.doubts), **self.details}


def wait_for_rest(seconds: float = 120.0) -> bool:
    """Wait until the load average says that the machine is quiet; whether it is in the end."""
    end = time.monotonic() + seconds
    while hasattr(os, "getloadavg") and os.getloadavg()[0] > LOAD_LIMIT:
        if time.monotonic() >= end:
            return False
        time.sleep(min(2.0, seconds))
    return True


class Stopwatch:
    """Times two or more sides in turn, and watches the machine meanwhile."""

    def __init__(self) -> None:
        self._load = os.getloadavg()[0] if hasattr(os, "getloadavg") else 0.0
        self._began = time.perf_counter()
        self._others = _others_seconds()
        self.seconds: dict[str, list[float]] = {}

    def time(self, side: str, seconds: float) -> None:
        """Note one run of a side."""
        self.seconds.setdefault(side, []).append(seconds)

    def median(self, side: str) -> float:
        """Median of the side's runs."""
        return statistics.median(self.seconds[side])

    def doubts(self, *, in_turns: Sequence[tuple[str, str]] = ()) -> tuple[str, ...]:
        """Why the times are not to be believed; one sentence each.

        Args:
          in_turns: pairs of sides that took turns at every step, so that what slows the machine slows both: their ratio
            must be even from run to run, not their seconds.
        """
        found = []
        if self._load > LOAD_LIMIT:
            found.append(f"The machine was busy: the load average was {self._load:.2f} at the start.")
        now = _others_seconds()
        if now is not None and self._others is not None:
            share = (now - self._others) / (time.perf_counter() - self._began) / (os.cpu_count() or 1)
            if share > OTHERS_LIMIT:
                found.append(f"Other processes took {share:.0%} of the processors meanwhile.")
        paired = {side for pair in in_turns for side in pair}
        spreads = [self._spread(side) for side in self.seconds if side not in paired]
        return (*found, *filter(None, [*spreads, *(self._spread_of_ratio(*pair) for pair in in_turns)]))

    def _spread(self, side: str) -> str:
        times = self.seconds[side]
        if max(times) <= EVEN * min(times):
            return ""
        return f"The runs of {side} took from {min(times):.2f} to {max(times):.2f} s: too uneven."

    def _spread_of_ratio(self, one: str, other: str) -> str:
        ratios = [first / second for first, second in zip(self.seconds[one], self.seconds[other], strict=True)]
        if max(ratios) <= EVEN_IN_TURNS * min(ratios):
            return ""
        took = f"from {min(ratios):.2f} to {max(ratios):.2f} times as long as {other}"
        return f"The runs of {one} took {took}: too uneven."


def _others_seconds() -> float | None:
    """Processor seconds that all processes but this one and its ended children have taken; None where nothing says."""
    try:
        fields = Path("/proc/stat").read_text().split("\n", 1)[0].split()[1:]
        user, nice, system, _, _, interrupts, soft = (int(value) for value in fields[:7])
        ticks = os.sysconf("SC_CLK_TCK")
    except (OSError, ValueError, AttributeError):
        return None
    own = sum(os.times()[:4])
    return (user + nice + system + interrupts + soft) / ticks - own
