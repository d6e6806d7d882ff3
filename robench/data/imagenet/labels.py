"""`labels.txt`: the classes of images that lie side by side, one line `<file> <class number>` for each."""

from collections.abc import Sequence
from pathlib import Path

from robench.data.imagenet.listing import wnids
from robench.errors import DataError, complaint, first_few

LABELS = "labels.txt"


def read_labels(root: Path, files: Sequence[str]) -> dict[str, int]:
    """Label of each file, in the order of the lines.

    Args:
      root: folder of the images and of `labels.txt`.
      files: the images there.
    Raises:
      DataError: there is no such list, a line is malformed, or lines and files do not match one to one.
    """
    path = root / LABELS
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except FileNotFoundError as error:
        found, expected = f"{len(files)} without labels ({first_few(files)})", "sub-folders named by wnid"
        advice = f"Or add `{LABELS}` with one line `<file> <class number>` for each image."
        raise DataError(complaint(str(root), "images", found, expected, advice)) from error
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(complaint(str(path), "labels", f"unreadable ({error})", "a text file in UTF-8")) from error
    labels: dict[str, int] = {}
    for number, line in enumerate(lines, 1):
        if not line.strip():
            continue
        name, label = _parse(line, where=f"{path}:{number}")
        if name in labels:
            raise DataError(complaint(f"{path}:{number}", "file", f"{name} again", "one line for each image"))
        labels[name] = label
    _match(path, labels, files)
    return labels


def _parse(line: str, *, where: str) -> tuple[str, int]:
    name, _, number = line.strip().rpartition(" ")
    last = len(wnids()) - 1
    if not name or not number.isascii() or not number.isdigit() or int(number) > last:
        expected = f"`<file> <class number>`, with a number from 0 to {last}"
        raise DataError(complaint(where, "line", repr(line), expected))
    return name.rstrip(), int(number)


def _match(path: Path, labels: dict[str, int], files: Sequence[str]) -> None:
    """Lines and files belong together one to one."""
    there = set(files)
    unlabelled = [file for file in files if file not in labels]
    lost = [name for name in labels if name not in there]
    if not unlabelled and not lost:
        return
    parts = [(unlabelled, "files without a line"), (lost, "lines without a file")]
    what = " and ".join(f"{len(names)} {kind} ({first_few(names)})" for names, kind in parts if names)
    found = f"{len(labels)} lines for {len(files)} images, with {what}"
    raise DataError(complaint(str(path), "lines", found, "one line for each image"))
