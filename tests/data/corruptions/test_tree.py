import errno
import fcntl
import json
import os
import re
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from robench.data.corruptions import corrupt
from robench.data.corruptions.tree import MANIFEST, Manifest, read_manifest, write_tree
from robench.errors import DataError

FAST = Manifest(corruptions=("contrast", "gaussian_noise"), severities=(1, 5), size=64)


@pytest.fixture
def source(tmp_path: Path) -> Path:
    """Five images in two classes: colour, grey, CMYK, one to be cut, one to be enlarged."""
    pixels = np.random.default_rng(0).integers(0, 256, (80, 96, 3), dtype=np.uint8)
    picture = Image.fromarray(pixels)
    for name, image in {
        "n01/a.png": picture,
        "n01/b.JPEG": picture.convert("L"),
        "n01/c.jpg": picture.convert("CMYK"),
        "n02/d.png": picture.resize((40, 30)),
        "n02/a.png": picture.crop((0, 0, 64, 64)),
    }.items():
        path = tmp_path / "source" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        image.save(path)
    return tmp_path / "source"


def _files(root: Path) -> dict[str, bytes]:
    return {str(path.relative_to(root)): path.read_bytes() for path in sorted(root.rglob("*.JPEG"))}


def test_the_layout_is_that_of_imagenet_c(source: Path, tmp_path: Path) -> None:
    written = write_tree(source, tmp_path / "out", FAST, workers=0)
    assert (written.images, written.files, written.unreadable) == (5, 20, [])
    names = {"n01/a.JPEG", "n01/b.JPEG", "n01/c.JPEG", "n02/d.JPEG", "n02/a.JPEG"}
    wanted = {f"{name}/{severity}/{file}" for name in FAST.corruptions for severity in (1, 5) for file in names}
    assert set(_files(tmp_path / "out")) == wanted
    for path in (tmp_path / "out").rglob("*.JPEG"):
        with Image.open(path) as image:
            assert (image.format, image.mode, image.size) == ("JPEG", "RGB", (64, 64))
    content = json.loads((tmp_path / "out" / MANIFEST).read_text())
    assert content == {
        "generator": "robench",
        "revision": 1,
        "corruptions": ["contrast", "gaussian_noise"],
        "severities": [1, 5],
        "seed": 0,
        "frost": "procedural",
        "size": 64,
    }


def test_photographs_are_resized_cropped_and_saved_as_published(source: Path, tmp_path: Path) -> None:
    """By Pillow: the shorter side 256, the centre 224, quality 85 with optimised tables."""
    write_tree(source, tmp_path / "out", Manifest(corruptions=("pixelate",), severities=(3,)), workers=0)
    with Image.open(source / "n01" / "a.png") as image:  # 96x80
        view = image.resize((307, 256), Image.Resampling.BILINEAR).crop((42, 16, 266, 240))
    coarse = view.resize((89, 89), Image.Resampling.BOX).resize((224, 224), Image.Resampling.BOX)
    coarse.save(tmp_path / "expected.JPEG", quality=85, optimize=True)
    found = (tmp_path / "out" / "pixelate" / "3" / "n01" / "a.JPEG").read_bytes()
    assert found == (tmp_path / "expected.JPEG").read_bytes()


def test_the_bytes_are_those_of_corrupt_and_of_any_number_of_workers(source: Path, tmp_path: Path) -> None:
    manifest = Manifest(corruptions=("glass_blur", "frost"), severities=(2,), size=64, seed=3)
    write_tree(source, tmp_path / "one", manifest, workers=0)
    written = write_tree(source, tmp_path / "two", manifest, workers=2)
    assert written.files == 10
    assert _files(tmp_path / "one") == _files(tmp_path / "two")
    with Image.open(source / "n02" / "a.png") as image:
        pixels = torch.from_numpy(np.asarray(image).transpose(2, 0, 1).copy())[None]
    copy = corrupt(pixels, ["n02/a"], "frost", 2, seed=3, scale="tiny")[0]
    Image.fromarray(copy.permute(1, 2, 0).numpy()).save(tmp_path / "x.JPEG", quality=85, optimize=True)
    assert _files(tmp_path / "two")["frost/2/n02/a.JPEG"] == (tmp_path / "x.JPEG").read_bytes()


def test_what_is_missing_is_written_and_nothing_else(source: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    write_tree(source, out, FAST, workers=0)
    before = _files(out)
    (out / "contrast" / "1" / "n01" / "a.JPEG").unlink()
    (out / "contrast" / "5" / "n02" / "a.JPEG").write_bytes(b"")  # as a crash of the machine may leave it
    kept = (out / "contrast" / "1" / "n01" / "b.JPEG").stat().st_mtime_ns
    assert write_tree(source, out, FAST, workers=0).files == 2
    assert _files(out) == before
    assert (out / "contrast" / "1" / "n01" / "b.JPEG").stat().st_mtime_ns == kept
    assert write_tree(source, out, FAST, workers=0).files == 0


def test_corruptions_can_be_added(source: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    write_tree(source, out, FAST, workers=0)
    more = Manifest(corruptions=("brightness", "contrast"), severities=(1, 5), size=64)
    assert write_tree(source, out, more, workers=0).files == 10
    manifest = read_manifest(out)
    assert manifest is not None
    assert manifest.corruptions == ("contrast", "gaussian_noise", "brightness")


def _in_use(root: Path) -> bool:
    with (root / ".lock").open() as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            return True
    return False


def test_a_killed_call_leaves_whole_files_and_the_next_one_goes_on(source: Path, tmp_path: Path) -> None:
    out, expected = tmp_path / "out", tmp_path / "expected"
    command = [sys.executable, "-c", "from robench.cli import main; main()", "data", "corrupt", str(source), str(out)]
    command += ["--size", "64", "--corruptions", "contrast,gaussian_noise,snow"]
    command += ["--frost", "procedural", "--workers", "2"]
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    end = time.monotonic() + 60
    while len(_files(out)) < 5 and process.poll() is None and time.monotonic() < end:
        time.sleep(0.002)
    process.kill()
    process.wait()
    while time.monotonic() < end and _in_use(out):  # until its workers have noticed
        time.sleep(0.01)
    manifest = Manifest(corruptions=("contrast", "gaussian_noise", "snow"), size=64)
    write_tree(source, expected, manifest, workers=0)
    wanted, found = _files(expected), _files(out)
    assert 5 <= len(found) <= len(wanted) == 75
    assert all(wanted[name] == content for name, content in found.items())
    assert write_tree(source, out, manifest, workers=0).files == len(wanted) - len(found)
    assert _files(out) == wanted
    assert list(out.rglob(".*.part")) == []


def test_two_calls_at_once_are_refused(source: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    write_tree(source, out, FAST, workers=0)
    with (out / ".lock").open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        with pytest.raises(DataError, match=r"`DST` is in use by another process; expected a folder that nobody"):
            write_tree(source, out, FAST, workers=0)


def test_an_unreadable_image_is_named_and_the_others_are_written(source: Path, tmp_path: Path) -> None:
    (source / "n02" / "a.png").write_bytes(b"no image")
    (source / "n02" / "deep.png").write_bytes(b"")
    Image.fromarray(np.zeros((70, 70), dtype=np.uint16)).save(source / "n02" / "sixteen.png")
    written = write_tree(source, tmp_path / "out", FAST, workers=2)
    assert (written.images, written.files) == (4, 16)
    assert written.unreadable == [
        "n02/a.png: `image` is unreadable (no image that Pillow knows); expected an image that Pillow decodes.",
        "n02/deep.png: `image` is unreadable (no image that Pillow knows); expected an image that Pillow decodes.",
        "n02/sixteen.png: `image` is of mode I;16; expected 8 bits a channel. Convert it to 8 bits first.",
    ]


@pytest.mark.parametrize("workers", [0, 2])
def test_a_full_disk_stops_everything_and_the_next_call_goes_on(
    workers: int, source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = Path.write_bytes

    def full(path: Path, content: bytes) -> int:
        if "gaussian_noise" in path.parts:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        return real(path, content)

    out = tmp_path / "out"
    message = (
        f"{out}: `DST` is not writable (No space left on device); expected room to write. "
        "What is written is kept: make room, and the same command goes on."
    )
    with monkeypatch.context() as patched:
        patched.setattr(Path, "write_bytes", full)
        with pytest.raises(DataError, match=f"^{re.escape(message)}$"):
            write_tree(source, out, FAST, workers=workers)
    assert list(out.rglob("*.part")) == []
    there = len(_files(out))
    assert there >= 2
    assert write_tree(source, out, FAST, workers=0).files == 20 - there


def _make(path: Path, content: str = "") -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(content)
    return path


REFUSED: dict[str, tuple[Callable[[Path, Path], object], str]] = {
    "same": (lambda src, out: write_tree(src, src, FAST), r"`DST` is SRC itself; expected a folder apart from SRC\.$"),
    "inside": (lambda src, out: write_tree(src, src / "c", FAST), r"`DST` is inside SRC; expected a folder apart"),
    "around": (lambda src, out: write_tree(src, src.parent, FAST), r"`DST` is around SRC; expected a folder apart"),
    "no source": (lambda src, out: write_tree(src / "x", out, FAST), r"x: `SRC` is no folder; expected a folder with"),
    "no images": (lambda src, out: write_tree(src / "n01", out, FAST), r"n01: `SRC` is empty; expected images in one"),
    "a file": (
        lambda src, out: write_tree(src, _make(out), FAST),
        r"out: `DST` is a file; expected a folder\.$",
    ),
    "foreign": (
        lambda src, out: write_tree(src, _make(out / "fog" / "1").parent.parent, FAST),
        r"out: `DST` is not empty \(fog\); expected an empty folder, or one with robench-corruptions\.json\. Choose",
    ),
    "no manifest": (
        lambda src, out: write_tree(src, _make(out / MANIFEST, "{}").parent, FAST),
        r"json: `file` is unreadable \('corruptions'\); expected the manifest of a corrupted folder\.$",
    ),
    "no severity": (
        lambda src, out: write_tree(src, out, Manifest(severities=())),
        r"^robench data corrupt: `severities` is none; expected at least one\.$",
    ),
    "size": (
        lambda src, out: write_tree(src, out, Manifest(size=100)),
        r"^robench data corrupt: `size` is 100; expected 224 or 64\.$",
    ),
    "twins": (
        lambda src, out: write_tree(_make(src / "n01" / "a.bmp").parent.parent, out, FAST),
        r"`images` is n01/a\.bmp and n01/a\.png; expected names that differ before the suffix\. Rename one of them\.$",
    ),
}


@pytest.mark.parametrize("case", REFUSED)
def test_what_makes_no_sense_is_refused_and_nothing_is_written(case: str, source: Path, tmp_path: Path) -> None:
    call, message = REFUSED[case]
    with pytest.raises(DataError, match=message):
        call(source, tmp_path / "out")
    assert _files(tmp_path / "out") == {}


def test_other_settings_in_the_same_folder_are_refused(source: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    write_tree(source, out, FAST, workers=0)
    message = (
        r"robench-corruptions\.json: `seed` is 0; expected 1 for this call\. "
        r"Choose another folder, or the settings that it was begun with\.$"
    )
    with pytest.raises(DataError, match=message):
        write_tree(source, out, Manifest(corruptions=FAST.corruptions, severities=(1, 5), size=64, seed=1))


def test_a_target_under_a_file_is_an_error(source: Path, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(DataError, match=r"`DST` is not writable \(Not a directory\); expected room to write\. Check"):
        write_tree(source, tmp_path / "file" / "out", FAST)
