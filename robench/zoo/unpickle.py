"""Reads a pickled checkpoint in a process of its own, and writes its tensors as safetensors.

Run as a program, it shuts itself in before it looks at the file: no network, bounded memory, time and output. Then
torch reads the file with `weights_only=True`, which runs no code of the file. One line of JSON on stdout says what was
found, or why not, and which of the bounds the kernel enforces.

It imports nothing of robench. Not here: what the tensors are for (`conversion`).
"""

import ctypes
import json
import os
import re
import resource
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

ENTRIES = ("model", "state_dict", "model_state_dict")
"""Where checkpoints keep the state of the model, in the order they are looked at."""
SECONDS = 600
"""Of processor time."""
ROOM = 4 << 30
"""Bytes of memory beside four times the file: what torch itself takes, and some."""
_CLONE_NEWUSER, _CLONE_NEWNET = 0x10000000, 0x40000000
_NO_NEW_PRIVILEGES = 38
_FORBIDDEN = re.compile(r"(?:GLOBAL|global|class) ([\w.]+)")


def shut_in(size: int) -> list[str]:
    """Give up what reading a file of so many bytes does not need; says what is now enforced."""
    enforced = []
    libc = ctypes.CDLL(None, use_errno=True)
    if hasattr(libc, "unshare") and libc.unshare(_CLONE_NEWUSER | _CLONE_NEWNET) == 0:
        enforced.append("no network")
    if hasattr(libc, "prctl") and libc.prctl(_NO_NEW_PRIVILEGES, 1, 0, 0, 0) == 0:
        enforced.append("no new privileges")
    limits = {
        "RLIMIT_DATA": (ROOM + 4 * size, f"{(ROOM + 4 * size) / 2**30:.1f} GiB of memory"),
        "RLIMIT_FSIZE": (4 * size + (1 << 20), f"{(4 * size + (1 << 20)) / 2**20:.0f} MiB of output"),
        "RLIMIT_CPU": (SECONDS, f"{SECONDS} s of processor time"),
        "RLIMIT_CORE": (0, "no core files"),
    }
    for name, (most, said) in limits.items():
        try:
            resource.setrlimit(getattr(resource, name), (most, most))
        except (AttributeError, OSError, ValueError):
            continue
        enforced.append(said)
    return enforced


def state_of(checkpoint: Any) -> tuple[str | None, dict[str, Any]]:
    """The state dict inside a checkpoint, and under which entry it lay; None: it was the checkpoint itself.

    Raises:
      ValueError: there is none.
    """
    import torch

    if not isinstance(checkpoint, Mapping):
        raise ValueError(f"{type(checkpoint).__name__}, not a dictionary")
    for entry in ENTRIES:
        if isinstance(checkpoint.get(entry), Mapping):
            found = state_of(checkpoint[entry])[1]
            return entry, found
    tensors = {name: value for name, value in checkpoint.items() if isinstance(value, torch.Tensor)}
    if not tensors or not all(isinstance(name, str) for name in checkpoint):
        names = ", ".join(map(str, list(checkpoint)[:5]))
        raise ValueError(f"a dictionary without tensors ({names})" if names else "an empty dictionary")
    others = [name for name in checkpoint if name not in tensors]
    if others:
        raise ValueError(f"a dictionary of tensors and others ({', '.join(others[:5])})")
    return None, tensors


def why(error: BaseException) -> str:
    """One line about an error of `torch.load`."""
    text = str(error)
    if "Weights only load failed" in text or "weights_only" in text:
        names = _FORBIDDEN.findall(text)
        return f"holding more than tensors ({names[0]})" if names else "holding more than tensors"
    return f"unreadable ({type(error).__name__}: {(text.splitlines() or [''])[0][:200]})"


def read(source: Path, target: Path) -> dict[str, Any]:
    """Write the tensors of a checkpoint as safetensors; says under which `entry` they were, or what the `error` is."""
    import torch
    from safetensors.torch import save_file

    try:
        with source.open("rb") as file:  # given a name, torch goes by its suffix
            checkpoint = torch.load(file, map_location="cpu", weights_only=True)
    except Exception as error:
        return {"error": why(error)}
    try:
        entry, state = state_of(checkpoint)
    except ValueError as error:
        return {"error": str(error)}
    copies = {name: value.detach().clone(memory_format=torch.contiguous_format) for name, value in state.items()}
    save_file(copies, target)
    return {"entry": entry}


if __name__ == "__main__":
    bounds = shut_in(Path(sys.argv[1]).stat().st_size)  # while this is the only thread, as the kernel asks
    sys.stdout.write(json.dumps({"enforced": bounds, **read(Path(sys.argv[1]), Path(sys.argv[2]))}) + "\n")
    sys.stdout.flush()
    os._exit(0)  # nothing that a file may have left behind runs at the end
