"""`robench compare`: two runs on the same examples, and a gate for continuous integration."""

import math
from pathlib import Path
from typing import Annotated

import typer
from rich.table import Table
from rich.text import Text

from robench.cli.screen import out, print_json
from robench.comparison import compare as compare_runs
from robench.result import percent, wilson


def compare(
    run_a: Annotated[Path, typer.Argument(help="Folder of the reference run.")],
    run_b: Annotated[Path, typer.Argument(help="Folder of the run that is compared with it.")],
    margin: Annotated[
        float | None,
        typer.Option(min=0, help="Points B may lose; exit code 1 unless it is shown to lose less."),
    ] = None,
    json: Annotated[bool, typer.Option("--json", help="Print JSON on stdout.")] = False,
) -> None:
    """Compare two runs example by example: paired McNemar test, and non-inferiority within a margin."""
    if margin is not None and not math.isfinite(margin):
        raise typer.BadParameter(f"{margin} is no number of points.", param_hint="--margin")
    found = compare_runs(run_a, run_b)
    low, high = found.interval
    passed = found.non_inferior(margin) if margin is not None else None
    if json:
        content = {
            "a": str(run_a),
            "b": str(run_b),
            "metric": found.a.headline.name,
            "both": found.both,
            "only_a": found.only_a,
            "only_b": found.only_b,
            "neither": found.neither,
            "p_value": found.p_value,
            "difference": found.difference,
            "interval": [low, high],
            "margin_points": margin,
            "non_inferior": passed,
        }
        print_json(content)
    else:
        table = Table("", "model", found.a.headline.name, "95 % interval")
        for letter, result in (("A", found.a), ("B", found.b)):
            metric = result.headline
            bounds = wilson(metric.numerator, metric.denominator)
            interval = f"[{100 * bounds[0]:.1f}, {100 * bounds[1]:.1f}]"
            table.add_row(letter, Text(result.model.name), percent(metric), Text(interval))
        out.print(table)
        out.print(f"only A robust: {found.only_a}, only B robust: {found.only_b}, of {found.total}")
        points = f"{100 * found.difference:+.1f} points [{100 * low:+.1f}, {100 * high:+.1f}]"
        out.print(f"B minus A: {points}, McNemar p = {found.p_value:.2g}", markup=False)
        if passed is not None:
            verdict = "is not" if not passed else "is"
            out.print(f"B {verdict} shown to be at most {margin:g} points worse than A (2.5 % level).")
    if passed is False:
        raise typer.Exit(1)
