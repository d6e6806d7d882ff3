"""Examples that lie in memory."""

import hashlib
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from robench.data.source import by_hash, check_ids
from robench.errors import DataError, complaint

_PIXELS = {torch.uint8, torch.float32, np.dtype(np.uint8), np.dtype(np.float32)}


def _array(values: Any, where: str, argument: str) -> Tensor | NDArray[Any]:
    """A tensor without history, or else a NumPy array, which may be read-only or lie on disk."""
    if isinstance(values, Tensor):
        return values.detach()
    try:
        return np.asarray(values)
    except (TypeError, ValueError, RuntimeError) as error:
        found = f"{type(values).__name__} ({error})"
        raise DataError(complaint(where, argument, found, "a tensor or array")) from error


class ArraySource:
    """Images and labels in memory, ordered by the hash of their ids.

    Args:
      images: float32 in [0, 1] or uint8, shape (N, 3, H, W); a tensor or array.
      labels: integers, shape (N,).
      classes: number of classes; None: whatever the model tells apart.
      ids: names of the examples; by default `example-000000` and so on.
      name: what to call the source in results.
    Raises:
      DataError: a shape or type is wrong.
    """

    def __init__(
        self,
        images: Any,
        labels: Any,
        *,
        classes: int | None = None,
        ids: Sequence[str] | None = None,
        name: str = "arrays",
    ) -> None:
        pixels, targets = _array(images, name, "images"), _array(labels, name, "labels")
        if pixels.ndim != 4 or pixels.shape[1] != 3 or pixels.dtype not in _PIXELS:
            found = f"{pixels.dtype} of shape {tuple(pixels.shape)}"
            raise DataError(complaint(name, "images", found, "float32 in [0, 1] or uint8, shape (N, 3, H, W)"))
        targets = np.asarray(targets.cpu() if isinstance(targets, Tensor) else targets)
        if targets.ndim != 1 or targets.dtype.kind not in "iub" or len(targets) != len(pixels):
            found = f"{targets.dtype} of shape {tuple(targets.shape)}"
            raise DataError(complaint(name, "labels", found, f"integers of shape ({len(pixels)},)"))
        names = list(ids) if ids is not None else [f"example-{index:06d}" for index in range(len(pixels))]
        if len(names) != len(pixels):
            raise DataError(complaint(name, "ids", f"{len(names)}", f"{len(pixels)}, one for each image"))
        check_ids(names, where=name)
        self._order = by_hash(names)
        self._pixels = pixels
        self.name = name
        self.ids = [names[index] for index in self._order]
        self.labels = [int(targets[index]) for index in self._order]
        self.classes = classes

    @property
    def content_sha256(self) -> str:
        """SHA-256 of the pixels, which tells other images under the same ids apart."""
        digest = hashlib.sha256()
        for index in self._order:
            digest.update(np.ascontiguousarray(np.asarray(self._pixels[index])).tobytes())
        return digest.hexdigest()

    def bytes_of(self, position: int) -> Tensor:
        """An image as it lies in memory, shape (3, H, W)."""
        row = self._pixels[self._order[position]]
        return row if isinstance(row, Tensor) else torch.from_numpy(row.copy())

    def images(self, positions: Iterable[int]) -> Iterator[Tensor]:
        for position in positions:
            image = self.bytes_of(position)
            yield image.to(torch.float32) / 255 if image.dtype == torch.uint8 else image
