"""Every stage of AutoAttack, and all together, where a model or a budget is extreme."""

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import robench
from robench.attacks.apgd import APGD
from robench.attacks.autoattack import AutoAttack
from robench.attacks.drive import Example, Finished, Stage, drive
from robench.attacks.fab import FAB, to_hyperplane
from robench.attacks.interface import Attack
from robench.attacks.pgd import PGD
from robench.attacks.square import Square
from robench.audits import ZERO_GRADIENT
from robench.budgets import BUDGETS, LinfBall
from robench.classifier import Classifier
from robench.data.mini import attack_set
from tests.attacks.test_autoattack import write_protocol
from tests.fakes import Linear, examples, labelled_by, random_images, small_net

STEPS, TARGETS, QUERIES = 6, 9, 20
CASCADE = AutoAttack(steps=STEPS, targets=TARGETS, queries=QUERIES).stages()
PARTS: dict[str, tuple[Attack, ...]] = {stage.name: (stage,) for stage in CASCADE} | {"cascade": CASCADE}
every_norm = pytest.mark.parametrize("norm", sorted(BUDGETS))
every_part = pytest.mark.parametrize("name", PARTS)
GRADIENTS = [stage.name for stage in CASCADE if stage.gradients]


def _run(
    model: Any, source: list[Example], name: str, norm: str, epsilon: float, **settings: Any
) -> tuple[list[Finished], list[dict[str, Any]]]:
    """Outcomes in order, and what was told of a gradient of zero."""
    told: list[dict[str, Any]] = []
    stream = drive(
        [Stage(attack) for attack in PARTS[name]],
        Classifier(model),
        source,
        budget=BUDGETS[norm](epsilon),
        on_event=lambda kind, details: told.append(details) if kind == "zero gradient" else None,
        **settings,
    )
    return sorted(stream, key=lambda finished: finished.index), told


# --- radii


@every_norm
def test_radius_zero_leaves_a_cascade_nothing_to_find(tmp_path: Path, norm: str) -> None:
    protocol = write_protocol(tmp_path)
    protocol.write_text(protocol.read_text().replace('"4/255"', '"0"').replace('"linf"', f'"{norm}"'))
    result = robench.evaluate("mini-resnet", protocol, limit=24, run_dir=tmp_path / "run")
    assert len({metric.numerator for metric in result.metrics}) == 1
    assert result.clean.numerator > 0
    for outcome in result.read_outcomes():
        assert (outcome.attacked, outcome.attacked_margin) == (outcome.clean, outcome.clean_margin)
        assert (outcome.fooled_at, outcome.stage, outcome.error, outcome.unconfirmed) == ((), "", "", 0)


@every_norm
@every_part
def test_radius_one_stays_inside_ball_and_box(name: str, norm: str) -> None:
    """Under L-inf nothing but the box is left."""
    net, images = small_net(classes=10), random_images(24)
    finished, _ = _run(net, labelled_by(net, images), name, norm, 1.0, slots=16)
    assert not any(outcome.error for outcome in finished)
    fooled = [outcome for outcome in finished if outcome.image is not None]
    assert len(fooled) > (0 if name == "square" else 12)
    for outcome in fooled:
        assert outcome.image is not None
        change = (outcome.image - images[outcome.index]).double()
        assert float(change.abs().max() if norm == "linf" else change.square().sum().sqrt()) <= 1 + 1e-6
        assert float(outcome.image.min()) >= 0
        assert float(outcome.image.max()) <= 1
        assert int(net(outcome.image[None]).argmax()) == outcome.attacked_prediction != outcome.label


# --- few examples, few classes


@every_norm
@every_part
def test_one_example_alone_fares_as_in_company(name: str, norm: str) -> None:
    net = small_net(classes=10, dtype=torch.float64)
    source = labelled_by(net, random_images(20))
    epsilon = {"linf": 0.02, "l2": 0.15}[norm]
    together, _ = _run(net, source, name, norm, epsilon)
    fooled = [bool(outcome.fooled_at) for outcome in together]
    chosen = {fooled.index(True), fooled.index(False)} if any(fooled) and not all(fooled) else {0}
    for index in chosen:
        assert _run(net, [source[index]], name, norm, epsilon, slots=1)[0] == [together[index]]


class Counting(nn.Module):
    """Ranks its classes by number whatever it is shown, with a slope; counts images and gradients itself."""

    def __init__(self, classes: int) -> None:
        super().__init__()
        self.classes = classes
        self.shown = self.gradients = 0

    def forward(self, images: Tensor) -> Tensor:
        self.shown += len(images)
        if images.requires_grad:
            images = images.view_as(images)
            register: Any = images.register_hook  # torch leaves it untyped
            register(self._count)
        ramp = -torch.arange(self.classes, dtype=torch.float32)
        return ramp + 1e-3 * images.flatten(1).mean(dim=1, keepdim=True) * ramp.square()

    def _count(self, gradient: Tensor) -> None:
        self.gradients += len(gradient)


@every_norm
@pytest.mark.parametrize("classes", [2, 3, 9, 10, 11])
def test_targets_are_as_many_as_there_are_wrong_classes_and_at_most_those_asked_for(classes: int, norm: str) -> None:
    """Also with fewer than the four logits that the targeted loss compares."""
    model = Counting(classes).eval()
    source = examples(random_images(16, 4), [0] * 16)
    finished, _ = _run(model, source, "cascade", norm, 0.01, slots=16)
    assert not any(outcome.fooled_at or outcome.error for outcome in finished)
    targets = min(TARGETS, classes - 1)
    gradients = (STEPS + 1) + targets * (STEPS + 1) + targets * STEPS
    assert model.gradients == 16 * gradients
    assert model.shown == 16 * (1 + gradients + targets * STEPS + QUERIES + 1)


# --- logits


@pytest.mark.parametrize("engine", ["native", "reference"])
def test_equal_logits_are_a_margin_of_zero_and_the_first_class(tmp_path: Path, engine: Any) -> None:
    class Equal(nn.Module):
        def forward(self, images: Tensor) -> Tensor:
            return images.flatten(1).sum(dim=1, keepdim=True).expand(-1, 10)

    data = random_images(20, 16), torch.tensor([0] * 12 + [3] * 8)
    protocol = write_protocol(tmp_path)
    options = robench.evaluation.Options(engine=engine)
    result = robench.evaluate(Equal().eval(), protocol, data=data, run_dir=tmp_path / "run", options=options)
    assert [metric.numerator for metric in result.metrics] == [12] * 5
    for outcome in result.read_outcomes():
        assert (outcome.clean, outcome.attacked, outcome.clean_margin, outcome.attacked_margin) == (0, 0, 0, 0)
        assert (outcome.fooled_at, outcome.error) == ((), "")


@pytest.mark.parametrize("label", [0, 1])
@every_part
def test_a_tie_that_an_attack_reaches_is_decided_as_a_clean_one_is(name: str, label: int) -> None:
    """Beyond the boundary both logits are equal, and the first class wins: class 0 never falls, class 1 does."""

    class Flat(nn.Module):
        def forward(self, images: Tensor) -> Tensor:
            lead = (images.mean(dim=(1, 2, 3)) - 0.5).clamp(min=0)[:, None]
            other = torch.zeros_like(lead)
            return torch.cat([lead, other] if label == 0 else [other, lead], dim=1)

    source = examples(torch.full((16, 3, 8, 8), 0.51), [label] * 16)
    finished, _ = _run(Flat().eval(), source, name, "linf", 0.1)
    assert {outcome.attacked_margin for outcome in finished} == {0.0}
    assert {bool(outcome.fooled_at) for outcome in finished} == {label == 1}
    assert {outcome.attacked_prediction for outcome in finished} == {0}
    assert not any(outcome.unconfirmed for outcome in finished)


class Scaled(nn.Module):
    """A network whose logits are multiplied."""

    def __init__(self, network: nn.Module, scale: float) -> None:
        super().__init__()
        self.network, self.scale = network, scale

    def forward(self, images: Tensor) -> Tensor:
        logits: Tensor = self.network(images) * self.scale
        return logits


@every_norm
def test_saturated_logits_blind_the_cross_entropy_alone(norm: str) -> None:
    net = small_net(classes=10, dtype=torch.float64)
    source = labelled_by(net, random_images(24))
    epsilon = {"linf": 0.02, "l2": 0.15}[norm]
    fallen: dict[tuple[str, float], set[int]] = {}
    for name in ("apgd-ce", "apgd-t", "fab-t", "square"):
        for scale in (1.0, 1e6):
            finished, told = _run(Scaled(net, scale).eval(), source, name, norm, epsilon)
            fallen[name, scale] = {outcome.index for outcome in finished if outcome.fooled_at}
            assert not any(outcome.error for outcome in finished)
            assert told == ([{"attack": name}] if (name, scale) == ("apgd-ce", 1e6) else [])
    for name in ("apgd-t", "fab-t", "square"):
        assert fallen[name, 1e6] == fallen[name, 1.0] != set()
    assert fallen["apgd-ce", 1e6] < fallen["apgd-ce", 1.0]


def test_saturated_logits_give_caveats_and_no_better_score(tmp_path: Path) -> None:
    pixels, labels = attack_set()
    data, protocol = (pixels[:20], labels[:20]), write_protocol(tmp_path)
    network = robench.load_model("mini-resnet-adv")
    plain = robench.evaluate(network, protocol, data=data, run_dir=tmp_path / "plain")
    steep = robench.evaluate(Scaled(network, 1e6).eval(), protocol, data=data, run_dir=tmp_path / "steep")
    assert plain.caveats == ()
    assert any("gradient of the cross-entropy is exactly zero" in caveat for caveat in steep.caveats)
    assert ZERO_GRADIENT.format(attack="apgd-ce") in steep.caveats
    assert plain.headline.numerator == steep.headline.numerator < steep.metrics[1].numerator


def test_large_logits_are_numbers_as_long_as_they_are_finite() -> None:
    """Their sum is none."""

    class Large(nn.Module):
        def forward(self, images: Tensor) -> Tensor:
            mean = images.mean(dim=(1, 2, 3))
            return torch.stack([torch.full_like(mean, 2e38), 1e38 * mean, torch.full_like(mean, 1e38)], dim=1)

    finished, _ = _run(Large().eval(), examples(random_images(16), [0] * 16), "square", "linf", 0.1)
    assert [(outcome.error, outcome.fooled_at, outcome.attacked_margin) for outcome in finished] == [
        ("", (), 1e38)
    ] * 16


# --- answers that are no numbers


class Brittle(nn.Module):
    """A network that breaks for images further than so much, under L-inf, from every third of its clean images.

    With `gradient` its logits stay numbers, and its slope does not. Further than `far` is another image.
    """

    far = float("inf")

    def __init__(self, network: nn.Module, clean: Tensor, reach: float, value: float, gradient: bool = False) -> None:
        super().__init__()
        self.network, self.clean = network, clean
        self.reach, self.value, self.gradient = reach, value, gradient

    def forward(self, images: Tensor) -> Tensor:
        change = images.detach().float()[:, None] - self.clean[None]
        distance, nearest = change.flatten(2).abs().amax(dim=2).min(dim=1)
        broken = (distance > self.reach) & (distance < self.far) & (nearest % 3 == 0)
        if not self.gradient:
            logits: Tensor = self.network(images)
            return logits.masked_fill(broken[:, None], self.value)
        if images.requires_grad:
            images = images.view_as(images)
            register: Any = images.register_hook  # torch leaves it untyped
            register(lambda slope: slope.masked_fill(broken[:, None, None, None], self.value))
        answer: Tensor = self.network(images)
        return answer


def _brittle_scene(
    value: float, gradient: bool = False, reach: float = 1e-4
) -> tuple[nn.Module, Brittle, list[Example]]:
    net, images = small_net(classes=10, dtype=torch.float64), random_images(24)
    return net, Brittle(net, images, reach, value, gradient).eval(), labelled_by(net, images)


@every_norm
@pytest.mark.parametrize("value", [torch.nan, torch.inf, -torch.inf])
@pytest.mark.parametrize("name", [stage.name for stage in CASCADE])
def test_logits_that_are_no_numbers_on_the_way_err_their_example_alone(name: str, norm: str, value: float) -> None:
    net, brittle, source = _brittle_scene(value)
    epsilon = {"linf": 0.02, "l2": 0.15}[norm]
    plain, _ = _run(net, source, name, norm, epsilon, slots=16)
    finished, _ = _run(brittle, source, name, norm, epsilon, slots=16)
    for before, outcome in zip(plain, finished, strict=True):
        if outcome.index % 3:
            assert outcome == before
        else:
            assert outcome.error == f"the logits are not finite at step 0 of {name}"
            assert (outcome.fooled_at, outcome.attacked_margin, outcome.image) == ((), 0.0, None)


@every_norm
@pytest.mark.parametrize("value", [torch.nan, torch.inf])
@pytest.mark.parametrize("name", [stage.name for stage in CASCADE])
def test_gradients_that_are_no_numbers_err_their_example_alone(name: str, norm: str, value: float) -> None:
    net, brittle, source = _brittle_scene(value, gradient=True)
    epsilon = {"linf": 0.02, "l2": 0.15}[norm]
    plain, _ = _run(net, source, name, norm, epsilon, slots=16)
    finished, _ = _run(brittle, source, name, norm, epsilon, slots=16)
    errors = 0
    for before, outcome in zip(plain, finished, strict=True):
        if outcome.index % 3 or name == "square" or outcome.fooled_at:
            assert outcome == before
            continue
        step = 1 if name == "fab-t" else 0  # FAB takes its first slope at the clean image
        assert outcome.error == f"the gradient is not finite at step {step} of {name}"
        errors += 1
    assert errors > 0 or name == "square"


@pytest.mark.parametrize("value", [torch.nan, torch.inf])
def test_a_cascade_goes_on_for_the_others_and_says_where_it_broke(value: float) -> None:
    net, brittle, source = _brittle_scene(value, reach=0.021)
    plain, _ = _run(net, source, "cascade", "linf", 0.02)
    finished, _ = _run(brittle, source, "cascade", "linf", 0.02)
    errors = {outcome.index: outcome.error for outcome in finished if outcome.error}
    assert 0 < len(errors) < 8
    left = {outcome.index for outcome in plain if outcome.stage not in ("apgd-ce", "apgd-t")}
    assert errors.keys() == {index for index in left if index % 3 == 0}
    assert all(error.endswith("of fab-t") for error in errors.values())  # it alone goes so far
    assert [o for o in finished if not o.error] == [o for o in plain if o.index not in errors]


def test_the_users_own_model_may_be_the_one_whose_answer_is_no_number() -> None:
    net, brittle, source = _brittle_scene(torch.nan)
    confirm, stages = Classifier(brittle), [Stage(attack) for attack in CASCADE]
    fallen = {outcome.index for outcome in _run(net, source, "cascade", "linf", 0.02)[0] if outcome.fooled_at}
    stream = drive(stages, Classifier(net), source, budget=LinfBall(0.02), confirm=confirm)
    finished = sorted(stream, key=lambda outcome: outcome.index)
    errors = [outcome for outcome in finished if outcome.error]
    assert {outcome.index for outcome in errors} == {index for index in fallen if index % 3 == 0} != set()
    assert all(outcome.error.startswith("the logits are not finite at step ") for outcome in errors)
    assert all(outcome.unconfirmed == 0 and not outcome.fooled_at for outcome in errors)
    read_off = [Stage(PGD(step_size=0.01, steps=4), frozenset({2, 4}))]
    fallen = {
        outcome.index
        for outcome in drive(read_off, Classifier(net), source, budget=LinfBall(0.02))
        if outcome.fooled_at
    }
    stream = drive(read_off, Classifier(net), source, budget=LinfBall(0.02), confirm=confirm)
    errors = [outcome for outcome in stream if outcome.error]
    assert {outcome.index for outcome in errors} == {index for index in fallen if index % 3 == 0} != set()


@pytest.mark.parametrize("read_off", [None, frozenset({1, 3})])
def test_a_step_cannot_be_taken_from_a_broken_gradient_though_the_image_there_fooled(
    read_off: frozenset[int] | None,
) -> None:
    """The image at step 1 fools the model that is attacked and has no gradient; the user's own may deny it."""
    net, _, source = _brittle_scene(0.0)
    stage = Stage(PGD(step_size=0.02, steps=3), read_off)
    plain = {o.index: o for o in drive([Stage(stage.attack)], Classifier(net), source, budget=LinfBall(0.02))}
    broken = _NoSlopeWhereFooled(net, source).eval()
    confirm = Classifier(_Stubborn(net, source).eval()) if read_off is None else Classifier(net)
    finished = list(drive([stage], Classifier(broken), source, budget=LinfBall(0.02), confirm=confirm))
    first = {index: outcome.fooled_at[0] for index, outcome in plain.items() if outcome.fooled_at}
    early = {index: f"the gradient is not finite at step {step} of pgd" for index, step in first.items() if step < 3}
    assert 0 < len(early) < len(source)
    assert {outcome.index: outcome.error for outcome in finished if outcome.error} == early


def test_what_broke_at_the_end_of_a_stage_is_forgotten_in_the_next() -> None:
    """Nobody takes a step from the last image, so the example goes on; Square's claims are denied and come back."""
    net, _, source = _brittle_scene(0.0)
    ascent, search = PGD(step_size=0.1, steps=1), Square(queries=100)
    steps = {o.index: o.fooled_at for o in drive([Stage(ascent)], Classifier(net), source, budget=LinfBall(0.1))}
    last = {index for index, fooled_at in steps.items() if fooled_at == (1,)}
    broken, stubborn = _NoSlopeWhereFooled(net, source).eval(), _Stubborn(net, source).eval()
    stages, budget = [Stage(ascent), Stage(search)], LinfBall(0.1)
    finished = list(drive(stages, Classifier(broken), source, budget=budget, confirm=Classifier(stubborn)))
    assert any(outcome.unconfirmed > 1 for outcome in finished if outcome.index in last)
    assert {outcome.index for outcome in finished if outcome.error} == {i for i, at in steps.items() if at == (0,)}


class _NoSlopeWhereFooled(nn.Module):
    """A model whose gradient is NaN at images that it takes for another class than their label."""

    def __init__(self, net: nn.Module, source: list[Example]) -> None:
        super().__init__()
        self.net, self.clean = net, torch.stack([example.image for example in source])
        self.labels = torch.tensor([example.label for example in source])

    def forward(self, images: Tensor) -> Tensor:
        logits: Tensor = self.net(images)
        nearest = (images.detach()[:, None] - self.clean[None]).flatten(2).abs().amax(dim=2).argmin(dim=1)
        fooled = logits.argmax(dim=1) != self.labels[nearest]
        if logits.requires_grad and bool(fooled.any()):

            def hook(slope: Tensor) -> Tensor:
                return torch.where(fooled[:, None], torch.nan, slope)

            logits.register_hook(hook)  # type: ignore[no-untyped-call]  # torch leaves it untyped
        return logits


class _Stubborn(_NoSlopeWhereFooled):
    """A model that is never fooled."""

    def forward(self, images: Tensor) -> Tensor:
        nearest = (images.detach()[:, None] - self.clean[None]).flatten(2).abs().amax(dim=2).argmin(dim=1)
        return nn.functional.one_hot(self.labels[nearest], self.net(images[:1]).shape[1]).to(images)


def test_a_result_with_an_errored_example_is_not_complete(tmp_path: Path) -> None:
    """`complete` alone can be submitted."""
    pixels, labels = attack_set()
    images = torch.from_numpy(pixels).float() / 255
    torch.manual_seed(0)
    linear = Linear(torch.randn(10, 3 * 64 * 64) / 1000, torch.zeros(10)).eval()
    right = (linear(images).argmax(dim=1) == torch.from_numpy(labels)).nonzero()[:, 0]
    assert len(right) > 20
    model = Brittle(linear, images[right[:4]], 1e-4, torch.nan).eval()
    model.far = 0.1
    results = [
        robench.evaluate(each, "mini-pgd-linf", run_dir=tmp_path / str(index))
        for index, each in enumerate((linear, model))
    ]
    assert [result.status for result in results] == ["complete", "partial"]
    assert [result.counts.errored for result in results] == [0, 2]
    assert results[1].clean.numerator == results[0].clean.numerator - 2  # they count as failures
    assert str(results[1]).endswith(", partial")
    errors = [outcome.error for outcome in results[1].read_outcomes() if outcome.error]
    assert errors == ["the logits are not finite at step 0 of pgd"] * 2


# --- neighbours


@every_norm
def test_the_way_to_a_plane_does_not_depend_on_the_neighbours(norm: str) -> None:
    """One that needs many steps, is out of reach or no number must not move the others in their last bits."""
    generator = torch.Generator().manual_seed(0)
    points = torch.rand(64, 3, 6, 6, generator=generator).double()
    normals = torch.randn(64, 3, 6, 6, generator=generator).double() ** 3
    reach = torch.where(normals > 0, 1 - points, -points)
    share = torch.rand(64, generator=generator).double()
    levels = ((points + share[:, None, None, None] * reach) * normals).sum(dim=(1, 2, 3))
    levels[5], normals[9] = 1e9, torch.nan
    budget = BUDGETS[norm](1.0)
    together = to_hyperplane(points, normals, levels, budget)
    for row in range(64):
        alone = to_hyperplane(points[[row] * 64], normals[[row] * 64], levels[[row] * 64], budget)
        assert torch.equal(alone[row].nan_to_num(7), together[row].nan_to_num(7))


def test_far_more_slots_than_examples_cost_nothing() -> None:
    net = small_net()
    source = labelled_by(net, random_images(5))
    stages = [Stage(APGD(steps=3)), Stage(FAB(steps=3, targets=2)), Stage(Square(queries=3))]
    few, many = (
        sorted(drive(stages, Classifier(net), source, budget=LinfBall(0.01), slots=slots), key=lambda o: o.index)
        for slots in (16, 10**14)
    )
    assert few == many
