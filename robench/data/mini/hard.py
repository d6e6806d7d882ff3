"""Images of the mini suite that two reference models get wrong with confidence: `mini-a`.

Candidates are painted like the attack set, from ids of their own. A candidate is hard if both models say another class
and give the label a tenth of the probability or less; of each class the first hard ones are taken. What is kept is
their numbers, in `hard_set.json`: the images are painted anew. Not here: the models, and the command that made the set
(`docs/measure/hard.py`).

References:
  Hendrycks et al. 2021, "Natural Adversarial Examples", arXiv:1907.07174. Deviates: two models of two families, so that
  neither of these is favoured; generated images.
"""

import hashlib
import importlib.resources
import json
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from robench.data.arrays import ArraySource
from robench.data.mini import CLASSES
from robench.data.mini.generator import paint
from robench.errors import DataError, complaint
from robench.randomness import Draws

MOST = 0.1
"""Probability of the label above which a wrong answer is no confident one."""
_TOGETHER = 250
"""Candidates that are painted and shown together."""

Images = NDArray[np.uint8]
Answers = Callable[[Tensor], Tensor]
"""A model: float32 in [0, 1], shape (N, 3, 64, 64), to logits, shape (N, 10)."""


@dataclass(frozen=True)
class HardSet:
    """A set, as it is kept in a file.

    Attributes:
      numbers: of the candidates that were taken, in the order of the set: every class in turn.
      sha256: of the raw uint8 bytes of the images in that order.
      looked_at: candidates that were shown to the models.
      wrong: of these, how many each model got wrong, by its name.
      weights: SHA-256 of the weights of each model.
    """

    numbers: tuple[int, ...]
    sha256: str
    looked_at: int
    wrong: dict[str, int]
    weights: dict[str, str]

    def content(self) -> str:
        """The file's text."""
        return json.dumps(asdict(self), indent=2, sort_keys=True) + "\n"

    @classmethod
    def read(cls, path: Path) -> "HardSet":
        """From a file.

        Raises:
          DataError: it is none.
        """
        try:
            content = json.loads(path.read_text(encoding="utf-8"))
            return cls(**{**content, "numbers": tuple(content["numbers"])})
        except (OSError, ValueError, TypeError, KeyError) as error:
            raise DataError(complaint(str(path), "file", f"unreadable ({error})", "a set of hard images")) from error


class MiniHard(ArraySource):
    """The images of a set, by the hash of their ids.

    Args:
      chosen: the set; None: the one that is shipped.
    Raises:
      DataError: this machine paints other bytes than were pinned.
    """

    def __init__(self, chosen: HardSet | None = None) -> None:
        chosen = chosen or shipped_set()
        images, labels = candidates(chosen.numbers)
        found = hashlib.sha256(images.tobytes()).hexdigest()
        if found != chosen.sha256:
            advice = "Please report it, with the machine and its versions."
            raise DataError(complaint("mini-a", "sha256", found, chosen.sha256, advice))
        super().__init__(images, labels, classes=CLASSES, ids=ids_of(chosen.numbers), name="mini-a")


def shipped_set() -> HardSet:
    """The set of the protocol `mini-a`."""
    return HardSet.read(Path(str(importlib.resources.files("robench.data.mini") / "hard_set.json")))


def ids_of(numbers: Sequence[int]) -> list[str]:
    """Ids of candidates; no other set of the suite has these."""
    return [f"mini-hard-{number:06d}" for number in numbers]


def candidates(numbers: Sequence[int]) -> tuple[Images, NDArray[np.int64]]:
    """Candidates by their numbers: uint8, shape (N, 3, 64, 64), and labels, int64, shape (N,)."""
    labels = np.array(numbers, dtype=np.int64) % CLASSES
    return paint(Draws.of(0, ids_of(numbers)), labels.tolist()), labels


def choose(
    models: dict[str, Answers],
    weights: dict[str, str],
    *,
    count: int,
    most: int,
    on_candidates: Callable[[int], None] = lambda found: None,
) -> HardSet:
    """Go through the candidates in order until there are enough hard ones of every class.

    Args:
      models: the reference models, by name.
      weights: SHA-256 of their weights, by name.
      count: images of the set, a multiple of the number of classes.
      most: candidates to look at before giving up.
      on_candidates: told how many have been found, now and then.
    Raises:
      DataError: there are too few hard ones among them.
    """
    each = count // CLASSES
    if count < 1 or count % CLASSES:
        raise DataError(complaint("mini-a", "count", count, f"a multiple of {CLASSES}"))
    by_class: list[list[int]] = [[] for _ in range(CLASSES)]
    wrong, looked_at = dict.fromkeys(models, 0), 0
    for numbers, errors, hard in _judged(models, most):
        looked_at += len(numbers)
        for name, found in errors.items():
            wrong[name] += found
        for number in (number for number, is_hard in zip(numbers, hard, strict=True) if is_hard):
            if len(by_class[number % CLASSES]) < each:
                by_class[number % CLASSES].append(number)
        on_candidates(sum(map(len, by_class)))
        if min(map(len, by_class)) == each:
            in_turn = tuple(number for row in zip(*by_class, strict=True) for number in row)
            digest = hashlib.sha256(candidates(in_turn)[0].tobytes()).hexdigest()
            return HardSet(in_turn, digest, looked_at, wrong, weights)
    found_text = ", ".join(str(len(numbers)) for numbers in by_class)
    advice = "Look at more candidates."
    raise DataError(complaint("mini-a", "hard images", f"{found_text} by class", f"{each} of each class", advice))


def _judged(models: dict[str, Answers], most: int) -> Iterator[tuple[range, dict[str, int], list[bool]]]:
    """Candidates, how many of them each model got wrong, and which are hard; chunk by chunk."""
    for begin in range(0, most, _TOGETHER):
        numbers = range(begin, min(begin + _TOGETHER, most))
        pixels, classes = candidates(numbers)
        images, labels = torch.from_numpy(pixels).float() / 255, torch.from_numpy(classes)
        errors, hard = {}, torch.ones(len(numbers), dtype=torch.bool)
        with torch.inference_mode():
            for name, model in models.items():
                logits = model(images)
                is_wrong = logits.argmax(dim=1) != labels
                errors[name] = int(is_wrong.sum())
                hard &= is_wrong & (logits.softmax(dim=1).gather(1, labels[:, None])[:, 0] <= MOST)
        yield numbers, errors, hard.tolist()
