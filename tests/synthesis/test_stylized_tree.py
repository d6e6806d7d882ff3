import errno
import json
import os
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import nn
from typer.testing import CliRunner

from robench.cli.main import app
from robench.data.copies import Written
from robench.errors import DataError, ModelError
from robench.synthesis.adain import AdaIN
from robench.synthesis.style_images import prepare, square, style_names
from robench.synthesis.stylized_tree import MANIFEST, STYLES, Settings, order, write_stylized
from tests.synthesis.adain_weights import random_weights


class _Mean(nn.Module):
    """A coarse view, in place of an encoder: one channel for each colour."""

    def __init__(self) -> None:
        super().__init__()
        self.factor = nn.Parameter(torch.ones(()), requires_grad=False)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        return torch.nn.functional.avg_pool2d(images, 8) * self.factor


NETWORKS = AdaIN(_Mean(), nn.UpsamplingNearest2d(scale_factor=8), "0" * 64, "1" * 64)
"""Cheap stand-ins of which the answer can be computed by hand."""


def _picture(path: Path, seed: int, size: tuple[int, int]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    small = np.random.default_rng(seed).integers(0, 256, (16, 16, 3), dtype=np.uint8)
    Image.fromarray(small).resize(size, Image.Resampling.BICUBIC).save(path)


@pytest.fixture
def content(tmp_path: Path) -> Path:
    """Ten images in two classes."""
    for number in range(10):
        _picture(tmp_path / "content" / f"n0{number % 2}" / f"{number}.JPEG", number, (300, 260))
    return tmp_path / "content"


@pytest.fixture
def styles(tmp_path: Path) -> Path:
    """Four pictures that are large enough, one that is not, and one that is broken."""
    for number in range(4):
        _picture(tmp_path / "styles" / f"{number}.jpg", 100 + number, (240 + 10 * number, 230))
    _picture(tmp_path / "styles" / "narrow.jpg", 200, (400, 223))
    (tmp_path / "styles" / "broken.jpg").write_bytes(b"no picture")
    return tmp_path / "styles"


def _files(root: Path) -> dict[str, bytes]:
    return {str(path.relative_to(root)): path.read_bytes() for path in sorted(root.glob("n*/*.png"))}


def _written(content: Path, styles: Path, out: Path, settings: Settings | None = None, workers: int = 0) -> Written:
    return write_stylized(content, styles, out, NETWORKS, settings, workers=workers)


def _by_hand(content: Path, style: Path, alpha: float) -> NDArray[np.float64]:
    """Means of 8x8 tiles, moved to mean and spread of the style's, as bytes, by NumPy."""
    with Image.open(content) as image:  # 300x260: the shorter side becomes 256
        view = np.asarray(image.resize((295, 256), Image.Resampling.BILINEAR).crop((36, 16, 260, 240)), float) / 255
    picture = np.asarray(Image.open(style), float) / 255
    tiles = [each.reshape(28, 8, 28, 8, 3).mean(axis=(1, 3)) for each in (view, picture)]
    means = [each.mean(axis=(0, 1)) for each in tiles]
    spreads = [np.sqrt(each.var(axis=(0, 1), ddof=1) + 1e-5) for each in tiles]
    painted = (tiles[0] - means[0]) / spreads[0] * spreads[1] + means[1]
    mixed = alpha * painted + (1 - alpha) * tiles[0]
    return np.asarray(np.clip(np.floor(mixed * 255 + 0.5), 0, 255).repeat(8, axis=0).repeat(8, axis=1))


@pytest.mark.parametrize("alpha", [1.0, 0.25])
def test_each_image_is_painted_after_the_picture_that_is_drawn(
    alpha: float, content: Path, styles: Path, tmp_path: Path
) -> None:
    out = tmp_path / "out"
    written = _written(content, styles, out, Settings(alpha=alpha, batch_size=3))
    assert written == Written(10, 10, [])
    drawn = np.random.RandomState(49809).randint(low=0, high=4, size=10)
    names = sorted(f"n0{number % 2}/{number}" for number in range(10))  # class after class, as they were published
    assert sorted(_files(out)) == [f"{name}.png" for name in names]
    for name, style in zip(names, drawn, strict=True):
        with Image.open(out / f"{name}.png") as image:
            assert (image.format, image.mode, image.size) == ("PNG", "RGB", (224, 224))
            found = np.asarray(image, float)
        expected = _by_hand(content / f"{name}.JPEG", out / STYLES / f"{style}.jpg", alpha)
        assert np.abs(found - expected).max() <= 1  # where float32 rounds another way
        assert (found == expected).mean() > 0.99


def test_pictures_are_cut_as_published(styles: Path, tmp_path: Path) -> None:
    """The largest square in the middle, by Lanczos to 224, saved with Pillow's settings; small and broken ones not."""
    assert style_names(styles) == ["0.jpg", "1.jpg", "2.jpg", "3.jpg", "broken.jpg", "narrow.jpg"]
    assert prepare(styles, tmp_path / "cut", style_names(styles), workers=0) == ["0.jpg", "1.jpg", "2.jpg", "3.jpg"]
    with Image.open(styles / "3.jpg") as image:  # 270x230
        image.crop((20, 0, 250, 230)).resize((224, 224), Image.Resampling.LANCZOS).save(tmp_path / "expected.jpg")
    assert (tmp_path / "cut" / "3.jpg").read_bytes() == (tmp_path / "expected.jpg").read_bytes()
    assert square(styles / "narrow.jpg") is None


def test_the_order_is_that_of_batches_of_256_and_the_training_set_goes_on(monkeypatch: pytest.MonkeyPatch) -> None:
    """The published code draws batch by batch: first the validation set, then the training set."""
    random = np.random.RandomState(49809)
    batches = np.concatenate([random.randint(low=0, high=79395, size=size) for size in [256] * 195 + [80] + [256] * 4])
    assert order(Settings(), 50_000, 79_395).tolist() == batches[:50_000].tolist()
    assert order(Settings(begin=50_000), 1024, 79_395).tolist() == batches[50_000:].tolist()


def test_the_manifest_says_what_made_it(content: Path, styles: Path, tmp_path: Path) -> None:
    _written(content, styles, tmp_path / "out")
    found = json.loads((tmp_path / "out" / MANIFEST).read_text())
    assert (found["images"], found["styles"], found["alpha"], found["seed"]) == (10, 4, 1.0, 49809)
    assert (found["generator"], found["size"], found["encoder_sha256"]) == ("robench", 224, "0" * 64)


def test_any_number_of_workers_and_a_second_call_give_the_same_bytes(
    content: Path, styles: Path, tmp_path: Path
) -> None:
    out = tmp_path / "out"
    _written(content, styles, out)
    _written(content, styles, tmp_path / "two", workers=2)
    before = _files(out)
    assert before == _files(tmp_path / "two")
    (out / "n00" / "2.png").unlink()
    (out / "n01" / "9.png").write_bytes(b"")  # as a crash of the machine may leave it
    assert _written(content, styles, out) == Written(10, 2, [])
    assert _files(out) == before
    assert _written(content, styles, out).files == 0


@pytest.fixture(scope="module")
def weights(tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    """Random weights, as options."""
    encoder, decoder = random_weights(tmp_path_factory.mktemp("weights"))
    return [f"--encoder={encoder}", f"--decoder={decoder}"]


def test_a_killed_call_leaves_whole_files_and_the_next_one_goes_on(
    content: Path, styles: Path, weights: list[str], tmp_path: Path
) -> None:
    out, whole = tmp_path / "out", tmp_path / "whole"
    for number in range(4, 10):  # the networks are slow
        (content / f"n0{number % 2}" / f"{number}.JPEG").unlink()
    command = ["data", "stylize", str(content), str(styles)]
    options = [*weights, "--batch-size", "1", "--workers", "1"]
    start = [sys.executable, "-c", "from robench.cli import main; main()", *command, str(out), *options]
    process = subprocess.Popen(start, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    end = time.monotonic() + 100
    while len(_files(out)) < 1 and process.poll() is None and time.monotonic() < end:
        time.sleep(0.002)
    process.kill()
    process.wait()
    there = _files(out)
    assert 1 <= len(there) < 4
    # The lock goes with the workers, which notice a moment later.
    while (result := CliRunner().invoke(app, [*command, str(out), *options, "--json"])).exit_code:
        assert isinstance(result.exception, DataError)
        assert "in use by another process" in str(result.exception)
        assert time.monotonic() < end
        time.sleep(0.05)
    assert json.loads(result.stdout) == {"ok": True, "images": 4, "files": 4 - len(there), "unreadable": []}
    assert CliRunner().invoke(app, [*command, str(whole), *options]).exit_code == 0
    assert _files(out) == _files(whole)
    assert there.items() <= _files(out).items()
    assert list(out.rglob(".*.part")) == []


def test_other_settings_pictures_or_images_in_the_same_folder_are_refused(
    content: Path, styles: Path, tmp_path: Path
) -> None:
    out = tmp_path / "out"
    _written(content, styles, out)
    with pytest.raises(DataError, match=r"stylized\.json: `alpha` is 1\.0; expected 0\.5 for this call\. Choose"):
        _written(content, styles, out, Settings(alpha=0.5))
    _picture(styles / "4.jpg", 5, (224, 224))
    with pytest.raises(DataError, match=r"`styles` is 4; expected 5 for this call"):
        _written(content, styles, out)
    _picture(content / "n00" / "10.JPEG", 5, (256, 256))
    with pytest.raises(DataError, match=r"`images` is 10; expected 11 for this call"):
        _written(content, styles, out)


def test_an_unreadable_image_is_named_and_has_no_copy(content: Path, styles: Path, tmp_path: Path) -> None:
    (content / "n01" / "3.JPEG").write_bytes(b"no image")
    written = _written(content, styles, tmp_path / "out", workers=2)
    assert (written.images, written.files) == (9, 9)
    assert written.unreadable == [
        "n01/3.JPEG: `image` is unreadable (no image that Pillow knows); expected an image that Pillow decodes."
    ]


def test_a_full_disk_stops_everything(
    content: Path, styles: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = Path.write_bytes

    def full(path: Path, data: bytes) -> int:
        if path.parent.name == "n01":
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        return real(path, data)

    monkeypatch.setattr(Path, "write_bytes", full)
    with pytest.raises(DataError, match=r"`DST` is not writable \(No space left on device\); .* make room, and the"):
        _written(content, styles, tmp_path / "out", Settings(batch_size=2))
    assert len(_files(tmp_path / "out")) == 5  # the first class


def test_what_makes_no_sense_is_refused(content: Path, styles: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    with pytest.raises(DataError, match=r"^robench data stylize: `alpha` is 1\.5; expected a number from 0 to 1\.$"):
        _written(content, styles, out, Settings(alpha=1.5))
    with pytest.raises(DataError, match=r"`begin` is -1; expected a whole number from 0\.$"):
        _written(content, styles, out, Settings(begin=-1))
    with pytest.raises(DataError, match=r"`STYLES` is no folder; expected a folder of pictures\.$"):
        _written(content, styles / "none", out)
    (tmp_path / "nothing").mkdir()
    with pytest.raises(DataError, match=r"`STYLES` is empty; expected a folder of pictures\.$"):
        _written(content, tmp_path / "nothing", out)
    with pytest.raises(DataError, match=r"`DST` is inside CONTENT; expected a folder apart from CONTENT\.$"):
        _written(content, styles, content / "out")
    with pytest.raises(DataError, match=r"`DST` is STYLES itself; expected a folder apart from STYLES\.$"):
        _written(content, styles, styles)
    _picture(tmp_path / "small" / "a.jpg", 0, (100, 100))
    with pytest.raises(DataError, match=r"`STYLES` is 1 files of no use; expected pictures of at least 224x224 pixels"):
        _written(content, tmp_path / "small", out)
    broken = AdaIN(_Mean(), nn.Threshold(2, float("nan")), "", "")
    with pytest.raises(ModelError, match=r"`decoder` is painting infinite colours; expected finite ones\.$"):
        write_stylized(content, styles, tmp_path / "other", broken, workers=0)


def test_without_weights_the_command_says_where_to_get_them(content: Path, styles: Path, tmp_path: Path) -> None:
    result = CliRunner().invoke(app, ["data", "stylize", str(content), str(styles), str(tmp_path / "out")])
    assert isinstance(result.exception, ModelError)
    assert "`robench convert vgg_normalised.pth encoder.safetensors`" in str(result.exception)
    assert not (tmp_path / "out").exists()
