"""Archives that are read as they were published: an index of their members, and the bytes of each.

A tar is read once from end to end for the offsets of its members, and then in any order; a zip has its own index. A
compressed tar cannot be read in any order: it is unpacked once, into a tar in robench's cache.

Not here: what the members are (`trees` and the data sets).
"""

import errno
import gzip
import hashlib
import os
import shutil
import tarfile
import zipfile
import zlib
from array import array
from bisect import bisect_left
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path
from typing import Protocol

from robench.data.locations import cached
from robench.data.writing import written_whole
from robench.errors import DataError, complaint

try:
    import fcntl
except ImportError:  # Windows has no flock; there, each process unpacks for itself
    fcntl = None  # type: ignore[assignment]

SUFFIXES = (".tar", ".tar.gz", ".tgz", ".zip")
PUBLISHED_MD5 = {
    "imagenet-a.tar": "c3e55429088dc681f30d81f4726b6595",
    "imagenet-r.tar": "a61312130a589d0ca1a8fca1f2bd3337",
    "blur.tar": "2d8e81fdd8e07fef67b9334fa635e45c",
    "digital.tar": "89157860d7b10d5797849337ca2e5c03",
    "extra.tar": "d492dfba5fc162d8ec2c3cd8ee672984",
    "noise.tar": "e80562d7f6c3f8834afb1ecf27252745",
    "weather.tar": "33ffea4db4d93fe4a428c40a6ce0c25d",
}
"""Of ImageNet-A, ImageNet-R and the parts of ImageNet-C (Zenodo 2235448), as their authors state them."""
_HEADER = 512
"""Bytes before the content of a member of a tar."""


class Bytes(Protocol):
    """What has bytes to read: a path, or a member of an archive."""

    def read_bytes(self) -> bytes: ...


@dataclass(frozen=True)
class TarMember:
    """A member of a tar, by the offset of its header."""

    archive: Path
    offset: int

    def read_bytes(self) -> bytes:
        with self.archive.open("rb") as file:
            file.seek(self.offset)
            header = tarfile.TarInfo.frombuf(file.read(_HEADER), tarfile.ENCODING, "surrogateescape")
            return file.read(header.size)


@dataclass(frozen=True)
class ZipMember:
    """A member of a zip."""

    archive: Path
    name: str

    def read_bytes(self) -> bytes:
        return _opened(self.archive, os.getpid()).read(self.name)


@lru_cache(maxsize=4)
def _opened(archive: Path, process: int) -> zipfile.ZipFile:
    """A zip, opened once in each process: forked ones would share the place they read at."""
    return zipfile.ZipFile(archive)


@dataclass
class _Directory:
    """Members of one directory: names, and for each its offset or place; sorted by name once it is whole."""

    names: list[str] = field(default_factory=list)
    places: "array[int]" = field(default_factory=lambda: array("q"))

    def sort(self) -> None:
        order = sorted(range(len(self.names)), key=self.names.__getitem__)
        self.names = [self.names[at] for at in order]
        self.places = array("q", (self.places[at] for at in order))


class Archive:
    """The members of one archive, by directory.

    A place and a pointer to a shared name are kept of each member, so that millions of them fit into memory.

    Args:
      path: of the archive.
    Raises:
      DataError: it cannot be read.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._zip = path.suffix == ".zip"
        self.directories: dict[str, _Directory] = {}
        shared: dict[str, str] = {}
        self._plain: Path = path
        try:
            if not self._zip and path.suffix in (".gz", ".tgz"):
                self._plain = _unpacked(path)
            for name, place in self._members():
                folder, _, last = name.removeprefix("./").rpartition("/")
                directory = self.directories.setdefault(folder, _Directory())
                directory.names.append(shared.setdefault(last, last))
                directory.places.append(place)
        except (OSError, EOFError, zlib.error, tarfile.TarError, zipfile.BadZipFile) as error:
            found = f"unreadable ({error})"
            raise DataError(
                complaint(str(path), "archive", found, "a whole tar or zip", "Download it again.")
            ) from error
        for directory in self.directories.values():
            directory.sort()

    def member(self, folder: str, name: str) -> TarMember | ZipMember | None:
        """A member by its directory and name; None: there is none."""
        directory = self.directories.get(folder)
        if directory is None:
            return None
        at = bisect_left(directory.names, name)
        if at == len(directory.names) or directory.names[at] != name:
            return None
        if self._zip:
            return ZipMember(self.path, f"{folder}/{name}" if folder else name)
        return TarMember(self._plain, directory.places[at])

    def _members(self) -> Iterator[tuple[str, int]]:
        if self._zip:
            with zipfile.ZipFile(self.path) as file:
                yield from ((info.filename, 0) for info in file.infolist() if not info.is_dir())
            return
        with tarfile.open(self._plain, "r:") as tar:
            while (info := tar.next()) is not None:
                if info.isfile():
                    yield info.name, info.offset_data - _HEADER
                tar.members.clear()  # type: ignore[attr-defined]  # which it would keep, all of them


def _unpacked(path: Path) -> Path:
    """The tar inside a compressed one, in the cache; unpacked unless that has it for this file as it is now."""
    now, name = path.stat(), f"{path.name.split('.')[0][:100]}-{_short(str(path.resolve()))}"
    plain = cached("unpacked") / f"{name}-{_short(f'{now.st_size} {now.st_mtime_ns}')}.tar"
    if plain.exists():
        return plain
    with gzip.open(path) as packed:
        try:
            plain.parent.mkdir(parents=True, exist_ok=True)
            with _locked(plain.with_name(f"{name}.lock")):
                if not plain.exists():  # another process was faster
                    for old in [*plain.parent.glob(f"{name}-*.tar"), *plain.parent.glob(f".{name}-*.tmp")]:
                        old.unlink(missing_ok=True)  # of this archive as it was, or of a process that was killed
                    with written_whole(plain) as temporary, temporary.open("wb") as file:
                        shutil.copyfileobj(packed, file, 1 << 20)
        except OSError as error:
            if error.errno is None:  # what gzip raises where a file is damaged
                raise
            full = error.errno in (errno.ENOSPC, errno.EDQUOT)
            found, expected = f"not to be unpacked to {plain} ({error.strerror})", "a folder that can be written"
            advice = "Name another cache with XDG_CACHE_HOME, or unpack it yourself."
            expected = "room for the tar inside" if full else expected
            raise DataError(complaint(str(path), "archive", found, expected, advice)) from error
    return plain


def _short(text: str) -> str:
    return hashlib.sha256(text.encode(errors="surrogateescape")).hexdigest()[:12]


@contextmanager
def _locked(path: Path) -> Iterator[None]:
    """One process at a time, where files can be locked."""
    with path.open("w") as file:
        if fcntl is not None:
            with suppress(OSError):  # a file system without locks: each process unpacks for itself
                fcntl.flock(file, fcntl.LOCK_EX)
        yield


def is_archive(path: Path) -> bool:
    """Whether a file of this name is taken for an archive."""
    return not path.name.startswith(".") and path.name.endswith(SUFFIXES)


def as_published(path: Path) -> bool | None:
    """Whether an archive is the one that was published under its name; None: no digest of that is known."""
    expected = PUBLISHED_MD5.get(path.name)
    if expected is None:
        return None
    with path.open("rb") as file:
        return hashlib.file_digest(file, "md5").hexdigest() == expected


def archives_of(root: Path) -> Sequence[Path]:
    """The archives that a path names: itself, or those side by side in a folder without sub-folders."""
    if root.is_file():
        return [root] if is_archive(root) else []
    if not root.is_dir() or any(path.is_dir() and not path.name.startswith(".") for path in root.iterdir()):
        return []
    return sorted(path for path in root.iterdir() if is_archive(path))
