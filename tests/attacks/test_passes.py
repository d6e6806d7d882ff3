"""What AutoAttack shows the model of an example that withstands it, counted by the model itself."""

import pytest

from robench.attacks.autoattack import AutoAttack
from robench.attacks.drive import Stage, drive
from robench.budgets import BUDGETS
from robench.classifier import Classifier
from tests.attacks.test_corners import Counting
from tests.fakes import examples, random_images

SLOTS = 16


def _counted(attacks: AutoAttack, norm: str, count: int) -> list[tuple[str, float, float]]:
    """Passes with and without gradient per example, of each stage alone and then of all; the clean one left out."""
    parts = [(stage.name, (stage,)) for stage in attacks.stages()]
    table = []
    for name, stages in [*parts, ("together", attacks.stages())]:
        model = Counting(10).eval()
        source = examples(random_images(count, 4), [0] * count)
        stream = drive(
            [Stage(each) for each in stages], Classifier(model), source, budget=BUDGETS[norm](0.01), slots=SLOTS
        )
        finished = list(stream)
        assert len(finished) == count
        assert not any(outcome.fooled_at or outcome.error or outcome.unconfirmed for outcome in finished)
        table.append((name, model.gradients / count, (model.shown - count - model.gradients) / count))
    return table


def _formula(steps: int, targets: int, queries: int) -> list[tuple[str, float, float]]:
    """As published: APGD looks once at its start and once after each step, Square too; FAB twice in each step."""
    parts = [
        ("apgd-ce", steps + 1.0, 0.0),
        ("apgd-t", targets * (steps + 1.0), 0.0),
        ("fab-t", targets * float(steps), targets * float(steps)),
        ("square", 0.0, queries + 1.0),
    ]
    return [*parts, ("together", sum(part[1] for part in parts), sum(part[2] for part in parts))]


@pytest.mark.parametrize("norm", sorted(BUDGETS))
@pytest.mark.parametrize(
    ("count", "steps", "targets", "queries"),
    [(SLOTS, 5, 9, 50), (3 * SLOTS, 3, 4, 20), (SLOTS, 23, 4, 7), (SLOTS, 1, 1, 1)],
)
def test_passes_are_those_of_the_settings(norm: str, count: int, steps: int, targets: int, queries: int) -> None:
    """Exactly, with as many examples as slots; and as many with full slots all the way."""
    attacks = AutoAttack(steps=steps, targets=targets, queries=queries)
    assert _counted(attacks, norm, count) == _formula(steps, targets, queries)
    for stage, (name, gradients, labels) in zip(attacks.stages(), _formula(steps, targets, queries), strict=False):
        assert (stage.name, *map(float, stage.most_passes)) == (name, gradients, labels)


@pytest.mark.slow
@pytest.mark.parametrize("norm", sorted(BUDGETS))
def test_passes_of_the_standard_settings(norm: str) -> None:
    expected = [("apgd-ce", 101, 0), ("apgd-t", 909, 0), ("fab-t", 900, 900), ("square", 0, 5001)]
    found = _counted(AutoAttack(), norm, SLOTS)
    print(*found, sep="\n")
    assert found[:4] == expected
    assert found[4][1:] == (1910, 5901)


def test_the_tail_of_a_batch_is_the_only_waste() -> None:
    """The last batch is padded in every pass, the clean one too."""
    count, padded = 2 * SLOTS + 3, 3 * SLOTS
    attacks, expected = AutoAttack(steps=5, targets=3, queries=20), _formula(5, 3, 20)
    for found, needed in zip(_counted(attacks, "linf", count)[:4], expected[:4], strict=True):
        for counted, passes, clean in zip(found[1:], needed[1:], (0, padded - count), strict=True):
            assert passes * count <= round(counted * count) <= passes * padded + clean
