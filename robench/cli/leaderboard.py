"""`robench leaderboard`: makes the leaderboard from the files of the repository."""

from pathlib import Path
from typing import Annotated

import typer

from robench.cli.screen import out
from robench.errors import SubmissionError, complaint


def leaderboard(
    check: Annotated[
        bool, typer.Option("--check", help="Write nothing; exit code 1 unless the files are fresh.")
    ] = False,
    repository: Annotated[Path, typer.Option(help="A clone of the benchmark.")] = Path(),
) -> None:
    """Make leaderboard.md and site/index.html from submissions and verdicts."""
    from robench.leaderboard import files_of

    if not (repository / "benchmarks" / "protocols.lock").is_file():
        advice = "Name it with `--repository`."
        raise SubmissionError(
            complaint(str(repository), "repository", "another folder", "a clone of the benchmark", advice)
        )
    stale = []
    for name, content in files_of(repository).items():
        path = repository / name
        fresh = path.is_file() and path.read_bytes() == content
        if check and not fresh:
            stale.append(name)
            out.print(f"stale: {name}", markup=False)
        elif not check:
            path.parent.mkdir(exist_ok=True)
            path.write_bytes(content)
            out.print(f"{'unchanged' if fresh else 'written'}: {name}", markup=False)
    if stale:
        out.print("next: robench leaderboard", markup=False)
        raise typer.Exit(1)
