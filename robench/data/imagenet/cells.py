"""ImageNet-C: images of the validation set in cells corruption x severity, `<corruption>/<severity>/<wnid>/<file>`.

Not here: making such images (`robench.data.corruptions`), and scores.
"""

import hashlib
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path

import torch
from torch import Tensor

from robench.data.copies import generated_by
from robench.data.decoding import Decoder, ImageFile
from robench.data.files import FileExample, FileSource
from robench.data.folder import in_order_of_hash
from robench.data.imagenet import by_id, in_wnid_folders, open_imagenet, open_validation
from robench.data.imagenet.listing import classes_by_wnid, id_of, listed, validation, wnids
from robench.data.imagenet.shifts import LISTED
from robench.data.source import CLEAN, Unreadable
from robench.data.trees import SubTree, Tree, open_tree
from robench.errors import DataError, complaint, first_few

Cell = tuple[str, int]
CLEAN_VIEW = (256, 224)
"""How clean images become what ImageNet-C was made of: shorter side, and centre crop."""
_EXPECTED = "the images of ImageNet-C, as <corruption>/<severity>/<wnid>/<file>"


@dataclass(frozen=True)
class CellSource:
    """Examples that each are seen in several cells, and clean if clean images are given.

    Attributes:
      name: what to call the source in results.
      tree: where the cells lie.
      examples: in protocol order; `file` is the path below a cell.
      folders: of each cell, in the order of the protocol.
      decoder: how files become images.
      clean: the clean images of the same examples, in the same order; None: none are given.
      generated: the manifest that says how robench made the cells, see `copies.generated_by`; None: it did not.
    """

    name: str
    tree: Tree = field(repr=False)
    examples: Sequence[FileExample] = field(repr=False)
    folders: dict[Cell, str] = field(repr=False)
    decoder: Decoder
    clean: FileSource | None = field(default=None, repr=False)
    missing: Sequence[FileExample] = field(default=(), repr=False)
    generated: str | None = None

    @cached_property
    def ids(self) -> Sequence[str]:
        return [example.id for example in self.examples]

    @cached_property
    def labels(self) -> Sequence[int]:
        return [example.label for example in self.examples]

    @property
    def classes(self) -> int:
        return len(wnids())

    @property
    def view_names(self) -> Sequence[str]:
        """What the views of an example are called: `clean`, if it is seen so, and the cells."""
        cells = [f"{corruption}/{severity}" for corruption, severity in self.folders]
        return [CLEAN, *cells] if self.clean is not None else cells

    @property
    def content_sha256(self) -> str:
        """SHA-256 of ids and sizes of the files in the first cell, and of the clean ones."""
        first = next(iter(self.folders.values()))
        lines = [f"{example.id}|{self.tree.size(f'{first}/{example.file}')}" for example in self.examples]
        lines.append(self.clean.content_sha256 if self.clean is not None else "")
        return hashlib.sha256("\n".join(lines).encode()).hexdigest()

    def images(self, positions: Iterable[int]) -> Iterator[Tensor | Unreadable]:
        """The first view of each example, float32 in [0, 1]."""
        return self.decoder.images(self.file(position, 0) for position in positions)

    def views(self, positions: Iterable[int]) -> Iterator[Tensor | Unreadable]:
        """All views of each example, one after the other, uint8, shape (3, H, W)."""
        count = len(self.view_names)
        files = (self.file(position, view) for position in positions for view in range(count))
        pixels = self.decoder.pixels(files)
        return (each if isinstance(each, Unreadable) else torch.from_numpy(each) for each in pixels)

    def file(self, position: int, view: int) -> ImageFile:
        """The file of one view of an example."""
        if self.clean is not None and view == 0:
            return replace(self.clean.file(position), view=CLEAN_VIEW)
        cell, folder = self._cells[view - (self.clean is not None)]
        below = self.examples[position].file
        return replace(self.tree.file(f"{folder}/{below}"), name=f"{cell[0]}/{cell[1]}/{below}")

    @cached_property
    def _cells(self) -> Sequence[tuple[Cell, str]]:
        return list(self.folders.items())


def open_cells(
    name: str, root: Path, decoder: Decoder, *, cells: Sequence[Cell], clean: Path | None, limit: int | None
) -> CellSource:
    """The examples of ImageNet-C, or of a tree laid out like it.

    Images named `ILSVRC2012_val_*` are those of the validation set, all or the 5,000 of the list as the name says, in
    that order; others are taken by the hash of their ids.

    Args:
      name: `imagenet-c`, `imagenet-c-extra`, or `imagenet-c-5k`.
      root: the folder or archives with the corruptions, which may lie in one more level of folders.
      decoder: how files become images.
      cells: the corruptions and severities that must be there.
      clean: where the clean images lie, in any layout of the validation set; None: they are not seen.
      limit: how many examples are wanted; None: all of the protocol's must be there.
    Raises:
      DataError: corruptions, severities, classes or images are missing; they are listed.
    """
    tree = open_tree(root, _EXPECTED)
    folders = _find(tree, cells, whole=limit is None)
    files = _files(tree, folders)
    if any(id_of(Path(file).name) for file in files):
        source = _listed(name, tree, files, decoder, folders, limit)
    else:
        examples = [FileExample(file, classes_by_wnid()[file.split("/")[0]], file) for file in files]
        source = CellSource("folder", tree, in_order_of_hash(examples, where=str(tree.root)), folders, decoder)
    generated = generated_by(tree, next(iter(folders.values())))
    paired = None if clean is None else _clean(source, clean, decoder, limit)
    said = source.name if generated is None else f"{name}-generated"
    return replace(source, name=said, generated=generated, clean=paired)


def _listed(
    name: str, tree: Tree, files: Sequence[str], decoder: Decoder, folders: dict[Cell, str], limit: int | None
) -> CellSource:
    labels, found = listed() if name == "imagenet-c-5k" else validation(), by_id(tree.root, files)
    missing = [FileExample(example, label, "") for example, label in labels.items() if example not in found]
    if missing and (limit is None or len(missing) == len(labels)):
        what = f"{len(missing)} of {len(labels)} missing ({first_few([example.id for example in missing], LISTED)})"
        advice = "Complete the data, or give `limit` to run on those that are there, marked unofficial."
        raise DataError(complaint(str(tree.root), "images", what, "all images of the protocol", advice))
    wanted = list(labels)[:limit]
    if all(example in found for example in wanted):  # the rest is not read, or it is all there
        found |= {example.id: f"{wnids()[example.label]}/{example.id}.JPEG" for example in missing}
    examples = [FileExample(example, label, found[example]) for example, label in labels.items() if example in found]
    return CellSource(name, tree, examples, folders, decoder, missing=missing)


def _find(tree: Tree, cells: Sequence[Cell], *, whole: bool) -> dict[Cell, str]:
    """Folder of each cell; as a whole, classes without an image are missing, too.

    Raises:
      DataError: corruptions, severities or classes are missing.
    """
    parents = _parents(tree)
    folders, missing = {}, []
    severities = {path: tree.contents(path)[0] for path in parents.values()}
    for corruption, severity in cells:
        if corruption not in parents:
            missing.append(corruption)
        elif str(severity) not in severities[parents[corruption]]:
            missing.append(f"{corruption}/{severity}")
        else:
            folders[corruption, severity] = f"{parents[corruption]}/{severity}"
    classes = {
        cell: {name for name in tree.contents(folder)[0] if not whole or tree.contents(f"{folder}/{name}")[1]}
        for cell, folder in folders.items()
    }
    every = set().union(*classes.values())
    for (corruption, severity), names in classes.items():
        missing += [f"{corruption}/{severity}/{name}" for name in sorted(every - names)]
    missing = list(dict.fromkeys(missing))
    if missing:
        found = f"{len(missing)} missing ({first_few(missing, LISTED)})"
        corruptions = len({corruption for corruption, _ in cells})
        expected = f"all {len(cells)} cells of {corruptions} corruptions, with the same classes"
        raise DataError(complaint(str(tree.root), "cells", found, expected, "Complete the data."))
    return folders


def _parents(tree: Tree) -> dict[str, str]:
    """Path of the folder of each corruption: at the root, or one or two levels below it."""
    found: dict[str, str] = {}
    level = [""]
    for _ in range(3):
        below = [f"{at}/{name}".lstrip("/") for at in level for name in tree.contents(at)[0]]
        for path in below:
            found.setdefault(path.rpartition("/")[2], path)
        if len(below) > 100:  # severities and classes begin here
            break
        level = below
    return found


def _files(tree: Tree, folders: dict[Cell, str]) -> list[str]:
    """Paths of the images below the first cell."""
    first = SubTree(tree, next(iter(folders.values())))
    files = in_wnid_folders(first, first.contents()[0])
    if not files:
        raise DataError(complaint(str(first.root), "data", "empty", _EXPECTED))
    return files


def _clean(source: CellSource, root: Path, decoder: Decoder, limit: int | None) -> FileSource:
    """The clean images of the same examples; those beyond the limit may be missing."""
    view = replace(decoder, resize=CLEAN_VIEW[0], crop=CLEAN_VIEW[1])
    opened = (open_imagenet if source.name == "imagenet-c-5k" else open_validation)(
        root, view, limit=limit or len(source.ids), any_classes=False
    )
    absent = {example.id for example in opened.missing or ()}
    by_name = {example.id: example for example in opened.examples if example.id not in absent}
    wanted = source.ids[:limit]
    lost = [example for example in wanted if example not in by_name]
    if lost:
        found = f"{len(lost)} of {len(wanted)} missing ({first_few(lost, LISTED)})"
        raise DataError(complaint(str(root), "clean", found, "the clean image of every corrupted one"))
    paired = [by_name.get(example.id, example) for example in source.examples]
    return replace(opened, examples=paired)
