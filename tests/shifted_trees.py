"""Small copies of the layouts in which ImageNet's shifted sets are published, made of a few generated pictures."""

import os
import shutil
import tarfile
from collections.abc import Iterable, Sequence
from pathlib import Path

import numpy as np
from PIL import Image

from robench.data.categories import categories
from robench.data.imagenet.listing import validation, wnids
from robench.protocol import Protocol, ShiftSpec
from robench.registry import load_protocol


def picture(path: Path, seed: int, size: tuple[int, int] = (224, 224)) -> Path:
    """A coarse random picture, as JPEG or PNG by its suffix."""
    path.parent.mkdir(parents=True, exist_ok=True)
    small = np.random.default_rng(seed).integers(0, 256, (8, 8, 3), dtype=np.uint8)
    Image.fromarray(small).resize(size, Image.Resampling.NEAREST).save(path)
    return path


def pictures(folder: Path, count: int = 8, size: tuple[int, int] = (224, 224), suffix: str = ".JPEG") -> list[Path]:
    """So many pictures, to be linked to."""
    return [picture(folder / f"{seed}{suffix}", seed, size) for seed in range(count)]


def linked(root: Path, names: Iterable[str], originals: Sequence[Path]) -> Path:
    """Files of these names, each a hard link to one of the pictures."""
    for number, name in enumerate(names):
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        os.link(originals[number % len(originals)], path)
    return root


def wnid_tree(root: Path, originals: Sequence[Path], labels: Iterable[int], each: int = 1, suffix: str = "jpg") -> Path:
    """`<wnid>/<number>.<suffix>` for some classes."""
    names = (f"{wnids()[label]}/{number}.{suffix}" for label in labels for number in range(each))
    return linked(root, names, originals)


def numbered_tree(root: Path, originals: Sequence[Path], labels: Iterable[int], each: int = 1) -> Path:
    """`<class number>/<number>.jpeg`, as ImageNet-V2 has it."""
    return linked(root, (f"{label}/{number}.jpeg" for label in labels for number in range(each)), originals)


def validation_names(count: int) -> list[str]:
    """`<wnid>/<name>.JPEG` of the first validation images in protocol order."""
    return [f"{wnids()[label]}/{example}.JPEG" for example, label in list(validation().items())[:count]]


def cells_tree(root: Path, originals: Sequence[Path], names: Sequence[str], shift: ShiftSpec | None = None) -> Path:
    """`<corruption>/<severity>/<wnid>/<file>` for every cell of a protocol, by default of ImageNet-C."""
    for place, (corruption, severity) in enumerate((shift or shift_of("imagenet-c")).cells):
        rotated = [*originals[place % len(originals) :], *originals[: place % len(originals)]]
        linked(root / corruption / str(severity), names, rotated)
    return root


def cue_tree(root: Path, originals: Sequence[Path], each: int = 1) -> Path:
    """`<shape>/<shape>1-<texture>1.png`; each shape in its own texture and in the next ones."""
    kinds = list(categories("sixteen"))
    names = [
        f"{shape}/{shape}{number + 1}-{kinds[(place + number) % 16]}1.png"
        for place, shape in enumerate(kinds)
        for number in range(each)
    ]
    return linked(root, names, originals)


def packed(root: Path, archive: Path, *, top: str = "", mode: str = "w") -> Path:
    """A folder as a tar, below a folder `top`."""
    with tarfile.open(archive, mode, dereference=True) as tar:  # type: ignore[call-overload]  # a mode of text
        for path in sorted(root.rglob("*")):
            if path.is_file():
                tar.add(path, f"{top}/{path.relative_to(root)}".lstrip("/"))
    return archive


def zipped(root: Path, archive: Path) -> Path:
    """A folder as a zip, below a folder of its own name."""
    return Path(shutil.make_archive(str(archive.with_suffix("")), "zip", root.parent, root.name))


def shift_of(protocol: str | Protocol) -> ShiftSpec:
    """What a protocol reads off."""
    shift = load_protocol(protocol).shift
    assert shift is not None
    return shift
