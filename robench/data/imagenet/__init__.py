"""ImageNet's validation set, in any layout.

Images are found by name: in sub-folders named by wnid, or flat. Not here: where it lies (`locations.py`).
"""

import re
from collections.abc import Sequence
from pathlib import Path

from robench.data.decoding import Decoder
from robench.data.files import FileExample, FileSource
from robench.data.folder import contents_of, in_order_of_hash, open_folder
from robench.data.imagenet.labels import LABELS, read_labels
from robench.data.imagenet.listing import id_of, listed, wnids
from robench.errors import DataError, complaint, first_few

__all__ = ["open_imagenet"]

_PLACES = ("ILSVRC/Data/CLS-LOC/val", "Data/CLS-LOC/val", "val")
"""Where the validation set lies in what people download, relative to the root they name."""
_WNID = re.compile(r"n[0-9]{8}")


def open_imagenet(root: Path, decoder: Decoder, *, limit: int | None, any_classes: bool) -> FileSource:
    """The examples of ImageNet's validation set, or of a folder laid out like it.

    - Images named `ILSVRC2012_val_*`: the 5,000 of the list, in its order, with its labels.
    - Other images in wnid folders: all of them, by the hash of their ids, labels by wnid.
    - Other images side by side with a `labels.txt`: the same, labels from there.

    Args:
      root: the folder with the sub-folders or images, or one that contains `val`; a training set beside `val`
        is not looked at.
      decoder: how files become images.
      limit: how many examples are wanted; of an incomplete set the listed images that are there will then do.
        None: all 5,000 must be there.
      any_classes: whether sub-folders may have other names than wnids; they are then classes of their own.
    Raises:
      DataError: it is none of these, or images, wnids or labels are missing or unknown.
    """
    if not root.is_dir():
        found = "a file" if root.is_file() else "missing"
        raise DataError(complaint(str(root), "data", found, "a folder of ImageNet's validation images"))
    root = next((root / place for place in _PLACES if (root / place).is_dir()), root)
    folders, images = contents_of(root)
    if any(_WNID.fullmatch(name) for name in folders):
        files = images + _in_wnid_folders(root, folders)
    elif folders and any_classes and not _is_flat(root, images):
        return open_folder(root, decoder)
    else:
        files = images
    if not files:
        found = f"without images (its sub-folders: {first_few(folders)})" if folders else "empty"
        expected = "images in sub-folders named by wnid (such as n01440764), or side by side"
        raise DataError(complaint(str(root), "data", found, expected, "Name the folder that contains `val`."))
    if any(id_of(Path(file).name) for file in files):
        return _listed_images(root, files, decoder, limit)
    return _foreign_images(root, files, decoder)


def _is_flat(root: Path, images: Sequence[str]) -> bool:
    """Whether the images of ImageNet lie side by side, so that sub-folders are no classes."""
    return any(id_of(name) for name in images) or (root / LABELS).exists()


def _in_wnid_folders(root: Path, folders: Sequence[str]) -> list[str]:
    known = set(wnids())
    unknown = [name for name in folders if name not in known and name != "lost+found"]
    if unknown:
        found = f"{len(unknown)} unknown ({first_few(unknown)})"
        advice = "Move what is no class of ImageNet-1k elsewhere."
        raise DataError(complaint(str(root), "sub-folders", found, "wnids of the 1,000 classes", advice))
    return [f"{name}/{file}" for name in folders if name in known for file in contents_of(root / name)[1]]


def _listed_images(root: Path, files: Sequence[str], decoder: Decoder, limit: int | None) -> FileSource:
    """The images of the list that are there; the whole list if it begins with as many as are wanted."""
    labels, found = listed(), _by_id(root, files)
    whole = [FileExample(name, label, found.get(name, f"{name}.JPEG")) for name, label in labels.items()]
    missing = [example for example in whole if example.id not in found]
    there = [example for example in whole if example.id in found]
    if missing and (limit is None or not there):
        what = f"{len(missing)} of {len(whole)} missing ({first_few([example.id for example in missing])})"
        expected = "all images of the protocol's list"
        advice = "Complete the folder, or give `limit` to run on those that are there, marked unofficial."
        raise DataError(complaint(str(root), "images", what, expected, advice if there else ""))
    wanted = whole[:limit]
    examples = whole if all(example.id in found for example in wanted) else there
    return FileSource("imagenet", root, examples, wnids(), decoder, missing)


def _by_id(root: Path, files: Sequence[str]) -> dict[str, str]:
    found: dict[str, str] = {}
    for file in files:
        name = id_of(Path(file).name)
        if name is not None and found.setdefault(name, file) != file:
            twice = f"there twice ({found[name]} and {file})"
            raise DataError(complaint(str(root), name, twice, "one file for each image", "Remove one of them."))
    return found


def _foreign_images(root: Path, files: Sequence[str], decoder: Decoder) -> FileSource:
    flat = [file for file in files if "/" not in file]
    if len(flat) == len(files):
        labels = read_labels(root, flat)
    elif flat:
        found = f"{len(flat)} beside the sub-folders ({first_few(flat)})"
        raise DataError(complaint(str(root), "images", found, "all images in sub-folders, or none"))
    else:
        rank = {wnid: label for label, wnid in enumerate(wnids())}
        labels = {file: rank[file.split("/")[0]] for file in files}
    examples = [FileExample(file, label, file) for file, label in labels.items()]
    return FileSource("folder", root, in_order_of_hash(examples, where=str(root)), wnids(), decoder)
