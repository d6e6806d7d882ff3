"""Looks at all examples of a source: what is there, what is missing, what cannot be read.

Not here: which protocol's data they should be (`cli/data.py` compares).
"""

import itertools
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from robench.data.files import FileExample, FileSource
from robench.data.imagenet.cells import CellSource
from robench.data.source import Source, Unreadable, Views, check_image, ids_digest, pixel_digest
from robench.errors import DataError


@dataclass(frozen=True)
class Examination:
    """What was found.

    Attributes:
      source: what the source calls itself.
      count: examples that are there, readable or not.
      missing: ids of those that should be there and are not.
      missing_classes: classes of which no example is there, though some should be.
      unreadable: why, for each example whose image cannot be read.
      ids_sha256: of the ids of what is there, in order.
      pixels_sha256: sum modulo 2**256 of SHA-256(id, decoded pixels) over what can be read, as in a result.
      images: images that were read, of which an example in cells has many.
    """

    source: str
    count: int
    missing: Sequence[str]
    missing_classes: Sequence[str]
    unreadable: Sequence[str]
    ids_sha256: str
    pixels_sha256: str
    images: int


def examine(source: Source, on_image: Callable[[], None] = lambda: None, *, count: int | None = None) -> Examination:
    """Read every example of a source, in all of its views.

    Args:
      source: the examples; those that it knows to be missing are counted, not read.
      on_image: called after each image.
      count: read the first so many examples alone.
    Raises:
      DataError: a worker that decodes died.
    """
    missing = {example.id for example in _missing(source)}
    there = [position for position, example in enumerate(source.ids) if example not in missing]
    unreadable: list[str] = []
    read = there[:count]
    pixels = images = 0
    names = list(source.view_names) if isinstance(source, Views) else [""]
    found = source.views(read) if isinstance(source, Views) else source.images(read)
    for (position, name), image in zip(itertools.product(read, names), found, strict=True):
        example = source.ids[position]
        reason = _why_unreadable(image, example)
        if reason:
            unreadable.append(reason)
        elif not isinstance(image, Unreadable):
            pixels += pixel_digest(f"{example} {name}" if name else example, image)
        images += 1
        on_image()
    return Examination(
        source=source.name,
        count=len(there),
        missing=[example.id for example in _missing(source)],
        missing_classes=_missing_classes(source, there),
        unreadable=unreadable,
        ids_sha256=ids_digest(source.ids[position] for position in there),
        pixels_sha256=f"{pixels % 2**256:064x}",
        images=images,
    )


def _missing(source: Source) -> Sequence[FileExample]:
    return source.missing or () if isinstance(source, FileSource | CellSource) else ()


def _missing_classes(source: Source, there: Sequence[int]) -> list[str]:
    """Names of the classes without an example; of a list, only those that occur in it."""
    found = {source.labels[position] for position in there}
    if not isinstance(source, FileSource):
        return [str(label) for label in range(source.classes or 0) if label not in found]
    if source.missing is not None:
        wanted = {example.label for example in source.missing}
    else:
        wanted = set(source.wanted or range(len(source.class_names)))
    return [source.class_names[label] for label in sorted(wanted - found)]


def _why_unreadable(image: Tensor | Unreadable, example: str) -> str:
    if isinstance(image, Unreadable):
        return image.reason
    if image.dtype == torch.uint8:  # decoded by us
        return ""
    try:
        check_image(image, example)
    except DataError as error:
        return str(error)
    return ""
