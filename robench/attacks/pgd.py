"""Projected gradient descent: start, gradient, step, project.

Not here: which iterates count, and when an example has had enough (`drive.py`).
"""

from dataclasses import dataclass, replace

import torch
from torch import Tensor

from robench.arrays import choose
from robench.attacks.interface import Answer, Examples, Query
from robench.budgets import BALLS, Ball, advance
from robench.errors import ProtocolError, complaint
from robench.losses import cross_entropy
from robench.randomness import RandomSource


@dataclass(frozen=True)
class PGDState:
    """What PGD remembers of each slot."""

    examples: Examples
    budget: Ball
    iterate: Tensor
    """Images to look at next, float32, shape (N, 3, H, W)."""
    step: Tensor
    """Steps taken so far, int64, shape (N,)."""
    done: Tensor


@dataclass(frozen=True)
class PGD:
    """Projected gradient ascent on the cross-entropy of the true class.

    x_0 is drawn from the budget, x_(k+1) = project(x_k + step(gradient at x_k)). The start is step 0, so
    100 steps look at 101 images. The wrong choice for models whose cross-entropy is flat (saturated or
    masked): use AutoAttack.

    References:
      Madry et al. 2018, arXiv:1706.06083. Deviates: none.
    """

    step_size: float
    """Length of a step in units of the image."""
    steps: int
    """Steps after the start."""
    start_probability: float = 1.0
    """Chance that an example starts at random; else it starts at its clean image."""

    name = "pgd"
    gradients = True
    works_in = BALLS

    def __post_init__(self) -> None:
        if not self.step_size > 0:
            raise ProtocolError(complaint("PGD", "step_size", self.step_size, "more than 0"))
        if self.steps < 1:
            raise ProtocolError(complaint("PGD", "steps", self.steps, "at least 1"))
        if not 0 <= self.start_probability <= 1:
            raise ProtocolError(complaint("PGD", "start_probability", self.start_probability, "from 0 to 1"))

    @property
    def most_passes(self) -> tuple[int, int]:
        """Passes with and without gradient of an example that survives."""
        return self.steps + 1, 0

    def start(self, examples: Examples, budget: Ball, draws: RandomSource) -> PGDState:
        clean = examples.images
        noisy = budget.project(budget.random_point(clean, draws, "pgd/0"), clean)
        coin = draws.uniform("pgd/0/coin", (1,))[:, 0] < self.start_probability
        zeros = torch.zeros_like(examples.labels)
        return PGDState(examples, budget, choose(coin, noisy, clean), step=zeros, done=zeros.bool())

    def ask(self, state: PGDState) -> Query:
        labels = state.examples.labels
        return Query(
            rows=torch.arange(len(labels), device=labels.device),
            render=lambda rows: state.iterate[rows],
            objective=lambda logits, slots: cross_entropy(logits, labels[slots]),
            counts=torch.ones_like(state.done),
            step=state.step,
        )

    def tell(self, state: PGDState, answer: Answer) -> PGDState:
        assert answer.gradient is not None, "PGD asks for a gradient every time"
        iterate = advance(state.budget, state.iterate, answer.gradient, self.step_size, state.examples.images)
        return replace(state, iterate=iterate, step=state.step + 1, done=state.step >= self.steps)
