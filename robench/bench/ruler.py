"""How fast bare passes are while a run goes on: machines drift, so the ruler is laid beside the run, again and again.

Not here: what is run (one file each).
"""

import statistics
import time
from dataclasses import dataclass

from torch import Tensor

from robench.classifier import Classifier
from robench.fastpath import pass_rate, repeated

SIZES = (16, 32, 64, 128)
"""Batch sizes tried, as far as there are images to fill more than half of them."""
ROUNDS = 5
"""How often each size is timed before one is chosen, all sizes in turn."""
EVERY = 1.0
"""Seconds of a run from one look to the next; five times as long as the last look took, if that is more."""


@dataclass(frozen=True)
class Pace:
    """Seconds for one image at the best batch size: with gradient, without, and without by the user's own model."""

    gradient: float
    labels: float
    own: float

    def seconds(self, gradients: float, labels: float, own: float) -> float:
        """What so many passes take."""
        return gradients * self.gradient + labels * self.labels + own * self.own


class Ruler:
    """Times bare passes while a driver runs, and the driver without them: pass it to `drive` as `on_left`.

    Args:
      faster, own: the models that the driver looks at and confirms by; the passes they count are not touched.
      images: of which batches are made, float32 in [0, 1], shape (N, 3, H, W).
      gradients: whether passes with gradient are timed; else they cost nothing.
    """

    def __init__(self, faster: Classifier, own: Classifier, images: Tensor, *, gradients: bool = True) -> None:
        kinds = {"gradient": (faster, True)} if gradients else {}
        kinds |= {"labels": (faster, False), "own": (own, False)}
        self._kinds = {
            kind: (classifier, repeated(images, best_size(classifier, images, gradients=wanted)), wanted)
            for kind, (classifier, wanted) in kinds.items()
        }
        self.restart()

    def restart(self) -> None:
        """Begin a run; the clock starts after a first look."""
        self._looks: list[dict[str, float]] = []
        self._paused = 0.0
        self._look()
        self._began, self._paused = self._last, 0.0

    def __call__(self, passes: int, fresh: int) -> None:
        """Look, if it is time to; the arguments say what is left, and do not matter."""
        if time.perf_counter() - self._last >= max(EVERY, 5 * self._cost):
            self._look()

    def stop(self) -> tuple[float, Pace]:
        """Seconds of the run without the looks, and the mean of these."""
        seconds = time.perf_counter() - self._began - self._paused
        self._look()
        means = {kind: statistics.mean(look[kind] for look in self._looks) for kind in self._kinds}
        return seconds, Pace(means.get("gradient", 0.0), means["labels"], means["own"])

    def _look(self) -> None:
        began = time.perf_counter()
        look = {}
        for kind, (classifier, rows, gradients) in self._kinds.items():
            counted = classifier.passes.forward, classifier.passes.backward
            look[kind] = 1 / pass_rate(classifier, rows, gradients=gradients, repeats=1)
            classifier.passes.forward, classifier.passes.backward = counted
        self._looks.append(look)
        self._last = time.perf_counter()
        self._cost = self._last - began
        self._paused += self._cost


def best_size(classifier: Classifier, images: Tensor, *, gradients: bool = True) -> int:
    """The batch size at which passes are fastest, by the median of looks that take turns."""
    sizes = [size for size in SIZES if size < 2 * len(images)] or [SIZES[0]]
    batches = {size: repeated(images, size) for size in sizes}
    rates: dict[int, list[float]] = {size: [] for size in sizes}
    for _ in range(ROUNDS):
        for size, rows in batches.items():
            rates[size].append(pass_rate(classifier, rows, gradients=gradients, repeats=1))
    return max(sizes, key=lambda size: statistics.median(rates[size]))
