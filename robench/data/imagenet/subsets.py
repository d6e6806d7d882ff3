"""Lists of classes of ImageNet-1k to which data sets are limited, from timm's package data.

Not here: how a score is taken among them (`robench.unattacked`).
"""

import hashlib
import importlib.resources
from functools import cache

from robench.data.imagenet.listing import classes_by_wnid
from robench.errors import DataError, complaint, did_you_mean

SUBSETS = {
    "imagenet-a": ("imagenet_a_synsets.txt", "f6aa4b23244554d9b864fd715ae20048f6a9686388911b2dfbf1ada01bf0f520"),
    "imagenet-r": ("imagenet_r_synsets.txt", "e19a59d84e3746fafd34d2ccf6ae604a44e9a0500a596f343c878a89e30ce624"),
}
"""File of timm and SHA-256 of its wnids, sorted and joined by newlines."""


@cache
def subset(name: str) -> tuple[int, ...]:
    """Class numbers of a list, rising.

    Raises:
      DataError: there is no such list, or timm's differs from the one that was pinned.
    Example:
      >>> len(subset("imagenet-a")), subset("imagenet-a")[:3]
      (200, (6, 11, 13))
    """
    if name not in SUBSETS:
        raise DataError(complaint("robench", "classes", f"`{name}`", "a known list", did_you_mean(name, SUBSETS)))
    file, expected = SUBSETS[name]
    names = (importlib.resources.files("timm") / "data" / "_info" / file).read_text().split()
    found = hashlib.sha256("\n".join(sorted(names)).encode()).hexdigest()
    if found != expected:
        raise DataError(complaint(f"timm/data/_info/{file}", "sha256", found, expected, "Install another timm."))
    return tuple(sorted(classes_by_wnid()[wnid] for wnid in names))
