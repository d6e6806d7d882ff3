"""Where the points of a scatter plot lie, in the units of its drawing.

Not here: how it is drawn (`page.html.j2`).
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

WIDTH, HEIGHT = 420, 300
LEFT, RIGHT, TOP, BOTTOM = 48, 20, 12, 44
"""Margins, in units of the drawing."""


@dataclass(frozen=True)
class Scatter:
    """A scatter plot.

    Attributes:
      x_title, y_title: what the axes show.
      points: number of the row, x and y.
      x_ticks, y_ticks: position and text.
    """

    x_title: str
    y_title: str
    points: Sequence[tuple[int, str, str]]
    x_ticks: Sequence[tuple[str, str]]
    y_ticks: Sequence[tuple[str, str]]


def shares(x_title: str, y_title: str, values: Sequence[tuple[float | None, float]]) -> Scatter:
    """One share against another; both axes go from 0 to 100 percent, and what has no first share is left out."""
    points = [(row, _x(x), _y(y)) for row, (x, y) in enumerate(values) if x is not None]
    ticks = [each / 4 for each in range(5)]
    return Scatter(x_title, y_title, points, [(_x(t), f"{t:.0%}") for t in ticks], [(_y(t), f"{t:.0%}") for t in ticks])


def over_sizes(x_title: str, y_title: str, values: Sequence[tuple[int | None, float]]) -> Scatter:
    """A share against a size, on a logarithmic axis of whole decades; what has no size is left out."""
    known = [size for size, _ in values if size]
    low = math.floor(math.log10(min(known))) if known else 0
    high = max(math.ceil(math.log10(max(known))), low + 1) if known else 1
    points = [
        (row, _x((math.log10(size) - low) / (high - low)), _y(share))
        for row, (size, share) in enumerate(values)
        if size
    ]
    x_ticks = [(_x((power - low) / (high - low)), _decade(power)) for power in range(low, high + 1)]
    return Scatter(x_title, y_title, points, x_ticks, [(_y(each / 4), f"{each / 4:.0%}") for each in range(5)])


def _decade(power: int) -> str:
    """10 to this power, such as `100 k`."""
    suffix = ("", " k", " M", " G", " T")[min(power // 3, 4)]
    return f"{10 ** (power - 3 * min(power // 3, 4)):,}{suffix}"


def _x(share: float) -> str:
    return f"{LEFT + share * (WIDTH - LEFT - RIGHT):.1f}"


def _y(share: float) -> str:
    return f"{HEIGHT - BOTTOM - share * (HEIGHT - TOP - BOTTOM):.1f}"
