"""What an attack may change: a ball around the clean image, or a share of its area; always inside [0, 1].

A budget is a value that is passed in; there is no attack class per norm. The driver needs one thing of
every budget: by how much an image breaks it. The geometry that attacks in a ball need (a random point,
the steepest step, the nearest point, the distance) stands here once.

Not here: radii and areas of protocols (`benchmarks/`), what is pasted as a patch (`robench.attacks.patches`).
"""

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import torch
from torch import Tensor

from robench import compiled
from robench.errors import BudgetError, complaint
from robench.randomness import RandomSource
from robench.squares import covering

TOLERANCE = 1e-6
"""How far outside its budget an image may lie through rounding, in units of the image."""


class Budget(Protocol):
    """A set of allowed images around each clean image. Images are float32 in [0, 1], shape (N, 3, H, W)."""

    def excess(self, images: Tensor, clean: Tensor) -> Tensor:
        """By how much each image breaks the budget or [0, 1]; zero or less when allowed; shape (N,)."""
        ...

    def glance(self, images: Tensor, clean: Tensor) -> Tensor:
        """The same without what takes long to measure, so never more: for every image that is looked at."""
        ...


class Ball(Budget, Protocol):
    """All images up to a distance, for attacks that step and project.

    Distances and radii are in units of the image (4/255, not 4).
    """

    @property
    def epsilon(self) -> float:
        """Radius of the budget, in units of the image."""
        ...

    def scaled(self, factor: float) -> "Ball":
        """The same ball with another radius."""
        ...

    def random_point(self, clean: Tensor, draws: RandomSource, stream: str) -> Tensor:
        """A point drawn uniformly from the ball and clipped to [0, 1]."""
        ...

    def random_edge_point(self, clean: Tensor, draws: RandomSource, stream: str, *, step: Tensor) -> Tensor:
        """A point in a random direction, as far as the ball reaches, clipped to [0, 1].

        `step` says which draw of the stream each image is given, int64, shape (N,).
        """
        ...

    def pace(self, weights: Tensor) -> Tensor | None:
        """How far each value goes, relative to the others, on the shortest way to a plane with these weights.

        Weights are absolute values; None: all go equally far.
        """
        ...

    def step(self, images: Tensor, gradient: Tensor, step_size: float | Tensor) -> Tensor:
        """Move by `step_size` in the direction in which the objective rises fastest under the norm.

        `step_size` is one number, or one for each image, shape (N, 1, 1, 1).
        """
        ...

    def project(self, images: Tensor, clean: Tensor) -> Tensor:
        """The nearest allowed images."""
        ...

    def length(self, change: Tensor) -> Tensor:
        """How long each change is, in the units of epsilon, shape (N,)."""
        ...


def _outside_box(images: Tensor) -> Tensor:
    flat = images.flatten(1)
    return _beyond(flat.amin(dim=1), flat.amax(dim=1))  # on a CPU, 20 times as fast as `aminmax`


def _beyond(lowest: Tensor, highest: Tensor) -> Tensor:
    """By how much values reach beyond [0, 1]."""
    return (-lowest).maximum(highest - 1)


def _checked_radius(where: str, epsilon: float) -> None:
    if not (math.isfinite(epsilon) and epsilon >= 0):
        raise BudgetError(complaint(where, "epsilon", epsilon, "a finite radius of at least 0 in units of the image"))


@dataclass(frozen=True)
class LinfBall:
    """No value changes by more than epsilon."""

    epsilon: float
    """Radius in units of the image."""

    def __post_init__(self) -> None:
        _checked_radius("LinfBall", self.epsilon)

    def scaled(self, factor: float) -> "LinfBall":
        return LinfBall(factor * self.epsilon)

    def random_point(self, clean: Tensor, draws: RandomSource, stream: str) -> Tensor:
        noise = draws.uniform(stream, clean.shape[1:]) * 2  # the rest in its memory
        return noise.sub_(1).mul_(self.epsilon).add_(clean).clamp_(0, 1)

    def random_edge_point(self, clean: Tensor, draws: RandomSource, stream: str, *, step: Tensor) -> Tensor:
        noise = draws.uniform(stream, clean.shape[1:], step=step) * 2 - 1
        largest = noise.abs().flatten(1).amax(dim=1)[:, None, None, None]
        return self.project(clean + self.epsilon * (noise / (largest + 1e-12)), clean)

    def pace(self, weights: Tensor) -> Tensor | None:
        return None

    def step(self, images: Tensor, gradient: Tensor, step_size: float | Tensor) -> Tensor:
        return gradient.sign().mul_(step_size).add_(images)

    def project(self, images: Tensor, clean: Tensor) -> Tensor:
        edge = clean - self.epsilon  # one buffer for both edges: on a CPU, fresh memory costs more than the arithmetic
        nearest = images.maximum(edge)
        torch.add(clean, self.epsilon, out=edge)
        return torch.minimum(nearest, edge, out=nearest).clamp_(0, 1)

    def length(self, change: Tensor) -> Tensor:
        return change.abs().flatten(1).amax(dim=1)

    def excess(self, images: Tensor, clean: Tensor) -> Tensor:
        swept = compiled.extremes(images, clean)
        if swept is not None:
            furthest, lowest, highest = swept
            return (furthest - self.epsilon).maximum(_beyond(lowest, highest))
        furthest = (images - clean).abs_().flatten(1).amax(dim=1)
        return (furthest - self.epsilon).maximum(_outside_box(images))

    def glance(self, images: Tensor, clean: Tensor) -> Tensor:
        return self.excess(images, clean)


@dataclass(frozen=True)
class L2Ball:
    """The Euclidean length of the change is at most epsilon."""

    epsilon: float
    """Radius in units of the image, over all its values together."""

    def __post_init__(self) -> None:
        _checked_radius("L2Ball", self.epsilon)

    def scaled(self, factor: float) -> "L2Ball":
        return L2Ball(factor * self.epsilon)

    def random_point(self, clean: Tensor, draws: RandomSource, stream: str) -> Tensor:
        size = math.prod(clean.shape[1:])
        direction = draws.normal(stream, clean.shape[1:])
        share = draws.uniform(f"{stream}/radius", (1, 1, 1)) ** (1 / size)
        return (clean + self.epsilon * share * direction / _length(direction)).clamp(0, 1)

    def random_edge_point(self, clean: Tensor, draws: RandomSource, stream: str, *, step: Tensor) -> Tensor:
        direction = draws.normal(stream, clean.shape[1:], step=step)
        return self.project(clean + self.epsilon * direction / _length(direction), clean)

    def pace(self, weights: Tensor) -> Tensor | None:
        return weights

    def step(self, images: Tensor, gradient: Tensor, step_size: float | Tensor) -> Tensor:
        return images + step_size * gradient / _length(gradient)

    def project(self, images: Tensor, clean: Tensor) -> Tensor:
        # The ball is convex and holds the clean image, and clipping moves every value towards its
        # clean one: so clipping after scaling never leaves the ball.
        change = images - clean
        # The length is summed in float64: over 150,528 values a float32 sum is off by more than the tolerance.
        scale = ((1 - 1e-7) * self.epsilon / _length(change.double())).clamp(max=1)
        return (clean + scale.float() * change).clamp(0, 1)

    def length(self, change: Tensor) -> Tensor:
        length: Tensor = torch.linalg.vector_norm(change.double().flatten(1), dim=1).float()
        return length

    def excess(self, images: Tensor, clean: Tensor) -> Tensor:
        return (self.length(images - clean) - self.epsilon).maximum(_outside_box(images))

    def glance(self, images: Tensor, clean: Tensor) -> Tensor:
        return self.excess(images, clean)


def _length(images: Tensor) -> Tensor:
    """Euclidean length of each image, never zero, shape (N, 1, 1, 1)."""
    length: Tensor = torch.linalg.vector_norm(images.flatten(1), dim=1)
    return length.clamp(min=1e-12)[:, None, None, None]


def advance(ball: Ball, images: Tensor, gradient: Tensor, step_size: float | Tensor, clean: Tensor) -> Tensor:
    """The nearest allowed images after a step: `step`, then `project`."""
    swept = None
    if type(ball) is LinfBall:  # what is derived from it may step or project in its own way
        swept = compiled.advance(images, gradient, step_size, clean, ball.epsilon)
    return swept if swept is not None else ball.project(ball.step(images, gradient, step_size), clean)


def advance_with_momentum(
    ball: Ball, images: Tensor, origin: Tensor, gradient: Tensor, step_size: Tensor, weight: Tensor, clean: Tensor
) -> Tensor:
    """The nearest allowed images after `weight` of the way of `advance` and the rest of the way from `origin`.

    Args:
      ball: in which the step is taken.
      images, origin, gradient, clean: shape (N, 3, H, W).
      step_size, weight: shape (N, 1, 1, 1).
    """
    if type(ball) is LinfBall:
        swept = compiled.advance_with_momentum(images, origin, gradient, step_size, weight, clean, ball.epsilon)
        if swept is not None:
            return swept
    target = advance(ball, images, gradient, step_size, clean)
    pulled = target.sub_(images).mul_(weight).add_(images).add_((images - origin).mul_(1 - weight))
    return ball.project(pulled, clean)


@dataclass(frozen=True)
class PatchArea:
    """A few squares of any content, which together cover at most a share of the image.

    Nobody is trusted to have pasted squares: the changed pixels are counted, and must fit into so many squares.
    """

    area: float
    """Largest share of the image's pixels that may change, from 0 to 1."""
    patches: int = 1
    """Into how many equal squares the area is divided."""

    def __post_init__(self) -> None:
        if not 0 <= self.area <= 1:
            raise BudgetError(complaint("PatchArea", "area", self.area, "a share from 0 to 1"))
        if self.patches < 1:
            raise BudgetError(complaint("PatchArea", "patches", self.patches, "at least 1"))

    def side(self, height: int, width: int) -> int:
        """Side of each square in an image of this size, in pixels; 0 only where the area is 0.

        Raises:
          BudgetError: no square of a whole pixel fits, or one is larger than the image.
        """
        side = math.isqrt(self.pixels(height, width) // self.patches)
        if side > min(height, width) or (side < 1 and self.area > 0):
            found = f"{self.patches} squares of {side} x {side} pixels in images of {height} x {width}"
            advice = "Choose another area, or fewer patches."
            raise BudgetError(complaint("PatchArea", "area", found, "squares that fit", advice))
        return side

    def pixels(self, height: int, width: int) -> int:
        """How many pixels of an image of this size may change."""
        return math.floor(self.area * height * width + 1e-6)  # 1/10 of 10 pixels is one pixel, in floats, too

    def excess(self, images: Tensor, clean: Tensor) -> Tensor:
        """By how many pixels each image breaks the area, or by how much [0, 1].

        A change that does not fit into the squares, whatever its area, is one pixel too many at least.
        """
        side = self.side(images.shape[2], images.shape[3])
        changed = _changed(images, clean).cpu().numpy()
        fits = [covering(np.argwhere(each), self.patches, side) is not None for each in changed]
        glance = self.glance(images, clean)
        return torch.where(torch.tensor(fits, device=glance.device), glance, glance.clamp(min=1))

    def glance(self, images: Tensor, clean: Tensor) -> Tensor:
        """The same without the squares."""
        swept = compiled.changed(images, clean)
        if swept is not None:
            pixels, lowest, highest = swept
            beyond = (pixels - self.pixels(images.shape[2], images.shape[3])).to(images.dtype)
            return beyond.maximum(_beyond(lowest, highest))
        changed = _changed(images, clean).flatten(1).sum(dim=1)
        beyond = (changed - self.pixels(images.shape[2], images.shape[3])).to(images.dtype)
        return beyond.maximum(_outside_box(images))


def _changed(images: Tensor, clean: Tensor) -> Tensor:
    """Which pixels differ, bool, shape (N, H, W)."""
    red, green, blue = (images - clean).abs_().unbind(dim=1)
    return red.add_(green).add_(blue) != 0  # on a CPU, three times as fast as `(images != clean).any(dim=1)`


def changed_share(image: Tensor, clean: Tensor) -> float:
    """Share of the pixels that differ, of images of shape (3, H, W)."""
    return float(_changed(image[None], clean[None]).double().mean())


BALLS = (LinfBall, L2Ball)
"""The kinds of budget in which a step and a projection mean something."""

BUDGETS: dict[str, Callable[[float], Ball]] = {"linf": LinfBall, "l2": L2Ball}
"""Ball by the name of its norm in a protocol."""
