"""Photographs and pictures of ImageNet's classes that are not its own: ImageNet-A, -R, -Sketch, -V2, Stylized-ImageNet.

Labels come from folders' names, wnids or class numbers, never from their order, or from class numbers beside the
images. Not here: ImageNet-C (`cells.py`).
"""

import re
from collections.abc import Callable, Sequence, Set
from dataclasses import dataclass
from pathlib import Path

from robench.data.copies import generated_by
from robench.data.decoding import Decoder
from robench.data.files import FileExample, FileSource
from robench.data.folder import in_order_of_hash
from robench.data.imagenet.columns import classes_of, missing_from
from robench.data.imagenet.listing import classes_by_wnid, wnids
from robench.data.imagenet.samples import class_numbers
from robench.data.imagenet.subsets import subset
from robench.data.trees import SubTree, Tree, open_tree
from robench.errors import DataError, complaint, first_few

LISTED = 20
"""Names of what is missing that a message lists."""
_DEPTH = 3
"""Folders that may lie above the classes in what was published."""


@dataclass(frozen=True)
class Shift:
    """A published set.

    Attributes:
      classes: a list of classes to which it is limited; None: all 1,000.
      numbered: whether its folders are class numbers, not wnids.
      others: what names of folders and archives with other versions of it have in them; "": there are none.
    """

    classes: str | None = None
    numbered: bool = False
    others: str = ""

    @property
    def labels(self) -> Sequence[int]:
        """Numbers of its classes, rising."""
        return subset(self.classes) if self.classes is not None else range(len(wnids()))


SHIFTS = {
    "imagenet-a": Shift("imagenet-a"),
    "imagenet-r": Shift("imagenet-r"),
    "imagenet-sketch": Shift(),
    "imagenet-v2": Shift(numbered=True, others=r"threshold[-_]?0\.7|top[-_]?images"),
    "stylized-imagenet": Shift(),
}


def reader(name: str) -> Callable[..., FileSource]:
    """What opens a set by its name; takes the arguments of `open_imagenet`."""

    def open_set(root: Path, decoder: Decoder, *, limit: int | None, any_classes: bool) -> FileSource:
        return open_shift(name, root, decoder, limit=limit)

    return open_set


def open_shift(name: str, root: Path, decoder: Decoder, *, limit: int | None = None) -> FileSource:
    """All images of a set, by the hash of their ids `<wnid>/<file>`.

    Args:
      name: in `SHIFTS`.
      root: the folder with the class folders, one up to three above it, or an archive; or the tars of samples,
        `<key>.jpg` and `<key>.cls`, of a mirror.
      decoder: how files become images.
      limit: how many examples are wanted; None: no class may be missing.
    Raises:
      DataError: images have no classes, or classes that are none of the set, or classes are missing.
    """
    shift = SHIFTS[name]
    what = "numbered 0 to 999" if shift.numbered else "named by wnid (such as n01440764)"
    expected = f"the images of {name}, in sub-folders {what}"
    tree, folders = descend(open_tree(root, expected), lambda folder: _label(folder, shift) is not None)
    entered = tree.root.parts[len(root.parts) - 1 :]  # what was named, and what lies below
    other = next((part for part in entered if shift.others and re.search(shift.others, part, re.IGNORECASE)), None)
    if other is not None:
        raise DataError(complaint(str(root), "data", f"another version of the set, `{other}`", expected))
    if not folders:
        return _open_samples(name, tree, decoder, whole=limit is None, expected=expected)
    labels = _labels(tree, folders, shift)
    files = {folder: tree.contents(folder)[1] for folder in labels}
    if limit is None:
        _check_whole(tree, shift, {label for folder, label in labels.items() if files[folder]})
    examples = [
        FileExample(f"{wnids()[label]}/{file}", label, f"{folder}/{file}")
        for folder, label in labels.items()
        for file in files[folder]
    ]
    if not examples:
        raise DataError(complaint(str(root), "data", "empty", expected))
    ordered = in_order_of_hash(examples, where=str(root))
    return FileSource(name, tree, ordered, wnids(), decoder, wanted=shift.labels, generated=generated_by(tree))


def _open_samples(name: str, tree: Tree, decoder: Decoder, *, whole: bool, expected: str) -> FileSource:
    """A set with class numbers beside its images."""
    where, (_, images) = str(tree.root), tree.contents()
    numbers = class_numbers(tree, images)
    if numbers is None:
        raise DataError(complaint(where, "data", "without class folders", expected))
    rows = list(zip(images, numbers, images, strict=True))
    examples = examples_of(name, rows, [], where=where, whole=whole)
    return FileSource(name, tree, examples, wnids(), decoder, wanted=SHIFTS[name].labels, generated=generated_by(tree))


def examples_of(
    name: str, rows: Sequence[tuple[str, int | str, str]], class_names: Sequence[str], *, where: str, whole: bool
) -> list[FileExample]:
    """Examples of a set without class folders, by the hash of their ids `<wnid>/<name>`.

    Args:
      name: of the set, in `SHIFTS`.
      rows: of each image its name, what the data set says of its class, and its file.
      class_names: what class numbers are called; none: they are what they are. See `classes_of`.
      where: names the data set in messages.
      whole: whether all classes of the set must occur.
    Raises:
      DataError: classes cannot be told, are none of the set, or are missing.
    """
    allowed = SHIFTS[name].labels
    labels = classes_of([said for _, said, _ in rows], class_names, allowed, where=where)
    missing = missing_from(labels, allowed)
    if missing and whole:
        found = f"{len(missing)} of {len(allowed)} missing ({first_few(missing, LISTED)})"
        advice = "Take a whole copy, or give `limit`."
        raise DataError(complaint(where, "classes", found, "images of each class", advice))
    ids = [f"{wnids()[label]}/{called}" for label, (called, _, _) in zip(labels, rows, strict=True)]
    if len(set(ids)) != len(ids):  # names that repeat
        ids = [f"{wnids()[label]}/{file}" for label, (_, _, file) in zip(labels, rows, strict=True)]
    files = [file for _, _, file in rows]
    return in_order_of_hash(list(map(FileExample, ids, labels, files)), where=where)


def descend(tree: Tree, belongs: Callable[[str], bool]) -> tuple[Tree, list[str]]:
    """The first level of a tree with folders that belong, and their names; no names where there is none."""
    for _ in range(_DEPTH + 1):
        folders = [folder for folder in tree.contents()[0] if folder != "__MACOSX"]
        if any(belongs(folder) for folder in folders):
            return tree, folders
        if "val" in folders:
            tree = SubTree(tree, "val")
        elif len(folders) == 1:
            tree = SubTree(tree, folders[0])
        else:
            break
    return tree, []


def _label(folder: str, shift: Shift) -> int | None:
    """Class of a folder by its name; None: it is none of a class."""
    if shift.numbered:
        number = int(folder) if folder.isascii() and folder.isdigit() else -1
        return number if 0 <= number < len(wnids()) else None
    return classes_by_wnid().get(folder)


def _labels(tree: Tree, folders: Sequence[str], shift: Shift) -> dict[str, int]:
    """Class of each folder, all of which are classes of the set."""
    allowed = set(shift.labels)
    labels = {folder: _label(folder, shift) for folder in folders}
    foreign = [folder for folder, label in labels.items() if label not in allowed]
    if foreign:
        found = f"{len(foreign)} unknown ({first_few(foreign)})"
        advice = "Is it another set? Move what is no class of it elsewhere."
        raise DataError(
            complaint(str(tree.root), "sub-folders", found, f"the {len(allowed)} classes of the set", advice)
        )
    return {folder: label for folder, label in labels.items() if label is not None}


def _check_whole(tree: Tree, shift: Shift, there: Set[int]) -> None:
    """Refuse a copy that lacks all images of a class."""
    missing = [label for label in shift.labels if label not in there]
    if missing:
        names = [str(label) if shift.numbered else wnids()[label] for label in missing]
        found = f"{len(missing)} of {len(shift.labels)} missing ({first_few(names, LISTED)})"
        advice = "Complete the data, or give `limit` to run on what is there."
        raise DataError(complaint(str(tree.root), "classes", found, "images of each class", advice))
