"""Models that timm builds: by name, from a folder with timm's `config.json` and safetensors, or from the Hub.

Not here: what a model must be like (`robench.classifier`), and how files come from the Hub (`robench.hub`).
"""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import timm
import torch
from timm.models import is_model
from torch import nn

from robench.errors import ModelError, complaint, did_you_mean, first_few
from robench.hub import Address, Hub, Snapshot, open_snapshot
from robench.zoo.normalised import Normalised
from robench.zoo.state import conversion, fill

HUB_FILE = "model.safetensors"
CONFIG = "config.json"
PICKLES = (".bin", ".pth", ".pt", ".ckpt", ".pkl", ".tar")
"""How files end whose weights are pickled."""
_WHICH = f"timm {timm.__version__} is installed; `timm.list_models()` has the names that it knows."
"""In place of more than a thousand names."""


@dataclass(frozen=True)
class Built:
    """A model in eval mode, on the CPU, with its mean and standard deviation inside.

    Attributes:
      model: the network behind its normalisation.
      weights_sha256: of its weights file.
      revision: commit of the repository on the Hub that the weights came from; None: they were a local file.
    """

    model: nn.Module
    weights_sha256: str
    revision: str | None = None


def knows(name: str) -> bool:
    """Whether timm can build a model of this name."""
    return bool(is_model(name.partition(".")[0]))


def by_name(name: str, weights: Path | None, *, revision: str | None = None, hub: Hub | None = None) -> Built:
    """A model by timm's name for it (`resnet50`, `resnet50.a1_in1k`).

    Args:
      name: as `timm.create_model` takes it.
      weights: a safetensors file; None fetches timm's own weights from the Hugging Face Hub.
      revision: branch, tag or commit of the repository with timm's weights; None: its main branch.
      hub: where the weights come from.
    Raises:
      ModelError: timm knows no such model, it has no weights, or they cannot be had or do not fit.
    """
    reference = f"timm:{name}"
    if not knows(name):
        architecture = name.partition(".")[0]
        advice = did_you_mean(architecture, timm.list_models(), otherwise=_WHICH)
        raise ModelError(complaint("robench", "model", f"`{reference}`", "the name of a timm model", advice))
    try:
        network = build(name)
    except Exception as error:  # timm raises RuntimeError for an unknown tag, and what the architecture raises
        summary = (str(error).splitlines() or [""])[0][:200]
        found = f"`{reference}`, which timm cannot build ({summary})"
        raise ModelError(complaint("robench", "model", found, "the name of a timm model")) from error
    settings, commit = network.pretrained_cfg, None
    if weights is None:
        snapshot = _published(reference, settings, revision, hub or Hub())
        weights, commit = snapshot.fetch(HUB_FILE), snapshot.commit
    digest = fill(network, weights, reference)
    return Built(_finished(network, settings, reference), digest, commit)


def from_hub(address: Address, hub: Hub) -> Built:
    """A model from a repository on the Hub that timm could load, from safetensors alone.

    Raises:
      ModelError: the repository cannot be had, has no safetensors, or is not laid out as timm does it.
    """
    snapshot = open_snapshot(address, hub, (CONFIG, HUB_FILE))
    _refuse_pickles(snapshot)
    config = _read_config(snapshot.fetch(CONFIG), f"{address.reference}/{CONFIG}")
    return _from_config(config, snapshot.fetch(HUB_FILE), address.reference, revision=snapshot.commit)


def from_folder(folder: Path, weights: Path | None) -> Built:
    """A model from a folder as timm and the Hub lay them out.

    Args:
      folder: holds `config.json` and `model.safetensors`.
      weights: another safetensors file in place of the one in the folder.
    Raises:
      ModelError: a file is missing or malformed, or the weights do not fit.
    """
    config = _read_config(folder / CONFIG, str(folder / CONFIG))
    return _from_config(config, weights or _file_in(folder), str(folder))


def _from_config(config: dict[str, Any], weights: Path, place: str, revision: str | None = None) -> Built:
    """A model as timm's configuration describes it; `place` is the folder or repository, for messages."""
    settings = config.get("pretrained_cfg", config)  # older files are flat
    arguments = config.get("model_args") or {}
    where = f"{place}/{CONFIG}"
    for key, value, kind in (("pretrained_cfg", settings, dict), ("model_args", arguments, dict)):
        if not isinstance(value, kind):
            raise ModelError(complaint(where, key, repr(value)[:80], "a table"))
    architecture = checked_architecture(config.get("architecture"), where)
    classes = config.get("num_classes", settings.get("num_classes"))
    if classes is not None:
        arguments = {"num_classes": classes, **arguments}
    network = build_with(architecture, arguments, where)
    digest = fill(network, weights, place)
    return Built(_finished(network, settings, where), digest, revision)


def build(name: str, **arguments: Any) -> nn.Module:
    """timm's network of this name, untrained; the caller's random state is left alone."""
    with torch.random.fork_rng(devices=[]):  # initial weights draw from the caller's generator
        network: nn.Module = timm.create_model(name, pretrained=False, **arguments)
    return network


def checked_architecture(name: Any, where: str) -> str:
    """The name of an architecture, if it is one of timm's.

    Raises:
      ModelError: it is none.
    """
    if not isinstance(name, str) or not is_model(name):
        advice = did_you_mean(str(name), timm.list_models(), otherwise=_WHICH)
        raise ModelError(complaint(where, "architecture", f"`{name}`", "the name of a timm model", advice))
    return name


def build_with(architecture: str, arguments: Mapping[str, Any], where: str) -> nn.Module:
    """timm's network of an architecture with arguments of its own.

    Raises:
      ModelError: it takes no such arguments.
    """
    try:
        return build(architecture, **arguments)
    except Exception as error:  # whatever an architecture makes of its arguments
        summary = (str(error).splitlines() or [""])[0][:200]
        found = f"`{arguments}`, with which timm cannot build {architecture} ({summary})"
        raise ModelError(complaint(where, "model_args", found, f"arguments of {architecture}")) from error


def _finished(network: nn.Module, settings: Any, where: str) -> nn.Module:
    """In eval mode, with the normalisation it was trained with inside."""
    constants = []
    for key in ("mean", "std"):
        values = settings.get(key)
        numbers = isinstance(values, list | tuple) and len(values) == 3
        if not numbers or not all(isinstance(value, int | float) for value in values):
            raise ModelError(complaint(where, key, repr(values)[:80], "three numbers, one for each channel"))
        constants.append(tuple(float(value) for value in values))
    return Normalised(network, mean=constants[0], std=constants[1]).eval()


def _published(reference: str, settings: Any, revision: str | None, hub: Hub) -> Snapshot:
    """The repository of a timm model's published weights."""
    repository = settings.get("hf_hub_id")
    if not repository:
        advice = "Give `--weights FILE.safetensors`."
        raise ModelError(complaint(reference, "weights", "none", "a model whose weights are on the Hub", advice))
    try:
        snapshot = open_snapshot(Address(repository, revision=revision), hub, (HUB_FILE,))
        _refuse_pickles(snapshot)
    except ModelError as error:
        raise ModelError(f"{reference}: {error} A downloaded file will do: `--weights FILE.safetensors`.") from error
    return snapshot


def _refuse_pickles(snapshot: Snapshot) -> None:
    """Refuse a repository without safetensors, before anything reads its pickles instead."""
    files = snapshot.digests
    if files is None or HUB_FILE in files:
        return
    where, expected = snapshot.address.reference, f"`{HUB_FILE}`"
    pickles = sorted(file for file in files if file.endswith(PICKLES))
    if not pickles:
        raise ModelError(complaint(where, "weights", "missing", expected))
    found = f"a pickle ({first_few(pickles)})"
    command = conversion(f"{where}/{pickles[0]}@{snapshot.commit}", snapshot.address.repository.partition("/")[2])
    advice = f"A pickle can run code when it is read. Convert it to a folder that robench loads: {command}"
    raise ModelError(complaint(where, "weights", found, expected, advice))


def _read_config(path: Path, where: str) -> dict[str, Any]:
    expected = "timm's `config.json` beside `model.safetensors`"
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        found = f"unreadable ({getattr(error, 'strerror', None) or error})"
        raise ModelError(complaint(where, "file", found, expected)) from error
    if not isinstance(content, dict):
        raise ModelError(complaint(where, "file", type(content).__name__, expected))
    return content


def _file_in(folder: Path) -> Path:
    """The one safetensors file to load; a folder that holds pickles alone is refused."""
    found = sorted(folder.glob("*.safetensors"))
    named = folder / HUB_FILE
    if named in found or len(found) == 1:
        return named if named in found else found[0]
    if found:
        names = ", ".join(path.name for path in found)
        advice = "Choose one with `--weights`."
        raise ModelError(complaint(str(folder), "weights", names, f"`{HUB_FILE}`, or one safetensors file", advice))
    pickles = [path for suffix in PICKLES for path in sorted(folder.glob(f"*{suffix}"))]
    if pickles:
        advice = f"A pickle can run code when it is read. Convert it: {conversion(str(pickles[0]), str(named))}"
        raise ModelError(complaint(str(folder), "weights", f"a pickle ({pickles[0].name})", f"`{HUB_FILE}`", advice))
    raise ModelError(complaint(str(folder), "weights", "missing", f"`{HUB_FILE}`"))
