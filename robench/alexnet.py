"""The errors of AlexNet on ImageNet-C, by which corruption errors are divided.

Published with ImageNet-C; every later mCE uses the same ones. Not here: the scores (`shift`).

References:
  Hendrycks & Dietterich 2019, arXiv:1903.12261, and their repository `hendrycks/robustness`.
"""

IMAGES = 50_000
"""Images behind each count."""

CLEAN_ERROR = 0.43478
"""On ImageNet's validation set: torchvision's `AlexNet_Weights.IMAGENET1K_V1`, 56.522 % top-1."""

_ERRORS = {
    "gaussian_noise": (34764, 41271, 46777, 49069, 49726),
    "shot_noise": (35612, 42554, 46787, 49091, 49573),
    "impulse_noise": (39187, 44904, 47435, 49360, 49774),
    "defocus_blur": (32812, 36601, 42518, 45682, 47357),
    "glass_blur": (32154, 37527, 44403, 45811, 46672),
    "motion_blur": (29215, 35024, 41054, 44875, 46319),
    "zoom_blur": (35004, 38496, 40392, 42099, 43599),
    "snow": (35863, 44196, 43234, 45935, 47476),
    "frost": (30695, 39867, 44395, 44971, 46715),
    "fog": (33737, 38025, 42189, 43630, 47250),
    "brightness": (22570, 24251, 27024, 31083, 36220),
    "contrast": (32274, 38075, 44437, 48880, 49635),
    "elastic_transform": (26298, 35058, 27843, 32038, 40277),
    "pixelate": (26109, 27310, 36864, 43546, 45631),
    "jpeg_compression": (25501, 27359, 28647, 32729, 37389),
    "speckle_noise": (33096, 37220, 45123, 47274, 48634),
    "gaussian_blur": (27366, 35222, 41287, 44932, 47970),
    "spatter": (23598, 31097, 37526, 42066, 45091),
    "saturate": (29671, 32757, 25587, 35417, 41130),
}
"""Wrong answers at severities 1 to 5, by corruption."""


def known() -> frozenset[str]:
    """The corruptions whose errors are known."""
    return frozenset(_ERRORS)


def errors(corruption: str) -> tuple[float, ...]:
    """Top-1 errors at severities 1 to 5.

    Example:
      >>> errors("gaussian_noise")
      (0.69528, 0.82542, 0.93554, 0.98138, 0.99452)
    """
    return tuple(count / IMAGES for count in _ERRORS[corruption])
