"""Models by name from the Hub: which commit, from safetensors alone, and what a result says of it."""

import hashlib
import json
import os
import pickle
import shlex
import subprocess
import sys
import textwrap
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import timm
import torch

from robench.errors import ModelError
from robench.hub import Hub
from robench.zoo import load_model, resolve
from tests.hub_server import TOKEN, FakeHub, serving

NAME = "test_resnet.r160_in1k"
OWN = "someone/small"


def _saved(folder: Path, classes: int) -> dict[str, bytes]:
    """Files of a repository as timm pushes them."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(classes)
        network = timm.create_model(NAME, pretrained=False, num_classes=classes)
    network.pretrained_cfg["mean"] = (0.1, 0.2, 0.3)
    timm.models.save_for_hf(network, folder, safe_serialization=True)
    return {path.name: path.read_bytes() for path in folder.iterdir()}


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> dict[str, bytes]:
    return _saved(tmp_path_factory.mktemp("ten"), 10)


@pytest.fixture(scope="module")
def published(tmp_path_factory: pytest.TempPathFactory) -> dict[str, bytes]:
    return _saved(tmp_path_factory.mktemp("thousand"), 1000)


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[FakeHub]:
    monkeypatch.setenv("HF_TOKEN", TOKEN)  # whoever is logged in must not be seen
    with serving() as hub:
        yield hub


@pytest.fixture
def place(server: FakeHub, tmp_path: Path) -> Hub:
    return Hub(server.endpoint, tmp_path / "cache", seconds=2.0)


def test_a_model_of_the_hub_is_loaded_with_its_normalisation(
    server: FakeHub, place: Hub, files: dict[str, bytes]
) -> None:
    commit = server.add(OWN, {**files, "pytorch_model.bin": b"never read"})
    loaded = resolve(f"hf-hub:{OWN}", hub=place)
    assert (loaded.name, loaded.reference, loaded.loader) == ("small", f"hf-hub:{OWN}", f"hf-hub:{OWN}")
    assert (loaded.revision, loaded.weights_sha256) == (
        commit,
        hashlib.sha256(files["model.safetensors"]).hexdigest(),
    )
    assert loaded.model.mean.flatten().tolist() == pytest.approx([0.1, 0.2, 0.3])
    model = load_model(f"hf-hub:{OWN}@{commit}", endpoint=place.endpoint, cache_dir=place.cache_dir)
    images = torch.rand(2, 3, 64, 64, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        assert torch.equal(model(images), loaded.model(images))
    assert not any("pytorch_model.bin" in path for path in server.asked())
    assert {request.token for request in server.log} == {None}


def test_the_weights_of_a_timm_name_come_from_its_repository_at_a_commit(
    server: FakeHub, place: Hub, published: dict[str, bytes]
) -> None:
    old = server.add(f"timm/{NAME}", published)
    changed = {**published, "README.md": b"new"}
    new = server.add(f"timm/{NAME}", changed)
    for prefix in ("timm:", ""):
        loaded = resolve(f"{prefix}{NAME}", hub=place)
        assert (loaded.name, loaded.reference, loaded.revision) == (NAME, f"timm:{NAME}", new)
        assert loaded.model.mean.flatten().tolist() == pytest.approx(timm.get_pretrained_cfg(NAME).mean)
        assert resolve(f"{prefix}{NAME}@{old}", hub=place).revision == old
    assert {request.token for request in server.log} == {None}


@pytest.mark.parametrize("timm_name", [False, True])
def test_a_repository_of_pickles_is_refused_before_they_are_asked_for(
    server: FakeHub, place: Hub, files: dict[str, bytes], timm_name: bool
) -> None:
    repository = f"timm/{NAME}" if timm_name else OWN
    commit = server.add(repository, {"config.json": files["config.json"], "pytorch_model.bin": pickle.dumps({})})
    message = (
        rf"hf-hub:{repository}: `weights` is a pickle \(pytorch_model\.bin\); expected `model\.safetensors`\. A pickle "
        r"can run code when it is read\. Convert it to a folder that robench loads: robench convert "
    )
    with pytest.raises(ModelError, match=message) as refused:
        resolve(f"timm:{NAME}" if timm_name else f"hf-hub:{OWN}", hub=place)
    assert f"robench convert hf-hub:{repository}/pytorch_model.bin@{commit} " in str(refused.value)
    assert not any("resolve" in path for path in server.asked())


@pytest.mark.parametrize(
    ("kept", "message"),
    [
        ({"README.md"}, r"^hf-hub:someone/small: `weights` is missing; expected `model\.safetensors`\.$"),
        ({"model.safetensors"}, r"^hf-hub:someone/small: `file` is missing at [0-9a-f]{8}; expected `config\.json`\.$"),
    ],
)
def test_a_repository_that_is_not_laid_out_as_timm_does_it_is_named(
    server: FakeHub, place: Hub, files: dict[str, bytes], kept: set[str], message: str
) -> None:
    server.add(OWN, {name: content for name, content in {**files, "README.md": b""}.items() if name in kept})
    with pytest.raises(ModelError, match=message):
        resolve(f"hf-hub:{OWN}", hub=place)


def test_a_config_of_another_library_is_named(server: FakeHub, place: Hub, files: dict[str, bytes]) -> None:
    server.add(OWN, {**files, "config.json": json.dumps({"architectures": ["ViTForImageClassification"]}).encode()})
    message = r"^hf-hub:someone/small/config\.json: `architecture` is `None`; expected the name of a timm model\."
    with pytest.raises(ModelError, match=message):
        resolve(f"hf-hub:{OWN}", hub=place)


def test_weights_that_are_not_what_the_hub_lists_are_not_loaded(
    server: FakeHub, place: Hub, files: dict[str, bytes]
) -> None:
    server.add(OWN, files)
    resolve(f"hf-hub:{OWN}", hub=place)
    (blob,) = [path.resolve() for path in Path(place.cache_dir or "").rglob("snapshots/*/model.safetensors")]
    content = bytearray(blob.read_bytes())
    content[-1] ^= 1  # a weight by its last bit, which the format cannot notice
    blob.write_bytes(content)
    with pytest.raises(ModelError, match=r"^hf-hub:someone/small: `digest of model\.safetensors` is "):
        resolve(f"hf-hub:{OWN}", hub=place)


def test_a_timm_name_whose_weights_cannot_be_had_says_what_else_will_do(server: FakeHub, place: Hub) -> None:
    message = (
        r"^timm:resnet18\.a1_in1k: hf-hub:timm/resnet18\.a1_in1k: `repository` is missing, or private; .* "
        r"A downloaded file will do: `--weights FILE\.safetensors`\.$"
    )
    with pytest.raises(ModelError, match=message):
        resolve("timm:resnet18.a1_in1k", hub=place)


@pytest.mark.parametrize(
    ("reference", "options", "message"),
    [
        (
            f"hf-hub:{OWN}",
            {"weights": "w.safetensors"},
            r"`weights` is `w\.safetensors`; expected none with `hf-hub:`\.",
        ),
        (
            "hf-hub:a/b/c.ckpt",
            {},
            r"^robench: `model` is `hf-hub:a/b/c\.ckpt`; .* A file of weights goes through `robench",
        ),
        ("hf-hub:name", {}, r"^robench: `model` is `hf-hub:name`; expected `hf-hub:org/name\[@revision\]`\.$"),
    ],
)
def test_a_name_that_cannot_be_loaded_is_named(reference: str, options: dict[str, Any], message: str) -> None:
    with pytest.raises(ModelError, match=message):
        resolve(reference, **options)


def _elsewhere(code: str, server: FakeHub, folder: Path) -> str:
    """What code prints in a process of its own, whose environment names the Hub."""
    settings = {"HF_ENDPOINT": server.endpoint, "HF_HOME": str(folder / "home"), "HF_HUB_DISABLE_PROGRESS_BARS": "1"}
    command = [sys.executable, "-c", textwrap.dedent(code)]
    environment = {**os.environ, **settings}
    done = subprocess.run(
        command, env=environment, cwd=folder, capture_output=True, text=True, timeout=120, check=False
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_a_result_names_the_commit_and_its_run_is_resumed_at_it(
    server: FakeHub, files: dict[str, bytes], tmp_path: Path
) -> None:
    first = server.add(OWN, files)
    run = f"""
        import json, robench
        result = robench.evaluate("hf-hub:{OWN}", "mini-pgd-linf", limit=4, run_dir="run")
        print(json.dumps([result.model.reference, result.model.revision]))
    """
    assert json.loads(_elsewhere(run, server, tmp_path)) == [f"hf-hub:{OWN}", first]
    server.add(OWN, {**files, "model.safetensors": b"another model"})
    (tmp_path / "run" / "result.json").unlink()  # as if it had been killed
    server.log.clear()
    again = f"""
        import robench
        from robench.evaluation import resume
        print(resume("run").model.revision)
        try:
            robench.load_model("hf-hub:{OWN}")
        except robench.errors.ModelError as error:
            print(error)
    """
    resumed, moved = _elsewhere(again, server, tmp_path).splitlines()
    assert resumed == first
    assert "unreadable" in moved  # the branch has another model now
    asked = [request.path for request in server.log if first in request.path]
    assert asked == []  # all of the first is in the cache


def test_the_command_in_the_message_can_be_split(server: FakeHub, place: Hub, files: dict[str, bytes]) -> None:
    server.add(OWN, {"weights file.pth": b"x"})
    with pytest.raises(ModelError) as refused:
        resolve(f"hf-hub:{OWN}", hub=place)
    command = shlex.split(str(refused.value).partition("robench loads: ")[2])
    assert command[:2] == ["robench", "convert"]
    assert command[3:] == ["small", "--architecture", "NAME"]
