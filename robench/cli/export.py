"""`robench export hub`: a result in the forms of the Hugging Face Hub."""

from pathlib import Path
from typing import Annotated

import typer

from robench.cli.screen import out
from robench.result import read_result

export = typer.Typer(no_args_is_help=True, help="Write a result in the form of another place.")


@export.callback()
def _export() -> None:
    pass


@export.command()
def hub(
    run: Annotated[Path, typer.Argument(help="Folder of a finished run.")],
    folder: Annotated[Path | None, typer.Option("--out", help="Where the files go; default `RUN/hub`.")] = None,
    source: Annotated[
        str | None, typer.Option(help="Address of the submission that the claim can be checked by.")
    ] = None,
    dataset: Annotated[str | None, typer.Option(help="`org/name` of the data set on the Hub.")] = None,
    push: Annotated[str | None, typer.Option(metavar="REPO", help="Open a pull request there: `org/name`.")] = None,
) -> None:
    """Write a model card's metadata and `.eval_results`; with --push, propose them to a repository."""
    from robench.card import EVAL_RESULTS, card_files, open_pull_request

    result = read_result(run)
    files = card_files(result, source=source, dataset=dataset)
    target = folder or run / "hub"
    for path, content in files.items():
        (target / path).parent.mkdir(parents=True, exist_ok=True)
        (target / path).write_bytes(content)
        out.print(f"written: {target / path}", markup=False)
    if not any(path.startswith(EVAL_RESULTS) for path in files):
        what = f"the images of `{result.data.source}` are no data set on the Hub that robench knows"
        out.print(f"No `{EVAL_RESULTS}`: {what} (name one: `--dataset`).", markup=False)
    if result.status != "complete":
        out.print(f"The result is {result.status}: its notes say so, and it is not ranked.", markup=False)
    if push is not None:
        address = open_pull_request(result, push, source=source, dataset=dataset)
        out.print(f"pull request: {address}", markup=False)
