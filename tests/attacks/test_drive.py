from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any

import pytest
import torch
from torch import Tensor

from robench.attacks.drive import Example, Stage, drive
from robench.attacks.interface import Answer, Examples, Query
from robench.attacks.pgd import PGD
from robench.attacks.pool import Pool
from robench.attacks.record import Record
from robench.budgets import Ball, Budget, LinfBall
from robench.classifier import Classifier
from robench.errors import BudgetError, ModelError
from robench.randomness import RandomSource
from tests.fakes import examples, labelled_by, random_images, small_net

EPSILON = 0.02
STAGE = Stage(PGD(step_size=EPSILON / 4, steps=12))


@dataclass(frozen=True)
class WalkState:
    examples: Examples
    step: Tensor
    done: Tensor


@dataclass(frozen=True)
class Walk:
    """Adds `stride` to every pixel at every step, asking without gradients."""

    stride: float
    steps: int
    name: str = "walk"
    gradients = False
    most_passes = (0, 1)
    works_in = (LinfBall,)

    def start(self, examples: Examples, budget: Budget, draws: RandomSource) -> WalkState:
        zeros = torch.zeros_like(examples.labels)
        return WalkState(examples, zeros, zeros.bool())

    def ask(self, state: WalkState) -> Query:
        images = state.examples.images + self.stride * state.step[:, None, None, None]
        return Query(
            rows=torch.arange(len(images)),
            render=lambda rows: images[rows],
            objective=None,
            counts=torch.ones_like(state.done),
            step=state.step,
        )

    def tell(self, state: WalkState, answer: Answer) -> WalkState:
        assert answer.gradient is None
        return replace(state, step=state.step + 1, done=state.step >= self.steps)


def _brightness(images: Tensor) -> Tensor:
    """Class 1 when the image is brighter than one half."""
    return torch.stack([0.5 - images.mean(dim=(1, 2, 3)), images.mean(dim=(1, 2, 3)) - 0.5], dim=1)


def _grey(levels: list[float]) -> list[Example]:
    return examples(torch.stack([torch.full((3, 4, 4), level) for level in levels]), [0] * len(levels))


def test_the_step_of_the_first_success_is_reported() -> None:
    stage = Stage(Walk(stride=0.05, steps=4))
    source = _grey([0.48, 0.44, 0.32, 0.2])
    finished = sorted(drive([stage], Classifier(_brightness), source, budget=LinfBall(0.2)), key=lambda o: o.index)
    assert [outcome.fooled_at for outcome in finished] == [(1,), (2,), (4,), ()]
    assert [outcome.attacked_prediction for outcome in finished] == [1, 1, 1, 0]
    assert [outcome.stage for outcome in finished] == ["walk", "walk", "walk", ""]
    assert finished[3].attacked_margin == pytest.approx(0.2, abs=1e-3)  # 2 * (0.5 - 0.4), the lowest met


def test_read_off_steps_are_scored_alone_and_never_stop_an_example() -> None:
    @dataclass(frozen=True)
    class Swing(Walk):
        def ask(self, state: WalkState) -> Query:
            swing = torch.where(state.step % 2 == 1, self.stride, 0.0)
            images = state.examples.images + swing[:, None, None, None]
            return replace(super().ask(state), render=lambda rows: images[rows])

    stage = Stage(Swing(stride=0.1, steps=4), read_off=frozenset({1, 2, 3, 4}))
    source = _grey([0.45] * 40 + [0.1])
    classifier = Classifier(_brightness)
    finished = list(drive([stage], classifier, source, budget=LinfBall(0.1), slots=16))
    assert sorted(outcome.fooled_at for outcome in finished) == [()] + [(1, 3)] * 40
    assert all(outcome.attacked_prediction == 0 for outcome in finished)  # step 4, the last one, does not fool
    ends_fooled = Stage(Swing(stride=0.1, steps=3), read_off=frozenset({2, 3}))
    (outcome,) = drive([ends_fooled], classifier, _grey([0.45]), budget=LinfBall(0.1))
    assert (outcome.fooled_at, outcome.attacked_prediction) == ((3,), 1)
    assert outcome.attacked_margin == pytest.approx(-0.1, abs=1e-3)


def test_steps_are_read_off_a_single_stage_only() -> None:
    with pytest.raises(ValueError, match="steps can be read off a single stage only"):
        next(drive([Stage(Walk(0.1, 2), frozenset({2}))] * 2, Classifier(_brightness), [], budget=LinfBall(0.1)))


def test_an_attack_that_leaves_its_budget_is_an_error() -> None:
    stage = Stage(Walk(stride=0.05, steps=4))
    with pytest.raises(BudgetError, match=r"walk: `image` is 0\.05 outside its budget; expected at most 1e-06\."):
        list(drive([stage], Classifier(_brightness), _grey([0.1]), budget=LinfBall(0.1)))


def test_a_denied_claim_sends_the_example_back_to_go_on() -> None:
    """The user's model falls one step later than the one that is attacked."""
    stage, source = Stage(Walk(stride=0.05, steps=6)), _grey([0.44] * 5)
    stricter = Classifier(lambda images: _brightness(images - 0.06))
    finished = list(drive([stage], Classifier(_brightness), source, budget=LinfBall(0.3), confirm=stricter))
    assert [outcome.fooled_at for outcome in finished] == [(3,)] * 5  # 0.59 > 0.56; 0.54 at step 2 is denied
    assert [outcome.unconfirmed for outcome in finished] == [1] * 5


def test_a_claim_denied_at_the_last_step_leaves_the_example_robust() -> None:
    stage, never = Stage(Walk(stride=0.05, steps=2)), Classifier(lambda images: _brightness(images - 0.5))
    (outcome,) = drive([stage], Classifier(_brightness), _grey([0.44]), budget=LinfBall(0.3), confirm=never)
    assert (outcome.fooled_at, outcome.unconfirmed, outcome.attacked_prediction) == ((), 1, 0)


def test_nan_in_the_middle_of_an_attack_errs_the_example_and_not_the_run() -> None:
    def breaks_when_bright(images: Tensor) -> Tensor:
        return _brightness(images).where(images.mean(dim=(1, 2, 3))[:, None] < 0.3, torch.nan)

    source = _grey([0.2, 0.05, 0.31])
    stage = Stage(Walk(stride=0.05, steps=4))
    finished = list(drive([stage], Classifier(breaks_when_bright), source, budget=LinfBall(0.2)))
    errors = {outcome.index: outcome.error for outcome in finished}
    assert errors == {
        0: "the logits are not finite at step 2 of walk",
        1: "",
        2: "the logits of the clean image are not finite",
    }


def test_every_example_is_yielded_once_whatever_the_slots() -> None:
    net = small_net()
    source = labelled_by(net, random_images(75))
    for slots in (1, 7, 16, 75, 200):
        finished = list(drive([STAGE], Classifier(net), source, budget=LinfBall(EPSILON), slots=slots))
        assert sorted(outcome.index for outcome in finished) == list(range(75))


def test_without_a_stage_images_are_only_classified() -> None:
    net = small_net()
    classifier = Classifier(net)
    finished = list(drive([], classifier, labelled_by(net, random_images(40)), budget=LinfBall(0.0)))
    assert len(finished) == 40
    assert (classifier.passes.forward, classifier.passes.backward) == (40, 0)


def test_examples_are_read_only_as_slots_come_free() -> None:
    net = small_net()
    read = 0

    def source() -> Iterator[Example]:
        nonlocal read
        for example in labelled_by(net, random_images(200)):
            read += 1
            yield example

    ahead = [
        read - done
        for done, _ in enumerate(drive([STAGE], Classifier(net), source(), budget=LinfBall(EPSILON), slots=16))
    ]
    assert max(ahead) <= 16 * 3  # slots, a queue shorter than the slots, and claims to be confirmed


def test_fooled_examples_make_room_for_the_next_ones() -> None:
    """Continuous batching: passes are those the examples need, plus padding in the tail only."""
    net = small_net()
    source = labelled_by(net, random_images(200))
    classifier = Classifier(net)
    finished = list(drive([STAGE], classifier, source, budget=LinfBall(EPSILON), slots=16))
    needed = sum(outcome.fooled_at[0] + 1 if outcome.fooled_at else 13 for outcome in finished)
    assert needed <= classifier.passes.backward <= 1.15 * needed + 16 * 13


def test_slots_that_stay_empty_are_dropped_sixteen_at_a_time_or_by_halves() -> None:
    pool = Pool(STAGE, LinfBall(EPSILON), seed=0, device=torch.device("cpu"))
    for example in labelled_by(small_net(), random_images(64)):
        pool.waiting.append((Record(example, torch.zeros(4), example.label, 1.0, example.label), None))
    pool.fill(64, 16)
    assert len(pool.records) == 64
    left = {record.example.index for record in pool.records[24:] if record is not None}
    pool.records[:24] = [None] * 24
    for halving, expected in ((True, 64), (False, 48), (True, 48), (False, 48)):
        pool.fill(64, 16, halving=halving)
        assert len(pool.records) == len(pool.slots.state.done) == expected
        assert {record.example.index for record in pool.records if record is not None} == left
    pool.records = [record if slot < 20 else None for slot, record in enumerate(pool.records)]
    pool.fill(64, 16, halving=True)
    assert len(pool.records) == 24
    pool.fill(64, 1)
    assert len(pool.records) == 20


class RunsOut:
    """A model that runs out of memory on more than so many images."""

    def __init__(self, room: int, words: str) -> None:
        self.net, self.room, self.words = small_net(), room, words

    def __call__(self, images: Tensor) -> Tensor:
        if len(images) > self.room:
            raise RuntimeError(self.words)
        answer: Tensor = self.net(images)
        return answer


@pytest.mark.parametrize(
    "words", ["CUDA out of memory. Tried ...", "[enforce fail] DefaultCPUAllocator: can't allocate memory"]
)
@pytest.mark.parametrize("room", [40, 20, 3])
def test_out_of_memory_halves_the_slots_and_changes_no_verdict(words: str, room: int) -> None:
    source = labelled_by(small_net(), random_images(70))
    events: list[tuple[str, dict[str, Any]]] = []
    stream = drive(
        [STAGE],
        Classifier(RunsOut(room, words)),
        source,
        budget=LinfBall(EPSILON),
        slots=64,
        on_event=lambda kind, details: events.append((kind, details)),
    )
    finished = {outcome.index: outcome for outcome in stream}
    expected = drive([STAGE], Classifier(small_net()), source, budget=LinfBall(EPSILON), slots=64)
    assert {index: outcome.fooled_at for index, outcome in finished.items()} == {o.index: o.fooled_at for o in expected}
    halvings = {40: [32], 20: [32, 16], 3: [32, 16, 8, 4, 2]}[room]
    assert events == [("slots halved", {"slots": slots}) for slots in halvings]


@dataclass(frozen=True)
class Roomy(PGD):
    """An attack that runs out of memory where so many examples begin or are asked about at once."""

    most_begun: int = 64
    most_asked: int = 64

    def start(self, examples: Examples, budget: Ball, draws: RandomSource) -> Any:
        if len(examples.labels) > self.most_begun:
            raise torch.OutOfMemoryError("out of memory")
        return super().start(examples, budget, draws)

    def ask(self, state: Any) -> Query:
        if len(state.done) > self.most_asked:
            raise torch.OutOfMemoryError("out of memory")
        return super().ask(state)


@pytest.mark.parametrize("room", [{"most_begun": 20}, {"most_asked": 20}, {"most_begun": 30, "most_asked": 3}])
def test_an_attack_that_runs_out_of_memory_loses_no_example(room: dict[str, int]) -> None:
    source = labelled_by(small_net(), random_images(70))
    attack = Roomy(step_size=EPSILON / 4, steps=12, **room)
    finished = drive([Stage(attack)], Classifier(small_net()), source, budget=LinfBall(EPSILON), slots=64)
    expected = drive([STAGE], Classifier(small_net()), source, budget=LinfBall(EPSILON), slots=64)
    assert {o.index: o.fooled_at for o in finished} == {o.index: o.fooled_at for o in expected}


def test_a_model_too_large_for_one_image_is_an_error() -> None:
    source = labelled_by(small_net(), random_images(4))
    with pytest.raises(ModelError, match="`memory` is too small for one image; expected room for one pass"):
        list(drive([STAGE], Classifier(RunsOut(0, "out of memory")), source, budget=LinfBall(EPSILON)))


def test_any_other_failure_of_the_model_goes_on_its_way() -> None:
    source = labelled_by(small_net(), random_images(4))
    with pytest.raises(RuntimeError, match="a bug"):
        list(drive([STAGE], Classifier(RunsOut(0, "a bug")), source, budget=LinfBall(EPSILON)))
