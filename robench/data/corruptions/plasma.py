"""Clouds by the diamond-square algorithm: fog, and the procedural ice of frost.

Not here: what is done with them (`weather.py`, `ice.py`).
"""

import torch
from torch import Tensor

from robench.randomness import Draws


def plasma(draws: Draws, size: int, decay: float) -> Tensor:
    """Clouds that wrap around, from 0 to 1.

    Midpoints of squares and then of their sides are the mean of their four neighbours and a random height,
    again and again on half the scale.

    Args:
      draws: one key for each image; the stream is `plasma`.
      size: side in pixels, a power of two.
      decay: by how much the random heights shrink from scale to scale (their square root does).
    Returns:
      float64, shape (N, size, size).
    """
    heights = draws.uniform("plasma", [size * size]).double() * 2 - 1
    clouds = torch.zeros(len(heights), size, size, dtype=torch.float64, device=heights.device)
    step, height, used = size, 100.0, 0

    def settle(sums: Tensor) -> Tensor:
        nonlocal used
        count = sums[0].numel()
        random = heights[:, used : used + count].reshape(sums.shape)
        used += count
        return sums / 4 + height**2 * random

    while step >= 2:
        half = step // 2
        corners = clouds[:, ::step, ::step].clone()
        below = corners + corners.roll(-1, dims=1)
        middles = settle(below + below.roll(-1, dims=2))
        clouds[:, half::step, half::step] = middles
        clouds[:, ::step, half::step] = settle(corners + corners.roll(-1, dims=2) + middles + middles.roll(1, dims=1))
        clouds[:, half::step, ::step] = settle(below + middles + middles.roll(1, dims=2))
        step, height = half, height / decay
    clouds -= clouds.amin(dim=(1, 2), keepdim=True)
    return clouds / clouds.amax(dim=(1, 2), keepdim=True)
