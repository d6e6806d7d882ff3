"""A folder of corrupted copies of images, laid out like ImageNet-C: `<corruption>/<severity>/<class>/<name>.JPEG`.

Its root has a manifest, `robench-corruptions.json`, that says what made it: generated files are not the released
ones. Every file is written whole or not at all, and the same call again goes on where the last one ended.

Not here: the corruptions, and readers of such folders.
"""

import errno
import json
import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass, replace
from io import BytesIO
from pathlib import Path

import torch
from PIL import Image
from torch import Tensor
from torch.utils.data import Dataset

from robench.data.corruptions import COMMON, REVISION, SEVERITIES, Ice, check_order, corrupt
from robench.data.decoding import default_workers, in_workers
from robench.data.images import read_pixels
from robench.data.trees import contents_of
from robench.errors import DataError, complaint, first_few

try:
    import fcntl
except ImportError:  # Windows has no flock; there, two processes in one folder are not told apart
    fcntl = None  # type: ignore[assignment]

MANIFEST = "robench-corruptions.json"
QUALITY = 85
"""Of the JPEG files, as published."""
RESIZES = {224: 256, 64: 64}
"""Shorter side before the centre is cut out, by the side of what is cut out: as published for 224."""
_WHERE = "robench data corrupt"


@dataclass(frozen=True)
class Manifest:
    """What a folder of corrupted images is, and who made it.

    Attributes:
      corruptions, severities: every one of these with every one of those.
      seed: of the random numbers.
      frost: what frost is made of.
      size: side of the images in pixels; 224 with the settings for photographs, 64 with those for tiny images.
      revision: of the code that corrupts.
      generator: whose code it is.
    """

    corruptions: tuple[str, ...] = COMMON
    severities: tuple[int, ...] = SEVERITIES
    seed: int = 0
    frost: Ice = "procedural"
    size: int = 224
    revision: int = REVISION
    generator: str = "robench"

    def content(self) -> bytes:
        """The file's bytes."""
        return (json.dumps(asdict(self), indent=2, sort_keys=True) + "\n").encode()


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


@dataclass(frozen=True)
class _Failed:
    """A copy could not be written; everything stops."""

    reason: str


@dataclass(frozen=True)
class _Unread:
    """An image could not be read; the others go on."""

    reason: str


def write_tree(
    source: Path,
    target: Path,
    manifest: Manifest,
    *,
    workers: int | None = None,
    on_start: Callable[[int], None] = lambda images: None,
    on_image: Callable[[], None] = lambda: None,
) -> Written:
    """Write corrupted copies of all images of `<source>/<class>/<file>`.

    Args:
      source: a folder with one sub-folder for each class.
      target: a new or empty folder, or one that an earlier call wrote: then only what is missing is written.
      manifest: what to write. Corruptions may be added to those that are there, nothing else may differ.
      workers: processes; 0: this one; None: up to four.
      on_start: told how many images there are.
      on_image: called after each.
    Raises:
      DataError: there is nothing to read, or the target is in use, another's, or cannot be written.
    """
    _check(source, target, manifest)
    images = _images(source)
    with _writing(target):
        target.mkdir(parents=True, exist_ok=True)
        _check_manifest(target, manifest)
        with _alone(target):
            _write(target / MANIFEST, _joined(target, manifest).content())
            on_start(len(images))
            return _write_copies(_Copies(source, target, manifest, images), workers, on_image)


def _write_copies(copies: "_Copies", workers: int | None, on_image: Callable[[], None]) -> Written:
    processes = default_workers() if workers is None else workers
    _prepare(copies.manifest)
    parts: Iterator[int | _Unread | _Failed]
    parts = (
        in_workers(copies, range(len(copies)), processes, together=1)
        if processes
        else (copies[at] for at in range(len(copies)))
    )
    files, unreadable = 0, []
    for part in parts:
        if isinstance(part, _Failed):
            raise _unwritable(copies.target, part.reason)
        if isinstance(part, _Unread):
            unreadable.append(part.reason)
        else:
            files += part
        on_image()
    return Written(len(copies) - len(unreadable), files, unreadable)


def _prepare(manifest: Manifest) -> None:
    """Compile what is compiled and find the pictures, once, before there are workers."""
    for name in {"glass_blur", "frost"} & set(manifest.corruptions):
        corrupt(torch.zeros(1, 3, 32, 32, dtype=torch.uint8), [""], name, 1, ice=manifest.frost)


@dataclass(frozen=True)
class _Copies(Dataset[int | _Unread | _Failed]):
    """For each source image: how many files were written, when asked for."""

    source: Path
    target: Path
    manifest: Manifest
    images: Sequence[str]

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, position: int) -> int | _Unread | _Failed:
        name = self.images[position]
        missing = list(self._missing(name))
        if not missing:
            return 0
        size = self.manifest.size
        try:
            pixels = read_pixels(self.source / name, resize=RESIZES[size], crop=size, name=name)
        except DataError as error:
            return _Unread(str(error))
        images = torch.from_numpy(pixels)[None]
        try:
            for corruption, severity, path in missing:
                copy = self._corrupted(images, name, corruption, severity)
                path.parent.mkdir(parents=True, exist_ok=True)
                _write(path, _jpeg(copy))
        except OSError as error:
            return _Failed(_reason(error))
        return len(missing)

    def _missing(self, name: str) -> Iterator[tuple[str, int, Path]]:
        for corruption in self.manifest.corruptions:
            for severity in self.manifest.severities:
                path = self.target / corruption / str(severity) / _copy_of(name)
                if not path.is_file() or not path.stat().st_size:
                    yield corruption, severity, path

    def _corrupted(self, images: Tensor, name: str, corruption: str, severity: int) -> Tensor:
        example = str(Path(name).with_suffix(""))
        return corrupt(
            images,
            [example],
            corruption,
            severity,
            seed=self.manifest.seed,
            scale="imagenet" if self.manifest.size == 224 else "tiny",
            ice=self.manifest.frost,
        )[0]


def _copy_of(name: str) -> str:
    return str(Path(name).with_suffix(".JPEG"))


def _jpeg(image: Tensor) -> bytes:
    file = BytesIO()
    pixels = image.permute(1, 2, 0).contiguous().numpy()
    Image.fromarray(pixels).save(file, "JPEG", quality=QUALITY, optimize=True)
    return file.getvalue()


def _write(path: Path, content: bytes) -> None:
    """Write beside it and rename: the file is there whole or not at all. What a killed call left is overwritten."""
    temporary = path.with_name(f".{path.name}.part")
    try:
        temporary.write_bytes(content)
        temporary.replace(path)
    except BaseException:
        with suppress(OSError):
            temporary.unlink()
        raise


def _check(source: Path, target: Path, manifest: Manifest) -> None:
    if not source.is_dir():
        raise DataError(complaint(str(source), "SRC", "no folder", "a folder with one sub-folder per class"))
    if target.exists() and not target.is_dir():
        raise DataError(complaint(str(target), "DST", "a file", "a folder"))
    one, other = source.resolve(), target.resolve()
    if one == other or one in other.parents or other in one.parents:
        found = "SRC itself" if one == other else "inside SRC" if one in other.parents else "around SRC"
        raise DataError(complaint(str(target), "DST", found, "a folder apart from SRC"))
    if not manifest.corruptions or not manifest.severities:
        empty = "severities" if manifest.corruptions else "corruptions"
        raise DataError(complaint(_WHERE, empty, "none", "at least one"))
    if manifest.size not in RESIZES:
        raise DataError(complaint(_WHERE, "size", manifest.size, " or ".join(str(size) for size in RESIZES)))
    check_order(manifest.corruptions, manifest.severities, scale="imagenet", ice=manifest.frost, where=_WHERE)


def _images(source: Path) -> list[str]:
    """`<class>/<file>` of every image, sorted."""
    folders, _ = contents_of(source)
    images = [f"{folder}/{file}" for folder in folders for file in contents_of(source / folder)[1]]
    if not images:
        advice = f"Lay the images out as {source}/<class>/<name>.JPEG."
        raise DataError(complaint(str(source), "SRC", "empty", "images in one sub-folder per class", advice))
    copies: dict[str, str] = {}
    for name in images:
        other = copies.setdefault(_copy_of(name), name)
        if other != name:
            expected = "names that differ before the suffix"
            raise DataError(complaint(str(source), "images", f"{other} and {name}", expected, "Rename one of them."))
    return images


def _check_manifest(target: Path, manifest: Manifest) -> None:
    """Whether the target is empty, or an earlier call wrote it with the same settings."""
    there = read_manifest(target)
    if there is None:
        foreign = sorted(path.name for path in target.iterdir() if not path.name.startswith("."))
        if foreign:
            expected, advice = f"an empty folder, or one with {MANIFEST}", "Choose another folder."
            raise DataError(complaint(str(target), "DST", f"not empty ({first_few(foreign)})", expected, advice))
        return
    for key in ("generator", "revision", "severities", "seed", "frost", "size"):
        found, wanted = getattr(there, key), getattr(manifest, key)
        if found != wanted:
            advice = "Choose another folder, or the settings that it was begun with."
            raise DataError(complaint(str(target / MANIFEST), key, found, f"{wanted} for this call", advice))


def _joined(target: Path, manifest: Manifest) -> Manifest:
    """The manifest of what will be there."""
    there = read_manifest(target)
    already = there.corruptions if there is not None else ()
    return replace(manifest, corruptions=(*already, *(name for name in manifest.corruptions if name not in already)))


def read_manifest(folder: Path) -> Manifest | None:
    """What a folder says of itself, or None.

    Raises:
      DataError: the manifest is malformed.
    """
    path = folder / MANIFEST
    if not path.is_file():
        return None
    try:
        content = json.loads(path.read_bytes())
        for key in ("corruptions", "severities"):
            content[key] = tuple(content[key])
        return Manifest(**content)
    except (OSError, ValueError, TypeError, KeyError) as error:
        found, expected = f"unreadable ({_reason(error)})", "the manifest of a corrupted folder"
        raise DataError(complaint(str(path), "file", found, expected)) from error


@contextmanager
def _alone(target: Path) -> Iterator[None]:
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
def _writing(target: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise _unwritable(target, _reason(error)) from error


def _unwritable(target: Path, reason: str) -> DataError:
    advice = "What is written is kept: make room, and the same command goes on."
    if reason != os.strerror(errno.ENOSPC):
        advice = "Check the path, and who may write there; what is written is kept."
    return DataError(complaint(str(target), "DST", f"not writable ({reason})", "room to write", advice))


def _reason(error: Exception) -> str:
    if isinstance(error, OSError) and error.strerror:
        return error.strerror
    return " ".join(str(error).split()) or type(error).__name__
