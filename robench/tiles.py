"""Examples before and after an attack, side by side: a column of three pictures for each.

Not here: which examples are shown (`showcase`), and the figure they are part of (`figures`).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:  # matplotlib is optional; torch is not needed to draw curves
    from matplotlib.axes import Axes
    from torch import Tensor

    from robench.showcase import Exhibit

COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000")
"""Okabe and Ito's colours, which people with any colour vision tell apart; yellow is too pale on white."""
WIDTH = 7.2
"""Inches: the text width of a page, so that 8 points stay 8 points in print."""


def _columns(exhibits: Sequence[Exhibit]) -> int:
    return max(len(exhibits), 6)  # a single example is not blown up


def tiles_height(exhibits: Sequence[Exhibit]) -> float:
    """Inches for three rows of tiles and what is written above them."""
    if not exhibits:
        return 0.0
    height, width = exhibits[0].image.shape[1:]
    tile = (WIDTH - 0.5) / _columns(exhibits)
    return float(3 * tile * height / width + 0.85)


def draw_tiles(figure: Any, exhibits: Sequence[Exhibit], *, patched: bool) -> None:
    """A column for each example: clean, attacked, and their difference, or the patches where there are any."""
    largest = max(float((each.adversarial - each.image).abs().max()) for each in exhibits)
    factor = max(1, int(0.5 / largest)) if largest else 1
    rows = ("clean", "attacked", "patches" if patched else f"difference\nx {factor}")
    columns = _columns(exhibits)
    grid = figure.subplots(3, columns, squeeze=False)
    for column in range(columns):
        for row in range(3):
            axes = grid[row][column]
            if column >= len(exhibits):
                axes.set_axis_off()
                continue
            axes.set_xticks([])
            axes.set_yticks([])
            if column == 0:
                axes.set_ylabel(rows[row])
        if column < len(exhibits):
            cells, exhibit = [grid[row][column] for row in range(3)], exhibits[column]
            _draw_example(cells, exhibit, _patches(exhibit) if patched else _difference(exhibit, factor))
            if patched:
                _outline(cells[2], exhibit)


def _draw_example(cells: Sequence[Axes], exhibit: Exhibit, change: Tensor) -> None:
    for axes, image in zip(cells, (exhibit.image, exhibit.adversarial, change), strict=True):
        axes.imshow(image.permute(1, 2, 0).clamp(0, 1).numpy(), interpolation="nearest")
        for spine in axes.spines.values():
            spine.set_visible(True)
            spine.set_color(COLOURS[1] if exhibit.broken else COLOURS[0])
            spine.set_linewidth(1.2)
    verdict = "broken" if exhibit.broken else "survives"
    cells[0].set_title(
        plain(f"{verdict}\ntrue {short(exhibit.truth, 10)}\nsaid {short(exhibit.clean, 10)}"), fontsize=7
    )
    cells[1].set_title(plain(f"said {short(exhibit.attacked, 10)}"), fontsize=7)


def _difference(exhibit: Exhibit, factor: int) -> Tensor:
    """The change, so many times as large, around grey."""
    return (0.5 + factor * (exhibit.adversarial - exhibit.image)).clamp(0, 1)


def _patches(exhibit: Exhibit) -> Tensor:
    """The pixels that changed as they are, on the clean image in pale grey."""
    changed = (exhibit.adversarial != exhibit.image).any(dim=0)
    pale = 0.7 + 0.3 * exhibit.image.mean(dim=0, keepdim=True).expand_as(exhibit.image)
    return exhibit.adversarial.where(changed, pale)


def _outline(axes: Axes, exhibit: Exhibit) -> None:
    """A line between pixels that changed and pixels that did not."""
    from matplotlib.collections import LineCollection

    changed = (exhibit.adversarial != exhibit.image).any(dim=0).int()
    lines = []
    for across in (False, True):  # borders above pixels, then those to their left
        grid = changed.T if across else changed
        edges = grid.diff(dim=0, prepend=grid.new_zeros(1, grid.shape[1]), append=grid.new_zeros(1, grid.shape[1]))
        for row, column in edges.nonzero().tolist():
            ends = [(column - 0.5, row - 0.5), (column + 0.5, row - 0.5)]
            lines.append([(y, x) for x, y in ends] if across else ends)
    axes.add_collection(LineCollection(lines, colors=COLOURS[6], linewidths=0.6))


def short(text: str, longest: int) -> str:
    """The text with its middle left out."""
    if len(text) <= longest:
        return text
    half = (longest - 1) // 2
    return f"{text[: longest - 1 - half]}…{text[-half:]}"


def plain(text: str) -> str:
    """Text that matplotlib does not take for mathematics."""
    return text.replace("$", r"\$")
