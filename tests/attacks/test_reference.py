import sys
from pathlib import Path

import pytest
import torch

import robench
from robench.attacks.apgd import APGD
from robench.attacks.autoattack import AutoAttack
from robench.attacks.drive import Example
from robench.attacks.pgd import PGD
from robench.attacks.reference import attack_by_reference, check_reference, drive_by_reference
from robench.budgets import LinfBall
from robench.classifier import Classifier
from robench.data.mini import attack_set
from robench.errors import BudgetError, ModelError, RunError
from robench.evaluation import Options
from tests.attacks.test_autoattack import SMALL, write_protocol
from tests.fakes import random_images, small_net


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
