"""Who makes which shard, where several processes work on one run.

A worker is a process on a run; its file `workers/<name>.jsonl` says that it lives. A claim is a file
`claims/<shard>.<generation>` that names a worker; only one process can make it. `docs/decisions/0014`
says why it is done so. Not here: which shard comes next (`share`), and what is in one (`runs`).
"""

import hashlib
import itertools
import os
import shutil
import socket
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext, suppress
from pathlib import Path
from typing import BinaryIO

from robench.runs import Run, writing

try:
    import fcntl
except ImportError:  # Windows has no flock; there, the time of a worker's file alone says whether it lives
    fcntl = None  # type: ignore[assignment]

BEAT_SECONDS = 5.0
"""Between two signs of life."""
DEAD_SECONDS = 60.0
"""Silence after which a worker on another machine counts as dead; network file systems may show times that old."""
LOOK_SECONDS = 1.0
"""A worker that lived so long ago still does."""
LOAD_SECONDS = 0.05
"""Least time between two looks at what others have before them, and between two words about one's own; either takes
a fiftieth of the time at most."""


class Worker:
    """This process on a run; get one with `working`.

    Attributes:
      name: `<machine>-<process>-<time>`; no two are the same.
    """

    def __init__(self, run: Run) -> None:
        self.run = run
        self.name = f"{machine()}-{os.getpid()}-{time.time_ns():x}"
        self._dead: set[str] = set()
        self._alive: dict[str, float] = {self.name: float("inf")}
        self._loads: dict[str, int] = {}
        self._next_look = self._next_word = float("-inf")

    @property
    def path(self) -> Path:
        """Its file."""
        return self._path_of(self.name)

    def _path_of(self, name: str) -> Path:
        return self.run.folder / "workers" / f"{name}.jsonl"

    def living(self) -> int:
        """How many workers the run has, this one included."""
        return 1 + len(self._others())

    def least_load(self) -> int:
        """How much that worker among the others has before it who has least; 0 while one has not said so."""
        return min(self._others().values(), default=0)

    def publish(self, load: int) -> None:
        """Say how much this worker has before it, in any unit that all use; now and then."""
        began = time.monotonic()
        if began >= self._next_word:
            with suppress(OSError):  # as in `beat`
                self._load_of(self.name).write_text(str(load))
            self._next_word = _next(began)

    def _others(self) -> dict[str, int]:
        """Loads of the other workers that live."""
        began = time.monotonic()
        if began >= self._next_look:
            names = [path.stem for path in (self.run.folder / "workers").glob("*.jsonl")]
            living = (name for name in names if name != self.name and self.is_alive(name))
            self._loads = {name: self._read_load(name) for name in living}
            self._next_look = _next(began)
        return self._loads

    def _load_of(self, name: str) -> Path:
        return self.run.folder / "workers" / f"{name}.load"

    def _read_load(self, name: str) -> int:
        try:
            return int(self._load_of(name).read_text())
        except (OSError, ValueError):  # it has not said so yet, or is just doing so
            return self._loads.get(name, 0)

    def is_alive(self, name: str) -> bool:
        """Whether a worker is at work; one that was once found dead stays dead."""
        if name in self._dead:
            return False
        now = time.monotonic()
        if now - self._alive.get(name, float("-inf")) > LOOK_SECONDS:
            if not self._look(name):
                self._dead.add(name)
                return False
            self._alive[name] = now
        return True

    def _look(self, name: str) -> bool:
        path = self._path_of(name)
        if fcntl is None or name.partition("-")[0] != machine():
            return self.is_fresh(path)
        try:
            with path.open("rb") as file:
                fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
        except BlockingIOError:
            return True
        except OSError:
            return False  # it has left
        return False

    def is_fresh(self, path: Path) -> bool:
        """Whether a file was written or touched lately, by the clock of the file system."""
        self.beat()
        try:
            with path.open("rb") as file:  # opening asks a network file system for the present time of the file
                touched = os.fstat(file.fileno()).st_mtime
            return self.path.stat().st_mtime - touched < DEAD_SECONDS
        except OSError:
            return False

    def beat(self) -> None:
        """Give a sign of life; a folder that cannot be written is noticed elsewhere."""
        with suppress(OSError):
            os.utime(self.path)

    @contextmanager
    def at_work(self) -> Iterator[None]:
        """Hold the worker's file, and touch it now and then.

        Raises:
          RunError: the folder cannot be written.
        """
        with writing(self.run.folder):
            file = self._appear()
        ended = threading.Event()
        pulse = threading.Thread(target=self._pulse, args=(ended,), daemon=True)
        with file:
            pulse.start()
            try:
                yield
            finally:
                ended.set()
                pulse.join()
                with suppress(OSError):
                    self._load_of(self.name).unlink(missing_ok=True)
                with suppress(OSError):
                    if not self.path.stat().st_size:
                        self.path.unlink()
                        self.path.parent.rmdir()  # unless somebody's file is in it

    def _appear(self) -> BinaryIO:
        """Make the worker's file; whoever sees it finds it locked, and never takes a worker that starts for dead."""
        unseen = self.path.with_suffix(".new")
        file = self._open(unseen)
        try:
            if fcntl is not None:
                fcntl.flock(file, fcntl.LOCK_EX)
            unseen.rename(self.path)
        except BaseException:
            file.close()
            raise
        return file

    def _open(self, path: Path) -> BinaryIO:
        path.parent.mkdir(exist_ok=True)
        try:
            return path.open("ab")
        except FileNotFoundError:  # the last of the others has just taken the empty folder away
            return self._open(path)

    def _pulse(self, ended: threading.Event) -> None:
        while not ended.wait(BEAT_SECONDS):
            self.beat()


@contextmanager
def working(run: Run, *, first: bool = True, attacks: bool = True) -> Iterator[Worker]:
    """Be a worker of a run, beside others; who leaves a finished run takes all claims away.

    Args:
      run: the run.
      first: whether to record events in `events.jsonl` if nobody else is at work.
      attacks: whether this process makes shards; who only watches is not counted.
    Raises:
      RunError: another process is starting over, or the folder cannot be written.
    """
    worker = Worker(run)
    with run.shared(), worker.at_work() if attacks else nullcontext():
        if not first or worker.living() > 1:
            run.journal = worker.path
        yield worker
        if run.finished:
            for folder in ("claims", "halfway"):
                shutil.rmtree(run.folder / folder, ignore_errors=True)


class Claims:
    """The claims on the shards of a run, as a worker sees them."""

    def __init__(self, run: Run, worker: Worker) -> None:
        self._run, self._worker = run, worker

    def take(self, shard: int) -> bool:
        """Claim a shard; False if it is finished, or another living worker has it.

        Raises:
          RunError: the folder cannot be written.
        """
        for generation in itertools.count():
            path = self._run.folder / "claims" / f"{shard:06d}.{generation}"
            if self._make(path):
                return not self._run.shard_path(shard).exists()
            if self._is_held(path):
                return False
        raise AssertionError("generations have no end")

    def _make(self, path: Path) -> bool:
        """Make a claim that nobody has made."""
        with writing(self._run.folder):
            try:
                file = path.open("xb", buffering=0)
            except FileExistsError:
                return False
            except FileNotFoundError:  # the first claim of all; or the run was merged, and its claims are gone
                path.parent.mkdir(exist_ok=True)
                return self._make(path)
            try:
                with file:
                    file.write(self._worker.name.encode())
            except OSError:
                path.unlink(missing_ok=True)
                raise
            return True

    def _is_held(self, path: Path) -> bool:
        """Whether the worker of a claim lives; one that names nobody yet is as old as its file."""
        try:
            name = path.read_bytes().decode()
        except FileNotFoundError:
            return True  # as above
        return self._worker.is_alive(name) if name else self._worker.is_fresh(path)


def _next(began: float) -> float:
    """When to do again what began then and has just ended."""
    ended = time.monotonic()
    return ended + max(LOAD_SECONDS, 50 * (ended - began))


def machine() -> str:
    """What this machine is called among others that see the folder: 8 hex digits, new at each boot."""
    try:
        identity = Path("/proc/sys/kernel/random/boot_id").read_text()  # containers share it, and the locks
    except OSError:
        identity = socket.gethostname()
    return hashlib.sha256(identity.encode()).hexdigest()[:8]
