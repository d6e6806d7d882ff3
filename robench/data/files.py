"""A source whose images lie in files, any layout.

Not here: which files there are (`folder.py`, `imagenet/`).
"""

import hashlib
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path

from torch import Tensor

from robench.data.decoding import Decoder, ImageFile
from robench.data.source import Unreadable


@dataclass(frozen=True)
class FileExample:
    """An example, and the path of its file relative to the root of the data."""

    id: str
    label: int
    file: str


@dataclass(frozen=True)
class FileSource:
    """Examples whose images lie in files, in the order given.

    Attributes:
      name: what to call the source in results.
      root: folder that the files' paths start from.
      examples: in protocol order.
      class_names: what the classes are called.
      decoder: how files become images.
      missing: the examples that should be there and have no file; they may be among `examples`, where
        they are unreadable. None: nothing says what should be there.
    """

    name: str
    root: Path
    examples: Sequence[FileExample] = field(repr=False)
    class_names: Sequence[str] = field(repr=False)
    decoder: Decoder
    missing: Sequence[FileExample] | None = field(default=None, repr=False)

    @cached_property
    def ids(self) -> Sequence[str]:
        return [example.id for example in self.examples]

    @cached_property
    def labels(self) -> Sequence[int]:
        return [example.label for example in self.examples]

    @property
    def classes(self) -> int:
        """Number of classes."""
        return len(self.class_names)

    @property
    def content_sha256(self) -> str:
        """SHA-256 of ids and sizes of the files: most other images under the same ids differ in size."""
        lines = (f"{example.id}|{_size(self.root / example.file)}" for example in self.examples)
        return hashlib.sha256("\n".join(lines).encode()).hexdigest()

    def images(self, positions: Iterable[int]) -> Iterator[Tensor | Unreadable]:
        names = (self.examples[position].file for position in positions)
        return self.decoder.images(ImageFile(name, self.root / name) for name in names)


def _size(path: Path) -> int | None:
    try:
        return path.stat().st_size
    except OSError:
        return None
