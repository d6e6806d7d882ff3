"""`robench data`: are these a protocol's images, and can they be read; and fetching what others publish."""

import dataclasses
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.table import Column, Table
from rich.text import Text

from robench.cli.corrupt import corrupt
from robench.cli.screen import bar, interruptible, out, print_json
from robench.cli.stylize import stylize
from robench.errors import DataError, complaint, did_you_mean, first_few
from robench.protocol import Protocol
from robench.registry import resolve

if TYPE_CHECKING:
    from robench.data.examination import Examination

SHOWN = 5
"""Names of a kind in the table; `--json` has all."""

data = typer.Typer(no_args_is_help=True, help="Look at the data that protocols use, fetch them, and make more.")
data.command()(corrupt)
data.command()(stylize)


@data.callback()
def _data() -> None:
    pass


@data.command()
def fetch(
    name: Annotated[str, typer.Argument(help="`tpa-textures`: the 60 textures of PatchAttack (MIT), 36 MB.")],
    to: Annotated[Path | None, typer.Option(help="Folder; default one in the cache, where it is found.")] = None,
    base_url: Annotated[str | None, typer.Option(help="Another place with the same files.")] = None,
    timeout: Annotated[float, typer.Option(help="Seconds that the server may say nothing.")] = 30.0,
) -> None:
    """Fetch published data that protocols pin by digest; the same call goes on where one was stopped."""
    from robench.data.fetching import PUBLICATIONS
    from robench.data.fetching import fetch as get
    from robench.data.locations import cached, variable

    if name not in PUBLICATIONS:
        advice = did_you_mean(name, PUBLICATIONS)
        raise DataError(complaint("robench data fetch", "name", f"`{name}`", "what can be fetched", advice))
    folder = to if to is not None else cached(name)
    publication = PUBLICATIONS[name]
    with interruptible("what has arrived is kept: the same command goes on."), bar() as progress:
        task = progress.add_task(name, total=len(publication.files) + 1, note="")
        fetched = get(
            publication,
            folder,
            base_url=base_url,
            timeout=timeout,
            on_file=lambda done: progress.update(task, completed=done),
        )
    out.print(f"{'Fetched' if fetched else 'Already there'}: {folder}", markup=False)
    if to is not None:
        out.print(f"Name it with `--textures {folder}`, or set {variable(name)}.", markup=False)


@data.command()
def check(
    protocol: Annotated[str, typer.Argument(help="Id, `id@version`, or a TOML file.")],
    folder: Annotated[
        Path | None, typer.Option("--data", help="Folder of the images, or `hf-hub:org/name`; default: where they lie.")
    ] = None,
    count: Annotated[
        int | None, typer.Option("--count", min=1, help="Read the first so many examples alone; all are counted.")
    ] = None,
    workers: Annotated[int | None, typer.Option(min=0, help="Processes that decode images; default up to 4.")] = None,
    json: Annotated[bool, typer.Option("--json", help="Print JSON on stdout.")] = False,
) -> None:
    """Read all images of a protocol; exit code 1 unless they are its own and every one can be read.

    Where no digest of its ids is known, number and classes are all that can be checked, and it says so.
    """
    from robench.data import Views, is_on_hub, location_of, open_source
    from robench.data.archives import archives_of, as_published
    from robench.data.examination import examine

    wanted = resolve(protocol).protocol
    location = location_of(wanted.data.source) if folder is None else None
    on_hub = is_on_hub(location.path if location is not None else folder)
    source = open_source(
        wanted.data.source,
        folder,
        resize=wanted.data.resize,
        crop=wanted.data.crop,
        limit=None if on_hub else 1,  # what is missing in a folder is to be counted, not refused
        workers=workers,
        cells=wanted.shift.cells if wanted.shift is not None else (),
    )
    views = len(source.view_names) if isinstance(source, Views) else 1
    with bar() as progress:
        task = progress.add_task("images", total=views * min(count or len(source.ids), len(source.ids)), note="")
        found = examine(source, on_image=lambda: progress.advance(task), count=count)
    own = found.ids_sha256 == wanted.data.ids_sha256
    if wanted.data.ids_sha256 is None:
        own = found.count == wanted.data.count and not found.missing_classes
    location = location_of(wanted.data.source) if folder is None else None
    root = location.path if location is not None else folder
    archives = {path.name: as_published(path) for path in archives_of(root)} if root is not None else {}
    generated = getattr(source, "generated", None)
    ready = own and not found.unreadable and False not in archives.values()
    ready = ready and (generated is None or not wanted.has_canon)
    if json:
        report = dataclasses.asdict(found)
        report |= {"ok": ready, "protocol": wanted.exact_name, "ids_are_the_protocols": own, "archives": archives}
        report["generated"] = generated
        print_json(report)
    else:
        _show(wanted, found, own=own, ready=ready, archives=archives, generated=generated)
    if not ready:
        raise typer.Exit(1)


def _show(
    protocol: Protocol,
    found: "Examination",
    *,
    own: bool,
    ready: bool,
    archives: Mapping[str, bool | None],
    generated: str | None,
) -> None:
    table = Table("what", Column("found", overflow="fold"))
    table.add_row("source", Text(found.source))
    if generated is not None:
        rest = ": NOT the published images" if protocol.has_canon else ""
        table.add_row("made by", f"robench, as {generated} says{rest}")
    table.add_row("images", f"{found.count}, {protocol.exact_name} has {protocol.data.count}")
    named = {
        "missing images": found.missing,
        "missing classes": found.missing_classes,
        "unreadable": found.unreadable,
    }
    for what, names in named.items():
        table.add_row(what, Text(f"{len(names)}: {first_few(names, SHOWN)}" if names else "none"))
    verdict = f"{'' if own else 'NOT '}the protocol's"
    if protocol.data.ids_sha256 is None:
        verdict = "the protocol states none"
    table.add_row("ids", f"{found.ids_sha256}, {verdict}")
    said = {True: "as published (MD5)", False: "NOT as published (MD5)", None: "no published digest is known"}
    for name, published in archives.items():
        table.add_row(name, said[published])
    if found.images != found.count:
        table.add_row("images read", str(found.images))
    table.add_row("pixels", found.pixels_sha256)
    out.print(table)
    if not ready:
        out.print(f"Not the data of {protocol.exact_name}, or not all of it can be read; see above.")
    elif protocol.data.ids_sha256 is not None or True in archives.values():
        out.print("Ready.")
    else:
        out.print("Number and classes are right, and all can be read. Nothing says whether these are the images of ")
        out.print(f"{protocol.exact_name}, which states no digest of their ids: results on them are unofficial.")
