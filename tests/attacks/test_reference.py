import sys
import weakref
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import robench
from robench.attacks.apgd import APGD
from robench.attacks.autoattack import AutoAttack
from robench.attacks.drive import Example, Finished
from robench.attacks.fab import FAB
from robench.attacks.interface import Attack
from robench.attacks.pgd import PGD
from robench.attacks.reference import attack_by_reference, check_model, check_reference, drive_by_reference
from robench.attacks.square import Square
from robench.budgets import LinfBall
from robench.classifier import Classifier
from robench.data import ArraySource
from robench.data.mini import attack_set
from robench.errors import BudgetError, ModelError, RunError
from robench.evaluation import Options
from tests.attacks.test_autoattack import SMALL, write_protocol
from tests.fakes import Linear, labelled_by, random_images, small_net, two_class_linear


def test_it_writes_the_same_kind_of_result(tmp_path: Path) -> None:
    protocol = write_protocol(tmp_path, SMALL)
    results = {
        engine: robench.evaluate(
            "mini-resnet-adv", protocol, limit=40, run_dir=tmp_path / engine, options=Options(engine=engine)
        )
        for engine in ("native", "reference")
    }
    ours, theirs = results["native"], results["reference"]
    assert theirs.engine == "reference"
    assert [metric.name for metric in theirs.metrics] == [metric.name for metric in ours.metrics]
    assert theirs.clean == ours.clean
    assert abs(theirs.headline.numerator - ours.headline.numerator) <= 2
    counts = [metric.numerator for metric in theirs.metrics]
    assert counts == sorted(counts, reverse=True)
    assert "by the reference implementation" in str(theirs)
    for outcome in theirs.read_outcomes():
        assert outcome.fooled_at == ((0,) if outcome.stage else ())
        assert bool(outcome.stage) == (outcome.clean_correct and outcome.attacked != outcome.label)


def test_the_same_call_reuses_the_run_and_another_engine_is_another_run(tmp_path: Path) -> None:
    protocol = write_protocol(tmp_path, SMALL)
    options = Options(engine="reference")
    first = robench.evaluate("mini-resnet", protocol, limit=16, run_dir=tmp_path / "run", options=options)
    assert robench.evaluate("mini-resnet", protocol, limit=16, run_dir=tmp_path / "run", options=options) == first
    with pytest.raises(RunError, match=r"`run key` is "):
        robench.evaluate("mini-resnet", protocol, limit=16, run_dir=tmp_path / "run")


def test_an_image_outside_the_budget_does_not_count(monkeypatch: pytest.MonkeyPatch) -> None:
    from pyautoattack.autopgd_base import APGDAttack

    net = small_net()
    images = random_images(12)
    labels = net(images).argmax(dim=1).tolist()
    source = [Example(row, f"{row}", labels[row], image) for row, image in enumerate(images)]
    monkeypatch.setattr(APGDAttack, "perturb", lambda self, clean, targets: torch.rand_like(clean))
    classifier = Classifier(net)
    found = list(drive_by_reference([APGD()], classifier, source, budget=LinfBall(0.01), seed=0, batch_size=8))
    assert not any(outcome.fooled_at for outcome in found)
    assert sum(outcome.unconfirmed for outcome in found) > 0


def test_the_callers_random_state_is_left() -> None:
    net, images = small_net(), random_images(4)
    before = torch.get_rng_state()
    stages = AutoAttack(steps=2, targets=1, queries=2).stages()
    labels = net(images).argmax(dim=1)
    list(attack_by_reference(stages, net, images, labels, budget=LinfBall(0.01), seed=0, batch_size=4))
    assert torch.equal(torch.get_rng_state(), before)


def test_what_the_reference_cannot_do_is_refused_at_the_door(tmp_path: Path) -> None:
    options = Options(engine="reference")
    with pytest.raises(RunError, match=r"^reference: `attack` is pgd; expected a stage of AutoAttack\.$"):
        robench.evaluate("mini-resnet", "mini-pgd-linf", run_dir=tmp_path / "a", options=options)
    with pytest.raises(RunError, match=r"^evaluate: `engine` is `theirs`; expected `native` or `reference`\.$"):
        robench.evaluate("mini-resnet", "mini-pgd-linf", options=Options(engine="theirs"))  # type: ignore[arg-type]
    images, labels = attack_set()
    network = robench.load_model("mini-resnet")
    with pytest.raises(ModelError, match=r"`model` is a bare callable; expected a module for the reference\."):
        robench.evaluate(
            lambda batch: network(batch),
            write_protocol(tmp_path, SMALL),
            data=(images[:16], labels[:16]),
            run_dir=tmp_path / "b",
            options=options,
        )


def test_other_budgets_are_refused() -> None:
    class Own(LinfBall):
        pass

    net, images = small_net(), random_images(2)
    stream = attack_by_reference(
        [APGD()], net, images, torch.zeros(2, dtype=torch.int64), budget=Own(0.1), seed=0, batch_size=2
    )
    with pytest.raises(BudgetError, match=r"^reference: `budget` is Own; expected LinfBall or L2Ball\.$"):
        next(stream)


def test_a_missing_reference_says_how_to_get_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "pyautoattack.autopgd_base", None)
    message = r"^reference: `pyautoattack` is not installed; expected the reference\. Install it: `pip install pyauto"
    with pytest.raises(RunError, match=message):
        check_reference([PGD(step_size=0.1, steps=1)])


def test_a_model_of_which_nothing_is_left_ends_early() -> None:
    net, images = small_net(), random_images(4)
    labels = net(images).argmax(dim=1)
    stages = AutoAttack(steps=10, targets=1, queries=2).stages()
    verdicts = list(attack_by_reference(stages, net, images, labels, budget=LinfBall(1.0), seed=0, batch_size=3))
    assert [verdict.stage for verdict in verdicts] == ["apgd-ce", "apgd-t", "fab-t", "square"]
    assert not bool(verdicts[0].robust.any())
    assert not bool(verdicts[-1].robust.any())


class Breaking(nn.Module):
    """A network that breaks a little away from every third of its clean images; other images are further than 0.2."""

    def __init__(self, network: nn.Module, clean: Tensor, *, gradient: bool = False, reach: float = 1e-4) -> None:
        super().__init__()
        self.network, self.clean, self.gradient, self.reach = network, clean[::3], gradient, reach

    def forward(self, images: Tensor) -> Tensor:
        distance = (images.detach()[:, None] - self.clean[None]).flatten(2).abs().amax(dim=2).amin(dim=1)
        broken = (distance > self.reach) & (distance < 0.2)
        if not self.gradient:
            logits: Tensor = self.network(images)
            return logits.masked_fill(broken[:, None], torch.nan)
        if images.requires_grad:
            images = images.view_as(images)
            register: Any = images.register_hook  # torch leaves it untyped
            register(lambda slope: slope.masked_fill(broken[:, None, None, None], torch.nan))
        answer: Tensor = self.network(images)
        return answer


def _drive(stages: Sequence[Attack], model: nn.Module, source: Sequence[Example], **settings: Any) -> list[Finished]:
    arguments: dict[str, Any] = {"budget": LinfBall(0.02), "seed": 0, "batch_size": 8, **settings}
    return list(drive_by_reference(stages, Classifier(model), source, **arguments))


@pytest.mark.parametrize("gradient", [False, True])
@pytest.mark.parametrize(
    "stage", [APGD(steps=4), APGD(steps=4, targets=2), FAB(steps=4, targets=2), Square(queries=4)], ids=lambda s: s.name
)
def test_what_is_no_number_errs_its_example_alone(stage: Attack, gradient: bool) -> None:
    net, images = small_net(classes=10), random_images(20)
    model = Breaking(net, images, gradient=gradient).eval()
    source = labelled_by(net, images)
    finished = _drive([stage], model, source)
    for outcome in finished:
        broken = outcome.index % 3 == 0 and not (gradient and stage.name == "square") and not outcome.fooled_at
        what = "gradient is" if gradient else "logits are"
        assert outcome.error == (f"the {what} not finite during {stage.name}" if broken else "")
        assert not outcome.error or (outcome.attacked_margin, outcome.image) == (0.0, None)
    assert gradient or not any(outcome.fooled_at for outcome in finished if outcome.index % 3 == 0)
    assert any(outcome.error for outcome in finished) or stage.name == "square"


def test_an_errored_example_is_left_alone_by_later_stages() -> None:
    net, images = small_net(classes=10), random_images(20)
    model, source = Breaking(net, images).eval(), labelled_by(net, images)
    finished = _drive(AutoAttack(steps=4, targets=2, queries=4).stages(), model, source)
    assert {o.error for o in finished if o.index % 3 == 0} == {"the logits are not finite during apgd-ce"}
    assert not any(outcome.error for outcome in finished if outcome.index % 3)


def test_clean_logits_that_are_no_numbers_are_an_outcome_and_can_be_written(tmp_path: Path) -> None:
    pixels, labels = attack_set()
    network = robench.load_model("mini-resnet")

    class Broken(nn.Module):
        """No number for one image beyond the first batch, which is looked at before."""

        def __init__(self, image: Tensor) -> None:
            super().__init__()
            self.network, self.image = network, image

        def forward(self, images: Tensor) -> Tensor:
            logits: Tensor = self.network(images)
            return logits.masked_fill((images - self.image).flatten(1).abs().amax(dim=1)[:, None] < 1e-6, torch.nan)

    data = ArraySource(pixels[:24], labels[:24])
    last = next(iter(data.images([23])))
    assert isinstance(last, Tensor)
    options = Options(engine="reference")
    protocol = write_protocol(tmp_path, SMALL)
    result = robench.evaluate(Broken(last).eval(), protocol, data=data, run_dir=tmp_path / "run", options=options)
    assert result.counts.errored == 1
    assert result.read_outcomes()[23].error == "the logits of the clean image are not finite"


@pytest.mark.parametrize(
    ("stages", "classes", "message"),
    [
        (AutoAttack().stages(), 9, "`classes` is 9; expected at least 10 for the reference's `apgd-t`. Ask for fewer"),
        (AutoAttack(targets=2).stages(), 3, "`classes` is 3; expected at least 4 for the reference's `apgd-t`."),
        ((FAB(targets=3),), 3, "`classes` is 3; expected at least 4 for the reference's `fab-t`."),
        ((APGD(loss="dlr"),), 2, "`classes` is 2; expected at least 3 for the reference's `apgd-dlr`."),
        (AutoAttack(targets=2).stages(), 4, ""),
        (AutoAttack().stages(), 10, ""),
        ((FAB(targets=1),), 2, ""),
        ((APGD(), Square()), 2, ""),
    ],
)
def test_too_few_classes_for_the_reference_are_named(stages: Sequence[Attack], classes: int, message: str) -> None:
    """And one more is enough, as the reference itself shows."""
    model = Linear(torch.randn(classes, 3 * 4 * 4) / 100, -torch.arange(classes, dtype=torch.float32)).eval()
    if message:
        with pytest.raises(ModelError) as caught:
            check_model(stages, Classifier(model, name="few"), classes)
        assert str(caught.value).startswith(f"few: {message}")
        return
    check_model(stages, Classifier(model), classes)
    small = {"steps": 2, "queries": 2}
    short = [replace(each, **{key: value for key, value in small.items() if key in vars(each)}) for each in stages]  # type: ignore[type-var]
    assert len(_drive(short, model, labelled_by(model, random_images(3, 4)))) == 3


def test_too_few_classes_are_found_at_the_door(tmp_path: Path) -> None:
    net, images = small_net(classes=3), random_images(16)
    data = images, net(images).argmax(dim=1)
    folder, options = tmp_path / "run", Options(engine="reference")
    with pytest.raises(ModelError, match=r"^Sequential: `classes` is 3; expected at least 4 for the reference's"):
        robench.evaluate(net, "mini-autoattack-linf@1", data=data, run_dir=folder, options=options)
    assert not folder.exists()


def test_a_set_of_which_nothing_is_right_is_no_trouble(tmp_path: Path) -> None:
    net, images = small_net(classes=10), random_images(20)
    data, options = (images, net(images).argmin(dim=1)), Options(engine="reference")
    result = robench.evaluate(net, write_protocol(tmp_path), data=data, run_dir=tmp_path / "run", options=options)
    assert [metric.numerator for metric in result.metrics] == [0] * 5
    assert result.counts.errored == 0


def test_an_image_that_does_not_count_leaves_the_example_to_the_next_stage(monkeypatch: pytest.MonkeyPatch) -> None:
    from pyautoattack.autopgd_base import APGDAttack

    model = two_class_linear(8)
    source = labelled_by(model, random_images(16))
    alone = _drive([Square(queries=30)], model, source)
    monkeypatch.setattr(APGDAttack, "perturb", lambda self, clean, targets: 1 - clean)  # of the other class
    after = _drive([APGD(), Square(queries=30)], model, source)
    assert {o.index for o in after if o.fooled_at} == {o.index for o in alone if o.fooled_at} != set()
    assert {o.stage for o in after} <= {"square", ""}
    assert [outcome.unconfirmed for outcome in after] == [1] * 16


def test_its_images_can_be_saved_and_its_passes_are_counted(tmp_path: Path) -> None:
    protocol, folder = write_protocol(tmp_path), tmp_path / "images"
    options = Options(engine="reference", save_adversarial=folder)
    result = robench.evaluate("mini-resnet", protocol, limit=16, run_dir=tmp_path / "run", options=options)
    fooled = sum(bool(outcome.fooled_at) for outcome in result.read_outcomes())
    assert len(list(folder.glob("*.npy"))) == fooled > 0
    right = result.clean.numerator
    assert result.cost["backward"] >= right * 6 + (right - fooled) * (2 * 6 + 2 * 5)


def test_a_float64_model_is_shown_float64_images() -> None:
    net = small_net(classes=10, dtype=torch.float64)
    source = labelled_by(net, random_images(12))
    finished = _drive(AutoAttack(steps=4, targets=2, queries=4).stages(), net, source)
    assert any(outcome.fooled_at for outcome in finished)


def test_a_gradient_of_zero_is_told_once_for_each_stage_and_not_as_a_warning() -> None:
    class Steep(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.network = small_net(classes=10)

        def forward(self, images: Tensor) -> Tensor:
            logits: Tensor = self.network(images)
            return logits.detach() + 0 * logits

    told: list[Any] = []
    stages = AutoAttack(steps=3, targets=2, queries=3).stages()
    model = Steep().eval()
    _drive(stages, model, labelled_by(model, random_images(12)), on_event=lambda *event: told.append(event))
    assert told == [("zero gradient", {"attack": name}) for name in ("apgd-ce", "apgd-t", "fab-t")]


@pytest.mark.parametrize("stage", [APGD(steps=40), APGD(steps=20, targets=2), FAB(steps=20, targets=2)])
def test_images_of_steps_that_are_over_are_not_kept(stage: Attack) -> None:
    shown: list[weakref.ref[Tensor]] = []
    most = 0

    class Watching(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.inner = small_net()

        def forward(self, images: Tensor) -> Tensor:
            nonlocal most
            shown.append(weakref.ref(images))
            most = max(most, sum(each() is not None for each in shown))
            logits: Tensor = self.inner(images)
            return logits

    images = random_images(8)
    model = Watching().eval()
    with torch.no_grad():
        labels = model(images).argmax(dim=1)
    budget = LinfBall(0.001)  # nearly nothing falls, so that steps are made
    (verdict,) = attack_by_reference([stage], model, images, labels, budget=budget, seed=0, batch_size=8)
    assert verdict.robust.any()
    assert not verdict.images.requires_grad
    assert most <= 8
