"""Evaluates without an attack: shows a model every view of every example, and reads off what the protocol asks for.

Batches run across examples, so that memory holds one of them however many images there are. Not here: what the
outcomes add up to (`shift`), and how images are read (`data`).
"""

from collections.abc import Callable, Generator, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from robench.arrays import batch_of
from robench.attacks.drive import half_of, in_parts
from robench.classifier import Classifier, rounded
from robench.data import Source, Unreadable, Views
from robench.data.categories import categories
from robench.data.imagenet.listing import wnids
from robench.data.imagenet.subsets import subset
from robench.data.source import CLEAN, check_image, ids_digest, pixel_digest
from robench.errors import DataError, ProtocolError, complaint
from robench.losses import margin
from robench.outcome import Outcome
from robench.protocol import Protocol, ShiftSpec
from robench.shift import mask_text


@dataclass(frozen=True)
class Reading:
    """How logits become decisions.

    Attributes:
      among: classes among which a second decision is made; none: no second decision.
      groups: classes whose probabilities are averaged to one score each; none: every class is its own score.
    """

    among: tuple[int, ...] = ()
    groups: tuple[tuple[int, ...], ...] = ()

    @classmethod
    def of(cls, shift: ShiftSpec, where: str) -> "Reading":
        """The reading that a protocol asks for.

        Raises:
          ProtocolError: its list of classes is not the one that was pinned.
          DataError: there is no such list.
        """
        if shift.among is not None:
            classes = subset(shift.among)
            found = ids_digest(wnids()[label] for label in classes)
            if found != shift.among_sha256:
                raise ProtocolError(
                    complaint(where, "shift.among_sha256", shift.among_sha256, f"{found} for this list")
                )
            return cls(among=classes)
        if shift.categories is not None:
            return cls(groups=tuple(categories(shift.categories).values()))
        return cls()

    def scores(self, logits: Tensor) -> Tensor:
        """One score for each class or group, shape (N, K'); of groups the logarithm of the mean probability."""
        if not self.groups:
            return logits
        logs = logits.double().log_softmax(dim=1)
        parts = [logs[:, list(group)].logsumexp(dim=1) - torch.tensor(len(group)).log() for group in self.groups]
        return torch.stack(parts, dim=1)

    def decide_among(self, logits: Tensor) -> list[int] | None:
        """The best of the listed classes, for each row."""
        if not self.among:
            return None
        classes = torch.tensor(self.among, device=logits.device)
        best: list[int] = classes[logits[:, classes].argmax(dim=1)].tolist()
        return best

    @property
    def least_logits(self) -> int:
        """How many logits a model needs for it."""
        return max((number + 1 for group in (self.among, *self.groups) for number in group), default=0)


@dataclass(frozen=True)
class _View:
    """One image on its way into a batch."""

    position: int
    view: int
    image: Tensor


@dataclass
class _Seen:
    """What has been read off an example so far."""

    left: int
    predictions: dict[int, int] = field(default_factory=dict)
    margins: dict[int, float] = field(default_factory=dict)
    among: int | None = None
    reference: int | None = None
    error: str = ""


class Looking:
    """Shows a model every view of some examples.

    Args:
      protocol: what is read off.
      classifier: the user's own model.
      source: the examples; of `Views`, all views are shown.
      slots: images shown at a time.
      reference: the protocol's reference model, which sees the same images; None: there is none.
    """

    def __init__(
        self,
        protocol: Protocol,
        classifier: Classifier,
        source: Source,
        *,
        slots: int,
        reference: Classifier | None = None,
    ) -> None:
        if protocol.shift is None:
            raise ValueError(f"{protocol.exact_name} has no shift")
        self.shift, self.classifier, self.source, self.reference = protocol.shift, classifier, source, reference
        self.reading = Reading.of(protocol.shift, f"{protocol.id}.toml")
        self.names: Sequence[str] = source.view_names if isinstance(source, Views) else [CLEAN]
        self.slots = slots
        self.shape: torch.Size | None = None
        self.last: Tensor | None = None

    def outcomes(
        self,
        positions: Sequence[int],
        *,
        on_pixels: Callable[[int, int], None],
        on_event: Callable[[str, dict[str, Any]], None] = lambda kind, details: None,
    ) -> Generator[tuple[int, Outcome], None, None]:
        """The outcomes of the examples at these positions, each as soon as its last view was seen.

        Args:
          positions: in the order in which they are read.
          on_pixels: told position and digest of every image that was read.
          on_event: told of what happens on the way: `slots halved`, and `unreadable` with its `reason`.
        Raises:
          DataError: images have different shapes, or a worker that decodes died.
          ModelError: one image alone does not fit into memory.
        """
        seen: dict[int, _Seen] = {}
        batch: list[_View] = []
        images = self._images(positions)
        places = ((position, view) for position in positions for view in range(len(self.names)))
        try:
            for (position, view), image in zip(places, images, strict=True):
                example = seen.setdefault(position, _Seen(len(self.names)))
                if isinstance(image, Unreadable):
                    on_event("unreadable", {"reason": image.reason})
                    example.error = example.error or image.reason
                    example.left -= 1
                else:
                    on_pixels(position, self._checked(position, view, image))
                    batch.append(_View(position, view, image))
                if len(batch) >= self.slots:
                    self._show(batch, seen, on_event)
                    batch = []
                yield from self._finished(seen)
            if batch:
                self._show(batch, seen, on_event)
            yield from self._finished(seen)
        finally:
            if isinstance(images, Generator):
                images.close()

    def _images(self, positions: Sequence[int]) -> Iterator[Tensor | Unreadable]:
        return self.source.views(positions) if isinstance(self.source, Views) else self.source.images(positions)

    def _checked(self, position: int, view: int, image: Tensor) -> int:
        """The digest of an image that is fit to be shown."""
        example = self.source.ids[position]
        if image.dtype != torch.uint8:
            check_image(image, example)
        self.shape = self.shape or image.shape
        if image.shape != self.shape:
            found = f"of shape {tuple(image.shape)}"
            raise DataError(complaint(example, "image", found, f"{tuple(self.shape)}, as before"))
        return pixel_digest(f"{example} {self.names[view]}" if len(self.names) > 1 else example, image)

    def _show(
        self, batch: Sequence[_View], seen: dict[int, _Seen], on_event: Callable[[str, dict[str, Any]], None]
    ) -> None:
        """Show one batch, and note what the model says to each view."""
        device = self.classifier.device
        images = batch_of([each.image for each in batch], device, last=self.last)
        self.last = images if device.type == "cpu" and batch[0].image.dtype == torch.uint8 else None
        labels = torch.tensor([self.source.labels[each.position] for each in batch], device=device)

        def halve(error: Exception) -> None:
            self.slots = half_of(self.slots, error, *models)
            on_event("slots halved", {"slots": self.slots})

        models = [self.classifier, *([self.reference] if self.reference is not None else [])]
        logits = in_parts(self.classifier.logits, images, lambda: self.slots, halve)
        scores = self.reading.scores(logits)
        predictions, margins = scores.argmax(dim=1).tolist(), margin(scores, labels).tolist()
        finite, among = logits.isfinite().all(dim=1).tolist(), self.reading.decide_among(logits)
        referred: list[int] | None = None
        if self.reference is not None:
            there = images.to(self.reference.device)
            referred = in_parts(self.reference.logits, there, lambda: self.slots, halve).argmax(dim=1).tolist()
        for row, each in enumerate(batch):
            example = seen[each.position]
            example.left -= 1
            example.predictions[each.view], example.margins[each.view] = predictions[row], rounded(margins[row])
            example.among = among[row] if among is not None else None
            example.reference = referred[row] if referred is not None else None
            if not finite[row]:
                example.error = example.error or f"the logits of {self.names[each.view]} are not finite"

    def _finished(self, seen: dict[int, _Seen]) -> Iterator[tuple[int, Outcome]]:
        """Outcomes of the first examples, in reading order, whose views have all been seen."""
        while seen:
            position = next(iter(seen))
            if seen[position].left:
                return
            yield position, self._outcome(position, seen.pop(position))

    def _outcome(self, position: int, found: _Seen) -> Outcome:
        label, predictions = self.source.labels[position], found.predictions
        clean = -1 if found.error or self.names[0] != CLEAN else predictions[0]
        value = 0.0 if clean < 0 else found.margins[0]
        cells, texture = None, None
        if self.shift.kind == "corruptions":
            rights = [not found.error and predictions[view] == label for view in self._cells()]
            cells = mask_text(rights)
        if self.shift.kind == "textures":
            texture = self.source.textures[position]  # type: ignore[attr-defined]  # seen to by `check_textures`
        return Outcome(
            id=self.source.ids[position],
            label=label,
            clean=clean,
            attacked=clean,
            clean_margin=value,
            attacked_margin=value,
            error=found.error,
            among=(-1 if found.error else found.among) if self.reading.among else None,
            cells=cells,
            texture=texture,
            reference=(-1 if found.error else found.reference) if self.reference is not None else None,
        )

    def _cells(self) -> range:
        """Views that are cells."""
        return range(int(self.names[0] == CLEAN), len(self.names))


def check_textures(source: Source, protocol: Protocol) -> None:
    """Check that a source says which texture an image has, where the protocol asks for it.

    Raises:
      DataError: it does not.
    """
    if protocol.shift is not None and protocol.shift.kind == "textures" and not hasattr(source, "textures"):
        expected = "a source that says which texture an image has, such as `mini-stylized`"
        raise DataError(complaint("robench", "data", source.name, expected))
