"""Paints the images of the mini suite: shape is the label, texture goes along with it.

Integer arithmetic only, and random words from `robench.randomness`, so that every machine makes the
same bytes. An image is a function of (seed, id, size) alone. Not here: which images make which set
(`robench.data.mini`).

An image holds one large shape, turned by up to 30 degrees, on a ground, with one smaller shape behind
it and one before it. Each wears a texture in a colour of its own, under a gradient of light and a
little grey noise. How far the colours of shape and ground lie apart varies widely from image to
image: this is what spreads the radius at which an image can be attacked.
"""

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from robench.data.mini.shapes import SHAPES
from robench.data.mini.textures import TEXTURES
from robench.randomness import Draws

CLASSES = len(SHAPES)
SPAN = 4096
"""Side of the image in the unit of all coordinates."""
TEXTURE_AGREES = 70
"""Per cent of images whose shape wears the texture of its own number; the others draw one of ten."""
CONTRAST_DIVISOR = 64
"""Half the distance of the two colours is a product of three numbers from 8 to 16 over this, in 255ths."""
OVERSAMPLING = 2
"""Points per pixel side at which the outline is tested."""

_shapes = list(SHAPES.values())
_textures = list(TEXTURES.values())


class _Dice:
    """Hands out the random words of one image, one after the other."""

    def __init__(self, words: NDArray[np.int64]) -> None:
        self._words = iter(words.tolist())

    def between(self, low: int, high: int) -> int:
        """An integer from low to high, both included."""
        word: int = next(self._words)
        return low + word * (high - low + 1) // 2**32


def _axis(points: int) -> NDArray[np.int64]:
    """Centres of `points` equal cells of the image side, from -SPAN/2 to SPAN/2."""
    return (2 * np.arange(points, dtype=np.int64) + 1) * SPAN // (2 * points) - SPAN // 2


def _coverage(label: int, size: int, dice: _Dice, *, reach: int, radii: tuple[int, int]) -> NDArray[np.int64]:
    """How many of the OVERSAMPLING**2 points of each pixel lie in a shape, shape (size, size).

    The centre lies up to `reach` from the middle; the radius is drawn from `radii`.
    """
    across, down = dice.between(-reach, reach), dice.between(-reach, reach)
    radius = dice.between(*radii)
    half_turn = dice.between(-17, 17)  # tan(angle / 2) = half_turn / 64: a rotation in rationals
    cosine, sine, norm = 64**2 - half_turn**2, 128 * half_turn, 64**2 + half_turn**2
    axis = _axis(size * OVERSAMPLING)
    x, y = axis[None, :] - across, axis[:, None] - down
    scale = norm * radius
    mask = _shapes[label]((cosine * x + sine * y) * 1024 // scale, (cosine * y - sine * x) * 1024 // scale)
    cells = mask.reshape(size, OVERSAMPLING, size, OVERSAMPLING)
    points: NDArray[np.int64] = cells.sum(axis=(1, 3), dtype=np.int64)
    return points


def _texture(kind: int, size: int, dice: _Dice) -> NDArray[np.int64]:
    """A texture at a random period and offset, values in [-256, 256], shape (size, size)."""
    period = dice.between(420, 760)
    axis = _axis(size)
    x, y = axis[None, :] + dice.between(0, SPAN), axis[:, None] + dice.between(0, SPAN)
    x, y = np.broadcast_arrays(x, y)
    return _textures[kind](x, y, period)


def _surface(kind: int, colour: NDArray[np.int64], size: int, dice: _Dice) -> NDArray[np.int64]:
    """A textured surface of one colour, shape (3, size, size)."""
    return colour[:, None, None] + _texture(kind, size, dice)[None] * dice.between(8, 26) // 256


def _cover(below: NDArray[np.int64], above: NDArray[np.int64], coverage: NDArray[np.int64]) -> NDArray[np.int64]:
    whole = OVERSAMPLING**2
    return (above * coverage + below * (whole - coverage)) // whole


def paint(draws: Draws, labels: Sequence[int], size: int = 64, *, swap_texture: bool = False) -> NDArray[np.uint8]:
    """Paint one image for each label.

    Args:
      draws: random numbers of the images, one key each.
      labels: shape numbers, 0 to 9.
      size: side of the images in pixels.
      swap_texture: never let a shape wear the texture of its own number.
    Returns:
      Images, uint8, shape (N, 3, size, size).
    """
    if not labels:
        return np.zeros((0, 3, size, size), dtype=np.uint8)
    params = draws.bits("mini/parameters", 64).numpy()
    grain = (draws.bits("mini/grain", (size * size + 7) // 8).numpy()[:, :, None] >> np.arange(0, 32, 4)) & 15
    grain = grain.reshape(len(params), -1)[:, : size * size].reshape(-1, size, size)
    images = [
        _paint_one(label, size, _Dice(words), noise, swap_texture)
        for label, words, noise in zip(labels, params, grain, strict=True)
    ]
    return np.stack(images)


def worn_textures(draws: Draws, labels: Sequence[int], *, swap_texture: bool = False) -> list[int]:
    """The number of the texture that each shape of `paint` wears."""
    words = draws.bits("mini/parameters", 64).numpy()
    return [_worn(label, _Dice(each), swap_texture) for label, each in zip(labels, words, strict=True)]


def _worn(label: int, dice: _Dice, swap_texture: bool) -> int:
    """The texture of a shape, by the first two draws of its image."""
    agrees, other = dice.between(1, 100) <= TEXTURE_AGREES, dice.between(0, CLASSES - 1)
    if swap_texture:
        return (label + 1 + other % (CLASSES - 1)) % CLASSES
    return label if agrees else other


def _paint_one(label: int, size: int, dice: _Dice, noise: NDArray[np.int64], swap_texture: bool) -> NDArray[np.uint8]:
    worn = _worn(label, dice, swap_texture)
    contrast = dice.between(8, 16) * dice.between(8, 16) * dice.between(8, 16) // CONTRAST_DIVISOR
    middle = np.array([dice.between(80, 176) for _ in range(3)])
    apart = np.array([contrast * dice.between(96, 160) // 128 * (2 * dice.between(0, 1) - 1) for _ in range(3)])
    canvas = _surface(dice.between(0, CLASSES - 1), middle - apart, size, dice)
    canvas = _bystander(canvas, size, dice, reach=1700, radii=(440, 680))
    figure = _coverage(label, size, dice, reach=420, radii=(1000, 1500))
    canvas = _cover(canvas, _surface(worn, middle + apart, size, dice), figure)
    canvas = _bystander(canvas, size, dice, reach=1400, radii=(560, 860))
    axis = _axis(size)
    light = (axis[None, :] * dice.between(-20, 20) + axis[:, None] * dice.between(-20, 20)) // SPAN
    painted = canvas + light[None] + noise[None] - 7
    return np.clip(painted, 0, 255).astype(np.uint8)


def _bystander(
    canvas: NDArray[np.int64], size: int, dice: _Dice, *, reach: int, radii: tuple[int, int]
) -> NDArray[np.int64]:
    """A smaller shape of any kind, anywhere, in any colour: it is in the way and means nothing."""
    coverage = _coverage(dice.between(0, CLASSES - 1), size, dice, reach=reach, radii=radii)
    colour = np.array([dice.between(60, 196) for _ in range(3)])
    return _cover(canvas, _surface(dice.between(0, CLASSES - 1), colour, size, dice), coverage)
