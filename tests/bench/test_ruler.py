from types import SimpleNamespace

import pytest
from torch import Tensor

from robench.bench import ruler as module
from robench.bench.ruler import Pace, Ruler, best_size
from robench.classifier import Classifier, Passes
from tests.fakes import random_images, small_net


class Clock:
    """Seconds that pass when a test says so."""

    now = 100.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    found = Clock()
    monkeypatch.setattr(module, "time", SimpleNamespace(perf_counter=found))
    return found


@pytest.fixture
def looks(monkeypatch: pytest.MonkeyPatch, clock: Clock) -> list[tuple[str, int, bool]]:
    """Names, rows and gradients of the looks taken, each of which takes 20 ms."""
    taken: list[tuple[str, int, bool]] = []

    def pass_rate(classifier: Classifier, rows: Tensor, *, gradients: bool, repeats: int) -> float:
        taken.append((classifier.name, len(rows), gradients))
        classifier.passes.forward += len(rows)
        clock.now += 0.02
        return {16: 100.0, 32: 200.0, 64: 150.0}[len(rows)]

    monkeypatch.setattr(module, "pass_rate", pass_rate)
    return taken


def _ruler(**settings: bool) -> tuple[Ruler, Classifier]:
    net, images = small_net(), random_images(40)
    faster = Classifier(net, name="faster")
    return Ruler(faster, Classifier(net, name="own"), images, **settings), faster


def test_it_looks_at_the_size_that_is_fastest_and_leaves_no_trace(
    looks: list[tuple[str, int, bool]], clock: Clock
) -> None:
    ruler, faster = _ruler()
    expected = [("faster", 32, True), ("faster", 32, False), ("own", 32, False)]
    assert looks[-3:] == expected
    assert {size for _, size, _ in looks} == {16, 32, 64}  # 40 images fill more than half of 64, and not of 128
    faster.passes = Passes()
    ruler.restart()
    clock.now += 0.5
    seconds, pace = ruler.stop()
    assert (faster.passes, pace) == (Passes(), Pace(1 / 200, 1 / 200, 1 / 200))
    assert seconds == pytest.approx(0.5), "looks are not part of the run"
    assert pace.seconds(100, 200, 300) == pytest.approx(3)


def test_it_looks_again_while_the_run_goes_on(looks: list[tuple[str, int, bool]], clock: Clock) -> None:
    ruler, _ = _ruler(gradients=False)
    ruler.restart()
    looks.clear()
    for _ in range(42):
        clock.now += 0.13
        ruler(0, 0)
    seconds, pace = ruler.stop()
    assert len(looks) == 2 * (5 + 1), "one a second, and one in the end"
    assert seconds == pytest.approx(42 * 0.13)
    assert pace.gradient == 0


def test_looks_take_a_sixth_of_the_time_at_most(
    looks: list[tuple[str, int, bool]], clock: Clock, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "EVERY", 0.01)
    ruler, _ = _ruler(gradients=False)
    ruler.restart()
    looks.clear()
    for _ in range(100):
        clock.now += 0.011
        ruler(0, 0)
    assert len(looks) == 2 * 5, "of two models a look takes 40 ms, so 200 ms pass before the next"


def test_a_size_is_chosen_by_the_median_of_looks_that_take_turns(monkeypatch: pytest.MonkeyPatch) -> None:
    rates = {16: iter([50.0, 900.0, 50.0, 900.0, 50.0]), 32: iter([100.0] * 5)}
    order: list[int] = []

    def pass_rate(classifier: Classifier, rows: Tensor, *, gradients: bool, repeats: int) -> float:
        order.append(len(rows))
        return next(rates[len(rows)])

    monkeypatch.setattr(module, "pass_rate", pass_rate)
    assert best_size(Classifier(small_net()), random_images(20)) == 32
    assert order == [16, 32] * 5
