"""Audits: what is legal but makes a robust accuracy doubtful, as sentences that go with the result.

Each says what was seen and what to run next; `docs/caveats.md` explains them. Not here: what is refused
(`classifier`).
"""

import itertools
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor

from robench.budgets import Ball, advance
from robench.classifier import Classifier, Looked
from robench.losses import cross_entropy

SWEEP = (1 / 16, 1 / 8, 1 / 4, 1 / 2, 1.0)
"""Radii at which the loss is looked at, in units of the protocol's: beyond it, few steps overshoot."""
SWEEP_EXAMPLES = 64
SWEEP_STEPS = 5
SLACK = 0.02
"""By how much the mean loss may fall from one radius to the next, in units of its whole rise."""

AUTOGRAD = (
    "The model calls autograd in its own forward pass: attacks may see another gradient than the one they need. "
    "Attack it with an adaptive attack of your own, too."
)
FLAT_SWEEP = (
    "Gradient steps inside a larger radius do not raise the loss above that of a smaller one: the gradient may "
    "mislead attacks (gradient masking). Run a black-box protocol, too."
)
ZERO_GRADIENT = (
    "The gradient was exactly zero for some images during {attack}: gradient attacks are blind there, and the robust "
    "accuracy may be too high. Run a black-box protocol, too."
)

FEW_TARGETS = (
    "Targeted stages aim at {targets} wrong classes in turn; the model has {classes} classes, so that they aim at all "
    "other ones, and fewer passes are spent."
)
NO_START = (
    "Nothing that {attack} tried as a start fooled the model on some images: they count as robust without having been "
    "attacked. Run a protocol with another attack, too."
)


def calls_autograd(classifier: Classifier, images: Tensor) -> list[str]:
    """Whether the model computes gradients in its forward pass, as purifying defences do."""
    called = []

    def note() -> None:
        called.append(True)

    with _watched(note):
        classifier.logits(images)
    return [AUTOGRAD] if called else []


@contextmanager
def _watched(note: Callable[[], None]) -> Iterator[None]:
    """Tell of calls of autograd from Python, whatever the caller's own tracers do.

    A model may have imported `grad` by name; so what both functions of torch call first is watched, too.
    """
    places = [(torch.autograd, "grad"), (torch.autograd, "backward"), (torch.Tensor, "backward")]
    places += [(torch.autograd, "_make_grads")]
    before = [(place, name, getattr(place, name)) for place, name in places if hasattr(place, name)]

    def telling(function: Any) -> Any:
        def called(*arguments: Any, **settings: Any) -> Any:
            note()
            return function(*arguments, **settings)

        return called

    for place, name, function in before:
        setattr(place, name, telling(function))
    try:
        yield
    finally:
        for place, name, function in before:
            setattr(place, name, function)


def loss_over_radii(classifier: Looked, images: Tensor, labels: Tensor, budgets: Sequence[Ball]) -> list[float]:
    """Mean cross-entropy after a few gradient steps inside each budget, in nats.

    Args:
      classifier: the model.
      images: clean images, float32 in [0, 1], shape (N, 3, H, W).
      labels: int64, shape (N,).
      budgets: balls with rising radii.
    """
    batches = list(zip(torch.split(images, 32), torch.split(labels, 32), strict=True))
    losses = []
    for budget in budgets:
        total = sum(float(_raised(classifier, part, aims, budget).sum()) for part, aims in batches)
        losses.append(total / len(images))
    return losses


def _raised(classifier: Looked, clean: Tensor, labels: Tensor, budget: Ball) -> Tensor:
    """The loss of each image after the steps of a sweep."""
    images = clean
    for _ in range(SWEEP_STEPS):
        gradient = classifier.gradient(images, lambda logits: cross_entropy(logits, labels))[2]
        images = advance(budget, images, gradient, budget.epsilon / 2, clean)
    return cross_entropy(classifier.logits(images), labels)


def rises(losses: Sequence[float]) -> bool:
    """Whether a loss rises from radius to radius, up to a little."""
    whole = max(losses) - losses[0]
    steps = itertools.pairwise(losses)
    return whole > SLACK * max(losses[0], SLACK) and all(later > earlier - SLACK * whole for earlier, later in steps)


def radius_sweep(classifier: Looked, images: Tensor, labels: Tensor, budget: Ball) -> list[str]:
    """Whether gradient steps reach a higher loss where they may go further, up to this budget."""
    if budget.epsilon == 0:
        return []
    budgets = [budget.scaled(factor) for factor in SWEEP]
    return [] if rises(loss_over_radii(classifier, images, labels, budgets)) else [FLAT_SWEEP]
