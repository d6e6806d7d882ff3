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
from robench.data.trees import FolderTree, Tree


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
      tree: where the files lie, if not in a folder.
      wanted: labels that should occur; None: all classes.
      missing: the examples that should be there and have no file; they may be among `examples`, where
        they are unreadable. None: nothing says what should be there.
      reference: what names the data on the Hub, with its commit; None: they are only a folder.
      generated: name of the manifest that says how robench made the images; None: it did not.
    """

    name: str
    root: Path
    examples: Sequence[FileExample] = field(repr=False)
    class_names: Sequence[str] = field(repr=False)
    decoder: Decoder
    missing: Sequence[FileExample] | None = field(default=None, repr=False)
    tree: Tree | None = field(default=None, repr=False)
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
        tree = self._tree
        lines = (f"{example.id}|{tree.size(example.file)}" for example in self.examples)
        return hashlib.sha256("\n".join(lines).encode()).hexdigest()

    def images(self, positions: Iterable[int]) -> Iterator[Tensor | Unreadable]:
        tree = self._tree
        return self.decoder.images(tree.file(self.examples[position].file) for position in positions)

    def file(self, position: int) -> ImageFile:
        """The file of an example."""
        return self._tree.file(self.examples[position].file)

    @property
    def _tree(self) -> Tree:
        return self.tree or FolderTree(self.root)
