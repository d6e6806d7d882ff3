"""Real photographs of ImageNet, which foolbox ships, and folders laid out like its validation set."""

import os
from functools import cache
from pathlib import Path

import numpy as np
from PIL import Image

from robench.bench.photographs import photograph_files
from robench.data.imagenet.listing import listed, wnids


@cache
def photographs() -> dict[str, tuple[Path, int]]:
    """File and class number of each of the 20 photographs, by name."""
    return {path.name: (path, label) for path, label in photograph_files()}


def wnid_folders(root: Path) -> Path:
    """The photographs as `<wnid>/<name>`: foreign to the list, in the layout of ImageNet."""
    for name, (path, label) in photographs().items():
        (root / wnids()[label]).mkdir(parents=True, exist_ok=True)
        (root / wnids()[label] / name).symlink_to(path)
    return root


def listed_images(root: Path, *, count: int = 5000, flat: bool = False, suffix: bool = False) -> Path:
    """The first images of the list, all of them hard links to one small picture."""
    root.mkdir(parents=True)
    picture = root / ".picture.JPEG"
    Image.fromarray(np.random.default_rng(0).integers(0, 256, (230, 240, 3), dtype=np.uint8)).save(picture)
    for example, label in list(listed().items())[:count]:
        wnid = wnids()[label]
        folder = root if flat else root / wnid
        folder.mkdir(exist_ok=True)
        os.link(picture, folder / f"{example}{f'_{wnid}' if suffix else ''}.JPEG")
    return root
