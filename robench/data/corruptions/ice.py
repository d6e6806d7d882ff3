"""Pictures of ice for frost: the published photographs where they are installed, else procedural ones.

The photographs are in the wheel of `imagecorruptions-imaug`, of which nothing else is needed (`pip install
--no-deps imagecorruptions-imaug` is enough). Which of the two were taken is recorded with what they were used for.

Not here: how they are laid over images (`weather.py`).
"""

import importlib.util
import math
from functools import lru_cache
from pathlib import Path
from typing import Literal, get_args

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torch.nn import functional as F

from robench.data.corruptions.plasma import plasma
from robench.errors import DataError, complaint
from robench.randomness import Draws

Ice = Literal["published", "procedural"]
ICE: tuple[Ice, ...] = get_args(Ice)
PUBLISHED = ("frost1.png", "frost2.png", "frost3.png", "frost4.jpg", "frost5.jpg")
"""The published code draws from these five; a sixth is never used."""
_SIDE = 512
_DARK, _LIGHT = (56, 84, 112), (240, 246, 255)


def published_folder() -> Path | None:
    """Where the published photographs lie, or None; nothing is imported."""
    found = importlib.util.find_spec("imagecorruptions")
    for folder in found.submodule_search_locations or () if found is not None else ():
        if all((Path(folder) / "frost" / name).is_file() for name in PUBLISHED):
            return Path(folder) / "frost"
    return None


def default_ice() -> Ice:
    """The published photographs if they are installed."""
    return "procedural" if published_folder() is None else "published"


@lru_cache(maxsize=8)
def pictures_of(ice: Ice, scale: float, height: int, width: int) -> tuple[Tensor, ...]:
    """Pictures of ice that are larger than an image, uint8, shape (3, at least height + 1, at least width + 1).

    Args:
      ice: the published photographs or the procedural pictures.
      scale: at which they are wanted (bilinear); they are taken larger where the image would not fit in.
      height, width: of the image.
    Raises:
      DataError: the photographs are not installed.
    """
    pictures = _published() if ice == "published" else _procedural()
    return tuple(_scaled(picture, scale, height, width) for picture in pictures)


def _scaled(picture: Tensor, scale: float, height: int, width: int) -> Tensor:
    size = picture.shape[1:]
    larger = max((side + 1) / math.floor(length * scale) for side, length in zip((height, width), size, strict=True))
    factor = scale * larger if larger > 1 else scale
    if factor == 1:
        return picture
    wanted = [math.ceil(length * factor) if larger > 1 else round(length * factor) for length in size]
    resized = F.interpolate(picture[None].double(), size=wanted, mode="bilinear", align_corners=False)
    return resized[0].round().to(torch.uint8)


@lru_cache(maxsize=1)
def _published() -> tuple[Tensor, ...]:
    folder = published_folder()
    if folder is None:
        advice = 'Install them, `pip install "robench[frost]"`, or take `procedural` ones.'
        raise DataError(complaint("corruptions", "frost", "not installed", "the published photographs of ice", advice))
    files = [np.asarray(Image.open(folder / name).convert("RGB")) for name in PUBLISHED]
    return tuple(torch.from_numpy(pixels.transpose(2, 0, 1).copy()) for pixels in files)


@lru_cache(maxsize=1)
def _procedural() -> tuple[Tensor, ...]:
    """As many pictures of haze and a web of fine cracks, bluish, about as bright and as rich as the photographs."""
    names = [f"ice-{number}" for number in range(len(PUBLISHED))]
    haze = plasma(Draws.of(0, [f"{name}/haze" for name in names]), _SIDE, 1.6)
    cracks = torch.zeros_like(haze)
    for layer in range(6):
        clouds = plasma(Draws.of(0, [f"{name}/cracks-{layer}" for name in names]), _SIDE, 1.35)
        cracks = torch.maximum(cracks, (1 - (2 * clouds - 1).abs()) ** 24)
    white = (0.45 * haze + 0.65 * cracks).clamp(0, 1)[:, None]
    dark, light = (torch.tensor(colour, dtype=torch.float64)[:, None, None] for colour in (_DARK, _LIGHT))
    return tuple((dark + (light - dark) * white).round().to(torch.uint8))
