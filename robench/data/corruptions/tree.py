"""A folder of corrupted copies of images, laid out like ImageNet-C: `<corruption>/<severity>/<class>/<name>.JPEG`.

Its root has a manifest, `robench-corruptions.json`, that says what made it: generated files are not the released
ones. Not here: the corruptions, how a tree is written (`robench.data.copies`), and readers of such folders.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from io import BytesIO
from pathlib import Path

import torch
from PIL import Image
from torch import Tensor
from torch.utils.data import Dataset

from robench.data.copies import (
    Written,
    alone,
    check_apart,
    check_goes_on,
    copy_of,
    images_of,
    is_written,
    manifest_content,
    read_content,
    reason_of,
    unreadable_manifest,
    unwritable,
    write,
    writing,
)
from robench.data.corruptions import COMMON, REVISION, SEVERITIES, Ice, check_order, corrupt
from robench.data.decoding import default_workers, in_workers
from robench.data.images import read_pixels
from robench.errors import DataError, complaint

MANIFEST = "robench-corruptions.json"
SUFFIX = ".JPEG"
QUALITY = 85
"""Of the JPEG files, as published."""
RESIZES = {224: 256, 64: 64}
"""Shorter side before the centre is cut out, by the side of what is cut out: as published for 224."""
_WHERE = "robench data corrupt"
_SETTINGS = ("generator", "revision", "severities", "seed", "frost", "size")
"""What may not differ between two calls."""


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
        return manifest_content(asdict(self))


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
    images = images_of(source, SUFFIX)
    with writing(target):
        target.mkdir(parents=True, exist_ok=True)
        there = read_manifest(target)
        settings = {key: getattr(manifest, key) for key in _SETTINGS}
        check_goes_on(target / MANIFEST, None if there is None else asdict(there), settings)
        with alone(target):
            write(target / MANIFEST, _joined(target, manifest).content())
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
            raise unwritable(copies.target, part.reason)
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
                write(path, _jpeg(copy))
        except OSError as error:
            return _Failed(reason_of(error))
        return len(missing)

    def _missing(self, name: str) -> Iterator[tuple[str, int, Path]]:
        for corruption in self.manifest.corruptions:
            for severity in self.manifest.severities:
                path = self.target / corruption / str(severity) / copy_of(name, SUFFIX)
                if not is_written(path):
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


def _jpeg(image: Tensor) -> bytes:
    file = BytesIO()
    pixels = image.permute(1, 2, 0).contiguous().numpy()
    Image.fromarray(pixels).save(file, "JPEG", quality=QUALITY, optimize=True)
    return file.getvalue()


def _check(source: Path, target: Path, manifest: Manifest) -> None:
    check_apart(source, target)
    if not manifest.corruptions or not manifest.severities:
        empty = "severities" if manifest.corruptions else "corruptions"
        raise DataError(complaint(_WHERE, empty, "none", "at least one"))
    if manifest.size not in RESIZES:
        raise DataError(complaint(_WHERE, "size", manifest.size, " or ".join(str(size) for size in RESIZES)))
    check_order(manifest.corruptions, manifest.severities, scale="imagenet", ice=manifest.frost, where=_WHERE)


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
    content = read_content(path)
    if content is None:
        return None
    try:
        for key in ("corruptions", "severities"):
            content[key] = tuple(content[key])
        return Manifest(**content)
    except (TypeError, KeyError) as error:
        raise unreadable_manifest(path, error) from error
