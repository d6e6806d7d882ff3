"""The ten textures of the mini suite: integer waves over integer coordinates, values in [-256, 256].

In training a shape mostly wears the texture of its own number, so that texture predicts the label
without being it. Coordinates are in 4096ths of the image side. Not here: amplitudes and colours.
"""

from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

Grid = NDArray[np.int64]


def wave(phase: Grid, period: int) -> Grid:
    """A triangle wave of this period, from -256 to 256."""
    position = phase % period * 1024 // period
    return abs(position - 512) - 256


def _block(phase: Grid, period: int) -> Grid:
    """A square wave of this period: -1 or 1."""
    return 1 - 2 * (phase % period * 2 // period)


def _horizontal(x: Grid, y: Grid, period: int) -> Grid:
    return wave(y, period)


def _vertical(x: Grid, y: Grid, period: int) -> Grid:
    return wave(x, period)


def _falling(x: Grid, y: Grid, period: int) -> Grid:
    return wave((x - y) * 3 // 4, period)


def _rising(x: Grid, y: Grid, period: int) -> Grid:
    return wave((x + y) * 3 // 4, period)


def _checker(x: Grid, y: Grid, period: int) -> Grid:
    return 256 * _block(x, period) * _block(y, period)


def _dots(x: Grid, y: Grid, period: int) -> Grid:
    across, down = wave(x, period) + 256, wave(y, period) + 256
    return np.where(across * across + down * down < 300**2, 256, -256)


def _circles(x: Grid, y: Grid, period: int) -> Grid:
    return wave((x * x + y * y) // 2048, period)


def _zigzag(x: Grid, y: Grid, period: int) -> Grid:
    return wave(y + wave(x, period) * period // 600, period)


def _lattice(x: Grid, y: Grid, period: int) -> Grid:
    return np.where((x % period * 4 < period) | (y % period * 4 < period), 256, -256)


def _bricks(x: Grid, y: Grid, period: int) -> Grid:
    shifted = x + (y // period % 2) * period
    return np.where((y % period * 4 < period) | (shifted % (2 * period) * 6 < period), -256, 256)


TEXTURES: dict[str, Callable[[Grid, Grid, int], Grid]] = {
    "horizontal": _horizontal,
    "vertical": _vertical,
    "falling": _falling,
    "rising": _rising,
    "checker": _checker,
    "dots": _dots,
    "circles": _circles,
    "zigzag": _zigzag,
    "lattice": _lattice,
    "bricks": _bricks,
}
"""Texture by name; the position in this dictionary is the label it goes with in training."""
