"""Samples as WebDataset packs them, `<key>.jpg` beside `<key>.cls`: so mirrors on the Hub publish the sets of ImageNet.

Not here: what class numbers mean (`columns.py`), and the same tars read from the Hub (`robench.data.hub`).
"""

from collections import Counter
from collections.abc import Sequence

from robench.data.trees import Tree
from robench.errors import DataError, complaint

NUMBER = ".cls"
"""How the file ends that holds the class number of a sample, as text."""


def class_numbers(tree: Tree, images: Sequence[str]) -> list[int] | None:
    """The number beside each image, by the data set's own count; None where there is none beside the first.

    Raises:
      DataError: an image has none, or what it has is no number, or two images belong to one sample.
    """
    files = [_beside(image) for image in images]
    if not files or _read(tree, files[0]) is None:
        return None
    if len(set(files)) != len(files):
        found = f"two beside {Counter(files).most_common(1)[0][0]}"
        raise DataError(complaint(str(tree.root), "images", found, "one image in each sample"))
    return [_number(tree, file) for file in files]


def _beside(image: str) -> str:
    """The file of the class number; a key ends at the first dot."""
    folder, slash, name = image.rpartition("/")
    return f"{folder}{slash}{name.partition('.')[0]}{NUMBER}"


def _number(tree: Tree, file: str) -> int:
    content = _read(tree, file)
    if content is None or not content.strip().isdigit():
        found = "missing" if content is None else repr(content[:20])
        raise DataError(complaint(str(tree.root), file, found, "a class number"))
    return int(content)


def _read(tree: Tree, file: str) -> bytes | None:
    try:
        return tree.file(file).path.read_bytes()
    except FileNotFoundError:
        return None
