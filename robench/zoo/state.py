"""Weights from a safetensors file into a module, strictly; a pickle is refused, as reading one can run code.

Not here: what is built (`mini`, `timm_models`).
"""

import hashlib
import shlex
from pathlib import Path

from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import nn

from robench.errors import ModelError, complaint


def fill(model: nn.Module, path: Path, reference: str) -> str:
    """Load weights, strictly; returns the SHA-256 of the file.

    Args:
      model: what they are loaded into.
      path: a safetensors file.
      reference: name of the model, for messages.
    Raises:
      ModelError: the file cannot be read, is a pickle, or holds another model's tensors.
    """
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
            advice = f"A pickle can run code when it is read. Convert it where you trust it: {conversion(path)}"
            raise ModelError(complaint(str(path), "weights", "a pickle", "a safetensors file", advice)) from error
        raise ModelError(complaint(str(path), "weights", f"unreadable ({error})", "a safetensors file")) from error
    except RuntimeError as error:
        summary = " ".join(str(error).split())[:300]
        raise ModelError(
            complaint(str(path), "weights", f"of another model ({summary})", f"the tensors of {reference}")
        ) from error
    return hashlib.sha256(path.read_bytes()).hexdigest()


def conversion(path: Path) -> str:
    """The command that turns a pickled state dict into safetensors, for a shell."""
    target = path.with_suffix(".safetensors")
    if target == path:
        target = path.with_suffix(".converted.safetensors")
    code = (
        "import sys, torch; from safetensors.torch import save_file; "
        'state = torch.load(open(sys.argv[1], "rb"), weights_only=True); '  # given a name, torch goes by its suffix
        "state = state.get('state_dict', state.get('model', state)); "  # as most checkpoints nest it
        "save_file({name: tensor.clone(memory_format=torch.contiguous_format) for name, tensor in state.items()}, "
        "sys.argv[2])"
    )
    return shlex.join(["python", "-c", code, str(path), str(target)])
