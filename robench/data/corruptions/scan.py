"""The one corruption that is sequential by nature: glass moves pixel after pixel. Compiled by numba.

Not here: what is blurred before and after (`blur.py`).
"""

from collections.abc import Callable
from functools import cache
from typing import Any

import numpy as np
from numpy.typing import NDArray

Places = NDArray[np.int32]


def scan_places(cells: NDArray[np.int64], height: int, width: int, reach: int, rounds: int) -> Places:
    """Which pixel each pixel comes from, once all have looked about them, from the lower right to the upper left.

    A pixel takes the value of one in reach, which keeps its own: the published code means to swap the two,
    but overwrites the one before it is read.

    Args:
      cells: where each look goes, from 0 to 4 * reach**2 - 1, row by row from (-reach, -reach) to (reach - 1,
        reach - 1), shape (N, rounds * (height - 2 * reach) * (width - 2 * reach)).
      reach: how far a pixel looks.
      rounds: how often all of them look.
    Returns:
      Index of the source in the flat image, shape (N, height * width).
    """
    places = np.tile(np.arange(height * width, dtype=np.int32), (len(cells), 1))
    _compiled()(places, cells, height, width, reach, rounds)
    return places


@cache
def _compiled() -> Callable[..., None]:
    import numba  # half a second, which only glass needs

    compiled: Callable[..., None] = numba.njit(_scan)
    return compiled


def _scan(places: Any, cells: Any, height: int, width: int, reach: int, rounds: int) -> None:
    for image in range(places.shape[0]):
        looks = 0
        for _ in range(rounds):
            for row in range(height - reach, reach, -1):
                for column in range(width - reach, reach, -1):
                    down, across = divmod(cells[image, looks], 2 * reach)
                    looks += 1
                    source = (row + down - reach) * width + column + across - reach
                    places[image, row * width + column] = places[image, source]
