"""Weights from a safetensors file into a module, strictly; a pickle is refused, as reading one can run code.

Not here: what is built (`mini`, `timm_models`).
"""

import hashlib
import shlex
from collections.abc import Mapping
from pathlib import Path

from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn

from robench.errors import ModelError, complaint

SUFFIX = ".safetensors"


def fill(model: nn.Module, path: Path, reference: str) -> str:
    """Load weights, strictly; returns the SHA-256 of the file.

    Args:
      model: what they are loaded into.
      path: a safetensors file.
      reference: name of the model, for messages.
    Raises:
      ModelError: the file cannot be read, is a pickle, or holds another model's tensors.
    """
    load_strictly(model, tensors_of(path), str(path), reference)
    return sha256_of(path)


def tensors_of(path: Path) -> dict[str, Tensor]:
    """The tensors of a safetensors file by their names.

    Raises:
      ModelError: the file cannot be read, or is a pickle.
    """
    try:
        with path.open("rb") as file:
            magic = file.read(2)
    except OSError as error:
        reason = error.strerror or type(error).__name__
        raise ModelError(complaint(str(path), "weights", f"unreadable ({reason})", "a safetensors file")) from error
    try:
        return load_file(path)
    except SafetensorError as error:
        if magic == b"PK" or magic[:1] == b"\x80":  # only now: the length of a safetensors header may begin so, too
            advice = f"A pickle can run code when it is read. Convert it: {conversion(str(path), str(beside(path)))}"
            raise ModelError(complaint(str(path), "weights", "a pickle", "a safetensors file", advice)) from error
        raise ModelError(complaint(str(path), "weights", f"unreadable ({error})", "a safetensors file")) from error


def load_strictly(model: nn.Module, state: Mapping[str, Tensor], where: str, reference: str) -> None:
    """Load a state dict in which no tensor is missing, too much or of another shape.

    Args:
      model: what it is loaded into.
      state: the tensors.
      where: what messages call their origin.
      reference: name of the model, for messages.
    Raises:
      ModelError: they are another model's.
    """
    try:
        model.load_state_dict(state)
    except RuntimeError as error:
        summary = " ".join(str(error).split())[:300]
        raise ModelError(
            complaint(where, "weights", f"of another model ({summary})", f"the tensors of {reference}")
        ) from error


def sha256_of(path: Path) -> str:
    """SHA-256 of a file."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def conversion(source: str, target: str) -> str:
    """The command that converts a pickle to safetensors, for a shell: to a file, or to a folder as timm lays it out."""
    named = [] if target.endswith(SUFFIX) else ["--architecture", "NAME"]
    return shlex.join(["robench", "convert", source, target, *named])


def beside(path: Path) -> Path:
    """Where the safetensors file of a pickle goes."""
    target = path.with_suffix(SUFFIX)
    return target if target != path else path.with_suffix(f".converted{SUFFIX}")
