"""Adversarial training images: the evaluation's own attacks, all slots in step.

Not here: attacks themselves (`robench.attacks`).
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from robench.attacks.interface import Answer, Examples
from robench.attacks.pgd import PGD
from robench.budgets import BUDGETS
from robench.protocol import fraction
from robench.training.recipe import AdversaryRecipe


class BatchDraws:
    """Random numbers of a training batch, from one generator; they belong to no example."""

    def __init__(self, generator: torch.Generator, count: int) -> None:
        self._generator, self._count = generator, count

    def uniform(self, stream: str, shape: Sequence[int], *, step: int | Tensor = 0) -> Tensor:
        """Uniforms in [0, 1), float32, shape (N, *shape)."""
        return torch.rand(self._count, *shape, generator=self._generator)

    def normal(self, stream: str, shape: Sequence[int], *, step: int | Tensor = 0) -> Tensor:
        """Standard normals, float32, shape (N, *shape)."""
        return torch.randn(self._count, *shape, generator=self._generator)


def adversarial_images(
    model: nn.Module,
    images: Tensor,
    labels: Tensor,
    recipe: AdversaryRecipe,
    *,
    generator: torch.Generator,
    strength: float = 1.0,
) -> Tensor:
    """The last iterate of PGD against the model, which is left in the mode it had.

    Args:
      model: takes images in [0, 1], returns logits.
      images: float32 in [0, 1], shape (N, 3, H, W).
      labels: int64, shape (N,).
      recipe: attack and budget.
      generator: of the random starts.
      strength: factor on radius and step size, for a warm-up.
    Returns:
      Adversarial images, float32, shape (N, 3, H, W).
    """
    if strength == 0:
        return images
    epsilon, step_size = (float(fraction(text)) * strength for text in (recipe.epsilon, recipe.step_size))
    attack = PGD(step_size=step_size, steps=recipe.steps, start_probability=_start_probability(recipe, generator))
    budget = BUDGETS[recipe.norm](epsilon)
    examples = Examples(images, labels, logits=torch.zeros(len(images), 0))
    state = attack.start(examples, budget, BatchDraws(generator, len(images)))
    with _in_eval_mode(model):
        for _ in range(attack.steps):
            query = attack.ask(state)
            leaf = query.render(slice(None)).requires_grad_()
            logits = model(leaf)
            assert query.objective is not None, "PGD asks for a gradient every time"
            values = query.objective(logits, query.rows)
            (gradient,) = torch.autograd.grad(values.sum(), leaf)
            state = attack.tell(state, Answer(logits.detach(), values.detach(), gradient))
    return state.iterate


def _start_probability(recipe: AdversaryRecipe, generator: torch.Generator) -> float:
    """Chance that an example of this batch starts at a random point."""
    if recipe.start == "normal-coin":
        return float(torch.randn((), generator=generator) > recipe.start_from_clean)
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


def probe(recipe: AdversaryRecipe, steps: int) -> AdversaryRecipe:
    """The same budget attacked with this many steps, which together are 2.5 radii long."""
    step_size = fraction(recipe.epsilon) * 5 / (2 * steps)
    start = {"start": "uniform", "start_from_clean": 0.0}
    return recipe.model_copy(update={"steps": steps, "step_size": str(step_size), **start})
