import json
from pathlib import Path

import pytest
import torch

from robench.attacks.autoattack import AutoAttack
from robench.bench import CATALOGUE, Settings
from robench.bench import equivalence as bench
from robench.errors import DataError


@pytest.fixture
def few_steps(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bench, "AutoAttack", lambda: AutoAttack(steps=3, targets=2, queries=10))


@pytest.mark.usefixtures("few_steps")
def test_a_bench_of_hours_goes_on_from_its_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    settings = Settings("mini-resnet-adv", images=20, repeats=2, folder=tmp_path)
    first = CATALOGUE["equivalence"].run(settings)
    kept = sorted(tmp_path.iterdir())
    assert len(kept) == 4
    assert (
        first.details["ours_robust_by_seed"][0] == 20 * first.ours_robust * 2 - first.details["ours_robust_by_seed"][1]
    )

    def not_again(*_: object) -> torch.Tensor:
        raise AssertionError("it was done before")

    monkeypatch.setattr(bench, "_ours", not_again)
    monkeypatch.setattr(bench, "_theirs", not_again)
    assert CATALOGUE["equivalence"].run(settings) == first
    content = json.loads(kept[0].read_text())
    assert len(content["robust"]) == 20


def test_one_seed_compares_nothing() -> None:
    with pytest.raises(DataError, match=r"^robench bench equivalence: `repeats` is 1; expected at least 2 seeds"):
        CATALOGUE["equivalence"].run(Settings("mini-resnet-adv", images=4, repeats=1))


def test_disagreement_is_that_of_all_pairs() -> None:
    one = torch.tensor([[True, True, False], [True, False, False]])
    other = torch.tensor([[True, True, True], [False, True, False], [True, True, True]])
    expected = [sum(bool(a[row] != b[row]) for a in one for b in other) / 6 for row in range(3)]
    assert bench.disagreement(one, other).tolist() == pytest.approx(expected)
    assert bench.disagreement(one, one).tolist() == [0.0, 1.0, 0.0]


def test_the_bound_is_that_of_the_normal_approximation() -> None:
    values = torch.rand(4000, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    expected = float(values.mean()) + 1.645 * float(values.std()) / 4000**0.5
    assert bench.upper_bound(values) == pytest.approx(expected, abs=2e-4)


def test_an_attack_that_is_weaker_is_not_equivalent(monkeypatch: pytest.MonkeyPatch) -> None:
    """The reference at its settings beside ours that gives up at once."""
    stages = AutoAttack(steps=3, targets=2, queries=10)
    monkeypatch.setattr(bench, "AutoAttack", lambda: stages)
    monkeypatch.setattr(bench, "_ours", lambda *arguments: torch.ones(40, dtype=torch.bool))
    found = CATALOGUE["equivalence"].run(Settings("mini-resnet-adv", images=40, repeats=2))
    assert found.theirs_robust < 0.9
    assert found.details["differ_more"] > 0.1
    assert found.details["equivalent"] is False
