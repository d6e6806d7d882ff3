"""`robench comment`: what continuous integration writes below a pull request."""

from pathlib import Path
from typing import Annotated

import typer

from robench.errors import SubmissionError, complaint
from robench.leaderboard.neighbours import comment as render

LARGEST = 2_000_000
"""Most bytes of a report."""


def comment(
    report: Annotated[Path, typer.Argument(help="What `robench validate --format json --neighbours` printed.")],
) -> None:
    """Write the comment of a pull request, as Markdown; nothing for a report of nothing."""
    try:
        with report.open("rb") as file:
            content = file.read(LARGEST + 1)
    except OSError as error:
        found = f"unreadable ({error.strerror or type(error).__name__})"
        raise SubmissionError(complaint(str(report), "report", found, "a file")) from error
    if len(content) > LARGEST:
        raise SubmissionError(complaint(str(report), "report", "too large", f"at most {LARGEST:,} bytes"))
    typer.echo(render(content), nl=False)
