"""A classifier that averages: what attacks on a randomised model look at, and the random numbers it draws.

The mean over several draws of the gradient of an objective is the gradient of its expectation (expectation
over transformation). Every draw is a call of its own, because a model may draw once for a whole batch.
`seeded` makes a randomised model draw the same numbers again, if it draws from a generator that can be
seeded from outside.

Not here: what is asked in the end, and how often (`robench.attacks.asking`).
"""

import hashlib
import random
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from typing import Literal

import numpy as np
import torch
from torch import Tensor

from robench.classifier import Classifier, Passes, same_answers

SEED_BITS = 63
"""What torch's generators take as a seed without a sign."""


class AveragingClassifier:
    """A classifier asked several times about each image; every answer is the mean over the draws.

    With one draw it answers what the classifier answers. Passes are counted as they are made: so many for
    each image as there are draws.

    Args:
      classifier: the user's model.
      draws: answers that are averaged, at least 1.

    References:
      Athalye, Engstrom, Ilyas & Kwok 2018, arXiv:1707.07397 (expectation over transformation). The published
      AutoAttack averages gradients over 20 draws, and judges losses by the last of them. Deviates from it:
      losses and logits are means, too.
    """

    def __init__(self, classifier: Classifier, draws: int) -> None:
        if draws < 1:
            raise ValueError(f"AveragingClassifier: {draws} draws have no mean")
        self._classifier, self._draws = classifier, draws

    @property
    def name(self) -> str:
        """Of the classifier."""
        return self._classifier.name

    @property
    def device(self) -> torch.device:
        """Where images are sent."""
        return self._classifier.device

    @property
    def passes(self) -> Passes:
        """Of the classifier, every draw counted."""
        return self._classifier.passes

    @property
    def halving(self) -> bool:
        return self._classifier.halving

    @property
    def minimum_rows(self) -> int:
        """Of the classifier."""
        return self._classifier.minimum_rows

    @minimum_rows.setter
    def minimum_rows(self, rows: int) -> None:
        self._classifier.minimum_rows = rows

    def logits(self, images: Tensor) -> Tensor:
        """Mean logits, as `Classifier.logits`."""
        total = self._classifier.logits(images)
        for _ in range(self._draws - 1):
            total = total + self._classifier.logits(images)
        return total / self._draws

    def gradient(self, images: Tensor, objective: Callable[[Tensor], Tensor]) -> tuple[Tensor, Tensor, Tensor]:
        """Means of logits, objective and its gradient, as `Classifier.gradient`."""
        logits, values, gradient = self._classifier.gradient(images, objective)
        for _ in range(self._draws - 1):
            more = self._classifier.gradient(images, objective)
            logits, values, gradient = logits + more[0], values + more[1], gradient + more[2]
        return logits / self._draws, values / self._draws, gradient / self._draws

    def frozen(self) -> AbstractContextManager[None]:
        """As `Classifier.frozen`."""
        return self._classifier.frozen()


def seed_of(seed: int, ids: Sequence[str]) -> int:
    """The seed of the model's own random numbers while these examples are looked at together."""
    digest = hashlib.sha256("\n".join([f"robench.asking/1|{seed}", *ids]).encode()).digest()
    return int.from_bytes(digest[:8], "big") >> (64 - SEED_BITS)


@contextmanager
def seeded(seed: int, device: torch.device) -> Iterator[None]:
    """Seed the global generators of torch, NumPy and Python, and put each back as it was.

    Generators of the model's own are out of reach.

    Args:
      seed: from 0 to 2**63 - 1.
      device: where the model draws; on a GPU all GPUs are seeded.
    """
    on_gpu = device.type == "cuda"
    python, numpy = random.getstate(), np.random.get_state()
    with torch.random.fork_rng(devices=list(range(torch.cuda.device_count())) if on_gpu else []):
        torch.default_generator.manual_seed(seed)  # `torch.manual_seed` would seed GPUs that are not put back
        if on_gpu:
            torch.cuda.manual_seed_all(seed)
        random.seed(seed)
        np.random.seed(seed % 2**32)
        try:
            yield
        finally:
            random.setstate(python)
            np.random.set_state(numpy)


def randomness_of(classifier: Classifier, images: Tensor) -> Literal["none", "seeded", "unseeded"]:
    """Whether a model gives other answers each time, and whether a seed makes it give the same.

    Args:
      classifier: the model.
      images: a batch, float32 in [0, 1], shape (N, 3, H, W).
    """
    images = images.to(classifier.device)
    first, again = classifier.logits(images), classifier.logits(images)
    if same_answers(first, again):
        return "none"
    answers = []
    for _ in range(2):
        with seeded(0, classifier.device):
            answers.append(classifier.logits(images))
    return "seeded" if same_answers(*answers) else "unseeded"
