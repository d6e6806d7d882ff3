"""The four corruptions that are published for tuning: speckle noise, Gaussian blur, spatter, saturation.

Not here: the fifteen that are scored.
"""

import torch
from torch import Tensor
from torch.nn import functional as F

from robench.data.corruptions.levels import blur, to_bytes
from robench.randomness import Draws

WATER = (175, 238, 238)
MUD = (63, 42, 20)
_UNIT = 65536
_STEPS = (((0, 1), _UNIT), ((1, 1), 91750), ((1, 2), 143976))
"""Chamfer distances of OpenCV's 5x5 mask, in 65536ths: to a side, across a corner, a knight's move."""


def speckle_noise(images: Tensor, draws: Draws, spread: float) -> Tensor:
    """Normal noise that grows with brightness; `spread` is the standard deviation at white."""
    return to_bytes(images * (1 + draws.normal("noise", images.shape[1:]).double() * spread))


def gaussian_blur(images: Tensor, draws: Draws, sigma: float) -> Tensor:
    """Gaussian blur; beyond the edges lies the last pixel."""
    return to_bytes(blur(images.double(), sigma))


def saturate(images: Tensor, draws: Draws, factor: float, more: float) -> Tensor:
    """The saturation of HSV multiplied and raised: each pixel moves from or towards its maximum; greys turn red."""
    values = images.double()
    value, lowest = values.amax(dim=1, keepdim=True), values.amin(dim=1, keepdim=True)
    saturation = (value - lowest) / value.clamp(min=1)
    wanted = (saturation * factor + more).clamp(0, 1)
    coloured = value - (value - values) * (wanted / torch.where(saturation == 0, 1, saturation))
    red = torch.cat([value, value * (1 - wanted), value * (1 - wanted)], dim=1)
    return to_bytes(torch.where(saturation == 0, red, coloured))


def spatter(
    images: Tensor,
    draws: Draws,
    mean: float,
    spread: float,
    sigma: float,
    threshold: float,
    strength: float,
    mud: int,
) -> Tensor:
    """Drops of water, or of mud, where blurred noise has its peaks.

    Args:
      mean, spread: of the normal noise.
      sigma: of its blur, in pixels.
      threshold: above which it is a drop.
      strength: of water; of mud, the blur of its edges.
      mud: 1 for mud, 0 for water.
    """
    noise = draws.normal("drops", images.shape[2:]).double() * spread + mean
    liquid = blur(noise[:, None], sigma)
    if mud:
        cover = blur((liquid > threshold).double(), strength)
        cover = torch.where(cover < 0.8, 0, cover)
        return to_bytes(images * (1 - cover) + cover * _colour(MUD, images))
    drops = (torch.where(liquid < threshold, 0, liquid)[:, 0] * 255).long() % 256  # as published: bytes wrap
    shine = drops * _relief(drops)
    shine = strength * shine / shine.amax(dim=(1, 2), keepdim=True).clamp(min=1)
    return to_bytes(images + shine[:, None] * _colour(WATER, images))


def _colour(colour: tuple[int, int, int], images: Tensor) -> Tensor:
    return torch.tensor(colour, dtype=torch.float64, device=images.device)[:, None, None]


def _relief(drops: Tensor) -> Tensor:
    """How drops catch the light: how far from their edges, stretched over the range, lit from the upper left.

    As OpenCV computes it: the same roundings and borders.

    Args:
      drops: int64 from 0 to 255, shape (N, H, W).
    Returns:
      Whole numbers from 0 to 255 as float64, same shape.
    """
    distance = _distance(_edges(drops))
    smooth = _three_by_three(distance, torch.ones(3, 3)) / 9
    stretched = torch.stack([_equalised(image) for image in (smooth + 1e-9).long()])
    lit = _three_by_three(stretched.double(), torch.tensor([[-2, -1, 0], [-1, 1, 1], [0, 1, 2]])).clamp(0, 255)
    return (_three_by_three(lit, torch.ones(3, 3)) / 9).round()


def _three_by_three(images: Tensor, weights: Tensor) -> Tensor:
    """Weighted sums over 3x3 pixels, the image mirrored at its outermost ones, float64."""
    padded = F.pad(images[:, None], (1, 1, 1, 1), mode="reflect")
    return F.conv2d(padded, weights.to(images)[None, None])[:, 0]


def _edges(drops: Tensor, weak: int = 50, strong: int = 150) -> Tensor:
    """Canny's edges: ridges of the Sobel gradient, above `strong` or connected with what is, shape (N, H, W), bool."""
    padded = F.pad(drops.double()[:, None], (1, 1, 1, 1), mode="replicate")
    sobel = torch.tensor([[-1, 0, 1], [-2, 0, 2], [-1, 0, 1]], dtype=torch.float64, device=drops.device)
    x, y = (F.conv2d(padded, kernel[None, None])[:, 0].long() for kernel in (sobel, sobel.T))
    size = x.abs() + y.abs()
    around = F.pad(size, (1, 1, 1, 1))
    height, width = size.shape[1:]

    def at(down: int, across: int) -> Tensor:
        return around[:, 1 + down : 1 + down + height, 1 + across : 1 + across + width]

    steep, flat = y.abs() << 15, x.abs() * 13573  # the tangent of 22.5 degrees, in 32768ths
    across = (size > at(0, -1)) & (size >= at(0, 1))
    down = (size > at(-1, 0)) & (size >= at(1, 0))
    rising = (size > at(-1, 1)) & (size > at(1, -1))
    falling = (size > at(-1, -1)) & (size > at(1, 1))
    oblique = torch.where((x < 0) ^ (y < 0), rising, falling)
    ridge = torch.where(steep < flat, across, torch.where(steep > flat + (x.abs() << 16), down, oblique))
    ridge &= size > weak
    edges = ridge & (size > strong)
    while True:
        grown = (F.max_pool2d(edges.double()[:, None], 3, stride=1, padding=1)[:, 0] > 0) & ridge
        if torch.equal(grown, edges):
            return edges
        edges = grown


def _distance(edges: Tensor, most: int = 20) -> Tensor:
    """Chamfer distance to the nearest edge, at most `most`, in pixels, float64."""
    height, width = edges.shape[1:]
    distance = torch.where(edges, 0, most * _UNIT)
    signs = [(1, 1), (1, -1), (-1, 1), (-1, -1)]
    moves = {(s * i, t * j, cost) for (a, b), cost in _STEPS for i, j in ((a, b), (b, a)) for s, t in signs}
    for _ in range(most):  # every move is at least a pixel long
        padded = F.pad(distance, (2, 2, 2, 2), value=most * _UNIT)
        for down, across, cost in sorted(moves):
            beside = padded[:, 2 + down : 2 + down + height, 2 + across : 2 + across + width]
            distance = torch.minimum(distance, beside + cost)
    return distance.double() / _UNIT


def _equalised(image: Tensor) -> Tensor:
    """Histogram equalisation, int64 from 0 to 255."""
    counts = torch.bincount(image.flatten(), minlength=256)
    lowest = int(image.min())
    rest = int(image.numel() - counts[lowest])
    if rest == 0:
        return image
    counts[lowest] = 0
    return (counts.cumsum(dim=0).double() * (255 / rest)).round().long()[image]
