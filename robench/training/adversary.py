"""Adversarial training images: the evaluation's own attacks, all slots in step.

Not here: attacks themselves (`robench.attacks`).
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Protocol

import torch
from torch import Tensor, nn

from robench.attacks.interface import Answer, Examples
from robench.attacks.pgd import PGD
from robench.budgets import BUDGETS
from robench.losses import cross_entropy
from robench.protocol import fraction
from robench.randomness import Draws, RandomSource
from robench.training.recipe import AdversaryRecipe


class Starts(RandomSource, Protocol):
    """Random numbers of the starts of a part of a batch."""

    def coin(self) -> float:
        """One standard normal number for the whole batch."""
        ...


class BatchDraws:
    """Random numbers of a training batch, from one generator that goes on; they belong to no example.

    Args:
      generator: on the CPU.
      count: examples of the batch.
      device: where the numbers are wanted.
    """

    def __init__(self, generator: torch.Generator, count: int, *, device: torch.device | str = "cpu") -> None:
        self._generator, self._count, self._device = generator, count, device
        self._rows: Tensor | slice = slice(None)
        self._drawn: list[Tensor] = []
        self._calls = 0

    def of(self, rows: Tensor) -> "BatchDraws":
        """The numbers of some rows: all parts of a batch share what is drawn for it."""
        part = BatchDraws(self._generator, self._count, device=self._device)
        part._rows, part._drawn = rows, self._drawn
        return part

    def uniform(self, stream: str, shape: Sequence[int], *, step: int | Tensor = 0) -> Tensor:
        """Uniforms in [0, 1), float32, shape (N, *shape)."""
        return self._next(lambda: torch.rand(self._count, *shape, generator=self._generator))

    def normal(self, stream: str, shape: Sequence[int], *, step: int | Tensor = 0) -> Tensor:
        """Standard normals, float32, shape (N, *shape)."""
        return self._next(lambda: torch.randn(self._count, *shape, generator=self._generator))

    def coin(self) -> float:
        return float(self._next(lambda: torch.randn((), generator=self._generator).expand(self._count))[0])

    def _next(self, draw: Callable[[], Tensor]) -> Tensor:
        if self._calls == len(self._drawn):
            self._drawn.append(draw())
        self._calls += 1
        return self._drawn[self._calls - 1][self._rows].to(self._device)


class ExampleDraws:
    """Random numbers that belong to an example's place in an epoch, the same on every device.

    Args:
      seed, epoch, step: of the batch.
      positions: of its examples in the batch.
      device: where the numbers are wanted.
    """

    def __init__(
        self, seed: int, epoch: int, step: int, positions: Sequence[int], *, device: torch.device | str = "cpu"
    ) -> None:
        batch = f"training/{epoch}/{step}"
        self._own = Draws.of(seed, [f"{batch}/{position}" for position in positions], device)
        self._batch = Draws.of(seed, [batch])

    def uniform(self, stream: str, shape: Sequence[int], *, step: int | Tensor = 0) -> Tensor:
        """Uniforms in [0, 1), float32, shape (N, *shape)."""
        return self._own.uniform(stream, shape, step=step)

    def normal(self, stream: str, shape: Sequence[int], *, step: int | Tensor = 0) -> Tensor:
        """Standard normals, float32, shape (N, *shape)."""
        return self._own.normal(stream, shape, step=step)

    def coin(self) -> float:
        return float(self._batch.normal("coin", (1,)))


def strength_at(recipe: AdversaryRecipe, update: int, steps_per_epoch: int) -> float:
    """Factor on radius and step size at an update: 0 on clean images, then growing to 1 over the warm-up."""
    update -= recipe.clean_epochs * steps_per_epoch
    if update < 0:
        return 0.0
    warmup = recipe.warmup_epochs * steps_per_epoch
    return min(1.0, update / warmup) if warmup else 1.0


def adversarial_images(
    model: nn.Module,
    images: Tensor,
    labels: Tensor,
    recipe: AdversaryRecipe,
    *,
    starts: Starts,
    strength: float = 1.0,
) -> Tensor:
    """The last iterate of PGD against the model, which is left in the mode it had.

    Args:
      model: takes images in [0, 1], returns logits.
      images: float32 in [0, 1], shape (N, 3, H, W).
      labels: int64, shape (N,), or of mixed images the share of every class, float32, shape (N, K).
      recipe: attack and budget.
      starts: random numbers of the starts.
      strength: factor on radius and step size, for a warm-up.
    Returns:
      Adversarial images, float32, shape (N, 3, H, W).
    """
    if strength == 0:
        return images
    epsilon, step_size = (float(fraction(text)) * strength for text in (recipe.epsilon, recipe.step_size))
    attack = PGD(step_size=step_size, steps=recipe.steps, start_probability=_start_probability(recipe, starts))
    budget = BUDGETS[recipe.norm](epsilon)
    hard = labels if labels.ndim == 1 else labels.argmax(dim=1)
    examples = Examples(images, hard, logits=images.new_zeros(len(images), 0))
    state = attack.start(examples, budget, starts)
    with _in_eval_mode(model):
        for _ in range(attack.steps):
            query = attack.ask(state)
            leaf = query.render(slice(None)).requires_grad_()
            logits = model(leaf)
            values = cross_entropy(logits, labels)  # PGD's own objective, for labels that are mixed as well
            (gradient,) = torch.autograd.grad(values.sum(), leaf)
            state = attack.tell(state, Answer(logits.detach(), values.detach(), gradient))
    return state.iterate


def _start_probability(recipe: AdversaryRecipe, starts: Starts) -> float:
    """Chance that an example of this batch starts at a random point."""
    if recipe.start == "normal-coin":
        return float(starts.coin() > recipe.start_from_clean)
    return 1 - recipe.start_from_clean


@contextmanager
def _in_eval_mode(model: nn.Module) -> Iterator[None]:
    """Put every part of the model back into the mode it had, whatever happens."""
    modes = [(part, part.training) for part in model.modules()]
    model.eval()
    try:
        yield
    finally:
        for part, training in modes:
            part.training = training
