"""A trained model on its way to the Hub."""

from pathlib import Path
from typing import Any

import pytest

from robench.errors import ModelError
from robench.hub import Hub
from robench.training import export

HUB = Hub(endpoint="https://hub.example")


class _Api:
    """Notes what the Hub is asked for."""

    def __init__(self, **settings: Any) -> None:
        assert (settings["endpoint"], settings["token"]) == ("https://hub.example", "secret")
        self.asked = ASKED

    def create_repo(self, repository: str, *, exist_ok: bool) -> None:
        self.asked.append(("create", repository, exist_ok))

    def upload_folder(self, *, repo_id: str, folder_path: Path, commit_message: str) -> None:
        if repo_id == "org/closed":
            raise ValueError("403")
        self.asked.append(("upload", repo_id, Path(folder_path).name))


ASKED: list[tuple[Any, ...]] = []


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr(export, "HfApi", _Api)
    monkeypatch.setattr(export, "own_token", lambda: "secret")
    ASKED.clear()
    (tmp_path / "small").mkdir()
    return tmp_path / "small"


def test_a_folder_is_put_into_a_repository_that_is_made_if_need_be(folder: Path) -> None:
    assert export.push(folder, "org/small", HUB) == "https://hub.example/org/small"
    assert ASKED == [("create", "org/small", True), ("upload", "org/small", "small")]


def test_a_hub_that_refuses_is_an_error(folder: Path) -> None:
    with pytest.raises(ModelError, match=r"^hf-hub:org/closed: `push` is refused \(ValueError: 403\); expected a Hub"):
        export.push(folder, "org/closed", HUB)


def test_nobody_logged_in_is_an_error(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(export, "own_token", lambda: None)
    with pytest.raises(ModelError, match=r"^hf-hub:org/small: `token` is none; expected someone who is logged in\. "):
        export.push(folder, "org/small", HUB)
    assert ASKED == []


def test_a_mini_models_file_is_not_for_the_hub(folder: Path) -> None:
    message = r"tiny\.safetensors: `push` is a file of a mini model; expected a folder with timm's `config\.json`\. "
    with pytest.raises(ModelError, match=message):
        export.push(folder.parent / "tiny.safetensors", "org/small", HUB)
