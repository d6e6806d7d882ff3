"""Pictures of results in cells: a heat map corruption x severity, and curves over severity.

Not here: what all pictures share (`figures`).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

from robench.result import Metric, Result

if TYPE_CHECKING:
    from matplotlib.axes import Axes

Look = Callable[[int], dict[str, Any]]
ROW = 0.2
"""Inches of a row of the heat map."""


def cells_of(result: Result) -> tuple[list[str], list[int], dict[tuple[str, int], Metric]]:
    """Corruptions by family and name, severities, and the metric of each cell."""
    found: dict[tuple[str, int], Metric] = {}
    for metric in result.metrics:
        if metric.group == "cell":
            name, _, severity = metric.name.rpartition("/")
            found[name, int(severity)] = metric
    return sorted({name for name, _ in found}), sorted({severity for _, severity in found}), found


def heights(result: Result) -> tuple[float, float]:
    """Inches of the heat map, and of the curves below it."""
    return ROW * (len(cells_of(result)[0]) + 1) + 0.7, 2.6


def draw_heat_map(axes: Axes, result: Result) -> None:
    """Accuracy in every cell, as colour and number; the last column is the mean over severities."""
    names, severities, cells = cells_of(result)
    means = {metric.name: metric.value for metric in result.metrics if metric.group == "corruption"}
    rows = [[100 * cells[name, severity].value for severity in severities] + [100 * means[name]] for name in names]
    axes.imshow(rows, vmin=0, vmax=100, cmap="viridis", aspect="auto")
    for row, values in enumerate(rows):
        for column, value in enumerate(values):
            colour = "black" if value > 55 else "white"
            axes.text(column, row, f"{value:.1f}", ha="center", va="center", color=colour, fontsize=7)
    axes.axvline(len(severities) - 0.5, color="white", linewidth=2)
    axes.set_xticks(range(len(severities) + 1), [*map(str, severities), "mean"])
    axes.set_yticks(range(len(names)), [name.replace("_", " ") for name in names])
    axes.set_xlabel("severity (accuracy, %)")
    for spine in axes.spines.values():
        spine.set_visible(False)
    axes.tick_params(length=0)


def curve(result: Result, names: Sequence[str]) -> list[tuple[int, float]]:
    """Mean accuracy over some corruptions at each severity, in per cent; at 0 on clean images, if it was measured."""
    _, severities, cells = cells_of(result)
    clean = [(0, 100 * metric.value) for metric in result.metrics if metric.name == "clean"]
    means = [100 * sum(cells[name, severity].value for name in names) / len(names) for severity in severities]
    return [*clean, *zip(severities, means, strict=True)]


def draw_curves(axes: Axes, curves: Sequence[tuple[str, Sequence[tuple[int, float]]]], look: Look) -> None:
    """A line over severity for each curve.

    Args:
      axes: to draw on.
      curves: what each is called, and its points.
      look: colour, dash and marker of the line with this number.
    """
    ticks: set[int] = set()
    for index, (label, points) in enumerate(curves):
        places, values = zip(*points, strict=True)
        axes.plot(places, values, label=label, markersize=4, **look(index))
        ticks |= set(places)
    axes.set_xticks(sorted(ticks), ["clean" if place == 0 else str(place) for place in sorted(ticks)])
    axes.set_xlabel("severity (mean over corruptions)")
