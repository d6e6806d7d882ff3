"""Where batches come from: the order of examples, cut among processes and parts, and their random numbers.

What an example looks like in an epoch depends on the seed, the epoch and its position alone: a training that was
stopped, or that runs on another number of processes, sees the same examples in the same order.

Not here: photographs (`photographs`), and what is done with a batch (`loop`).
"""

import hashlib
import random
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import torch
from torch import Tensor

from robench.data import mini
from robench.training.adversary import BatchDraws, Starts
from robench.training.recipe import Recipe

WATCHED_AT_ONCE = 256
"""Validation images that pass the network at once."""


@dataclass(frozen=True)
class Share:
    """What one of several processes does of every batch.

    Attributes:
      rank, processes: which one, of how many.
      part_size: examples that it passes through the network at once.
      device: where it does.
    """

    rank: int
    processes: int
    part_size: int
    device: torch.device

    def parts(self, batch_size: int) -> tuple[Tensor, ...]:
        """Positions in a batch of each part of this process; copies of an image that lie side by side part ways."""
        return torch.split(torch.arange(batch_size)[self.rank :: self.processes], self.part_size)


@dataclass(frozen=True)
class Part:
    """What a process passes through the network at once.

    Attributes:
      images: float32 in [0, 1], shape (N, 3, H, W).
      labels: int64, shape (N,).
      starts: random numbers of the adversary.
    """

    images: Tensor
    labels: Tensor
    starts: Starts


class Batches(Protocol):
    """The examples of a training."""

    @property
    def classes(self) -> int:
        """How many there are."""
        ...

    def parts(self, epoch: int, first_step: int, share: Share) -> Iterator[Part]:
        """The parts of a process from a step of an epoch on, one after the other."""
        ...

    def validation(self, share: Share) -> Iterator[tuple[Tensor, Tensor]]:
        """Images and labels to watch by; each process gets others."""
        ...

    def probe(self, count: int, share: Share) -> tuple[Tensor, Tensor]:
        """The first of them, the same for every process."""
        ...

    @property
    def state(self) -> Tensor | None:
        """What must be known to go on in the middle of an epoch, if anything."""
        ...

    @state.setter
    def state(self, state: Tensor | None) -> None: ...


class MiniBatches:
    """The mini suite, in memory; one generator an epoch draws order, mirroring and starts."""

    def __init__(self, recipe: Recipe) -> None:
        self._recipe = recipe
        images, labels = mini.training_set(recipe.data.examples, recipe.seed)
        self._images, self._labels = torch.from_numpy(images), torch.from_numpy(labels)
        images, labels = mini.validation_set(recipe.data.validation)
        self._watched = torch.from_numpy(images).float() / 255, torch.from_numpy(labels)
        self._generator = torch.Generator()
        self._resumed: Tensor | None = None
        self.classes = mini.CLASSES

    @property
    def state(self) -> Tensor | None:
        """Of the generator, which has drawn for every step so far."""
        return self._generator.get_state()

    @state.setter
    def state(self, state: Tensor | None) -> None:
        self._resumed = state

    def parts(self, epoch: int, first_step: int, share: Share) -> Iterator[Part]:
        recipe, generator = self._recipe, self._generator
        generator.manual_seed(1_000_003 * recipe.seed + epoch)
        order = torch.randperm(len(self._images), generator=generator)
        if first_step and self._resumed is not None:
            generator.set_state(self._resumed)
        for step in range(first_step, len(order) // recipe.batch_size):
            rows = order[step * recipe.batch_size :][: recipe.batch_size]
            mirrored = torch.zeros(len(rows), 1, 1, 1, dtype=torch.bool)
            if recipe.data.flip:
                mirrored = torch.rand(len(rows), 1, 1, 1, generator=generator) < 0.5
            starts = BatchDraws(generator, len(rows), device=share.device)
            for part in share.parts(len(rows)):
                images = self._images[rows[part]].float() / 255
                images = torch.where(mirrored[part], images.flip(3), images).to(share.device)
                yield Part(images, self._labels[rows[part]].to(share.device), starts.of(part))

    def validation(self, share: Share) -> Iterator[tuple[Tensor, Tensor]]:
        pairs = zip(*(torch.split(each, WATCHED_AT_ONCE) for each in self._watched), strict=True)
        for images, labels in list(pairs)[share.rank :: share.processes]:
            yield images.to(share.device), labels.to(share.device)

    def probe(self, count: int, share: Share) -> tuple[Tensor, Tensor]:
        images, labels = self._watched
        return images[:count].to(share.device), labels[:count].to(share.device)


def seed_all(*keys: int) -> None:
    """Seed every global generator, of torch, NumPy and Python, by some numbers."""
    digest = hashlib.sha256(f"robench.training/1|{'|'.join(map(str, keys))}".encode()).digest()
    random.seed(digest)
    np.random.seed(int.from_bytes(digest[:4], "big"))
    torch.manual_seed(int.from_bytes(digest[:7], "big"))
