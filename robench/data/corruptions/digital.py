"""What digital processing does: less contrast, elastic warps, coarse pixels, JPEG.

Not here: saturation (`extra.py`).
"""

from collections.abc import Callable
from functools import lru_cache
from io import BytesIO
from typing import Literal

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torch.nn import functional as F

from robench.data.corruptions.levels import gaussian, shorts, to_bytes
from robench.randomness import Draws


def contrast(images: Tensor, draws: Draws, share: float) -> Tensor:
    """Each channel pulled towards its mean, until this share of its contrast is left."""
    values = images.double()
    means = values.mean(dim=(2, 3), keepdim=True)
    return to_bytes((values - means) * share + means)


def elastic_transform(images: Tensor, draws: Draws, alpha: float, sigma: float, jitter: float) -> Tensor:
    """An affine map that moves three points at random, and then a smooth random displacement of every pixel.

    Args:
      alpha: what the displacement, uniform noise from -1 to 1 that is blurred, is multiplied by, in pixels.
      sigma: of the blur, in pixels.
      jitter: how far the points move at most, in either direction, in pixels.
    """
    height, width = images.shape[2:]
    x = torch.arange(width, dtype=torch.float64, device=images.device)
    y = torch.arange(height, dtype=torch.float64, device=images.device)[:, None]
    moves = (draws.uniform("corners", [3, 2]).double() * 2 - 1) * jitter
    back = _affine(moves, height, width)[..., None, None]
    sources = back[:, 0] * x + back[:, 1] * y + back[:, 2]
    warped = _sample(images.double(), sources[:, 0], sources[:, 1], edge="pixel")
    if alpha:
        numbers = shorts(draws, "warp", 2 * height * width).reshape(-1, 2, height, width)
        noise = (numbers.double() + 0.5) / 2**15 - 1
        down, across = (_smoothing(length, sigma).to(noise.device) for length in (height, width))
        across_by, down_by = (down @ noise @ across.T * alpha).unbind(dim=1)
        warped = _sample(warped, x + across_by, y + down_by, edge="half")
    return to_bytes(warped)


@lru_cache(maxsize=16)
def _smoothing(size: int, sigma: float) -> Tensor:
    """Gaussian blur of a line, mirrored beyond its ends as often as needed, float64, shape (size, size)."""
    weights = gaussian(sigma, 3.0)
    radius = len(weights) // 2
    positions = (torch.arange(size)[:, None] + torch.arange(-radius, radius + 1)) % (2 * size)
    positions = torch.minimum(positions, 2 * size - 1 - positions)
    return torch.zeros(size, size, dtype=torch.float64).scatter_add_(1, positions, weights.expand_as(positions))


def _affine(moves: Tensor, height: int, width: int) -> Tensor:
    """Where a pixel comes from, [x, y, 1] @ this, if three points around the centre have moved so, shape (N, 3, 2)."""
    half = torch.tensor([height // 2, width // 2], dtype=torch.float64, device=moves.device)  # as published: swapped
    third = min(height, width) // 3
    signs = torch.tensor([[1, 1], [1, -1], [-1, -1]], dtype=torch.float64, device=moves.device)
    points = half + third * signs
    ones = torch.ones(len(moves), 3, 1, dtype=torch.float64, device=moves.device)
    back: Tensor = torch.linalg.solve(torch.cat([points + moves, ones], dim=2), points.expand(len(moves), 3, 2))
    return back


def _sample(images: Tensor, x: Tensor, y: Tensor, edge: Literal["pixel", "half"]) -> Tensor:
    """Bilinear values at these places; the image is mirrored at its outermost pixels, or half a pixel beyond."""
    height, width = images.shape[2:]
    if edge == "pixel":
        grid = torch.stack([2 * x / (width - 1) - 1, 2 * y / (height - 1) - 1], dim=-1)
    else:
        grid = torch.stack([(2 * x + 1) / width - 1, (2 * y + 1) / height - 1], dim=-1)
    return F.grid_sample(images, grid, mode="bilinear", padding_mode="reflection", align_corners=edge == "pixel")


def pixelate(images: Tensor, draws: Draws, scale: float) -> Tensor:
    """Shrunk to this scale and enlarged again, by Pillow's box filter both ways."""

    def change(image: Image.Image) -> Image.Image:
        small = image.resize((int(image.width * scale), int(image.height * scale)), Image.Resampling.BOX)
        return small.resize(image.size, Image.Resampling.BOX)

    return _by_pillow(images, change)


def jpeg_compression(images: Tensor, draws: Draws, quality: int) -> Tensor:
    """Compressed with this quality and decoded, by Pillow."""

    def change(image: Image.Image) -> Image.Image:
        file = BytesIO()
        image.save(file, "JPEG", quality=quality)
        return Image.open(file)

    return _by_pillow(images, change)


def _by_pillow(images: Tensor, change: Callable[[Image.Image], Image.Image]) -> Tensor:
    pixels = images.permute(0, 2, 3, 1).contiguous().cpu().numpy()
    changed = [np.asarray(change(Image.fromarray(image))).transpose(2, 0, 1) for image in pixels]
    return torch.from_numpy(np.stack(changed)).to(images.device)
