"""ImageNet's validation set, in any layout.

Images are found by name: in sub-folders named by wnid, or flat, in a folder or in the tar that was published. Not here:
where it lies (`locations.py`).
"""

from collections.abc import Sequence
from pathlib import Path

from robench.data.decoding import Decoder
from robench.data.files import FileExample, FileSource
from robench.data.folder import in_order_of_hash, open_folder
from robench.data.imagenet.columns import classes_of
from robench.data.imagenet.labels import LABELS, read_labels
from robench.data.imagenet.listing import classes_by_wnid, id_of, is_wnid, listed, validation, wnids
from robench.data.imagenet.samples import class_numbers
from robench.data.trees import FolderTree, SubTree, Tree, is_folder, open_tree
from robench.errors import DataError, complaint, first_few

__all__ = ["open_imagenet", "open_validation"]

_PLACES = ("ILSVRC/Data/CLS-LOC/val", "Data/CLS-LOC/val", "val")
"""Where the validation set lies in what people download, relative to the root they name."""


def open_imagenet(root: Path, decoder: Decoder, *, limit: int | None, any_classes: bool) -> FileSource:
    """The 5,000 listed images of ImageNet's validation set, or those of a folder laid out like it.

    - Images named `ILSVRC2012_val_*`: the 5,000 of the list, in its order, with its labels.
    - Other images in wnid folders: all of them, by the hash of their ids, labels by wnid.
    - Other images side by side with a `labels.txt`, or each with its class number in a `.cls` file: the same, labels
      from there.

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
    return _open(root, decoder, "imagenet", limit=limit, any_classes=any_classes)


def open_validation(root: Path, decoder: Decoder, *, limit: int | None, any_classes: bool) -> FileSource:
    """All 50,000 images of the validation set; as `open_imagenet` otherwise."""
    return _open(root, decoder, "imagenet-val", limit=limit, any_classes=any_classes)


def _open(root: Path, decoder: Decoder, name: str, *, limit: int | None, any_classes: bool) -> FileSource:
    root = next((root / place for place in _PLACES if is_folder(root / place)), root)
    tree = open_tree(root, "a folder of ImageNet's validation images")
    folders, images = tree.contents()
    if not images and folders == ["val"]:  # an archive of the folder
        tree = SubTree(tree, "val")
        folders, images = tree.contents()
    if any(map(is_wnid, folders)):
        files = images + in_wnid_folders(tree, folders)
    elif folders and any_classes and isinstance(tree, FolderTree) and not _is_flat(root, images):
        return open_folder(root, decoder)
    else:
        files = images
    if not files:
        found = f"without images (its sub-folders: {first_few(folders)})" if folders else "empty"
        expected = "images in sub-folders named by wnid (such as n01440764), or side by side"
        raise DataError(complaint(str(root), "data", found, expected, "Name the folder that contains `val`."))
    if any(id_of(Path(file).name) for file in files):
        return _listed_images(tree, files, decoder, name, limit)
    return _foreign_images(tree, files, decoder)


def _is_flat(root: Path, images: Sequence[str]) -> bool:
    """Whether the images of ImageNet lie side by side, so that sub-folders are no classes."""
    return any(id_of(name) for name in images) or (root / LABELS).exists()


def in_wnid_folders(tree: Tree, folders: Sequence[str]) -> list[str]:
    """Paths of the images in the sub-folders of a tree, all of which are classes of ImageNet-1k.

    Raises:
      DataError: one is not.
    """
    known = classes_by_wnid()
    unknown = [name for name in folders if name not in known and name != "lost+found"]
    if unknown:
        found = f"{len(unknown)} unknown ({first_few(unknown)})"
        advice = "Move what is no class of ImageNet-1k elsewhere."
        raise DataError(complaint(str(tree.root), "sub-folders", found, "wnids of the 1,000 classes", advice))
    return [f"{name}/{file}" for name in folders if name in known for file in tree.contents(name)[1]]


def _listed_images(tree: Tree, files: Sequence[str], decoder: Decoder, name: str, limit: int | None) -> FileSource:
    """The images of the list that are there; the whole list if it begins with as many as are wanted."""
    labels, found = listed() if name == "imagenet" else validation(), by_id(tree.root, files)
    whole = [FileExample(example, label, found.get(example, f"{example}.JPEG")) for example, label in labels.items()]
    missing = [example for example in whole if example.id not in found]
    there = [example for example in whole if example.id in found]
    if missing and (limit is None or not there):
        what = f"{len(missing)} of {len(whole)} missing ({first_few([example.id for example in missing])})"
        expected = "all images of the protocol's list"
        advice = "Complete the folder, or give `limit` to run on those that are there, marked unofficial."
        raise DataError(complaint(str(tree.root), "images", what, expected, advice if there else ""))
    wanted = whole[:limit]
    examples = whole if all(example.id in found for example in wanted) else there
    return FileSource(name, tree, examples, wnids(), decoder, missing)


def by_id(root: Path, files: Sequence[str]) -> dict[str, str]:
    """Path of each validation image by its id; files of other names are left out.

    Raises:
      DataError: an image is there twice.
    """
    found: dict[str, str] = {}
    for file in files:
        name = id_of(Path(file).name)
        if name is not None and found.setdefault(name, file) != file:
            twice = f"there twice ({found[name]} and {file})"
            raise DataError(complaint(str(root), name, twice, "one file for each image", "Remove one of them."))
    return found


def _foreign_images(tree: Tree, files: Sequence[str], decoder: Decoder) -> FileSource:
    root = tree.root
    flat = [file for file in files if "/" not in file]
    if len(flat) == len(files):
        numbers = class_numbers(tree, flat)
        labels = _by_number(flat, numbers, str(root)) if numbers is not None else read_labels(root, flat)
    elif flat:
        found = f"{len(flat)} beside the sub-folders ({first_few(flat)})"
        raise DataError(complaint(str(root), "images", found, "all images in sub-folders, or none"))
    else:
        labels = {file: classes_by_wnid()[file.split("/")[0]] for file in files}
    examples = [FileExample(file, label, file) for file, label in labels.items()]
    return FileSource("folder", tree, in_order_of_hash(examples, where=str(root)), wnids(), decoder)


def _by_number(files: Sequence[str], numbers: Sequence[int], where: str) -> dict[str, int]:
    """Label of each file, whose number is that of a class of ImageNet-1k."""
    return dict(zip(files, classes_of(numbers, [], range(len(wnids())), where=where), strict=True))
