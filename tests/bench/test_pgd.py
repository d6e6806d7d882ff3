import sys
from fractions import Fraction

import pytest
import torch

from robench.bench import CATALOGUE, Settings
from robench.bench import pgd as bench
from robench.bench.ruler import Ruler
from robench.classifier import Classifier
from robench.errors import DataError
from tests.fakes import random_images, two_class_linear


def test_both_sides_see_the_same_examples_and_agree(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bench, "STEPS", 5)
    found = CATALOGUE["pgd"].run(Settings("mini-resnet-adv", images=24, epsilon="4/255", repeats=2))
    assert found.examples == 24
    assert abs(found.ours_robust - found.theirs_robust) <= 2 / 24
    assert found.verdicts_differ <= 2
    assert found.ours_seconds > 0
    assert found.overhead is not None
    assert found.overhead > 0
    details = found.details
    assert (details["epsilon"], details["step_size"], details["steps"]) == ("4/255", "1/255", 5)
    assert abs(details["theirs_robust_on_fast_path"] - found.theirs_robust) <= 2 / 24


def test_a_radius_is_found_under_which_enough_survive(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bench, "STEPS", 3)
    found = CATALOGUE["pgd"].run(Settings("mini-resnet-adv", images=32, repeats=1))
    assert 0.6 <= found.ours_robust <= 0.75


def test_no_radius_is_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bench, "STEPS", 1)
    message = (
        r"^robench bench pgd: `epsilon` is none; expected a radius under which 60% to 75% survive\. Give `--epsilon`\.$"
    )
    with pytest.raises(DataError, match=message):
        CATALOGUE["pgd"].run(Settings("mini-resnet-adv", images=1, repeats=1))


def test_verdicts_of_both_are_those_of_the_closed_form() -> None:
    """On a linear model PGD succeeds exactly where the margin says it can."""
    model = two_class_linear(8)
    images = random_images(40, low=0.3, high=0.7)
    with torch.no_grad():
        logits = model(images)
    weight = model.weight.detach()
    reach = (logits[:, 0] - logits[:, 1]).abs() / (weight[0] - weight[1]).abs().sum()
    labels, epsilon = logits.argmax(dim=1), Fraction(float(reach.median())) + Fraction(1, 10**6)
    expected = reach > float(epsilon)
    assert expected.sum() == 20
    classifier = Classifier(model)
    ruler = Ruler(classifier, classifier, images)
    assert torch.equal(bench._ours(model, images, labels, epsilon, 0, ruler).robust, expected)
    assert torch.equal(bench._foolbox(model, images, labels, epsilon, 0, 16), expected)


def test_a_missing_peer_says_how_to_get_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "foolbox", None)
    with pytest.raises(DataError, match=r"`foolbox` is not installed; expected the peer\. Install it: `pip install"):
        bench._peer()
