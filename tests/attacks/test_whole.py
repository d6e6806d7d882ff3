"""The laws of attacks that own their loop; a new one adds a row to ATTACKS. And what foolbox itself says."""

import sys
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import foolbox
import numpy as np
import pytest
import torch
from torch import Tensor, nn

import robench
from robench.attacks import WHOLE
from robench.attacks.foolbox_attacks import Boundary, HopSkipJump, start_of
from robench.attacks.record import Example, Finished
from robench.attacks.whole import Look, WholeAttack, drive_whole
from robench.budgets import BUDGETS, TOLERANCE, Ball, Budget, L2Ball, LinfBall
from robench.classifier import Classifier
from robench.door import build_attack
from robench.errors import BudgetError, ProtocolError, RunError
from robench.protocol import parse_protocol
from robench.randomness import Draws, RandomSource
from tests.fakes import Linear, examples, labelled_by, random_images, small_net, two_class_linear

# (queries) -> the attack; every norm that it is made for.
ATTACKS: dict[str, Callable[[int], WholeAttack]] = {
    "boundary": lambda queries: Boundary(queries=queries, directions=40, spherical_step=0.1, source_step=0.1),
    "hopskipjump": lambda queries: HopSkipJump(queries=queries, directions=40, initial_gradient_eval_steps=20),
}
NORMS = {"boundary": ["l2"], "hopskipjump": ["l2", "linf"]}
ACCURACY = {("boundary", "l2"): 0.05, ("hopskipjump", "l2"): 0.05, ("hopskipjump", "linf"): 0.1}
"""How far beyond the closed-form margin the nearest image lies at most that is found in 3,000 queries."""
EVERY = [(name, norm) for name in ATTACKS for norm in NORMS[name]]
every_attack = pytest.mark.parametrize(("name", "norm"), EVERY)
MIDDLE = {"linf": 0.03, "l2": 0.3}
"""Radii at which some images of a small network fall."""


def _run(
    model: Any, source: list[Example], name: str, norm: str, epsilon: float, queries: int = 300, **settings: Any
) -> list[Finished]:
    stream = drive_whole(ATTACKS[name](queries), Classifier(model), source, budget=BUDGETS[norm](epsilon), **settings)
    return sorted(stream, key=lambda finished: finished.index)


def test_every_attack_has_its_row() -> None:
    known = {kind for attacks in WHOLE.values() for kind in attacks.values()}
    assert {type(attack(500)) for attack in ATTACKS.values()} == known
    assert all(attack(500).name == name for name, attack in ATTACKS.items())


@every_attack
def test_1_every_image_that_counts_is_inside_its_budget_and_fools(name: str, norm: str) -> None:
    net, order = small_net(), {"linf": torch.inf, "l2": 2}[norm]
    source = labelled_by(net, random_images(12))
    finished = _run(net, source, name, norm, MIDDLE[norm])
    fallen = [outcome for outcome in finished if outcome.fooled_at]
    assert 0 < len(fallen) < 12
    for outcome in fallen:
        assert outcome.image is not None
        change = (outcome.image - source[outcome.index].image).double().flatten()
        assert float(torch.linalg.vector_norm(change, ord=order)) <= MIDDLE[norm] + TOLERANCE
        assert bool(((outcome.image >= 0) & (outcome.image <= 1)).all())
        said = int(net(outcome.image[None]).argmax())
        assert said == outcome.attacked_prediction != outcome.label
        assert 1 <= outcome.fooled_at[0] <= 300
        assert (outcome.stage, outcome.error) == (name, "")
        assert outcome.attacked_margin <= 0


@every_attack
def test_2_a_success_that_the_users_model_denies_does_not_count(name: str, norm: str) -> None:
    net = small_net()
    source = labelled_by(net, random_images(8))
    label = source[0].label
    source = [example for example in source if example.label == label]

    def always_right(images: Tensor) -> Tensor:
        return torch.eye(4)[label].expand(len(images), 4)

    epsilon = {"linf": 0.5, "l2": 3.0}[norm]
    finished = _run(net, source, name, norm, epsilon, confirm=Classifier(always_right))
    assert all(not outcome.fooled_at and not outcome.error for outcome in finished)
    assert all(outcome.attacked_prediction == label and outcome.image is None for outcome in finished)
    assert sum(outcome.unconfirmed for outcome in finished) > 0


@every_attack
def test_3_outcomes_depend_on_the_example_alone(name: str, norm: str) -> None:
    """Exactly, for a float64 model: any order, any company, whatever the global random numbers were."""
    net = small_net(dtype=torch.float64)
    source = labelled_by(net, random_images(7))
    alone = _run(net, source, name, norm, MIDDLE[norm])
    fooled = [bool(outcome.fooled_at) for outcome in alone]
    assert any(fooled)
    assert not all(fooled)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(7)
        assert _run(net, source[::-1], name, norm, MIDDLE[norm], slots=5) == alone
    halves = [*_run(net, source[:3], name, norm, MIDDLE[norm]), *_run(net, source[3:], name, norm, MIDDLE[norm])]
    assert halves == alone
    assert _run(net, source, name, norm, MIDDLE[norm], seed=1) != alone


@every_attack
def test_4_radius_zero_changes_nothing(name: str, norm: str) -> None:
    net = small_net()
    for outcome in _run(net, labelled_by(net, random_images(6)), name, norm, 0.0):
        assert not outcome.fooled_at
        assert outcome.image is None
        assert outcome.attacked_margin == outcome.clean_margin


@every_attack
def test_4_more_queries_never_leave_more(name: str, norm: str) -> None:
    net = small_net()
    source = labelled_by(net, random_images(6))
    steps = [
        [min(outcome.fooled_at, default=10**6) for outcome in _run(net, source, name, norm, MIDDLE[norm], queries)]
        for queries in (200, 400)
    ]
    for few, many in zip(*steps, strict=True):
        assert many == few if few < 200 else many >= 200


@every_attack
def test_5_on_a_linear_model_it_comes_close_to_the_margin_and_never_below(name: str, norm: str) -> None:
    size = 4
    model = two_class_linear(size)
    images = random_images(6, size, low=0.3, high=0.7)
    source = labelled_by(model, images)
    weight = (model.weight[0] - model.weight[1]).detach().double()
    bias = float((model.bias[0] - model.bias[1]).detach())
    dual = float(torch.linalg.vector_norm(weight, ord={"linf": 1, "l2": 2}[norm]))
    needed = ((images.flatten(1).double() @ weight + bias).abs() / dual).tolist()
    near = [row for row, radius in enumerate(needed) if 1e-3 < radius < 0.2]
    assert len(near) >= 3
    for row in near[:3]:
        over, under = needed[row] * (1 + ACCURACY[name, norm]), needed[row] * (1 - 1e-3)
        (fallen,) = _run(model, [source[row]], name, norm, over, 3000)
        assert fallen.fooled_at
        (held,) = _run(model, [source[row]], name, norm, under, 600)
        assert not held.fooled_at


@every_attack
def test_6_model_images_and_random_state_are_left_as_found(name: str, norm: str) -> None:
    net = small_net()
    parameters = list(net.parameters())
    parameters[0].requires_grad_(False)
    before = [parameter.detach().clone() for parameter in parameters]
    flags = [parameter.requires_grad for parameter in parameters]
    images = random_images(6)
    kept, states = images.clone(), (torch.get_rng_state(), np.random.get_state()[1])  # type: ignore[index]
    classifier = Classifier(net)
    rows = classifier.minimum_rows
    list(drive_whole(ATTACKS[name](300), classifier, labelled_by(net, images), budget=BUDGETS[norm](MIDDLE[norm])))
    assert torch.equal(images, kept)
    assert torch.equal(states[0], torch.get_rng_state())
    assert np.array_equal(states[1], np.random.get_state()[1])  # type: ignore[index]
    assert [parameter.requires_grad for parameter in parameters] == flags
    assert all(torch.equal(now, then) for now, then in zip(parameters, before, strict=True))
    assert not any(part.training for part in net.modules())
    assert classifier.minimum_rows == rows


@every_attack
def test_it_ends_when_its_queries_are_used_up(name: str, norm: str) -> None:
    """And with what is left after the last of its own, it looks at the nearest image inside the budget."""
    net = small_net()
    source = labelled_by(net, random_images(4))
    classifier, attack = Classifier(net), ATTACKS[name](150)
    finished = list(drive_whole(attack, classifier, source, budget=BUDGETS[norm](1e-4)))
    assert not any(outcome.fooled_at for outcome in finished)
    assert attack.most_passes == (0, 150)
    assert (classifier.passes.forward, classifier.passes.backward) == (4 + 4 * 150, 0)


def test_examples_the_model_gets_wrong_are_not_attacked() -> None:
    net = small_net()
    right = labelled_by(net, random_images(6))
    source = examples(random_images(6), [(example.label + 1) % 4 for example in right])
    classifier = Classifier(net)
    finished = list(drive_whole(HopSkipJump(queries=600), classifier, source, budget=L2Ball(1.0)))
    assert all(o.clean_prediction != o.label and o.attacked_prediction == o.clean_prediction for o in finished)
    assert (classifier.passes.forward, classifier.passes.backward) == (6, 0)


# --- against foolbox itself


def _start_and_seed(classifier: Classifier, example: Example, attack: Boundary | HopSkipJump) -> tuple[Tensor, int]:
    """Where our attack of an example starts, and the seed under which foolbox's part of it runs."""
    draws = Draws.of(0, [example.id])

    def look(images: Tensor) -> Tensor:
        with classifier.unpadded():
            return classifier.logits(images)

    stream = f"{attack.name}/start"
    start = start_of(look, example.image, example.label, draws=draws, stream=stream, directions=attack.directions)
    assert start is not None
    high, low = draws.bits(f"{attack.name}/global", 2)[0].tolist()
    return start, high << 32 | low


@dataclass(frozen=True)
class Seen:
    """What foolbox's own attack found, and looked at on the way."""

    found: Tensor
    nearest: float


def _by_foolbox(net: nn.Module, example: Example, peer: Any, start: Tensor, seed: int, order: float) -> Seen:
    """A plain call of foolbox on its own model, and the nearest image it saw fool."""
    distances = []

    class Noting(nn.Module):
        def forward(self, images: Tensor) -> Tensor:
            logits: Tensor = net(images)
            if int(logits.argmax()) != example.label:
                change = (images[0] - example.image).double().flatten()
                distances.append(float(torch.linalg.vector_norm(change, ord=order)))
            return logits

    model = foolbox.PyTorchModel(Noting().eval(), bounds=(0, 1), device="cpu")
    with torch.random.fork_rng(devices=[]), torch.no_grad():
        torch.manual_seed(seed)
        labels = torch.tensor([example.label])
        found = peer.run(model, example.image[None], foolbox.criteria.Misclassification(labels), starting_points=start)
    return Seen(found[0], min(distances))


@every_attack
def test_verdicts_are_those_of_foolbox_under_the_same_seed(name: str, norm: str) -> None:
    """An example falls exactly where foolbox itself, left alone, sees an image inside the budget fool."""
    net, order, steps = small_net(), {"linf": torch.inf, "l2": 2.0}[norm], 5 if name == "hopskipjump" else 150
    peer: Any
    attack: Boundary | HopSkipJump
    if name == "hopskipjump":
        attack = HopSkipJump(queries=10**6, directions=40, initial_gradient_eval_steps=20, steps=steps)
        peer = foolbox.attacks.HopSkipJumpAttack(steps=steps, initial_gradient_eval_steps=20, constraint=norm)
    else:
        attack = Boundary(queries=10**6, directions=40, steps=steps)
        peer = foolbox.attacks.BoundaryAttack(steps=steps)
    classifier, verdicts = Classifier(net), []
    for example in labelled_by(net, random_images(6)):
        start, seed = _start_and_seed(classifier, example, attack)
        seen = _by_foolbox(net, example, peer, start[None], seed, order)
        last = float(torch.linalg.vector_norm((seen.found - example.image).flatten(), ord=order))
        for radius in (0.99 * last, 1.01 * last, 0.99 * seen.nearest):
            budget: Ball = BUDGETS[norm](radius)
            (outcome,) = drive_whole(attack, classifier, [example], budget=budget)
            clipped = peer.distance.clip_perturbation(example.image[None], seen.found[None], radius)
            by_foolbox = bool((net(clipped).argmax(dim=1) != example.label).item()) and last <= radius
            verdicts.append((by_foolbox, seen.nearest <= radius, bool(outcome.fooled_at)))
    assert all(ours or not theirs for theirs, _, ours in verdicts)
    assert sum(seen != ours for _, seen, ours in verdicts) == 0
    assert {ours for _, _, ours in verdicts} == {True, False}


# --- starts


def test_noise_of_several_grains_finds_a_start_where_noise_of_pixels_does_not() -> None:
    """A model that looks at large differences only calls every noise of pixels the same."""

    def halves(images: Tensor) -> Tensor:
        difference = (images[..., :16].mean(dim=(1, 2, 3)) - images[..., 16:].mean(dim=(1, 2, 3))).abs()
        return torch.stack([0.2 - difference, difference - 0.2], dim=1)

    clean = torch.full((3, 32, 32), 0.5)
    assert int(halves(torch.rand(300, 3, 32, 32, generator=torch.Generator().manual_seed(0))).argmax(dim=1).sum()) == 0
    start = start_of(halves, clean, 0, draws=Draws.of(0, ["a"]), stream="s", directions=500)
    assert start is not None
    assert int(halves(start[None]).argmax()) == 1
    again = start_of(halves, clean, 0, draws=Draws.of(0, ["a"]), stream="s", directions=500)
    assert again is not None
    assert torch.equal(start, again)


def test_without_a_start_the_example_is_robust_and_that_is_told() -> None:
    classifier = Classifier(lambda images: torch.tensor([[1.0, 0.0]]).expand(len(images), 2))
    events: list[tuple[str, dict[str, Any]]] = []
    attack, source = HopSkipJump(queries=200, directions=30), examples(random_images(3), [0, 0, 1])
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        stream = drive_whole(
            attack,
            classifier,
            source,
            budget=L2Ball(1.0),
            on_event=lambda kind, details: events.append((kind, details)),
        )
        finished = list(stream)
    assert [(bool(o.fooled_at), o.error, o.clean_prediction) for o in finished] == [(False, "", 0)] * 3
    assert events == [("no start", {"attack": "hopskipjump"})] * 2
    assert classifier.passes.forward == 3 + 2 * 30


# --- what goes wrong


@every_attack
def test_logits_that_are_no_numbers_err_the_example(name: str, norm: str) -> None:
    net = small_net()
    source = labelled_by(net, random_images(6))
    clean = torch.stack([example.image for example in source])

    def breaks_far_away(images: Tensor) -> Tensor:
        near = torch.cdist(images.flatten(1), clean.flatten(1)).amin(dim=1) < 1e-3
        answer: Tensor = net(images)
        return answer.where(near[:, None], torch.nan)

    for outcome in _run(breaks_far_away, source, name, norm, MIDDLE[norm]):
        assert outcome.error == f"the logits are not finite at step 1 of {name}"
        assert (outcome.fooled_at, outcome.attacked_margin) == ((), 0.0)


def test_a_model_that_contradicts_itself_costs_the_example() -> None:
    net, calls = small_net(), [0]
    source = labelled_by(net, random_images(3))
    clean = torch.stack([example.image for example in source])

    def fickle(images: Tensor) -> Tensor:
        calls[0] += 1
        answer: Tensor = net(images)
        near = torch.cdist(images.flatten(1), clean.flatten(1)).amin(dim=1) < 1e-3
        return answer.where(near[:, None], answer.roll(calls[0], dims=1))

    errors = {outcome.error for outcome in _run(fickle, source, "hopskipjump", "l2", 1e-3, 1000)}
    assert "foolbox was given two answers to the same image (AssertionError)" in errors | {""}
    assert errors != {""}


def test_an_attack_may_give_up() -> None:
    @dataclass(frozen=True)
    class Quitter:
        name = "quitter"
        gradients = False
        most_passes = (0, 3)

        def check(self, budget: Budget) -> None:
            return

        def run(self, look: Look, image: Tensor, label: int, *, budget: Ball, draws: RandomSource) -> None:
            from robench.attacks.whole import GaveUp

            look(image[None])
            raise GaveUp("enough")

    net = small_net()
    (outcome,) = drive_whole(Quitter(), Classifier(net), labelled_by(net, random_images(1)), budget=L2Ball(1.0))
    assert (outcome.error, outcome.fooled_at) == ("enough", ())


def test_several_images_may_be_looked_at_together_and_a_callables_memory_is_left() -> None:
    answers = torch.tensor([[1.0, 0.0], [0.0, 1.0]])
    seen: list[Tensor] = []

    @dataclass(frozen=True)
    class Pair:
        name = "pair"
        gradients = False
        most_passes = (0, 4)

        def check(self, budget: Budget) -> None:
            return

        def run(self, look: Look, image: Tensor, label: int, *, budget: Ball, draws: RandomSource) -> None:
            seen.append(look(torch.stack([image, 1 - image])))

    def model(images: Tensor) -> Tensor:
        return answers if len(images) == 2 else answers[:1].expand(len(images), 2)

    source = examples(random_images(1), [0])
    (outcome,) = drive_whole(
        Pair(), Classifier(model), source, budget=LinfBall(1.0), confirm=Classifier(lambda images: model(images[:1]))
    )
    assert outcome.unconfirmed == 1
    assert torch.equal(seen[0], answers[:1].expand(2, 2))
    assert torch.equal(answers, torch.tensor([[1.0, 0.0], [0.0, 1.0]]))


# --- protocols

OWN = """
schema = "robench.protocol/1"
id = "own"
version = 1
status = "draft"
title = "A decision-based attack"
summary = "For tests."
seed = 0
[data]
source = "mini"
count = 512
classes = 4
ids_sha256 = "{digest}"
crop = 8
[attack]
kind = "foolbox"
attack = "hopskipjump"
queries = 200
directions = 40
initial_gradient_eval_steps = 20
[budget]
norm = "l2"
epsilon = "3/10"
"""


def _content(**changes: Any) -> dict[str, Any]:
    import tomllib

    content = tomllib.loads(OWN.format(digest="0" * 64))
    content["score"] = changes.pop("score", {})
    content["budget"]["norm"] = changes.pop("norm", "l2")
    content["attack"] = {key: value for key, value in {**content["attack"], **changes}.items() if value is not None}
    return content


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"attack": None}, "`attack.attack` is missing; expected an attack of foolbox. Known: boundary, hopskipjump"),
        (
            {"attack": "hopskip"},
            "`attack.attack` is `hopskip`; expected an attack of foolbox. Did you mean `hopskipjump",
        ),
        ({"attack": 3}, "`attack.attack` is `3`; expected an attack of foolbox."),
        ({"queries": None}, "`attack.queries` is missing; expected a value. Add the key."),
        ({"step": 3}, "`attack.step` is unknown; expected a field. Did you mean `steps`"),
        ({"queries": 90}, "HopSkipJump: `queries` is 90; expected more than 90, which finding a start may take."),
        ({"directions": 0}, "HopSkipJump: `directions` is 0; expected at least 1."),
        ({"stepsize_search": "none"}, "HopSkipJump: `stepsize_search` is `none`; expected `geometric_progression` or"),
        ({"gamma": "0"}, "HopSkipJump: `gamma` is 0.0; expected more than 0."),
        (
            {"score": {"steps": [100]}},
            "`score.steps` is [100]; expected none with hopskipjump, which is scored at its end alone. Leave the key",
        ),
        ({"score": {"stages": ["hopskipjump"]}}, "`score.stages` is ['hopskipjump']; expected none with hopskipjump"),
        (
            {"attack": "boundary", "initial_gradient_eval_steps": None, "norm": "linf"},
            "boundary: `budget.norm` is LinfBall; expected `l2`.",
        ),
        (
            {"attack": "boundary", "initial_gradient_eval_steps": None, "step_adaptation": "1"},
            "Boundary: `step_adaptation` is 1.0; expected more than 1.",
        ),
    ],
)
def test_what_makes_no_sense_is_refused_at_the_door(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ProtocolError) as caught:
        build_attack(parse_protocol(_content(**changes), where="own.toml"))
    assert message in str(caught.value)
    assert str(caught.value).startswith("own.toml: ")


@pytest.mark.parametrize(
    ("attack", "norms"), [({"attack": "boundary", "initial_gradient_eval_steps": None}, "`l2`"), ({}, "`l2` or `linf`")]
)
def test_patches_are_no_budget_for_it(attack: dict[str, Any], norms: str) -> None:
    content = _content(**attack) | {"budget": {"kind": "patches", "area": "1/10", "patches": 4}}
    with pytest.raises(ProtocolError) as caught:
        build_attack(parse_protocol(content, where="own.toml"))
    assert str(caught.value) == (
        f"own.toml: {content['attack']['attack']}: `budget.kind` is `patches`; expected a ball of norm {norms}. "
        "Give a `norm` and an `epsilon` instead."
    )


def test_without_foolbox_the_door_says_what_to_install(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setitem(sys.modules, "foolbox", None)
    path = tmp_path / "own.toml"
    path.write_text(OWN.format(digest="0" * 64))
    with pytest.raises(RunError) as caught:
        robench.evaluate(small_net(), path, data=(random_images(4), [0] * 4), run_dir=tmp_path / "run")
    assert str(caught.value) == (
        "own.toml: robench: `foolbox` is not installed; expected it, for its attacks. "
        "Install it: `pip install 'robench[foolbox]'`."
    )
    assert not (tmp_path / "run").exists()


def test_a_budget_of_ones_own_is_refused() -> None:
    class Own(LinfBall):
        pass

    with pytest.raises(BudgetError, match=r"^hopskipjump: `budget\.norm` is Own; expected `l2` or `linf`\.$"):
        HopSkipJump(queries=1000).check(Own(0.1))


def test_ties_are_the_first_class_as_everywhere() -> None:
    """A model that says nothing is right on class 0 and never falls."""
    flat = Linear(torch.zeros(2, 48), torch.zeros(2)).eval()
    finished = _run(flat, examples(random_images(2, 4), [0, 0]), "hopskipjump", "l2", 1.0)
    assert not any(outcome.fooled_at or outcome.error for outcome in finished)
