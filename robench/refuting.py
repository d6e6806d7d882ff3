"""Makes refutations from images that fool, and asks a model whether those of others fool it.

A change is stored in the coarsest steps that still fool, a patch in the fewest grey levels and without what it leaves
as it was: files are small, and of the data set they hold nothing. What is asked about is always what is stored. Not
here: the attack that found the images (`robench evaluate --save-adversarial`), and the file (`refutation`).
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
from robench.budgets import TOLERANCE, Ball, Budget, LinfBall, PatchArea
from robench.classifier import Classifier, check_device
from robench.data import Source, open_source
from robench.data.source import Unreadable
from robench.door import build_budget
from robench.errors import SubmissionError, complaint
from robench.protocol import Protocol
from robench.refutation import (
    LARGEST,
    MOST_VALUES,
    AnyImage,
    Change,
    Patched,
    Refutation,
    Square,
    budget_of,
    build_refutation,
    packed,
    read_refutation,
)
from robench.squares import covering
from robench.validation import Claim
from robench.verification import called
from robench.zoo import Loaded
from robench.zoo import resolve as resolve_model

LEVELS = (1, 3, 12, 127)
"""Steps from the clean image to the edge of the budget: one byte or less for each value."""
GREYS = (4, 16, 64, 256)
"""Levels from black to white in which a patch is painted."""
NEAR = 1 / 255
"""Colours of a patch that are no farther from the clean image's are left out."""


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
      SubmissionError: there is no such folder, or none of its images breaks an example that the claim calls robust.
    """
    if not images.is_dir():
        found = "a file" if images.exists() else "missing"
        raise SubmissionError(complaint(str(images), "images", found, "a folder that `--save-adversarial` wrote"))
    spec = claim.protocol.data
    budget, classifier = build_budget(claim.protocol.exact_name, budget_of(claim.protocol)), _classifier(model, device)
    robust = [each for each in called(claim.protocol, claim.outcomes).robust if (images / image_file(each)).exists()]
    source = open_source(spec.source, data, resize=spec.resize, crop=spec.crop)
    kept: list[AnyImage] = []
    size = values = outside = harmless = left_out = 0
    with classifier.frozen():
        for example, clean, label in _clean(source, robust):
            ways = _ways(example, clean, read_adversarial(images, example), budget)
            if ways is None:
                outside += 1
                continue
            image = next((way for way in ways if _breaks(classifier, budget, clean, way, label=label)), None)
            if image is None:
                harmless += 1
                continue
            written = len(image.model_dump_json(indent=3))
            if size + written > LARGEST - 1000 or values + image.values > MOST_VALUES:  # the rest of the file is short
                left_out += 1
                continue
            size, values = size + written, values + image.values
            kept.append(image)
    if not kept:
        found = f"{len(robust)} images of examples called robust: {outside} outside the budget, {harmless} harmless"
        raise SubmissionError(complaint(str(images), "images", found, "at least one that fools the model"))
    about: dict[str, object] = {"result_sha256": claim.result_sha256, "by": by, "how": how}
    refutation = build_refutation({**about, "images": tuple(kept)})
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
    budget, classifier, found = build_budget(protocol.exact_name, budget_of(protocol)), _classifier(model, device), {}
    with classifier.frozen():
        for path in files:
            content = path.read_bytes()
            images = {image.id: image for image in read_refutation(content, where=str(path)).images}
            there = [example for example in source.ids if example in images]
            found[hashlib.sha256(content).hexdigest()] = [
                example
                for example, clean, label in _clean(source, there)
                if _breaks(classifier, budget, clean, images[example], label=label)
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


def _clean(source: Source, ids: Iterable[str]) -> Iterator[tuple[str, Tensor, int]]:
    """Id, clean image and label of the examples that can be read."""
    places = {example: place for place, example in enumerate(source.ids)}
    chosen = [example for example in ids if example in places]
    for example, image in zip(chosen, source.images([places[each] for each in chosen]), strict=True):
        if not isinstance(image, Unreadable):
            yield example, image, int(source.labels[places[example]])


def _ways(example: str, clean: Tensor, attacked: Tensor, budget: Ball | PatchArea) -> Iterable[AnyImage] | None:
    """How an image can be written down, the shortest first; None: it is outside the budget."""
    if attacked.shape != clean.shape:
        return None
    if isinstance(budget, PatchArea):
        return patches_of(example, clean, attacked, budget)
    if not float(budget.excess(attacked[None], clean[None])) <= TOLERANCE:
        return None
    ways = (change_of(example, attacked - clean, budget, levels) for levels in LEVELS)
    return (way for way in ways if way is not None)


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


def patches_of(example: str, clean: Tensor, attacked: Tensor, budget: PatchArea) -> list[Patched] | None:
    """The squares that cover what differs, once for each number of grey levels; None: there are no such squares."""
    height, width = clean.shape[1:]
    painted = (attacked - clean).abs() > NEAR
    side = budget.side(height, width)
    corners = covering(painted.any(dim=0).nonzero().numpy(), budget.patches, side)
    if corners is None:
        return None
    inside = [(max(0, min(row, height - side)), max(0, min(column, width - side))) for row, column in corners]
    mask = (painted * torch.tensor([1, 2, 4])[:, None, None]).sum(dim=0, keepdim=True)
    ways = []
    for levels in GREYS if inside else ():
        colours = (255 * (attacked.clamp(0, 1) * (levels - 1)).round() / (levels - 1)).round()
        content = torch.cat([colours * painted, mask]).to(torch.uint8).permute(1, 2, 0).numpy()
        cuts = ((row, column, content[row : row + side, column : column + side]) for row, column in inside)
        squares = tuple(
            Square(row=row, column=column, side=side, pixels=packed(cut.tobytes())) for row, column, cut in cuts
        )
        ways.append(Patched(id=example, shape=(3, height, width), squares=squares))
    return ways


def image_of(stored: AnyImage, clean: Tensor) -> Tensor:
    """The image that a refutation describes, shape (3, H, W).

    Raises:
      SubmissionError: its bytes cannot be unpacked.
    """
    if isinstance(stored, Change):
        steps = torch.from_numpy(np.frombuffer(stored.unpacked(), dtype=np.int8).copy())
        return (clean + stored.unit * steps.reshape(stored.shape)).clamp(0, 1)
    image = clean.clone()
    for square in stored.squares:
        content = torch.from_numpy(np.frombuffer(square.unpacked(stored.id), dtype=np.uint8).copy())
        pixels = content.reshape(square.side, square.side, 4).permute(2, 0, 1)
        painted = (pixels[3] & torch.tensor([1, 2, 4], dtype=torch.uint8)[:, None, None]) > 0
        beneath = image[:, square.row : square.row + square.side, square.column : square.column + square.side]
        beneath.copy_(torch.where(painted, pixels[:3] / 255, beneath))
    return image


def _breaks(classifier: Classifier, budget: Budget, clean: Tensor, stored: AnyImage, *, label: int) -> bool:
    """Whether the image lies in the budget and the model takes it for another class."""
    if tuple(clean.shape) != stored.shape:
        return False
    image = image_of(stored, clean)[None]
    if not float(budget.excess(image, clean[None])) <= TOLERANCE:
        return False
    logits = classifier.logits(image.to(classifier.device))[0]
    return bool(torch.isfinite(logits).all()) and int(logits.argmax()) != label
