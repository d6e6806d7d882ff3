"""Attacks that own their loop, one example at a time: the contract, and the driver that watches them.

Such an attack looks for the nearest image that fools. It sees the model through one function, and the driver
sees every image that goes through it: that is where budgets are measured, successes confirmed and passes
counted. Not here: attacks that ask and are told (`interface.py`, `drive.py`), and any attack.
"""

from collections.abc import Callable, Generator, Iterable, Iterator
from contextlib import closing, contextmanager, suppress
from dataclasses import dataclass, replace
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor

from robench.attacks.drive import drive
from robench.attacks.pool import Stage
from robench.attacks.record import Example, Finished
from robench.budgets import TOLERANCE, Ball, Budget
from robench.classifier import Classifier, rounded
from robench.losses import margin
from robench.randomness import Draws, RandomSource

Look = Callable[[Tensor], Tensor]
"""Images, float32 in [0, 1], shape (N, 3, H, W), on the CPU -> their logits, shape (N, K), on the CPU."""


class GaveUp(Exception):  # noqa: N818  # nobody's mistake: it ends one example
    """An attack cannot go on with an example; the text is the example's error."""


class WholeAttack(Protocol):
    """An attack that owns its loop."""

    @property
    def name(self) -> str:
        """Key of the attack's random streams and name of its stage in outcomes."""
        ...

    @property
    def gradients(self) -> bool:
        """Whether it needs gradients: never, as `run` is given none."""
        ...

    @property
    def most_passes(self) -> tuple[int, int]:
        """Passes with and without gradient of an example that survives; the driver ends the attack there."""
        ...

    def check(self, budget: Budget) -> None:
        """Check at the door that it can run under this budget.

        Raises:
          RunError: what it needs is not installed.
          BudgetError: it is not made for this budget.
        """
        ...

    def run(self, look: Look, image: Tensor, label: int, *, budget: Ball, draws: RandomSource) -> None:
        """Look for the nearest image that fools, as far as `look` allows.

        It has no result: what counts is what the driver saw. torch's and NumPy's global random numbers on the CPU
        belong to the example while it runs.

        Args:
          look: what the model says; ends the attack, by an exception, when there is nothing left to look for.
          image: the clean image, which the model gets right, shape (3, H, W), on the CPU.
          label: its class.
          budget: inside which an image counts.
          draws: the example's own random numbers.
        Raises:
          GaveUp: it cannot go on.
        """
        ...


@dataclass(frozen=True)
class WholeStage:
    """The one stage of a protocol whose attack owns its loop."""

    attack: WholeAttack


AnyStage = Stage | WholeStage
"""A stage of either kind; those of the second kind stand alone."""


def drive_whole(
    attack: WholeAttack,
    classifier: Classifier,
    source: Iterable[Example | None],
    *,
    budget: Ball,
    seed: int = 0,
    slots: int = 32,
    confirm: Classifier | None = None,
    on_event: Callable[[str, dict[str, Any]], None] = lambda kind, details: None,
    on_survivor: Callable[[int, Tensor], None] = lambda index, image: None,
) -> Generator[Finished, None, None]:
    """Attack the examples of a source one after the other; yield each as soon as its outcome is final.

    An example falls at the first image inside the budget that fools the model and that the user's own model
    confirms. Where its own model denies one, the attack is told what that model says, and goes on. When the attack has
    ended, the nearest image that fooled is projected into the budget and looked at, too. Where no image fooled at
    all, wherever it lay, the attack found nowhere to start, and the example is robust.

    Args:
      attack: the attack.
      classifier: the model that it looks at; small batches are not padded.
      source: examples, read `slots` at a time; None as in `drive`.
      budget: inside which images count.
      seed: of the examples' random numbers.
      slots: clean images classified at a time.
      confirm: the user's own, unmodified model; by default `classifier`.
      on_event: told of `slots halved`, and of `no start` when an attack found nowhere to start.
      on_survivor: told the index and the last image, shape (3, H, W), of an example that was attacked and held.
    """
    own = confirm or classifier
    read: dict[int, Example] = {}

    def remembered() -> Iterator[Example | None]:
        for example in source:
            if example is not None:
                read[example.index] = example
            yield example

    classified = drive((), classifier, remembered(), budget=budget, slots=slots, confirm=own, on_event=on_event)
    with closing(classified):
        for clean in classified:
            example = read.pop(clean.index)
            if clean.error or clean.clean_prediction != clean.label:
                yield clean
                continue
            watch = _Watch(attack, classifier, own, example, budget)
            watch.attack(seed)
            if not watch.started and not watch.error:
                on_event("no start", {"attack": attack.name})
            if watch.survivor is not None:
                on_survivor(clean.index, watch.survivor)
            yield watch.finished(clean)


class _Over(Exception):  # noqa: N818  # control flow
    """The attack of an example is over."""


class _Watch:
    """One example under attack: counts, measures and confirms what the model is shown."""

    def __init__(
        self, attack: WholeAttack, classifier: Classifier, confirm: Classifier, example: Example, budget: Ball
    ) -> None:
        self._attack, self._classifier, self._confirm = attack, classifier, confirm
        self._example, self._budget = example, budget
        self._clean = example.image[None].to(classifier.device)
        self._labels = torch.tensor([example.label], device=classifier.device)
        self._left = sum(attack.most_passes) - 1  # the last is for the projected image
        self._asked = 0
        self._nearest: tuple[float, Tensor] | None = None
        self._lowest = float("inf")
        self._unconfirmed = 0
        self._fallen: tuple[int, Tensor, Tensor] | None = None
        self.error = ""
        self.survivor: Tensor | None = None
        """The nearest image that fooled, projected into the budget, where nothing there fools."""

    @property
    def started(self) -> bool:
        """Whether anything fooled the model, wherever it lay."""
        return self._nearest is not None or self._fallen is not None

    def attack(self, seed: int) -> None:
        """Let the attack run until it ends or is ended."""
        draws = Draws.of(seed, [self._example.id])
        image, label = self._example.image.cpu(), self._example.label
        try:
            with _random_numbers_of(draws, self._attack.name):
                self._attack.run(self.look, image, label, budget=self._budget, draws=draws)
        except _Over:
            pass
        except GaveUp as reason:
            self.error = str(reason)
        if self._nearest is None or self._fallen is not None or self.error:
            return
        self._left += 1
        projected = self._budget.project(self._nearest[1][None], self._clean)
        with suppress(_Over):
            self.look(projected)
            self.survivor = projected[0]

    def look(self, images: Tensor) -> Tensor:
        """What the model says to images; see `Look`."""
        if len(images) > self._left:
            raise _Over
        self._left -= len(images)
        images = images.to(self._classifier.device)
        with self._classifier.unpadded():
            logits = self._classifier.logits(images)
        excess = self._budget.excess(images, self._clean).tolist()
        return torch.stack([self._judged(*each) for each in zip(images, logits, excess, strict=True)]).cpu()

    def _judged(self, image: Tensor, logits: Tensor, excess: float) -> Tensor:
        """The logits of an image; inside the budget those of the user's own model where it denies that they fool."""
        self._asked += 1
        fools = self._fools(logits)
        if excess <= TOLERANCE:
            if fools:
                logits = self._confirm.logits(image[None])[0]
                fools = self._fools(logits)
                if fools:
                    self._fallen = self._asked, image.clone(), logits
                    raise _Over
                self._unconfirmed += 1
            self._lowest = min(self._lowest, float(margin(logits[None], self._labels)))
        if fools and (self._nearest is None or excess < self._nearest[0]):
            self._nearest = excess, image.clone()
        return logits

    def _fools(self, logits: Tensor) -> bool:
        if not bool(logits.isfinite().all()):
            self.error = f"the logits are not finite at step {self._asked} of {self._attack.name}"
            raise _Over
        return int(logits.argmax()) != self._example.label

    def finished(self, clean: Finished) -> Finished:
        """The outcome, from that of the clean image."""
        if self.error:
            return replace(clean, attacked_margin=0.0, unconfirmed=self._unconfirmed, error=self.error)
        if self._fallen is None:
            lowest = rounded(min(clean.clean_margin, self._lowest))
            return replace(clean, attacked_margin=lowest, unconfirmed=self._unconfirmed)
        step, image, logits = self._fallen
        return replace(
            clean,
            attacked_prediction=int(logits.argmax()),
            attacked_margin=rounded(float(margin(logits[None], self._labels))),
            fooled_at=(step,),
            stage=self._attack.name,
            unconfirmed=self._unconfirmed,
            image=image,
        )


@contextmanager
def _random_numbers_of(draws: Draws, stream: str) -> Iterator[None]:
    """Seed the global random numbers on the CPU for one example, and put them back as they were."""
    words = draws.bits(f"{stream}/global", 2)[0].tolist()
    generator = torch.default_generator
    torch_state, numpy_state = generator.get_state(), np.random.get_state()
    try:
        generator.manual_seed(words[0] << 32 | words[1])
        np.random.seed(words[0])
        yield
    finally:
        generator.set_state(torch_state)
        np.random.set_state(numpy_state)
