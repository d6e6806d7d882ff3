"""`robench refute`: lowers a claim by images that break what it calls robust."""

from pathlib import Path
from typing import Annotated

import typer

from robench.cli.screen import out
from robench.cli.verify import read_claim, write_beside
from robench.errors import SubmissionError, complaint
from robench.refutation import FOLDER


def refute(
    path: Annotated[Path, typer.Argument(metavar="PATH", help="A claim: submissions/<model>/<protocol>@<version>.")],
    images: Annotated[Path, typer.Option(help="Folder of images that fool, as `--save-adversarial` writes it.")],
    by: Annotated[str, typer.Option(help="Who found them.")],
    how: Annotated[str, typer.Option(help="With which attack, in a line.")],
    model: Annotated[
        str | None, typer.Option(help="Where the model is to be had; default what the claim's `\\[loader]` says.")
    ] = None,
    data: Annotated[Path | None, typer.Option(help="Folder of the protocol's images.")] = None,
    device: Annotated[str | None, typer.Option(help="Such as `cuda`; default the CPU.")] = None,
) -> None:
    """Write a refutation: the images of a folder that break examples which a claim calls robust."""
    from robench.challenge import reference_of
    from robench.refuting import refute as find
    from robench.submission import RepositoryLoader

    claim = read_claim(path)
    loader, place = claim.submission.loader, claim.place
    if model is None and (loader is None or isinstance(loader, RepositoryLoader)):
        found, advice = "not given, and the claim's loader is none of robench's", "Give your own copy as `--model`."
        raise SubmissionError(complaint("refute", "--model", found, "a model", advice))
    named = model or (reference_of(loader) if loader is not None else "")
    done = find(claim, images, model=named, by=by, how=how, data=data, device=device)
    content = done.refutation.to_bytes()
    target = write_beside(claim, FOLDER, by, content)
    headline, broken = claim.result.headline, len(done.refutation.images)
    best = 100 * (headline.numerator - broken) / headline.denominator
    out.print(f"{place.model} under {place.protocol}: {broken} examples called robust are broken", markup=False)
    out.print(f"best known, once a verifier confirms it: {best:.1f} %", markup=False)
    left = {"outside the budget": done.outside, "harmless as stored": done.harmless, "no room": done.left_out}
    for reason, count in left.items():
        if count:
            out.print(f"left out, {reason}: {count}", markup=False)
    out.print(f"written: {target} ({len(content):,} bytes)", markup=False)
