"""The pictures whose styles are taken: cut to squares of 224 pixels once, and kept beside the tree that is written.

As published for Stylized-ImageNet: what is broken or smaller than 224 pixels is left out, the largest square in the
middle is shrunk by Lanczos, and saved under its own name with Pillow's settings. Not here: which image gets which
(`stylized_tree`).
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path

from PIL import Image
from torch.utils.data import Dataset

from robench.data.copies import is_written, reason_of, unwritable, write
from robench.data.decoding import in_workers
from robench.data.trees import contents_of
from robench.errors import DataError, complaint

SIDE = 224


def style_names(source: Path) -> list[str]:
    """Files of the pictures in a folder, or in its sub-folders, sorted.

    Raises:
      DataError: there are none.
    """
    if not source.is_dir():
        raise DataError(complaint(str(source), "STYLES", "no folder", "a folder of pictures"))
    folders, files = contents_of(source)
    names = sorted([*files, *(f"{folder}/{file}" for folder in folders for file in contents_of(source / folder)[1])])
    if not names:
        raise DataError(complaint(str(source), "STYLES", "empty", "a folder of pictures"))
    return names


def prepare(
    source: Path,
    target: Path,
    names: Sequence[str],
    *,
    workers: int,
    on_image: Callable[[], None] = lambda: None,
) -> list[str]:
    """Cut the pictures that are not there yet; returns the names of those that can be used, in their order.

    Args:
      source: their folder.
      target: where they go, under the same names.
      names: files in the folder.
      workers: processes; 0: this one.
      on_image: called after each.
    Raises:
      DataError: none can be used, or the target cannot be written.
    """
    squares = _Squares(source, target, names)
    parts = (
        in_workers(squares, range(len(names)), workers, together=1)
        if workers
        else (squares[at] for at in range(len(names)))
    )
    usable = []
    for name, part in zip(names, parts, strict=True):
        if isinstance(part, _Failed):
            raise unwritable(target, part.reason)
        if part:
            usable.append(name)
        on_image()
    if not usable:
        found, expected = f"{len(names)} files of no use", f"pictures of at least {SIDE}x{SIDE} pixels"
        raise DataError(complaint(str(source), "STYLES", found, expected))
    return usable


@dataclass(frozen=True)
class _Failed:
    """A square could not be written; everything stops."""

    reason: str


@dataclass(frozen=True)
class _Squares(Dataset[bool | _Failed]):
    """For each picture: whether it can be used; written when asked for."""

    source: Path
    target: Path
    names: Sequence[str]

    def __len__(self) -> int:
        return len(self.names)

    def __getitem__(self, position: int) -> bool | _Failed:
        name = self.names[position]
        if is_written(self.target / name):
            return True
        try:
            content = square(self.source / name)
        except Exception:  # a broken file makes Pillow raise SyntaxError, ValueError and others, too
            return False
        if content is None:
            return False
        try:
            write(self.target / name, content)
        except OSError as error:
            return _Failed(reason_of(error))
        return True


def square(path: Path) -> bytes | None:
    """The file of a picture's largest square, shrunk to 224 pixels, in the format of its name; None: it is smaller."""
    with Image.open(path) as file:
        image = file.convert("RGB")
    side = min(image.size)
    if side < SIDE:
        return None
    left, top = (image.width - side) // 2, (image.height - side) // 2
    small = image.crop((left, top, left + side, top + side)).resize((SIDE, SIDE), Image.Resampling.LANCZOS)
    content = BytesIO()
    small.save(content, Image.registered_extensions()[path.suffix.lower()])
    return content.getvalue()
