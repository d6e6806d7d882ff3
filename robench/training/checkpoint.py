"""Files of a training that are there whole or not at all.

Not here: what a checkpoint holds (`loop`).
"""

import io
import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError

from robench.errors import RecipeError, complaint


def write_whole(path: Path, content: bytes | memoryview) -> None:
    """Write beside a file, flush to the disk, and rename.

    Raises:
      RecipeError: the disk is full or cannot be written; what was there before stays.
    """
    temporary = path.with_name(f"{path.name}.tmp")
    with writing(path):
        try:
            with temporary.open("wb") as file:
                file.write(content)
                file.flush()
                os.fsync(file.fileno())
            temporary.replace(path)
        except OSError:
            with suppress(OSError):
                temporary.unlink()
            raise


@contextmanager
def writing(path: Path) -> Iterator[None]:
    """Name the file that could not be written.

    Raises:
      RecipeError: in place of what the system or safetensors raises.
    """
    try:
        yield
    except (OSError, SafetensorError) as error:
        reason = error.strerror if isinstance(error, OSError) else str(error)
        found = f"not writable ({reason or type(error).__name__})"
        advice = "Make room; the same command goes on after the last checkpoint."
        raise RecipeError(complaint(str(path), "file", found, "room to write", advice)) from error


def save(path: Path, content: dict[str, Any]) -> None:
    """Write tensors and numbers."""
    buffer = io.BytesIO()
    torch.save(content, buffer)
    write_whole(path, buffer.getbuffer())


def read(path: Path, digest: str) -> dict[str, Any]:
    """What was saved by a recipe of this digest, on the CPU.

    Raises:
      RecipeError: the file is broken, or another recipe's.
    """
    advice = "Choose another `--out`, or delete the checkpoint to start over."
    try:
        content: dict[str, Any] = torch.load(path, weights_only=True, map_location="cpu")
        found = content["recipe"]
    except Exception as error:  # a broken file makes torch raise RuntimeError, EOFError, KeyError and others
        reason = f"unreadable ({type(error).__name__})"
        raise RecipeError(complaint(str(path), "file", reason, "a checkpoint", advice)) from error
    if found != digest:
        raise RecipeError(complaint(str(path), "recipe", found, f"{digest} (this recipe)", advice))
    return content
