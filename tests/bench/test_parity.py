import pytest

from robench.attacks.apgd import APGD
from robench.bench import CATALOGUE, Settings
from robench.bench import parity as bench
from robench.bench.replay import replay


def test_three_radii_and_two_stages_give_the_references_verdicts(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bench, "APGD", lambda targets=0: APGD(steps=5, targets=targets and 2))
    found = CATALOGUE["parity"].run(Settings("mini-resnet-adv", images=24, repeats=1))
    lines = found.details["runs"]
    assert [(line["epsilon"], line["stage"]) for line in lines] == [
        (epsilon, stage) for epsilon in ("2/255", "4/255", "8/255") for stage in ("apgd-ce", "apgd-t")
    ]
    assert found.verdicts_differ == 0
    counts = [line["ours_robust"] for line in lines]
    assert counts[0] > counts[2] > counts[4]


def test_a_verdict_that_differs_is_counted(monkeypatch: pytest.MonkeyPatch) -> None:
    """Ours takes fewer steps than the reference."""
    monkeypatch.setattr(bench, "APGD", lambda targets=0: APGD(steps=8, targets=targets and 2))
    monkeypatch.setattr(bench, "replay", lambda attack, *rest: replay(APGD(steps=1, targets=attack.targets), *rest))
    found = CATALOGUE["parity"].run(Settings("mini-resnet-adv", images=32, repeats=1))
    assert found.verdicts_differ > 0
    assert found.ours_robust > found.theirs_robust
