"""A few squares that cover some pixels, if there are such: what a budget of patches says about the shape of a change.

Not here: which pixels changed, and how many may (`budgets.py`).
"""

import numpy as np
from numpy.typing import NDArray

Points = NDArray[np.int64]
"""Rows and columns of pixels, shape (n, 2)."""


def covering(points: Points, count: int, side: int) -> list[tuple[int, int]] | None:
    """At most so many squares of this side, upright and on whole pixels, that cover all points. Exact.

    Squares may overlap, and may reach beyond the image, as far as they could be moved back. Of up to three squares,
    one can be moved into a corner of the box around the points without losing any: each side of the box is touched by
    a square, so one square touches two sides. Of more, one begins in the first row, and its left edge can be moved
    to a point. So the work is at most a few times `side ** (count - 3)` looks at the points; the squares of an
    attack are mostly found at the first try.

    Args:
      points: the pixels to cover.
      count: how many squares there may be.
      side: of each, in pixels.
    Returns:
      Row and column of the upper left pixel of each; None: there are no such squares.
    """
    if not len(points):
        return []
    if len(points) > count * side**2:
        return None
    low, high = points.min(axis=0), points.max(axis=0)
    if (high - low < side).all():
        return [(int(low[0]), int(low[1]))]
    if count == 1:
        return None
    for corner in _corners(low, high, side) if count <= 3 else _beginnings(points, low[0], side):
        rest = covering(points[~_inside(points, corner, side)], count - 1, side)
        if rest is not None:
            return [(int(corner[0]), int(corner[1])), *rest]
    return None


def _inside(points: Points, corner: Points, side: int) -> NDArray[np.bool_]:
    """Which points a square with this upper left corner covers."""
    inside = (points >= corner) & (points < corner + side)
    return inside[:, 0] & inside[:, 1]


def _corners(low: Points, high: Points, side: int) -> list[Points]:
    """Upper left corners of the squares in the corners of a box."""
    rows, columns = ((low[axis], high[axis] - side + 1) for axis in (0, 1))
    return [np.array([row, column]) for row in rows for column in columns]


def _beginnings(points: Points, row: int, side: int) -> list[Points]:
    """Upper left corners of the squares that cover the leftmost point of the first row, the rightmost ones first."""
    first = points[points[:, 0] == row, 1].min()
    band = points[points[:, 0] < row + side, 1]
    edges = np.unique(band[(band > first - side) & (band <= first)])
    return [np.array([row, edge]) for edge in edges[::-1]]
