"""k-means, by inner products alone: a style has 300,000 numbers, a class about a thousand images.

Not here: what is clustered (`style`).
"""

import torch
from torch import Tensor

from robench.randomness import RandomSource

STARTS = 30
"""Starts, of which the best counts; our choice."""
ROUNDS = 300
"""Rounds of a start at most; our choice. It ends when no point moves."""
_COLUMNS = 65_536
"""Columns whose products are summed at a time, so that float64 takes no room."""


def cluster(points: Tensor, count: int, draws: RandomSource) -> tuple[Tensor, Tensor]:
    """Centres of k-means, the largest cluster first.

    Args:
      points: shape (N, D).
      count: clusters, at most N.
      draws: of one key; what the starts are drawn from.
    Returns:
      Centres, shape (count, D), of the type of the points; and how many points each has, int64, shape (count,).
    References:
      Lloyd 1982; starts by Arthur & Vassilvitskii 2007 (k-means++).
    """
    products = _inner_products(points)
    found = [_one_start(products, count, draws, start) for start in range(STARTS)]
    shares, _ = min(found, key=lambda each: each[1])
    members = _distances(products, shares).argmin(dim=1)
    sizes = members.bincount(minlength=count)
    order = sizes.argsort(descending=True, stable=True)
    return shares[:, order].T.to(points) @ points, sizes[order]


def _inner_products(points: Tensor) -> Tensor:
    """Of all pairs, less the mean point; float64, shape (N, N)."""
    products = points.new_zeros(len(points), len(points), dtype=torch.float64)
    for part in torch.split(points, _COLUMNS, dim=1):
        centred = part.double() - part.double().mean(dim=0)
        products += centred @ centred.T
    return products


def _distances(products: Tensor, shares: Tensor) -> Tensor:
    """Squared distances of points from centres; the share of a point in a centre has the shape (N, K)."""
    mixed = products @ shares
    return products.diagonal()[:, None] - 2 * mixed + (shares * mixed).sum(dim=0)


def _one_start(products: Tensor, count: int, draws: RandomSource, start: int) -> tuple[Tensor, float]:
    """Lloyd's algorithm from one start: shares of the points in the centres, and the sum of squared distances."""
    shares = _first_centres(products, count, draws.uniform("clusters/start", (count,), step=start)[0])
    members = None
    for _ in range(ROUNDS):
        nearest = _distances(products, shares).argmin(dim=1)
        if members is not None and torch.equal(nearest, members):
            break
        members = nearest
        marks = torch.nn.functional.one_hot(members, count).to(products)
        sizes = marks.sum(dim=0)
        shares = torch.where(sizes > 0, marks / sizes.clamp_min(1), shares)  # an empty cluster stays where it is
    return shares, float(_distances(products, shares).amin(dim=1).sum())


def _first_centres(products: Tensor, count: int, uniforms: Tensor) -> Tensor:
    """Points drawn one after the other, each with a chance as its squared distance from those before it."""
    chance = products.new_ones(len(products))
    shares = products.new_zeros(len(products), count)
    for index, uniform in enumerate(uniforms.tolist()):
        reached = chance.cumsum(dim=0)
        chosen = min(int(torch.searchsorted(reached, uniform * float(reached[-1]), right=True)), len(products) - 1)
        shares[chosen, index] = 1
        distances = _distances(products, shares[:, index : index + 1])[:, 0].clamp_min(0)
        chance = distances if index == 0 else torch.minimum(chance, distances)
    return shares
