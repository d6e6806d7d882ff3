"""The 1,000 classes of ImageNet, the images of its validation set, the 5,000 of them that attacks face, and the
cue-conflict images.

The 5,000 are RobustBench's: with the 50,000 files sorted by `wnid/name`, what `torch.manual_seed(0)`, two int64
draws and `torch.randperm(50000)[:5000]` give; 997 classes occur in it.
"""

import gzip
import hashlib
import importlib.resources
import re
from functools import cache

from robench.data.source import by_hash
from robench.errors import DataError, complaint

_SHA256 = {
    "cue_conflict.txt.gz": "0dc6bca917057f6e8b091a18b768fdb32313ac6202b9d723603fcf56ded22cfd",
    "val_5000.txt.gz": "d4121626d07722a0126c35b1563042e46a546f1a05ce705f2cdc635896d58574",
    "val_classes.txt.gz": "98a8901d9451abefb286c3a7f2ac88321a17d691fa44809acbbf1e7f77187a7d",
    "wnids.txt.gz": "385e0240499426c022b773be1ae4da780f057b89c9694c7f47199f62746b6edd",
}
"""Of the uncompressed lines, joined by newlines, without a final one."""
_ID = re.compile(r"ILSVRC2012_val_[0-9]{8}(?![0-9])")
_WNID = re.compile(r"n[0-9]{8}")


def wnids() -> tuple[str, ...]:
    """The classes, sorted: a label is the rank of its wnid.

    Raises:
      DataError: the shipped list was changed.
    """
    return _lines("wnids.txt.gz")


@cache
def classes_by_wnid() -> dict[str, int]:
    """Class number of each wnid.

    Raises:
      DataError: the shipped list was changed.
    Example:
      >>> classes_by_wnid()["n01440764"], len(classes_by_wnid())
      (0, 1000)
    """
    return {wnid: label for label, wnid in enumerate(wnids())}


def is_wnid(name: str) -> bool:
    """Whether a name has the form of a wnid, of whatever class."""
    return _WNID.fullmatch(name) is not None


@cache
def listed() -> dict[str, int]:
    """Label of each of the 5,000 images by its id, in protocol order.

    Raises:
      DataError: the shipped list was changed.
    Example:
      >>> len(listed()), next(iter(listed().items()))
      (5000, ('ILSVRC2012_val_00015253', 979))
    """
    pairs = (line.split("/") for line in _lines("val_5000.txt.gz"))
    return {name.removesuffix(".JPEG"): classes_by_wnid()[wnid] for wnid, name in pairs}


@cache
def validation() -> dict[str, int]:
    """Label of each of the 50,000 images of the validation set by its id, in the order of SHA-256 of the ids.

    Raises:
      DataError: the shipped list was changed.
    Example:
      >>> len(validation()), next(iter(validation().items()))
      (50000, ('ILSVRC2012_val_00049325', 925))
    """
    labels = {
        f"ILSVRC2012_val_{number:08d}": int(label) for number, label in enumerate(_lines("val_classes.txt.gz"), 1)
    }
    ids = list(labels)
    return {ids[position]: labels[ids[position]] for position in by_hash(ids)}


def cue_conflict() -> tuple[str, ...]:
    """The 1,280 cue-conflict images as published, `<shape>/<shape><n>-<texture><n>.png`, sorted.

    Raises:
      DataError: the shipped list was changed.
    References:
      The folder `stimuli/style-transfer-preprocessed-512` of github.com/rgeirhos/texture-vs-shape, and for one that was
      not in the listing at hand (bear5-bottle1) the tables of trials beside it.
    """
    return _lines("cue_conflict.txt.gz")


def id_of(file: str) -> str | None:
    """The id of a validation image, whatever a reader's file name adds to it; None: it is none.

    Example:
      >>> id_of("ILSVRC2012_val_00000293_n02123159.JPEG")
      'ILSVRC2012_val_00000293'
    """
    found = _ID.match(file)
    return found.group() if found else None


@cache
def _lines(file: str) -> tuple[str, ...]:
    where, advice = f"robench/data/imagenet/{file}", "Install robench again."
    try:
        content = gzip.decompress((importlib.resources.files("robench.data.imagenet") / file).read_bytes())
    except (OSError, EOFError) as error:
        raise DataError(complaint(where, "file", f"unreadable ({error})", "the shipped list", advice)) from error
    found = hashlib.sha256(content).hexdigest()
    if found != _SHA256[file]:
        raise DataError(complaint(where, "sha256", found, _SHA256[file], advice))
    return tuple(content.decode().split("\n"))
