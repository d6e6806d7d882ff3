"""`robench data stylize`: copies of one's own images in the styles of pictures, as Stylized-ImageNet was made."""

import dataclasses
from pathlib import Path
from typing import Annotated

import typer

from robench.cli.corrupt import show_written
from robench.cli.screen import bar, interruptible, print_json

_WEIGHTS = "A safetensors file, or `hf-hub:org/name/file@revision`, laid out as pytorch-AdaIN's"


def stylize(
    content: Annotated[Path, typer.Argument(metavar="CONTENT", help="Folder with one sub-folder of images per class.")],
    styles: Annotated[Path, typer.Argument(metavar="STYLES", help="Folder of pictures whose styles are taken.")],
    target: Annotated[Path, typer.Argument(metavar="DST", help="New folder, or one to go on with.")],
    encoder: Annotated[str | None, typer.Option(help=f"{_WEIGHTS} vgg_normalised.pth.")] = None,
    decoder: Annotated[str | None, typer.Option(help=f"{_WEIGHTS} decoder.pth.")] = None,
    alpha: Annotated[float, typer.Option(help="From 0, no style, to 1.")] = 1.0,
    seed: Annotated[int, typer.Option(help="Of the order of the pictures.")] = 49809,
    begin: Annotated[int, typer.Option(help="Images painted before these; 50000 for the training set.")] = 0,
    batch_size: Annotated[int, typer.Option(min=1, help="Images painted together.")] = 8,
    device: Annotated[str, typer.Option(help="Where the networks are, such as `cuda`.")] = "cpu",
    workers: Annotated[int | None, typer.Option(min=0, help="Processes that read; default up to 4.")] = None,
    json: Annotated[bool, typer.Option("--json", help="Print one object on stdout.")] = False,
) -> None:
    """Write `<class>/<name>.png`, 224 pixels, for all images of CONTENT; the same call again goes on.

    Each image is painted by AdaIN in the style of one picture. Defaults are those published for Stylized-ImageNet; a
    manifest in DST says what was used.
    """
    from robench.synthesis.adain import AdaIN
    from robench.synthesis.stylized_tree import Settings, write_stylized

    settings = Settings(alpha=alpha, seed=seed, begin=begin, batch_size=batch_size)
    networks = AdaIN.load(encoder, decoder, device=device)
    with interruptible("what is written is kept: the same command goes on."), bar() as progress:
        task = progress.add_task("pictures", total=None, note="")
        written = write_stylized(
            content,
            styles,
            target,
            networks,
            settings,
            workers=workers,
            on_start=lambda what, count: progress.reset(task, total=count, description=what),
            on_image=lambda: progress.advance(task),
        )
    if json:
        print_json({"ok": not written.unreadable, **dataclasses.asdict(written)})
    else:
        show_written(written, target)
    if written.unreadable:
        raise typer.Exit(1)
