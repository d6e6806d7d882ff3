import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import pytest
import torch
from scipy import stats
from torch import Tensor, nn

from robench.attacks.apgd import APGD
from robench.attacks.asking import Asking, ToTheEnd, drive_by_asking, stage_to_the_end
from robench.attacks.autoattack import AutoAttack
from robench.attacks.drive import Example, Finished, Stage, drive
from robench.attacks.fab import FAB
from robench.attacks.interface import Answer, EndingAttack, Examples, Query
from robench.attacks.pgd import PGD
from robench.attacks.square import Square
from robench.averaging import seeded
from robench.budgets import Budget, L2Ball, LinfBall
from robench.classifier import Classifier
from robench.randomness import RandomSource
from tests.attacks.test_drive import RunsOut
from tests.fakes import Linear, examples, labelled_by, random_images, small_net, two_class_linear

CPU = torch.device("cpu")
RAND = AutoAttack(version="rand", steps=6).stages()


class NoisyLinear(nn.Module):
    """Two classes whose margin is linear in the image, plus a normal draw of known width for every answer."""

    def __init__(self, linear: Linear, sigma: float) -> None:
        super().__init__()
        self.linear, self.sigma = linear, sigma

    def forward(self, images: Tensor) -> Tensor:
        logits: Tensor = self.linear(images)
        return logits + self.sigma * torch.randn_like(logits)


def _ask(model: Any, source: Sequence[Example], epsilon: float, **changes: Any) -> list[Finished]:
    settings: dict[str, Any] = {
        "asking": Asking(asks=20, draws=5, together=64),
        "budget": LinfBall(epsilon),
        "seed": 0,
        "slots": 64,
        **changes,
    }
    attacks = settings.pop("attacks", RAND)
    stages = [stage_to_the_end(attack) for attack in attacks]
    found = drive_by_asking(stages, Classifier(model), source, **settings)
    return sorted(found, key=lambda finished: finished.index)


# --- the closed form

COUNT, EPSILON, SIGMA = 512, 0.02, 0.3


def _scene() -> tuple[NoisyLinear, list[Example], Tensor, Tensor]:
    """Noisy model, examples labelled by it without noise, and the chances of a right answer: clean, worst case.

    The margin falls by at most epsilon times the sum of absolute weights, at a corner of the ball. The difference
    of two normals of width sigma is a normal of width sigma times the root of two.
    """
    linear, images = two_class_linear(4), random_images(COUNT, 4, low=0.3, high=0.7)
    weight = (linear.weight[0] - linear.weight[1]).detach().double()
    bias = float((linear.bias[0] - linear.bias[1]).detach())
    source = labelled_by(linear, images)
    margins = (images.flatten(1).double() @ weight + bias).abs()
    worst = margins - EPSILON * weight.abs().sum()
    clean, attacked = (torch.from_numpy(stats.norm.cdf(each / (SIGMA * math.sqrt(2)))) for each in (margins, worst))
    return NoisyLinear(linear, SIGMA).eval(), source, clean, attacked


def _standard_error(chances: Tensor, asks: int) -> float:
    return math.sqrt(float((chances * (1 - chances)).sum()) / asks) / len(chances)


def test_the_share_of_right_answers_is_the_closed_form() -> None:
    model, source, clean, worst = _scene()
    finished = _ask(model, source, EPSILON)
    for right, chances in (("clean_right", clean), ("attacked_right", worst)):
        share = sum(getattr(outcome, right) for outcome in finished) / (20 * COUNT)
        # 4 standard errors of the answers, given the examples: 1.5 points at the worst case
        assert abs(share - float(chances.mean())) < 4 * _standard_error(chances, 20)
    assert 0.2 < float(worst.mean()) < 0.8
    assert 4 * _standard_error(worst, 20) < 0.015


def test_the_first_fooled_image_tells_something_else() -> None:
    """Both ways of ending at a lucky answer are off by more than ten standard errors, in either direction."""
    model, source, _, worst = _scene()
    classifier = Classifier(model)
    with seeded(0, CPU):
        stages = [Stage(attack) for attack in RAND]
        first = list(drive(stages, classifier, source, budget=LinfBall(EPSILON), slots=64))
    on_until_confirmed = sum(not each.fooled_at and each.clean_prediction == each.label for each in first) / COUNT
    asked_once_more = sum(
        each.clean_prediction == each.label and (not each.fooled_at or each.unconfirmed > 0) for each in first
    )
    truth, error = float(worst.mean()), _standard_error(worst, 20)
    assert on_until_confirmed < truth - 10 * error
    assert asked_once_more / COUNT > truth + 10 * error


def test_an_example_that_is_mostly_wrong_clean_is_attacked_like_any_other() -> None:
    """Left alone it would keep the answers that it happens to get right."""
    model, source, _, _ = _scene()
    linear: Any = model.linear
    weight = (linear.weight[0] - linear.weight[1]).detach().double()
    images = torch.stack([example.image for example in source])
    margins = images.flatten(1).double() @ weight + float((linear.bias[0] - linear.bias[1]).detach())
    for_one = examples(images, [0] * COUNT)
    wrong = [example for example, margin in zip(for_one, margins.tolist(), strict=True) if -0.5 < margin < 0]
    assert len(wrong) > 15
    chances = [
        stats.norm.cdf((margin - EPSILON * float(weight.abs().sum())) / (SIGMA * math.sqrt(2)))
        for margin in margins.tolist()
        if -0.5 < margin < 0
    ]
    finished = _ask(model, wrong, EPSILON)
    before = sum(outcome.clean_right or 0 for outcome in finished) / (20 * len(wrong))
    after = sum(outcome.attacked_right or 0 for outcome in finished) / (20 * len(wrong))
    assert before > 0.2
    assert abs(after - sum(chances) / len(chances)) < 4 * _standard_error(torch.tensor(chances), 20) + 1e-3


# --- what is promised about chance


def test_the_same_seed_gives_the_same_outcomes_and_another_seed_others() -> None:
    model, source, _, _ = _scene()
    twice = [_ask(model, source[:40], EPSILON) for _ in range(2)]
    assert twice[0] == twice[1]
    assert _ask(model, source[:40], EPSILON, seed=1) != twice[0]


def test_what_is_looked_at_together_does_not_depend_on_the_rest() -> None:
    """Why a resumed run gives the same: shards begin with a seed of their own."""
    model, source, _, _ = _scene()
    asking = Asking(asks=20, draws=5, together=10)
    whole = _ask(model, source[:40], EPSILON, asking=asking)
    assert _ask(model, source[10:20], EPSILON, asking=asking) + _ask(model, source[30:40], EPSILON, asking=asking) == (
        whole[10:20] + whole[30:40]
    )
    assert _ask(model, source[:40], EPSILON, asking=asking, slots=200) == whole  # a shelf is never larger
    assert _ask(model, source[:40], EPSILON, asking=asking, slots=5) != whole


def test_random_state_and_parameters_are_left_as_found() -> None:
    model, source, _, _ = _scene()
    state, flags = torch.get_rng_state(), [parameter.requires_grad for parameter in model.parameters()]
    stages = [stage_to_the_end(attack) for attack in RAND]
    stream = drive_by_asking(
        stages, Classifier(model), source[:20], asking=Asking(20, 5, 10), budget=LinfBall(0.01), seed=0, slots=64
    )
    next(stream)  # in the middle of it, too
    assert torch.equal(state, torch.get_rng_state())
    list(stream)
    assert torch.equal(state, torch.get_rng_state())
    assert [parameter.requires_grad for parameter in model.parameters()] == flags


# --- a model that is not randomised


@pytest.mark.parametrize(("budget", "steps"), [(LinfBall(0.02), 12), (L2Ball(0.15), 12)])
def test_a_deterministic_model_gets_the_verdicts_of_the_ordinary_loop(budget: Budget, steps: int) -> None:
    net = small_net(dtype=torch.float64)
    right = labelled_by(net, random_images(60))
    source = [replace(each, label=(each.label + each.index // 50) % 4) for each in right]  # the last ten are wrong
    attacks = AutoAttack(version="rand", steps=steps).stages()
    ordinary = drive([Stage(attack) for attack in attacks], Classifier(net), source, budget=budget)
    expected = [
        not outcome.fooled_at and outcome.clean_prediction == outcome.label
        for outcome in sorted(ordinary, key=lambda outcome: outcome.index)
    ]
    finished = _ask(net, source, 0.0, budget=budget, attacks=attacks)
    assert [outcome.attacked_right for outcome in finished] == [20 * held for held in expected]
    assert [outcome.clean_right for outcome in finished] == [20] * 50 + [0] * 10
    assert 5 < sum(expected) < 45
    for outcome in finished:
        assert (outcome.attacked_prediction == outcome.label) == (outcome.attacked_right == 20)
        assert outcome.attacked_margin <= outcome.clean_margin
        assert outcome.image is not None
        clean = source[outcome.index].image[None]
        assert float(budget.excess(outcome.image[None], clean)) <= 1e-6


def test_radius_zero_leaves_the_clean_image() -> None:
    model, source, _, _ = _scene()
    for outcome in _ask(model, source[:20], 0.0):
        assert outcome.image is not None
        assert torch.equal(outcome.image, source[outcome.index].image)


# --- which image is the final one


@dataclass(frozen=True)
class ShiftState:
    examples: Examples
    done: Tensor


@dataclass(frozen=True)
class Shift:
    """Looks once, at the image moved by so much."""

    name: str
    by: float
    gradients = False
    most_passes = (0, 1)
    works_in = (LinfBall,)

    def start(self, examples: Examples, budget: Budget, draws: RandomSource) -> ShiftState:
        return ShiftState(examples, torch.zeros_like(examples.labels).bool())

    def ask(self, state: ShiftState) -> Query:
        images, labels = state.examples.images + self.by, state.examples.labels
        counts = torch.ones_like(state.done)
        return Query(torch.arange(len(labels)), lambda rows: images[rows], None, counts, torch.zeros_like(labels))

    def tell(self, state: ShiftState, answer: Answer) -> ShiftState:
        return replace(state, done=torch.ones_like(state.done))


def test_the_image_with_the_fewest_right_answers_wins_whatever_a_few_large_margins_say() -> None:
    """Bright: wrong by 1 nine times of ten, else right by 100. Dark: right by 1, else wrong by 200."""

    def model(images: Tensor) -> Tensor:
        rare = torch.rand(len(images)) < 0.1
        brightness = images.mean(dim=(1, 2, 3))
        bright = torch.where(rare, 100.0, -1.0)
        dark = torch.where(rare, -200.0, 1.0)
        margin = torch.where(brightness > 0.6, bright, torch.where(brightness < 0.4, dark, 1.0))
        return torch.stack([margin, torch.zeros_like(margin)], dim=1)

    source = examples(torch.full((40, 3, 4, 4), 0.5), [0] * 40)
    attacks = [Shift("dark", -0.2), Shift("bright", 0.2)]
    finished = _ask(model, source, 0.2, attacks=attacks, asking=Asking(20, 50, 64))
    assert [outcome.stage for outcome in finished] == ["bright"] * 40
    assert sum(outcome.attacked_right or 0 for outcome in finished) / 800 == pytest.approx(0.1, abs=0.04)


def test_the_clean_image_is_kept_where_attacks_only_help() -> None:
    source = examples(torch.full((20, 3, 4, 4), 0.5), [0] * 20)

    def brighter_is_better(images: Tensor) -> Tensor:
        brightness = images.mean(dim=(1, 2, 3))
        return torch.stack([brightness - 0.6, torch.zeros(len(images))], dim=1)

    finished = _ask(brighter_is_better, source, 0.2, attacks=[Shift("up", 0.2)])
    assert all(outcome.stage == "" and outcome.attacked_right == outcome.clean_right == 0 for outcome in finished)


@pytest.mark.parametrize(
    "attack",
    [PGD(0.01, 5), APGD(steps=5, targets=2), FAB(steps=5, targets=2), Square(queries=10)],
    ids=lambda a: a.name,
)
def test_any_attack_keeps_the_counted_image_with_the_lowest_margin(attack: Any) -> None:
    net, seen = small_net(dtype=torch.float64), dict[int, list[tuple[float, Tensor]]]()
    source = labelled_by(net, random_images(16))

    @dataclass(frozen=True)
    class Noting:
        """Passes everything on, and notes what is looked at."""

        inner: Any
        name: str = attack.name
        gradients: bool = attack.gradients
        works_in: tuple[type, ...] = attack.works_in
        most_passes: tuple[int, int] = attack.most_passes

        def start(self, examples: Examples, budget: Budget, draws: RandomSource) -> Any:
            return self.inner.start(examples, budget, draws)

        def ask(self, state: Any) -> Query:
            return self.inner.ask(state)  # type: ignore[no-any-return]

        def tell(self, state: Any, answer: Answer) -> Any:
            query = self.inner.ask(state)
            for row, slot in enumerate(query.rows.tolist()):
                if bool(query.counts[row]) and not bool(state.done[slot]):
                    logits, label = answer.logits[row].numpy(), int(state.examples.labels[slot])
                    lead = logits[label] - max(value for index, value in enumerate(logits) if index != label)
                    image = query.render(slice(row, row + 1))[0].clone()
                    seen.setdefault(slot, []).append((float(lead), image))
            return self.inner.tell(state, answer)

    stages = [stage_to_the_end(Noting(attack))]
    finished = list(drive(stages, Classifier(net), source, budget=LinfBall(0.05), slots=16))
    assert len(finished) == 16
    assert seen
    for slot, outcome in enumerate(sorted(finished, key=lambda outcome: outcome.index)):
        met = seen.get(slot)
        expected = min(met, key=lambda pair: pair[0])[1] if met else source[slot].image
        assert torch.equal(outcome.finals[attack.name], expected)


def test_only_what_hands_over_an_image_is_an_attack_that_ends() -> None:
    assert isinstance(ToTheEnd(RAND[0]), EndingAttack)
    assert not isinstance(RAND[0], EndingAttack)


# --- passes, memory, broken answers


def test_passes_are_those_of_the_formula() -> None:
    """Means over 5 draws: the clean image, 2 stages of 7 looks, 3 candidates; then 20 asks about 2 images."""
    model, source, _, _ = _scene()
    classifier = Classifier(model)
    stages = [stage_to_the_end(attack) for attack in RAND]
    asking = Asking(20, 5, 64)
    list(drive_by_asking(stages, classifier, source[:64], asking=asking, budget=LinfBall(0.01), seed=0, slots=64))
    assert classifier.passes.backward == 64 * 5 * 2 * 7
    assert classifier.passes.forward == 64 * (5 * (1 + 2 * 7 + 3) + 2 * 20)


def test_out_of_memory_halves_the_slots_for_good() -> None:
    source = labelled_by(small_net(), random_images(70))
    events: list[dict[str, Any]] = []
    stages = [stage_to_the_end(attack) for attack in RAND]
    stream = drive_by_asking(
        stages,
        Classifier(RunsOut(20, "out of memory")),
        source,
        asking=Asking(20, 2, 64),
        budget=LinfBall(0.02),
        seed=0,
        slots=64,
        on_event=lambda kind, details: events.append(details) if kind == "slots halved" else None,
    )
    assert sorted(outcome.index for outcome in stream) == list(range(70))
    assert events == [{"slots": 32}, {"slots": 16}]


def test_answers_that_are_no_numbers_err_the_example() -> None:
    net = small_net()
    calls = [0]

    def later_nan(images: Tensor) -> Tensor:
        calls[0] += 1
        answer: Tensor = net(images)
        broken = (torch.arange(len(images)) == 3) & (calls[0] > 5 * (1 + 2 * 7 + 3) + 4)
        return answer.where(~broken[:, None], torch.nan)

    finished = _ask(later_nan, labelled_by(net, random_images(20)), 0.02)
    assert [outcome.index for outcome in finished if outcome.error] == [3]
    assert finished[3].error == "the logits are not finite when asked again"
    assert (finished[3].clean_right, finished[3].attacked_right, finished[3].image) == (0, 0, None)

    def never(images: Tensor) -> Tensor:
        answer: Tensor = net(images)
        return answer * torch.nan

    for outcome in _ask(never, labelled_by(net, random_images(20)), 0.02):
        assert outcome.error == "the logits of the clean image are not finite"
        assert (outcome.clean_right, outcome.attacked_right) == (0, 0)
