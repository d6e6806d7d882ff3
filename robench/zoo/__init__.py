"""Turns the name of a model into the model.

A name is a bundled model (`mini-resnet`), one of timm's (`timm:resnet50`), a folder with timm's
`config.json` and safetensors, or one's own code (`module.path:function`). Not here: what a model must be
like (`robench.classifier`), and how bundled ones were trained (`robench.training`).
"""

import importlib.resources
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn

from robench.errors import ModelError, complaint, did_you_mean
from robench.zoo import deit, resnet_rs, roadmap, spach, timm_models
from robench.zoo.mini import ARCHITECTURES, MODELS
from robench.zoo.normalised import Normalised
from robench.zoo.own_code import call_function
from robench.zoo.registration import register
from robench.zoo.state import fill

__all__ = ["ARCHITECTURES", "MODELS", "NETWORKS", "Loaded", "Normalised", "load_model", "resolve"]

NETWORKS = {**deit.NETWORKS, **resnet_rs.NETWORKS, **roadmap.NETWORKS, **spach.NETWORKS}
"""What timm cannot build by a name of its own; `timm.create_model` knows them once this package is imported."""
for _name, _network in NETWORKS.items():
    register(_name, _network)


@dataclass(frozen=True)
class Loaded:
    """A model and where it came from.

    Attributes:
      model: what was loaded; normalisation is inside.
      name: what to call it.
      reference: what names it to robench again.
      loader: what built it.
      weights_sha256: of the weights file, where there is one.
    """

    model: Any
    name: str
    reference: str
    loader: str
    weights_sha256: str | None = None


def load_model(reference: str, *, weights: str | Path | None = None) -> nn.Module:
    """Load a model by name, in eval mode, on the CPU, with its normalisation inside.

    Args:
      reference: a bundled name, such as `mini-resnet`; `timm:NAME`; a folder with timm's `config.json` and
        safetensors; or `module.path:function`.
      weights: a safetensors file in place of the bundled or downloaded weights.
    Returns:
      A module that takes float32 RGB images in [0, 1] and returns logits; from one's own function as it
      comes, in whatever mode that is.
    Raises:
      ModelError: there is no such model, the weights do not fit, or the function makes no module.
    Example:
      >>> load_model("mini-resnet")(torch.zeros(1, 3, 64, 64)).shape
      torch.Size([1, 10])
    """
    model = resolve(reference, weights=weights).model
    if not isinstance(model, nn.Module):
        advice = "`robench.evaluate` takes any callable; `load_model` returns modules."
        raise ModelError(complaint(reference, "model", type(model).__name__, "a torch.nn.Module", advice))
    return model


def resolve(reference: str, *, weights: str | Path | None = None) -> Loaded:
    """The same as `load_model`, with its origin, and for any callable."""
    path = Path(weights) if weights is not None else None
    if reference in MODELS:
        return _bundled(reference, path)
    if reference.startswith("timm:"):
        name = reference.removeprefix("timm:")
        model, digest = timm_models.by_name(name, path)
        return Loaded(model, name if path is None else path.stem, reference, loader=reference, weights_sha256=digest)
    if reference.startswith("hf-hub:"):
        advice = "Until a later release loads these names, download the files and give their folder."
        raise ModelError(complaint("robench", "model", f"`{reference}`", "a bundled or timm name, or a folder", advice))
    if reference and Path(reference).is_dir():
        model, digest = timm_models.from_folder(Path(reference), path)
        name = Path(reference).resolve().name
        return Loaded(model, name, reference, loader="timm folder", weights_sha256=digest)
    if ":" in reference:
        if weights is not None:
            advice = "Load the weights in the function."
            raise ModelError(complaint(reference, "weights", f"`{weights}`", "none with `module:function`", advice))
        name = reference.rpartition(":")[2]
        return Loaded(call_function(reference), name, reference, loader="module:function")
    near = f"Did you mean `timm:{reference}`?" if timm_models.knows(reference) else did_you_mean(reference, MODELS)
    advice = near + " Other models are `timm:NAME`, `module.path:function`, or a folder."
    raise ModelError(complaint("robench", "model", f"`{reference}`", "the name of a model", advice))


def _bundled(name: str, weights: Path | None) -> Loaded:
    with torch.random.fork_rng(devices=[]):  # initial weights draw from the caller's generator
        model = ARCHITECTURES[MODELS[name]]()
    digest = fill(model, weights or bundled_weights(name), name)
    called = name if weights is None else weights.stem
    return Loaded(model.eval(), called, name, loader=f"robench.zoo:{MODELS[name]}", weights_sha256=digest)


def bundled_weights(name: str) -> Path:
    """File of a bundled model's weights."""
    return Path(str(importlib.resources.files("robench.zoo") / "weights" / f"{name}.safetensors"))
