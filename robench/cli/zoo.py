"""`robench zoo` and `robench convert`: models to compare with, and pickles made loadable."""

import dataclasses
from json import loads
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from robench.cli.screen import out, print_json
from robench.errors import ModelError, complaint

if TYPE_CHECKING:
    from robench.zoo.baselines import Baseline

HEADINGS = {
    "bundled": "Bundled: `robench evaluate NAME PROTOCOL`",
    "published": "On the Hub: `robench evaluate NAME PROTOCOL`",
    "pickled": "On the Hub as a pickle, made loadable by a conversion",
    "unpublished": "Not published: trained on ImageNet (its `val` is watched), and put on the Hub",
}


def zoo(json: Annotated[bool, typer.Option("--json", help="Print JSON on stdout.")] = False) -> None:
    """List models to compare with, and how to get each."""
    from robench.zoo.baselines import bundled, listed

    baselines = [*bundled(), *listed()]
    if json:
        print_json([{**dataclasses.asdict(each), "commands": each.commands} for each in baselines])
        return
    for status, heading in HEADINGS.items():
        out.print(f"{heading}", markup=False)
        for each in baselines:
            if each.status == status:
                _show(each)
        out.print()


def _show(baseline: "Baseline") -> None:
    """A baseline: what it is on one line, what to type below it, on lines of their own to be copied."""
    facts = [f"{baseline.input_size} pixels", f"{baseline.parameters:,} parameters", *filter(None, [baseline.licence])]
    if baseline.status == "pickled":
        facts.append("digest pinned" if baseline.sha256 else "no digest pinned (--sha256)")
    out.print(f"  {baseline.title}: {', '.join(facts)}", markup=False)
    named = [baseline.name] if baseline.status == "published" else baseline.commands
    for line in named if baseline.status != "bundled" else ():
        out.print(f"    {line}", markup=False)


def convert(
    source: Annotated[
        str, typer.Argument(help="A pickled checkpoint: a file, or `hf-hub:org/name/file\\[@revision]`.")
    ],
    target: Annotated[Path, typer.Argument(help="A new folder; or FILE.safetensors for the weights alone.")],
    architecture: Annotated[str | None, typer.Option(help="timm's name of the network that a folder is for.")] = None,
    model_args: Annotated[str | None, typer.Option(help='Its arguments as JSON, such as `{"embed_dim": 256}`.')] = None,
    mean: Annotated[
        str | None, typer.Option(help="Of its images, such as `0.5,0.5,0.5`; else the checkpoint's.")
    ] = None,
    std: Annotated[str | None, typer.Option(help="Their standard deviation, in the same form.")] = None,
    sha256: Annotated[str | None, typer.Option(help="What the source must have.")] = None,
) -> None:
    """Make a pickled checkpoint loadable; it is read in a process of its own, and runs no code."""
    from robench.zoo.conversion import Network
    from robench.zoo.conversion import convert as run

    given = {"--model-args": model_args, "--mean": mean, "--std": std}
    alone = [option for option, value in given.items() if value is not None]
    if architecture is None and alone:
        raise ModelError(complaint("convert", alone[0], "given alone", "beside `--architecture`"))
    network = None
    if architecture is not None:
        network = Network(architecture, _table(model_args), _numbers("--mean", mean), _numbers("--std", std))
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


def _numbers(option: str, text: str | None) -> list[float] | None:
    """Numbers between commas."""
    try:
        return [float(each) for each in text.split(",")] if text is not None else None
    except ValueError as error:
        raise ModelError(complaint("convert", option, repr(text), "numbers such as `0.5,0.5,0.5`")) from error
