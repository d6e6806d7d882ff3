"""A tree of generated copies of images: `<folder>/<class>/<name>`, with a manifest in its root that says what made it.

Every file is there whole or not at all, one process writes at a time, and the same call again goes on where the last
one ended. Not here: what the copies show (`corruptions/tree.py`, `robench.synthesis.stylized_tree`).
"""

import errno
import json
import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from robench.data.trees import SubTree, Tree, contents_of
from robench.errors import DataError, complaint, first_few

try:
    import fcntl
except ImportError:  # Windows has no flock; there, two processes in one folder are not told apart
    fcntl = None  # type: ignore[assignment]

MANIFESTS = {"robench-corruptions.json": "corrupted", "robench-stylized.json": "stylized"}
"""What was done to the images of a tree, by the name of its manifest."""


@dataclass(frozen=True)
class Written:
    """What came of it.

    Attributes:
      images: source images whose copies are all there.
      files: files written by this call.
      unreadable: why an image has no copies, one sentence each.
    """

    images: int
    files: int
    unreadable: Sequence[str]


def check_apart(source: Path, target: Path, argument: str = "SRC") -> None:
    """Check that a source is a folder, and that the target is none, or a folder apart from it.

    Raises:
      DataError: otherwise.
    """
    if not source.is_dir():
        raise DataError(complaint(str(source), argument, "no folder", "a folder with one sub-folder per class"))
    if target.exists() and not target.is_dir():
        raise DataError(complaint(str(target), "DST", "a file", "a folder"))
    one, other = source.resolve(), target.resolve()
    if one == other or one in other.parents or other in one.parents:
        found = f"{argument} itself" if one == other else f"{'inside' if one in other.parents else 'around'} {argument}"
        raise DataError(complaint(str(target), "DST", found, f"a folder apart from {argument}"))


def images_of(source: Path, suffix: str, argument: str = "SRC") -> list[str]:
    """`<class>/<file>` of every image of a folder, sorted.

    Raises:
      DataError: there are none, or two would have copies of one name.
    """
    folders, _ = contents_of(source)
    images = [f"{folder}/{file}" for folder in folders for file in contents_of(source / folder)[1]]
    if not images:
        advice = f"Lay the images out as {source}/<class>/<name>.JPEG."
        raise DataError(complaint(str(source), argument, "empty", "images in one sub-folder per class", advice))
    copies: dict[str, str] = {}
    for name in images:
        other = copies.setdefault(copy_of(name, suffix), name)
        if other != name:
            expected = "names that differ before the suffix"
            raise DataError(complaint(str(source), "images", f"{other} and {name}", expected, "Rename one of them."))
    return images


def copy_of(name: str, suffix: str) -> str:
    """What the copy of an image is called."""
    return str(Path(name).with_suffix(suffix))


def is_written(path: Path) -> bool:
    """Whether a file is there; a crash of the machine may leave an empty one, which is not."""
    return path.is_file() and path.stat().st_size > 0


def write(path: Path, content: bytes) -> None:
    """Write beside it and rename: the file is there whole or not at all. What a killed call left is overwritten."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.part")
    try:
        temporary.write_bytes(content)
        temporary.replace(path)
    except BaseException:
        with suppress(OSError):
            temporary.unlink()
        raise


def manifest_content(manifest: Mapping[str, Any]) -> bytes:
    """The bytes of a manifest."""
    return (json.dumps(manifest, indent=2, sort_keys=True) + "\n").encode()


def read_content(path: Path) -> dict[str, Any] | None:
    """A manifest, or None where there is none.

    Raises:
      DataError: it is no table in JSON.
    """
    if not path.is_file():
        return None
    try:
        content = json.loads(path.read_bytes())
        if not isinstance(content, dict):
            raise ValueError("no table")
    except (OSError, ValueError) as error:
        raise unreadable_manifest(path, error) from error
    return content


def unreadable_manifest(path: Path, error: Exception) -> DataError:
    """The error about a manifest that is none."""
    expected = f"the manifest of a {MANIFESTS[path.name]} folder"
    return DataError(complaint(str(path), "file", f"unreadable ({reason_of(error)})", expected))


def check_goes_on(path: Path, there: Mapping[str, Any] | None, wanted: Mapping[str, Any]) -> None:
    """Whether a folder is empty, or an earlier call wrote it with the same settings.

    Args:
      path: of the folder's manifest.
      there: its settings; None: it has none.
      wanted: the settings that must not differ.
    Raises:
      DataError: neither.
    """
    if there is None:
        foreign = sorted(each.name for each in path.parent.iterdir() if not each.name.startswith("."))
        if foreign:
            expected, advice = f"an empty folder, or one with {path.name}", "Choose another folder."
            raise DataError(complaint(str(path.parent), "DST", f"not empty ({first_few(foreign)})", expected, advice))
        return
    for key, value in wanted.items():
        if there.get(key) != value:
            advice = "Choose another folder, or the settings that it was begun with."
            raise DataError(complaint(str(path), key, there.get(key), f"{value} for this call", advice))


@contextmanager
def alone(target: Path) -> Iterator[None]:
    """Keep other processes out; the lock goes with the process, however it ends."""
    with (target / ".lock").open("w") as file:
        if fcntl is not None:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except OSError as error:
                found, expected = "in use by another process", "a folder that nobody writes to"
                raise DataError(complaint(str(target), "DST", found, expected)) from error
        yield


@contextmanager
def writing(target: Path) -> Iterator[None]:
    """Turn what the disk refuses into an error of the target.

    Raises:
      DataError: it cannot be written.
    """
    try:
        yield
    except OSError as error:
        raise unwritable(target, reason_of(error)) from error


def unwritable(target: Path, reason: str) -> DataError:
    """The error about a target that cannot be written."""
    advice = "What is written is kept: make room, and the same command goes on."
    if reason != os.strerror(errno.ENOSPC):
        advice = "Check the path, and who may write there; what is written is kept."
    return DataError(complaint(str(target), "DST", f"not writable ({reason})", "room to write", advice))


def reason_of(error: Exception) -> str:
    """Why, in one line."""
    if isinstance(error, OSError) and error.strerror:
        return error.strerror
    return " ".join(str(error).split()) or type(error).__name__


def generated_by(tree: Tree, folder: str = "") -> str | None:
    """Name of the manifest that lies in a folder of a tree or above it, and what it says of frost; None without one.

    Args:
      tree: a folder or archives; up to three folders above it are looked at, too.
      folder: where its images lie.
    """
    while isinstance(tree, SubTree):
        tree, at = tree.within
        folder = f"{at}/{folder}".rstrip("/")
    inside = ["/".join(folder.split("/")[:depth]) for depth in range(folder.count("/") + 1, -1, -1)]
    for name in MANIFESTS:
        within = [tree.file(f"{place}/{name}".lstrip("/")).path for place in inside]
        for path in (*within, *(above / name for above in (tree.root, *tree.root.parents[:3]))):
            try:
                return name + _of_frost(path.read_bytes())
            except (FileNotFoundError, NotADirectoryError, IsADirectoryError):
                continue
            except OSError:  # it is there, whatever it says
                return name
    return None


def _of_frost(manifest: bytes) -> str:
    """What frost is made of, in brackets; nothing where a manifest does not say."""
    try:
        frost = json.loads(manifest)["frost"]
    except (ValueError, KeyError, TypeError, RecursionError):
        return ""
    return f" (frost: {frost})" if frost in ("published", "procedural") else ""
