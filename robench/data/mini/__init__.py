"""The mini suite: ten shapes, 64x64 pixels, made by a generator; a testbed, not photographs.

Shape is the label; texture goes along with it in 70 % of the images, and by chance in 3 % more. Every
set is a function of its seed, the same bytes on every machine. The attack set is shipped as well and
pinned by its digest.
"""

import hashlib
import importlib.resources
from collections.abc import Sequence
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from robench.data.mini.generator import CLASSES, paint
from robench.data.mini.shapes import SHAPES
from robench.errors import DataError, complaint
from robench.randomness import Draws

__all__ = [
    "ATTACK_SET_SIZE",
    "CLASSES",
    "CLASS_NAMES",
    "SIZE",
    "attack_set",
    "attack_set_ids",
    "make_attack_set",
    "pinned_images",
    "sheet",
    "training_set",
    "validation_set",
]

CLASS_NAMES = tuple(SHAPES)
SIZE = 64
ATTACK_SET_SIZE = 512
ATTACK_SET_SHA256 = "285519fe4ade3d332aa13cca430fadfe5e7a18d2170568a5c119109478e35921"
"""Of the raw uint8 bytes of the attack set in order of its ids."""
_SHEET_COLUMNS = 32


def _make(prefix: str, count: int, seed: int, size: int = SIZE) -> tuple[NDArray[np.uint8], NDArray[np.int64]]:
    if count < 1:
        raise DataError(complaint("robench.data.mini", "n", count, "at least 1"))
    labels = np.arange(count, dtype=np.int64) % CLASSES
    draws = Draws.of(seed, [f"{prefix}-{index:06d}" for index in range(count)])
    return paint(draws, labels.tolist(), size), labels


def training_set(n: int, seed: int) -> tuple[NDArray[np.uint8], NDArray[np.int64]]:
    """Images to train on; no image of the attack set is among them.

    Args:
      n: number of images; a longer set begins with the shorter one.
      seed: another seed gives other images.
    Returns:
      Images, uint8, shape (n, 3, 64, 64), and labels, int64, shape (n,), every class in turn.
    Example:
      >>> images, labels = training_set(20, seed=0)
      >>> images.shape, labels[:3].tolist()
      ((20, 3, 64, 64), [0, 1, 2])
    """
    return _make("mini-train", n, seed)


def validation_set(n: int) -> tuple[NDArray[np.uint8], NDArray[np.int64]]:
    """Images to watch a training by, drawn like the training set; shapes as in `training_set`."""
    return _make("mini-validation", n, 0)


def attack_set_ids() -> Sequence[str]:
    """Ids of the attack set."""
    return [f"mini-attack-{index:06d}" for index in range(ATTACK_SET_SIZE)]


def attack_set() -> tuple[NDArray[np.uint8], NDArray[np.int64]]:
    """The 512 images that models are attacked on, read from the sheet that is shipped.

    Returns:
      Images, uint8, shape (512, 3, 64, 64), and labels, int64, shape (512,), in order of the ids.
    Raises:
      DataError: the sheet was changed.
    """
    sheet = importlib.resources.files("robench.data.mini") / "attack_set.webp"
    with sheet.open("rb") as file, Image.open(file) as image:
        pixels = np.asarray(image.convert("RGB"))
    rows = pixels.shape[0] // SIZE
    tiles = pixels.reshape(rows, SIZE, _SHEET_COLUMNS, SIZE, 3).transpose(0, 2, 4, 1, 3)
    images = np.ascontiguousarray(tiles.reshape(-1, 3, SIZE, SIZE))
    found = hashlib.sha256(images.tobytes()).hexdigest()
    if found != ATTACK_SET_SHA256:
        raise DataError(complaint("attack_set.webp", "sha256", found, ATTACK_SET_SHA256, "Install robench again."))
    return images, np.arange(len(images), dtype=np.int64) % CLASSES


def make_attack_set() -> tuple[NDArray[np.uint8], NDArray[np.int64]]:
    """The attack set, painted anew; the same bytes as `attack_set`."""
    return _make("mini-attack", ATTACK_SET_SIZE, 0)


def sheet(images: NDArray[np.uint8], columns: int = _SHEET_COLUMNS) -> Image.Image:
    """Images side by side, row by row, as one picture; their number is a multiple of `columns`."""
    count, _, height, width = images.shape
    tiles = images.reshape(count // columns, columns, 3, height, width).transpose(0, 3, 1, 4, 2)
    return Image.fromarray(np.ascontiguousarray(tiles.reshape(-1, columns * width, 3)))


def pinned_images(size: int = SIZE, count: int = 64) -> NDArray[np.uint8]:
    """Images by whose answers a model is recognised, uint8, shape (count, 3, size, size)."""
    return _pinned(size, count).copy()


@lru_cache(maxsize=2)  # every run looks at them; at 224 pixels painting takes a second
def _pinned(size: int, count: int) -> NDArray[np.uint8]:
    return _make("mini-pinned", count, 0, size)[0]
