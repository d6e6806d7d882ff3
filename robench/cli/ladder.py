"""`robench evaluate --ladder`: every rung of a ladder under some protocols, as a table and a chart."""

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import typer
from rich.table import Table
from rich.text import Text

from robench.cli.screen import err, out, print_json
from robench.errors import RunError, complaint
from robench.figures import check_figure
from robench.result import Metric

if TYPE_CHECKING:
    from robench.reproduction.ladder import Rung


_OPTIONS = {"model", "protocols", "ladder", "rungs", "limit", "figure", "json"}
"""What `robench evaluate` takes with a ladder."""


def evaluate_ladder(context: typer.Context, protocols: Sequence[str]) -> None:
    """Evaluate a ladder as the options of `robench evaluate` say, print its table, and draw its chart.

    Raises:
      RunError: an option does not go with a ladder, or rungs are not trained.
    """
    from robench.reproduction.ladder import climb, draw, read_ladder

    ladder, rungs, limit, figure, json = (
        context.params[name] for name in ("ladder", "rungs", "limit", "figure", "json")
    )
    if ladder is None:
        raise RunError(complaint("evaluate", "--rungs", f"`{rungs}` without a ladder", "`--ladder NAME` beside it"))
    for name in set(context.params) - _OPTIONS:
        source = context.get_parameter_source(name)
        if source is not None and source.name == "COMMANDLINE":
            option = f"--{name.replace('_', '-')}"
            expected = "a ladder's own options: `--rungs`, `--limit`, `--figure`, `--json`"
            raise RunError(complaint("evaluate", option, "beside `--ladder`", expected))
    plan = read_ladder(ladder)
    folder = rungs or Path("reproduced") / plan.name
    if figure is not None:
        check_figure(figure)
    climbed = climb(
        plan, protocols, folder, limit=limit, tell=lambda job, result: err.print(f"{job.name}: {result}", markup=False)
    )
    if figure is not None:
        draw(figure, plan, climbed)
    if json:
        print_json({"ladder": plan.name, "ranked": False, "rungs": [_content(rung) for rung in climbed]})
        return
    table = Table("rung", "clean", title=Text(plan.title), title_justify="left")
    for result in climbed[0].results:
        table.add_column(f"{result.protocol.exact_name} [{result.headline.name}]".replace("[", "\\["), justify="right")
    for rung in climbed:
        table.add_row(
            Text(rung.label), Text(_shown(rung.clean)), *(Text(_shown(each.headline)) for each in rung.results)
        )
    out.print(table)
    if figure is not None:
        out.print(f"chart: {figure}", markup=False)


def _shown(metric: Metric | None) -> str:
    return "-" if metric is None else f"{metric.text} {metric.bounds}"


def _content(rung: "Rung") -> dict[str, object]:
    return {
        "rung": rung.label,
        "clean": rung.clean.model_dump(mode="json") if rung.clean is not None else None,
        "scores": {each.protocol.exact_name: each.headline.model_dump(mode="json") for each in rung.results},
        "run_dirs": [str(each.run_dir) for each in rung.results],
    }
