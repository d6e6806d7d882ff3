"""The shifted sets of ImageNet on the Hub: as rows with images, or as the archives in which they were published.

Not here: how rows are streamed and kept (`hub.py`), and what columns mean (`imagenet/columns.py`).
"""

import dataclasses
from collections.abc import Callable
from pathlib import Path

from robench.data.decoding import Decoder
from robench.data.files import FileSource
from robench.data.hub import kept_rows
from robench.data.imagenet.listing import wnids
from robench.data.imagenet.shifts import SHIFTS, examples_of
from robench.data.trees import FolderTree
from robench.hub import Hub, open_snapshot, parse


def open_shift_on_hub(name: str, reference: str, decoder: Decoder, *, limit: int | None) -> FileSource:
    """All images of a set, by the hash of their ids `<wnid>/<file>`.

    Args:
      name: in `SHIFTS`.
      reference: `hf-hub:org/name[@revision]`, a data set that the `datasets` library reads.
      decoder: how files become images.
      limit: how many examples are wanted; None: no class may be missing. All are fetched, as they may be in any order.
    Raises:
      DataError: the data set cannot be had, or its classes cannot be told or are missing.
    """
    kept = kept_rows(reference, by_wnid=True)
    where = parse(reference, "dataset").reference
    rows = [(Path(row.path or row.file).name, row.label, row.file) for row in kept.rows]
    examples = examples_of(name, rows, kept.classes, where=where, whole=limit is None)
    wanted, tree = SHIFTS[name].labels, FolderTree(kept.folder)
    return FileSource(name, tree, examples, wnids(), decoder, wanted=wanted, reference=kept.reference)


def open_archive_on_hub(reference: str, read: Callable[[Path], FileSource]) -> FileSource:
    """A set in an archive on the Hub.

    Args:
      reference: `hf-hub:org/name/file[@revision]`.
      read: opens the archive.
    Raises:
      DataError: it cannot be had, or is not the set.
    """
    address = parse(reference, "dataset")
    if address.file is None:
        raise ValueError(f"{reference} names no file")
    snapshot = open_snapshot(address, Hub(), (address.file,))
    return dataclasses.replace(read(snapshot.fetch(address.file)), reference=f"{address.reference}@{snapshot.commit}")
