"""Paints textures that have given styles, by Adam on their pixels.

Not here: what a style is (`style`), and whose styles are painted (`build`).
"""

from collections.abc import Callable

import torch
from torch import Tensor

from robench.randomness import Draws
from robench.synthesis.recipe import SynthesisRecipe
from robench.synthesis.style import StyleExtractor

SCALE = 1e6
"""Of the squared distance of styles; published with PatchAttack."""
START = (0.45, 0.225)
"""Mean and spread of the noise that is painted over: standard normals in ImageNet's units, as published."""


def paint(
    extractor: StyleExtractor,
    styles: Tensor,
    recipe: SynthesisRecipe,
    draws: Draws,
    *,
    on_step: Callable[[int, float], None],
) -> Tensor:
    """Textures of these styles, all painted together.

    Each starts from clamped noise of its own. Adam lowers SCALE times the squared distance of its style from the
    one wanted, plus the weighted total variation; after every step pixels are clamped to [0, 1].

    Args:
      extractor: what takes styles.
      styles: those wanted, shape (N, D).
      recipe: size, steps and step of Adam.
      draws: random numbers of the textures, one key each.
      on_step: is told each step and the mean squared distance before it, times SCALE.
    Returns:
      float32 in [0, 1], shape (N, 3, size, size).
    References:
      Gatys, Ecker & Bethge 2015, arXiv:1505.07376; Yang et al. 2020, arXiv:2004.05682.
    """
    mean, spread = START
    noise = draws.normal("textures/start", (3, recipe.size, recipe.size)).to(styles.device)
    textures = (mean + spread * noise).clamp(0, 1).requires_grad_()
    optimizer = torch.optim.Adam([textures], lr=recipe.lr)
    with torch.enable_grad():
        for step in range(recipe.steps):
            distances = misfit(extractor.styles(textures), styles)
            loss = distances.sum() + recipe.total_variation * total_variation(textures).sum()
            (textures.grad,) = torch.autograd.grad(loss, textures)
            optimizer.step()
            with torch.no_grad():
                textures.clamp_(0, 1)
            on_step(step, float(distances.detach().mean()))
    return textures.detach()


def misfit(found: Tensor, wanted: Tensor) -> Tensor:
    """How far styles are from those wanted: SCALE times the squared distance, shape (N,)."""
    return SCALE * (found - wanted).square().sum(dim=1)


def total_variation(images: Tensor) -> Tensor:
    """Mean squared difference of neighbours, down and across, shape (N,)."""
    down, across = images.diff(dim=2), images.diff(dim=3)
    return down.square().mean(dim=(1, 2, 3)) + across.square().mean(dim=(1, 2, 3))
