"""Pictures of results: examples before and after the attack, and accuracy over steps, queries or radii.

Every picture is a pure function of what it shows: the same run gives the same bytes. Not here: which
examples are shown (`showcase`), and how a curve is measured (`curves`). matplotlib is an optional extra
and is imported when something is drawn.
"""

from __future__ import annotations

import io
from collections import Counter
from collections.abc import Sequence
from contextlib import AbstractContextManager
from pathlib import Path
from shlex import quote
from typing import TYPE_CHECKING, Any

from robench.cells_figure import cells_of, curve, draw_curves, draw_heat_map, heights
from robench.errors import FigureError, complaint
from robench.protocol import PatchSpec, Protocol, fraction
from robench.result import Metric, Result, percent, score
from robench.runs import Run, write_whole
from robench.tiles import COLOURS, WIDTH, draw_tiles, plain, short, tiles_height

if TYPE_CHECKING:  # matplotlib is optional; torch is not needed to draw curves
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

    from robench.curves import RadiusCurve
    from robench.showcase import Exhibit

METADATA: dict[str, dict[str, Any]] = {
    ".png": {"Software": None},
    ".svg": {"Date": None, "Creator": None},
    ".pdf": {"CreationDate": None, "Creator": None, "Producer": None},
}
"""Formats by suffix, and what matplotlib would write into them beside the picture."""
DASHES = ("-", "--", "-.", ":")
MARKERS = ("o", "s", "^", "D", "v", "P", "X")
Band = tuple[float, float, float]
"""A share, and the ends of its interval."""
STYLE: dict[str, Any] = {
    "font.size": 8,
    "axes.titlesize": 8,
    "axes.titlepad": 3,
    "axes.labelsize": 8,
    "legend.fontsize": 8,
    "xtick.labelsize": 7,
    "ytick.labelsize": 7,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "svg.hashsalt": "robench",
    "savefig.dpi": 200,
}


def check_figure(path: str | Path, *, protocols: Sequence[Protocol] = ()) -> None:
    """Check that a picture can be written, before anything is computed for it.

    Args:
      path: of the picture.
      protocols: of the evaluation that it is to show.
    Raises:
      FigureError: matplotlib is not installed, the suffix is none of its formats, the folder is missing,
        or there is no one attack to show.
    """
    path = Path(path)
    _matplotlib()
    if path.suffix not in METADATA:
        found = f"`{path.suffix}`" if path.suffix else "missing"
        raise FigureError(complaint(str(path), "suffix", found, f"one of {', '.join(METADATA)}"))
    if not path.parent.is_dir():
        raise FigureError(
            complaint(str(path), "folder", "missing", "a folder", f"Make it: `mkdir -p {quote(str(path.parent))}`.")
        )
    if path.is_dir():
        raise FigureError(complaint(str(path), "figure", "a folder", "a file"))
    if len(protocols) > 1:
        advice = "Draw one figure for each, or compare runs: `robench compare A B --figure FILE`."
        raise FigureError(complaint(str(path), "figure", f"of {len(protocols)} protocols", "one protocol", advice))
    for protocol in protocols:  # what is not drawn of one run is not drawn of several either
        if protocol.attack is None and not (protocol.shift is not None and protocol.shift.cells):
            found = f"of {protocol.exact_name}, which has no attack and no cells"
            raise FigureError(complaint(str(path), "figure", found, "an attack or cells to show"))
        if protocol.score.asks is not None:
            found = f"of {protocol.exact_name}, which asks the model {protocol.score.asks} times"
            expected = "a protocol under which an example is broken or survives"
            raise FigureError(complaint(str(path), "figure", found, expected))


def draw_result(path: str | Path, result: Result, exhibits: Sequence[Exhibit] = ()) -> None:
    """Draw a run: examples clean, attacked and their difference or patches, and robust accuracy over the steps.

    Of a run in cells: a heat map corruption x severity, and accuracy over severity.

    Args:
      path: of the picture; its suffix is the format.
      result: from a run folder.
      exhibits: examples to show, from `robench.showcase`.
    Raises:
      FigureError: see `check_figure`; or the file cannot be written.
      RunError: the run folder was changed.
    """
    check_figure(path)
    if _in_cells(result):
        _draw_cells(Path(path), result)
        return
    with _style():
        heights = [tiles_height(exhibits), 2.6]
        figure = _figure(sum(heights))
        title = f"{short(result.model.name, 50)} under {result.protocol.id}@{result.protocol.version}"
        if exhibits:
            parts: Any = figure.subfigures(2, 1, height_ratios=heights)
            tiles, below = parts
            draw_tiles(tiles, exhibits, patched=isinstance(_protocol_of(result).budget, PatchSpec))
        else:
            below = figure
        axes = below.subplots()
        _draw_steps(axes, [("robust", result)])
        axes.set_title(f"{plain(title)}: {_count(result)}", loc="left")
        _write(figure, Path(path))


def draw_comparison(path: str | Path, results: Sequence[Result]) -> None:
    """Draw robust accuracy over the steps of several runs under one protocol, or of cells accuracy over severity.

    Args:
      path: of the picture; its suffix is the format.
      results: from run folders, in the order of their letters.
    Raises:
      FigureError, RunError: as in `draw_result`.
    """
    check_figure(path)
    with _style():
        figure = _figure(3.0 + 0.16 * len(results))
        axes = figure.subplots()
        labels = [f"{letter(index)}  {short(result.model.name, 50)}" for index, result in enumerate(results)]
        if _in_cells(results[0]):
            names = cells_of(results[0])[0]
            texts = [_cells_text(label, result) for label, result in zip(labels, results, strict=True)]
            draw_curves(axes, [(text, curve(each, names)) for text, each in zip(texts, results, strict=True)], _look)
            _accuracy_axis(axes, "accuracy, %")
            _legend(axes, 1)
        else:
            _draw_steps(axes, list(zip(labels, results, strict=True)))
        protocol = results[0].protocol
        axes.set_title(plain(f"{protocol.id}@{protocol.version}: {_count(results[0])}"), loc="left")
        _write(figure, Path(path))


def draw_radii(path: str | Path, curve: RadiusCurve) -> None:
    """Draw robust accuracy over the radius.

    Args:
      path: of the picture; its suffix is the format.
      curve: from `robench.curves.radius_curve`.
    Raises:
      FigureError: as in `draw_result`.
    """
    check_figure(path)
    with _style():
        figure = _figure(3.0)
        axes = figure.subplots()
        places = [float(fraction(point.radius)) for point in curve.points]
        low, high = zip(*(point.interval for point in curve.points), strict=True)
        values = [100 * point.value for point in curve.points]
        axes.fill_between(places, _percents(low), _percents(high), color=COLOURS[0], alpha=0.2, linewidth=0)
        axes.plot(places, values, color=COLOURS[0], marker="o", markersize=4)
        axes.set_xticks(places, [plain(point.radius) for point in curve.points])
        _thin_out(axes, places)
        _accuracy_axis(axes)
        axes.set_xlabel(f"radius ({curve.norm}, of the unit range; band: 95 % interval)")
        title = f"{short(curve.model, 50)}, radii of {curve.protocol}: {curve.points[0].denominator} images, unranked"
        axes.set_title(plain(title), loc="left")
        _write(figure, Path(path))


def draw_ladder(
    path: str | Path, title: str, rungs: Sequence[str], curves: Sequence[tuple[str, Sequence[Band]]]
) -> None:
    """Draw accuracies along the rungs of a ladder.

    Args:
      path: of the picture; its suffix is the format.
      title: above it.
      rungs: what each is called, from the first to the last.
      curves: what each is called, and its share of right answers on every rung, with the ends of its interval.
    Raises:
      FigureError: as in `draw_result`.
    """
    check_figure(path)
    with _style():
        figure = _figure(3.4 + 0.16 * len(curves))
        axes = figure.subplots()
        places = range(len(rungs))
        for index, (label, bands) in enumerate(curves):
            look = _look(index)
            values, low, high = (_percents(each) for each in zip(*bands, strict=True))
            axes.fill_between(places, low, high, color=look["color"], alpha=0.15, linewidth=0)
            axes.plot(places, values, markersize=4, label=plain(label), **look)
        axes.set_xticks(places, [plain(rung) for rung in rungs], rotation=40, ha="right", rotation_mode="anchor")
        _accuracy_axis(axes, "accuracy, % (band: 95 % interval)")
        axes.set_title(plain(title), loc="left")
        _legend(axes, 1)
        _write(figure, Path(path))


def letter(index: int) -> str:
    """What a comparison calls its runs: A, B, ..., Z, and then `#27`."""
    return chr(ord("A") + index) if index < 26 else f"#{index + 1}"


def step_curve(protocol: Protocol, result: Result) -> list[tuple[int, Metric]]:
    """Robust accuracy after each step, from the outcomes of a run.

    Under "any iterate" at every step from the start on, under "last iterate" at the steps read off; under attacks
    with patches at every query after which it is lower, and at the last one; empty where the protocol counts no
    steps.
    """
    if isinstance(protocol.budget, PatchSpec):
        return _query_curve(result)
    steps: Sequence[int] = protocol.score.steps
    if steps and protocol.score.scoring == "any iterate":
        steps = range(steps[-1] + 1)
    if not steps:
        return []
    fine = protocol.model_copy(update={"score": protocol.score.model_copy(update={"steps": tuple(steps)})})
    return list(zip(steps, score(fine, result.read_outcomes())[1:], strict=True))


def _query_curve(result: Result) -> list[tuple[int, Metric]]:
    """Robust accuracy from query 0 on, wherever it changes, to the last query of any example."""
    outcomes = [outcome for outcome in result.read_outcomes() if outcome.clean_correct]
    falls = Counter(outcome.fooled_at[0] for outcome in outcomes if outcome.fooled_at)
    last = max((outcome.queries or 0 for outcome in outcomes), default=0)
    survivors, curve = len(outcomes), []
    for query in sorted({0, *falls, last}):
        survivors -= falls[query]
        curve.append((query, Metric.of(f"robust@{query}", survivors, result.data.count)))
    return curve


def _protocol_of(result: Result) -> Protocol:
    assert result.run_dir is not None, "a result from a run folder"
    return Run.open(result.run_dir).plan.parsed_protocol()


def _matplotlib() -> Any:
    try:
        import matplotlib
        import matplotlib.style
    except ImportError as error:
        advice = "Install it: `pip install 'robench[figures]'`."
        raise FigureError(complaint("robench", "matplotlib", "not installed", "it, to draw", advice)) from error
    return matplotlib


def _style() -> AbstractContextManager[None]:
    """The house's style whatever the user's own is, and the user's own again afterwards."""
    context: AbstractContextManager[None] = _matplotlib().style.context(["default", STYLE])
    return context


def _figure(height: float) -> Figure:
    from matplotlib.figure import Figure  # not pyplot, which keeps figures and chooses a backend

    return Figure(figsize=(WIDTH, height), layout="constrained")


def _write(figure: Figure, path: Path) -> None:
    content = io.BytesIO()
    figure.savefig(content, format=path.suffix[1:], metadata=METADATA[path.suffix])
    try:
        write_whole(path, content.getvalue())
    except OSError as error:
        found = f"not writable ({error.strerror or type(error).__name__})"
        advice = "The runs are kept: the same call draws them again."
        raise FigureError(complaint(str(path), "figure", found, "room to write", advice)) from error


def _draw_steps(axes: Axes, runs: Sequence[tuple[str, Result]]) -> None:
    """A line with its band for each run; a point for each metric where the protocol counts no steps."""
    unit, ends = "what is scored (", [0]
    for index, (label, result) in enumerate(runs):
        look, protocol = _look(index), _protocol_of(result)
        curve = step_curve(protocol, result)
        places: list[int] = [step for step, _ in curve]
        metrics = [metric for _, metric in curve]
        marked = [places.index(step) for step in protocol.score.steps if step in places]
        stairs = isinstance(protocol.budget, PatchSpec)
        if not curve:
            metrics = list(result.metrics)
            places = marked = list(range(len(metrics)))
            axes.set_xticks(places, [plain(metric.name) for metric in metrics])
            axes.set_xlim(-0.5, len(metrics) - 0.5)
        low, high = zip(*(metric.interval for metric in metrics), strict=True)
        stated = {metric.name: percent(metric) for metric in result.metrics if metric.name == "clean"}
        stated[result.headline.name] = percent(result.headline)
        text = f"{label}  ({', '.join(f'{name} {value}' for name, value in stated.items())})"
        band: Any = {"step": "post"} if stairs else {}
        axes.fill_between(places, _percents(low), _percents(high), color=look["color"], alpha=0.15, linewidth=0, **band)
        axes.plot(
            places,
            [100 * metric.value for metric in metrics],
            markevery=marked,
            markersize=4,
            drawstyle="steps-post" if stairs else "default",
            label=plain(text),
            **(look if marked else look | {"marker": ""}),
        )
        if stairs:
            unit = "queries of the attack ("
            ends.append(places[-1])
        elif curve:
            unit = "steps of the attack (markers: the steps that are scored; "
            ticks = sorted({0, *protocol.score.steps})
            axes.set_xticks(ticks, [str(step) for step in ticks])
            _thin_out(axes, ticks)
        if curve and len(runs) == 1:
            axes.axhline(100 * result.clean.value, color="0.4", linestyle=":", linewidth=1, label="clean")
    if max(ends):
        _query_axis(axes, max(ends))
    axes.set_xlabel(f"{unit}band: 95 % interval)")
    _accuracy_axis(axes, "accuracy, %" if runs[0][1].shifted else "robust accuracy, %")
    _legend(axes, 2 if len(runs) == 1 else 1)


def _look(index: int) -> dict[str, Any]:
    """Colour, dash and marker of the line with this number."""
    return {"color": COLOURS[index % 7], "linestyle": DASHES[index // 7 % 4], "marker": MARKERS[index % 7]}


def _legend(axes: Axes, columns: int) -> None:
    handles, labels = axes.get_legend_handles_labels()
    axes.figure.legend(handles, labels, loc="outside lower left", frameon=False, handlelength=3, ncols=columns)


def _in_cells(result: Result) -> bool:
    return any(metric.group == "cell" for metric in result.metrics)


def _cells_text(label: str, result: Result) -> str:
    parts = [f"{each.name} {100 * each.value:.1f} %" for each in result.derived if each.name in ("mean error", "mCE")]
    return plain(f"{label}  ({', '.join(parts)})")


def _draw_cells(path: Path, result: Result) -> None:
    assert result.run_dir is not None, "a result from a run folder"
    shift = Run.open(result.run_dir).plan.parsed_protocol().shift
    families = (shift.families if shift is not None else None) or {}
    with _style():
        above, below = heights(result)
        figure = _figure(above + below)
        parts: Any = figure.subfigures(2, 1, height_ratios=[above, below])
        axes = parts[0].subplots()
        draw_heat_map(axes, result)
        title = f"{short(result.model.name, 40)} under {result.protocol.id}@{result.protocol.version}"
        axes.set_title(plain(f"{title}: {_count(result)}"), loc="left")
        axes = parts[1].subplots()
        curves = [(_cells_text("all", result), curve(result, cells_of(result)[0]))]
        curves += [(family, curve(result, names)) for family, names in sorted(families.items())]
        draw_curves(axes, curves, _look)
        _accuracy_axis(axes, "accuracy, %")
        handles, labels = axes.get_legend_handles_labels()
        parts[1].legend(handles, labels, loc="outside lower left", frameon=False, handlelength=3, ncols=3)
        _write(figure, path)


def _query_axis(axes: Axes, last: int) -> None:
    """Queries from 0 to the last one, logarithmic from 1 on: most of what falls falls early."""
    axes.set_xscale("symlog", linthresh=1, linscale=0.3)
    ticks = [0, *(10**power for power in range(len(str(last)))), last]
    axes.set_xticks(ticks, [f"{tick:,}" for tick in ticks])
    axes.set_xticks([], minor=True)
    if last < 2 * ticks[-2]:  # the last power of ten would touch it
        axes.set_xticks(ticks, [f"{tick:,}" if tick != ticks[-2] else "" for tick in ticks])
    axes.set_xlim(0, last)


def _thin_out(axes: Axes, places: Sequence[float]) -> None:
    """Leave out the labels of ticks that would touch the one before, except the last one's."""
    labels, gap = [tick.get_text() for tick in axes.get_xticklabels()], 0.05 * (places[-1] - places[0])
    kept = places[0]
    for index in range(1, len(places) - 1):
        if places[index] - kept < gap or places[-1] - places[index] < gap:
            labels[index] = ""
        else:
            kept = places[index]
    axes.set_xticks(places, labels)


def _accuracy_axis(axes: Axes, what: str = "robust accuracy, %") -> None:
    axes.set_ylim(-2, 102)
    axes.set_yticks(range(0, 101, 20))
    axes.set_ylabel(what)
    axes.grid(axis="y", color="0.9", linewidth=0.6)
    axes.set_axisbelow(True)


def _count(result: Result) -> str:
    return f"{result.data.count} images" + (f", {result.status}" if result.status != "complete" else "")


def _percents(shares: Sequence[float]) -> list[float]:
    return [100 * share for share in shares]
