"""Small operations on tensors and on records of tensors whose first axis is the slot.

A record is a dataclass; its tensors and nested records change, anything else in it is kept.
Not here: anything that knows what the tensors mean.
"""

import hashlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import fields, is_dataclass, replace
from typing import Any, TypeVar

import numpy as np
import torch
from torch import Tensor

from robench import compiled

R = TypeVar("R")

TOGETHER = 16
"""Rows of images of 64 pixels that a CPU's cache holds with all that arithmetic makes of them; no fewer, as the last
bits of a sum over a row may depend on how many rows there are."""


def take(record: R, rows: Tensor) -> R:
    """The given rows of every tensor, in the order given."""
    return _combine([record], lambda parts: parts[0].index_select(0, rows))


def put(record: R, rows: Tensor, other: R) -> R:
    """A copy of `record` whose given rows are those of `other`, in order."""
    return _combine([record, other], lambda parts: parts[0].index_copy(0, rows, parts[1]))


def place(record: R, rows: Tensor, other: R) -> R:
    """What `put` gives, written into the memory of `record`, which must not be used any more.

    To write a few rows costs less than to copy all of them. Tensors are copied where writing would show elsewhere:
    those that share their memory with a tensor written before, or repeat one row, or were made in inference mode.
    """
    written: set[int] = set()

    def change(parts: list[Tensor]) -> Tensor:
        old, new = parts
        memory = old.untyped_storage().data_ptr()
        if memory in written or 0 in old.stride() or old.is_inference():
            return old.index_copy(0, rows, new)
        written.add(memory)
        return old.index_copy_(0, rows, new)

    return _combine([record, other], change)


def join(records: list[R]) -> R:
    """Records of one type, one after the other along the first axis."""
    return _combine(records, torch.cat)


def _combine(records: list[R], change: Callable[[list[Tensor]], Tensor]) -> R:
    first = records[0]
    if isinstance(first, Tensor):
        return change(records)  # type: ignore[arg-type, return-value]  # R is Tensor here
    if not is_dataclass(first) or isinstance(first, type):
        return first
    changes: dict[str, Any] = {
        field.name: _combine([getattr(record, field.name) for record in records], change) for field in fields(first)
    }
    return replace(first, **changes)


def rows_of(values: Tensor, rows: Tensor) -> Tensor:
    """The given rows, which rise without repetition: the tensor itself where they are all there are."""
    return values if len(rows) == len(values) else values.index_select(0, rows)


def with_rows(values: Tensor, rows: Tensor, new: Tensor) -> Tensor:
    """`values` with the given rows, which rise without repetition, replaced: `new` itself where they are all."""
    return new if len(rows) == len(values) else values.index_copy(0, rows, new)


def in_cache(*batches: Tensor) -> Iterator[tuple[Tensor, ...]]:
    """Batches part by part, where arithmetic has many steps: a CPU's cache holds what one part needs.

    Each part has at least `TOGETHER` rows if there are so many. On a GPU, all rows are one part.

    Args:
      batches: with as many rows each.
    """
    parts = max(len(batches[0]) // TOGETHER, 1) if batches[0].device.type == "cpu" else 1
    return zip(*(batch.tensor_split(parts) for batch in batches), strict=True)


def choose(rows: Tensor, yes: Tensor, no: Tensor) -> Tensor:
    """`yes` in the rows that are true, `no` in the others; on a CPU much faster than `torch.where` for images."""
    chosen = rows.nonzero()[:, 0]
    if len(chosen) in (0, len(rows)):
        return yes if len(chosen) else no
    swept = compiled.choose(rows, yes, no)
    return swept if swept is not None else no.index_copy(0, chosen, yes.index_select(0, chosen))


def batch_of(images: Sequence[Tensor], device: torch.device, *, last: Tensor | None = None) -> Tensor:
    """Images of one shape as a batch on a device; bytes become float32 in [0, 1].

    On the CPU by NumPy, in one thread: torch's threads would wait for one another beside the processes that decode.

    Args:
      images: of one shape and type.
      device: where the batch shall lie.
      last: a batch that nobody needs any more: its memory is used where it is enough, for fresh memory costs more.
    """
    if any(image.device.type != "cpu" for image in images):
        return torch.stack(list(images)).to(device)
    pixels = [image.detach().numpy() for image in images]
    if pixels[0].dtype != np.uint8:
        return torch.from_numpy(np.stack(pixels)).to(device)
    if device.type != "cpu":  # a quarter of the bytes travels
        whole = torch.from_numpy(np.stack(pixels)).to(device)
        return whole.to(torch.float32) / torch.full((), 255.0, device=device)  # a bare 255 may become a reciprocal
    if last is None or len(last) < len(pixels) or last.shape[1:] != images[0].shape:
        last = torch.empty((len(pixels), *images[0].shape), dtype=torch.float32)
    batch = last[: len(pixels)]
    for row, image in zip(batch.numpy(), pixels, strict=True):
        np.divide(image, np.float32(255), out=row, dtype=np.float32)
    return batch


def pad_rows(images: Tensor, rows: int) -> Tensor:
    """`images` with its last row repeated until there are at least `rows`."""
    missing = rows - len(images)
    return images if missing <= 0 else torch.cat([images, images[-1:].expand(missing, *images.shape[1:])])


def state_digest(tensors: Mapping[str, Tensor]) -> str:
    """SHA-256 over names, dtypes, shapes and bytes, in the order of the names.

    It survives another file format or key order, so a renamed copy of a model is recognised.
    """
    digest = hashlib.sha256()
    for name in sorted(tensors):
        tensor = tensors[name].detach().cpu().contiguous()
        digest.update(f"{name}|{tensor.dtype}|{tuple(tensor.shape)}|".encode())
        digest.update(tensor.reshape(-1).view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()
