"""Turns the name of a model into the model.

A name is a bundled model (`mini-resnet`), one of timm's (`timm:resnet50`), a repository on the Hub
(`hf-hub:org/name`), a folder with timm's `config.json` and safetensors, or one's own code
(`module.path:function`). Not here: what a model must be like (`robench.classifier`), and how bundled ones were
trained (`robench.training`).
"""

import importlib.resources
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn

from robench.errors import ModelError, complaint, did_you_mean
from robench.hub import SCHEME, Hub, parse
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
      revision: commit of the repository on the Hub that the weights came from, where they did.
    """

    model: Any
    name: str
    reference: str
    loader: str
    weights_sha256: str | None = None
    revision: str | None = None


def load_model(
    reference: str,
    *,
    weights: str | Path | None = None,
    endpoint: str | None = None,
    cache_dir: str | Path | None = None,
) -> nn.Module:
    """Load a model by name, in eval mode, on the CPU, with its normalisation inside.

    Args:
      reference: a bundled name, such as `mini-resnet`; `timm:NAME[@revision]`, or timm's name alone;
        `hf-hub:org/name[@revision]`; a folder with timm's `config.json` and safetensors; or `module.path:function`.
      weights: a safetensors file in place of the bundled or downloaded weights.
      endpoint: address of the Hub; by default what `HF_ENDPOINT` says, else huggingface.co.
      cache_dir: folder of what is downloaded; by default what `HF_HUB_CACHE` or `HF_HOME` say.
    Returns:
      A module that takes float32 RGB images in [0, 1] and returns logits; from one's own function as it
      comes, in whatever mode that is.
    Raises:
      ModelError: there is no such model, the weights do not fit, or the function makes no module.
    Example:
      >>> load_model("mini-resnet")(torch.zeros(1, 3, 64, 64)).shape
      torch.Size([1, 10])
    """
    model = resolve(reference, weights=weights, hub=Hub(endpoint, cache_dir)).model
    if not isinstance(model, nn.Module):
        advice = "`robench.evaluate` takes any callable; `load_model` returns modules."
        raise ModelError(complaint(reference, "model", type(model).__name__, "a torch.nn.Module", advice))
    return model


def resolve(reference: str, *, weights: str | Path | None = None, hub: Hub | None = None) -> Loaded:
    """The same as `load_model`, with its origin, and for any callable."""
    path, hub = Path(weights) if weights is not None else None, hub or Hub()
    if reference in MODELS:
        return _bundled(reference, path)
    if reference.startswith("timm:"):
        own, _, revision = reference.partition("@")
        name = own.removeprefix("timm:")
        built = timm_models.by_name(name, path, revision=revision or None, hub=hub)
        return _loaded(built, name if path is None else path.stem, own, loader=own)
    if reference.startswith(SCHEME):
        address = parse(reference)
        if address.file is not None:
            advice = "A file of weights goes through `robench convert`."
            raise ModelError(complaint("robench", "model", f"`{reference}`", "`hf-hub:org/name[@revision]`", advice))
        _refuse_weights(reference, weights, "with `hf-hub:`", "Give the weights' own folder, or use `timm:NAME`.")
        built = timm_models.from_hub(address, hub)
        name = address.repository.partition("/")[2]
        return _loaded(built, name, address.reference, loader=address.reference)
    if reference and Path(reference).is_dir():
        built = timm_models.from_folder(Path(reference), path)
        return _loaded(built, Path(reference).resolve().name, reference, loader="timm folder")
    if ":" in reference:
        _refuse_weights(reference, weights, "with `module:function`", "Load the weights in the function.")
        name = reference.rpartition(":")[2]
        return Loaded(call_function(reference), name, reference, loader="module:function")
    if timm_models.knows(reference.partition("@")[0]):
        return resolve(f"timm:{reference}", weights=weights, hub=hub)
    near = did_you_mean(reference, MODELS)
    advice = near + " Other models are `timm:NAME`, `hf-hub:org/name`, `module.path:function`, or a folder."
    raise ModelError(complaint("robench", "model", f"`{reference}`", "the name of a model", advice))


def _loaded(built: timm_models.Built, name: str, reference: str, *, loader: str) -> Loaded:
    return Loaded(built.model, name, reference, loader, built.weights_sha256, built.revision)


def _refuse_weights(reference: str, weights: str | Path | None, why: str, advice: str) -> None:
    if weights is not None:
        raise ModelError(complaint(reference, "weights", f"`{weights}`", f"none {why}", advice))


def _bundled(name: str, weights: Path | None) -> Loaded:
    with torch.random.fork_rng(devices=[]):  # initial weights draw from the caller's generator
        model = ARCHITECTURES[MODELS[name]]()
    digest = fill(model, weights or bundled_weights(name), name)
    called, loader = name, f"robench.zoo:{MODELS[name]}"
    if weights is not None:
        called, loader = weights.stem, f"local weights in {loader}"
    return Loaded(model.eval(), called, name, loader, weights_sha256=digest)


def bundled_weights(name: str) -> Path:
    """File of a bundled model's weights."""
    return Path(str(importlib.resources.files("robench.zoo") / "weights" / f"{name}.safetensors"))
