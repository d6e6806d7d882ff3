"""Readers claim what they are about to read, and no more than is fair: what they have claimed, nobody else can make."""

import itertools
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

from robench.data import Source
from robench.data.decoding import FEW, Decoder, ImageFile
from robench.data.files import FileExample, FileSource
from robench.data.source import Unreadable
from robench.data.trees import FolderTree
from robench.errors import DataError
from robench.reading import ClaimedImages

SHARD, COUNT = 16, 160


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Pictures of one colour each, which is their number."""
    root = tmp_path_factory.mktemp("pictures")
    for number in range(COUNT):
        Image.fromarray(np.full((8, 8, 3), number, dtype=np.uint8)).save(root / f"{number:03d}.png")
    return root


def _files(folder: Path, workers: int) -> FileSource:
    examples = [FileExample(f"{number:03d}", 0, f"{number:03d}.png") for number in range(COUNT)]
    return FileSource("pictures", FolderTree(folder), examples, ["one"], Decoder(None, 8, workers))


@dataclass
class Claimed:
    """Shards as they are drawn, and what is asked before each."""

    limit: int = COUNT
    drawn: list[int] = field(default_factory=list)
    asked: list[int] = field(default_factory=list)
    read: int = 0

    def shards(self) -> Iterator[range]:
        for shard in range(COUNT // SHARD):
            self.drawn.append(shard)
            yield range(SHARD * shard, SHARD * (shard + 1))

    def wait(self, ahead: int) -> bool:
        """At most so many examples are to be claimed."""
        self.asked.append(ahead)
        return self.read + ahead + SHARD > self.limit


def _number(image: Tensor | Unreadable) -> int:
    assert isinstance(image, Tensor)
    return round(float(image.mean()) * 255)


@pytest.mark.parametrize("workers", [0, 2])
def test_no_more_is_claimed_than_is_granted_and_all_is_read_in_the_end(folder: Path, workers: int) -> None:
    claimed, pauses = Claimed(limit=48), 0
    for each in ClaimedImages(_files(folder, workers), claimed.shards(), claimed.wait).images():
        assert len(claimed.drawn) * SHARD <= claimed.limit
        if each is None:  # all that was granted is read
            assert claimed.read == claimed.limit == len(claimed.drawn) * SHARD
            pauses += 1
            if pauses % 3 == 0:
                claimed.limit += 2 * SHARD
        else:
            position, image = each
            assert position == _number(image) == claimed.read
            claimed.read += 1
    assert claimed.read == COUNT
    assert pauses == 3 * 4  # 48, 80, 112, 144
    assert any(claimed.asked) == (workers > 0)  # whether shards were drawn before they were needed


def test_without_others_readers_draw_as_far_as_they_like(folder: Path) -> None:
    claimed = Claimed()
    images = ClaimedImages(_files(folder, 1), claimed.shards(), None).images()
    next(images)
    assert len(claimed.drawn) * SHARD >= FEW
    assert [each for each in images if each is None] == []
    images.close()


def test_who_cannot_be_warned_is_asked_for_image_by_image(folder: Path) -> None:
    """A source of the user's knows no pauses: shards wait until one is read to its end."""

    class Plain:
        def __init__(self, files: FileSource) -> None:
            self.name, self.ids, self.labels, self.classes = files.name, files.ids, files.labels, files.classes
            self._files = files

        def images(self, positions: Iterable[int]) -> Iterator[Tensor | Unreadable]:
            return self._files.images(positions)

    source = Plain(_files(folder, 0))
    assert isinstance(source, Source)
    claimed = Claimed(limit=32)
    for each in itertools.islice(ClaimedImages(source, claimed.shards(), claimed.wait).images(), 40):
        claimed.read += each is not None
    assert (claimed.read, claimed.drawn) == (32, [0, 1])


@pytest.mark.parametrize(
    ("change", "found"),
    [
        (lambda images: images[:-1], "too few"),
        (lambda images: [*images[:20], None, *images[20:]], "too few"),
        (lambda images: [*images, torch.zeros(3, 8, 8)], "too many"),
    ],
)
@pytest.mark.parametrize("told", [False, True])
def test_a_source_with_another_number_of_images_is_found(
    folder: Path, change: Callable[[list[Tensor | None]], list[Tensor | None]], found: str, told: bool
) -> None:
    class Wrong(FileSource):
        def images(self, positions: Iterable[int]) -> Iterator[Tensor | Unreadable]:
            return iter(change(list(super().images(positions))))  # type: ignore[arg-type]

        def images_ahead(self, positions: Iterable[int | None]) -> Iterator[Tensor | Unreadable | None]:
            return iter(change(list(super().images_ahead(positions))))  # type: ignore[arg-type]

    files = _files(folder, 0)
    source = Wrong(files.name, files.tree, files.examples, files.class_names, files.decoder)
    reading = ClaimedImages(source, Claimed().shards(), (lambda ahead: False) if told else None)
    with pytest.raises(DataError, match=rf"^pictures: `images` is {found}; expected one for each position asked for"):
        list(reading.images())


@pytest.mark.parametrize("workers", [0, 1, 3])
def test_pauses_keep_their_place_among_images(folder: Path, workers: int) -> None:
    pauses = {0, 3, 4, 90, 91, 159}
    asked: list[ImageFile | None] = []
    for number in range(COUNT):
        asked += [None] * (number in pauses) + [ImageFile(f"{number}", folder / f"{number:03d}.png")]
    found = list(Decoder(None, 8, workers).images_ahead([*asked, None]))
    assert [image is None for image in found] == [file is None for file in [*asked, None]]
    assert [_number(image) for image in found if image is not None] == list(range(COUNT))


def test_images_of_a_subclass_are_those_that_are_read(folder: Path) -> None:
    class Dark(FileSource):
        def images(self, positions: Iterable[int]) -> Iterator[Tensor | Unreadable]:
            return (0 * image for image in super().images(positions) if isinstance(image, Tensor))

    files = _files(folder, 0)
    source = Dark(files.name, files.tree, files.examples, files.class_names, files.decoder)
    read = [
        each for each in ClaimedImages(source, Claimed().shards(), lambda ahead: False).images() if each is not None
    ]
    assert [_number(image) for _, image in read] == [0] * COUNT


def test_few_files_before_a_pause_start_no_process(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def none(*_: object, **__: object) -> None:
        raise AssertionError("a process is started")

    monkeypatch.setattr("robench.data.decoding.batches_in_workers", none)
    files = [ImageFile(f"{number}", folder / f"{number:03d}.png") for number in range(FEW)]
    asked = [*files[:40], None, *files[40:], None]
    found = list(Decoder(None, 8, 4).images_ahead(asked))
    assert [None if image is None else _number(image) for image in found] == [*range(40), None, *range(40, FEW), None]
