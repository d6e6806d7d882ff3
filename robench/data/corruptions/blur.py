"""Blur: out of focus, behind frosted glass, in motion, zooming.

Not here: Gaussian blur (`extra.py`).
"""

from functools import lru_cache

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from robench.data.corruptions.levels import blur, enlarge, move, shorts, to_bytes
from robench.data.corruptions.scan import scan_places
from robench.randomness import Draws


def defocus_blur(images: Tensor, draws: Draws, radius: float, softness: float) -> Tensor:
    """A disc of this radius, its edge softened by a Gaussian; beyond the edges the image is mirrored."""
    kernel = _disc(radius, softness)
    reach = len(kernel) // 2
    padded = F.pad(images.double(), (reach, reach, reach, reach), mode="reflect")
    size = (_smooth(padded.shape[2]), _smooth(padded.shape[3]))
    spectrum = torch.fft.rfft2(kernel.to(images.device), s=size)
    blurred = torch.fft.irfft2(torch.fft.rfft2(padded, s=size) * spectrum, s=size)
    return to_bytes(blurred[:, :, 2 * reach : padded.shape[2], 2 * reach : padded.shape[3]])


def glass_blur(images: Tensor, draws: Draws, sigma: float, reach: int, rounds: int) -> Tensor:
    """Blurred, every pixel taken from nearby, one after the other, and blurred again."""
    height, width = images.shape[2:]
    looks = rounds * (height - 2 * reach) * (width - 2 * reach)
    cells = shorts(draws, "glass", looks) * (4 * reach * reach) >> 16  # of those in reach, row by row
    places = torch.from_numpy(scan_places(cells.cpu().numpy(), height, width, reach, rounds))
    blurred = to_bytes(blur(images.double(), sigma)).flatten(2)
    sources = places.to(images.device, torch.int64)[:, None].expand_as(blurred)
    moved = blurred.gather(2, sources).reshape(images.shape)
    return to_bytes(blur(moved.double(), sigma))


def motion_blur(images: Tensor, draws: Draws, radius: int, sigma: float) -> Tensor:
    """Moved along a line, at most 45 degrees from the horizontal."""
    degrees = draws.uniform("angle", [1])[:, 0].double() * 90 - 45
    return to_bytes(move(images.double(), radius, sigma, degrees.tolist()))


def zoom_blur(images: Tensor, draws: Draws, stop: float, step: float) -> Tensor:
    """The mean of the image and of its enlargements from 1 to about `stop`, in these steps."""
    values = images.to(torch.float64, memory_format=torch.channels_last)
    factors = np.arange(1, stop, step).tolist()  # as published: rounding decides whether `stop` is among them
    total = values.clone()
    for factor in factors:
        total += enlarge(values, factor)
    return to_bytes((total / (len(factors) + 1)).contiguous())


@lru_cache(maxsize=16)
def _disc(radius: float, softness: float) -> Tensor:
    """A disc on a grid, softened by a Gaussian kernel of 3x3 (5x5 if it is large), sum 1, float64."""
    half = max(8, int(radius))
    axis = torch.arange(-half, half + 1, dtype=torch.float64)
    disc = (axis[:, None] ** 2 + axis**2 <= radius**2).double()
    width = 1 if radius <= 8 else 2
    weights = torch.exp(-0.5 * (torch.arange(-width, width + 1, dtype=torch.float64) / softness) ** 2)
    weights /= weights.sum()
    padded = F.pad(disc[None, None] / disc.sum(), (width, width, width, width), mode="reflect")
    return F.conv2d(padded, (weights[:, None] * weights)[None, None])[0, 0]


def _smooth(size: int) -> int:
    """The next size whose prime factors are 2, 3 and 5: Fourier transforms like these."""
    while True:
        rest = size
        for prime in (2, 3, 5):
            while rest % prime == 0:
                rest //= prime
        if rest == 1:
            return size
        size += 1
