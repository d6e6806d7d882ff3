import pytest
import torch

from robench.attacks.drive import Stage, drive
from robench.attacks.tpa import TPA
from robench.bench import CATALOGUE, Settings
from robench.bench import tpa as bench
from robench.bench.patch_loop import attack_by_loop
from robench.bench.scene import examples_of, scene
from robench.budgets import PatchArea
from robench.classifier import Classifier
from robench.errors import DataError
from robench.registry import load_protocol
from tests.fakes import noise_folder, random_images, small_net


@pytest.mark.parametrize("least", [1, 3])
def test_the_loop_comes_to_our_verdicts_by_our_queries(least: int) -> None:
    """Patches, searches that end early, and survivors: the loop is TPA, drawn from the same random numbers."""
    net = small_net()
    images = random_images(24)
    labels = net(images).argmax(dim=1)
    labels[0] = (labels[0] + 1) % 4  # wrong clean
    attack = TPA(**noise_folder(), rounds=6, queries=20, patches=2)
    budget = PatchArea(0.12, patches=2)
    loop = attack_by_loop(attack, net, images, labels, budget, seed=0, least=least)
    stream = drive([Stage(attack)], Classifier(net), examples_of(images, labels), budget=budget)
    ours = sorted(stream, key=lambda finished: finished.index)
    robust = [each.clean_prediction == each.label and not each.fooled_at for each in ours]
    assert loop.robust.tolist() == robust
    assert 2 < sum(robust) < 22
    shown = sum(each.queries or 0 for each in ours)
    assert loop.queries == shown if least == 1 else loop.queries > shown
    assert loop.seconds > 0


def test_both_sides_see_the_same_examples_and_agree(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bench, "ROUNDS", 2)
    monkeypatch.setattr(bench, "QUERIES", 20)
    monkeypatch.setattr(bench, "BUDGET", PatchArea(1 / 20, patches=4))
    found = CATALOGUE["tpa"].run(Settings("linear", images=16, repeats=1))
    assert found.examples == 16
    assert found.verdicts_differ == 0
    assert 0 < found.ours_robust == found.theirs_robust < 1
    details = found.details
    assert details["queries"] == pytest.approx(details["queries_per_second"] * found.ours_seconds)
    assert details["queries"] > 16 * 20
    assert found.overhead == pytest.approx(1 / details["share_of_forward_rate"])
    assert details["seconds_of_a_loop_that_stops_at_once"] > 0


def test_the_settings_are_those_of_the_protocol() -> None:
    protocol = load_protocol("mini-tpa")
    assert protocol.attack is not None
    assert (protocol.attack.settings["rounds"], protocol.attack.settings["queries"]) == (bench.ROUNDS, bench.QUERIES)
    assert protocol.budget is not None
    assert protocol.budget.model_dump()["area"] == "1/25"
    assert PatchArea(1 / 25, protocol.budget.model_dump()["patches"]) == bench.BUDGET


def test_patches_have_no_radius() -> None:
    with pytest.raises(DataError) as caught:
        CATALOGUE["tpa"].run(Settings("linear", epsilon="4/255"))
    assert str(caught.value) == "robench bench tpa: `epsilon` is 4/255; expected none: patches have no radius."


def test_a_linear_model_gets_the_images_right_that_it_was_fitted_to() -> None:
    model, images, labels = scene(Settings("linear", images=100))
    with torch.no_grad():
        assert torch.equal(model(images).argmax(dim=1), labels)
