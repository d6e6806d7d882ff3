"""Turns the name of a model into the model.

A name is a bundled model (`mini-resnet`) or one's own code (`module.path:function`). Not here: what a
model must be like (`robench.classifier`), and how bundled ones were trained (`robench.training`).
"""

import hashlib
import importlib
import importlib.resources
import shlex
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import nn

from robench.errors import ModelError, complaint, did_you_mean
from robench.zoo.mini import ARCHITECTURES, MODELS, Normalised

__all__ = ["ARCHITECTURES", "MODELS", "Loaded", "Normalised", "load_model", "resolve"]


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
    """Load a model by name; a bundled one in eval mode, on the CPU, with its normalisation inside.

    Args:
      reference: a bundled name, such as `mini-resnet`, or `module.path:function`.
      weights: a safetensors file in place of the bundled weights.
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
    if reference.startswith(("timm:", "hf-hub:")):
        advice = "Until a later release loads these names, return the model from a function of your own."
        raise ModelError(complaint("robench", "model", f"`{reference}`", "a bundled name or `module:function`", advice))
    if ":" in reference:
        if weights is not None:
            advice = "Load the weights in the function."
            raise ModelError(complaint(reference, "weights", f"`{weights}`", "none with `module:function`", advice))
        return _own_code(reference)
    if reference not in MODELS:
        advice = did_you_mean(reference, MODELS) + " One's own code is `module.path:function`."
        raise ModelError(complaint("robench", "model", f"`{reference}`", "the name of a model", advice))
    with torch.random.fork_rng(devices=[]):  # initial weights draw from the caller's generator
        model = ARCHITECTURES[MODELS[reference]]()
    path = Path(weights) if weights is not None else bundled_weights(reference)
    _fill(model, path, reference)
    digest = hashlib.sha256(path.read_bytes()).hexdigest()
    name = reference if weights is None else path.stem
    return Loaded(model.eval(), name, reference, loader=f"robench.zoo:{MODELS[reference]}", weights_sha256=digest)


def bundled_weights(name: str) -> Path:
    """File of a bundled model's weights."""
    return Path(str(importlib.resources.files("robench.zoo") / "weights" / f"{name}.safetensors"))


def _fill(model: nn.Module, path: Path, reference: str) -> None:
    """Load weights, strictly."""
    try:
        with path.open("rb") as file:
            magic = file.read(2)
    except OSError as error:
        reason = error.strerror or type(error).__name__
        raise ModelError(complaint(str(path), "weights", f"unreadable ({reason})", "a safetensors file")) from error
    try:
        model.load_state_dict(load_file(path))
    except SafetensorError as error:
        if magic == b"PK" or magic[:1] == b"\x80":  # only now: the length of a safetensors header may begin so, too
            advice = f"A pickle can run code when it is read. Convert it where you trust it: {_conversion(path)}"
            raise ModelError(complaint(str(path), "weights", "a pickle", "a safetensors file", advice)) from error
        raise ModelError(complaint(str(path), "weights", f"unreadable ({error})", "a safetensors file")) from error
    except RuntimeError as error:
        summary = " ".join(str(error).split())[:300]
        raise ModelError(
            complaint(str(path), "weights", f"of another model ({summary})", f"the tensors of {reference}")
        ) from error


def _conversion(path: Path) -> str:
    """The command that turns a pickled state dict into safetensors, for a shell."""
    target = path.with_suffix(".safetensors")
    if target == path:
        target = path.with_suffix(".converted.safetensors")
    code = (
        "import sys, torch; from safetensors.torch import save_file; "
        'state = torch.load(open(sys.argv[1], "rb"), weights_only=True); '  # given a name, torch goes by its suffix
        "save_file({name: tensor.clone(memory_format=torch.contiguous_format) for name, tensor in state.items()}, "
        "sys.argv[2])"
    )
    return shlex.join(["python", "-c", code, str(path), str(target)])


def _own_code(reference: str) -> Loaded:
    """Import `module.path:function` from the Python path or the working directory, and call it."""
    module_name, _, function_name = reference.partition(":")
    if str(Path.cwd()) not in sys.path:
        sys.path.append(str(Path.cwd()))
    try:
        function = getattr(importlib.import_module(module_name), function_name)
    except (ImportError, AttributeError, ValueError, TypeError) as error:
        advice = "Run from the folder of the module, or install it."
        raise ModelError(
            complaint("robench", "model", f"`{reference}` ({error})", "`module.path:function`", advice)
        ) from error
    except Exception as error:  # the module is there, and is the user's own code
        found = f"failing when imported ({type(error).__name__}: {error})"
        raise ModelError(complaint(reference, "module", found, "a module that can be imported")) from error
    try:
        with torch.random.fork_rng(devices=[]):
            model = function()
    except Exception as error:
        found = f"failing when called ({type(error).__name__}: {error})"
        raise ModelError(
            complaint(reference, "function", found, "a function without arguments that returns the model")
        ) from error
    return Loaded(model, name=function_name, reference=reference, loader="module:function")
