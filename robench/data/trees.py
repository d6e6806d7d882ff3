"""A tree of images: a folder, or the archives in which it was published.

Not here: which data set lies in it.
"""

import os
from collections import Counter
from collections.abc import Sequence
from functools import cached_property
from pathlib import Path
from typing import Protocol

from robench.data.archives import Archive, archives_of
from robench.data.decoding import ImageFile
from robench.data.images import is_image
from robench.errors import DataError, complaint


class Tree(Protocol):
    """Sub-folders and images, by their path from the root."""

    @property
    def root(self) -> Path:
        """Folder or archive; for messages."""
        ...

    def contents(self, at: str = "") -> tuple[list[str], list[str]]:
        """Names of the sub-folders and of the images of a folder, sorted; hidden ones are left out.

        Raises:
          DataError: the folder cannot be read, or two archives have the same image.
        """
        ...

    def file(self, path: str) -> ImageFile:
        """An image, there or not; what is not there cannot be read."""
        ...

    def size(self, path: str) -> int | None:
        """Bytes of an image, where that is known without reading it."""
        ...


class FolderTree:
    """A folder as a tree."""

    def __init__(self, root: Path) -> None:
        self._root = root

    @property
    def root(self) -> Path:
        return self._root

    def contents(self, at: str = "") -> tuple[list[str], list[str]]:
        return contents_of(self._root / at)

    def file(self, path: str) -> ImageFile:
        return ImageFile(path, self._root / path)

    def size(self, path: str) -> int | None:
        try:
            return (self._root / path).stat().st_size
        except OSError:
            return None


class ArchiveTree:
    """Archives as one tree: what lies at the same path in several lies side by side."""

    def __init__(self, paths: Sequence[Path]) -> None:
        self._paths = paths
        self._archives = [Archive(path) for path in paths]

    @property
    def root(self) -> Path:
        return self._paths[0] if len(self._paths) == 1 else self._paths[0].parent

    def contents(self, at: str = "") -> tuple[list[str], list[str]]:
        found = [name for archive in self._archives for name in self._images(archive, at)]
        if len(set(found)) != len(found):
            twice = Counter(found).most_common(1)[0][0]
            what, advice = f"{at}/{twice}".lstrip("/") + " in two of them", "Remove one, or read them one by one."
            raise DataError(complaint(str(self.root), "archives", what, "each image in one archive", advice))
        return sorted(self._folders.get(at, ())), sorted(found)

    def file(self, path: str) -> ImageFile:
        folder, _, name = path.rpartition("/")
        members = (archive.member(folder, name) for archive in self._archives)
        return ImageFile(path, next((each for each in members if each is not None), _Missing()))

    def size(self, path: str) -> int | None:
        return None

    @staticmethod
    def _images(archive: Archive, at: str) -> list[str]:
        directory = archive.directories.get(at)
        return [name for name in directory.names if is_image(name)] if directory is not None else []

    @cached_property
    def _folders(self) -> dict[str, set[str]]:
        """Sub-folders by folder."""
        found: dict[str, set[str]] = {}
        for path in {path for archive in self._archives for path in archive.directories}:
            while path:
                folder, _, name = path.rpartition("/")
                if not name.startswith("."):
                    found.setdefault(folder, set()).add(name)
                path = folder
        return found


class _Missing:
    """What is in no archive."""

    def read_bytes(self) -> bytes:
        raise FileNotFoundError(2, "No such file or directory")


class SubTree:
    """A folder of a tree, as a tree; paths keep what lies above it."""

    def __init__(self, whole: Tree, at: str) -> None:
        self._whole, self._at = whole, at

    @property
    def root(self) -> Path:
        return self._whole.root / self._at

    @property
    def within(self) -> tuple[Tree, str]:
        """The tree that it is a folder of, and which."""
        return self._whole, self._at

    def contents(self, at: str = "") -> tuple[list[str], list[str]]:
        return self._whole.contents(f"{self._at}/{at}".rstrip("/"))

    def file(self, path: str) -> ImageFile:
        found = self._whole.file(f"{self._at}/{path}")
        return ImageFile(path, found.path)

    def size(self, path: str) -> int | None:
        return self._whole.size(f"{self._at}/{path}")


def is_folder(path: Path) -> bool:
    """Whether there is a folder that may be looked at."""
    try:
        return path.is_dir()
    except OSError:
        return False


def open_tree(root: Path, expected: str) -> Tree:
    """The tree at a path.

    Args:
      root: a folder, an archive, or a folder of archives.
      expected: what should be there, for the message.
    Raises:
      DataError: it is none of these, or an archive cannot be read.
    """
    try:
        archives = archives_of(root)
        if archives and not _has_images(root):
            return ArchiveTree(archives)
        if root.is_dir():
            return FolderTree(root)
        found = "a file" if root.is_file() else "missing"
    except OSError as error:
        found = f"unreadable ({error.strerror})"
    raise DataError(complaint(str(root), "data", found, expected))


def _has_images(root: Path) -> bool:
    return root.is_dir() and any(is_image(path.name) for path in root.iterdir())


def contents_of(folder: Path) -> tuple[list[str], list[str]]:
    """Names of the sub-folders and of the images of a folder, sorted; hidden ones are left out.

    Raises:
      DataError: the folder cannot be read.
    """
    folders, images = [], []
    try:
        with os.scandir(folder) as entries:  # asks the disk once, not once for each of 50,000 files
            for entry in entries:
                if entry.is_dir():
                    folders.append(entry.name)
                elif is_image(entry.name):
                    images.append(entry.name)
    except OSError as error:
        found = f"unreadable ({error.strerror or type(error).__name__})"
        advice = "Check the path, and who may read it."
        raise DataError(complaint(str(folder), "data", found, "a folder that can be read", advice)) from error
    return sorted(name for name in folders if not name.startswith(".")), sorted(images)
