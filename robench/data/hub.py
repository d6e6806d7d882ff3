"""Images of a data set on the Hugging Face Hub, by `hf-hub:org/name[@revision]`.

The data set is streamed once by the `datasets` library, at a commit, and the images that are wanted are kept as files,
as they are, in the Hub's assets cache; from there they are read like any other. So no more than one image is in memory,
workers decode, and a second run asks for nothing.

Not here: which images of ImageNet are wanted, and their labels (`imagenet/`, `shifts_on_hub.py`), and what the Hub
answers (`robench.hub`).
"""

import dataclasses
import json
from collections.abc import Callable, Collection, Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

from huggingface_hub import cached_assets_path
from huggingface_hub.utils import tqdm  # type: ignore[attr-defined]  # public, though not declared so

from robench.data.decoding import Decoder
from robench.data.files import FileExample, FileSource
from robench.data.folder import in_order_of_hash
from robench.data.imagenet import open_imagenet, open_validation
from robench.data.imagenet.listing import id_of, listed, validation
from robench.data.trees import FolderTree
from robench.data.writing import written_whole
from robench.errors import DataError, complaint, first_few
from robench.hub import LIBRARY, Hub, Snapshot, is_commit, open_snapshot, parse

INDEX = "rows.json"
"""Beside the images of a whole split: its classes, and name, label and file of each image."""
BARE = ("label", "cls")
"""Columns of class numbers without names."""
_PREFERRED = ("validation", "test")
"""The split that is read where there are several and none is named."""


class Record(NamedTuple):
    """An image of a data set as it is stored: file name if it has one, encoded bytes, class if it has one."""

    path: str | None
    content: bytes
    label: int | str | None


class Row(NamedTuple):
    """An image that was kept: its name in the data set if it has one, what the data set says of its class, its file."""

    path: str | None
    label: int | str
    file: str


class Kept(NamedTuple):
    """All images of a split.

    Attributes:
      folder: where their files lie.
      classes: what class numbers are called; empty where nothing says it.
      rows: in the order of the data set.
      reference: the data set with its commit.
    """

    folder: Path
    classes: list[str]
    rows: list[Row]
    reference: str


@dataclasses.dataclass(frozen=True)
class Split:
    """The records of a split, streamed anew each time they are asked for.

    Attributes:
      rows: the `datasets.IterableDataset`.
      image, label: names of its columns; None: it has no labels.
      classes: what class numbers are called; empty where the labels are wnids, or numbers without names.
    """

    rows: Any
    image: str
    label: str | None
    classes: tuple[str, ...]

    def records(self) -> Iterator[Record]:
        """The records in the order of the data set."""
        for row in self.rows:
            image = row[self.image]
            yield Record(image["path"], image["bytes"], row[self.label] if self.label else None)


def open_imagenet_on_hub(name: str, reference: str, decoder: Decoder, *, limit: int | None) -> FileSource:
    """The protocol's images of ImageNet's validation set on the Hub, found by name.

    Args:
      name: `imagenet`, the 5,000 of the list, or `imagenet-val`, all of them.
      reference: such as `hf-hub:ILSVRC/imagenet-1k@<commit>`; its split `validation` is read.
      decoder: how files become images.
      limit: only the first so many are waited for; None: all.
    Raises:
      DataError: the data set cannot be had, or lacks images of the list.
    """

    labels, read = (listed(), open_imagenet) if name == "imagenet" else (validation(), open_validation)

    def name_of(record: Record) -> str | None:
        found = id_of(Path(record.path or "").name)
        return f"{found}.JPEG" if found in labels else None

    wanted = [f"{example}.JPEG" for example in list(labels)[:limit]]
    folder, pinned = _images_in_cache(reference, "validation", wanted, name_of)
    source = read(folder, decoder, limit=limit, any_classes=False)
    return dataclasses.replace(source, reference=pinned)


def open_hub(reference: str, decoder: Decoder, *, split: str | None = None) -> FileSource:
    """All images of a split, by the hash of their ids, with the data set's own class numbers.

    Ids are the file names that the data set gives its images, or their places where these are missing or repeat.

    Args:
      reference: `hf-hub:org/name[@revision]`.
      decoder: how files become images.
      split: None: the only one, else `validation`, else `test`.
    Raises:
      DataError: the data set cannot be had, or has no images or labels.
    """
    kept = kept_rows(reference, split=split)
    paths = {row.path for row in kept.rows if row.path}
    named = len(paths) == len(kept.rows)
    examples = [FileExample((named and row.path) or row.file, int(row.label), row.file) for row in kept.rows]
    ordered = in_order_of_hash(examples, where=reference)
    return FileSource("hub", FolderTree(kept.folder), ordered, kept.classes, decoder, reference=kept.reference)


def kept_rows(reference: str, *, split: str | None = None, by_wnid: bool = False) -> Kept:
    """Every image of a split as a file, fetched unless they are there.

    Args:
      reference: `hf-hub:org/name[@revision]`.
      split: None: the only one, else `validation`, else `test`.
      by_wnid: whether labels may be wnids or bare numbers, too, as sets of ImageNet's classes have them.
    Raises:
      DataError: the data set cannot be had, or has no images or labels.
    """
    address = parse(reference, "dataset")
    read = split if not by_wnid else f"{split or 'split'}-of-imagenet"
    folder = _folder(address.repository, address.revision or "", read) if is_commit(address.revision) else None
    if folder is None or not (folder / INDEX).exists():
        snapshot = open_snapshot(address, Hub())
        folder = _folder(address.repository, snapshot.commit, read)
        if not (folder / INDEX).exists():
            _keep_all(snapshot, open_split(snapshot, split, by_wnid=by_wnid), folder)
        address = dataclasses.replace(address, revision=snapshot.commit)
    index = json.loads((folder / INDEX).read_text(encoding="utf-8"))
    rows = [Row(*row) for row in index["rows"]]
    return Kept(folder, index["classes"], rows, f"{address.reference}@{address.revision}")


def open_split(snapshot: Snapshot, split: str | None, *, by_wnid: bool = False) -> Split:
    """A split of a data set at its commit, to be streamed; see `kept_rows`.

    Raises:
      DataError: `datasets` is not installed, cannot read the data set, or finds no such split or no images in it.
    """
    where = snapshot.address.reference
    try:
        import datasets
    except ImportError as error:
        advice = "Install it: pip install 'robench[hub]'."
        raise DataError(complaint(where, "datasets", "not installed", "the library that reads it", advice)) from error
    snapshot.check_readable()
    try:
        splits = datasets.load_dataset(
            snapshot.address.repository, revision=snapshot.commit, streaming=True, token=snapshot.token
        )
        name = _chosen(list(splits), split, where)
        features = splits[name].features or {}
    except DataError:
        raise
    except Exception as error:  # of the file formats, the Hub's client, and its transport
        raise DataError(_unreadable(where, error)) from error
    image = next((column for column, kind in features.items() if isinstance(kind, datasets.Image)), None)
    if image is None:
        raise DataError(complaint(where, "columns", first_few(list(features)) or "of no known kind", "one with images"))
    label = _label_column(features, datasets.ClassLabel, by_wnid=by_wnid)
    rows = splits[name].select_columns([image, *([label] if label else [])])
    classes = tuple(features[label].names) if label and isinstance(features[label], datasets.ClassLabel) else ()
    return Split(rows.cast_column(image, datasets.Image(decode=False)), image, label, classes)


def _label_column(features: Mapping[str, Any], numbered: type, *, by_wnid: bool) -> str | None:
    """The column with the classes: wnids before class numbers with names, and these before bare numbers."""
    if by_wnid and "wnid" in features:
        return "wnid"
    found = next((column for column, kind in features.items() if isinstance(kind, numbered)), None)
    if found is None and by_wnid:
        return next((column for column in BARE if column in features), None)
    return found


def _chosen(names: list[str], split: str | None, where: str) -> str:
    preferred = [split] if split is not None else names if len(names) == 1 else _PREFERRED
    found = next((name for name in preferred if name in names), None)
    if found is None:
        raise DataError(complaint(where, "split", f"`{split or 'none named'}`", f"one of {', '.join(names)}"))
    return found


def _images_in_cache(
    reference: str, split: str, wanted: Collection[str], name_of: Callable[[Record], str | None]
) -> tuple[Path, str]:
    """The folder that has all images that are wanted, and the name of the data set with its commit."""
    address = parse(reference, "dataset")
    if is_commit(address.revision):
        folder = _folder(address.repository, str(address.revision), split)
        if not _missing(folder, wanted):
            return folder, reference
    snapshot = open_snapshot(address, Hub())
    folder = _folder(address.repository, snapshot.commit, split)
    missing = _missing(folder, wanted)
    with _bar(reference, len(wanted)) as progress:
        progress.update(len(wanted) - len(missing))
        for record in _records(snapshot, split) if missing else ():
            name = name_of(record)
            if name is None or (folder / name).exists():
                continue
            _write(folder / name, record.content)
            if name in missing:  # others of the list are kept for another run
                missing.remove(name)
                progress.update()
            if not missing:
                break
    if missing:
        found = f"{len(missing)} of {len(wanted)} missing ({first_few(sorted(missing))})"
        raise DataError(complaint(address.reference, "images", found, "all images of the protocol's list"))
    return folder, f"{address.reference}@{snapshot.commit}"


def _keep_all(snapshot: Snapshot, opened: Split, folder: Path) -> None:
    """Keep every image of a split, and write the index once all are there."""
    where = snapshot.address.reference
    if opened.label is None:
        raise DataError(complaint(where, "columns", "without labels", "one with class numbers"))
    rows: list[Row] = []
    with _bar(where, None) as progress:
        for number, record in enumerate(_guarded(opened.records(), where)):
            file = f"{number:08d}{Path(record.path or '').suffix}"
            label = record.label
            beyond = isinstance(label, int) and not 0 <= label < (len(opened.classes) or label + 1)
            if label is None or beyond or (opened.classes and isinstance(label, str)):
                raise DataError(complaint(where, f"label of image {number}", label, "a class number"))
            _write(folder / file, record.content)
            rows.append(Row(record.path, label, file))
            progress.update()
    _write(folder / INDEX, json.dumps({"classes": opened.classes, "rows": rows}).encode())


def _records(snapshot: Snapshot, split: str) -> Iterator[Record]:
    return _guarded(open_split(snapshot, split).records(), snapshot.address.reference)


def _guarded(records: Iterator[Record], where: str) -> Iterator[Record]:
    """The same records; what breaks on the way is an error of the data."""
    try:
        yield from records
    except Exception as error:  # of the file formats, the Hub's client, and its transport
        raise DataError(_unreadable(where, error)) from error


def _unreadable(where: str, error: Exception) -> str:
    reason = f"{type(error).__name__}: {(str(error).splitlines() or [''])[0][:200]}"
    advice = "Try again; what was kept is not fetched twice."
    return complaint(
        where, "data", f"unreadable ({reason})", "images in parquet or another form that `datasets` reads", advice
    )


def _folder(repository: str, commit: str, split: str | None) -> Path:
    """Where the images of a split are kept."""
    return Path(cached_assets_path(LIBRARY, namespace=repository, subfolder=f"{commit}-{split or 'split'}"))


def _missing(folder: Path, wanted: Collection[str]) -> set[str]:
    there = {path.name for path in folder.iterdir()}
    return {name for name in wanted if name not in there}


def _write(path: Path, content: bytes) -> None:
    """Thousands of files that can be fetched again need not be flushed."""
    with written_whole(path, flush=False) as temporary:
        temporary.write_bytes(content)


def _bar(name: str, total: int | None) -> Any:
    """The Hub client's own progress bar, which its users know how to switch off."""
    bar: Any = tqdm
    return bar(total=total, desc=name, unit=" images")
