"""foolbox's decision-based attacks: they see only which class wins, so any callable can be attacked.

The algorithms are foolbox's own. Ours is the start, which has to be found without other images. Not here: when
an image counts (`whole.py`), and models that come from foolbox (`robench.classifier`).
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from robench.attacks.whole import GaveUp, Look
from robench.budgets import Ball, Budget, L2Ball, LinfBall, PatchArea
from robench.errors import BudgetError, ProtocolError, RunError, complaint
from robench.randomness import RandomSource

BLENDS = 50
"""Mixtures of a noise and the clean image that are tried, as in foolbox's own start."""
SEARCHES = ("geometric_progression", "grid_search")


@dataclass(frozen=True)
class Boundary:
    """A walk along the boundary of the true class towards the clean image, in the Euclidean distance.

    Every step goes a little sideways and a little nearer, and is taken back when the model is right again. The
    wrong choice where few queries are allowed: use HopSkipJump.

    References:
      Brendel, Rauber & Bethge 2018, arXiv:1712.04248, by foolbox 3. Deviates: the start, see `start_of`.
    """

    queries: int
    """Images that the model is shown at most, those of the start included."""
    directions: int = 500
    """Noises that are tried as a start."""
    steps: int = 25000
    """Steps at most; foolbox's 25,000. One of every `update_stats_every_k` looks at two images, the others at one."""
    spherical_step: float = 0.01
    """First length of a step sideways, in units of the distance; foolbox's 1/100."""
    source_step: float = 0.01
    """First length of a step towards the clean image, in units of the distance; foolbox's 1/100."""
    source_step_convergence: float = 1e-7
    """Length of that step at which the attack ends; foolbox's 1/10,000,000."""
    step_adaptation: float = 1.5
    """Factor by which both lengths are adapted; foolbox's 3/2."""
    update_stats_every_k: int = 10
    """Steps between two looks at how many were taken back; foolbox's 10."""

    name = "boundary"
    gradients = False

    def __post_init__(self) -> None:
        _check_settings(self, "steps", "update_stats_every_k")
        _check_lengths(self, "spherical_step", "source_step", "source_step_convergence")
        if not self.step_adaptation > 1:
            raise ProtocolError(complaint("Boundary", "step_adaptation", self.step_adaptation, "more than 1"))

    @property
    def most_passes(self) -> tuple[int, int]:
        """Passes with and without gradient of an example that survives."""
        return 0, self.queries

    def check(self, budget: Budget) -> None:
        _check_budget(self.name, budget, {L2Ball: "l2"})
        _foolbox()

    def run(self, look: Look, image: Tensor, label: int, *, budget: Ball, draws: RandomSource) -> None:
        attack = _foolbox().attacks.BoundaryAttack(
            steps=self.steps,
            spherical_step=self.spherical_step,
            source_step=self.source_step,
            source_step_convergance=self.source_step_convergence,  # spelt so in foolbox
            step_adaptation=self.step_adaptation,
            update_stats_every_k=self.update_stats_every_k,
        )
        start = start_of(look, image, label, draws=draws, stream=f"{self.name}/start", directions=self.directions)
        _run(attack, look, image, label, start)


@dataclass(frozen=True)
class HopSkipJump:
    """Steps along an estimated gradient at the boundary of the true class, each followed by a bisection back to it.

    The gradient comes from the answers to small random changes. It minimises the distance of the budget's norm.

    References:
      Chen, Jordan & Wainwright 2020, arXiv:1904.02144, by foolbox 3. Deviates: the start, see `start_of`.
    """

    queries: int
    """Images that the model is shown at most, those of the start included."""
    directions: int = 500
    """Noises that are tried as a start."""
    steps: int = 64
    """Steps at most; foolbox's 64."""
    initial_gradient_eval_steps: int = 100
    """Images from which the first step estimates its gradient; foolbox's 100. Step k takes sqrt(k) times as many."""
    max_gradient_eval_steps: int = 10000
    """The same at most; foolbox's 10,000."""
    stepsize_search: str = "geometric_progression"
    """How far a step goes: halved until it fools, or `grid_search`: the best of 20 lengths."""
    gamma: float = 1.0
    """Length at which a bisection ends, in units of the distance over d^(3/2) (L2) or d^2 (L-inf); foolbox's 1."""

    name = "hopskipjump"
    gradients = False

    def __post_init__(self) -> None:
        _check_settings(self, "steps", "initial_gradient_eval_steps", "max_gradient_eval_steps")
        _check_lengths(self, "gamma")
        if self.stepsize_search not in SEARCHES:
            expected = " or ".join(f"`{search}`" for search in SEARCHES)
            raise ProtocolError(complaint("HopSkipJump", "stepsize_search", f"`{self.stepsize_search}`", expected))

    @property
    def most_passes(self) -> tuple[int, int]:
        """Passes with and without gradient of an example that survives."""
        return 0, self.queries

    def check(self, budget: Budget) -> None:
        _check_budget(self.name, budget, {L2Ball: "l2", LinfBall: "linf"})
        _foolbox()

    def run(self, look: Look, image: Tensor, label: int, *, budget: Ball, draws: RandomSource) -> None:
        attack = _foolbox().attacks.HopSkipJumpAttack(
            steps=self.steps,
            initial_gradient_eval_steps=self.initial_gradient_eval_steps,
            max_gradient_eval_steps=self.max_gradient_eval_steps,
            stepsize_search=self.stepsize_search,
            gamma=self.gamma,
            constraint="l2" if isinstance(budget, L2Ball) else "linf",
        )
        start = start_of(look, image, label, draws=draws, stream=f"{self.name}/start", directions=self.directions)
        _run(attack, look, image, label, start)


def start_of(
    look: Look, image: Tensor, label: int, *, draws: RandomSource, stream: str, directions: int
) -> Tensor | None:
    """An image that fools, to start from, found with no other data than the example itself.

    Noise of one colour a pixel looks the same to most models, and where that is the example's own class, they call all
    of it right. So every noise has coarser cells than the one before, from a pixel to the whole image, and
    then from a pixel again. The first that fools is mixed with the clean image, as little of it as still fools.

    Args:
      look: what the model says.
      image: clean, shape (3, H, W).
      label: its class.
      draws: the example's random numbers.
      stream: of these.
      directions: noises to try.
    Returns:
      Shape (3, H, W); None if no noise fools.
    """
    sizes = [2**power for power in range(min(image.shape[1:]).bit_length())]
    for number in range(directions):
        noise = _noise(image, sizes[number % len(sizes)], draws, stream, number)
        if int(look(noise[None]).argmax()) != label:
            break
    else:
        return None
    for part in range(1, BLENDS):
        mixed = torch.lerp(image, noise, part / BLENDS)
        if int(look(mixed[None]).argmax()) != label:
            return mixed
    return noise


def _noise(image: Tensor, size: int, draws: RandomSource, stream: str, number: int) -> Tensor:
    """Uniform colours on square cells of this size in pixels, shape (3, H, W)."""
    channels, height, width = image.shape
    cells = draws.uniform(stream, (channels, -(-height // size), -(-width // size)), step=number)[0]
    return cells.repeat_interleave(size, dim=1).repeat_interleave(size, dim=2)[:, :height, :width].contiguous()


class _Model:
    """What foolbox takes for a model: `look` behind eagerpy's tensors."""

    def __init__(self, look: Look, astensor: Callable[[Any], Any]) -> None:
        self._look, self._astensor = look, astensor
        self.bounds = _foolbox().types.Bounds(0.0, 1.0)

    def __call__(self, images: Any) -> Any:
        return self._astensor(self._look(images.raw))


def _run(attack: Any, look: Look, image: Tensor, label: int, start: Tensor | None) -> None:
    """Run an attack of foolbox from a start, if there is one."""
    import eagerpy

    if start is None:
        return
    criterion = _foolbox().criteria.Misclassification(torch.tensor([label]))
    try:
        attack.run(_Model(look, eagerpy.astensor), image[None], criterion, starting_points=start[None])
    except (AssertionError, ValueError) as error:  # foolbox asks again whether its images fool
        raise GaveUp(f"foolbox was given two answers to the same image ({type(error).__name__})") from error


def _foolbox() -> Any:
    try:
        import foolbox
    except ImportError as error:
        advice = "Install it: `pip install 'robench[foolbox]'`."
        raise RunError(complaint("robench", "foolbox", "not installed", "it, for its attacks", advice)) from error
    return foolbox


def _check_budget(name: str, budget: Budget, norms: dict[type, str]) -> None:
    expected = " or ".join(f"`{norm}`" for norm in norms.values())
    if isinstance(budget, PatchArea):
        advice = "Give a `norm` and an `epsilon` instead."
        raise BudgetError(complaint(name, "budget.kind", "`patches`", f"a ball of norm {expected}", advice))
    if type(budget) not in norms:
        raise BudgetError(complaint(name, "budget.norm", type(budget).__name__, expected))


def _check_settings(attack: Boundary | HopSkipJump, *more: str) -> None:
    where = type(attack).__name__
    for key in ("queries", "directions", *more):
        if getattr(attack, key) < 1:
            raise ProtocolError(complaint(where, key, getattr(attack, key), "at least 1"))
    if attack.directions + BLENDS >= attack.queries:
        expected = f"more than {attack.directions + BLENDS}, which finding a start may take"
        raise ProtocolError(complaint(where, "queries", attack.queries, expected))


def _check_lengths(attack: Boundary | HopSkipJump, *keys: str) -> None:
    for key in keys:
        if not getattr(attack, key) > 0:
            raise ProtocolError(complaint(type(attack).__name__, key, getattr(attack, key), "more than 0"))
