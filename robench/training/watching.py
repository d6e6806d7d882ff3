"""How good a model is while it is trained: accuracy on validation images, clean and attacked.

Not here: scores that are reported (`robench.evaluation`).
"""

from collections.abc import Iterable, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from robench.protocol import fraction
from robench.training.adversary import BatchDraws, adversarial_images
from robench.training.recipe import AdversaryRecipe

PROBE_STEPS = 10
PROBE_EXAMPLES = 256
"""Adversarial accuracy is watched on this many validation images, with this many steps of PGD."""
_AT_ONCE = 64
FALL = 0.5
"""Catastrophic overfitting: accuracy under PGD falls below this share of the best epoch's ..."""
HOLD = 0.9
"""... while accuracy under one step keeps this share of that epoch's. Or, where there was no better epoch:"""
APART = 0.1
"""accuracy under PGD is below this share of that under one step ..."""
MEANT = 0.2
"""... which is at least so high."""


def probe(recipe: AdversaryRecipe, steps: int) -> AdversaryRecipe:
    """The same budget attacked with this many steps, which together are 2.5 radii long; one step is one radius."""
    step_size = fraction(recipe.epsilon) * (5 if steps > 1 else 2) / (2 * steps)
    start = {"start": "uniform", "start_from_clean": 0.0}
    return recipe.model_copy(update={"steps": steps, "step_size": str(step_size), **start})


def count_right(model: nn.Module, batches: Iterable[tuple[Tensor, Tensor]]) -> tuple[int, int]:
    """How many images are taken for what they are, and how many there were."""
    right = total = 0
    with torch.no_grad():
        for images, labels in batches:
            right += int((model(images).argmax(dim=1) == labels).sum())
            total += len(labels)
    return right, total


def attacked_accuracy(
    model: nn.Module, images: Tensor, labels: Tensor, recipe: AdversaryRecipe, *, steps: int
) -> float:
    """Accuracy on images that the recipe's budget was spent on."""
    attack, right = probe(recipe, steps), 0
    for part, targets in zip(torch.split(images, _AT_ONCE), torch.split(labels, _AT_ONCE), strict=True):
        starts = BatchDraws(torch.Generator().manual_seed(0), len(part), device=part.device)
        attacked = adversarial_images(model, part, targets, attack, starts=starts)
        right += count_right(model, [(attacked, targets)])[0]
    return round(right / len(labels), 4)


def catastrophic_overfitting(lines: Sequence[dict[str, Any]], *, clean_epochs: int = 0) -> bool:
    """Whether in the last epoch many steps break what one step does not: more than in a better epoch, or nearly all.

    Args:
      lines: of the log, one an epoch, with `pgd@10` and `single-step`.
      clean_epochs: how many of the first trained without an adversary, and say nothing.
    References:
      Wong, Rice & Kolter 2020, arXiv:2001.03994, who named it.
    """
    pgd = f"pgd@{PROBE_STEPS}"
    if len(lines) <= clean_epochs:
        return False
    best, last = max(lines[clean_epochs:], key=lambda line: float(line[pgd])), lines[-1]
    single = last["single-step"]
    fallen = last[pgd] < FALL * best[pgd] and single >= HOLD * best["single-step"]
    return bool(fallen or (single >= MEANT and last[pgd] < APART * single))
