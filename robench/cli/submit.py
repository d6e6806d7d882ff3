"""`robench submit`: a finished run becomes a branch that can be sent."""

import re
import shlex
import sys
from pathlib import Path
from typing import Annotated

import typer

from robench.cli.screen import err, out
from robench.errors import SubmissionError, complaint
from robench.result import Result, read_result
from robench.submission import FAMILIES, LOADERS, SCHEMA, Submission, loader_of
from robench.submitting import build_submission, checked
from robench.submitting import submit as commit

_QUESTIONS = {
    "author": "Author (names, or an account)",
    "training_data": "Training data (all of it, such as ImageNet-1k)",
    "licence": "Licence of the weights (such as Apache-2.0)",
    "family": f"Family ({', '.join(FAMILIES)})",
}
"""What must be said, and how it is asked for."""
_PAPER = "Paper (https address; empty: none)"
"""What may be said, and is asked for with the rest."""


def submit(
    run: Annotated[Path, typer.Argument(help="Folder of a finished run.")],
    model: Annotated[str | None, typer.Option(help="What to call the model; default its name in the run.")] = None,
    author: Annotated[str | None, typer.Option(help="Who claims this.")] = None,
    paper: Annotated[str | None, typer.Option(help="Where the model is described: an https address.")] = None,
    training_data: Annotated[str | None, typer.Option(help="All that the weights have seen.")] = None,
    licence: Annotated[str | None, typer.Option(help="Of the weights.")] = None,
    family: Annotated[str | None, typer.Option(help=f"One of {', '.join(FAMILIES)}.")] = None,
    notes: Annotated[str | None, typer.Option(help="One line that readers of the row should know.")] = None,
    loader: Annotated[
        list[str] | None,
        typer.Option(metavar="KEY=VALUE", help="A key of `\\[loader]`; what the run says is filled in."),
    ] = None,
    repository: Annotated[Path, typer.Option(help="A clone of the benchmark.")] = Path(),
    pr: Annotated[bool, typer.Option("--pr", help="Push, and open the pull request through `gh`.")] = False,
    hub: Annotated[
        str | None,
        typer.Option(metavar="REPO", help="Open a pull request at `org/name` on the Hub instead, where the model is."),
    ] = None,
) -> None:
    """Commit a run as a submission on a branch of its own, and say how to send it."""
    if pr and hub is not None:
        found, advice = "together with `--hub`", "Call it once for each."
        raise SubmissionError(complaint("submit", "--pr", found, "one place for the pull request", advice))
    result = read_result(run)
    said: dict[str, str | None] = {
        "author": author,
        "training_data": training_data,
        "licence": licence,
        "family": family,
    }
    asks = None in said.values()
    content: dict[str, object] = {"schema": SCHEMA, **_answered(said)}
    if paper is None and asks:
        paper = typer.prompt(_PAPER, default="", show_default=False) or None
    content |= {key: value for key, value in {"paper": paper, "notes": notes}.items() if value is not None}
    keys = _loader(result, loader or [])
    if keys:
        content["loader"] = keys
    name = model or re.sub(r"[^A-Za-z0-9._-]+", "-", result.model.name).strip("-._")
    if hub is not None:
        _propose(result, build_submission(content), name, hub)
        return
    done = commit(result, build_submission(content), model=name, repository=repository, pull_request=pr)
    for finding in done.findings:
        err.print(str(finding), markup=False)
    out.print(f"branch: {done.branch}", markup=False)
    for file in done.files:
        out.print(f"added: {file}", markup=False)
    if not pr:
        out.print("next:", *(shlex.join(command) for command in done.commands), sep="\n  ", markup=False)


def _propose(result: Result, submission: Submission, name: str, repository: str) -> None:
    """Open a pull request at the model's repository on the Hub, with the submission beside the model card."""
    from robench.card import open_pull_request

    with checked(result, submission, model=name) as (files, findings):
        for finding in findings:
            err.print(str(finding), markup=False)
        address = open_pull_request(result, repository, more=files)
    for file in files:
        out.print(f"added: {file}", markup=False)
    out.print(f"pull request: {address}", markup=False)


def _answered(said: dict[str, str | None]) -> dict[str, str]:
    """What was given as options, and the rest by asking where somebody can answer."""
    missing = [key for key, value in said.items() if value is None]
    if missing and not _can_answer():
        flags = ", ".join(f"--{key.replace('_', '-')}" for key in missing)
        raise SubmissionError(complaint("submit", flags, "missing", "a value for each", "Give them as options."))
    return {key: value if value is not None else typer.prompt(_QUESTIONS[key]) for key, value in said.items()}


def _can_answer() -> bool:
    return sys.stdin.isatty()


def _loader(result: Result, given: list[str]) -> dict[str, str]:
    """The keys of `[loader]`: what the run says, and what is given; none where that names no way to load the model."""
    own = {}
    for each in given:
        key, equals, value = each.partition("=")
        if not equals:
            raise SubmissionError(complaint("submit", "--loader", repr(each), "KEY=VALUE, such as revision=<commit>"))
        own[key] = value
    keys = loader_of(result.model)
    if own.keys() & LOADERS.keys():  # another way than the run's: of that, what the weights are still holds
        kept = {"weights_sha256", "entry_point"} if "repository" in own else {"weights_sha256"}
        keys = {key: value for key, value in keys.items() if key in kept}
    keys |= own
    named = LOADERS.keys() & keys.keys()
    complete = "bundled" in keys or "revision" in keys or "repository" in keys
    return keys if given or (named and complete) else {}
