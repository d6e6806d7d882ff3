import itertools
import time

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from robench.squares import covering

SIZE = 6


def _covers(side: int) -> list[int]:
    """What each square of an image of 6 x 6 covers, as bits."""
    corners = itertools.product(range(SIZE - side + 1), repeat=2)
    return [
        sum(1 << (row + down) * SIZE + column + right for down in range(side) for right in range(side))
        for row, column in corners
    ]


def _fits(pixels: frozenset[int], count: int, side: int) -> bool:
    """All choices of squares inside the image, one after the other."""
    wanted, squares = sum(1 << pixel for pixel in pixels), _covers(side)
    covered = {0}
    for _ in range(count):
        covered = {one | square & wanted for one in covered for square in squares}
    return wanted in covered


@pytest.mark.parametrize("count", [1, 2, 3, 4, 5])
@pytest.mark.parametrize("side", [1, 2, 3])
@given(pixels=st.frozensets(st.integers(0, SIZE**2 - 1), max_size=12))
@settings(max_examples=60, deadline=None)
def test_it_says_what_trying_all_squares_says(count: int, side: int, pixels: frozenset[int]) -> None:
    points = np.array([divmod(pixel, SIZE) for pixel in sorted(pixels)], dtype=np.int64).reshape(-1, 2)
    found = covering(points, count, side)
    assert (found is not None) == _fits(pixels, count, side)
    if found is not None:
        assert len(found) <= count
        covered = [(points >= corner) & (points < np.array(corner) + side) for corner in found]
        assert not len(points) or np.any([each.all(axis=1) for each in covered], axis=0).all()


def test_both_answers_occur_for_every_number_of_squares() -> None:
    """On random sets, so that the test above can fail either way."""
    generator = np.random.default_rng(0)
    for count, size in ((1, 2), (2, 3), (3, 5), (4, 7), (5, 9)):
        sets = [frozenset(generator.choice(36, size, replace=False).tolist()) for _ in range(60)]
        points = [np.array([divmod(pixel, SIZE) for pixel in sorted(each)]) for each in sets]
        found = [covering(each, count, 2) is not None for each in points]
        assert found == [_fits(each, count, 2) for each in sets]
        assert 0 < sum(found) < 60


def _pixels(corners: list[tuple[int, int]], side: int) -> np.ndarray:
    mask = np.zeros((224, 224), dtype=bool)
    for row, column in corners:
        mask[row : row + side, column : column + side] = True
    return np.argwhere(mask)


def test_squares_of_imagenet_are_recognised_in_no_time() -> None:
    generator = np.random.default_rng(0)
    began = time.process_time()
    for spread in (190, 60, 40):  # apart, and heaped
        for _ in range(5):
            corners = [tuple(generator.integers(0, spread, 2).tolist()) for _ in range(4)]
            assert covering(_pixels(corners, 35), 4, 35) is not None
            assert spread < 190 or covering(np.concatenate([_pixels(corners, 35), [[223, 223]]]), 4, 35) is None
    assert time.process_time() - began < 5


def test_five_squares_are_not_four_however_small() -> None:
    corners = [(0, 0), (0, 100), (100, 0), (100, 100), (50, 50)]
    assert covering(_pixels(corners, 1), 4, 35) is None
    assert covering(_pixels(corners, 1), 5, 35) is not None
