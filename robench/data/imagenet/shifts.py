"""Photographs and pictures of ImageNet's classes that are not its own: ImageNet-A, -R, -Sketch, -V2, Stylized-ImageNet.

Labels come from folders' names, wnids or class numbers, never from their order. Not here: ImageNet-C (`cells.py`).
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path

from robench.data.copies import generated_by
from robench.data.decoding import Decoder
from robench.data.files import FileExample, FileSource
from robench.data.folder import in_order_of_hash
from robench.data.imagenet.listing import wnids
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
    """

    classes: str | None = None
    numbered: bool = False


SHIFTS = {
    "imagenet-a": Shift("imagenet-a"),
    "imagenet-r": Shift("imagenet-r"),
    "imagenet-sketch": Shift(),
    "imagenet-v2": Shift(numbered=True),
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
      root: the folder with the class folders, one up to three above it, or an archive.
      decoder: how files become images.
      limit: how many examples are wanted; None: no class may be missing.
    Raises:
      DataError: there are no class folders, or folders that are no classes of the set, or classes are missing.
    """
    shift = SHIFTS[name]
    what = "numbered 0 to 999" if shift.numbered else "named by wnid (such as n01440764)"
    expected = f"the images of {name}, in sub-folders {what}"
    tree, folders = descend(open_tree(root, expected), lambda folder: _label(folder, shift) is not None)
    if not folders:
        raise DataError(complaint(str(root), "data", "without class folders", expected))
    labels = _labels(tree, folders, shift, whole=limit is None)
    examples = [
        FileExample(f"{wnids()[label]}/{file}", label, f"{folder}/{file}")
        for folder, label in labels.items()
        for file in tree.contents(folder)[1]
    ]
    if not examples:
        raise DataError(complaint(str(root), "data", "empty", expected))
    examples = in_order_of_hash(examples, where=str(root))
    wanted = subset(shift.classes) if shift.classes is not None else range(len(wnids()))
    return FileSource(
        name, tree.root, examples, wnids(), decoder, tree=tree, wanted=wanted, generated=generated_by(tree.root)
    )


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
    return _rank().get(folder)


@cache
def _rank() -> dict[str, int]:
    return {wnid: label for label, wnid in enumerate(wnids())}


def _labels(tree: Tree, folders: Sequence[str], shift: Shift, *, whole: bool) -> dict[str, int]:
    """Class of each folder, all of which are classes of the set; as a whole, it has all of them."""
    allowed = set(subset(shift.classes) if shift.classes is not None else range(len(wnids())))
    labels = {folder: _label(folder, shift) for folder in folders}
    foreign = [folder for folder, label in labels.items() if label not in allowed]
    if foreign:
        found = f"{len(foreign)} unknown ({first_few(foreign)})"
        advice = "Is it another set? Move what is no class of it elsewhere."
        raise DataError(
            complaint(str(tree.root), "sub-folders", found, f"the {len(allowed)} classes of the set", advice)
        )
    known = {folder: label for folder, label in labels.items() if label is not None}
    missing = sorted(allowed - set(known.values()))
    if missing and whole:
        names = [str(label) if shift.numbered else wnids()[label] for label in missing]
        found = f"{len(missing)} of {len(allowed)} missing ({first_few(names, LISTED)})"
        advice = "Complete the data, or give `limit` to run on what is there."
        raise DataError(complaint(str(tree.root), "classes", found, "a folder for each class", advice))
    return known
