"""The corruptions of ImageNet-C, for one's own images: 15, and 4 extra ones, in five severities.

The severities are the published ones, for photographs of 224 pixels and, as another set, for images of 64.
Random numbers belong to (seed, id of the image, corruption, severity), so that bytes depend on neither order,
batch, processes nor device. What comes out is made by this code: for the released ImageNet-C, read its files.

Not here: folders of corrupted files (`tree.py`), and scores.

References:
  Hendrycks & Dietterich 2019, arXiv:1903.12261, and the code published with it. Deviates: random streams;
  docs/decisions/0012-corruptions.md has the rest.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Literal, get_args

import torch
from torch import Tensor

from robench.data.corruptions.blur import defocus_blur, glass_blur, motion_blur, zoom_blur
from robench.data.corruptions.digital import contrast, elastic_transform, jpeg_compression, pixelate
from robench.data.corruptions.extra import gaussian_blur, saturate, spatter, speckle_noise
from robench.data.corruptions.ice import ICE, Ice, default_ice
from robench.data.corruptions.noise import gaussian_noise, impulse_noise, shot_noise
from robench.data.corruptions.weather import brightness, fog, frost, snow
from robench.errors import DataError, complaint, did_you_mean
from robench.randomness import Draws

__all__ = [
    "CATALOGUE",
    "COMMON",
    "EXTRA",
    "REVISION",
    "SEVERITIES",
    "Corruption",
    "Ice",
    "Scale",
    "corrupt",
    "default_ice",
    "draws_of",
]

REVISION = 1
"""Raised when a byte of any corrupted image changes."""
SEVERITIES = (1, 2, 3, 4, 5)
SMALLEST = 32
"""Shortest side of an image, in pixels: the published settings mean nothing below."""
Scale = Literal["imagenet", "tiny"]
"""Which published settings: for photographs of 224 pixels, or for images of 64."""
_AT_A_TIME, _AT_A_TIME_ON_GPU = 4 * 224 * 224, 128 * 224 * 224
"""Pixels that are corrupted together: few on a CPU, so that they stay in its cache."""

Settings = tuple[tuple[float, ...], ...]


@dataclass(frozen=True)
class Corruption:
    """One corruption.

    Attributes:
      family: `noise`, `blur`, `weather`, `digital`, as the paper groups them, or `extra`.
      apply: takes images (uint8, shape (N, 3, H, W)), their draws, and the settings; returns uint8 of that shape.
      imagenet, tiny: settings for severities 1 to 5 on either scale, in the order of the function's arguments.
    """

    family: str
    apply: Callable[..., Tensor]
    imagenet: Settings
    tiny: Settings


def _each(*values: float) -> Settings:
    return tuple((value,) for value in values)


CATALOGUE: dict[str, Corruption] = {
    "gaussian_noise": Corruption(
        "noise", gaussian_noise, _each(0.08, 0.12, 0.18, 0.26, 0.38), _each(0.04, 0.08, 0.12, 0.15, 0.18)
    ),
    "shot_noise": Corruption("noise", shot_noise, _each(60, 25, 12, 5, 3), _each(250, 100, 50, 30, 15)),
    "impulse_noise": Corruption(
        "noise", impulse_noise, _each(0.03, 0.06, 0.09, 0.17, 0.27), _each(0.01, 0.02, 0.05, 0.08, 0.14)
    ),
    "defocus_blur": Corruption(
        "blur",
        defocus_blur,
        ((3, 0.1), (4, 0.5), (6, 0.5), (8, 0.5), (10, 0.5)),
        ((0.5, 0.6), (1, 0.1), (1.5, 0.1), (2.5, 0.01), (3, 0.1)),
    ),
    "glass_blur": Corruption(
        "blur",
        glass_blur,
        ((0.7, 1, 2), (0.9, 2, 1), (1, 2, 3), (1.1, 3, 2), (1.5, 4, 2)),
        ((0.1, 1, 1), (0.5, 1, 1), (0.6, 1, 2), (0.7, 2, 1), (0.9, 2, 2)),
    ),
    "motion_blur": Corruption(
        "blur",
        motion_blur,
        ((10, 3), (15, 5), (15, 8), (15, 12), (20, 15)),
        ((10, 1), (10, 1.5), (10, 2), (10, 2.5), (12, 3)),
    ),
    "zoom_blur": Corruption(
        "blur",
        zoom_blur,
        ((1.11, 0.01), (1.16, 0.01), (1.21, 0.02), (1.26, 0.02), (1.31, 0.03)),
        ((1.06, 0.01), (1.11, 0.01), (1.16, 0.01), (1.21, 0.01), (1.26, 0.01)),
    ),
    "snow": Corruption(
        "weather",
        snow,
        (
            (0.1, 0.3, 3, 0.5, 10, 4, 0.8),
            (0.2, 0.3, 2, 0.5, 12, 4, 0.7),
            (0.55, 0.3, 4, 0.9, 12, 8, 0.7),
            (0.55, 0.3, 4.5, 0.85, 12, 8, 0.65),
            (0.55, 0.3, 2.5, 0.85, 12, 12, 0.55),
        ),
        (
            (0.1, 0.2, 1, 0.6, 8, 3, 0.8),
            (0.1, 0.2, 1, 0.5, 10, 4, 0.8),
            (0.15, 0.3, 1.75, 0.55, 10, 4, 0.7),
            (0.25, 0.3, 2.25, 0.6, 12, 6, 0.65),
            (0.3, 0.3, 1.25, 0.65, 14, 12, 0.6),
        ),
    ),
    "frost": Corruption(
        "weather",
        frost,
        ((1, 0.4, 1), (0.8, 0.6, 1), (0.7, 0.7, 1), (0.65, 0.7, 1), (0.6, 0.75, 1)),
        ((1, 0.3, 0.3), (0.9, 0.4, 0.3), (0.8, 0.45, 0.3), (0.75, 0.5, 0.3), (0.7, 0.55, 0.3)),
    ),
    "fog": Corruption(
        "weather",
        fog,
        ((1.5, 2), (2, 2), (2.5, 1.7), (2.5, 1.5), (3, 1.4)),
        ((0.4, 3), (0.7, 3), (1, 2.5), (1.5, 2), (2, 1.75)),
    ),
    "brightness": Corruption("weather", brightness, _each(0.1, 0.2, 0.3, 0.4, 0.5), _each(0.1, 0.2, 0.3, 0.4, 0.5)),
    "contrast": Corruption("digital", contrast, _each(0.4, 0.3, 0.2, 0.1, 0.05), _each(0.4, 0.3, 0.2, 0.1, 0.05)),
    "elastic_transform": Corruption(
        "digital",
        elastic_transform,
        # 244 is published; it was to be 224.
        tuple(
            (244 * alpha, 244 * sigma, 244 * jitter)
            for alpha, sigma, jitter in (
                (2, 0.7, 0.1),
                (2, 0.08, 0.2),
                (0.05, 0.01, 0.02),
                (0.07, 0.01, 0.02),
                (0.12, 0.01, 0.02),
            )
        ),
        tuple(
            (64 * alpha, 64 * sigma, 64 * jitter)
            for alpha, sigma, jitter in (
                (0, 0, 0.08),
                (0.05, 0.3, 0.06),
                (0.1, 0.08, 0.06),
                (0.1, 0.03, 0.03),
                (0.16, 0.03, 0.02),
            )
        ),
    ),
    "pixelate": Corruption("digital", pixelate, _each(0.6, 0.5, 0.4, 0.3, 0.25), _each(0.9, 0.8, 0.7, 0.6, 0.5)),
    "jpeg_compression": Corruption("digital", jpeg_compression, _each(25, 18, 15, 10, 7), _each(65, 58, 50, 40, 25)),
    "speckle_noise": Corruption(
        "extra", speckle_noise, _each(0.15, 0.2, 0.35, 0.45, 0.6), _each(0.15, 0.2, 0.25, 0.3, 0.35)
    ),
    "gaussian_blur": Corruption("extra", gaussian_blur, _each(1, 2, 3, 4, 6), _each(0.5, 0.75, 1, 1.25, 1.5)),
    "spatter": Corruption(
        "extra",
        spatter,
        (
            (0.65, 0.3, 4, 0.69, 0.6, 0),
            (0.65, 0.3, 3, 0.68, 0.6, 0),
            (0.65, 0.3, 2, 0.68, 0.5, 0),
            (0.65, 0.3, 1, 0.65, 1.5, 1),
            (0.67, 0.4, 1, 0.65, 1.5, 1),
        ),
        (
            (0.62, 0.1, 0.7, 0.7, 0.6, 0),
            (0.65, 0.1, 0.8, 0.7, 0.6, 0),
            (0.65, 0.3, 1, 0.69, 0.6, 0),
            (0.65, 0.1, 0.7, 0.68, 0.6, 1),
            (0.65, 0.1, 0.5, 0.67, 0.6, 1),
        ),
    ),
    "saturate": Corruption(
        "extra",
        saturate,
        ((0.3, 0), (0.1, 0), (2, 0), (5, 0.1), (20, 0.2)),
        ((0.3, 0), (0.1, 0), (2, 0), (5, 0.1), (30, 0.2)),
    ),
}
"""Corruptions by name, in the published order."""

COMMON = tuple(name for name, each in CATALOGUE.items() if each.family != "extra")
"""The fifteen that are scored."""
EXTRA = tuple(name for name, each in CATALOGUE.items() if each.family == "extra")
"""Four more, published to tune on."""


def corrupt(
    images: Tensor,
    ids: Sequence[str],
    name: str,
    severity: int,
    *,
    seed: int = 0,
    scale: Scale = "imagenet",
    ice: Ice = "procedural",
) -> Tensor:
    """Corrupt images.

    Args:
      images: uint8, shape (N, 3, H, W), at least 32 pixels a side, on any device.
      ids: a name for each image, by which its random numbers are drawn.
      name: one of `CATALOGUE`.
      severity: from 1 to 5.
      seed: another seed draws other numbers.
      scale: whose settings: `imagenet` for photographs of some 224 pixels, `tiny` for some 64.
      ice: what frost is made of; see `robench.data.corruptions.ice`.
    Returns:
      uint8, same shape and device.
    Raises:
      DataError: an argument is none of these.
    Example:
      >>> corrupt(torch.full((1, 3, 64, 64), 100, dtype=torch.uint8), ["grey"], "contrast", 3)[0, 0, 0, 0].item()
      100
    """
    check_order([name], [severity], scale=scale, ice=ice)
    _check_images(images, ids)
    if not len(images):
        return images.clone()
    corruption = CATALOGUE[name]
    settings = (corruption.imagenet if scale == "imagenet" else corruption.tiny)[severity - 1]
    apply = partial(corruption.apply, ice=ice) if name == "frost" else corruption.apply
    at_a_time = _AT_A_TIME if images.device.type == "cpu" else _AT_A_TIME_ON_GPU
    together = max(1, at_a_time // images[0, 0].numel())
    parts = [
        apply(part, draws_of(ids[start : start + together], name, severity, seed, part.device), *settings)
        for start, part in zip(range(0, len(images), together), torch.split(images, together), strict=True)
    ]
    return torch.cat(parts)


def _check_images(images: Tensor, ids: Sequence[str]) -> None:
    if not (isinstance(images, Tensor) and images.dtype == torch.uint8 and images.ndim == 4 and images.shape[1] == 3):
        is_tensor = isinstance(images, Tensor)
        found = f"{images.dtype} of shape {tuple(images.shape)}" if is_tensor else type(images).__name__
        raise DataError(complaint("corrupt", "images", found, "torch.uint8 of shape (N, 3, H, W)"))
    if min(images.shape[2:]) < SMALLEST:
        found = f"{images.shape[3]}x{images.shape[2]} pixels"
        raise DataError(complaint("corrupt", "images", found, f"at least {SMALLEST} pixels a side"))
    if len(ids) != len(images):
        raise DataError(complaint("corrupt", "ids", f"{len(ids)} names", f"one for each of {len(images)} images"))


def draws_of(ids: Sequence[str], name: str, severity: int, seed: int = 0, device: torch.device | str = "cpu") -> Draws:
    """The random numbers of these images under one corruption and severity."""
    return Draws.of(seed, [f"{name}/{severity}/{example}" for example in ids], device)


def check_order(
    names: Sequence[str], severities: Sequence[int], *, scale: str, ice: str, where: str = "corrupt"
) -> None:
    """Whether there are such corruptions.

    Raises:
      DataError: a name, severity, scale or kind of ice is unknown.
    """
    for name in names:
        if name not in CATALOGUE:
            advice = did_you_mean(name, CATALOGUE)
            raise DataError(complaint(where, "corruption", f"`{name}`", "the name of a corruption", advice))
    for severity in severities:
        if severity not in SEVERITIES or isinstance(severity, bool):
            raise DataError(complaint(where, "severity", repr(severity), "a whole number from 1 to 5"))
    if scale not in get_args(Scale):
        raise DataError(complaint(where, "scale", f"`{scale}`", "`imagenet` or `tiny`"))
    if ice not in ICE:
        raise DataError(complaint(where, "ice", f"`{ice}`", "`published` or `procedural`"))
