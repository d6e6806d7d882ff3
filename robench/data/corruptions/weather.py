"""Weather: snow, frost, fog, and bright light.

Not here: where the pictures of frost come from (`ice.py`).
"""

import torch
from torch import Tensor

from robench.data.corruptions.ice import Ice, pictures_of
from robench.data.corruptions.levels import enlarge, move, to_bytes
from robench.data.corruptions.plasma import plasma
from robench.randomness import Draws

LUMA = (0.299, 0.587, 0.114)


def snow(
    images: Tensor,
    draws: Draws,
    mean: float,
    spread: float,
    zoom: float,
    threshold: float,
    radius: int,
    sigma: float,
    clarity: float,
) -> Tensor:
    """Flakes that fall, and the same upside down, over a whitened image.

    Args:
      mean, spread: of the normal noise whose peaks are flakes.
      zoom: by which the noise is enlarged.
      threshold: above which noise is a flake.
      radius, sigma: of the motion blur.
      clarity: how much of the image is left unwhitened.
    """
    height, width = images.shape[2:]
    noise = draws.normal("flakes", [1, height, width]).double() * spread + mean
    noise = enlarge(noise, zoom)
    flakes = to_bytes(torch.where(noise < threshold, 0, noise) * 255)
    degrees = draws.uniform("angle", [1])[:, 0].double() * 90 - 135
    layer = move(flakes.double(), radius, sigma, degrees.tolist()).round()
    values = images.double()
    grey = (values * values.new_tensor(LUMA)[:, None, None]).sum(dim=1, keepdim=True)
    whitened = clarity * values + (1 - clarity) * torch.maximum(values, grey * 1.5 + 127.5)
    return to_bytes(whitened + layer + layer.flip(2, 3))


def frost(images: Tensor, draws: Draws, image_weight: float, ice_weight: float, scale: float, *, ice: Ice) -> Tensor:
    """A random part of a random picture of ice, laid over the image.

    Args:
      image_weight, ice_weight: what each counts for.
      scale: at which the pictures are taken; they are taken larger where the image would not fit in.
      ice: whose pictures.
    """
    height, width = images.shape[2:]
    pictures = [picture.to(images.device) for picture in pictures_of(ice, scale, height, width)]
    covers = []
    for choice, down, across in draws.uniform("part", [3]).tolist():
        picture = pictures[int(choice * len(pictures))]
        top, left = int(down * (picture.shape[1] - height)), int(across * (picture.shape[2] - width))
        covers.append(picture[:, top : top + height, left : left + width])
    return to_bytes(image_weight * images.double() + ice_weight * torch.stack(covers).double())


def fog(images: Tensor, draws: Draws, amount: float, decay: float) -> Tensor:
    """Clouds added, and all of it darkened to the range of the image."""
    height, width = images.shape[2:]
    clouds = plasma(draws, 1 << (max(height, width) - 1).bit_length(), decay)[:, None, :height, :width]
    values = images.double()
    brightest = values.amax(dim=(1, 2, 3), keepdim=True)
    return to_bytes((values + 255 * amount * clouds) * (brightest / (brightest + 255 * amount)))


def brightness(images: Tensor, draws: Draws, more: float) -> Tensor:
    """The value of HSV raised by this share of the range: each pixel scaled to its new maximum; black becomes grey."""
    value = images.amax(dim=1, keepdim=True).double()
    raised = (value + 255 * more).clamp(max=255)
    return to_bytes(torch.where(value == 0, raised, images * (raised / value.clamp(min=1))))
