"""Each corruption beside the package that is taken for the published one, both fed with the same random numbers."""

import math
from typing import Any

import numpy as np
import pytest
import scipy.ndimage
import scipy.stats
import torch
from numpy.typing import NDArray
from PIL import Image

from robench.bench.photographs import photographs
from robench.data.corruptions import CATALOGUE, corrupt, draws_of
from robench.data.corruptions.ice import published_folder
from robench.randomness import Draws

reference = pytest.importorskip(
    "imagecorruptions", reason="the reference, imagecorruptions-imaug, is not installed", exc_type=ImportError
)
theirs = pytest.importorskip("imagecorruptions.corruptions", exc_type=ImportError)
cv2 = pytest.importorskip("cv2", exc_type=ImportError)

Array = NDArray[Any]
ID = "a photograph"
FAITHFUL = [
    "gaussian_noise",
    "shot_noise",
    "defocus_blur",
    "motion_blur",
    "zoom_blur",
    "fog",
    "brightness",
    "contrast",
    "pixelate",
    "jpeg_compression",
    "speckle_noise",
    "gaussian_blur",
    "spatter",
    "saturate",
]
"""The fourteen that are the published ones there, number by number."""


@pytest.fixture(scope="module", params=[0, 7])
def image(request: pytest.FixtureRequest) -> torch.Tensor:
    """One photograph, uint8, shape (3, 224, 224)."""
    return (photographs()[0][request.param] * 255).round().to(torch.uint8)


class Feed:
    """The random numbers of one image, in the form that NumPy would give them."""

    def __init__(self, draws: Draws, normals: str) -> None:
        self._draws, self._normals = draws, normals
        self._used = 0

    def normal(self, loc: float = 0.0, scale: float = 1.0, size: tuple[int, ...] = ()) -> Array:
        planes = self._draws.normal(self._normals, (size[2] if len(size) == 3 else 1, *size[:2]))[0]
        return loc + scale * planes.permute(1, 2, 0).reshape(size).double().numpy()

    def uniform(self, low: float, high: float, size: tuple[int, ...] | None = None) -> Any:
        if size is None:
            return low + (high - low) * float(self._draws.uniform("angle", [1]))
        count = math.prod(size)
        plane = self._draws.uniform("plasma", [256 * 256])[0].double().numpy()
        values = plane[self._used : self._used + count].reshape(size)
        self._used += count
        return low + (high - low) * values

    def poisson(self, expected: Array) -> Array:
        words = self._draws.bits("photons", expected.size)[0].reshape(3, *expected.shape[:2]).permute(1, 2, 0)
        levels, place = np.unique(expected, return_inverse=True)
        uniform = (words.double().numpy() + 0.5) / 2**32
        counts = np.zeros(expected.shape)
        for number, level in enumerate(levels):
            here = place.reshape(expected.shape) == number
            counts[here] = scipy.stats.poisson.ppf(uniform[here], level)
        return counts


def _both(
    image: torch.Tensor, name: str, severity: int, monkeypatch: pytest.MonkeyPatch, **more: Any
) -> tuple[Array, Array]:
    """Ours and the reference's, int64, shape (H, W, 3)."""
    ours = corrupt(image[None], [ID], name, severity, **more)[0].permute(1, 2, 0).long().numpy()
    feed = Feed(draws_of([ID], name, severity), {"snow": "flakes", "spatter": "drops"}.get(name, "noise"))
    for function in ("normal", "uniform", "poisson"):
        monkeypatch.setattr(np.random, function, getattr(feed, function))
    pixels = np.ascontiguousarray(image.permute(1, 2, 0).numpy())
    return ours, reference.corrupt(pixels, corruption_name=name, severity=severity).astype(np.int64)


def _shorts(draws: Draws, stream: str, count: int) -> Array:
    """The lower and the upper half of each word in turn."""
    return draws.bits(stream, (count + 1) // 2)[0].numpy().astype("<u4").view("<u2")[:count].astype(np.int64)


def _agree(ours: Array, other: Array) -> float:
    """Share of the values that are at most one grey level apart."""
    return float((abs(ours - other) <= 1).mean())


@pytest.mark.parametrize("severity", [1, 2, 3, 4, 5])
@pytest.mark.parametrize("name", FAITHFUL)
def test_the_faithful_ones_are_the_references(
    name: str, severity: int, image: torch.Tensor, monkeypatch: pytest.MonkeyPatch
) -> None:
    ours, other = _both(image, name, severity, monkeypatch)
    assert _agree(ours, other) >= 0.995


@pytest.mark.parametrize("severity", [1, 3, 5])
def test_impulse_noise_is_the_references(severity: int, image: torch.Tensor, monkeypatch: pytest.MonkeyPatch) -> None:
    """scikit-image asks a generator of its own: first which values are lost, then to what."""
    numbers = _shorts(draws_of([ID], "impulse_noise", severity), "impulse", image.numel())
    pixels = numbers.reshape(image.shape).transpose(1, 2, 0)
    answers = iter([(pixels // 2 + 0.5) / 2**15, 1 - pixels % 2])

    class Generator:
        random = staticmethod(lambda shape: next(answers))

    monkeypatch.setattr(np.random, "default_rng", lambda seed=None: Generator())
    ours, other = _both(image, "impulse_noise", severity, monkeypatch)
    assert np.array_equal(ours, other)


@pytest.mark.parametrize("severity", [1, 2, 3, 4, 5])
def test_glass_blur_is_the_references(severity: int, image: torch.Tensor, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its loop is run uncompiled, since compiled it seeds itself."""
    scan = theirs._shuffle_pixels_njit_glass_blur.py_func
    monkeypatch.setattr(theirs, "_shuffle_pixels_njit_glass_blur", scan)
    numbers = iter(_shorts(draws_of([ID], "glass_blur", severity), "glass", 3 * 222 * 222).tolist())

    def randint(low: int, high: int, size: tuple[int]) -> tuple[int, int]:
        cell = int(next(numbers) / 2**16 * (high - low) ** 2)
        return low + cell % (high - low), low + cell // (high - low)

    monkeypatch.setattr(np.random, "randint", randint)
    monkeypatch.setattr(np.random, "seed", lambda seed: None)
    ours, other = _both(image, "glass_blur", severity, monkeypatch)
    assert _agree(ours, other) >= 0.995


@pytest.mark.parametrize("severity", [1, 2, 3, 4, 5])
def test_snow_is_the_references_once_its_flakes_are_as_published(
    severity: int, image: torch.Tensor, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Published, the flakes have the size of the image and are cut off to bytes before they are moved."""
    zoom, move = theirs.clipped_zoom, theirs._motion_blur
    monkeypatch.setattr(theirs, "clipped_zoom", lambda layer, factor: zoom(layer, factor)[:224, :224])
    monkeypatch.setattr(theirs, "_motion_blur", lambda layer, **how: move(np.floor(layer * 255) / 255, **how))
    ours, other = _both(image, "snow", severity, monkeypatch)
    assert _agree(ours, other) >= 0.995


@pytest.mark.skipif(published_folder() is None, reason="the photographs of ice are not installed")
@pytest.mark.parametrize("severity", [1, 2, 3, 4, 5])
def test_frost_is_the_references_on_pictures_of_one_size(
    severity: int, image: torch.Tensor, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The reference enlarges its pictures by a tenth, which is not published: here it may not."""
    choice, down, across = draws_of([ID], "frost", severity).uniform("part", [3])[0].tolist()
    answers = iter([(choice, 5), (down, None), (across, None)])

    def randint(low: int, high: int | None = None) -> int:
        share, count = next(answers)
        return int(share * (count or high or low))

    monkeypatch.setattr(np.random, "randint", randint)
    monkeypatch.setattr(cv2, "resize", lambda picture, dsize, interpolation: picture)
    ours, other = _both(image, "frost", severity, monkeypatch, ice="published")
    assert _agree(ours, other) >= 0.995


def _published_elastic(image: torch.Tensor, severity: int, example: str = ID) -> Array:
    """The published elastic transform by OpenCV and SciPy, as float, shape (224, 224, 3)."""
    alpha, sigma, jitter = CATALOGUE["elastic_transform"].imagenet[severity - 1]
    draws = draws_of([example], "elastic_transform", severity)
    pixels = image.permute(1, 2, 0).numpy().astype(np.float32) / 255
    points = np.array([[186, 186], [186, 38], [38, 38]], dtype=np.float32)  # 112 and a third of 224 to either side
    moved = points + jitter * (2 * draws.uniform("corners", [3, 2])[0].numpy() - 1)
    matrix = cv2.getAffineTransform(points, moved.astype(np.float32))
    warped = cv2.warpAffine(pixels, matrix, (224, 224), borderMode=cv2.BORDER_REFLECT_101)
    noise = 2 * (_shorts(draws, "warp", 2 * 224 * 224).reshape(2, 224, 224) + 0.5) / 2**16 - 1
    x, y = (alpha * scipy.ndimage.gaussian_filter(field, sigma, mode="reflect", truncate=3) for field in noise)
    across, down = np.meshgrid(np.arange(224), np.arange(224))
    channels = [
        scipy.ndimage.map_coordinates(warped[..., channel], (down + y, across + x), order=1, mode="reflect")
        for channel in range(3)
    ]
    stacked: Array = np.clip(np.stack(channels, axis=2), 0, 1) * 255
    return stacked


@pytest.mark.parametrize("severity", [1, 2, 3, 4, 5])
def test_the_elastic_transform_is_the_published_one(severity: int, image: torch.Tensor) -> None:
    ours = corrupt(image[None], [ID], "elastic_transform", severity)[0].permute(1, 2, 0).long().numpy()
    assert _agree(ours, _published_elastic(image, severity).astype(np.int64)) >= 0.995


@pytest.fixture(scope="module")
def astronaut() -> torch.Tensor:
    """scikit-image's photograph, uint8, shape (3, 224, 224)."""
    image = Image.fromarray(pytest.importorskip("skimage.data").astronaut()).resize((224, 224))
    return torch.from_numpy(np.asarray(image).transpose(2, 0, 1).copy())


def _changes(image: torch.Tensor, severity: int, count: int) -> torch.Tensor:
    """Mean change of an image by elastic transforms under so many names, float64."""
    images, ids = image.expand(count, -1, -1, -1), [f"{number}" for number in range(count)]
    return (corrupt(images, ids, "elastic_transform", severity).double() - images).abs().mean(dim=(1, 2, 3))


@pytest.mark.parametrize("severity", [1, 2, 3, 4, 5])
def test_elastic_transforms_change_an_image_as_much_as_the_published_one(
    severity: int, astronaut: torch.Tensor
) -> None:
    """Draw by draw; over the same draws the means are then as close."""
    pixels = astronaut.permute(1, 2, 0).numpy().astype(np.int64)
    for number, change in enumerate(_changes(astronaut, severity, 6).tolist()):
        theirs = abs(_published_elastic(astronaut, severity, f"{number}").astype(np.int64) - pixels).mean()
        assert change == pytest.approx(theirs, rel=0.01)


def test_elastic_transforms_move_as_much_as_the_published_code_once_did(astronaut: torch.Tensor) -> None:
    """The published code was run once for each severity; one draw is about a standard deviation from the mean."""
    published = [59, 62, 26, 26, 26]
    found = [_changes(astronaut, severity, 40) for severity in (1, 2, 3, 4, 5)]
    assert abs(sum(float(each.mean()) for each in found) / sum(published) - 1) < 0.05
    for each, once in zip(found, published, strict=True):
        assert abs(float(each.mean()) - once) < float(each.std())
