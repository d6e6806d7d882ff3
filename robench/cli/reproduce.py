"""`robench reproduce`: train, score and compare the arms of a plan."""

import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.table import Table
from rich.text import Text

from robench.cli.screen import duration, err, out

if TYPE_CHECKING:
    from robench.reproduction import Job
    from robench.reproduction.work import Finished


def reproduce(
    plan: Annotated[
        str | None, typer.Argument(metavar="PLAN", help="`mini`, a ladder, or a TOML file; see --list.")
    ] = None,
    quick: Annotated[
        bool, typer.Option("--quick", help="A trial: fewer seeds and images; its report says so.")
    ] = False,
    folder: Annotated[
        Path | None, typer.Option("--out", help="Where everything goes; default `reproduced/PLAN`.")
    ] = None,
    processes: Annotated[
        int | None, typer.Option(min=1, help="Models at a time, one thread each; default the cores.")
    ] = None,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Say what is missing and how long it takes; stop.")
    ] = False,
    page: Annotated[
        Path | None, typer.Option(help="Put the report on this page, too, in place of an older one of its kind.")
    ] = None,
    list_: Annotated[bool, typer.Option("--list", help="List the plans, as without one.")] = False,
) -> None:
    """Try the claims of a paper in miniature: train, score, compare, report.

    The same call again goes on where it was stopped, also after kill -9.
    """
    from robench.reproduction import bundled_plans, read_plan
    from robench.reproduction.report import place, report
    from robench.reproduction.work import work
    from robench.runs import write_whole, writing

    if list_ or plan is None:
        table = Table("plan", "title")
        for name in bundled_plans():
            table.add_row(name, Text(read_plan(name).title))
        out.print(table)
        return
    chosen = read_plan(plan)
    folder = folder or Path("reproduced") / f"{chosen.name}{'-quick' * quick}"
    chosen = chosen.shortened() if quick else chosen
    jobs, processes = chosen.jobs(), processes or cores()
    if dry_run:
        _foretell(jobs, folder, processes)
        return

    def tell(finished: "Finished") -> None:
        left = f", about {duration(finished.left)} left" if finished.done < finished.total else ""
        took = duration(finished.seconds)
        err.print(f"{finished.done} of {finished.total}: {finished.job.name} in {took}{left}", markup=False)

    try:
        work(jobs, folder, processes=processes, tell=tell)
    except KeyboardInterrupt:
        err.print("Interrupted; the same command goes on after the last checkpoints.")
        raise typer.Exit(130) from None
    text = report(chosen, folder)
    path = folder / "report.md"
    with writing(path):
        write_whole(path, text.encode())
    if page is not None:
        place(text, page, f"{chosen.name}{'-quick' * quick}")  # a trial does not replace the whole
    sys.stdout.write(text)
    err.print(f"Report: {path}", markup=False)


def cores() -> int:
    """How many this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _foretell(jobs: list["Job"], folder: Path, processes: int) -> None:
    """Print what is missing, and how long it should take."""
    from robench.reproduction.work import is_finished

    missing = [job for job in jobs if not is_finished(job, folder)]
    table = Table("model", "recipe's epochs", "images", "scored under", "one thread")
    for job in missing:
        recipe = job.recipe
        images, under = f"{recipe.data.examples:,}", ", ".join(job.protocols)
        table.add_row(job.name, str(recipe.schedule.epochs), images, under, duration(job.seconds))
    out.print(table)
    seconds = sum(job.seconds for job in missing) / processes
    out.print(
        f"{len(missing)} of {len(jobs)} models are missing: about {duration(seconds)} with {processes} at a time.",
        markup=False,
    )
