"""One image file: decoded, resized, cropped.

Not here: many files (`decoding.py`), and which files there are (`files.py` and the data sets).
"""

from collections.abc import Iterator
from contextlib import contextmanager
from io import BytesIO
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image, ImageFile, UnidentifiedImageError
from torch import Tensor

from robench.data.archives import Bytes
from robench.errors import DataError, complaint

SUFFIXES = {".jpeg", ".jpg", ".png", ".webp", ".bmp"}


def is_image(name: str) -> bool:
    """Whether a file of this name is taken for an image; what macOS puts beside one is none."""
    return not name.startswith(".") and Path(name).suffix.lower() in SUFFIXES


def read_pixels(
    path: Bytes, *, resize: int | None, crop: int, name: str | None = None, exact: bool = False
) -> NDArray[np.uint8]:
    """Decode one image, resize its shorter side (bilinear, Pillow), and crop its centre; shape (3, crop, crop).

    Args:
      path: the file, or what else has its bytes.
      resize: length of the shorter side after resizing, in pixels; None: as it is.
      crop: side of the centre crop, in pixels.
      name: what messages call the file; by default its path.
      exact: whether the file must have the size of the crop already.
    Raises:
      DataError: the file cannot be decoded, has more than 8 bits a channel, or another size than it may.
    """
    where = name or str(path)
    image = read_rgb(path, where)
    if exact and image.size != (crop, crop):
        found, advice = f"{image.width}x{image.height} pixels", "The set was published in that size; is this it?"
        raise DataError(complaint(where, "image", found, f"{crop}x{crop} pixels", advice))
    shorter = min(image.size)
    size = image.size if resize is None else (resize * image.width // shorter, resize * image.height // shorter)
    if min(size) < crop:
        raise DataError(complaint(where, "image", f"{size[0]}x{size[1]} pixels", f"at least {crop}x{crop} pixels"))
    return np.ascontiguousarray(_centre(image, size, crop).transpose(2, 0, 1))


def _centre(image: Image.Image, size: tuple[int, int], crop: int) -> NDArray[np.uint8]:
    """The centre of an image resized to this width and height, shape (crop, crop, 3).

    Rows are resized before columns, in calls of their own: one call of Pillow 13 takes columns first where an image is
    much taller than wide, and rounds otherwise than older ones. Pillow takes what is to be resized in float32; along a
    side that becomes a power of two the bounds of the centre are exact there, so what lies outside is left out
    beforehand, and the bytes are those of resizing everything.
    """
    (width, height), shorter = size, min(size)
    left, top = round((width - crop) / 2), round((height - crop) / 2)
    if size != image.size:
        exact = shorter & (shorter - 1) == 0
        x, columns = (left, crop) if exact and width == shorter else (0, width)
        y, rows = (top, crop) if exact and height == shorter else (0, height)
        across, down = image.width / width, image.height / height
        for box, part in (
            ((x * across, 0, (x + columns) * across, image.height), (columns, image.height)),
            ((0, y * down, columns, (y + rows) * down), (columns, rows)),
        ):
            image = image.resize(part, Image.Resampling.BILINEAR, box=box)
        left, top = left - x, top - y
    return np.asarray(image.crop((left, top, left + crop, top + crop)))


@contextmanager
def _strictly() -> Iterator[None]:
    """Half an image is none, whatever the caller's own code lets Pillow accept."""
    lenient, ImageFile.LOAD_TRUNCATED_IMAGES = ImageFile.LOAD_TRUNCATED_IMAGES, False
    try:
        yield
    finally:
        ImageFile.LOAD_TRUNCATED_IMAGES = lenient


def read_rgb(path: Bytes, name: str) -> Image.Image:
    """Decode one image, whole; `name` is what messages call it.

    Raises:
      DataError: it cannot be decoded, or has more than 8 bits a channel.
    """
    try:
        with _strictly(), Image.open(BytesIO(path.read_bytes())) as file:
            file.load()
            mode, image = file.mode, file if file.mode == "RGB" else file.convert("RGB")
    except Exception as error:  # a broken file makes Pillow raise SyntaxError, ValueError and others, too
        found = f"unreadable ({_reason(error)})"
        raise DataError(complaint(name, "image", found, "an image that Pillow decodes")) from error
    if mode.startswith(("I", "F")):  # Pillow clips these to 255: mostly white
        advice = "Convert it to 8 bits first."
        raise DataError(complaint(name, "image", f"of mode {mode}", "8 bits a channel", advice))
    return image


def as_image(pixels: NDArray[np.uint8]) -> Tensor:
    """Bytes as an image: float32 in [0, 1], the same shape.

    By NumPy, in one thread: torch's threads would wait for more beside the processes that decode.
    """
    image = pixels.astype(np.float32)
    image /= np.float32(255)
    return torch.from_numpy(image)


def read_image(path: Bytes, *, resize: int | None, crop: int) -> Tensor:
    """`read_pixels` as an image: float32 in [0, 1], shape (3, crop, crop)."""
    return as_image(read_pixels(path, resize=resize, crop=crop))


def _reason(error: Exception) -> str:
    """One line without paths or addresses, so that every machine says the same."""
    if isinstance(error, UnidentifiedImageError):
        return "no image that Pillow knows"
    if isinstance(error, OSError) and error.strerror:
        return error.strerror
    return " ".join(str(error).split()) or type(error).__name__
