"""Runs whose textures lie where the caller says: the protocol's own, or others."""

import json
import shutil
from pathlib import Path

import pytest
import torch

from robench.data.textures import TextureDictionary, write_textures
from robench.door import with_textures
from robench.errors import DataError, RunError
from robench.evaluation import Options, evaluate, resume
from robench.protocol import parse_protocol
from robench.registry import Registered, resolve
from tests.fakes import PATCH_PROTOCOL, noise_folder, noise_textures, random_images, small_net

IMAGES = random_images(20)


@pytest.fixture
def protocol(tmp_path: Path) -> Path:
    """A protocol that pins textures which nothing on this machine names."""
    path = tmp_path / "own-patches.toml"
    path.write_text(PATCH_PROTOCOL.format(digest="0" * 64, textures="tpa-textures", sha256=noise_textures().sha256))
    return path


@pytest.fixture
def others(tmp_path: Path) -> Path:
    """Other textures."""
    write_textures(TextureDictionary((0, 1, 2), 1 - noise_textures(classes=3).textures), tmp_path / "others")
    return tmp_path / "others"


def _labels() -> torch.Tensor:
    with torch.no_grad():
        labels: torch.Tensor = small_net()(IMAGES).argmax(dim=1)
    return labels


def test_where_the_textures_lie_changes_nothing(tmp_path: Path, protocol: Path) -> None:
    folder = tmp_path / "moved"
    shutil.copytree(noise_folder()["textures"], folder)
    outcomes, keys = [], []
    for index, place in enumerate((noise_folder()["textures"], folder)):
        run_dir = tmp_path / f"run-{index}"
        options = Options(textures=place)
        result = evaluate(small_net(), protocol, data=(IMAGES, _labels()), run_dir=run_dir, options=options)
        plan = json.loads((run_dir / "plan.json").read_text())
        outcomes.append((run_dir / "outcomes.csv.gz").read_bytes())
        keys.append(plan["key"])
        assert plan["textures"] == str(Path(place).resolve())
        assert result.protocol.digest == resolve(protocol).protocol.digest
    assert outcomes[0] == outcomes[1]
    assert keys[0] == keys[1]


def test_other_textures_make_it_another_protocol(tmp_path: Path, protocol: Path, others: Path) -> None:
    first = evaluate(
        small_net(),
        protocol,
        data=(IMAGES, _labels()),
        run_dir=tmp_path / "own",
        options=Options(textures=noise_folder()["textures"]),
    )
    second = evaluate(
        small_net(), protocol, data=(IMAGES, _labels()), run_dir=tmp_path / "other", options=Options(textures=others)
    )
    assert first.protocol.digest != second.protocol.digest
    assert str(others) not in (tmp_path / "other" / "result.json").read_text()
    assert (tmp_path / "own" / "outcomes.csv.gz").read_bytes() != (tmp_path / "other" / "outcomes.csv.gz").read_bytes()


def test_an_official_protocol_stays_so_with_its_own_textures_alone(protocol: Path, others: Path) -> None:
    official = Registered(resolve(protocol).protocol, official=True)
    assert with_textures(official, noise_folder()["textures"]) == official
    changed = with_textures(official, others)
    assert not changed.official
    assert changed.protocol.attack is not None
    assert changed.protocol.attack.settings["textures"] == "own"
    assert with_textures(changed, others) == changed
    content = changed.protocol.model_dump(mode="json", by_alias=True, exclude_none=True)
    assert parse_protocol(content, where="here") == changed.protocol


def test_a_run_is_resumed_with_the_textures_it_was_given(
    tmp_path: Path, others: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    text = PATCH_PROTOCOL.format(digest="0" * 64, textures="tpa-textures", sha256=noise_textures().sha256)
    (tmp_path / "mini.toml").write_text(text.replace('"own"', '"mini"').replace("classes = 4", "classes = 10"))
    large = TextureDictionary((0, 1), torch.rand(2, 2, 3, 32, 32, generator=torch.Generator().manual_seed(0)))
    write_textures(large, tmp_path / "large")
    run_dir = tmp_path / "run"
    options = Options(textures=tmp_path / "large", shard_size=4)
    evaluate("mini-resnet", tmp_path / "mini.toml", limit=8, run_dir=run_dir, options=options)
    whole = (run_dir / "outcomes.csv.gz").read_bytes()
    for name in ("result.json", "outcomes.csv.gz", "shards/000001.csv"):
        (run_dir / name).unlink()
    resume(run_dir)
    assert (run_dir / "outcomes.csv.gz").read_bytes() == whole


def test_textures_that_nothing_asks_for_are_refused(tmp_path: Path, others: Path) -> None:
    with pytest.raises(RunError) as caught:
        evaluate("mini-resnet", "mini-pgd-linf", run_dir=tmp_path / "run", options=Options(textures=others))
    expected = "expected none with mini-pgd-linf@1, which pastes no textures."
    assert str(caught.value) == f"evaluate: `textures` is `{others}`; {expected}"


def test_a_folder_without_textures_is_refused_at_the_door(tmp_path: Path, protocol: Path) -> None:
    with pytest.raises(DataError, match=r"/nowhere/manifest\.json: `file` is unreadable"):
        evaluate(_never, protocol, data=(IMAGES, _labels()), options=Options(textures=tmp_path / "nowhere"))


def _never(images: torch.Tensor) -> torch.Tensor:
    raise AssertionError("the model was asked")
