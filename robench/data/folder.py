"""A folder of images with one sub-folder per class, any classes."""

from pathlib import Path

from robench.data.decoding import Decoder
from robench.data.files import FileExample, FileSource
from robench.data.source import by_hash, check_ids
from robench.data.trees import FolderTree, contents_of
from robench.errors import DataError, complaint


def open_folder(root: Path, decoder: Decoder) -> FileSource:
    """Images in `<root>/<class>/<file>`; labels are the rank of the class's name.

    Args:
      root: the folder.
      decoder: how files become images.
    Raises:
      DataError: the folder is missing, holds no images in class folders, or a file's name is no UTF-8.
    """
    if not root.is_dir():
        raise DataError(complaint(str(root), "data", "no folder", "a folder with one sub-folder per class"))
    folders, _ = contents_of(root)
    examples = [
        FileExample(f"{name}/{file}", label, f"{name}/{file}")
        for label, name in enumerate(folders)
        for file in contents_of(root / name)[1]
    ]
    if not examples:
        advice = f"Lay the images out as {root}/<class>/<name>.png."
        raise DataError(complaint(str(root), "data", "empty", "images in one sub-folder per class", advice))
    return FileSource("folder", FolderTree(root), in_order_of_hash(examples, where=str(root)), folders, decoder)


def in_order_of_hash(examples: list[FileExample], *, where: str) -> list[FileExample]:
    """The examples in the order of SHA-256 of their ids.

    Raises:
      DataError: an id cannot be stored.
    """
    ids = [example.id for example in examples]
    check_ids(ids, where=where)
    return [examples[position] for position in by_hash(ids)]
