"""Data sets by name. A data set is one file, one line here, and one row in the table of laws."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

from robench.data.arrays import ArraySource
from robench.data.folder import FolderSource
from robench.data.mini import CLASSES, attack_set, attack_set_ids
from robench.data.source import Source, Unreadable, check_source
from robench.errors import DataError, complaint

__all__ = ["CATALOGUE", "ArraySource", "FolderSource", "Source", "Unreadable", "check_bundled", "open_source"]


def _mini() -> Source:
    """The attack set of the mini suite."""
    images, labels = attack_set()
    return ArraySource(images, labels, classes=CLASSES, ids=attack_set_ids(), name="mini")


CATALOGUE: dict[str, Callable[[], Source] | None] = {
    "mini": _mini,
    "imagenet": None,  # never shipped: `data=` says where it lies
}
"""What opens a data set without being told where it lies, by its name in a protocol."""


def check_bundled(name: str) -> Callable[[], Source]:
    """What opens a data set that is shipped.

    Raises:
      DataError: it is not shipped, or unknown.
    """
    opener = CATALOGUE.get(name)
    if opener is None:
        advice = "Give `data=` (or `--data`): a folder with one sub-folder per class."
        raise DataError(complaint("robench", "data", "none", f"the images of `{name}`", advice))
    return opener


def open_source(name: str, data: Any, *, resize: int | None, crop: int) -> Source:
    """The examples of a protocol.

    Args:
      name: the data set the protocol asks for.
      data: None for the protocol's own data; a folder with one sub-folder per class; a pair (images,
        labels); or a `Source`.
      resize, crop: the view that the protocol ranks, in pixels; applied to folders.
    Raises:
      DataError: there is nothing to read, or ids, labels or shapes are wrong.
    """
    if data is None:
        source = check_bundled(name)()
    elif isinstance(data, str | Path):
        source = FolderSource(Path(data), resize=resize, crop=crop)
    elif isinstance(data, tuple) and len(data) == 2:
        source = ArraySource(*data)
    elif isinstance(data, Source):
        source = data
    else:
        expected = "a folder, a pair (images, labels), or a robench.data.Source"
        raise DataError(complaint("robench", "data", type(data).__name__, expected))
    check_source(source, where=source.name)
    return source
