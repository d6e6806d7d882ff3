import json
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
from typer.testing import CliRunner

from robench.cli.main import app
from robench.errors import ModelError
from robench.zoo import MODELS
from robench.zoo.baselines import listed


def _robench(*arguments: str) -> Any:
    return CliRunner().invoke(app, list(arguments), catch_exceptions=False, env={"COLUMNS": "200"})


def test_zoo_lists_every_baseline_and_what_to_type() -> None:
    shown = _robench("zoo").stdout
    lines = [line.strip() for line in shown.splitlines()]  # whole, so that they can be copied
    for name in MODELS:
        assert any(line.startswith(f"{name}: 64 pixels, ") for line in lines)
    for each in listed():
        assert any(line.startswith(f"{each.title}: {each.input_size} pixels, {each.parameters:,} ") for line in lines)
        assert set(each.commands if each.status != "published" else [each.name]) <= set(lines)


def test_zoo_as_json_is_whole() -> None:
    rows = json.loads(_robench("zoo", "--json").stdout)
    assert [row["name"] for row in rows] == [*MODELS, *(each.name for each in listed())]
    assert {"title", "status", "parameters", "input_size", "licence", "commands"} <= set(rows[0])


def test_convert_says_what_it_did(tmp_path: Path) -> None:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        torch.save({"model": timm.create_model("test_resnet").state_dict()}, tmp_path / "w.pth")
    target = tmp_path / "folder"
    shown = _robench("convert", str(tmp_path / "w.pth"), str(target), "--architecture", "test_resnet").stdout
    lines = shown.splitlines()
    assert lines[0].startswith("source: SHA-256 ")
    assert lines[1] == "read from it: `model`"
    assert lines[2].startswith("while it was read: ")
    assert lines[-2] == "mean and standard deviation: from timm's configuration"
    assert lines[-1] == f"next: robench evaluate {target} PROTOCOL"
    assert sorted(path.name for path in target.iterdir()) == ["config.json", "model.safetensors"]


@pytest.mark.parametrize("text", ["[1]", "{", '"x"'])
def test_arguments_that_are_no_table_are_named(text: str, tmp_path: Path) -> None:
    with pytest.raises(ModelError, match=r"^convert: `--model-args` is .*; expected a table in JSON\.$"):
        _robench("convert", "w.pth", str(tmp_path / "f"), "--architecture", "test_resnet", "--model-args", text)


def test_arguments_need_an_architecture(tmp_path: Path) -> None:
    with pytest.raises(
        ModelError, match=r"^convert: `--model-args` is given alone; expected beside `--architecture`\.$"
    ):
        _robench("convert", "w.pth", str(tmp_path / "f"), "--model-args", "{}")
