import gzip
import hashlib
import os
import shutil
from collections.abc import Iterator
from importlib.resources import files
from pathlib import Path
from typing import Any

import pytest
import torch

from robench.data import open_source
from robench.data.decoding import Decoder
from robench.data.files import FileSource
from robench.data.imagenet import listing, open_imagenet
from robench.data.imagenet.listing import id_of, listed, wnids
from robench.data.images import read_image
from robench.data.source import by_hash, ids_digest
from robench.errors import DataError
from robench.registry import load_protocol
from tests.photographs import listed_images, photographs, wnid_folders

DECODER = Decoder(256, 224, 0)


def _open(root: Path, *, limit: int | None = None, any_classes: bool = False) -> FileSource:
    return open_imagenet(root, DECODER, limit=limit, any_classes=any_classes)


# --- the list


def test_the_list_is_what_the_rule_gives() -> None:
    # The class of each of the 50,000 validation images, in the order of the files, from the devkit of ILSVRC2012.
    classes = gzip.decompress((Path(__file__).parent / "imagenet_val_wnids.txt.gz").read_bytes()).decode().split()
    assert len(classes) == 50_000
    names = sorted(f"{wnid}/ILSVRC2012_val_{number:08d}.JPEG" for number, wnid in enumerate(classes, 1))
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        for _ in range(2):
            torch.empty((), dtype=torch.int64).random_()
        chosen = [names[position] for position in torch.randperm(50_000)[:5000].tolist()]
    digest = hashlib.sha256("\n".join(chosen).encode()).hexdigest()
    assert digest == "d4121626d07722a0126c35b1563042e46a546f1a05ce705f2cdc635896d58574"
    rank = {wnid: label for label, wnid in enumerate(sorted(set(classes)))}
    assert [(name[10:33], rank[name[:9]]) for name in chosen] == list(listed().items())


def test_the_list_is_that_of_the_protocols() -> None:
    for name in ("pgd-linf@1", "pgd-linf-paper@1"):
        data = load_protocol(name).data
        assert ids_digest(listed()) == data.ids_sha256
        assert (len(listed()), len(wnids())) == (data.count, data.classes)


def test_the_classes_are_those_that_timm_trains() -> None:
    package = files("timm") / "data" / "_info" / "imagenet_synsets.txt"
    assert list(wnids()) == package.read_text().split()


def test_997_classes_occur() -> None:
    assert len(set(listed().values())) == 997


@pytest.mark.parametrize("content", [gzip.compress(b"n00000001", mtime=0), b"no gzip", b""])
def test_a_changed_list_is_found(content: bytes, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "wnids.txt.gz").write_bytes(content)
    monkeypatch.setattr("importlib.resources.files", lambda package: tmp_path)
    listing._lines.cache_clear()
    found = "`sha256` is [0-9a-f]{64}" if content[:2] == b"\x1f\x8b" or not content else "`file` is unreadable"
    with pytest.raises(DataError, match=rf"^robench/data/imagenet/wnids\.txt\.gz: {found}.* Install robench again\.$"):
        wnids()
    listing._lines.cache_clear()


@pytest.mark.parametrize(
    ("file", "expected"),
    [
        ("ILSVRC2012_val_00000293.JPEG", "ILSVRC2012_val_00000293"),
        ("ILSVRC2012_val_00000293_n02123159.JPEG", "ILSVRC2012_val_00000293"),
        ("ILSVRC2012_val_00000293-224px.png", "ILSVRC2012_val_00000293"),
        ("ILSVRC2012_val_000002930.JPEG", None),
        ("ILSVRC2012_val_0000293.JPEG", None),
        ("ILSVRC2012_test_00000293.JPEG", None),
        ("my_ILSVRC2012_val_00000293.JPEG", None),
        ("n01440764_10026.JPEG", None),
    ],
)
def test_an_id_is_known_by_its_beginning(file: str, expected: str | None) -> None:
    assert id_of(file) == expected


# --- layouts of the 5,000


@pytest.fixture(scope="module")
def layouts(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, Path]]:
    """The 5,000 listed images in the layouts that people have."""
    folder = tmp_path_factory.mktemp("imagenet")
    yield {
        "flat": listed_images(folder / "flat", flat=True),
        "wnids": listed_images(folder / "tree" / "ILSVRC" / "Data" / "CLS-LOC" / "val", suffix=True),
    }
    shutil.rmtree(folder)


def test_all_layouts_are_the_protocols_data(layouts: dict[str, Path], tmp_path: Path) -> None:
    tree = layouts["wnids"].parents[3]
    (tree / "ILSVRC" / "Data" / "CLS-LOC" / "train" / "n99999999").mkdir(parents=True)
    (tmp_path / "root").mkdir()
    (tmp_path / "root" / "val").symlink_to(layouts["flat"])
    roots = [layouts["flat"], layouts["wnids"], layouts["wnids"].parent, tree / "ILSVRC", tree, tmp_path / "root"]
    contents = set()
    for root in roots:
        source = _open(root)
        assert ids_digest(source.ids) == load_protocol("pgd-linf@1").data.ids_sha256
        assert source.labels == list(listed().values())
        assert (source.name, source.classes, source.missing) == ("imagenet", 1000, [])
        assert Path(source.tree.root / source.examples[0].file).is_file()
        contents.add(source.content_sha256)
    assert len(contents) == 1


def test_what_else_is_there_does_not_matter(layouts: dict[str, Path]) -> None:
    extra = [layouts["flat"] / "ILSVRC2012_val_00000001.JPEG", layouts["flat"] / "mine.png"]
    assert "ILSVRC2012_val_00000001" not in listed()
    for path in extra:
        path.write_bytes(b"")
    try:
        assert list(_open(layouts["flat"]).ids) == list(listed())
    finally:
        for path in extra:
            path.unlink()


def test_missing_images_are_counted_and_named(layouts: dict[str, Path]) -> None:
    names = [f"{example}.JPEG" for example in list(listed())[100:104]]
    for name in names:
        (layouts["flat"] / name).rename(layouts["flat"] / f"gone-{name}")
    try:
        ids = list(listed())
        with pytest.raises(DataError) as raised:
            _open(layouts["flat"])
        assert str(raised.value) == (
            f"{layouts['flat']}: `images` is 4 of 5000 missing ({ids[100]}, {ids[101]}, {ids[102]} ...); "
            "expected all images of the protocol's list. Complete the folder, or give `limit` to run on those that "
            "are there, marked unofficial."
        )
        whole = _open(layouts["flat"], limit=100)
        assert list(whole.ids) == ids
        assert [example.id for example in whole.missing or ()] == ids[100:104]
        some = _open(layouts["flat"], limit=101)
        assert list(some.ids) == ids[:100] + ids[104:]
        assert some.labels == [listed()[example] for example in some.ids]
    finally:
        for name in names:
            (layouts["flat"] / f"gone-{name}").rename(layouts["flat"] / name)


def test_a_folder_without_any_of_the_list_is_refused_whatever_the_limit(tmp_path: Path) -> None:
    (tmp_path / "ILSVRC2012_val_00000001.JPEG").write_bytes(b"")
    for limit in (None, 5):
        with pytest.raises(DataError, match=r"`images` is 5000 of 5000 missing \(.*\); expected all images"):
            _open(tmp_path, limit=limit)


def test_two_files_for_one_image_are_refused(tmp_path: Path) -> None:
    name = next(iter(listed()))
    for file in (f"{name}.JPEG", f"{name}_n09468604.JPEG"):
        (tmp_path / file).write_bytes(b"")
    message = (
        rf": `{name}` is there twice \({name}\.JPEG and {name}_n09468604\.JPEG\); "
        r"expected one file for each image\. Remove one of them\.$"
    )
    with pytest.raises(DataError, match=message):
        _open(tmp_path)


# --- other images


def test_photographs_in_wnid_folders_have_the_rank_of_their_wnid(tmp_path: Path) -> None:
    source = _open(wnid_folders(tmp_path / "val").parent)
    assert len(source.ids) == 20
    assert [source.ids[position] for position in by_hash(source.ids)] == list(source.ids)
    assert (source.name, source.classes, source.missing) == ("folder", 1000, None)
    for example, label, image in zip(source.ids, source.labels, source.images(range(20)), strict=True):
        wnid, _, name = example.partition("/")
        path, expected = photographs()[name]
        assert (wnids()[label], label) == (wnid, expected)
        assert isinstance(image, torch.Tensor)
        assert torch.equal(image, read_image(path, resize=256, crop=224))


def test_unknown_wnids_are_named(tmp_path: Path) -> None:
    wnid_folders(tmp_path)
    (tmp_path / "n99999999").mkdir()
    (tmp_path / "cat").mkdir()
    (tmp_path / "lost+found").mkdir()  # of a disk's own root
    message = (
        r": `sub-folders` is 2 unknown \(cat, n99999999\); expected wnids of the 1,000 classes\. "
        r"Move what is no class of ImageNet-1k elsewhere\.$"
    )
    for any_classes in (False, True):
        with pytest.raises(DataError, match=message):
            _open(tmp_path, any_classes=any_classes)
    (tmp_path / "cat").rmdir()
    (tmp_path / "n99999999").rmdir()
    assert len(_open(tmp_path).ids) == 20


def test_images_beside_wnid_folders_belong_nowhere(tmp_path: Path) -> None:
    wnid_folders(tmp_path)
    (tmp_path / "mine.png").write_bytes(b"")
    message = r": `images` is 1 beside the sub-folders \(mine\.png\); expected all images in sub-folders, or none\.$"
    with pytest.raises(DataError, match=message):
        _open(tmp_path)


def _other_classes(root: Path) -> Path:
    for name, (path, label) in photographs().items():
        (root / f"class {label}").mkdir(parents=True, exist_ok=True)
        (root / f"class {label}" / name).symlink_to(path)
    (root / "sheet.png").write_bytes(b"")
    return root


def test_other_classes_are_taken_only_when_they_are_handed_in(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    _other_classes(tmp_path / "photos")
    source: Any = open_source("imagenet", tmp_path / "photos", resize=256, crop=224)
    assert (source.name, source.classes, len(source.ids)) == ("folder", 19, 20)
    (tmp_path / "photos" / "sheet.png").unlink()
    monkeypatch.setenv("ROBENCH_IMAGENET", str(tmp_path / "photos"))
    message = (
        r"photos: `data` is without images \(its sub-folders: class 129, class 22, class 243 \.\.\.\); expected images "
        r"in sub-folders named by wnid \(such as n01440764\), or side by side\. Name the folder that contains `val`\. "
        r"\(ROBENCH_IMAGENET names .*photos\.\)$"
    )
    with pytest.raises(DataError, match=message):
        open_source("imagenet", None, resize=256, crop=224)


# --- labels.txt


def _flat(root: Path, lines: dict[str, Any]) -> Path:
    root.mkdir(exist_ok=True)
    for name, (path, _) in list(photographs().items())[:4]:
        (root / name).symlink_to(path)
    (root / "labels.txt").write_text("".join(f"{name} {label}\n" for name, label in lines.items()))
    return root


def _lines(count: int = 4) -> dict[str, Any]:
    return {name: label for name, (_, label) in list(photographs().items())[:count]}


def test_flat_images_have_the_classes_of_their_list(tmp_path: Path) -> None:
    source = _open(_flat(tmp_path, _lines()))
    assert dict(zip(source.ids, source.labels, strict=True)) == _lines()
    assert [source.ids[position] for position in by_hash(source.ids)] == list(source.ids)
    assert (source.name, source.classes) == ("folder", 1000)


def test_a_file_name_may_hold_spaces(tmp_path: Path) -> None:
    (tmp_path / "my cat.png").write_bytes(b"")
    (tmp_path / "labels.txt").write_text("my cat.png   281\n\n")
    source = _open(tmp_path)
    assert (list(source.ids), source.labels) == (["my cat.png"], [281])


def test_flat_images_without_a_list_are_refused(tmp_path: Path) -> None:
    (_flat(tmp_path, {}) / "labels.txt").unlink()
    message = (
        r": `images` is 4 without labels \(imagenet_00_243\.jpg, imagenet_01_559\.jpg, imagenet_02_438\.jpg \.\.\.\); "
        r"expected sub-folders named by wnid\. Or add `labels\.txt` with one line `<file> <class number>` for "
        r"each image\.$"
    )
    with pytest.raises(DataError, match=message):
        _open(tmp_path)


def test_files_without_a_line_and_lines_without_a_file_are_counted_and_named(tmp_path: Path) -> None:
    _flat(tmp_path, {**_lines(2), "a.jpg": 1, "b.jpg": 2, "c.jpg": 3})
    message = (
        r"labels\.txt: `lines` is 5 lines for 4 images, with 2 files without a line \(imagenet_02_438\.jpg, "
        r"imagenet_03_990\.jpg\) and 3 lines without a file \(a\.jpg, b\.jpg, c\.jpg\); "
        r"expected one line for each image\.$"
    )
    with pytest.raises(DataError, match=message):
        _open(tmp_path)


@pytest.mark.parametrize(
    "line", ["imagenet_00_243.jpg", "a.jpg one", "a.jpg 1000", "a.jpg -1", "a.jpg 1.0", "7", "a.jpg ²"]
)
def test_a_malformed_line_is_named(tmp_path: Path, line: str) -> None:
    _flat(tmp_path, {})
    (tmp_path / "labels.txt").write_text(f"imagenet_01_559.jpg 559\n{line}\n", encoding="utf-8")
    message = rf"labels\.txt:2: `line` is '{line}'; expected `<file> <class number>`, with a number from 0 to 999\.$"
    with pytest.raises(DataError, match=message):
        _open(tmp_path)


def test_a_file_that_is_labelled_twice_is_named(tmp_path: Path) -> None:
    _flat(tmp_path, {})
    (tmp_path / "labels.txt").write_text("imagenet_01_559.jpg 559\nimagenet_01_559.jpg 3\n")
    message = r"labels\.txt:2: `file` is imagenet_01_559\.jpg again; expected one line for each image\.$"
    with pytest.raises(DataError, match=message):
        _open(tmp_path)


def test_a_list_that_is_no_text_is_refused(tmp_path: Path) -> None:
    _flat(tmp_path, {})
    (tmp_path / "labels.txt").write_bytes(b"\xff\xfe")
    with pytest.raises(
        DataError, match=r"labels\.txt: `labels` is unreadable \(.*\); expected a text file in UTF-8\.$"
    ):
        _open(tmp_path)


# --- no ImageNet


def test_a_path_that_is_no_folder_is_refused(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    for name, found in (("nowhere", "missing"), ("file", "a file")):
        with pytest.raises(
            DataError, match=rf"{name}: `data` is {found}; expected a folder of ImageNet's validation images\.$"
        ):
            _open(tmp_path / name)


@pytest.mark.parametrize("folder", ["", "val", "val/n01440764"])
def test_an_empty_folder_is_refused(tmp_path: Path, folder: str) -> None:
    (tmp_path / folder).mkdir(parents=True, exist_ok=True)
    found = r"without images \(its sub-folders: n01440764\)" if "n0" in folder else "empty"
    message = (
        rf": `data` is {found}; expected images in sub-folders named by wnid \(such as n01440764\), or side by side\."
    )
    for any_classes in (False, True):
        with pytest.raises(DataError, match=message):
            _open(tmp_path, any_classes=any_classes)


def test_a_root_that_may_not_be_read_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(path: Path) -> Any:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(Path, "is_file", refuse)
    with pytest.raises(DataError, match=rf"^{tmp_path}: `data` is unreadable \(Permission denied\); expected a folder"):
        _open(tmp_path)


def test_a_folder_that_may_not_be_read_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    wnid_folders(tmp_path)
    look = os.scandir

    def refuse(path: Path) -> Any:
        if path.name == wnids()[22]:
            raise PermissionError(13, "Permission denied")
        return look(path)

    monkeypatch.setattr(os, "scandir", refuse)
    with pytest.raises(
        DataError, match=rf"{wnids()[22]}: `data` is unreadable \(Permission denied\); expected a folder"
    ):
        _open(tmp_path)
