import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from typer.testing import CliRunner, Result

from robench.cli.main import app
from robench.data.corruptions import COMMON, EXTRA
from robench.data.corruptions import ice as ice_room
from robench.data.corruptions.tree import read_manifest
from robench.errors import DataError


@pytest.fixture
def source(tmp_path: Path) -> str:
    for number in range(2):
        pixels = np.random.default_rng(number).integers(0, 256, (64, 64, 3), dtype=np.uint8)
        path = tmp_path / "source" / f"class{number}" / "image.png"
        path.parent.mkdir(parents=True)
        Image.fromarray(pixels).save(path)
    return str(tmp_path / "source")


def _corrupt(*arguments: str) -> Result:
    result = CliRunner().invoke(app, ["data", "corrupt", *arguments, "--workers", "0"])
    if result.exception is not None and not isinstance(result.exception, SystemExit):
        raise result.exception
    return result


def test_all_corruptions_and_severities_are_the_default(source: str, tmp_path: Path) -> None:
    result = _corrupt(source, str(tmp_path / "out"), "--size", "64", "--extra", "--json")
    assert result.exit_code == 0
    assert json.loads(result.stdout) == {"ok": True, "images": 2, "files": 190, "unreadable": []}
    assert len(list((tmp_path / "out").glob("*/*/*/*.JPEG"))) == 190
    manifest = read_manifest(tmp_path / "out")
    assert manifest is not None
    assert (manifest.corruptions, manifest.severities) == ((*COMMON, *EXTRA), (1, 2, 3, 4, 5))


def test_some_can_be_chosen_and_procedural_ice_is_said(source: str, tmp_path: Path) -> None:
    out = str(tmp_path / "out")
    chosen = ("--corruptions", "fog, frost", "--severities", "5,1,5", "--size", "64", "--frost", "procedural")
    result = _corrupt(source, out, *chosen)
    assert result.exit_code == 0
    wanted = f"2 images, 8 files written to {out}.\nfrost: procedural ice, not the published photographs.\n"
    assert result.stdout == wanted
    assert _corrupt(source, out, *chosen, "--json").stdout.count('"files": 0') == 1


def test_unreadable_images_are_an_exit_code(source: str, tmp_path: Path) -> None:
    (Path(source) / "class0" / "image.png").write_bytes(b"")
    result = _corrupt(source, str(tmp_path / "out"), "--corruptions", "contrast", "--size", "64")
    assert result.exit_code == 1
    assert result.stderr == (
        "class0/image.png: `image` is unreadable (no image that Pillow knows); expected an image that Pillow decodes.\n"
        "1 images could not be read, and have no copies.\n"
    )
    assert result.stdout.startswith("1 images, 5 files written to ")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (("--corruptions", "fogg"), r"^robench data corrupt: `corruption` is `fogg`; .* Did you mean `fog`\?$"),
        (("--corruptions", ","), r"^robench data corrupt: `corruptions` is none; expected at least one\.$"),
        (("--severities", "0"), r"^robench data corrupt: `severity` is 0; expected a whole number from 1 to 5\.$"),
        (("--severities", "6"), r"^robench data corrupt: `severity` is 6; expected a whole number from 1 to 5\.$"),
        (("--severities", "high"), r"^robench data corrupt: `severities` is `high`; expected numbers from 1 to 5\.$"),
        (("--size", "7"), r"^robench data corrupt: `size` is 7; expected 224 or 64\.$"),
        (("--frost", "snow"), r"^robench data corrupt: `ice` is `snow`; expected `published` or `procedural`\.$"),
    ],
)
def test_nonsense_is_refused(options: tuple[str, str], message: str, source: str, tmp_path: Path) -> None:
    with pytest.raises(DataError, match=message):
        _corrupt(source, str(tmp_path / "out"), *options)
    assert not (tmp_path / "out").exists()


def test_photographs_of_ice_that_are_not_there_say_how_to_get_them(
    source: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(ice_room, "published_folder", lambda: None)
    ice_room._published.cache_clear()
    ice_room.pictures_of.cache_clear()
    message = (
        r"^corruptions: `frost` is not installed; expected the published photographs of ice\. "
        r'Install them, `pip install "robench\[frost\]"`, or take `procedural` ones\.$'
    )
    with pytest.raises(DataError, match=message):
        _corrupt(source, str(tmp_path / "out"), "--corruptions", "frost", "--frost", "published")
