"""The ten shapes of the mini suite, which are its labels: integer tests of integer coordinates.

Coordinates lie in [-1024, 1024] around the centre of the shape, y downwards. Not here: where a shape
stands and what it is painted with (`generator.py`).
"""

from collections.abc import Callable, Sequence

import numpy as np
from numpy.typing import NDArray

Grid = NDArray[np.int64]
Mask = NDArray[np.bool_]


def inside_polygon(x: Grid, y: Grid, corners: Sequence[tuple[int, int]]) -> Mask:
    """Which points lie inside a polygon, by the even-odd rule, exactly."""
    inside = np.zeros(x.shape, dtype=np.bool_)
    for (x1, y1), (x2, y2) in zip(corners, [*corners[1:], corners[0]], strict=True):
        if y1 == y2:
            continue
        if y1 > y2:
            x1, y1, x2, y2 = x2, y2, x1, y1
        inside ^= (y >= y1) & (y < y2) & ((x - x1) * (y2 - y1) < (x2 - x1) * (y - y1))
    return inside


def _disk(x: Grid, y: Grid) -> Mask:
    return x * x + y * y <= 880**2


def _ring(x: Grid, y: Grid) -> Mask:
    square = x * x + y * y
    return (square <= 960**2) & (square >= 520**2)


def _square(x: Grid, y: Grid) -> Mask:
    return (abs(x) <= 780) & (abs(y) <= 780)


def _triangle(x: Grid, y: Grid) -> Mask:
    return inside_polygon(x, y, [(0, -1000), (980, 720), (-980, 720)])


def _cross(x: Grid, y: Grid) -> Mask:
    return ((abs(x) <= 300) & (abs(y) <= 960)) | ((abs(y) <= 300) & (abs(x) <= 960))


def _star(x: Grid, y: Grid) -> Mask:
    tips = [(0, -1020), (970, -315), (600, 825), (-600, 825), (-970, -315)]
    dents = [(247, -340), (399, 130), (0, 420), (-399, 130), (-247, -340)]
    return inside_polygon(x, y, [corner for pair in zip(tips, dents, strict=True) for corner in pair])


def _crescent(x: Grid, y: Grid) -> Mask:
    return (x * x + y * y <= 960**2) & ((x - 460) ** 2 + y * y > 800**2)


def _arrow(x: Grid, y: Grid) -> Mask:
    return inside_polygon(
        x, y, [(1000, 0), (150, -800), (150, -280), (-950, -280), (-950, 280), (150, 280), (150, 800)]
    )


def _hourglass(x: Grid, y: Grid) -> Mask:
    return (abs(y) <= 900) & (abs(x) <= abs(y))


def _ell(x: Grid, y: Grid) -> Mask:
    return inside_polygon(x, y, [(-760, -960), (-160, -960), (-160, 360), (760, 360), (760, 960), (-760, 960)])


SHAPES: dict[str, Callable[[Grid, Grid], Mask]] = {
    "disk": _disk,
    "ring": _ring,
    "square": _square,
    "triangle": _triangle,
    "cross": _cross,
    "star": _star,
    "crescent": _crescent,
    "arrow": _arrow,
    "hourglass": _hourglass,
    "ell": _ell,
}
"""Shape by name; the position in this dictionary is the label."""
