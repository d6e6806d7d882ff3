"""A source of examples: ids, labels, and images read when they are needed.

Not here: any data set (one file each, listed in `robench.data.CATALOGUE`).
"""

import hashlib
import re
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Protocol, runtime_checkable

from torch import Tensor

from robench.errors import DataError, complaint

CLEAN = "clean"
"""What the view of a clean image is called."""
_UNWRITABLE = re.compile(r"[\n\r\0\ud800-\udfff]")  # the last are bytes of a file name that are no UTF-8


@dataclass(frozen=True)
class Unreadable:
    """Stands where an image should be; the example is errored, and the run goes on."""

    reason: str
    """A whole sentence that names the file."""


@runtime_checkable
class Source(Protocol):
    """Examples in protocol order.

    A source may also have a `content_sha256`: a digest that tells other images under the same ids apart
    without decoding them, so that a run of theirs is not taken for this one.
    """

    @property
    def name(self) -> str:
        """What to call it in results."""
        ...

    @property
    def ids(self) -> Sequence[str]:
        """Unique names of the examples, stable across machines."""
        ...

    @property
    def labels(self) -> Sequence[int]:
        """True classes, from 0."""
        ...

    @property
    def classes(self) -> int | None:
        """Number of classes; None: whatever the model tells apart."""
        ...

    def images(self, positions: Iterable[int]) -> Iterator[Tensor | Unreadable]:
        """Images at these positions, in this order, float32 in [0, 1], shape (3, H, W).

        They are read one by one as the caller asks; none is kept. Positions are drawn no further ahead than
        reading needs: to draw one may claim it, and others are then left without.
        """
        ...


@runtime_checkable
class Ahead(Source, Protocol):
    """A source whose `images` draw positions before the caller asks, and that can be told how far."""

    def images_ahead(self, positions: Iterable[int | None]) -> Iterator[Tensor | Unreadable | None]:
        """As `images`; a position of None asks for nothing: None is yielded in its place, behind what was drawn before.

        Positions may be drawn again after it: it says that there are no more for now.
        """
        ...


@runtime_checkable
class Views(Source, Protocol):
    """A source that shows each example more than once; `images` yields the first view alone."""

    @property
    def view_names(self) -> Sequence[str]:
        """What the views are called: `clean`, where there is one, and `<corruption>/<severity>` by these, sorted."""
        ...

    def views(self, positions: Iterable[int]) -> Iterator[Tensor | Unreadable]:
        """All views of each example, one after the other, uint8, shape (3, H, W)."""
        ...


def ids_digest(ids: Iterable[str]) -> str:
    """SHA-256 of ids in their order, joined by newlines."""
    return hashlib.sha256("\n".join(ids).encode()).hexdigest()


def pixel_digest(example: str, image: Tensor) -> int:
    """SHA-256 of id and float32 (or uint8) pixels, as a number, so that digests can be summed in any order."""
    digest = hashlib.sha256(example.encode() + b"\0")
    pixels = image.contiguous().cpu().numpy()
    digest.update((pixels if pixels.dtype == "u1" else pixels.astype("<f4", copy=False)).data)
    return int.from_bytes(digest.digest(), "big")


def by_hash(ids: Sequence[str]) -> list[int]:
    """Positions in the order of SHA-256 of the ids, so that every prefix is a random sample."""
    return sorted(range(len(ids)), key=lambda position: hashlib.sha256(ids[position].encode()).digest())


def check_ids(ids: Sequence[str], *, where: str) -> None:
    """Check that ids can be written into the table of outcomes.

    Raises:
      DataError: an id is empty, holds a line break, or is no text.
    """
    for example in ids:
        if not isinstance(example, str) or not example or _UNWRITABLE.search(example):
            raise DataError(complaint(where, "ids", repr(example), "ids in UTF-8 without line breaks"))


def check_source(source: Source, *, where: str) -> None:
    """Check ids and labels before anything is read.

    Raises:
      DataError: there are no examples, ids repeat or cannot be stored, or a label is out of range.
    """
    if not len(source.ids):
        raise DataError(complaint(where, "data", "empty", "at least one example"))
    if len(source.ids) != len(source.labels):
        found = f"{len(source.labels)} for {len(source.ids)} examples"
        raise DataError(complaint(where, "labels", found, "one label for each example"))
    if len(set(source.ids)) != len(source.ids):
        twice = Counter(source.ids).most_common(1)[0][0]
        raise DataError(complaint(where, "ids", f"not unique ({twice!r} twice)", "an id of its own for each example"))
    check_ids(source.ids, where=where)
    limit = source.classes if source.classes is not None else max(source.labels) + 1
    wrong = next((label for label in source.labels if not 0 <= label < limit), None)
    if wrong is not None:
        raise DataError(complaint(where, "labels", wrong, f"class numbers from 0 to {limit - 1}"))


def check_image(image: Tensor, example: str) -> None:
    """Check one image as it is read.

    Raises:
      DataError: it is no float32 RGB image in [0, 1].
    """
    if image.ndim != 3 or image.shape[0] != 3 or str(image.dtype) != "torch.float32":
        found = f"{image.dtype} of shape {tuple(image.shape)}"
        raise DataError(complaint(example, "image", found, "torch.float32 of shape (3, H, W)"))
    values = image.detach().cpu().numpy()  # in one thread, as in `as_image`
    low, high = float(values.min()), float(values.max())
    if not (low >= 0 and high <= 1):
        advice = "Divide by 255, and leave normalisation to the model."
        raise DataError(complaint(example, "image", f"from {low:.4g} to {high:.4g}", "values in [0, 1]", advice))
