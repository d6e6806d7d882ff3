"""Noise: normal, photons counted, and pixels that are lost.

Not here: speckle noise (`extra.py`).
"""

from functools import lru_cache

import torch
from torch import Tensor

from robench.data.corruptions.levels import shorts, to_bytes
from robench.randomness import Draws

_STARTS = 10
"""Bits of a word by which the search for a count begins."""


def gaussian_noise(images: Tensor, draws: Draws, spread: float) -> Tensor:
    """Normal noise of this standard deviation, as a share of the range."""
    return to_bytes(images + draws.normal("noise", images.shape[1:]).double() * (255 * spread))


def shot_noise(images: Tensor, draws: Draws, photons: float) -> Tensor:
    """As many photons as a Poisson distribution gives, of which white expects so many."""
    words = draws.bits("photons", images[0].numel()).flatten()
    levels = images.flatten().long()
    steps, starts = (table.to(images.device) for table in _photon_tables(photons))
    counts = starts.take((levels << _STARTS) | (words >> (32 - _STARTS))).long()
    rows = levels * steps.shape[1]
    climbing = (words >= steps.take(rows + counts)).nonzero()[:, 0]
    while len(climbing):  # one in thirty, and then ever fewer
        counts[climbing] += 1
        climbing = climbing[words[climbing] >= steps.take(rows[climbing] + counts[climbing])]
    return to_bytes(counts.reshape(images.shape).double() * (255 / photons))


def impulse_noise(images: Tensor, draws: Draws, share: float) -> Tensor:
    """Salt and pepper, as many of each: this share of all values becomes 255 or 0."""
    numbers = shorts(draws, "impulse", images[0].numel()).reshape(images.shape)
    lost = numbers >> 1 < round(share * 2**15)
    return torch.where(lost, (numbers & 1).to(torch.uint8) * 255, images)


@lru_cache(maxsize=16)
def _photon_tables(photons: float) -> tuple[Tensor, Tensor]:
    """Poisson distributions for the 256 grey levels, to look counts up by a 32-bit word.

    Returns:
      Distribution functions as words, int64, shape (256, counts): words below the first are no photon, below the
      second one, and so on; and the count of the lowest word of each 1024th of the words, int16, shape (256 * 1024,).
    """
    counts = torch.arange(int(photons + 12 * photons**0.5 + 24), dtype=torch.float64)
    expected = torch.arange(256, dtype=torch.float64)[:, None] * (photons / 255)
    logs = torch.xlogy(counts, expected) - expected - torch.lgamma(counts + 1)
    steps = (logs.exp().cumsum(dim=1) * 2**32).round().long()
    steps[:, -1] = 2**32
    lowest = torch.arange(2**_STARTS) << (32 - _STARTS)
    return steps, torch.searchsorted(steps, lowest.expand(256, -1).contiguous(), right=True).flatten().short()
