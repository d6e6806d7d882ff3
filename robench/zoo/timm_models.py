"""Models that timm builds: by name, or from a folder with timm's `config.json` and safetensors.

Not here: what a model must be like (`robench.classifier`).
"""

import json
from pathlib import Path
from typing import Any

import timm
import torch
from huggingface_hub import hf_hub_download
from timm.models import is_model
from torch import nn

from robench.errors import ModelError, complaint, did_you_mean
from robench.zoo.normalised import Normalised
from robench.zoo.state import conversion, fill

HUB_FILE = "model.safetensors"


def knows(name: str) -> bool:
    """Whether timm can build a model of this name."""
    return bool(is_model(name.partition(".")[0]))


def by_name(name: str, weights: Path | None) -> tuple[nn.Module, str]:
    """A model by timm's name for it (`resnet50`, `resnet50.a1_in1k`), in eval mode, on the CPU.

    Args:
      name: as `timm.create_model` takes it.
      weights: a safetensors file; None downloads timm's own weights from the Hugging Face Hub, once.
    Returns:
      The model with its mean and standard deviation inside, and the SHA-256 of its weights file.
    Raises:
      ModelError: timm knows no such model, it has no weights, or they cannot be had or do not fit.
    """
    reference = f"timm:{name}"
    if not knows(name):
        architecture = name.partition(".")[0]
        advice = did_you_mean(architecture, timm.list_models()) or f"timm {timm.__version__} is installed."
        raise ModelError(complaint("robench", "model", f"`{reference}`", "the name of a timm model", advice))
    try:
        network = _build(name)
    except Exception as error:  # timm raises RuntimeError for an unknown tag, and what the architecture raises
        summary = (str(error).splitlines() or [""])[0][:200]
        found = f"`{reference}`, which timm cannot build ({summary})"
        raise ModelError(complaint("robench", "model", found, "the name of a timm model")) from error
    path = weights or _download(reference, network.pretrained_cfg)
    digest = fill(network, path, reference)
    return _finished(network, network.pretrained_cfg, reference), digest


def from_folder(folder: Path, weights: Path | None) -> tuple[nn.Module, str]:
    """A model from a folder as timm and the Hub lay them out, in eval mode, on the CPU.

    Args:
      folder: holds `config.json` and `model.safetensors`.
      weights: another safetensors file in place of the one in the folder.
    Returns:
      The model with its mean and standard deviation inside, and the SHA-256 of its weights file.
    Raises:
      ModelError: a file is missing or malformed, or the weights do not fit.
    """
    config = _read_config(folder / "config.json")
    settings = config.get("pretrained_cfg", config)  # older files are flat
    architecture, arguments = config.get("architecture"), config.get("model_args") or {}
    where = str(folder / "config.json")
    for key, value, kind in (("pretrained_cfg", settings, dict), ("model_args", arguments, dict)):
        if not isinstance(value, kind):
            raise ModelError(complaint(where, key, repr(value)[:80], "a table"))
    if not isinstance(architecture, str) or not is_model(architecture):
        advice = did_you_mean(str(architecture), timm.list_models())
        raise ModelError(complaint(where, "architecture", f"`{architecture}`", "the name of a timm model", advice))
    classes = config.get("num_classes", settings.get("num_classes"))
    if classes is not None:
        arguments = {"num_classes": classes, **arguments}
    try:
        network = _build(architecture, **arguments)
    except Exception as error:  # whatever an architecture makes of its arguments
        summary = (str(error).splitlines() or [""])[0][:200]
        found = f"`{arguments}`, with which timm cannot build {architecture} ({summary})"
        raise ModelError(complaint(where, "model_args", found, f"arguments of {architecture}")) from error
    digest = fill(network, weights or _file_in(folder), str(folder))
    return _finished(network, settings, where), digest


def _build(name: str, **arguments: Any) -> nn.Module:
    with torch.random.fork_rng(devices=[]):  # initial weights draw from the caller's generator
        network: nn.Module = timm.create_model(name, pretrained=False, **arguments)
    return network


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


def _download(reference: str, settings: Any) -> Path:
    """The file of a model's weights, from the Hub or its cache."""
    repository = settings.get("hf_hub_id")
    if not repository:
        advice = "Give `--weights FILE.safetensors`."
        raise ModelError(complaint(reference, "weights", "none", "a model whose weights are on the Hub", advice))
    try:
        return Path(hf_hub_download(repository, HUB_FILE, library_name="robench"))
    except Exception as error:  # the Hub's errors have no common parent: HTTP, offline mode, file system, values
        reason = f"{type(error).__name__}: {(str(error).splitlines() or [''])[0][:200]}"
        advice = "Give a downloaded file with `--weights FILE.safetensors`, or try again with a connection."
        found = f"not to be had from {repository} ({reason})"
        raise ModelError(complaint(reference, "weights", found, f"`{HUB_FILE}` on the Hub", advice)) from error


def _read_config(path: Path) -> dict[str, Any]:
    expected = "timm's `config.json` beside `model.safetensors`"
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        found = f"unreadable ({getattr(error, 'strerror', None) or error})"
        raise ModelError(complaint(str(path), "file", found, expected)) from error
    if not isinstance(content, dict):
        raise ModelError(complaint(str(path), "file", type(content).__name__, expected))
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
    pickles = [path for pattern in ("*.bin", "*.pth", "*.pt", "*.ckpt") for path in sorted(folder.glob(pattern))]
    if pickles:
        advice = f"A pickle can run code when it is read. Convert it where you trust it: {conversion(pickles[0])}"
        raise ModelError(complaint(str(folder), "weights", f"a pickle ({pickles[0].name})", f"`{HUB_FILE}`", advice))
    raise ModelError(complaint(str(folder), "weights", "missing", f"`{HUB_FILE}`"))
