"""`robench data corrupt`: corrupted copies of one's own images, in the layout of ImageNet-C."""

import dataclasses
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from robench.cli.screen import bar, err, interruptible, out, print_json
from robench.errors import DataError, complaint

if TYPE_CHECKING:
    from robench.data.copies import Written

SHOWN = 5
"""Unreadable images that are named; `--json` has all."""


def corrupt(
    source: Annotated[Path, typer.Argument(metavar="SRC", help="Folder with one sub-folder of images per class.")],
    target: Annotated[Path, typer.Argument(metavar="DST", help="New folder, or one to go on with.")],
    corruptions: Annotated[str | None, typer.Option(help="Names, separated by commas; default the usual 15.")] = None,
    severities: Annotated[str, typer.Option(help="Numbers from 1 to 5, separated by commas.")] = "1,2,3,4,5",
    extra: Annotated[bool, typer.Option("--extra", help="The 4 extra corruptions as well.")] = False,
    size: Annotated[int, typer.Option(help="224, or 64 with the settings for tiny images.")] = 224,
    frost: Annotated[
        str | None, typer.Option(help="`published` photographs of ice, or `procedural`; default what is installed.")
    ] = None,
    seed: Annotated[int, typer.Option(help="Of the random numbers.")] = 0,
    workers: Annotated[int | None, typer.Option(min=0, help="Processes; 0: this one; default up to 4.")] = None,
    json: Annotated[bool, typer.Option("--json", help="Print one object on stdout.")] = False,
) -> None:
    """Write `<corruption>/<severity>/<class>/<name>.JPEG` for all images of SRC; the same call again goes on.

    Made as ImageNet-C was, and not the same files: a manifest in DST says so.
    """
    from robench.data.corruptions import COMMON, EXTRA, default_ice
    from robench.data.corruptions.tree import Manifest, write_tree

    names = _words(corruptions) if corruptions is not None else list(COMMON)
    names += [name for name in EXTRA if extra and name not in names]
    ice = frost if frost is not None else default_ice()
    manifest = Manifest(
        corruptions=tuple(names),
        severities=_severities(severities),
        seed=seed,
        frost=ice,  # type: ignore[arg-type]  # checked with the rest
        size=size,
    )
    with interruptible("what is written is kept: the same command goes on."), bar() as progress:
        task = progress.add_task("images", total=None, note="")
        written = write_tree(
            source,
            target,
            manifest,
            workers=workers,
            on_start=lambda images: progress.update(task, total=images),
            on_image=lambda: progress.advance(task),
        )
    if json:
        print_json({"ok": not written.unreadable, **dataclasses.asdict(written)})
    else:
        show_written(written, target)
        if "frost" in names and ice == "procedural":
            out.print("frost: procedural ice, not the published photographs.")
    if written.unreadable:
        raise typer.Exit(1)


def show_written(written: "Written", target: Path) -> None:
    """Say what was written, and what could not be read."""
    for reason in written.unreadable[:SHOWN]:
        err.print(reason, style="red", markup=False)
    if written.unreadable:
        err.print(f"{len(written.unreadable)} images could not be read, and have no copies.", style="red", markup=False)
    out.print(f"{written.images} images, {written.files} files written to {target}.", markup=False)


def _words(text: str) -> list[str]:
    return list(dict.fromkeys(word.strip() for word in text.split(",") if word.strip()))


def _severities(text: str) -> tuple[int, ...]:
    words = _words(text)
    if not all(word.isascii() and word.isdigit() for word in words):
        raise DataError(complaint("robench data corrupt", "severities", f"`{text}`", "numbers from 1 to 5"))
    return tuple(sorted({int(word) for word in words}))
