"""Decodes many image files in order, in worker processes.

The files are read by torch's `DataLoader`. Its workers write bytes into memory that they share with the main process,
which turns them into floats. Not here: one file (`images.py`).
"""

import itertools
import math
import mmap
import multiprocessing
import os
import signal
import sys
import threading
import warnings
from collections.abc import Generator, Iterable, Iterator
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
_AHEAD = 2
"""Messages that each worker may be ahead of the main process."""
_MOST_WORKERS = 4
"""Without being asked. One decodes some 150 photographs of 500x375 a second (docs/measure/decoding.py)."""
_FORKS = sys.platform == "linux"
"""Whether workers are forks of the main process."""
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
      exact: whether files without a view of their own must have the size of the crop already.
    """

    resize: int | None
    crop: int
    workers: int | None = None
    exact: bool = False

    def images(self, files: Iterable[ImageFile]) -> Iterator[Tensor | Unreadable]:
        """The images, in order, read a little ahead of the caller; none is kept.

        Args:
          files: drawn as they are read; by workers at most `FEW` and two batches for each ahead.
        Raises:
          DataError: a worker died.
        """
        for image in self.images_ahead(files):
            if image is not None:
                yield image

    def images_ahead(self, files: Iterable[ImageFile | None]) -> Iterator[Tensor | Unreadable | None]:
        """As `images`; None yields None, behind the images of what was drawn before."""
        for decoded in self._lent(files):
            yield as_image(decoded) if isinstance(decoded, np.ndarray) else decoded

    def pixels(self, files: Iterable[ImageFile]) -> Iterator[_Decoded]:
        """The same as bytes, uint8, shape (3, crop, crop)."""
        for decoded in self._lent(files):
            if decoded is not None:
                yield decoded if isinstance(decoded, Unreadable) else decoded.copy()

    def _lent(self, files: Iterable[ImageFile | None]) -> Iterator[_Decoded | None]:
        """The bytes, in memory that may be written again as soon as the next are asked for."""
        workers = default_workers() if self.workers is None else self.workers
        drawn = iter(files)
        first: list[ImageFile] = []
        while not workers or len(first) < FEW:
            file = next(drawn, _END)
            if isinstance(file, ImageFile) and workers:
                first.append(file)
                continue
            yield from map(self.decode, first)  # too few to start workers for
            first = []
            if isinstance(file, _End):
                return
            yield None if file is None else self.decode(file)
        every = itertools.chain(first, drawn)
        numbers = itertools.count()
        keys = (None if file is None else (next(numbers), file) for file in every)
        shared = _Shared(self, (_AHEAD * workers + 1) * _BATCH)
        batches = batches_in_workers(shared, keys, workers, together=_BATCH)
        try:
            for batch in batches:
                if not batch:
                    yield None
                for decoded in batch:
                    yield shared.lent(decoded) if isinstance(decoded, int) else decoded
        finally:
            batches.close()

    def decode(self, file: ImageFile) -> _Decoded:
        """The bytes of one image, shape (3, crop, crop), or why there are none."""
        try:
            resize, crop = file.view or (self.resize, self.crop)
            exact = self.exact and file.view is None
            return read_pixels(file.path, resize=resize, crop=crop, name=file.name, exact=exact)
        except DataError as error:
            return Unreadable(str(error))


class _End:
    """Stands behind the last file."""


_END = _End()


class _Shared(Dataset[_Decoded | int]):
    """Files whose decoded bytes workers leave in memory that the main process sees, too.

    The memory is anonymous and comes with the fork: nothing lies under /dev/shm, which containers keep small. Where
    workers are not forked, and for an image of another size than the decoder's, bytes go through the pipe.

    Args:
      decoder: of the files.
      rows: images that there is room for. The image with number n is overwritten by that with number n + rows.
    """

    def __init__(self, decoder: Decoder, rows: int) -> None:
        self._decoder = decoder
        shape = (rows, 3, decoder.crop, decoder.crop)
        self._rows: NDArray[np.uint8] | None = None
        if _FORKS:
            self._rows = np.frombuffer(mmap.mmap(-1, math.prod(shape)), np.uint8).reshape(shape)

    def __getitem__(self, key: tuple[int, ImageFile]) -> _Decoded | int:
        """Decode a file with its number: what there is to send, the number where `lent` has it."""
        number, file = key
        decoded = self._decoder.decode(file)
        if self._rows is None or isinstance(decoded, Unreadable) or decoded.shape != self._rows.shape[1:]:
            return decoded
        self._rows[number % len(self._rows)] = decoded
        return number

    def lent(self, number: int) -> NDArray[np.uint8]:
        """The bytes of an image that a worker left here."""
        assert self._rows is not None, "without shared memory nothing is left here"
        row: NDArray[np.uint8] = self._rows[number % len(self._rows)]
        return row


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


def in_workers(items: Dataset[T], keys: Iterable[Any], workers: int, *, together: int) -> Generator[T, None, None]:
    """Items of a data set, in order, each made by one of several worker processes.

    Args:
      items: what is made by asking for it.
      keys: what is asked for; drawn a little ahead of the caller.
      workers: processes, at least one; each computes in one thread.
      together: items that a worker makes between two messages.
    Raises:
      DataError: a worker died.
    """
    batches = batches_in_workers(items, keys, workers, together=together)
    try:
        for batch in batches:
            yield from batch
    finally:
        batches.close()


def batches_in_workers(
    items: Dataset[T], keys: Iterable[Any], workers: int, *, together: int
) -> Generator[list[T], None, None]:
    """The same in the batches that workers make; for a key of None an empty one, in its place."""
    batches = _start(items, keys, workers, together)
    try:
        with naming_dead_workers():
            yield from batches
    finally:
        # A traceback may keep `batches` alive: its workers must not wait for that to go.
        batches._shutdown_workers()


def _together(keys: Iterable[Any], count: int) -> Iterator[list[Any]]:
    """So many keys at a time; none with those that follow a None, and nothing for the None itself."""
    batch = []
    for key in keys:
        if key is not None:
            batch.append(key)
        if batch and (key is None or len(batch) == count):
            yield batch
            batch = []
        if key is None:
            yield []
    if batch:
        yield batch


def _start(items: Dataset[T], keys: Iterable[Any], workers: int, together: int) -> Any:
    """The batches of a loader, and its workers at work."""
    with warnings.catch_warnings(), _deaf_to_interrupts():
        warnings.filterwarnings("ignore", "This DataLoader will create", UserWarning)  # the caller chose the number
        # Python 3.12 warns of forks beside threads. Workers touch none of torch's threads.
        warnings.filterwarnings("ignore", "This process .* is multi-threaded", DeprecationWarning)
        loader = DataLoader(
            items,
            batch_sampler=_together(keys, together),
            num_workers=workers,
            collate_fn=_as_they_are,
            worker_init_fn=_leave_with_parent,
            generator=torch.Generator(),  # else the loader draws from the caller's
            prefetch_factor=_AHEAD,
            # A forked worker does not run the user's script again.
            multiprocessing_context="fork" if _FORKS else None,
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
