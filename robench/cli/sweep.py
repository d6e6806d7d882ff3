"""`robench sweep` and `robench estimate`: many models under many protocols, and how long they would take."""

import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext, redirect_stdout, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.table import Column, Table
from rich.text import Text

from robench.cli.screen import bar, duration, err, interruptible, out, print_json
from robench.errors import RobenchError

if TYPE_CHECKING:
    from robench.forecast import Work
    from robench.sweep import Row, SweepPlan

LOOK_SECONDS = 2.0
"""Between two looks at how far the runs are."""


def sweep(
    plan: Annotated[Path, typer.Argument(metavar="PLAN.toml", help="Models and protocols; see docs/scale.md.")],
    executor: Annotated[str, typer.Option(help="`ray`, or `local`: one run after the other, here.")] = "ray",
    processes: Annotated[int, typer.Option(min=1, help="Runs and helpers at a time.")] = 1,
    address: Annotated[str | None, typer.Option(help="Of a Ray cluster; default one on this machine.")] = None,
    json: Annotated[bool, typer.Option("--json", help="Print the summary as JSON on stdout.")] = False,
) -> None:
    """Evaluate many models under many protocols; the same call again skips what is done."""
    from robench.cluster import check_executor, cluster
    from robench.sweep import read_sweep
    from robench.sweep import sweep as run

    chosen = read_sweep(plan)
    check_executor("sweep", executor)

    def show(row: "Row") -> None:
        err.print(f"{row.job}: {row.error or row.result}", markup=False, style="red" if row.error else None)

    with (
        interruptible("what is finished is kept: the same command goes on."),
        cluster(address, cpus=processes) if executor == "ray" else nullcontext() as ray,
        _progress(chosen),
        redirect_stdout(sys.stderr),  # what the user's own code prints
    ):
        rows = run(chosen, ray, processes=processes, on_row=show)
    if json:
        print_json([row.__dict__ for row in rows])
    else:
        table = Table("run", Column("result", overflow="fold"), title="sweep", title_justify="left")
        for row in rows:
            table.add_row(Text(row.job), Text(row.result or f"failed: {row.error}"))
        out.print(table)
    if any(row.error for row in rows):
        raise typer.Exit(1)


@contextmanager
def _progress(plan: "SweepPlan") -> Iterator[None]:
    """A bar over the shards of all runs that have begun."""
    from robench.sweep import shards_done

    shown, ended = bar(), threading.Event()
    task = shown.add_task("shards", total=None, note="")

    def look() -> None:
        while not ended.wait(LOOK_SECONDS):
            with suppress(RobenchError):  # what is wrong with a run is said by who runs it
                done, total = shards_done(plan)
                finished = sum((job.folder / "result.json").exists() for job in plan.jobs())
                note = f"{finished} of {len(plan.jobs())} runs"
                shown.update(task, completed=done, total=total or None, note=note)

    thread = threading.Thread(target=look, daemon=True)
    with shown:
        thread.start()
        try:
            yield
        finally:
            ended.set()
            thread.join()


def estimate(
    plan: Annotated[Path, typer.Argument(metavar="PLAN.toml", help="Models and protocols; see docs/scale.md.")],
    gpus: Annotated[int, typer.Option(min=1, help="Workers, each as fast as this machine's device.")] = 1,
    json: Annotated[bool, typer.Option("--json", help="Print one object on stdout.")] = False,
) -> None:
    """Say how long a sweep would take on so many workers, from a few batches timed here."""
    from robench.forecast import forecast
    from robench.sweep import read_sweep, works_of

    works = []
    with redirect_stdout(sys.stderr):  # as above
        for work in works_of(read_sweep(plan)):
            err.print(f"{work.name}: {duration(work.seconds)} on one worker.", markup=False)
            works.append(work)
    steps = sorted({1, gpus, *(2**power for power in range(gpus.bit_length()) if 2**power <= gpus)})
    found = [forecast(works, each) for each in steps]
    if json:
        rows = [{**each.__dict__, "worker_hours": each.worker_hours} for each in found]
        print_json({"runs": [_content(work) for work in works], "forecast": rows})
        return
    table = Table("workers", "wall time", "worker hours", title=Text(f"{len(works)} runs"), title_justify="left")
    for each in found:
        table.add_row(str(each.workers), duration(each.wall_seconds), f"{each.worker_hours:.1f}")
    out.print(table)
    out.print("Assumptions and how well such forecasts hold: docs/scale.md.", markup=False)


def _content(work: "Work") -> dict[str, Any]:
    return {**work.__dict__, "seconds": work.seconds}
