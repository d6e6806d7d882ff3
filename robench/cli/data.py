"""`robench data check`: are these a protocol's images, and can they be read."""

import dataclasses
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.table import Column, Table
from rich.text import Text

from robench.cli.corrupt import corrupt
from robench.cli.screen import bar, out, print_json
from robench.errors import first_few
from robench.protocol import Protocol
from robench.registry import resolve

if TYPE_CHECKING:
    from robench.data.examination import Examination

SHOWN = 5
"""Names of a kind in the table; `--json` has all."""

data = typer.Typer(no_args_is_help=True, help="Look at the images that protocols use, and make more.")
data.command()(corrupt)


@data.callback()
def _data() -> None:
    pass


@data.command()
def check(
    protocol: Annotated[str, typer.Argument(help="Id, `id@version`, or a TOML file.")],
    folder: Annotated[
        Path | None, typer.Option("--data", help="Folder of the images; default: the protocol's own, where they lie.")
    ] = None,
    workers: Annotated[int | None, typer.Option(min=0, help="Processes that decode images; default up to 4.")] = None,
    json: Annotated[bool, typer.Option("--json", help="Print JSON on stdout.")] = False,
) -> None:
    """Read all images of a protocol; exit code 1 unless they are its own and every one can be read."""
    from robench.data import open_source
    from robench.data.examination import examine

    wanted = resolve(protocol).protocol
    source = open_source(
        wanted.data.source,
        folder,
        resize=wanted.data.resize,
        crop=wanted.data.crop,
        limit=1,  # what is missing is to be counted, not refused
        workers=workers,
    )
    with bar() as progress:
        task = progress.add_task("images", total=len(source.ids), note="")
        found = examine(source, on_image=lambda: progress.advance(task))
    own = found.ids_sha256 == wanted.data.ids_sha256
    ready = own and not found.unreadable
    if json:
        report = dataclasses.asdict(found)
        print_json({"ok": ready, "protocol": wanted.exact_name, "ids_are_the_protocols": own, **report})
    else:
        _show(wanted, found, own=own, ready=ready)
    if not ready:
        raise typer.Exit(1)


def _show(protocol: Protocol, found: "Examination", *, own: bool, ready: bool) -> None:
    table = Table("what", Column("found", overflow="fold"))
    table.add_row("source", Text(found.source))
    table.add_row("images", f"{found.count}, {protocol.exact_name} has {protocol.data.count}")
    named = {
        "missing images": found.missing,
        "missing classes": found.missing_classes,
        "unreadable": found.unreadable,
    }
    for what, names in named.items():
        table.add_row(what, Text(f"{len(names)}: {first_few(names, SHOWN)}" if names else "none"))
    table.add_row("ids", f"{found.ids_sha256}, {'' if own else 'NOT '}the protocol's")
    table.add_row("pixels", found.pixels_sha256)
    out.print(table)
    out.print("Ready." if ready else f"Not the data of {protocol.exact_name}, or not all of it can be read; see above.")
