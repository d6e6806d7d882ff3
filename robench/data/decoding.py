"""Decodes many image files in order, in worker processes.

The files are read by torch's `DataLoader`. Workers send bytes through pipes, not through shared memory,
which containers keep small, and the main process turns them into floats. Not here: one file (`images.py`).
"""

import itertools
import multiprocessing
import os
import signal
import sys
import threading
import warnings
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, TypeVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from robench.data.archives import Bytes
from robench.data.images import as_image, read_pixels
from robench.data.source import Unreadable
from robench.errors import DataError, complaint

FEW = 64
"""Fewer images are decoded in the main process: starting workers would take longer."""
_BATCH = 8
"""Images that a worker decodes between two messages."""
_MOST_WORKERS = 4
"""Without being asked. One decodes some 150 photographs of 500x375 a second (docs/measure/decoding.py)."""
_DEAD = "DataLoader worker (pid"
"""How torch begins its message about a worker that is gone."""

_Decoded = NDArray[np.uint8] | Unreadable
T = TypeVar("T")


@dataclass(frozen=True)
class ImageFile:
    """A file and what messages call it: its path inside the data set, which no machine changes.

    Attributes:
      name: what messages call it.
      path: has its bytes.
      view: its own `resize` and `crop`, in place of the decoder's.
    """

    name: str
    path: Bytes
    view: tuple[int | None, int] | None = None


@dataclass(frozen=True)
class Decoder:
    """How files become images.

    Attributes:
      resize: length of the shorter side after resizing (bilinear, Pillow), in pixels; None: as it is.
      crop: side of the centre crop, in pixels.
      workers: processes that decode; 0: this one; None: up to four, as many as there are cores.
    """

    resize: int | None
    crop: int
    workers: int | None = None

    def images(self, files: Iterable[ImageFile]) -> Iterator[Tensor | Unreadable]:
        """The images, in order, read a little ahead of the caller; none is kept.

        Args:
          files: drawn as they are read; by workers at most `FEW` and two batches for each ahead.
        Raises:
          DataError: a worker died.
        """
        for decoded in self.pixels(files):
            yield decoded if isinstance(decoded, Unreadable) else as_image(decoded)

    def pixels(self, files: Iterable[ImageFile]) -> Iterator[NDArray[np.uint8] | Unreadable]:
        """The same as bytes, uint8, shape (3, crop, crop)."""
        workers = default_workers() if self.workers is None else self.workers
        drawn = iter(files)
        first = list(itertools.islice(drawn, FEW if workers else 0))
        every = itertools.chain(first, drawn)
        if len(first) < FEW:
            return self._near(every)
        return in_workers(_Files(self), every, workers, together=_BATCH)

    def decode(self, file: ImageFile) -> _Decoded:
        """The bytes of one image, shape (3, crop, crop), or why there are none."""
        try:
            resize, crop = file.view or (self.resize, self.crop)
            return read_pixels(file.path, resize=resize, crop=crop, name=file.name)
        except DataError as error:
            return Unreadable(str(error))

    def _near(self, files: Iterable[ImageFile]) -> Iterator[_Decoded]:
        return (self.decode(file) for file in files)


class _Files(Dataset[_Decoded]):
    """Files as a `DataLoader` wants them: whatever is asked for."""

    def __init__(self, decoder: Decoder) -> None:
        self._decoder = decoder

    def __getitem__(self, file: ImageFile) -> _Decoded:
        return self._decoder.decode(file)


def default_workers() -> int:
    """Processes that decode unless someone says otherwise."""
    cores = len(os.sched_getaffinity(0)) if sys.platform == "linux" else os.cpu_count() or 1
    return min(_MOST_WORKERS, cores)


@contextmanager
def naming_dead_workers() -> Iterator[None]:
    """Turn torch's complaint about a dead worker, which it raises wherever the main process is, into ours.

    Raises:
      DataError: a worker died.
    """
    try:
        yield
    except RuntimeError as error:
        if _DEAD not in str(error):
            raise
        found = " ".join(str(error).split())
        advice = "Is memory short? Try fewer `workers`, or 0; what is finished is kept."
        raise DataError(complaint("decoding", "workers", f"dying ({found})", "living processes", advice)) from error


def in_workers(items: Dataset[T], keys: Iterable[Any], workers: int, *, together: int) -> Iterator[T]:
    """Items of a data set, in order, each made by one of several worker processes.

    Args:
      items: what is made by asking for it.
      keys: what is asked for; drawn a little ahead of the caller.
      workers: processes, at least one; each computes in one thread.
      together: items that a worker makes between two messages.
    Raises:
      DataError: a worker died.
    """
    batches = _start(items, keys, workers, together)
    try:
        with naming_dead_workers():
            for batch in batches:
                yield from batch
    finally:
        # A traceback may keep `batches` alive: its workers must not wait for that to go.
        batches._shutdown_workers()


def _start(items: Dataset[T], keys: Iterable[Any], workers: int, together: int) -> Any:
    """The batches of a loader, and its workers at work."""
    drawn = iter(keys)
    with warnings.catch_warnings(), _deaf_to_interrupts():
        warnings.filterwarnings("ignore", "This DataLoader will create", UserWarning)  # the caller chose the number
        # Python 3.12 warns of forks beside threads. Workers touch none of torch's threads.
        warnings.filterwarnings("ignore", "This process .* is multi-threaded", DeprecationWarning)
        loader = DataLoader(
            items,
            batch_sampler=iter(lambda: list(itertools.islice(drawn, together)), []),
            num_workers=workers,
            collate_fn=_as_they_are,
            worker_init_fn=_leave_with_parent,
            generator=torch.Generator(),  # else the loader draws from the caller's
            # A forked worker does not run the user's script again.
            multiprocessing_context="fork" if sys.platform == "linux" else None,
        )
        return iter(loader)


@contextmanager
def _deaf_to_interrupts() -> Iterator[None]:
    """Processes started inside never hear Ctrl-C: the main process does, and stops them."""
    if sys.platform == "win32":
        yield
        return
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def _as_they_are(batch: list[T]) -> list[T]:
    return batch


def _leave_with_parent(_: int) -> None:
    """End this worker when its parent does, even by `kill -9`: it holds the lock of the run, too."""
    parent = multiprocessing.parent_process()

    def wait() -> None:
        if parent is not None:
            parent.join()
            os._exit(1)

    threading.Thread(target=wait, daemon=True).start()
