import os
from pathlib import Path

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

from robench.data.decoding import Decoder
from robench.data.folder import open_folder
from robench.data.images import read_image
from robench.data.source import Unreadable, by_hash
from robench.errors import DataError


def _noise(seed: int) -> NDArray[np.uint8]:
    return np.random.default_rng(seed).integers(0, 256, (8, 9, 3), dtype=np.uint8)


def _folder(root: Path, classes: dict[str, list[str]]) -> Path:
    for name, files in classes.items():
        (root / name).mkdir(parents=True)
        for number, file in enumerate(files):
            Image.fromarray(_noise(number)).save(root / name / file)
    return root


def test_order_is_by_hash_and_labels_by_rank_of_the_class(tmp_path: Path) -> None:
    _folder(tmp_path, {"zebra": ["a.png", "b.png"], "ant": ["a.png", "c.png"], "bee": ["x.bmp"]})
    source = open_folder(tmp_path, Decoder(None, 8))
    ids = ["ant/a.png", "ant/c.png", "bee/x.bmp", "zebra/a.png", "zebra/b.png"]
    assert source.ids == [ids[position] for position in by_hash(ids)]
    rank = {"ant": 0, "bee": 1, "zebra": 2}
    assert source.labels == [rank[example.split("/")[0]] for example in source.ids]
    assert source.classes == 3
    assert source.name == "folder"
    for example, image in zip(source.ids, source.images(range(5)), strict=True):
        assert isinstance(image, Tensor)
        assert torch.equal(image, read_image(tmp_path / example, resize=None, crop=8))


def test_what_is_no_example_is_left_out(tmp_path: Path) -> None:
    _folder(tmp_path, {"cat": ["a.png", "b.PNG"], ".cache": ["c.png"]})
    (tmp_path / "cat" / "notes.txt").write_text("not an image")
    (tmp_path / "cat" / "._a.png").write_bytes(b"what macOS puts beside a.png")
    (tmp_path / "readme.png").write_bytes(b"not in a class")
    (tmp_path / "dog").mkdir()  # a class without examples is a class all the same
    source = open_folder(tmp_path, Decoder(None, 8))
    assert sorted(source.ids) == ["cat/a.png", "cat/b.PNG"]
    assert source.classes == 2


def test_a_file_that_vanished_is_named(tmp_path: Path) -> None:
    source = open_folder(_folder(tmp_path, {"cat": ["a.png"]}), Decoder(None, 8))
    (tmp_path / "cat" / "a.png").unlink()
    reason = "cat/a.png: `image` is unreadable (No such file or directory); expected an image that Pillow decodes."
    assert list(source.images([0])) == [Unreadable(reason)]
    assert len(source.content_sha256) == 64


def test_a_missing_folder_is_refused(tmp_path: Path) -> None:
    message = r"missing: `data` is no folder; expected a folder with one sub-folder per class\.$"
    with pytest.raises(DataError, match=message):
        open_folder(tmp_path / "missing", Decoder(None, 8))


def test_a_file_is_no_folder(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(DataError, match=r"file: `data` is no folder; expected"):
        open_folder(tmp_path / "file", Decoder(None, 8))


@pytest.mark.parametrize("layout", ["nothing", "empty class", "images without classes"])
def test_a_folder_without_examples_is_refused(tmp_path: Path, layout: str) -> None:
    if layout == "empty class":
        (tmp_path / "cat").mkdir()
    if layout == "images without classes":
        Image.fromarray(_noise(0)).save(tmp_path / "a.png")
    message = (
        r": `data` is empty; expected images in one sub-folder per class\. "
        r"Lay the images out as .*/<class>/<name>\.png\.$"
    )
    with pytest.raises(DataError, match=message):
        open_folder(tmp_path, Decoder(None, 8))


def test_a_file_name_that_is_no_text_is_refused(tmp_path: Path) -> None:
    _folder(tmp_path, {"cat": ["a.png"]})
    strange = os.fsencode(tmp_path / "cat") + b"/\xff.png"
    try:
        Path(os.fsdecode(strange)).write_bytes((tmp_path / "cat" / "a.png").read_bytes())
    except OSError:
        pytest.skip("this file system takes UTF-8 names only")
    with pytest.raises(DataError, match=r"`ids` is 'cat/\\udcff\.png'; expected ids in UTF-8 without line breaks\.$"):
        open_folder(tmp_path, Decoder(None, 8))


def test_a_folder_that_may_not_be_read_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(path: Path) -> None:
        raise PermissionError(13, "Permission denied", str(path))

    monkeypatch.setattr(os, "scandir", refuse)
    message = (
        r": `data` is unreadable \(Permission denied\); expected a folder that can be read\. "
        r"Check the path, and who may read it\.$"
    )
    with pytest.raises(DataError, match=message):
        open_folder(tmp_path, Decoder(None, 8))
