import pytest

from robench.attacks.autoattack import AutoAttack
from robench.bench import CATALOGUE, Settings
from robench.bench import autoattack as bench


def test_every_stage_stands_beside_the_references(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bench, "AutoAttack", lambda: AutoAttack(steps=5, targets=2, queries=20))
    found = CATALOGUE["autoattack"].run(Settings("mini-resnet-adv", images=24, repeats=1))
    assert abs(found.ours_robust - found.theirs_robust) <= 2 / 24
    assert found.overhead is not None
    assert found.overhead > 0
    table = found.details["stages"]
    assert [line["stage"] for line in table] == ["apgd-ce", "apgd-t", "fab-t", "square"]
    survivors = [line["ours_survivors"] for line in table]
    assert survivors == sorted(survivors, reverse=True)
    assert survivors[-1] == 24 * found.ours_robust
    assert table[0]["ours_gradient_passes"] >= 6 * survivors[0]
    assert table[3]["ours_label_passes"] >= 21 * survivors[3]
    assert table[0]["theirs_gradient_passes"] >= 6 * table[0]["theirs_survivors"]
    assert table[3]["theirs_label_passes"] >= 20 * table[3]["theirs_survivors"]
    assert table[2]["theirs_gradient_passes"] > 0, "FAB asks for gradients in its own way"
    assert table[-1]["verdicts_differ"] == found.verdicts_differ
    for line in table:
        assert line["verdicts_differ"] >= abs(line["ours_survivors"] - line["theirs_survivors"])
    assert sum(line["theirs_seconds"] for line in table) == pytest.approx(found.theirs_seconds, rel=0.05)


def test_a_stage_to_which_nothing_comes_has_no_ratio(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bench, "AutoAttack", lambda: AutoAttack(steps=5, targets=2, queries=20))
    found = CATALOGUE["autoattack"].run(Settings("mini-resnet", images=8, repeats=1, epsilon="1/4"))
    first, *rest = found.details["stages"]
    assert (first["ours_survivors"], first["theirs_survivors"]) == (0, 0)
    assert first["ratio"] > 0
    assert [(line["ratio"], line["overhead"]) for line in rest] == [(None, None)] * 3
