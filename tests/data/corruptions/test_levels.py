import numpy as np
import pytest
import scipy.ndimage
import torch

from robench.data.corruptions.levels import blur, enlarge, move, to_bytes


def test_bytes_are_cut_off_and_not_rounded() -> None:
    values = torch.tensor([-3.0, 0.9, 127.99999999999, 128.9, 255.4, 300.0], dtype=torch.float64)
    assert to_bytes(values).tolist() == [0, 0, 128, 128, 255, 255]


@pytest.mark.parametrize("sigma", [0.1, 0.7, 1.3, 6])
def test_the_blur_is_scipys(sigma: float) -> None:
    image = np.random.default_rng(0).uniform(size=(33, 40))
    wanted = scipy.ndimage.gaussian_filter(image, sigma, mode="nearest", truncate=4)
    found = blur(torch.from_numpy(image)[None, None], sigma)[0, 0]
    assert np.allclose(found.numpy(), wanted, atol=1e-12)


@pytest.mark.parametrize("factor", [1.0, 1.01, 1.16, 1.3, 2.0, 2.25, 4.5])
@pytest.mark.parametrize("size", [(64, 64), (224, 100)])
def test_the_enlargement_is_scipys(size: tuple[int, int], factor: float) -> None:
    image = np.random.default_rng(0).uniform(size=size)
    parts = [int(np.ceil(length / factor)) for length in size]
    top, left = ((length - part) // 2 for length, part in zip(size, parts, strict=True))
    enlarged = scipy.ndimage.zoom(image[top : top + parts[0], left : left + parts[1]], factor, order=1)
    top, left = ((there - length) // 2 for there, length in zip(enlarged.shape, size, strict=True))
    found = enlarge(torch.from_numpy(image)[None, None], factor)[0, 0]
    assert np.allclose(found.numpy(), enlarged[top : top + size[0], left : left + size[1]], atol=1e-12)


@pytest.mark.parametrize(("angle", "step"), [(0, (0, 1)), (45, (1, 1)), (-90, (-1, 0)), (-45, (-1, 1))])
def test_motion_leaves_a_trail_that_grows_fainter(angle: float, step: tuple[int, int]) -> None:
    """A single point of light, by hand."""
    image = torch.zeros(1, 1, 41, 41, dtype=torch.float64)
    image[0, 0, 20, 20] = 1
    found = move(image, 3, 2.0, [angle])[0, 0]
    weights = [np.exp(-0.5 * (number / 2.0) ** 2) for number in range(7)]
    wanted = torch.zeros(41, 41, dtype=torch.float64)
    for number, weight in enumerate(weights):
        along = int(np.ceil(number * (2**-0.5 if abs(angle) == 45 else 1) - 0.5))
        wanted[20 - along * step[0], 20 - along * step[1]] += weight / sum(weights)
    assert torch.allclose(found, wanted, atol=1e-12)
