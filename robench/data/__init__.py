"""Data sets by name. A data set is one file or folder, one line here, and one row in the table of laws."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Protocol

from robench.data.arrays import ArraySource
from robench.data.cues import open_cues
from robench.data.decoding import Decoder
from robench.data.files import FileSource
from robench.data.folder import open_folder
from robench.data.hub import open_hub, open_imagenet_on_hub
from robench.data.imagenet import open_imagenet, open_validation
from robench.data.imagenet.cells import Cell, open_cells
from robench.data.imagenet.shifts import SHIFTS, reader
from robench.data.locations import Location, locate, way_to_name
from robench.data.mini import CLASSES, attack_set, attack_set_ids
from robench.data.mini.cells import MiniCells
from robench.data.mini.hard import MiniHard
from robench.data.mini.stylized import MiniStylized
from robench.data.shifts_on_hub import open_archive_on_hub, open_shift_on_hub
from robench.data.source import Source, Unreadable, Views, check_source
from robench.data.textures import PUBLISHED, TextureDictionary, open_textures
from robench.errors import DataError, complaint
from robench.hub import SCHEME, parse

__all__ = [
    "CATALOGUE",
    "READERS",
    "ArraySource",
    "FileSource",
    "Source",
    "TextureDictionary",
    "Unreadable",
    "Views",
    "check_there",
    "is_on_hub",
    "location_of",
    "open_source",
    "textures_of",
]


def _mini() -> Source:
    """The attack set of the mini suite."""
    images, labels = attack_set()
    return ArraySource(images, labels, classes=CLASSES, ids=attack_set_ids(), name="mini")


class Reader(Protocol):
    """Finds the examples of a data set in a folder; see `open_imagenet` for the arguments."""

    def __call__(self, root: Path, decoder: Decoder, *, limit: int | None, any_classes: bool) -> FileSource: ...


CATALOGUE: dict[str, Callable[[], Source]] = {"mini": _mini, "mini-a": MiniHard, "mini-stylized": MiniStylized}
"""What opens a data set that is shipped, by its name in a protocol."""

MADE_IN_CELLS: dict[str, Callable[[Sequence[Cell]], Source]] = {"mini-c": MiniCells}
"""What makes a data set in cells from what is shipped."""

READERS: dict[str, Reader] = {
    "imagenet": open_imagenet,
    "imagenet-val": open_validation,
    "cue-conflict": open_cues,
    **{name: reader(name) for name in SHIFTS},
}
"""What reads a data set that is not shipped."""

CELLS = ("imagenet-c", "imagenet-c-extra", "imagenet-c-5k")
"""Data sets that are not shipped and show an example in cells corruption x severity."""

SAME_PLACE = {"imagenet-val": "imagenet", "imagenet-c-extra": "imagenet-c", "imagenet-c-5k": "imagenet-c"}
"""Data sets that lie where another lies, unless something says where they lie themselves."""


PUBLISHED_CROPPED = (*CELLS, "stylized-imagenet", "cue-conflict")
"""Data sets whose images were published in the size in which models see them: a protocol neither resizes nor crops."""


def location_of(name: str) -> Location | None:
    """Where a data set or texture dictionary that is not shipped lies, as environment or configuration say; else None.

    Raises:
      DataError: the configuration is malformed.
    """
    known = [*READERS, *CELLS, *PUBLISHED]
    return locate(name, known=known) or (locate(SAME_PLACE[name], known=known) if name in SAME_PLACE else None)


def textures_of(name: str, sha256: str) -> TextureDictionary:
    """The texture dictionary of a protocol; see `robench.data.textures.open_textures`."""
    return open_textures(name, sha256, location_of(name) if name in PUBLISHED else None)


def check_there(name: str) -> Location | None:
    """Where a protocol's own data lie; None where they are shipped.

    Raises:
      DataError: they are not shipped and nothing says where they lie, or they are unknown.
    """
    if name in CATALOGUE or name in MADE_IN_CELLS:
        return None
    known = name in READERS or name in CELLS
    location = location_of(name) if known else None
    if location is None:
        others = f", {way_to_name(SAME_PLACE.get(name, name))}" if known else ""
        advice = f"Give their folder as `data=` (or `--data`){others}."
        raise DataError(complaint("robench", "data", "none", f"the images of `{name}`", advice))
    return location


def open_source(
    name: str,
    data: Any,
    *,
    resize: int | None,
    crop: int,
    limit: int | None = None,
    workers: int | None = None,
    cells: Sequence[Cell] = (),
    clean: str | Path | None = None,
) -> Source:
    """The examples of a protocol.

    Args:
      name: the data set the protocol asks for.
      data: None for the protocol's own data; a folder, of the protocol's images or with one sub-folder per
        class; `hf-hub:org/name[@revision]`; a pair (images, labels); or a `Source`.
      resize, crop: the view that the protocol ranks, in pixels; applied to folders.
      limit: how many examples are wanted; a folder may then lack images of the protocol's.
      workers: processes that decode files; 0: this one; None: up to four.
      cells: corruptions and severities in which the protocol sees each example; none: it sees one image.
      clean: where the clean images of a set with cells lie; None: they are not seen.
    Raises:
      DataError: there is nothing to read, or ids, labels or shapes are wrong.
    """
    decoder = Decoder(resize, crop, workers, exact=resize is None and name in PUBLISHED_CROPPED)
    if cells and data is None and name in MADE_IN_CELLS:
        source = MADE_IN_CELLS[name](cells)
    elif cells and (data is None or isinstance(data, str | Path)):
        root = _place(name) if data is None else Path(data)
        where = Path(clean) if clean is not None else None
        for argument, path in (("data", root), ("clean", where)):
            if is_on_hub(path):
                expected = "a folder, or archives: a set in cells is not read from the Hub"
                raise DataError(complaint("robench", argument, f"`{path}`", expected, "Download it first."))
        source = open_cells(name, root, decoder, cells=cells, clean=where, limit=limit)
    else:
        source = _own_data(name, decoder, limit) if data is None else _given_data(name, data, decoder, limit)
    if cells and not isinstance(source, Views):
        found, expected = type(data).__name__, "a folder or a source with views: it is seen in cells"
        raise DataError(complaint("robench", "data", found, expected))
    check_source(source, where=source.name)
    return source


def _given_data(name: str, data: Any, decoder: Decoder, limit: int | None) -> Source:
    """The examples of `data=`; see `open_source`."""
    if is_on_hub(data):
        return _from_hub(name, str(data), decoder, limit)
    if isinstance(data, str | Path):
        if name in READERS:
            return READERS[name](Path(data), decoder, limit=limit, any_classes=True)
        return open_folder(Path(data), decoder)
    if isinstance(data, tuple) and len(data) == 2:
        return ArraySource(*data)
    if isinstance(data, Source):
        return data
    expected = "a folder, `hf-hub:org/name`, a pair (images, labels), or a robench.data.Source"
    raise DataError(complaint("robench", "data", type(data).__name__, expected))


def _place(name: str) -> Path:
    """Where the files of a protocol's own data lie."""
    location = check_there(name)
    if location is None:
        raise DataError(complaint("robench", "data", f"`{name}`, which is not in files", "a data set in cells"))
    return location.path


def _own_data(name: str, decoder: Decoder, limit: int | None) -> Source:
    location = check_there(name)
    if location is None:
        return CATALOGUE[name]()
    if is_on_hub(location.path):
        return _from_hub(name, str(location.path), decoder, limit)
    try:
        return READERS[name](location.path, decoder, limit=limit, any_classes=False)
    except DataError as error:
        raise DataError(f"{error} ({location.origin} names {location.path}.)") from error


def is_on_hub(data: Any) -> bool:
    """Whether data are named as a data set on the Hub."""
    return isinstance(data, str | Path) and str(data).startswith(SCHEME)


def _from_hub(name: str, reference: str, decoder: Decoder, limit: int | None) -> Source:
    """A data set on the Hub: sets of ImageNet by its classes, others as they are; an archive by what reads it here."""
    if parse(reference, "dataset").file is not None and name in READERS:
        return open_archive_on_hub(reference, lambda path: READERS[name](path, decoder, limit=limit, any_classes=False))
    if name in ("imagenet", "imagenet-val"):
        return open_imagenet_on_hub(name, reference, decoder, limit=limit)
    if name in SHIFTS:
        return open_shift_on_hub(name, reference, decoder, limit=limit)
    return open_hub(reference, decoder)
