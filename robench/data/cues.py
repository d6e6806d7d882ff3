"""The cue-conflict images: the shape of one category in the texture of another, named `airplane1-bicycle2.png`.

Not here: the scores.

References:
  Geirhos et al. 2019, "ImageNet-trained CNNs are biased towards texture", arXiv:1811.12231.
"""

import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path

from robench.data.categories import categories
from robench.data.decoding import Decoder
from robench.data.files import FileExample, FileSource
from robench.data.folder import in_order_of_hash
from robench.data.imagenet.listing import cue_conflict, wnids
from robench.data.imagenet.shifts import descend
from robench.data.trees import Tree, open_tree
from robench.errors import DataError, complaint, first_few

_NAME = re.compile(r"([a-z]+)[0-9]+-([a-z]+)[0-9]+\.png")
_EXPECTED = "the cue-conflict images, as <shape>/<shape><n>-<texture><n>.png"


@dataclass(frozen=True)
class CueSource(FileSource):
    """Images with the category of their texture; labels are those of their shape."""

    textures_by_id: dict[str, int] = field(default_factory=dict, repr=False)

    @property
    def classes(self) -> int:
        """Number of logits, over whose categories a decision is made."""
        return len(wnids())

    @cached_property
    def textures(self) -> list[int]:
        """Category of each texture, in the order of the examples."""
        return [self.textures_by_id[example.id] for example in self.examples]


def open_cues(root: Path, decoder: Decoder, *, limit: int | None, any_classes: bool) -> CueSource:
    """All cue-conflict images, by the hash of their names: those that were published, or others of the same form.

    Args:
      root: the folder with the 16 folders of shapes, above it, or an archive.
      decoder: how files become images.
      limit: how many examples are wanted; None: no category may be missing, nor any of the published images.
      any_classes: not used: categories are known by their names.
    Raises:
      DataError: there are no such images, a file has another name, or a category or an image is missing.
    """
    names = list(categories("sixteen"))
    tree, folders = descend(open_tree(root, _EXPECTED), names.__contains__)
    files = [f"{folder}/{file}" for folder in folders if folder in names for file in tree.contents(folder)[1]]
    if not files:
        raise DataError(complaint(str(root), "data", "without images of the 16 categories", _EXPECTED))
    missing = [name for name in names if name not in folders]
    if missing and limit is None:
        found = f"{len(missing)} of 16 missing ({first_few(missing, 16)})"
        raise DataError(complaint(str(root), "categories", found, "a folder for each category", "Complete the data."))
    pairs = {file: _parse(tree, file, names) for file in files}
    examples = [FileExample(Path(file).name, shape, file) for file, (shape, _) in pairs.items()]
    textures = {Path(file).name: texture for file, (_, texture) in pairs.items()}
    ordered = in_order_of_hash(examples, where=str(root))
    lost = _lost(files, tree, names)
    if lost and limit is None:
        found = f"{len(lost)} of {len(cue_conflict())} missing ({first_few([example.id for example in lost])})"
        advice = "Complete the folder, or give `limit` to run on those that are there, marked unofficial."
        raise DataError(complaint(str(root), "images", found, "all published images", advice))
    return CueSource("cue-conflict", tree, ordered, names, decoder, missing=lost, textures_by_id=textures)


def _lost(files: Sequence[str], tree: Tree, names: list[str]) -> list[FileExample] | None:
    """The published images that are not there; None where most are not: then these are others of the same form."""
    published = set(cue_conflict())
    if 2 * len(published.intersection(files)) < len(published):
        return None
    return [FileExample(Path(file).name, _parse(tree, file, names)[0], file) for file in sorted(published - {*files})]


def _parse(tree: Tree, file: str, names: list[str]) -> tuple[int, int]:
    """Categories of shape and texture, from the name of a file."""
    folder, _, name = file.partition("/")
    found = _NAME.fullmatch(name)
    if not found or found[1] != folder or found[2] not in names:
        raise DataError(complaint(str(tree.root), "file", repr(file), "<shape>/<shape><n>-<texture><n>.png"))
    return names.index(found[1]), names.index(found[2])
