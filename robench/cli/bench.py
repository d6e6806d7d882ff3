"""`robench bench`: the figures this project claims, measured again beside a peer."""

from pathlib import Path
from typing import Annotated, TypeGuard

import typer
from rich.table import Column, Table
from rich.text import Text

from robench.cli.screen import err, out, print_json
from robench.errors import ProtocolError, complaint, did_you_mean
from robench.protocol import FRACTION_FORM, fraction


def bench(
    name: Annotated[str | None, typer.Argument(help="Which figure; none lists them.")] = None,
    against: Annotated[str | None, typer.Option(help="The peer; default the bench's own.")] = None,
    model: Annotated[str | None, typer.Option(help="A model's name, or `photographs:NAME` of timm.")] = None,
    images: Annotated[int | None, typer.Option(min=1, help="Images at most; default the bench's own.")] = None,
    epsilon: Annotated[str | None, typer.Option(help="Radius; default one under which 60 to 75 % survive.")] = None,
    repeats: Annotated[int, typer.Option(min=1, help="Runs of each side.")] = 3,
    folder: Annotated[Path | None, typer.Option(help="Keep finished runs of a long bench here, and go on.")] = None,
    json: Annotated[bool, typer.Option("--json", help="Print one object on stdout.")] = False,
) -> None:
    """Measure a figure that this project claims; without a name, list them."""
    from robench.bench import CATALOGUE, Settings
    from robench.bench.measurement import wait_for_rest

    if name is None:
        _list(json)
        return
    if name not in CATALOGUE:
        advice = did_you_mean(name, CATALOGUE)
        raise ProtocolError(complaint("robench bench", "name", f"`{name}`", "the name of a bench", advice))
    chosen = CATALOGUE[name]
    if against not in (None, chosen.against):
        raise ProtocolError(complaint("robench bench", "against", f"`{against}`", f"`{chosen.against}`"))
    if epsilon is not None:
        _check_radius(epsilon)
    if not wait_for_rest(0):
        err.print("Waiting up to two minutes for the machine to come to rest.", markup=False)
        wait_for_rest()
    found = chosen.run(Settings(model or chosen.models[0], images or chosen.images, epsilon, repeats, folder))
    for doubt in found.doubts:
        err.print(f"not valid: {doubt}", style="red", markup=False)
    content = found.content()
    if json:
        err.print(found.line(chosen.against), markup=False, soft_wrap=True)
        print_json(content)
        return
    _show(content)
    out.print(found.line(chosen.against), markup=False, soft_wrap=True)


def _check_radius(epsilon: str) -> None:
    try:
        fraction(epsilon)
    except ValueError as error:
        raise ProtocolError(complaint("robench bench", "epsilon", f"`{epsilon}`", FRACTION_FORM)) from error


def _show(content: dict[str, object]) -> None:
    """Print what was found; of a list of records, one column each."""
    table, tables = Table("what", Column("found", overflow="fold")), []
    for key, value in content.items():
        if _is_records(value):
            tables.append(_side_by_side(key, value))
        elif key not in ("name", "model", "examples", "doubts"):
            table.add_row(key.replace("_", " "), Text(_shown(value)))
    for each in (table, *tables):
        out.print(each)


def _is_records(value: object) -> TypeGuard[list[dict[str, object]]]:
    """Whether a value is a list of records, such as one for each stage."""
    return isinstance(value, list) and bool(value) and all(isinstance(line, dict) for line in value)


def _side_by_side(what: str, records: list[dict[str, object]]) -> Table:
    """Records as columns, headed by the first of their values."""
    first, *others = records[0]
    table = Table(what.replace("_", " "), *(Column(str(record[first]), justify="right") for record in records))
    for key in others:
        table.add_row(key.replace("_", " "), *(_shown(record[key]) for record in records))
    return table


def _shown(value: object) -> str:
    """A value in a cell."""
    if isinstance(value, float):
        return f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.4g}"
    if isinstance(value, list):
        return ", ".join(map(str, value))
    return "" if value is None else str(value)


def _list(json: bool) -> None:
    """Show the benches."""
    from robench.bench import CATALOGUE

    if json:
        print_json({key: {"claim": each.claim, "against": each.against} for key, each in CATALOGUE.items()})
        return
    table = Table("bench", "against", "what it measures", Column("models", overflow="fold"))
    for key, each in CATALOGUE.items():
        table.add_row(key, each.against, each.claim, Text(", ".join(each.models)))
    out.print(table)
