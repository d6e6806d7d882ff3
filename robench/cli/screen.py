"""What commands write: messages to stderr, results to stdout, bars only on a terminal."""

import json
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import typer
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

out = Console(highlight=False, soft_wrap=True, emoji=False)
"""Results; stays clean under `--json`."""
err = Console(stderr=True, highlight=False, soft_wrap=True, emoji=False)
"""Progress, notices and errors."""


def print_json(content: Any) -> None:
    """One JSON document on stdout."""
    sys.stdout.write(json.dumps(content, indent=2, sort_keys=True) + "\n")


def bar() -> Progress:
    """A progress bar on stderr; silent when stderr is not a terminal."""
    return Progress(
        TextColumn("{task.description}"),
        BarColumn(bar_width=24),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        TextColumn("left"),
        TimeRemainingColumn(),
        TextColumn("{task.fields[note]}"),
        console=err,
        disable=not err.is_terminal,
    )


@contextmanager
def interruptible(advice: str) -> Iterator[None]:
    """Let Ctrl-C end a command with a line that says how to go on, and exit code 130."""
    try:
        yield
    except KeyboardInterrupt:
        err.print(f"Interrupted; {advice}", markup=False)
        raise typer.Exit(130) from None


def duration(seconds: float) -> str:
    """Seconds as people say them: `45 s`, `12 min`, `3.4 h`, `2.1 days`."""
    for limit, unit, size in ((90, "s", 1), (90 * 60, "min", 60), (36 * 3600, "h", 3600)):
        if seconds < limit:
            return f"{seconds / size:.0f} {unit}" if unit != "h" else f"{seconds / size:.1f} h"
    return f"{seconds / 86400:.1f} days"
