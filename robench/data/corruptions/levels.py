"""What corruptions share: numbers to bytes, blur, enlargement, motion, and short random numbers.

Corruptions compute in float64 on the scale 0 to 255. What they find is cut off to bytes as published, with a
margin that rounding errors cannot reach, so that batch, threads and device change no byte.

Not here: any corruption (one file for each family).
"""

import math
from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn import functional as F

from robench.randomness import Draws

MARGIN = 1e-6
"""Added before cutting off, in grey levels: float64 errs by some 1e-11, and 127.9999999999 means 128."""


def to_bytes(values: Tensor) -> Tensor:
    """Numbers from 0 to 255, cut off (not rounded) to uint8; what lies outside is clamped."""
    return (values + MARGIN).clamp_(0, 255).to(torch.uint8)


def shorts(draws: Draws, stream: str, count: int) -> Tensor:
    """Random whole numbers below 2**16, two out of every word, int64, shape (N, count)."""
    words = draws.bits(stream, (count + 1) // 2)
    return torch.stack([words & 0xFFFF, words >> 16], dim=2).flatten(1)[:, :count]


def blur(images: Tensor, sigma: float) -> Tensor:
    """Gaussian blur, ending at four standard deviations; beyond the edges lies the last pixel.

    Args:
      images: float64, shape (N, C, H, W).
      sigma: standard deviation in pixels.
    """
    weights = gaussian(sigma, 4.0)
    radius, (height, width) = len(weights) // 2, images.shape[2:]
    for axis, length in ((2, height), (3, width)):
        around = (radius, radius, 0, 0) if axis == 3 else (0, 0, radius, radius)
        padded = F.pad(images, around, mode="replicate")
        images = torch.zeros_like(images)
        for offset, weight in enumerate(weights.tolist()):
            images.add_(padded.narrow(axis, offset, length), alpha=weight)
    return images


def gaussian(sigma: float, truncate: float) -> Tensor:
    """A Gaussian at whole numbers, up to so many standard deviations to either side, sum 1, float64."""
    radius = int(truncate * sigma + 0.5)
    weights = torch.exp(-0.5 * (torch.arange(-radius, radius + 1, dtype=torch.float64) / max(sigma, 1e-12)) ** 2)
    return weights / weights.sum()


def enlarge(images: Tensor, factor: float) -> Tensor:
    """The middle of images, linearly enlarged to their size, float64, shape (N, C, H, W).

    The outermost pixels of the part stay the outermost ones; what is enlarged beyond the size is trimmed at both
    ends, as published.
    """
    size = images.shape[2:]
    parts = [math.ceil(length / factor) for length in size]
    part = _middle(images, parts)
    enlarged = F.interpolate(part, [round(length * factor) for length in parts], mode="bilinear", align_corners=True)
    return _middle(enlarged, size)


def _middle(images: Tensor, size: Sequence[int]) -> Tensor:
    top, left = ((there - wanted) // 2 for there, wanted in zip(images.shape[2:], size, strict=True))
    return images[:, :, top : top + size[0], left : left + size[1]]


def move(images: Tensor, radius: int, sigma: float, degrees: Sequence[float]) -> Tensor:
    """Motion blur: each image and its copies, moved further and further and fainter and fainter, added up.

    Beyond the edges lies the last pixel.

    Args:
      images: float64, shape (N, C, H, W).
      radius: the copies are 2 * radius, each a pixel further.
      sigma: of the half Gaussian by which they grow fainter, in pixels.
      degrees: direction for each image.
    """
    steps = 2 * radius + 1
    weights = torch.exp(-0.5 * (torch.arange(steps, dtype=torch.float64) / sigma) ** 2)
    height, width = images.shape[-2:]
    padded = F.pad(images, (steps, steps, steps, steps), mode="replicate")
    moved = torch.zeros_like(images)
    for image, source, angle in zip(moved, padded, degrees, strict=True):
        sine, cosine = math.sin(math.radians(angle)), math.cos(math.radians(angle))
        for step, weight in enumerate((weights / weights.sum()).tolist()):
            top = steps + math.ceil(step * sine - 0.5)
            left = steps + math.ceil(step * cosine - 0.5)
            image.add_(source[:, top : top + height, left : left + width], alpha=weight)
    return moved
