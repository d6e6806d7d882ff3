import hashlib
import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from typer.testing import CliRunner

from robench.cli.main import app
from robench.data import archives
from robench.data.imagenet.listing import listed, wnids
from robench.data.imagenet.subsets import subset
from robench.errors import DataError
from robench.registry import load_protocol, shipped_folder
from robench.result import Result
from tests.photographs import listed_images, wnid_folders
from tests.shifted_trees import cells_tree, packed, pictures, validation_names, wnid_tree


def _check(*arguments: str) -> tuple[int, str]:
    result = CliRunner().invoke(app, ["data", "check", *arguments])
    if result.exception is not None and not isinstance(result.exception, SystemExit):
        raise result.exception
    return result.exit_code, result.stdout


def _json(*arguments: str) -> tuple[int, Any]:
    code, stdout = _check(*arguments, "--json")
    return code, json.loads(stdout)


def _cells(stdout: str) -> str:
    """The second column of a table, without spaces."""
    return "".join(line.split("│")[2] for line in stdout.splitlines() if line.count("│") == 3).replace(" ", "")


@pytest.fixture
def small_view(tmp_path: Path) -> str:
    """The protocol on ImageNet with a small crop, so that 5,000 images are read in seconds."""
    text = (shipped_folder() / "pgd-linf.toml").read_text().replace("crop = 224", "crop = 8")
    path = tmp_path / "small.toml"
    path.write_text(text.replace("resize = 256  #", "resize = 8  #"))
    return str(path)


def test_the_mini_suite_is_ready_and_has_the_pixels_of_its_results(tmp_path: Path) -> None:
    code, report = _json("mini-pgd-linf")
    assert code == 0
    assert report["ok"] is report["ids_are_the_protocols"] is True
    assert (report["protocol"], report["source"], report["count"]) == ("mini-pgd-linf@1", "mini", 512)
    assert report["missing"] == report["missing_classes"] == report["unreadable"] == []
    assert report["ids_sha256"] == load_protocol("mini-pgd-linf@1").data.ids_sha256
    code, stdout = _check("mini-pgd-linf")
    assert code == 0
    assert report["pixels_sha256"] in _cells(stdout)
    assert stdout.rstrip().endswith("Ready.")


def test_the_pixels_are_those_of_a_result(tmp_path: Path) -> None:
    from robench.evaluation import evaluate

    text = (shipped_folder() / "mini-pgd-linf.toml").read_text()
    clean = text[: text.index("[attack]")] + '[score]\nscoring = "any iterate"\n'
    (tmp_path / "clean.toml").write_text(clean.replace('"active"', '"draft"'))
    result: Result = evaluate("mini-resnet", tmp_path / "clean.toml", run_dir=tmp_path / "run")
    assert _json("mini-pgd-linf")[1]["pixels_sha256"] == result.data.pixels_sha256


def test_the_whole_list_is_ready_however_it_is_named(
    tmp_path: Path, small_view: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    root = listed_images(tmp_path / "root" / "val", suffix=True).parent
    monkeypatch.setenv("ROBENCH_IMAGENET", str(root))
    code, report = _json(small_view)
    assert (code, report["ok"], report["count"], report["missing_classes"]) == (0, True, 5000, [])


def test_what_is_missing_or_cannot_be_read_is_named(tmp_path: Path, small_view: str) -> None:
    root = listed_images(tmp_path / "val", count=70, flat=True)
    broken = list(listed())[7]
    (root / f"{broken}.JPEG").unlink()
    (root / f"{broken}.JPEG").write_bytes(b"")
    code, report = _json(small_view, "--data", str(root))
    assert (code, report["ok"], report["ids_are_the_protocols"], report["count"]) == (1, False, False, 70)
    assert report["missing"] == list(listed())[70:]
    assert len(report["missing_classes"]) == 997 - len(set(list(listed().values())[:70]))
    assert report["unreadable"] == [
        f"{broken}.JPEG: `image` is unreadable (no image that Pillow knows); expected an image that Pillow decodes."
    ]
    code, stdout = _check(small_view, "--data", str(root), "--workers", "0")
    assert code == 1
    cells = _cells(stdout)
    assert "4930:" + ",".join(list(listed())[70:75]) + "..." in cells
    assert "70,pgd-linf@1has5000" in cells
    assert "NOTtheprotocol's" in cells
    assert "Not the data of pgd-linf@1, or not all of it can be read; see above." in stdout


def test_other_photographs_are_not_the_protocols(tmp_path: Path) -> None:
    code, report = _json("pgd-linf", "--data", str(wnid_folders(tmp_path)))
    assert (code, report["ids_are_the_protocols"], report["count"], report["unreadable"]) == (1, False, 20, [])
    assert len(report["missing_classes"]) == 1000 - 19


def test_no_data_is_an_error() -> None:
    with pytest.raises(DataError, match=r"^robench: `data` is none; expected the images of `imagenet`\."):
        _check("pgd-linf")


def _doctor(what: str = "data imagenet") -> tuple[int, str]:
    result = CliRunner().invoke(app, ["doctor", "--json"])
    return result.exit_code, json.loads(result.stdout)[what]


def test_doctor_says_where_imagenet_is_and_who_says_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    code, found = _doctor()
    assert code == 0
    assert found.startswith("not named: give its folder with --data, set ROBENCH_IMAGENET, or write `imagenet` under ")
    root = listed_images(tmp_path / "some", count=5)
    monkeypatch.setenv("ROBENCH_IMAGENET", str(root))
    assert _doctor() == (0, f"{root}, named by ROBENCH_IMAGENET: 5 of the list's 5,000 images")
    monkeypatch.delenv("ROBENCH_IMAGENET")
    file = tmp_path / "robench" / "config.toml"
    file.parent.mkdir()
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path))
    file.write_text(f'[data]\nimagenet = "{wnid_folders(tmp_path / "other")}"\n')
    assert _doctor() == (0, f"{tmp_path / 'other'}, named by {file}: 20 images, none of the list")
    file.write_text('[data]\nimagenet = "/nowhere"\n')
    code, found = _doctor()
    assert code == 1
    assert found.startswith("BROKEN: /nowhere: `data` is missing; expected a folder of ImageNet's validation images.")


def test_doctor_says_where_textures_are(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    what = "textures tpa-textures"
    code, found = _doctor(what)
    assert code == 0
    assert found.startswith("not named: set ROBENCH_TPA_TEXTURES, or write `tpa-textures` under `[data]` into ")
    monkeypatch.setenv("ROBENCH_TPA_TEXTURES", str(tmp_path))
    code, found = _doctor(what)
    assert code == 1
    assert found.startswith(f"BROKEN: {tmp_path}: `textures` is none; expected")
    for label in (3, 7):
        path = tmp_path / f"attention-style_t-label_{label}" / "a" / "b" / "cluster_0" / "iter_9.pt"
        path.parent.mkdir(parents=True)
        torch.save(torch.zeros(3, 4, 4), path)
    expected = f"{tmp_path}, named by ROBENCH_TPA_TEXTURES: 2 classes of 1 textures"
    assert _doctor(what) == (0, expected)


def test_a_set_without_known_ids_is_ready_when_count_and_classes_are_right(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    originals = pictures(tmp_path / "pictures", size=(16, 16))
    root = wnid_tree(tmp_path / "a", originals, subset("imagenet-a"))
    text = (shipped_folder() / "imagenet-a.toml").read_text().replace("crop = 224", "crop = 8")
    text = text.replace("resize = 256 ", "resize = 8 ").replace("count = 7500", "count = 200")
    (tmp_path / "small.toml").write_text(text)
    code, report = _json(str(tmp_path / "small.toml"), "--data", str(root))
    assert (code, report["ok"], report["count"], report["images"], report["archives"]) == (0, True, 200, 200, {})
    code, stdout = _check(str(tmp_path / "small.toml"), "--data", str(root))
    assert code == 0
    said = "Nothing says whether these are the images of imagenet-a@1, which states no digest of their ids: results on"
    assert said in " ".join(stdout.split())
    assert "Ready." not in stdout
    code, report = _json(str(tmp_path / "small.toml"), "--data", str(root), "--count", "7")
    assert (code, report["count"], report["images"]) == (0, 200, 7)
    packed(root, tmp_path / "imagenet-a.tar", top="imagenet-a")
    code, report = _json(str(tmp_path / "small.toml"), "--data", str(tmp_path / "imagenet-a.tar"))
    assert (code, report["ok"], report["archives"]) == (1, False, {"imagenet-a.tar": False})
    known = hashlib.md5((tmp_path / "imagenet-a.tar").read_bytes()).hexdigest()
    monkeypatch.setitem(archives.PUBLISHED_MD5, "imagenet-a.tar", known)
    code, stdout = _check(str(tmp_path / "small.toml"), "--data", str(tmp_path / "imagenet-a.tar"))
    assert code == 0
    assert "aspublished(MD5)" in _cells(stdout)
    assert stdout.rstrip().endswith("Ready.")
    (root / "robench-stylized.json").write_text("{}")
    code, report = _json(str(tmp_path / "small.toml"), "--data", str(root))
    assert (code, report["ok"], report["generated"]) == (1, False, "robench-stylized.json")
    (root / "robench-stylized.json").unlink()
    shutil.rmtree(root / wnids()[subset("imagenet-a")[4]])
    code, report = _json(str(tmp_path / "small.toml"), "--data", str(root))
    assert (code, report["ok"], report["missing_classes"]) == (1, False, [wnids()[subset("imagenet-a")[4]]])


def test_a_stylized_copy_of_ones_own_is_as_good_as_any(tmp_path: Path) -> None:
    """No copy is the published one: what ranks is the difference to a reference model on the same copy."""
    root = wnid_tree(tmp_path / "sin", pictures(tmp_path / "pictures", size=(8, 8)), range(1000), suffix="png")
    text = (shipped_folder() / "stylized-imagenet.toml").read_text().replace("crop = 224", "crop = 8")
    (tmp_path / "small.toml").write_text(text.replace("count = 50_000", "count = 1000"))
    (root / "robench-stylized.json").write_text("{}")
    code, report = _json(str(tmp_path / "small.toml"), "--data", str(root))
    assert (code, report["ok"], report["generated"]) == (0, True, "robench-stylized.json")
    _, stdout = _check(str(tmp_path / "small.toml"), "--data", str(root))
    assert "robench,asrobench-stylized.jsonsays" in _cells(stdout)
    assert "NOTthepublished" not in _cells(stdout)


def test_every_cell_is_looked_at(tmp_path: Path) -> None:
    names = validation_names(2)
    root = cells_tree(tmp_path / "c", pictures(tmp_path / "pictures", size=(224, 224)), names)
    victim = root / "snow" / "2" / names[1]
    victim.unlink()
    victim.write_bytes(b"")
    code, report = _json("imagenet-c", "--data", str(root), "--workers", "0")
    assert (code, report["count"], report["images"], len(report["missing"])) == (1, 2, 150, 49_998)
    assert [reason.split(":")[0] for reason in report["unreadable"]] == [f"snow/2/{names[1]}"]
    assert report["generated"] is None
    (root / "robench-corruptions.json").write_text('{"frost": "procedural"}')
    code, stdout = _check("imagenet-c", "--data", str(root), "--workers", "0")
    assert code == 1
    assert "robench,asrobench-corruptions.json(frost:procedural)says:NOTthepublishedimages" in _cells(stdout)
    shutil.rmtree(root / "snow" / "4")
    with pytest.raises(DataError, match=r"`cells` is 1 missing \(snow/4\); expected all 75 cells of 15 corruptions"):
        _check("imagenet-c", "--data", str(root))
