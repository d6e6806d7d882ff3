"""Randomised models: attacks run to their end, and the model is asked many times about one final image.

A randomised model gives another answer each time, so the first answer that happens to be wrong says little,
and so does the next one that happens to be right. Here no example stops early. Every attack looks at mean
answers and hands over the image at which the mean margin was lowest; these images and the clean one compete
by fresh answers; and only then is the model asked about the winner, and about the clean image, as often as
the protocol says. None of the answers that are scored played a part in choosing the image.

Not here: the loop (`drive.py`), means and seeds (`robench.averaging`), and what is made of the counts
(`robench.result`).
"""

from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import groupby
from typing import Any

import torch
from torch import Tensor

from robench.attacks.drive import drive
from robench.attacks.interface import Answer, Attack, Examples
from robench.attacks.pool import Stage
from robench.attacks.record import Example, Finished
from robench.attacks.wrapped import Wrapped, WrappedState
from robench.averaging import AveragingClassifier, seed_of, seeded
from robench.budgets import Budget
from robench.classifier import Classifier, rounded
from robench.losses import margin
from robench.randomness import RandomSource


@dataclass(frozen=True)
class Asking:
    """How often a randomised model is asked.

    Attributes:
      asks: answers that are scored, about the clean image and about the final one.
      draws: answers that attacks average wherever they look.
      together: examples whose index divided by this is the same are looked at together, under one seed.
    """

    asks: int
    draws: int
    together: int


def drive_by_asking(
    stages: Sequence[Stage],
    classifier: Classifier,
    source: Iterable[Example],
    *,
    asking: Asking,
    budget: Budget,
    seed: int,
    slots: int,
    on_event: Callable[[str, dict[str, Any]], None] = lambda kind, details: None,
) -> Generator[Finished, None, None]:
    """Attack every example of a source to the end, and count the right answers about its final image.

    Every example is attacked, whatever the model says to its clean image: to leave out those that it mostly
    gets wrong would keep the answers it happens to get right. An outcome depends on the seed, the ids of the
    examples looked at together and the number of slots, as far as the model draws from the global generators
    of torch, NumPy or Python.

    Args:
      stages: attacks run to their end, see `stage_to_the_end`.
      classifier: the user's own model.
      source: examples by rising index, read as they are needed.
      asking: how often the model is asked.
      budget: what the attacks may change.
      seed: of the examples' random numbers, and of the model's.
      slots: most examples looked at together.
      on_event: as in `drive`.
    Raises:
      BudgetError, ModelError: as in `drive`.
    """
    room = [slots]

    def listen(kind: str, details: dict[str, Any]) -> None:
        if kind == "slots halved":  # what was too much for these examples is too much for the next ones
            room[0] = details["slots"]
        on_event(kind, details)

    for group in _groups(source, asking.together, room):
        with seeded(seed_of(seed, [example.id for example in group]), classifier.device):
            averaging = AveragingClassifier(classifier, asking.draws)
            found = drive(stages, averaging, group, budget=budget, seed=seed, slots=len(group), on_event=listen)
            finished = _asked(list(found), group, classifier, asking=asking, slots=min(len(group), room[0]))
        yield from finished


def stage_to_the_end(attack: Attack) -> Stage:
    """A stage that hands over one image of every example, and stops at none."""
    return Stage(ToTheEnd(attack), frozenset())


def _groups(source: Iterable[Example], together: int, room: list[int]) -> Iterator[list[Example]]:
    """Neighbouring examples, as many as there is room for."""
    for _, shelf in groupby(source, lambda example: example.index // together):
        waiting: list[Example] = []
        for example in shelf:
            waiting.append(example)
            if len(waiting) >= room[0]:
                yield waiting
                waiting = []
        if waiting:
            yield waiting


def _asked(
    finished: Sequence[Finished], group: Sequence[Example], classifier: Classifier, *, asking: Asking, slots: int
) -> list[Finished]:
    """Choose the final image of each example, and ask about it and about the clean one."""
    whole = [outcome for outcome in finished if not outcome.error]
    broken = [replace(outcome, clean_right=0, attacked_right=0) for outcome in finished if outcome.error]
    if not whole:
        return broken
    images = {example.index: example.image for example in group}
    clean = torch.stack([images[outcome.index] for outcome in whole]).to(classifier.device)
    labels = torch.tensor([outcome.label for outcome in whole], device=classifier.device)
    names = list(whole[0].finals)
    candidates = [clean, *(torch.stack([outcome.finals[name] for outcome in whole]) for name in names)]
    shown = [_Answers.about(classifier, each, labels, times=asking.draws, slots=slots) for each in candidates]
    chosen = _worst(shown)
    final = torch.stack([candidates[which][row] for row, which in enumerate(chosen)])
    before = _Answers.about(classifier, clean, labels, times=asking.asks, slots=slots)
    after = _Answers.about(classifier, final, labels, times=asking.asks, slots=slots)
    outcomes = []
    for row, outcome in enumerate(whole):
        nameless = replace(outcome, finals={})
        if not (before.finite[row] and after.finite[row]):
            error = "the logits are not finite when asked again"
            outcomes.append(replace(nameless, error=error, clean_right=0, attacked_right=0))
            continue
        outcomes.append(
            replace(
                nameless,
                clean_prediction=before.prediction(row),
                clean_margin=rounded(float(before.margins[row])),
                attacked_prediction=after.prediction(row),
                attacked_margin=rounded(float(after.margins[row])),
                stage=["", *names][chosen[row]],
                image=final[row],
                clean_right=int(before.right[row]),
                attacked_right=int(after.right[row]),
            )
        )
    return broken + outcomes


def _worst(shown: Sequence["_Answers"]) -> list[int]:
    """For each example the candidate with the fewest right answers; among equals, the lowest mean margin.

    Right answers come first because they are what is scored: where few answers have huge margins, the mean
    margin follows those few.
    """
    keys = [list(zip(each.right.tolist(), each.margins.tolist(), strict=True)) for each in shown]
    return [min(range(len(keys)), key=lambda which, row=row: keys[which][row]) for row in range(len(keys[0]))]  # type: ignore[misc]  # mypy cannot infer a lambda with a default


@dataclass(frozen=True)
class _Answers:
    """What a model said to some images, asked many times.

    Attributes:
      votes: answers for each class, int64, shape (N, K).
      right: answers that were right, int64, shape (N,).
      margins: of the mean logits, shape (N,).
      finite: whether all logits were, bool, shape (N,).
    """

    votes: Tensor
    right: Tensor
    margins: Tensor
    finite: Tensor

    @classmethod
    def about(cls, classifier: Classifier, images: Tensor, labels: Tensor, *, times: int, slots: int) -> "_Answers":
        """Ask: each time a pass of its own, as a model may draw once for a whole batch."""
        votes, total = None, None
        for _ in range(times):
            logits = torch.cat([classifier.logits(part) for part in torch.split(images, slots)])
            answers = torch.nn.functional.one_hot(logits.argmax(dim=1), logits.shape[1])
            votes = answers if votes is None else votes + answers
            total = logits.double() if total is None else total + logits
        assert votes is not None, "asked at least once"
        assert total is not None, "the same"
        right = votes.gather(1, labels[:, None])[:, 0]
        return cls(votes, right, margin(total / times, labels), total.isfinite().all(dim=1))

    def prediction(self, row: int) -> int:
        """The class most often answered; of several, the first."""
        return int(self.votes[row].argmax())


@dataclass(frozen=True)
class _Seen(WrappedState):
    """The state of an attack, and the best image it has looked at."""

    lowest: Tensor
    """Lowest margin met, shape (N,)."""
    image: Tensor
    """Where it was met; the clean image before any. Shape (N, 3, H, W)."""


@dataclass(frozen=True)
class ToTheEnd(Wrapped):
    """An attack that does what another does, and keeps the image with the lowest margin of all that may count."""

    def start(self, examples: Examples, budget: Any, draws: RandomSource) -> _Seen:
        lowest = torch.full((len(examples.labels),), torch.inf, device=examples.labels.device)
        return _Seen(self.inner.start(examples, budget, draws), lowest, examples.images)

    def tell(self, state: _Seen, answer: Answer) -> _Seen:
        query = self.inner.ask(state.inner)
        counted = query.counts & ~state.done[query.rows]
        met = torch.where(counted, margin(answer.logits, state.examples.labels[query.rows]), torch.inf)
        lowest = state.lowest.scatter_reduce(0, query.rows, met, "amin")
        image, better = state.image.clone(), lowest < state.lowest
        for row in (better[query.rows] & (met == lowest[query.rows])).nonzero()[:, 0].flip(0).tolist():
            image[query.rows[row]] = query.render(slice(row, row + 1))[0]  # the first of equals is written last
        return _Seen(self.inner.tell(state.inner, answer), lowest, image)

    def final(self, state: _Seen) -> Tensor:
        return state.image
