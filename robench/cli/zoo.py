"""`robench zoo` and `robench convert`: models to compare with, and pickles made loadable."""

import dataclasses
from json import loads
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.table import Column, Table
from rich.text import Text

from robench.cli.screen import out, print_json
from robench.errors import ModelError, complaint

SAYS = {
    "bundled": "bundled",
    "published": "on the Hub",
    "pickled": "on the Hub as a pickle",
    "unpublished": "not published",
}


def zoo(json: Annotated[bool, typer.Option("--json", help="Print JSON on stdout.")] = False) -> None:
    """List models to compare with, and how to get each."""
    from robench.zoo.baselines import bundled, listed

    baselines = [*bundled(), *listed()]
    if json:
        print_json([{**dataclasses.asdict(each), "commands": each.commands} for each in baselines])
        return
    table = Table(
        Column("model", overflow="fold"), Column("name", overflow="fold"), "where", "pixels", "parameters", "licence"
    )
    for each in baselines:
        row = (
            each.title,
            each.name,
            SAYS[each.status],
            str(each.input_size),
            f"{each.parameters:,}",
            each.licence or "-",
        )
        table.add_row(*map(Text, row))
    out.print(table)
    out.print("Load what is bundled or on the Hub by its name: `robench evaluate NAME PROTOCOL`.", markup=False)
    out.print("\nOn the Hub as a pickle; made loadable by:", markup=False)
    for each in baselines:
        if each.status == "pickled":
            out.print(f"  {each.commands[0]}", markup=False)
    out.print("\nNot published; trained as follows, converted and put on the Hub by:", markup=False)
    for each in baselines:
        if each.status == "unpublished":
            commands = "\n".join(f"    {command}" for command in each.commands)
            out.print(f"  {each.title}: {(each.recipe or '').strip()}.\n{commands}", markup=False)


def convert(
    source: Annotated[str, typer.Argument(help="A pickled checkpoint: a file, or `hf-hub:org/name/file[@revision]`.")],
    target: Annotated[Path, typer.Argument(help="A new folder; or FILE.safetensors for the weights alone.")],
    architecture: Annotated[str | None, typer.Option(help="timm's name of the network that a folder is for.")] = None,
    model_args: Annotated[str | None, typer.Option(help='Its arguments as JSON, such as `{"embed_dim": 256}`.')] = None,
    sha256: Annotated[str | None, typer.Option(help="What the source must have.")] = None,
) -> None:
    """Make a pickled checkpoint loadable; it is read in a process of its own, and runs no code."""
    from robench.zoo.conversion import Network
    from robench.zoo.conversion import convert as run

    if model_args is not None and architecture is None:
        raise ModelError(complaint("convert", "--model-args", "given alone", "beside `--architecture`"))
    network = Network(architecture, _table(model_args)) if architecture is not None else None
    done = run(source, target, network=network, sha256=sha256)
    out.print(f"source: SHA-256 {done.sha256}", markup=False)
    out.print(f"read from it: {f'`{done.entry}`' if done.entry else 'all of it'}", markup=False)
    out.print(f"while it was read: {', '.join(done.enforced) or 'nothing was enforced'}", markup=False)
    if "no network" not in done.enforced:
        out.print("The kernel would not take the network away; torch's weights-only reading is all that held.")
    if done.normalisation is not None:
        out.print(f"mean and standard deviation: from {done.normalisation}", markup=False)
        out.print(f"next: robench evaluate {done.target} PROTOCOL", markup=False)
    else:
        out.print(f"weights: {done.target}", markup=False)


def _table(text: str | None) -> dict[str, Any]:
    """The arguments of an architecture, from JSON."""
    try:
        content = loads(text or "{}")
    except ValueError as error:
        raise ModelError(complaint("convert", "--model-args", repr(text), "a table in JSON")) from error
    if not isinstance(content, dict):
        raise ModelError(complaint("convert", "--model-args", repr(text), "a table in JSON"))
    return content
