import hashlib
import json
import re
import shlex
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
from safetensors.torch import load_file, save_file
from typer.testing import CliRunner

from robench.classifier import Classifier
from robench.cli.main import app
from robench.errors import ModelError
from robench.zoo import load_model, resolve

NAME = "test_resnet.r160_in1k"  # timm's own network for tests: small, and with another mean than most
CLASSES = 7


def _state(seed: int = 0, **arguments: Any) -> dict[str, torch.Tensor]:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return dict(timm.create_model(NAME, pretrained=False, **arguments).state_dict())


@pytest.fixture
def weights(tmp_path: Path) -> Path:
    save_file(_state(), tmp_path / "mine.safetensors")
    return tmp_path / "mine.safetensors"


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A folder as timm's `save_for_hf` writes it, of a network with 7 classes."""
    path = tmp_path / "my-model"
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        network = timm.create_model(NAME, pretrained=False, num_classes=CLASSES)
    network.pretrained_cfg["mean"] = (0.1, 0.2, 0.3)
    timm.models.save_for_hf(network, path, safe_serialization=True)
    return path


def _edit(folder: Path, **changes: Any) -> None:
    path = folder / "config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))


def test_a_timm_model_takes_images_and_normalises_them_itself(weights: Path) -> None:
    loaded = resolve(f"timm:{NAME}", weights=weights)
    network = timm.create_model(NAME, pretrained=False)
    network.load_state_dict(load_file(weights))
    settings = network.pretrained_cfg
    mean, std = (torch.tensor(settings[key]).reshape(1, 3, 1, 1) for key in ("mean", "std"))
    images = torch.rand(2, 3, 64, 64, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        assert torch.equal(loaded.model(images), network.eval()((images - mean) / std))
    assert not any(part.training for part in loaded.model.modules())
    assert loaded.weights_sha256 == hashlib.sha256(weights.read_bytes()).hexdigest()
    assert (loaded.name, loaded.reference, loaded.loader) == ("mine", f"timm:{NAME}", f"timm:{NAME}")


def test_two_normalisations_of_the_same_weights_are_two_models(folder: Path) -> None:
    first = Classifier(load_model(str(folder))).configuration_digest()
    config = json.loads((folder / "config.json").read_text())
    _edit(folder, pretrained_cfg={**config["pretrained_cfg"], "std": [0.2, 0.2, 0.2]})
    assert Classifier(load_model(str(folder))).configuration_digest() != first


def test_building_leaves_the_callers_random_state(weights: Path) -> None:
    before = torch.random.get_rng_state()
    resolve(f"timm:{NAME}", weights=weights)
    assert torch.equal(torch.random.get_rng_state(), before)


def test_a_folder_of_timm_is_a_model(folder: Path) -> None:
    loaded = resolve(str(folder))
    with torch.no_grad():
        assert loaded.model(torch.rand(2, 3, 64, 64)).shape == (2, CLASSES)
    assert loaded.model.mean.flatten().tolist() == pytest.approx([0.1, 0.2, 0.3])
    assert (loaded.name, loaded.reference, loaded.loader) == ("my-model", str(folder), "timm folder")


def test_other_weights_may_take_the_place_of_the_folders(folder: Path, tmp_path: Path) -> None:
    other = tmp_path / "other.safetensors"
    save_file(_state(1, num_classes=CLASSES), other)
    assert resolve(str(folder), weights=other).weights_sha256 == hashlib.sha256(other.read_bytes()).hexdigest()


@pytest.mark.parametrize(
    ("name", "advice"),
    [("resnet5o", "Did you mean `resnet50`"), ("", ""), ("resnet50/../x", "")],
)
def test_an_unknown_timm_name_is_answered_with_near_ones(name: str, advice: str) -> None:
    message = rf"^robench: `model` is `timm:{re.escape(name)}`; expected the name of a timm model\. .*{advice}"
    with pytest.raises(ModelError, match=message):
        resolve(f"timm:{name}")


def test_an_unknown_tag_is_named() -> None:
    message = r"^robench: `model` is `timm:resnet50\.nobody_in1k`, which timm cannot build \(Invalid pretrained tag"
    with pytest.raises(ModelError, match=message):
        resolve("timm:resnet50.nobody_in1k")


def test_a_model_without_published_weights_asks_for_a_file(monkeypatch: pytest.MonkeyPatch) -> None:
    name = "vit_tiny_patch16_224.nowhere"
    network = timm.create_model(NAME, pretrained=False)
    network.pretrained_cfg = {**network.pretrained_cfg, "hf_hub_id": None}
    monkeypatch.setattr(timm, "create_model", lambda *args, **kwargs: network)
    message = (
        rf"^timm:{re.escape(name)}: `weights` is none; expected a model whose weights are on the Hub\. Give `--weights"
    )
    with pytest.raises(ModelError, match=message):
        resolve(f"timm:{name}")


def test_weights_of_another_model_are_refused(tmp_path: Path) -> None:
    save_file(_state(num_classes=3), tmp_path / "w.safetensors")
    message = r"w\.safetensors: `weights` is of another model \(.*size mismatch.*\); expected the tensors of timm:"
    with pytest.raises(ModelError, match=message):
        resolve(f"timm:{NAME}", weights=tmp_path / "w.safetensors")


def test_a_folder_of_pickles_is_refused_with_the_command_that_converts(folder: Path) -> None:
    (folder / "model.safetensors").unlink()
    torch.save({"state_dict": _state(num_classes=CLASSES)}, folder / "pytorch_model.bin")
    message = r"my-model: `weights` is a pickle \(pytorch_model\.bin\); expected `model\.safetensors`\. A pickle"
    with pytest.raises(ModelError, match=message) as refused:
        resolve(str(folder))
    command = shlex.split(str(refused.value).partition("Convert it: ")[2])
    assert command[0] == "robench"
    CliRunner().invoke(app, command[1:], catch_exceptions=False)
    resolve(str(folder))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"architecture": "resnet5"}, r"`architecture` is `resnet5`; expected the name of a timm model\. Did you mean"),
        ({"architecture": None}, r"`architecture` is `None`; expected the name of a timm model\."),
        ({"model_args": [1]}, r"`model_args` is \[1\]; expected a table\."),
        (
            {"model_args": {"depht": 3}},
            r"`model_args` is `.*depht.*`, with which timm cannot build test_resnet \(.*depht",
        ),
        ({"pretrained_cfg": {"std": [1, 1, 1]}}, r"`mean` is None; expected three numbers, one for each channel\."),
        ({"pretrained_cfg": {"mean": [1, 1], "std": [1, 1, 1]}}, r"`mean` is \[1, 1\]; expected three numbers"),
        ({"pretrained_cfg": "none"}, r"`pretrained_cfg` is 'none'; expected a table\."),
    ],
)
def test_a_malformed_config_is_named(folder: Path, changes: dict[str, Any], message: str) -> None:
    _edit(folder, **changes)
    with pytest.raises(ModelError, match=rf"config\.json: {message}"):
        resolve(str(folder))


@pytest.mark.parametrize(("content", "found"), [(None, "No such file"), ("{", "Expecting"), ("[]", "list")])
def test_a_folder_without_a_readable_config_is_no_model(folder: Path, content: str | None, found: str) -> None:
    (folder / "config.json").unlink()
    if content is not None:
        (folder / "config.json").write_text(content)
    message = rf"config\.json: `file` is .*{found}.*; expected timm's `config\.json` beside `model\.safetensors`"
    with pytest.raises(ModelError, match=message):
        resolve(str(folder))


def test_a_folder_without_weights_or_with_too_many_is_refused(folder: Path) -> None:
    (folder / "model.safetensors").rename(folder / "a.safetensors")
    resolve(str(folder))  # one file is the file, whatever its name
    save_file(_state(), folder / "b.safetensors")
    with pytest.raises(ModelError, match=r"`weights` is a\.safetensors, b\.safetensors; expected `model\.safetensors`"):
        resolve(str(folder))
    for name in ("a", "b"):
        (folder / f"{name}.safetensors").unlink()
    with pytest.raises(ModelError, match=r"my-model: `weights` is missing; expected `model\.safetensors`\.$"):
        resolve(str(folder))
