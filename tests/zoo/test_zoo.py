import json
import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import nn
from typer.testing import CliRunner

from robench.arrays import state_digest
from robench.cli.main import app
from robench.data.mini import attack_set
from robench.errors import ModelError
from robench.zoo import ARCHITECTURES, MODELS, Normalised, bundled_weights, load_model, resolve


def _state(architecture: str = "mini-resnet", seed: int = 0) -> dict[str, torch.Tensor]:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return {name: tensor.contiguous() for name, tensor in ARCHITECTURES[architecture]().state_dict().items()}


def _saved(folder: Path, architecture: str = "mini-resnet") -> Path:
    path = folder / "trained.safetensors"
    save_file(_state(architecture), path)
    return path


@pytest.fixture
def own_code(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A working directory for modules of the user's own; what they leave in Python is taken away."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [entry for entry in sys.path if entry])
    for name in [name for name in sys.modules if name.startswith("own_")]:
        monkeypatch.delitem(sys.modules, name)
    return tmp_path


@pytest.mark.parametrize("name", MODELS)
def test_bundled_models_load_and_answer(name: str) -> None:
    model = load_model(name)
    pixels, labels = (each[:128] for each in attack_set())
    images = torch.from_numpy(pixels).float() / 255
    with torch.no_grad():
        logits = model(images)
    assert logits.shape == (128, 10)
    assert bool(logits.isfinite().all())
    assert (logits.argmax(dim=1).numpy() == labels).mean() > 0.5  # other weights or another normalisation: 0.1
    assert not any(part.training for part in model.modules())
    assert bundled_weights(name).stat().st_size <= 1_000_000


@pytest.mark.parametrize("name", MODELS)
def test_every_name_resolves_to_its_architecture(name: str, tmp_path: Path) -> None:
    architecture = MODELS[name]
    path = _saved(tmp_path, architecture)
    loaded = resolve(name, weights=path)
    assert isinstance(loaded.model, Normalised)
    assert state_digest(loaded.model.state_dict()) == state_digest(load_file(path))
    assert (loaded.name, loaded.reference) == ("trained", name)
    assert loaded.loader == f"local weights in robench.zoo:{architecture}"
    assert resolve(name).loader == f"robench.zoo:{architecture}"
    sha256 = subprocess.run(["sha256sum", path], capture_output=True, text=True, check=True).stdout.split()[0]
    assert loaded.weights_sha256 == sha256


def test_each_architecture_is_bundled_clean_and_adversarial() -> None:
    assert set(MODELS) == set(ARCHITECTURES) | {f"{name}-adv" for name in ARCHITECTURES}


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_architectures_are_small_and_take_the_mini_images(architecture: str) -> None:
    state = _state(architecture)
    model = ARCHITECTURES[architecture]().eval()
    model.load_state_dict(state)
    assert sum(tensor.numel() * tensor.element_size() for tensor in state.values()) < 1_000_000
    with torch.no_grad():
        assert model(torch.zeros(2, 3, 64, 64)).shape == (2, 10)
    assert model.mean.flatten().tolist() == [0.5] * 3  # the weights rest on these
    assert model.std.flatten().tolist() == [0.25] * 3


def test_normalisation_is_inside_and_not_in_the_state() -> None:
    model = Normalised(nn.Identity(), mean=(0.5, 0.25, 0.0), std=(0.25, 0.5, 2.0))
    answer = model(torch.ones(1, 3, 2, 2))
    assert answer[0, :, 0, 0].tolist() == [2.0, 1.5, 0.5]
    assert not model.state_dict()


def test_a_loaded_model_is_in_eval_mode_and_trainable(tmp_path: Path) -> None:
    model = load_model("mini-resnet", weights=_saved(tmp_path))
    assert not any(part.training for part in model.modules())
    assert all(parameter.requires_grad for parameter in model.parameters())
    assert {str(parameter.device) for parameter in model.parameters()} == {"cpu"}


def test_loading_leaves_the_callers_random_state(own_code: Path) -> None:
    (own_code / "own_random.py").write_text("from torch import nn\ndef net():\n    return nn.Linear(3, 3)\n")
    before = torch.get_rng_state()
    load_model("mini-deit", weights=_saved(own_code, "mini-deit"))
    assert torch.equal(torch.get_rng_state(), before)
    load_model("own_random:net")
    assert torch.equal(torch.get_rng_state(), before)


@pytest.mark.parametrize("weights", ["x.safetensors", Path("x.safetensors")])
def test_weights_may_be_text_or_path(weights: str | Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    save_file(_state(), "x.safetensors")
    assert resolve("mini-resnet", weights=weights).name == "x"


@pytest.mark.parametrize(
    ("name", "advice"),
    [
        ("mini-resnt", "Did you mean `mini-resnet`"),
        ("mini-diet-adv", "Did you mean `mini-deit-adv`"),
        ("Mini-ResNet-GELU", "Known: mini-deit, mini-deit-adv, mini-resnet"),
        ("", "Known: mini-deit, mini-deit-adv, mini-resnet"),
        ("../weights/mini-resnet", "Did you mean `mini-resnet`"),
    ],
)
def test_an_unknown_name_is_answered_with_near_ones(name: str, advice: str) -> None:
    message = rf"^robench: `model` is `{re.escape(name)}`; expected the name of a model\. {re.escape(advice)}.*"
    with pytest.raises(
        ModelError,
        match=message + r" Other models are `timm:NAME`, `hf-hub:org/name`, `module\.path:function`, or a folder\.$",
    ):
        load_model(name)


def test_own_code_is_called_from_the_working_directory(own_code: Path) -> None:
    (own_code / "own_models").mkdir()
    (own_code / "own_models" / "nets.py").write_text(
        "from torch import nn\ndef net():\n    return nn.Conv2d(3, 10, 64).eval()\n"
    )
    loaded = resolve("own_models.nets:net")
    assert isinstance(loaded.model, nn.Conv2d)
    assert (loaded.name, loaded.reference, loaded.loader) == ("net", "own_models.nets:net", "module:function")
    assert loaded.weights_sha256 is None


def test_own_code_is_found_on_the_python_path(
    own_code: Path, tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch
) -> None:
    elsewhere = tmp_path_factory.mktemp("elsewhere")
    (elsewhere / "own_elsewhere.py").write_text("from torch import nn\nnet = nn.Flatten\n")
    monkeypatch.syspath_prepend(elsewhere)
    assert isinstance(load_model("own_elsewhere:net"), nn.Flatten)


def test_a_callable_that_is_no_module_resolves_but_is_not_loaded(own_code: Path) -> None:
    (own_code / "own_callable.py").write_text("def make():\n    return lambda images: images\n")
    assert callable(resolve("own_callable:make").model)
    message = (
        r"^own_callable:make: `model` is function; expected a torch\.nn\.Module\. "
        r"`robench\.evaluate` takes any callable; `load_model` returns modules\.$"
    )
    with pytest.raises(ModelError, match=message):
        load_model("own_callable:make")


@pytest.mark.parametrize(
    ("reference", "reason"),
    [
        ("own_missing:net", r"No module named 'own_missing'"),
        ("own_there:nett", r"module 'own_there' has no attribute 'nett'"),
        ("own_there:", r"module 'own_there' has no attribute ''"),
        ("own_there.net:net", r"No module named 'own_there\.net'; 'own_there' is not a package"),
        (":net", r"Empty module name"),
        (".own_there:net", r"the 'package' argument is required .*"),
        ("own_there:a:b", r"module 'own_there' has no attribute 'a:b'"),
        ("own_needs:net", r"No module named 'not_installed_at_all'"),
    ],
)
def test_own_code_that_is_not_found_is_named(own_code: Path, reference: str, reason: str) -> None:
    (own_code / "own_there.py").write_text("def net(): ...\n")
    (own_code / "own_needs.py").write_text("import not_installed_at_all\n")
    message = (
        rf"^robench: `model` is `{re.escape(reference)}` \({reason}\); expected `module\.path:function`\. "
        r"Run from the folder of the module, or install it\.$"
    )
    with pytest.raises(ModelError, match=message):
        resolve(reference)


def test_a_file_in_place_of_its_module_is_set_right(own_code: Path) -> None:
    (own_code / "own_there.py").write_text("def net(): ...\n")
    with pytest.raises(ModelError, match=r"Name a module, not its file: `own_there:net`, from its folder\.$"):
        resolve("./own_there.py:net")


def test_own_code_that_leaves_python_is_named(own_code: Path) -> None:
    (own_code / "own_script.py").write_text("import sys\n\n\ndef net():\n    sys.exit('usage: own_script')\n")
    with pytest.raises(ModelError, match=r"^own_script:net: `function` is failing when called \(SystemExit: usage: "):
        resolve("own_script:net")


@pytest.mark.parametrize(
    ("code", "reason"),
    [
        ("def net(:", r"SyntaxError: invalid syntax .*"),
        ("1 / 0", r"ZeroDivisionError: division by zero"),
        ("import sys; sys.exit(2)", r"SystemExit: 2"),
    ],
)
def test_own_code_that_cannot_be_imported_is_named(own_code: Path, code: str, reason: str) -> None:
    (own_code / "own_broken.py").write_text(code + "\n")
    message = (
        rf"^own_broken:net: `module` is failing when imported \({reason}\); expected a module that can be imported"
    )
    with pytest.raises(ModelError, match=message):
        resolve("own_broken:net")


@pytest.mark.parametrize(
    ("code", "reason"),
    [
        ("def net(): raise FileNotFoundError('no weights')", r"FileNotFoundError: no weights"),
        ("def net(size): ...", r"TypeError: net\(\) missing 1 required positional argument: 'size'"),
        ("net = 3", r"TypeError: 'int' object is not callable"),
    ],
)
def test_own_code_that_fails_is_named(own_code: Path, code: str, reason: str) -> None:
    (own_code / "own_failing.py").write_text(code + "\n")
    message = (
        rf"^own_failing:net: `function` is failing when called \({reason}\); "
        r"expected a function without arguments that returns the model\.$"
    )
    with pytest.raises(ModelError, match=message):
        resolve("own_failing:net")


def test_weights_do_not_go_with_own_code(own_code: Path) -> None:
    message = (
        r"^own_there:net: `weights` is `w\.safetensors`; expected none with `module:function`\. "
        r"Load the weights in the function\.$"
    )
    with pytest.raises(ModelError, match=message):
        resolve("own_there:net", weights="w.safetensors")


@pytest.mark.parametrize("name", ["my weights $(touch x) 'quoted'.pth", "misnamed.safetensors"])
def test_a_pickle_is_refused_with_a_command_that_converts_it(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / name
    state = _state()
    state["network.conv1.0.weight"] = state["network.conv1.0.weight"].to(memory_format=torch.channels_last)
    torch.save(state, path)
    content = path.read_bytes()
    message = (
        r"`weights` is a pickle; expected a safetensors file\. A pickle can run code when it is read\. "
        r"Convert it: robench convert "
    )
    with pytest.raises(ModelError, match=message) as refused:
        load_model("mini-resnet", weights=path)
    command = str(refused.value).partition("Convert it: ")[2]
    if "$" in name:  # what a shell makes of it
        environment = {**os.environ, "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"}
        subprocess.run(command, shell=True, check=True, cwd=tmp_path, env=environment)
    else:
        monkeypatch.chdir(tmp_path)
        CliRunner().invoke(app, shlex.split(command)[1:], catch_exceptions=False)
    converted = Path(shlex.split(command)[-1])
    assert converted.suffix == ".safetensors"
    assert path.read_bytes() == content
    assert sorted(tmp_path.iterdir()) == sorted([path, converted])
    model = load_model("mini-resnet", weights=converted)
    assert state_digest(model.state_dict()) == state_digest(state)


@pytest.mark.parametrize("protocol", [2, 4])
def test_an_old_pickle_is_refused_and_not_run(protocol: int, tmp_path: Path) -> None:
    import pickle

    class Trap:
        def __reduce__(self) -> tuple[object, tuple[str]]:
            return os.mkdir, (str(tmp_path / "sprung"),)

    path = tmp_path / "old.pt"
    path.write_bytes(pickle.dumps(Trap(), protocol=protocol))
    with pytest.raises(ModelError, match=r"old\.pt: `weights` is a pickle; expected a safetensors file\."):
        load_model("mini-resnet", weights=path)
    assert not (tmp_path / "sprung").exists()


@pytest.mark.parametrize("magic", [b"\x80", b"PK"])
def test_safetensors_whose_length_looks_like_a_pickle_are_read(magic: bytes, tmp_path: Path) -> None:
    # The file begins with the length of its header, whose low bytes may be those that a pickle begins with.
    path = tmp_path / "trained.safetensors"
    save_file(_state(), path, metadata={"note": ""})
    length = int.from_bytes(path.read_bytes()[:8], "little")
    padding = (int.from_bytes(magic, "little") - length) % 256 ** len(magic)
    save_file(_state(), path, metadata={"note": "x" * padding})
    assert path.read_bytes().startswith(magic)
    assert isinstance(load_model("mini-resnet", weights=path), Normalised)


def test_weights_of_another_architecture_are_refused(tmp_path: Path) -> None:
    message = (
        r"trained\.safetensors: `weights` is of another model \(Error\(s\) in loading state_dict .*\); "
        r"expected the tensors of mini-resnet\.$"
    )
    with pytest.raises(ModelError, match=message) as refused:
        load_model("mini-resnet", weights=_saved(tmp_path, "mini-deit"))
    assert len(str(refused.value)) < 600


def test_weights_of_another_shape_or_with_a_tensor_missing_are_refused(tmp_path: Path) -> None:
    state = _state()
    name = next(iter(state))
    save_file({**state, name: state[name][:1].clone()}, tmp_path / "shape.safetensors")
    with pytest.raises(ModelError, match=r"of another model \(.*size mismatch for .*\); expected the tensors of"):
        load_model("mini-resnet", weights=tmp_path / "shape.safetensors")
    del state[name]
    save_file(state, tmp_path / "missing.safetensors")
    with pytest.raises(ModelError, match=r"of another model \(.*Missing key.*\); expected the tensors of"):
        load_model("mini-resnet", weights=tmp_path / "missing.safetensors")


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    message = (
        r"none\.safetensors: `weights` is unreadable \(No such file or directory\); expected a safetensors file\.$"
    )
    with pytest.raises(ModelError, match=message):
        load_model("mini-resnet", weights=tmp_path / "none.safetensors")


def test_a_folder_is_no_file(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match=r"`weights` is unreadable \(Is a directory\); expected a safetensors file\.$"):
        load_model("mini-resnet", weights=tmp_path)


@pytest.mark.parametrize("kept", [0, 5, 8, 100, 0.5, -1])
def test_a_truncated_file_is_named(kept: float, tmp_path: Path) -> None:
    path = _saved(tmp_path)
    content = path.read_bytes()
    path.write_bytes(content[: int(kept * len(content)) if kept == 0.5 else int(kept)])
    with pytest.raises(ModelError, match=r"`weights` is unreadable \(.+\); expected a safetensors file\.$"):
        load_model("mini-resnet", weights=path)


def test_text_is_no_safetensors_file(tmp_path: Path) -> None:
    (tmp_path / "notes.json").write_text(json.dumps({"weights": "here"}))
    with pytest.raises(
        ModelError, match=r"notes\.json: `weights` is unreadable \(.+\); expected a safetensors file\.$"
    ):
        load_model("mini-resnet", weights=tmp_path / "notes.json")
