"""Ranks that torchrun or srun started: which this is, and the guardian that each of them is.

A guardian starts the evaluation as its child and starts it again if a signal ends it. So a worker that is killed
for its memory does not end the others, which torchrun would do if the rank itself died. Not here: how
processes share a run (`robench.share`).
"""

import os
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from functools import partial
from types import FrameType
from typing import NoReturn

from robench.cli.rendezvous import first_host, look_out
from robench.cli.screen import err
from robench.errors import RunError, complaint
from robench.share import Rank

RESTARTS = 3
"""So often a worker that a signal ended is started again."""
GUARDED = "ROBENCH_GUARDED"
"""Set in the environment of a guardian's child."""
KEPT = "What is finished is kept: the same command goes on, with any number of ranks."
_NAMES = (("RANK", "WORLD_SIZE", "LOCAL_RANK"), ("SLURM_PROCID", "SLURM_STEP_NUM_TASKS", "SLURM_LOCALID"))
"""What torchrun, and srun without torchrun, call index, number and index on the host."""


def rank_of(environment: Mapping[str, str]) -> Rank | None:
    """Which of several ranks this process is; None if it is alone.

    Raises:
      RunError: the variables make no sense.

    Example:
      >>> rank_of({"RANK": "3", "WORLD_SIZE": "8", "LOCAL_RANK": "1"})
      Rank(index=3, size=8, local=1)
    """
    for index, size, local in _NAMES:
        if index in environment and size in environment:
            values = [environment.get(name, "0") for name in (index, size, local)]
            if not all(value.isdecimal() for value in values) or int(values[0]) >= int(values[1]):
                found = ", ".join(f"{name}={value}" for name, value in zip((index, size, local), values, strict=True))
                raise RunError(complaint("environment", index, found, "a rank below the number of ranks, from 0"))
            rank = Rank(*map(int, values))
            return rank if rank.size > 1 else None
    return None


def check_ranks(rank: Rank | None, *, fresh: bool, estimate: bool) -> None:
    """Refuse what several ranks cannot do together.

    Raises:
      RunError: they were asked to.
    """
    for option, asked, advice in (
        ("--fresh", fresh, "Clear the folder with one process first, or choose a new `--run-dir`."),
        ("--estimate", estimate, "Ask one process; `robench estimate` counts workers."),
    ):
        if rank is not None and asked:
            raise RunError(complaint("evaluate", option, f"given to {rank.size} ranks", "one process", advice))


def device_of(rank: Rank | None, device: str | None) -> str | None:
    """The device of a rank: of `cuda` without a number, each rank on a host gets one of its own."""
    if rank is None or device != "cuda":
        return device
    import torch

    return f"cuda:{rank.local % max(torch.cuda.device_count(), 1)}"


def guard() -> None:
    """Run this command in a child if it is one of several ranks, and leave when it has ended; else do nothing.

    The exit code of rank 0 is that of its child. Other ranks leave with 0 whatever happened: the rest takes over
    what they had. On each host one guardian says when the host of rank 0 falls silent.
    """
    rank = rank_of(os.environ)
    if rank is None:
        return
    if GUARDED in os.environ:
        threading.Thread(target=_leave_with_guardian, daemon=True).start()
        return
    with _lookout(rank):
        code = _watch(rank)
    if code == 128 + signal.SIGTERM:
        if rank.local == 0:
            _say(f"rank {rank.index}: ended by SIGTERM. {KEPT}", "red")
    elif code and rank.index:
        _say(f"rank {rank.index}: ended with exit code {code}; the other ranks go on.", "red")
        code = 0
    sys.exit(code)


@contextmanager
def _lookout(rank: Rank) -> Iterator[None]:
    """Look out for the host of rank 0 meanwhile, from one rank of each host."""
    address, ended = first_host(os.environ), threading.Event()
    if address is not None:
        options = {"rank": rank.index, "ended": ended, "say": partial(_say, style="red")}
        threading.Thread(target=look_out, args=(address,), kwargs=options, daemon=True).start()
    try:
        yield
    finally:
        ended.set()


def _say(text: str, style: str) -> None:
    err.print(text, style=style, markup=False)


def _watch(rank: Rank) -> int:
    """Start the child as often as needed; returns its exit code, 128 + the signal that ended it."""
    told: list[int] = []
    child: subprocess.Popen[bytes] | None = None

    def pass_on(number: int, frame: FrameType | None) -> None:
        told.append(number)
        if child is not None:
            child.send_signal(number)

    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, pass_on)
    for start in range(RESTARTS + 1):
        command = [sys.executable, "-m", "robench", *sys.argv[1:]]
        child = subprocess.Popen(command, stdin=subprocess.PIPE, env={**os.environ, GUARDED: "1"})
        code = child.wait()
        if code >= 0 or told:
            return 128 + told[0] if told else code
        ended = f"rank {rank.index}: its worker was ended by {signal.Signals(-code).name}"
        if start < RESTARTS:
            _say(f"{ended}; starting it again ({start + 1} of {RESTARTS}).", "yellow")
    hint = " Is memory short? Try a smaller `--batch-size`." if code == -signal.SIGKILL else ""
    _say(f"{ended}, {RESTARTS + 1} times.{hint}", "red")
    return 128 - code


def _leave_with_guardian() -> NoReturn:
    """End this process when its guardian ends, however that does: the pipe between them closes."""
    while os.read(0, 1):
        pass
    os._exit(1)
