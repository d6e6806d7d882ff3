"""The shifted sets of ImageNet on the Hub: as rows with images, or as the archives in which they were published.

Not here: how rows are streamed and kept (`hub.py`), and what columns mean (`imagenet/columns.py`).
"""

import dataclasses
from collections.abc import Callable
from pathlib import Path

from robench.data.decoding import Decoder
from robench.data.files import FileExample, FileSource
from robench.data.folder import in_order_of_hash
from robench.data.hub import kept_rows
from robench.data.imagenet.columns import classes_of, missing_from
from robench.data.imagenet.listing import wnids
from robench.data.imagenet.shifts import LISTED, SHIFTS
from robench.data.imagenet.subsets import subset
from robench.errors import DataError, complaint, first_few
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
    rows = kept_rows(reference, by_wnid=True)
    classes = SHIFTS[name].classes
    allowed = subset(classes) if classes is not None else range(len(wnids()))
    where = parse(reference, "dataset").reference
    labels = classes_of([row.label for row in rows.rows], rows.classes, allowed, where=where)
    missing = missing_from(labels, allowed)
    if missing and limit is None:
        found = f"{len(missing)} of {len(allowed)} missing ({first_few(missing, LISTED)})"
        raise DataError(
            complaint(where, "classes", found, "images of each class", "Take a whole copy, or give `limit`.")
        )
    ids = [f"{wnids()[label]}/{Path(row.path or row.file).name}" for row, label in zip(rows.rows, labels, strict=True)]
    if len(set(ids)) != len(ids):  # names that repeat
        ids = [f"{wnids()[label]}/{row.file}" for row, label in zip(rows.rows, labels, strict=True)]
    examples = [
        FileExample(example, label, row.file) for example, label, row in zip(ids, labels, rows.rows, strict=True)
    ]
    ordered = in_order_of_hash(examples, where=where)
    return FileSource(name, rows.folder, ordered, wnids(), decoder, wanted=allowed, reference=rows.reference)


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
