import re
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from robench.cli.main import app
from robench.data import fetching
from robench.data.textures import read_textures
from robench.errors import DataError, ModelError, RecipeError

GUIDE = Path(__file__).parent.parent.parent / "docs" / "build-textures.md"


def _run(*arguments: str) -> tuple[int, str, str]:
    result = CliRunner().invoke(app, list(arguments))
    if result.exception is not None and not isinstance(result.exception, SystemExit):
        raise result.exception
    return result.exit_code, result.stdout, result.stderr


@pytest.fixture
def small(tmp_path: Path) -> str:
    """The recipe of the guide."""
    found = re.search(r"^```toml\n(# small.toml\n.*?)^```", GUIDE.read_text(), flags=re.M | re.S)
    assert found is not None
    (tmp_path / "small.toml").write_text(found[1])
    return str(tmp_path / "small.toml")


def test_a_build_says_what_it_does_and_the_same_call_goes_on(tmp_path: Path, small: str) -> None:
    folder = str(tmp_path / "textures")
    code, stdout, stderr = _run("textures", "build", folder, "--recipe", small, "--classes", "7, 2")
    made = read_textures(Path(folder))
    assert code == 0
    assert made.classes == (2, 7)
    assert stdout.splitlines() == [
        f"2 classes of 2 textures, 64 pixels: {folder}",
        f'textures_sha256 = "{made.sha256}"',
        f"Look at {folder}/contact-sheet.png.",
    ]
    assert [line.partition(":")[0] for line in stderr.splitlines()] == ["class 2", "class 7"]
    code, again, stderr = _run("textures", "build", folder, "--recipe", small, "--classes", "2,7")
    assert (code, again) == (0, stdout)
    assert stderr == "Going on: 2 of 2 classes are finished.\n"


def test_what_cannot_be_built_is_said_at_the_door(tmp_path: Path, small: str) -> None:
    folder = str(tmp_path / "textures")
    with pytest.raises(RecipeError) as caught:
        _run("textures", "build", folder, "--recipe", small, "--classes", "2,seven")
    assert str(caught.value) == (
        "robench textures build: `classes` is `2,seven`; expected class numbers, such as `45,723`."
    )
    with pytest.raises(DataError, match=r"`data` is none; expected images of `imagenet`\. Give the folder of the"):
        _run("textures", "build", folder)
    with pytest.raises(ModelError, match=r"^mini-deit: `layer` is `network\.layer2`; expected a module of it"):
        _run("textures", "build", folder, "--recipe", small, "--model", "mini-deit")
    with pytest.raises(DataError, match=r"^mini: `classes` is 11 \(0\); expected at least 2 images of each"):
        _run("textures", "build", folder, "--recipe", small, "--classes", "11")
    assert not (tmp_path / "textures" / "manifest.json").exists()


def test_fetching_goes_into_the_cache_or_where_it_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[tuple[Any, ...]] = []

    def fetch(publication: Any, folder: Path, *, base_url: str | None, timeout: float, on_file: Any) -> bool:
        on_file(3)
        asked.append((publication, folder, base_url, timeout))
        return len(asked) == 1

    monkeypatch.setattr(fetching, "fetch", fetch)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    wanted = fetching.PUBLICATIONS["tpa-textures"]
    cache = tmp_path / "robench" / "tpa-textures"
    assert _run("data", "fetch", "tpa-textures")[:2] == (0, f"Fetched: {cache}\n")
    options = ("--to", str(tmp_path / "here"), "--base-url", "https://mirror.invalid", "--timeout", "5")
    assert _run("data", "fetch", "tpa-textures", *options)[1].splitlines() == [
        f"Already there: {tmp_path}/here",
        f"Name it with `--textures {tmp_path}/here`, or set ROBENCH_TPA_TEXTURES.",
    ]
    assert asked == [(wanted, cache, None, 30.0), (wanted, tmp_path / "here", "https://mirror.invalid", 5.0)]


def test_what_cannot_be_fetched_is_named() -> None:
    with pytest.raises(DataError) as caught:
        _run("data", "fetch", "tpa-texture")
    expected = "expected what can be fetched. Did you mean `tpa-textures`?"
    assert str(caught.value) == f"robench data fetch: `name` is `tpa-texture`; {expected}"
