"""Trains and scores the models of a plan, each in a process of its own on one thread, several at a time.

Everything lies in one folder: `trained/` as `robench train` leaves it, `runs/<model>/` as `robench evaluate` does. Both
go on where they were stopped, so this may be killed at any moment, which ends all its processes; the same call again
does what is missing. A model belongs to the process that holds the lock on `trained/<model>.lock`: of two calls on one
folder, one waits for the other's model and then finds it finished.

Not here: what is trained (`plan`), and what comes of it (`report`).
"""

import json
import multiprocessing
import os
import signal
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from multiprocessing.connection import Connection, wait
from pathlib import Path
from typing import Any

import torch
from torch import nn

from robench.environment import environment
from robench.errors import RobenchError, RunError, complaint
from robench.evaluation import Options, evaluate
from robench.heap import keep_freed_memory
from robench.registry import resolve
from robench.reproduction.plan import Job
from robench.result import Result
from robench.training import Options as TrainingOptions
from robench.training import Silent, train
from robench.training.construction import build_model
from robench.zoo.state import fill, sha256_of

try:
    import fcntl
except ImportError:  # Windows has no flock; there, nobody may start a second call on a folder
    fcntl = None  # type: ignore[assignment]

CHECKPOINT_MINUTES = 2.0
"""Training that a kill can cost."""


@dataclass(frozen=True)
class Finished:
    """A model that is trained and scored: told as it happens.

    Attributes:
      job: which.
      seconds: what it took now.
      done, total: models, of all that there are.
      left: seconds that the rest should take, by how long the finished ones did.
    """

    job: Job
    seconds: float
    done: int
    total: int
    left: float


def work(jobs: Sequence[Job], folder: Path, *, processes: int, tell: Callable[[Finished], None]) -> None:
    """Train and score what is not there yet.

    Args:
      jobs: teachers among them where there are students.
      folder: of the plan.
      processes: models at a time; 0: one after the other, in this process.
      tell: is told of each that ends.
    Raises:
      RunError: a process was lost, or the folder holds models of other recipes.
      RobenchError: as in `robench.training.train` and `robench.evaluate`.
    """
    waiting = [job for job in jobs if not is_finished(job, folder)]
    done = {job.name for job in jobs} - {job.name for job in waiting}
    teachers = {job.teacher for job in waiting}
    waiting.sort(key=lambda job: (job.name not in teachers, -job.seconds))
    spent = foretold = 0.0
    for job, seconds in (_here if processes == 0 else _elsewhere)(waiting, done, folder, max(processes, 1)):
        done.add(job.name)
        spent, foretold = spent + seconds, foretold + job.seconds
        rest = sum(each.seconds for each in jobs if each.name not in done)
        left = rest * spent / foretold / max(processes, 1)
        tell(Finished(job, seconds, len(done), len(jobs), left))


def is_finished(job: Job, folder: Path) -> bool:
    """Whether a model is trained and has all its results.

    Raises:
      RunError: a model of another recipe lies in its place.
    """
    weights, log = weights_of(job, folder), folder / "trained" / f"{job.name}.jsonl"
    if not (weights.exists() and log.exists()):
        return False
    found = json.loads(log.read_text(encoding="utf-8").partition("\n")[0])["recipe_sha256"]
    if found != job.recipe.digest:
        expected = f"{job.recipe.digest} (the plan's recipe)"
        raise RunError(complaint(str(log), "recipe_sha256", found, expected, "Choose another `--out`."))
    return all((run_dir(job, folder, protocol) / "result.json").exists() for protocol in job.protocols)


def weights_of(job: Job, folder: Path) -> Path:
    """Where a model's weights go."""
    return folder / "trained" / f"{job.name}.safetensors"


def run_dir(job: Job, folder: Path, protocol: str) -> Path:
    """Where a trained model's run under a protocol goes."""
    weights, first = sha256_of(weights_of(job, folder)), "" if job.limit is None else f"-first-{job.limit}"
    return folder / "runs" / job.name / f"{resolve(protocol).protocol.exact_name}{first}-{weights[:8]}"


def load(job: Job, folder: Path) -> nn.Module:
    """A trained model, in eval mode.

    Raises:
      ModelError: its weights are missing or another model's.
    """
    with torch.random.fork_rng(devices=[]):
        model = build_model(job.recipe)
    fill(model, weights_of(job, folder), job.name)
    return model.eval()


def carry_out(job: Job, folder: Path) -> None:
    """Train a model and score it, in this process; what is there already is kept.

    Raises:
      RobenchError: as in `work`.
    """
    trained = folder / "trained"
    with _alone(trained / f"{job.name}.lock"):
        provenance = {"environment": environment(), "threads": torch.get_num_threads()}
        teacher = None if job.teacher is None else trained / f"{job.teacher}.safetensors"
        options = TrainingOptions(teacher=teacher, cpu=True, minutes=CHECKPOINT_MINUTES)
        train(job.recipe, trained, provenance=provenance, watcher=Silent(), options=options)
        model = load(job, folder)
        for protocol in job.protocols:
            score(job, model, protocol, folder)


def score(job: Job, model: nn.Module, protocol: str, folder: Path) -> Result:
    """Evaluate a trained model, or read what was evaluated.

    Raises:
      RobenchError: as in `robench.evaluate`.
    """
    options = Options(name=job.name, workers=0)
    return evaluate(model, protocol, limit=job.limit, run_dir=run_dir(job, folder, protocol), options=options)


Ended = Iterator[tuple[Job, float]]


def _here(waiting: list[Job], done: set[str], folder: Path, processes: int) -> Ended:
    for job in waiting:
        began = time.monotonic()
        carry_out(job, folder)
        yield job, time.monotonic() - began


def _elsewhere(waiting: list[Job], done: set[str], folder: Path, processes: int) -> Ended:
    """The same in processes; students wait for their teachers. All end with this call."""
    going: dict[Connection, tuple[Job, Any, float]] = {}
    spawn = multiprocessing.get_context("spawn")
    try:
        while waiting or going:
            ready = [job for job in waiting if job.teacher is None or job.teacher in done]
            for job in ready[: processes - len(going)]:
                waiting.remove(job)
                ours, theirs = spawn.Pipe(duplex=False)
                process = spawn.Process(target=_process, args=(job, folder, theirs), name=job.name)
                process.start()
                theirs.close()
                going[ours] = (job, process, time.monotonic())
            for pipe in wait(list(going)):
                assert isinstance(pipe, Connection)
                job, process, began = going.pop(pipe)
                error = _answer(pipe)
                process.join()
                if error is None and process.exitcode:
                    found = f"lost (exit code {process.exitcode})"
                    advice = "The same command goes on; a smaller `--processes` needs less memory."
                    error = RunError(complaint(job.name, "process", found, "one that ends by itself", advice))
                if error is not None:
                    raise error
                yield job, time.monotonic() - began
    finally:
        for _, process, _ in going.values():
            process.kill()
            process.join()


def _answer(pipe: Connection) -> RobenchError | None:
    """What a process says at its end: an error, or nothing."""
    try:
        error: RobenchError | None = pipe.recv()
    except EOFError:
        return None
    finally:
        pipe.close()
    return error


def _process(job: Job, folder: Path, pipe: Connection) -> None:
    """The life of a process; Ctrl-C is for the one that started it."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    threading.Thread(target=_end_with_parent, daemon=True).start()
    keep_freed_memory()
    torch.set_num_threads(1)
    try:
        carry_out(job, folder)
    except RobenchError as error:
        pipe.send(error)


def _end_with_parent() -> None:
    """Nothing goes on where nobody waits for it."""
    parent = multiprocessing.parent_process()
    assert parent is not None, "this is a child"
    parent.join()
    os._exit(1)


@contextmanager
def _alone(path: Path) -> Iterator[None]:
    """Hold a lock; whoever else wants it waits."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        file = path.open("w")
    except OSError as error:
        found = f"not writable ({error.strerror or type(error).__name__})"
        raise RunError(complaint(str(path), "folder", found, "a folder that can be written")) from error
    with file:
        if fcntl is not None:
            fcntl.flock(file, fcntl.LOCK_EX)
        yield
