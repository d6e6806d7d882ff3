"""Pickled checkpoints become safetensors; what they could do when read, they do not."""

import hashlib
import json
import os
import pickle
import socket
import subprocess
import sys
import zipfile
from collections import OrderedDict
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import huggingface_hub
import pytest
import timm
import torch
from safetensors.torch import load_file
from torch import Tensor, nn

from robench.errors import ModelError
from robench.hub import Hub
from robench.zoo import baselines, conversion, load_model, unpickle
from robench.zoo.baselines import Baseline
from robench.zoo.conversion import Network, convert
from tests.hub_server import FakeHub, serving

SMALL = "test_resnet"
MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


def _network(name: str = SMALL, **arguments: Any) -> nn.Module:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        network: nn.Module = timm.create_model(name, **arguments)
    return network.eval()


def _as_robustness_saves_it(network: nn.Module, wrapper: str = "module.") -> dict[str, Any]:
    """A checkpoint in the layout of github.com/MadryLab/robustness: the attacked copy shares the network's tensors."""
    constants = [torch.tensor(values).reshape(3, 1, 1) for values in (MEAN, STD)]
    state: OrderedDict[str, Tensor] = OrderedDict()
    for prefix, normaliser in (("", "normalizer."), ("attacker.", "attacker.normalize.")):
        state[f"{wrapper}{normaliser}new_mean"], state[f"{wrapper}{normaliser}new_std"] = constants
        state |= {f"{wrapper}{prefix}model.{name}": tensor for name, tensor in network.state_dict().items()}
    momentum = {"state": {0: {"momentum_buffer": torch.zeros(3)}}, "param_groups": [{"lr": 0.1, "params": [0]}]}
    return {"model": state, "optimizer": momentum, "schedule": None, "epoch": 90, "amp": "N/A"}


def _images(size: int = 64) -> Tensor:
    return torch.rand(2, 3, size, size, generator=torch.Generator().manual_seed(0))


@pytest.fixture
def read_here(monkeypatch: pytest.MonkeyPatch) -> None:
    """Pickles are read in this process, which takes no time; for tests of what becomes of them."""

    def read(source: str, path: Path, target: Path) -> dict[str, Any]:
        return {"enforced": [], **unpickle.read(path, target)}

    monkeypatch.setattr(conversion, "_read_apart", read)


@pytest.mark.parametrize(("wrapper", "zipped"), [("module.", True), ("", False)])
def test_a_checkpoint_of_the_robustness_library_becomes_a_model(wrapper: str, zipped: bool, tmp_path: Path) -> None:
    network, source, target = _network(num_classes=7), tmp_path / "robust.ckpt", tmp_path / "robust"
    torch.save(_as_robustness_saves_it(network, wrapper), source, _use_new_zipfile_serialization=zipped)
    done = convert(str(source), target, network=Network(SMALL))
    assert (done.target, done.entry, done.normalisation) == (target, "model", "the checkpoint")
    assert done.sha256 == hashlib.sha256(source.read_bytes()).hexdigest()
    assert sorted(path.name for path in target.iterdir()) == ["config.json", "model.safetensors"]
    mean, std = (torch.tensor(values).reshape(1, 3, 1, 1) for values in (MEAN, STD))
    with torch.no_grad():
        assert torch.equal(load_model(str(target))(_images()), network((_images() - mean) / std))
    assert sorted(path.name for path in tmp_path.iterdir()) == ["robust", "robust.ckpt"]
    settings = json.loads((target / "config.json").read_text())
    assert settings["num_classes"] == 7
    assert "license" not in settings["pretrained_cfg"]  # timm's is that of timm's weights


def test_weights_alone_keep_their_names(tmp_path: Path) -> None:
    state = {f"module.{name}": tensor for name, tensor in _network().state_dict().items()}
    torch.save({"state_dict": state, "epoch": 3}, tmp_path / "w.pth")
    done = convert(str(tmp_path / "w.pth"), tmp_path / "w.safetensors")
    assert (done.entry, done.normalisation) == ("state_dict", None)
    found = load_file(tmp_path / "w.safetensors")
    assert set(found) == {name.removeprefix("module.") for name in state}
    assert all(torch.equal(tensor, state[f"module.{name}"]) for name, tensor in found.items())


@pytest.mark.parametrize("entry", [None, "model", "state_dict", "model_state_dict"])
def test_weights_are_found_where_checkpoints_keep_them(entry: str | None) -> None:
    state = {"w": torch.ones(2)}
    assert unpickle.state_of({entry: state, "epoch": 3, "model_ema": {}} if entry else state) == (entry, state)


@pytest.mark.usefixtures("read_here")
def test_arguments_of_the_architecture_go_into_the_config(tmp_path: Path) -> None:
    arguments = {"embed_dim": 48, "num_heads": 3}
    network = _network("test_vit", num_classes=5, **arguments)
    torch.save(network.state_dict(), tmp_path / "w.pth")
    given = Network("test_vit", arguments, mean=(0.1, 0.2, 0.3))
    done = convert(str(tmp_path / "w.pth"), tmp_path / "vit", network=given)
    assert done.normalisation == "the call and timm's configuration"
    settings: Any = network.pretrained_cfg
    mean, std = (torch.tensor(values).reshape(1, 3, 1, 1) for values in (given.mean, settings["std"]))
    with torch.no_grad():
        assert torch.equal(load_model(str(tmp_path / "vit"))(_images(160)), network((_images(160) - mean) / std))


# --- what a pickle must not do


class _Trap:
    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Any, tuple[str]]:
        return os.mkdir, (str(self.path),)


@pytest.mark.parametrize("form", ["zip", "old", "plain", "nested"])
def test_a_malicious_pickle_does_not_run(form: str, tmp_path: Path) -> None:
    source, sprung = tmp_path / "evil.pth", tmp_path / "sprung"
    content = {"model": {"w": torch.zeros(1)}, "epoch": _Trap(sprung)} if form == "nested" else _Trap(sprung)
    if form == "plain":
        source.write_bytes(pickle.dumps(content))
    else:
        torch.save(content, source, _use_new_zipfile_serialization=form != "old")
    named = "" if form == "plain" else " (posix.mkdir)"  # torch does not look into what it has not written
    assert unpickle.read(source, tmp_path / "tensors") == {"error": f"holding more than tensors{named}"}
    assert sorted(path.name for path in tmp_path.iterdir()) == ["evil.pth"]


def test_a_malicious_pickle_is_refused_by_name(tmp_path: Path) -> None:
    torch.save(_Trap(tmp_path / "sprung"), tmp_path / "evil.pth")
    message = (
        r"evil\.pth: `source` is holding more than tensors \(posix\.mkdir\); expected a checkpoint of tensors\. Save"
    )
    with pytest.raises(ModelError, match=message):
        convert(str(tmp_path / "evil.pth"), tmp_path / "w.safetensors")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["evil.pth"]


def test_what_runs_beside_the_pickle_is_shut_in(tmp_path: Path) -> None:
    """Were code to run all the same, it would find no network and little room."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        code = (
            "import json, resource, socket, sys\n"
            f"sys.path.insert(0, {str(Path(unpickle.__file__).parent)!r})\n"
            "import unpickle\n"
            "enforced = unpickle.shut_in(1 << 20)\n"
            "try:\n"
            f"    socket.create_connection(('127.0.0.1', {server.getsockname()[1]}), timeout=5)\n"
            "    reached = True\n"
            "except OSError:\n"
            "    reached = False\n"
            "try:\n"
            "    bytearray(8 << 30)\n"
            "    large = True\n"
            "except MemoryError:\n"
            "    large = False\n"
            "print(json.dumps([enforced, reached, large, resource.getrlimit(resource.RLIMIT_CORE)]))\n"
        )
        done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=tmp_path)
    enforced, reached, large, core = json.loads(done.stdout)
    assert reached == ("no network" not in enforced)
    assert large == (not any("of memory" in each for each in enforced))
    assert core == [0, 0]
    if sys.platform == "linux":
        assert any("of memory" in each for each in enforced)
        assert "no new privileges" in enforced


def test_the_process_that_reads_sees_no_token(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    spy = tmp_path / "spy.py"
    spy.write_text("import json, os; print(json.dumps({'error': ' '.join(sorted(os.environ))}))")
    monkeypatch.setattr(unpickle, "__file__", str(spy))
    monkeypatch.setenv("HF_TOKEN", "hf_secret")
    torch.save({"w": torch.zeros(1)}, tmp_path / "w.pth")
    with pytest.raises(ModelError, match=r"`source` is .*OMP_NUM_THREADS") as refused:
        convert(str(tmp_path / "w.pth"), tmp_path / "w.safetensors")
    assert "TOKEN" not in str(refused.value)


# --- what cannot be converted


@pytest.mark.usefixtures("read_here")
def test_weights_of_another_network_are_named(tmp_path: Path) -> None:
    state = dict(_network().state_dict())
    state["extra.weight"] = torch.zeros(1)
    torch.save(state, tmp_path / "w.pth")
    message = (
        r"w\.pth: `weights` is of another model \(.*Unexpected key.*extra\.weight.*\); expected the tensors of test_r"
    )
    with pytest.raises(ModelError, match=message):
        convert(str(tmp_path / "w.pth"), tmp_path / "folder", network=Network(SMALL))
    assert sorted(path.name for path in tmp_path.iterdir()) == ["w.pth"]


@pytest.mark.usefixtures("read_here")
def test_a_robustness_checkpoint_with_more_beside_it_is_refused(tmp_path: Path) -> None:
    checkpoint = _as_robustness_saves_it(_network())
    checkpoint["model"]["module.surprise"] = torch.zeros(1)
    torch.save(checkpoint, tmp_path / "w.ckpt")
    with pytest.raises(
        ModelError, match=r"`weights` is beside its normaliser surprise; expected `model\.` and `attacker"
    ):
        convert(str(tmp_path / "w.ckpt"), tmp_path / "folder", network=Network(SMALL))


@pytest.mark.parametrize("share", [0.0, 0.3, 0.99])
def test_a_truncated_file_is_named(share: float, tmp_path: Path) -> None:
    torch.save(_as_robustness_saves_it(_network()), tmp_path / "w.ckpt")
    content = (tmp_path / "w.ckpt").read_bytes()
    (tmp_path / "w.ckpt").write_bytes(content[: int(share * len(content))])
    assert unpickle.read(tmp_path / "w.ckpt", tmp_path / "t")["error"].startswith("unreadable (")
    if share:
        return
    with pytest.raises(
        ModelError, match=r"w\.ckpt: `source` is unreadable \(\w+: .*\); expected a checkpoint of tensors"
    ):
        convert(str(tmp_path / "w.ckpt"), tmp_path / "folder", network=Network(SMALL))


@pytest.mark.parametrize(
    ("content", "found"),
    [
        ([torch.zeros(1)], "list, not a dictionary"),
        ({}, "an empty dictionary"),
        ({"epoch": 3}, "a dictionary without tensors (epoch)"),
        ({"w": torch.zeros(1), "epoch": 3}, "a dictionary of tensors and others (epoch)"),
        ({"model": {"epoch": 3}}, "a dictionary without tensors (epoch)"),
    ],
)
def test_what_holds_no_weights_is_named(content: Any, found: str, tmp_path: Path) -> None:
    torch.save(content, tmp_path / "w.pth")
    assert unpickle.read(tmp_path / "w.pth", tmp_path / "t") == {"error": found}


def test_a_bomb_is_not_unfolded(tmp_path: Path) -> None:
    """A checkpoint whose few bytes unfold to many ends the process that reads it, and only that."""
    torch.save({"w": torch.zeros(1 << 20)}, tmp_path / "whole.pth")
    with zipfile.ZipFile(tmp_path / "whole.pth") as whole, zipfile.ZipFile(tmp_path / "w.pth", "w") as bomb:
        for name in whole.namelist():
            content = whole.read(name)
            grown = bytes(1 << 27) if name.endswith("data/0") else content
            bomb.writestr(name, grown, zipfile.ZIP_DEFLATED, compresslevel=1)
    with pytest.raises(ModelError, match=r"w\.pth: `source` is "):
        convert(str(tmp_path / "w.pth"), tmp_path / "w.safetensors")


@pytest.mark.parametrize(
    ("network", "message"),
    [
        (None, r"`architecture` is none; expected what the weights are for\. Give timm's name with `--architecture`"),
        (Network("resnet5O"), r"`architecture` is `resnet5O`; expected the name of a timm model\. Did you mean"),
        (Network(SMALL, mean=(0.5,)), r"`mean` is 1 numbers; expected one for each of three channels"),
        (Network(SMALL, {"depht": 3}), r"`model_args` is `.*depht.*`, with which timm cannot build test_resnet"),
    ],
)
@pytest.mark.usefixtures("read_here")
def test_a_network_that_timm_does_not_know_is_named(network: Network | None, message: str, tmp_path: Path) -> None:
    torch.save(_network().state_dict(), tmp_path / "w.pth")
    with pytest.raises(ModelError, match=message):
        convert(str(tmp_path / "w.pth"), tmp_path / "folder", network=network)


def test_another_file_than_the_pinned_one_is_refused(tmp_path: Path) -> None:
    torch.save({"w": torch.zeros(1)}, tmp_path / "w.pth")
    with pytest.raises(
        ModelError, match=r"`sha256` is [0-9a-f]{64}; expected 0{64}, as pinned\. This is another file\.$"
    ):
        convert(str(tmp_path / "w.pth"), tmp_path / "w.safetensors", sha256="0" * 64)


def test_nothing_is_overwritten(tmp_path: Path) -> None:
    torch.save({"w": torch.zeros(1)}, tmp_path / "w.pth")
    (tmp_path / "w.safetensors").write_bytes(b"mine")
    with pytest.raises(ModelError, match=r"`target` is there already; expected a new file or folder\. Nothing is over"):
        convert(str(tmp_path / "w.pth"), tmp_path / "w.safetensors")
    assert (tmp_path / "w.safetensors").read_bytes() == b"mine"


@pytest.mark.parametrize(("source", "found"), [("none.pth", "missing"), (".", "a folder")])
def test_a_source_that_is_no_file_is_named(source: str, found: str, tmp_path: Path) -> None:
    with pytest.raises(ModelError, match=rf"`source` is {found}; expected a file of pickled weights\.$"):
        convert(str(tmp_path / source), tmp_path / "w.safetensors")


# --- from the Hub


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[FakeHub]:
    monkeypatch.delenv("HF_TOKEN", raising=False)
    monkeypatch.setattr(huggingface_hub.constants, "HF_TOKEN_PATH", str(tmp_path / "no-token"))
    with serving() as hub:
        yield hub


KNOWN = "madrylab/robust-imagenet-models"


@pytest.mark.usefixtures("read_here")
def test_a_known_checkpoint_on_the_hub_needs_no_more_than_its_name(
    server: FakeHub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    network, name = _network(), f"hf-hub:{KNOWN}/small.ckpt"
    row = Baseline("small", name, "pickled", 0, 160, licence="mit", architecture=SMALL)
    monkeypatch.setattr(baselines, "listed", lambda: (row,))
    torch.save(_as_robustness_saves_it(network), tmp_path / "saved")
    server.add(KNOWN, {"small.ckpt": (tmp_path / "saved").read_bytes()})
    place = Hub(server.endpoint, tmp_path / "cache", seconds=2.0)
    convert(name, tmp_path / "robust", hub=place)
    mean, std = (torch.tensor(values).reshape(1, 3, 1, 1) for values in (MEAN, STD))
    with torch.no_grad():
        assert torch.equal(load_model(str(tmp_path / "robust"))(_images()), network((_images() - mean) / std))
    assert json.loads((tmp_path / "robust" / "config.json").read_text())["pretrained_cfg"]["license"] == "mit"


def test_a_known_checkpoint_with_another_digest_is_refused(server: FakeHub, tmp_path: Path) -> None:
    server.add(KNOWN, {"resnet50_linf_eps4.0.ckpt": b"another file"})
    place = Hub(server.endpoint, tmp_path / "cache", seconds=2.0)
    with pytest.raises(ModelError, match=r"`sha256` is [0-9a-f]{64}; expected 9e622169[0-9a-f]{56}, as pinned\."):
        convert(f"hf-hub:{KNOWN}/resnet50_linf_eps4.0.ckpt@main", tmp_path / "robust", hub=place)


def test_a_repository_is_no_file(tmp_path: Path) -> None:
    message = r"`source` is `hf-hub:a/b`; expected `hf-hub:org/name/file\[@revision\]`\.$"
    with pytest.raises(ModelError, match=message):
        convert("hf-hub:a/b", tmp_path / "w.safetensors")
