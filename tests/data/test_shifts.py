"""Readers of ImageNet's shifted sets, in the layouts and archives that people have."""

import gzip
import re
import tarfile
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

from robench.data import check_there, open_source
from robench.data.archives import Archive, archives_of
from robench.data.categories import categories
from robench.data.cues import CueSource
from robench.data.files import FileSource
from robench.data.imagenet import subsets
from robench.data.imagenet.cells import CellSource
from robench.data.imagenet.listing import cue_conflict, listed, validation, wnids
from robench.data.imagenet.subsets import subset
from robench.data.source import Source, Unreadable, ids_digest
from robench.errors import DataError
from robench.registry import load_protocol
from tests.shifted_trees import (
    cells_tree,
    cue_tree,
    linked,
    numbered_tree,
    packed,
    picture,
    pictures,
    shift_of,
    validation_names,
    wnid_tree,
    zipped,
)


@pytest.fixture(scope="module")
def originals(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    return pictures(tmp_path_factory.mktemp("pictures"), size=(32, 24))


def _open(name: str, root: Path, *, limit: int | None = None, crop: int = 16, workers: int = 0) -> FileSource:
    source = open_source(name, root, resize=None, crop=crop, limit=limit, workers=workers)
    assert isinstance(source, FileSource)
    return source


def _images(source: Source) -> list[Tensor]:
    found = list(source.images(range(len(source.ids))))
    assert not any(isinstance(image, Unreadable) for image in found)
    return [image for image in found if isinstance(image, Tensor)]


# --- lists of classes


def test_the_lists_are_those_of_the_protocols() -> None:
    for name, shared in (("imagenet-a", 86), ("imagenet-r", 86)):
        assert ids_digest(wnids()[label] for label in subset(name)) == shift_of(name).among_sha256
        assert len(subset(name)) == 200
        assert len(set(subset("imagenet-a")) & set(subset("imagenet-r"))) == shared


def test_a_changed_list_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(subsets.SUBSETS, "other", ("imagenet_a_synsets.txt", "0" * 64))
    with pytest.raises(DataError, match=r"imagenet_a_synsets\.txt: `sha256` is [0-9a-f]{64}; expected 0{64}\."):
        subset("other")
    with pytest.raises(DataError, match=r"^robench: `classes` is `imagenet-b`; .* Did you mean `imagenet-"):
        subset("imagenet-b")


def test_all_validation_images_have_their_class() -> None:
    classes = gzip.decompress((Path(__file__).parent / "imagenet_val_wnids.txt.gz").read_bytes()).decode().split()
    labels = validation()
    assert [wnids()[labels[f"ILSVRC2012_val_{number:08d}"]] for number in range(1, 50_001)] == classes
    assert all(labels[example] == label for example, label in listed().items())
    for protocol in ("imagenet-val", "imagenet-c", "imagenet-c-extra"):
        assert ids_digest(labels) == load_protocol(protocol).data.ids_sha256
    assert ids_digest(listed()) == load_protocol("imagenet-c-5k").data.ids_sha256


# --- wnid folders and class numbers


@pytest.mark.parametrize(("name", "count"), [("imagenet-a", 200), ("imagenet-r", 200), ("imagenet-sketch", 1000)])
def test_labels_come_from_wnids(name: str, count: int, tmp_path: Path, originals: list[Path]) -> None:
    labels = subset(name) if count == 200 else range(1000)
    root = wnid_tree(tmp_path / "set", originals, labels, each=2)
    source = _open(name, root)
    assert (source.name, source.classes, len(source.ids)) == (name, 1000, 2 * count)
    assert all(
        wnids()[label] == example.split("/")[0] for example, label in zip(source.ids, source.labels, strict=True)
    )
    assert _open(name, tmp_path).ids == source.ids  # one level above


def test_class_numbers_are_numbers_not_ranks_of_names(tmp_path: Path, originals: list[Path]) -> None:
    """Sorted as text, `10` comes before `2`, and nearly every label would be wrong."""
    root = numbered_tree(tmp_path / "imagenetv2-matched-frequency-format-val", originals, range(1000))
    source = _open("imagenet-v2", root)
    for example, label in zip(source.examples, source.labels, strict=True):
        assert int(example.file.split("/")[0]) == label
        assert example.id == f"{wnids()[label]}/0.jpeg"
    as_text = sorted(str(number) for number in range(1000))
    assert sum(as_text[label] == str(label) for label in range(1000)) == 12  # what an order by name gets right
    assert sorted(source.labels) == list(range(1000))


def test_missing_classes_are_listed_unless_a_limit_is_given(tmp_path: Path, originals: list[Path]) -> None:
    root = wnid_tree(tmp_path / "a", originals, subset("imagenet-a")[3:])
    names = ", ".join(wnids()[label] for label in subset("imagenet-a")[:3])
    message = rf": `classes` is 3 of 200 missing \({names}\); expected images of each class\. Complete the data, or"
    with pytest.raises(DataError, match=message):
        _open("imagenet-a", root)
    assert len(_open("imagenet-a", root, limit=5).ids) == 197
    for label in subset("imagenet-a")[:3]:
        (root / wnids()[label]).mkdir()  # as a broken copy leaves them
    with pytest.raises(DataError, match=message):
        _open("imagenet-a", root)
    assert len(_open("imagenet-a", root, limit=5).ids) == 197


@pytest.mark.parametrize("folder", ["imagenetv2-threshold0.7-format-val", "imagenetv2-top-images-format-val"])
def test_other_versions_of_imagenet_v2_are_refused_by_their_names(
    folder: str, tmp_path: Path, originals: list[Path]
) -> None:
    root = numbered_tree(tmp_path / folder, originals, range(1000))
    tar = packed(root, tmp_path / "v2.tar", top=folder)
    for path in (root, tmp_path, tar):
        with pytest.raises(
            DataError, match=rf"^{path}: `data` is another version of the set, `{folder}`; expected the"
        ):
            _open("imagenet-v2", path)
    assert len(_open("imagenet-v2", root.rename(tmp_path / "mine")).ids) == 1000


@pytest.mark.parametrize("name", ["stylized-imagenet", "imagenet-c", "cue-conflict"])
def test_images_of_another_size_are_none_of_a_set_that_is_not_resized(name: str, tmp_path: Path) -> None:
    """Cropped in silence they would be scored, and be others than everybody's."""
    right, wrong = pictures(tmp_path / "right", 1, (16, 16)), pictures(tmp_path / "wrong", 1, (20, 16))
    cells = shift_of("imagenet-c").cells if name == "imagenet-c" else ()
    found = []
    for originals in (right, wrong):
        root = tmp_path / originals[0].parent.name / "set"
        if cells:
            cells_tree(root, originals, validation_names(1))
        elif name == "cue-conflict":
            linked(root, ["bear/bear1-cat1.png"], originals)
        else:
            wnid_tree(root, originals, [3])
        source = open_source(name, root, resize=None, crop=16, limit=1, workers=0, cells=cells)
        found.append(next(iter(source.images([0]))))
    assert isinstance(found[0], Tensor)
    assert isinstance(found[1], Unreadable)
    expected = r".*: `image` is 20x16 pixels; expected 16x16 pixels\. The set was published in that size; is this it\?"
    assert re.fullmatch(expected, found[1].reason)


def test_the_hub_is_not_asked_for_sets_in_cells(tmp_path: Path) -> None:
    cells = shift_of("imagenet-c").cells
    expected = "; expected a folder, or archives: a set in cells is not read from the Hub. Download it first."
    for data, clean, said in (
        ("hf-hub:some/c", None, "`data` is `hf-hub:some/c`"),
        (tmp_path, "hf-hub:ILSVRC/imagenet-1k", "`clean` is `hf-hub:ILSVRC/imagenet-1k`"),
    ):
        with pytest.raises(DataError, match=f"^{re.escape(f'robench: {said}{expected}')}$"):
            open_source("imagenet-c", data, resize=None, crop=16, cells=cells, clean=clean)


def test_another_set_is_refused(tmp_path: Path, originals: list[Path]) -> None:
    root = wnid_tree(tmp_path / "r", originals, subset("imagenet-r"))
    with pytest.raises(
        DataError, match=r": `sub-folders` is 114 unknown \(n0.*; expected the 200 classes of the set\."
    ):
        _open("imagenet-a", root)
    with pytest.raises(
        DataError, match=r": `data` is without class folders; expected the images of imagenet-v2, in sub"
    ):
        _open("imagenet-v2", root)
    with pytest.raises(
        DataError, match=r"nowhere: `data` is missing; expected the images of imagenet-a, in sub-folders"
    ):
        _open("imagenet-a", tmp_path / "nowhere")


def test_stylized_images_are_224_already_and_are_not_resized(tmp_path: Path) -> None:
    """Resized to 256 and cropped, as other images are, they would lose a border and be blurred."""
    original = picture(tmp_path / "one.png", 3, (224, 224))
    root = wnid_tree(tmp_path / "sin" / "val", [original], range(1000), suffix="png")
    data = load_protocol("stylized-imagenet").data
    source = open_source("stylized-imagenet", root.parent, resize=data.resize, crop=data.crop, limit=None, workers=0)
    (image,) = source.images([17])
    assert isinstance(image, Tensor)
    exact = torch.from_numpy(np.asarray(Image.open(original)).transpose(2, 0, 1).copy()).float() / 255
    assert torch.equal(image, exact)
    for name in ("imagenet-c", "imagenet-c-5k", "imagenet-c-extra", "cue-conflict", "stylized-imagenet"):
        assert load_protocol(name).data.resize is None
    for name in ("imagenet-val", "imagenet-a", "imagenet-r", "imagenet-sketch", "imagenet-v2"):
        assert (load_protocol(name).data.resize, load_protocol(name).data.crop) == (256, 224)


# --- archives


def test_archives_are_read_as_they_are(tmp_path: Path, originals: list[Path]) -> None:
    root = wnid_tree(tmp_path / "imagenet-a", originals, subset("imagenet-a"))
    (root / "README.txt").write_text("read me")
    folder = _open("imagenet-a", root)
    expected = _images(folder)
    plain = packed(root, tmp_path / "imagenet-a.tar", top="imagenet-a")
    archives = [plain, packed(root, tmp_path / "a.tar.gz", top="./imagenet-a", mode="w:gz")]
    archives.append(zipped(root, tmp_path / "a.zip"))
    (tmp_path / "download").mkdir()
    (tmp_path / "download" / "imagenet-a.tar").symlink_to(plain)
    for archive in (*archives, tmp_path / "download"):
        for workers in (0, 2):
            source = _open("imagenet-a", archive, workers=workers)
            assert source.ids == folder.ids
            assert all(map(torch.equal, _images(source), expected))


def test_the_validation_set_is_one_flat_tar(tmp_path: Path, originals: list[Path]) -> None:
    names = [name.split("/")[1] for name in validation_names(70)]
    root = linked(tmp_path / "flat", names, originals)
    tar = packed(root, tmp_path / "ILSVRC2012_img_val.tar")
    source = open_source("imagenet-val", tar, resize=None, crop=16, limit=60, workers=0)
    assert list(source.ids) == list(validation())
    assert list(source.labels) == list(validation().values())
    folder = open_source("imagenet-val", root, resize=None, crop=16, limit=60, workers=0)
    for one, other in zip(source.images(range(60)), folder.images(range(60)), strict=True):
        assert isinstance(one, Tensor)
        assert isinstance(other, Tensor)
        assert torch.equal(one, other)
    with pytest.raises(DataError, match=r"img_val\.tar: `images` is 49930 of 50000 missing \(ILSVRC2012_val_"):
        open_source("imagenet-val", tar, resize=None, crop=16, workers=0)


def test_a_compressed_tar_is_unpacked_once(
    tmp_path: Path, originals: list[Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    root = wnid_tree(tmp_path / "imagenet-a", originals, subset("imagenet-a"))
    archive = packed(root, tmp_path / "a.tar.gz", mode="w:gz")
    ids = _open("imagenet-a", archive).ids
    (plain,) = (tmp_path / "cache" / "robench" / "unpacked").glob("*.tar")
    before = plain.stat()
    assert (_open("imagenet-a", archive).ids, plain.stat().st_mtime_ns) == (ids, before.st_mtime_ns)
    next(root.rglob("*.jpg")).unlink()
    packed(root, archive, mode="w:gz")
    assert len(_open("imagenet-a", archive, limit=1).ids) == len(ids) - 1  # another file under the same name
    assert len(list(plain.parent.glob("*.tar"))) == 1
    assert not plain.exists()


def test_where_there_is_no_room_for_it_is_said(
    tmp_path: Path, originals: list[Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file"))
    root = wnid_tree(tmp_path / "imagenet-a", originals, subset("imagenet-a"))
    message = (
        r"a\.tgz: `archive` is not to be unpacked to .*/a-\w+-\w+\.tar \(.*\); expected a folder that can be written"
    )
    with pytest.raises(DataError, match=message):
        _open("imagenet-a", packed(root, tmp_path / "a.tgz", mode="w:gz"))


def test_a_cut_archive_is_refused(tmp_path: Path, originals: list[Path]) -> None:
    root = wnid_tree(tmp_path / "imagenet-a", originals, subset("imagenet-a"))
    for archive in (
        packed(root, tmp_path / "cut.tar.gz", mode="w:gz"),
        zipped(root, tmp_path / "cut.zip"),
        picture(tmp_path / "no.png", 0).rename(tmp_path / "no.tar"),
    ):
        archive.write_bytes(archive.read_bytes()[: archive.stat().st_size // 2])
        message = rf"{re.escape(archive.name)}: `archive` is unreadable \(.*\); expected a whole tar or zip\. Download"
        with pytest.raises(DataError, match=message):
            _open("imagenet-a", archive)


def test_members_are_found_by_name_in_any_form_of_tar(tmp_path: Path) -> None:
    long = "n01440764/" + "x" * 200 + ".jpg"
    for number, form in enumerate((tarfile.USTAR_FORMAT, tarfile.GNU_FORMAT, tarfile.PAX_FORMAT)):
        names = ["n01440764/a.jpg", *([long] if form != tarfile.USTAR_FORMAT else [])]
        path = tmp_path / f"{number}.tar"
        with tarfile.open(path, "w", format=form) as tar:
            for name in names:
                (tmp_path / "content").write_bytes(name.encode() * 100)
                tar.add(tmp_path / "content", name)
        archive = Archive(path)
        for name in names:
            folder, _, file = name.rpartition("/")
            member = archive.member(folder, file)
            assert member is not None
            assert member.read_bytes() == name.encode() * 100
        assert archive.member("n01440764", "b.jpg") is None
        assert archive.member("n01440765", "a.jpg") is None
    assert archives_of(tmp_path / "nowhere") == []


# --- cells


CELLS = shift_of("imagenet-c").cells
NAMES = [f"{wnids()[label]}/x{label}.JPEG" for label in (0, 1, 389)]


@pytest.fixture(scope="module")
def corrupted(tmp_path_factory: pytest.TempPathFactory) -> Path:
    small = pictures(tmp_path_factory.mktemp("pictures"), size=(16, 16))
    return cells_tree(tmp_path_factory.mktemp("c") / "ImageNet-C", small, NAMES)


def _cells(
    root: Path, *, clean: Path | None = None, limit: int | None = None, name: str = "imagenet-c", workers: int = 0
) -> CellSource:
    source = open_source(name, root, resize=None, crop=16, limit=limit, workers=workers, cells=CELLS, clean=clean)
    assert isinstance(source, CellSource)
    return source


def test_every_view_is_that_of_its_cell(corrupted: Path) -> None:
    source = _cells(corrupted)
    assert sorted(source.ids) == NAMES
    assert list(source.view_names) == [f"{corruption}/{severity}" for corruption, severity in CELLS]
    for workers in (0, 2):
        views = list(_cells(corrupted, workers=workers).views([2, 0]))
        assert len(views) == 150
        for at, view in enumerate(views):
            example, (corruption, severity) = source.ids[2 if at < 75 else 0], CELLS[at % 75]
            assert isinstance(view, Tensor)
            with Image.open(corrupted / corruption / str(severity) / example) as file:
                pixels = np.asarray(file.convert("RGB")).transpose(2, 0, 1)
            assert view.dtype == torch.uint8
            assert np.array_equal(view.numpy(), pixels)


def test_the_five_tars_side_by_side_are_the_same(corrupted: Path, tmp_path: Path) -> None:
    families = shift_of("imagenet-c").families or {}
    for family, names in families.items():
        (tmp_path / family).mkdir()
        for name in names:
            (tmp_path / family / name).symlink_to(corrupted / name)
    (tmp_path / "tars").mkdir()
    for family in families:
        with tarfile.open(tmp_path / "tars" / f"{family}.tar", "w", dereference=True) as tar:
            for name in families[family]:
                tar.add(corrupted / name, name)
    expected = list(_cells(corrupted).views([1]))
    nested = tmp_path / "nested"
    nested.mkdir()
    for family in families:
        (nested / family).symlink_to(tmp_path / family)
    for root in (tmp_path / "tars", nested):
        source = _cells(root)
        assert source.ids == _cells(corrupted).ids
        for one, other in zip(source.views([1]), expected, strict=True):
            assert isinstance(one, Tensor)
            assert isinstance(other, Tensor)
            assert torch.equal(one, other)


def test_missing_severities_and_classes_are_listed_before_anything_runs(tmp_path: Path, originals: list[Path]) -> None:
    root = cells_tree(tmp_path / "c", originals, NAMES)
    (root / "fog" / "3").rename(tmp_path / "elsewhere")
    (root / "snow").rename(tmp_path / "snow")
    (root / "frost" / "5" / "n01440764" / "x0.JPEG").unlink()
    (root / "frost" / "5" / "n01440764").rmdir()
    message = (
        r"c: `cells` is 3 missing \(fog/3, snow, frost/5/n01440764\); expected all 75 cells of 15 corruptions, "
        r"with the same classes\. Complete the data\.$"
    )
    with pytest.raises(DataError, match=message):
        _cells(root)
    with pytest.raises(DataError, match=r"`cells` is 15 missing \(brightness, contrast, defocus_blur, "):
        _cells(originals[0].parent)


def test_a_class_without_images_in_one_cell_is_missing_there(tmp_path: Path, originals: list[Path]) -> None:
    root = cells_tree(tmp_path / "c", originals, NAMES)
    (root / "fog" / "3" / NAMES[0]).unlink()
    with pytest.raises(DataError, match=rf": `cells` is 1 missing \(fog/3/{NAMES[0].split('/')[0]}\); expected all 75"):
        _cells(root)
    assert len(_cells(root, limit=3).ids) == 3


def test_a_missing_file_is_an_unreadable_view(tmp_path: Path) -> None:
    small = pictures(tmp_path / "pictures", size=(16, 16))
    root = cells_tree(tmp_path / "c", small, [*NAMES, NAMES[0].replace(".JPEG", "-2.JPEG")])
    (root / "fog" / "3" / NAMES[0]).unlink()
    source = _cells(root)
    position = list(source.ids).index(NAMES[0])
    lost = [view for view in source.views([position]) if isinstance(view, Unreadable)]
    found = (
        f"fog/3/{NAMES[0]}: `image` is unreadable (No such file or directory); expected an image that Pillow decodes."
    )
    assert [view.reason for view in lost] == [found]


def test_clean_images_are_paired_by_id_in_their_own_view(tmp_path: Path, originals: list[Path]) -> None:
    names = validation_names(3)
    root = cells_tree(tmp_path / "c", originals, names)
    large = pictures(tmp_path / "large", size=(300, 280))
    clean = linked(tmp_path / "val", reversed(names), large)
    source = _cells(root, clean=clean, limit=3)
    assert source.view_names[0] == "clean"
    assert source.ids == list(validation())
    first, *cells = source.views([1])
    assert isinstance(first, Tensor)
    assert (tuple(first.shape), len(cells)) == ((3, 224, 224), 75)
    with Image.open(clean / names[1]) as file:
        whole = file.convert("RGB").resize((274, 256), Image.Resampling.BILINEAR).crop((25, 16, 249, 240))
    assert np.array_equal(first.numpy(), np.asarray(whole).transpose(2, 0, 1))
    assert source.content_sha256 != _cells(root, limit=3).content_sha256
    (clean / names[2]).unlink()
    with pytest.raises(DataError, match=r"val: `clean` is .* missing \(.*\); expected the clean image of every"):
        _cells(root, clean=clean, limit=3)


def test_the_5000_are_those_of_the_list(tmp_path: Path, originals: list[Path]) -> None:
    names = [f"{wnids()[label]}/{example}.JPEG" for example, label in list(listed().items())[:4]]
    root = cells_tree(tmp_path / "c", originals, names)
    assert _cells(root, limit=4, name="imagenet-c-5k").ids == list(listed())
    assert _cells(root, limit=5, name="imagenet-c-5k").ids == list(listed())[:4]
    with pytest.raises(DataError, match=r": `images` is 4996 of 5000 missing \(ILSVRC2012_val_"):
        _cells(root, name="imagenet-c-5k")


def test_cells_need_views(originals: list[Path]) -> None:
    images = (torch.zeros(2, 3, 8, 8), [0, 1])
    with pytest.raises(DataError, match=r"^robench: `data` is tuple; expected a folder or a source with views: it is"):
        open_source("imagenet-c", images, resize=None, crop=8, cells=CELLS)


# --- cue conflict


def test_shape_and_texture_come_from_the_name(tmp_path: Path) -> None:
    originals = pictures(tmp_path / "png", suffix=".png")
    root = cue_tree(tmp_path / "stimuli" / "style-transfer-preprocessed-512", originals, each=3)
    source = _open("cue-conflict", root.parent)
    assert isinstance(source, CueSource)
    names = list(categories("sixteen"))
    assert (len(source.ids), source.classes, names[:3]) == (48, 1000, ["airplane", "bear", "bicycle"])
    for example, label, texture in zip(source.ids, source.labels, source.textures, strict=True):
        shape, other = re.findall(r"([a-z]+)[0-9]+", example.removesuffix(".png"))
        assert (names[label], names[texture]) == (shape, other)
    assert sum(label == texture for label, texture in zip(source.labels, source.textures, strict=True)) == 16


def test_a_category_that_is_missing_and_a_name_that_is_none_are_refused(tmp_path: Path) -> None:
    originals = pictures(tmp_path / "png", suffix=".png")
    root = cue_tree(tmp_path / "cues", originals)
    (root / "dog" / "dog1-dog1.png").rename(root / "dog" / "dog1-wolf1.png")
    with pytest.raises(
        DataError, match=r"cues: `file` is 'dog/dog1-wolf1\.png'; expected <shape>/<shape><n>-<texture>"
    ):
        _open("cue-conflict", root)
    (root / "dog" / "dog1-wolf1.png").unlink()
    (root / "dog").rmdir()
    with pytest.raises(DataError, match=r"cues: `categories` is 1 of 16 missing \(dog\); expected a folder for each"):
        _open("cue-conflict", root)
    with pytest.raises(DataError, match=r": `data` is without images of the 16 categories; expected the cue-conflict"):
        _open("cue-conflict", tmp_path / "png")


def test_of_the_published_cue_conflict_images_none_may_be_missing(tmp_path: Path) -> None:
    whole = linked(tmp_path / "cues", list(cue_conflict()), pictures(tmp_path / "png", suffix=".png"))
    source = _open("cue-conflict", whole)
    assert isinstance(source, CueSource)
    assert (len(source.ids), source.missing) == (1280, [])
    (whole / "bear" / "bear5-bottle1.png").rename(whole / "bear" / "bear99-bottle1.png")
    with pytest.raises(
        DataError, match=r"cues: `images` is 1 of 1280 missing \(bear5-bottle1\.png\); expected all pub"
    ):
        _open("cue-conflict", whole)
    few = _open("cue-conflict", whole, limit=10)
    assert isinstance(few, CueSource)
    assert (len(few.ids), [example.id for example in few.missing or ()]) == (1280, ["bear5-bottle1.png"])


# --- where they lie


def test_sets_of_the_same_images_lie_in_the_same_place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ROBENCH_IMAGENET_C", str(tmp_path))
    for name in ("imagenet-c", "imagenet-c-5k", "imagenet-c-extra"):
        location = check_there(name)
        assert location is not None
        assert (location.path, location.origin) == (tmp_path, "ROBENCH_IMAGENET_C")
    with pytest.raises(
        DataError, match=r"`data` is none; expected the images of `imagenet-val`\. .* set ROBENCH_IMAGENET,"
    ):
        check_there("imagenet-val")
    with pytest.raises(
        DataError, match=r"`data` is none; expected the images of `imagenet-a`\. .* set ROBENCH_IMAGENET_A"
    ):
        check_there("imagenet-a")
