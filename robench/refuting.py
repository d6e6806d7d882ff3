"""Makes refutations from images that fool, and asks a model whether those of others fool it.

A change is stored in the coarsest steps that still fool, which keeps files small; what is asked about is always what
is stored. Not here: the attack that found the images (`robench evaluate --save-adversarial`), and the file
(`refutation`).
"""

import hashlib
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from robench.adversarial import image_file, read_adversarial
from robench.budgets import BUDGETS, TOLERANCE, Ball, LinfBall
from robench.classifier import Classifier, check_device
from robench.data import Source, open_source
from robench.data.source import Unreadable
from robench.errors import SubmissionError, complaint
from robench.protocol import Protocol, fraction
from robench.refutation import LARGEST, Change, Refutation, ball_of, build_refutation, packed, read_refutation
from robench.validation import Claim
from robench.verification import called
from robench.zoo import Loaded
from robench.zoo import resolve as resolve_model

LEVELS = (1, 3, 12, 127)
"""Steps from the clean image to the edge of the budget: one byte or less for each value."""


@dataclass(frozen=True)
class Found:
    """What became of some images.

    Attributes:
      refutation: of those that fool.
      outside: how many were not in the budget.
      harmless: how many do not fool as they would be stored.
      left_out: how many would make the file too large.
    """

    refutation: Refutation
    outside: int
    harmless: int
    left_out: int


def refute(
    claim: Claim, images: Path, *, model: Any, by: str, how: str, data: Any = None, device: str | None = None
) -> Found:
    """Write down what breaks examples of a claim.

    Args:
      claim: a valid one.
      images: a folder as `--save-adversarial` writes it: one `.npy` for each example, float32 in [0, 1], (3, H, W).
      model: its name, or the model.
      by: who found it.
      how: with which attack, in a line.
      data, device: as in `evaluate`.
    Raises:
      SubmissionError: none of the images breaks an example that the claim calls robust.
    """
    spec = claim.protocol.data
    ball, classifier = _ball(claim.protocol), _classifier(model, device)
    robust = [each for each in called(claim.protocol, claim.outcomes).robust if (images / image_file(each)).exists()]
    source = open_source(spec.source, data, resize=spec.resize, crop=spec.crop)
    changes: list[Change] = []
    size = outside = harmless = left_out = 0
    with classifier.frozen():
        for example, clean, label in _clean(source, robust):
            attacked = read_adversarial(images, example)
            if attacked.shape != clean.shape or float(ball.excess(attacked[None], clean[None])) > TOLERANCE:
                outside += 1
            elif (change := _smallest(classifier, ball, clean, attacked, label=label, example=example)) is None:
                harmless += 1
            elif size + len(change.steps) + 300 > LARGEST:
                left_out += 1
            else:
                size += len(change.steps) + 300
                changes.append(change)
    if not changes:
        found = f"{len(robust)} images of examples called robust: {outside} outside the budget, {harmless} harmless"
        raise SubmissionError(complaint(str(images), "images", found, "at least one that fools the model"))
    about: dict[str, object] = {"result_sha256": claim.result_sha256, "by": by, "how": how}
    refutation = build_refutation({**about, "images": tuple(changes)})
    return Found(refutation, outside, harmless, left_out)


def confirm(
    model: Any, protocol: Protocol, source: Source, files: Sequence[Path], *, device: str | None = None
) -> dict[str, list[str]]:
    """Ask a model about refutations: examples whose image fools it and lies in the budget, by SHA-256 of the file.

    Args:
      model: its name, or the model.
      protocol: with the budget.
      source: the clean images.
      files: the refutations.
      device: as in `evaluate`.
    """
    ball, classifier, found = _ball(protocol), _classifier(model, device), {}
    with classifier.frozen():
        for path in files:
            content = path.read_bytes()
            changes = {change.id: change for change in read_refutation(content, where=str(path)).images}
            there = [example for example in source.ids if example in changes]
            found[hashlib.sha256(content).hexdigest()] = [
                example
                for example, clean, label in _clean(source, there)
                if _breaks(classifier, ball, clean, changes[example], label=label)
            ]
    return found


def _classifier(model: Any, device: str | None) -> Classifier:
    loaded = resolve_model(model) if isinstance(model, str) else model
    own = loaded.model if isinstance(loaded, Loaded) else loaded
    if device is not None:
        check_device(device, "robench")
    if isinstance(own, torch.nn.Module) and device is not None:
        own = own.to(device)
    return Classifier(own, device=device)


def _ball(protocol: Protocol) -> Ball:
    spec = ball_of(protocol)
    return BUDGETS[spec.norm](float(fraction(spec.epsilon)))


def _clean(source: Source, ids: Iterable[str]) -> Iterator[tuple[str, Tensor, int]]:
    """Id, clean image and label of the examples that can be read."""
    places = {example: place for place, example in enumerate(source.ids)}
    chosen = [example for example in ids if example in places]
    for example, image in zip(chosen, source.images([places[each] for each in chosen]), strict=True):
        if not isinstance(image, Unreadable):
            yield example, image, int(source.labels[places[example]])


def _smallest(
    classifier: Classifier, ball: Ball, clean: Tensor, attacked: Tensor, *, label: int, example: str
) -> Change | None:
    """The coarsest change that fools; None: none does."""
    for levels in LEVELS:
        change = change_of(example, attacked - clean, ball, levels)
        if change is not None and _breaks(classifier, ball, clean, change, label=label):
            return change
    return None


def change_of(example: str, change: Tensor, ball: Ball, levels: int) -> Change | None:
    """A change in whole steps that is no longer than the budget allows; None: nothing is left of it."""
    largest = float(change.abs().max())
    unit = (ball.epsilon if isinstance(ball, LinfBall) else largest) / levels
    if not 0 < unit <= 1:
        return None
    steps = (change / unit).round()
    length = float(ball.length(steps[None])) * unit
    if length > ball.epsilon:  # rounded to the outside
        unit *= ball.epsilon / length * (1 - 1e-7)
    content = steps.to(torch.int8).numpy().tobytes()
    height, width = change.shape[1:]
    return Change(id=example, shape=(3, height, width), unit=unit, steps=packed(content))


def _breaks(classifier: Classifier, ball: Ball, clean: Tensor, change: Change, *, label: int) -> bool:
    """Whether the image lies in the budget and the model takes it for another class."""
    if tuple(clean.shape) != change.shape:
        return False
    steps = torch.from_numpy(np.frombuffer(change.unpacked(), dtype=np.int8).copy())
    image = (clean + change.unit * steps.reshape(change.shape)).clamp(0, 1)[None]
    if not float(ball.excess(image, clean[None])) <= TOLERANCE:
        return False
    logits = classifier.logits(image.to(classifier.device))[0]
    return bool(torch.isfinite(logits).all()) and int(logits.argmax()) != label
