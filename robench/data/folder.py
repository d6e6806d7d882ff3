"""A folder of images with one sub-folder per class, any classes."""

import hashlib
from collections.abc import Iterable, Iterator
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from robench.data.source import Unreadable, by_hash, check_ids
from robench.errors import DataError, complaint

SUFFIXES = {".jpeg", ".jpg", ".png", ".webp", ".bmp"}


class FolderSource:
    """Images in `<root>/<class>/<file>`; labels are the rank of the class's name.

    Args:
      root: the folder.
      resize: length of the shorter side after resizing (bilinear, Pillow), in pixels; None: as it is.
      crop: side of the centre crop, in pixels.
    Raises:
      DataError: the folder is missing, holds no images in class folders, or a file's name is no UTF-8.
    """

    def __init__(self, root: Path, *, resize: int | None, crop: int) -> None:
        if not root.is_dir():
            raise DataError(complaint(str(root), "data", "no folder", "a folder with one sub-folder per class"))
        classes = sorted(path.name for path in root.iterdir() if path.is_dir() and not path.name.startswith("."))
        files = [
            (path, label)
            for label, name in enumerate(classes)
            for path in sorted((root / name).iterdir())
            if path.suffix.lower() in SUFFIXES and not path.name.startswith(".")
        ]
        if not files:
            advice = f"Lay the images out as {root}/<class>/<name>.png."
            raise DataError(complaint(str(root), "data", "empty", "images in one sub-folder per class", advice))
        names = [path.relative_to(root).as_posix() for path, _ in files]
        check_ids(names, where=str(root))
        order = by_hash(names)
        self._files = [files[index][0] for index in order]
        self._resize, self._crop = resize, crop
        self.name = "folder"
        self.ids = [names[index] for index in order]
        self.labels = [files[index][1] for index in order]
        self.classes = len(classes)

    @property
    def content_sha256(self) -> str:
        """SHA-256 of names and sizes of the files: most other images under the same names differ in size."""
        lines = (f"{name}|{path.stat().st_size}" for name, path in zip(self.ids, self._files, strict=True))
        return hashlib.sha256("\n".join(lines).encode()).hexdigest()

    def images(self, positions: Iterable[int]) -> Iterator[Tensor | Unreadable]:
        for position in positions:
            try:
                yield read_image(self._files[position], resize=self._resize, crop=self._crop)
            except DataError as error:
                yield Unreadable(str(error))


def read_image(path: Path, *, resize: int | None, crop: int) -> Tensor:
    """Decode, resize and crop one image, float32 in [0, 1], shape (3, crop, crop).

    Raises:
      DataError: the file cannot be decoded, has more than 8 bits a channel, or is smaller than the crop.
    """
    try:
        with Image.open(path) as file:
            mode, image = file.mode, file.convert("RGB")
    except Exception as error:  # a broken file makes Pillow raise SyntaxError, ValueError and others, too
        found = f"unreadable ({error})"
        raise DataError(complaint(str(path), "image", found, "an image that Pillow decodes")) from error
    if mode.startswith(("I", "F")):  # Pillow clips these to 255: mostly white
        advice = "Convert it to 8 bits first."
        raise DataError(complaint(str(path), "image", f"of mode {mode}", "8 bits a channel", advice))
    if resize is not None:
        shorter = min(image.size)
        size = (resize * image.width // shorter, resize * image.height // shorter)
        image = image.resize(size, Image.Resampling.BILINEAR)
    if min(image.size) < crop:
        found = f"{image.width}x{image.height} pixels"
        raise DataError(complaint(str(path), "image", found, f"at least {crop}x{crop} pixels"))
    left, top = round((image.width - crop) / 2), round((image.height - crop) / 2)
    pixels = np.asarray(image.crop((left, top, left + crop, top + crop)))
    return torch.from_numpy(pixels.copy()).permute(2, 0, 1).to(torch.float32) / 255
