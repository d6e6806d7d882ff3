"""The attack set of the mini suite, each shape in the texture of another; painted when it is asked for."""

import hashlib
from functools import cache

import numpy as np
from numpy.typing import NDArray

from robench.data.arrays import ArraySource
from robench.data.mini import ATTACK_SET_SIZE, CLASSES, attack_set_ids
from robench.data.mini.generator import paint, worn_textures
from robench.errors import DataError, complaint
from robench.randomness import Draws

STYLIZED_SHA256 = "549acfd0859db77ab748891373a7794cb113f3bc667a04d305984ce3fc7333a2"
"""Of the raw uint8 bytes of the images in other textures, in order of their ids."""


class MiniStylized(ArraySource):
    """The attack set, each shape in the texture of another, and else the same."""

    def __init__(self) -> None:
        images, textures = stylized_set()
        labels = np.arange(ATTACK_SET_SIZE, dtype=np.int64) % CLASSES
        super().__init__(images, labels, classes=CLASSES, ids=attack_set_ids(), name="mini-stylized")
        by_id = dict(zip(attack_set_ids(), textures, strict=True))
        self.textures = [by_id[example] for example in self.ids]


@cache
def stylized_set() -> tuple[NDArray[np.uint8], tuple[int, ...]]:
    """The images in order of their ids, uint8, shape (512, 3, 64, 64), and the number of each texture.

    Raises:
      DataError: this machine paints other bytes than were pinned.
    """
    labels = [number % CLASSES for number in range(ATTACK_SET_SIZE)]
    draws = Draws.of(0, attack_set_ids())
    images = paint(draws, labels, swap_texture=True)
    found = hashlib.sha256(images.tobytes()).hexdigest()
    if found != STYLIZED_SHA256:
        advice = "Please report it, with the machine and its versions."
        raise DataError(complaint("mini-stylized", "sha256", found, STYLIZED_SHA256, advice))
    return images, tuple(worn_textures(draws, labels, swap_texture=True))
