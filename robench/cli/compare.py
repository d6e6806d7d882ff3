"""`robench compare`: runs on the same examples, and a gate for continuous integration."""

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.table import Table
from rich.text import Text

from robench.cli.screen import out, print_json
from robench.comparison import Comparison, MeanComparison, compare_means, compares_means
from robench.comparison import compare as compare_runs
from robench.figures import check_figure, draw_comparison, letter
from robench.protocol import Protocol
from robench.runs import Run

Pair = Comparison | MeanComparison


def compare(
    runs: Annotated[
        list[Path], typer.Argument(metavar="RUN_A RUN_B...", help="Folders of runs; each is compared with the first.")
    ],
    margin: Annotated[
        float | None,
        typer.Option(min=0, help="Points a run may lose; exit code 1 unless each is shown to lose less."),
    ] = None,
    figure: Annotated[
        Path | None, typer.Option(help="Draw accuracy over steps of all runs: a .png, .svg or .pdf file.")
    ] = None,
    json: Annotated[bool, typer.Option("--json", help="Print JSON on stdout.")] = False,
) -> None:
    """Compare runs example by example with the first: paired McNemar or z test, and non-inferiority within a margin."""
    if len(runs) < 2:
        raise typer.BadParameter("Two or more runs are needed.", param_hint="RUN_A RUN_B...")
    if margin is not None and not math.isfinite(margin):
        raise typer.BadParameter(f"{margin} is no number of points.", param_hint="--margin")
    if figure is not None:
        check_figure(figure, protocols=_protocol_of(runs[0]))
    pair_up = compare_means if compares_means(runs[0]) else compare_runs
    found = [pair_up(runs[0], run) for run in runs[1:]]
    if figure is not None:
        draw_comparison(figure, [found[0].a, *(pair.b for pair in found)])
    if json:
        content = [_content(runs[0], run, pair, margin) for run, pair in zip(runs[1:], found, strict=True)]
        print_json(content if len(content) > 1 else content[0])
    else:
        _report(found, margin)
    if margin is not None and not all(pair.non_inferior(margin) for pair in found):
        raise typer.Exit(1)


def _protocol_of(run: Path) -> list[Protocol]:
    """The protocol of a run; none where there is no run, which is said when it is read."""
    return [Run.open(run).plan.parsed_protocol()] if (run / "plan.json").is_file() else []


def _content(run_a: Path, run_b: Path, found: Pair, margin: float | None) -> dict[str, Any]:
    counts: dict[str, Any] = {"p_value": found.p_value}
    if isinstance(found, Comparison):
        counts |= {name: getattr(found, name) for name in ("both", "only_a", "only_b", "neither")}
    return {
        "a": str(run_a),
        "b": str(run_b),
        "metric": found.a.ranking.name,
        **counts,
        "difference": found.difference,
        "interval": list(found.interval),
        "margin_points": margin,
        "non_inferior": found.non_inferior(margin) if margin is not None else None,
    }


def _report(found: Sequence[Pair], margin: float | None) -> None:
    table = Table("", "model", found[0].a.ranking.name, "95 % interval")
    for index, result in enumerate([found[0].a, *(pair.b for pair in found)]):
        table.add_row(letter(index), Text(result.model.name), result.ranking.text, Text(result.ranking.bounds))
    out.print(table)
    for index, pair in enumerate(found, start=1):
        other, (low, high) = letter(index), pair.interval
        points = f"{100 * pair.difference:+.1f} points [{100 * low:+.1f}, {100 * high:+.1f}]"
        if isinstance(pair, Comparison):
            what = "right" if pair.a.shifted else "robust"
            out.print(f"only A {what}: {pair.only_a}, only {other} {what}: {pair.only_b}, of {pair.total}")
        points += f", {'McNemar' if isinstance(pair, Comparison) else 'z test'} p = {pair.p_value:.2g}"
        out.print(f"{other} minus A: {points}", markup=False)
        if margin is not None:
            verdict = "is" if pair.non_inferior(margin) else "is not"
            out.print(f"{other} {verdict} shown to be at most {margin:g} points worse than A (2.5 % level).")
