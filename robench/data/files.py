"""A source whose images lie in files, any layout.

Not here: which files there are (`folder.py`, `imagenet/`).
"""

import hashlib
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import cached_property

from torch import Tensor

from robench.data.decoding import Decoder, ImageFile
from robench.data.source import Unreadable
from robench.data.trees import Tree


@dataclass(frozen=True)
class FileExample:
    """An example, and the path of its file in the tree of the data."""

    id: str
    label: int
    file: str


@dataclass(frozen=True)
class FileSource:
    """Examples whose images lie in files, in the order given.

    Attributes:
      name: what to call the source in results.
      tree: where the files lie.
      examples: in protocol order.
      class_names: what the classes are called.
      decoder: how files become images.
      missing: the examples that should be there and have no file; they may be among `examples`, where
        they are unreadable. None: nothing says what should be there.
      wanted: labels that should occur; None: all classes.
      reference: what names the data on the Hub, with its commit; None: they are only a folder.
      generated: the manifest that says how robench made the images, see `copies.generated_by`; None: it did not.
    """

    name: str
    tree: Tree = field(repr=False)
    examples: Sequence[FileExample] = field(repr=False)
    class_names: Sequence[str] = field(repr=False)
    decoder: Decoder
    missing: Sequence[FileExample] | None = field(default=None, repr=False)
    wanted: Sequence[int] | None = field(default=None, repr=False)
    reference: str | None = None
    generated: str | None = None

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
        lines = (f"{example.id}|{self.tree.size(example.file)}" for example in self.examples)
        return hashlib.sha256("\n".join(lines).encode()).hexdigest()

    def images(self, positions: Iterable[int]) -> Iterator[Tensor | Unreadable]:
        return self.decoder.images(self.file(position) for position in positions)

    def images_ahead(self, positions: Iterable[int | None]) -> Iterator[Tensor | Unreadable | None]:
        """As `images`; None yields None: for now, no more is to be drawn."""
        return self.decoder.images_ahead(None if position is None else self.file(position) for position in positions)

    def file(self, position: int) -> ImageFile:
        """The file of an example."""
        return self.tree.file(self.examples[position].file)
