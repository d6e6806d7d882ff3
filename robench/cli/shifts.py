"""What a terminal shows of results without an attack: cells, derived numbers, and clean accuracy beside shifted."""

from collections.abc import Sequence
from pathlib import Path

from rich.table import Column, Table
from rich.text import Text

from robench.cli.screen import out
from robench.comparison import clean_among, effective_robustness
from robench.result import Derived, Result
from robench.runs import Run


def grid(result: Result, title: str) -> Table:
    """Accuracy in every cell, a row for each corruption."""
    cells = [metric for metric in result.metrics if metric.group == "cell"]
    whole = {metric.name: metric for metric in result.metrics if metric.group == "corruption"}
    severities = sorted({metric.name.rpartition("/")[2] for metric in cells})
    by_name = {metric.name: metric for metric in cells}
    found = Table(title=Text(f"{title}: accuracy, %", style="table.title"), title_justify="left")
    found.add_column("corruption")
    for column in (*severities, "mean"):
        found.add_column(column, justify="right")
    for name, metric in whole.items():
        values = [by_name[f"{name}/{severity}"].value for severity in severities]
        found.add_row(name, *(f"{100 * value:.1f}" for value in (*values, metric.value)))
    return found


def derived_table(derived: Sequence[Derived]) -> Table:
    """Numbers that are no shares of right answers."""
    found = Table("number", "value", "95 % interval", Column("of", overflow="fold"))
    for each in derived:
        found.add_row(each.name, each.text, Text(each.bounds or "none"), Text(each.note))
    return found


def clean_of(results: Sequence[Result]) -> Result | None:
    """The result on clean images among those of one call."""
    return next((result for result in results if result.protocol.id == "imagenet-val"), None)


def above_line(result: Result, clean: Result | None) -> Derived | None:
    """How far a shifted result lies above what the clean one of the same call leads to expect."""
    return effective_robustness(result, clean) if clean is not None and result is not clean else None


def show_beside_clean(results: Sequence[Result]) -> None:
    """Set each shifted result beside the clean one of the same call: on its own classes, and against a line."""
    clean = clean_of(results)
    for result in results:
        if clean is not None and result is not clean:
            _show_own_classes(result, clean)
        if (found := above_line(result, clean)) is not None:
            points = f"{found.text} {found.bounds}".rstrip()
            out.print(f"{result.protocol.id}: effective robustness {points}, above {found.note}", markup=False)


def _show_own_classes(result: Result, clean: Result) -> None:
    """Clean accuracy on the classes to which a set is limited, beside what the model reached on it."""
    from robench.data.imagenet.subsets import subset

    shift = Run.open(Path(str(result.run_dir))).plan.parsed_protocol().shift
    if shift is None or shift.among is None:
        return
    classes = subset(shift.among)
    found = clean_among(clean, classes)
    if found is not None:
        shifted = next(metric for metric in result.metrics if metric.name == "top1")
        out.print(
            f"{result.protocol.id}: clean {found.text} {found.bounds} on its "
            f"{len(classes)} classes ({found.denominator} images of imagenet-val), "
            f"shifted {100 * shifted.value:.1f} %, both over all logits",
            markup=False,
        )
