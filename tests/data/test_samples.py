"""Tars of samples as WebDataset packs them and mirrors publish them, on the disk and on the Hub."""

import importlib.resources
import io
import json
import tarfile
from collections.abc import Iterable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from torch import Tensor

from robench.data import open_source
from robench.data.files import FileSource
from robench.data.imagenet.listing import listed
from robench.errors import DataError
from tests.data.test_hub import _elsewhere, server
from tests.hub_server import FakeHub

__all__ = ["server"]  # a fixture

INFO = importlib.resources.files("timm") / "data" / "_info"
A = [int(line) for line in (INFO / "imagenet_a_indices.txt").read_text().split()]
WNIDS = (INFO / "imagenet_synsets.txt").read_text().split()
Members = list[tuple[str, bytes]]


def _picture(seed: int, form: str = "jpeg") -> bytes:
    file = io.BytesIO()
    Image.fromarray(np.random.default_rng(seed).integers(0, 256, (16, 16, 3), dtype=np.uint8)).save(file, form)
    return file.getvalue()


def _samples(numbers: Iterable[int], suffix: str = "jpg", form: str = "jpeg", first: int = 0) -> Members:
    """`s0000000.cls`, `s0000000.jpg` and so on."""
    members = []
    for place, number in enumerate(numbers, first):
        members.append((f"s{place:07d}.cls", f"{number}".encode()))
        members.append((f"s{place:07d}.{suffix}", _picture(place % 7, form)))
    return members


def _tar(path: Path, members: Members) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(path, "w") as tar:
        for name, content in members:
            info = tarfile.TarInfo(name)
            info.size = len(content)
            tar.addfile(info, io.BytesIO(content))
    return path


def _shards(folder: Path, members: Members) -> Path:
    """Two tars, and what mirrors put beside them."""
    _tar(folder / "0.tar", members[:150])
    _tar(folder / "1.tar", members[150:])
    (folder / "nshards.txt").write_text("2")
    return folder


def _open(name: str, root: Path, *, limit: int | None = None, workers: int = 0) -> FileSource:
    source = open_source(name, root, resize=None, crop=16, limit=limit, workers=workers)
    assert isinstance(source, FileSource)
    return source


def test_ranks_of_a_set_of_200_classes_become_classes(tmp_path: Path) -> None:
    root = _shards(tmp_path / "test", _samples(range(200)))
    source = _open("imagenet-a", root)
    place_of = {example.id: int(example.file[1:8]) for example in source.examples}
    assert sorted(place_of.values()) == list(range(200))
    for example, label in zip(source.ids, source.labels, strict=True):
        place = place_of[example]
        assert (example, label) == (f"{WNIDS[A[place]]}/s{place:07d}.jpg", A[place])
    for workers in (0, 2):
        images = _open("imagenet-a", root, workers=workers).images(range(200))
        for example, image in zip(source.ids, images, strict=True):
            with Image.open(io.BytesIO(_picture(place_of[example] % 7))) as file:
                expected = np.asarray(file.convert("RGB")).transpose(2, 0, 1).astype(np.float32) / np.float32(255)
            assert isinstance(image, Tensor)
            assert np.array_equal(image.numpy(), expected)


def test_numbers_of_all_classes_are_classes(tmp_path: Path) -> None:
    tar = _tar(tmp_path / "v2.tar", _samples(reversed(range(1000)), "webp", "webp"))
    source = _open("imagenet-v2", tar)
    for example, label in zip(source.examples, source.labels, strict=True):
        assert label == 999 - int(example.file[1:8])
        assert example.id == f"{WNIDS[label]}/{example.file}"


def test_images_of_the_validation_set_are_known_by_name_and_others_by_number(tmp_path: Path) -> None:
    example, label = next(iter(listed().items()))
    named = _tar(tmp_path / "named.tar", [(f"{example}.cls", b"0"), (f"{example}.jpg", _picture(0))])
    source = _open("imagenet", named, limit=1)
    assert (source.name, source.ids[0], source.labels[0]) == ("imagenet", example, label)
    other = _open("imagenet", _tar(tmp_path / "other.tar", _samples([7, 999, 0])))
    assert other.name == "folder"
    assert dict(zip(other.ids, other.labels, strict=True)) == {
        "s0000000.jpg": 7,
        "s0000001.jpg": 999,
        "s0000002.jpg": 0,
    }


def _without(members: Members, name: str) -> Members:
    return [member for member in members if member[0] != name]


REFUSED: dict[str, tuple[Members, str]] = {
    "a missing number": (
        _without(_samples(range(200)), "s0000011.cls"),
        r"test: `s0000011\.cls` is missing; expected a class number\.$",
    ),
    "no number": (
        [*_without(_samples(range(200)), "s0000011.cls"), ("s0000011.cls", b"crane")],
        r"test: `s0000011\.cls` is b'crane'; expected a class number\.$",
    ),
    "another set": (
        _samples(range(201)),
        rf"test: `labels` is {len(set(range(201)) - set(A))} unknown \(.*\); expected wnids, numbers or unmistakable",
    ),
    "missing classes": (
        _samples(A[2:]),
        rf"test: `classes` is 2 of 200 missing \({WNIDS[A[0]]}, {WNIDS[A[1]]}\); expected images of each class\. Take",
    ),
    "one name in two archives": (
        [*_samples(range(200)), *_samples([3], first=5)],
        r"test: `archives` is s0000005\.jpg in two of them; expected each image in one archive\. Remove one, or",
    ),
    "two images of one sample": (
        [*_samples(range(200)), ("s0000005.mask.png", _picture(0, "png"))],
        r"test: `images` is two beside s0000005\.cls; expected one image in each sample\.$",
    ),
    "no numbers": (
        [member for member in _samples(range(200)) if member[0].endswith("jpg")],
        r"test: `data` is without class folders; expected the images of imagenet-a, in sub-folders named by wnid",
    ),
}


@pytest.mark.parametrize("case", REFUSED)
def test_what_is_no_such_set_is_refused(case: str, tmp_path: Path) -> None:
    members, message = REFUSED[case]
    with pytest.raises(DataError, match=message):
        _open("imagenet-a", _shards(tmp_path / "test", members))


def test_a_limit_runs_on_what_is_there(tmp_path: Path) -> None:
    root = _shards(tmp_path / "test", _samples(A[2:]))
    assert sorted(_open("imagenet-a", root, limit=5).labels) == sorted(A[2:])


def test_a_mirror_on_the_hub_has_the_same_examples(server: FakeHub, tmp_path: Path) -> None:
    pytest.importorskip("datasets", reason="pip install 'robench[hub]'")
    root = _shards(tmp_path / "test", _samples(range(200)))
    server.add("datasets/some/wds", {f"test/{path.name}": path.read_bytes() for path in sorted(root.iterdir())})
    code = """
    import json
    from robench.data import open_source
    source = open_source("imagenet-a", "hf-hub:some/wds", resize=None, crop=16)
    images = [float(image.sum()) for image in source.images(range(5))]
    print(json.dumps([list(source.ids), list(source.labels), images]))
    """
    local = _open("imagenet-a", root)
    sums = [float(image.sum()) for image in local.images(range(5)) if isinstance(image, Tensor)]
    assert _elsewhere(code, server, tmp_path) == json.loads(json.dumps([local.ids, local.labels, sums]))
