"""The simulation does what follows by hand; the formula says what the simulation does."""

import statistics

import pytest

from robench.bench.simulation import simulate
from robench.forecast import FALLEN, Assumptions, Work, forecast

CALM = Assumptions(start_seconds=0.0, failure_hours=1e12, stragglers=0.0)
ALIKE = Work("alike", examples=640, surviving_seconds=2.0)


@pytest.mark.parametrize(("workers", "seconds"), [(1, 1280), (2, 640), (4, 320), (8, 160), (40, 32), (1000, 32)])
def test_equal_shards_are_spread_evenly(workers: int, seconds: float) -> None:
    """40 shards of 32 seconds; no more than 40 workers find one."""
    assert simulate([ALIKE], workers, CALM).wall_seconds == pytest.approx(seconds)


def test_fallen_examples_cost_what_the_formula_says() -> None:
    work = Work("falling", examples=160, surviving_seconds=2.0, survivors=0.0)
    assert simulate([work], 1, CALM).wall_seconds == pytest.approx(320 * FALLEN)
    assert forecast([work], 1, CALM).wall_seconds == pytest.approx(320 * FALLEN)


def test_a_slow_crew_takes_twice_as_long_and_a_start_comes_on_top() -> None:
    slow = Assumptions(start_seconds=10.0, failure_hours=1e12, stragglers=1.0, straggling=0.5)
    assert simulate([ALIKE], 2, slow).wall_seconds == pytest.approx(2 * (640 + 10))


def test_failures_undo_what_was_in_flight() -> None:
    failing = Assumptions(start_seconds=0.0, failure_hours=0.1, stragglers=0.0)
    found = simulate([ALIKE], 4, failing)
    assert found.failures > 0
    assert found.repeated > 0
    assert found.wall_seconds > simulate([ALIKE], 4, CALM).wall_seconds + failing.notice_seconds / 4


def test_the_same_seed_gives_the_same() -> None:
    work = Work("mixed", examples=640, surviving_seconds=2.0, survivors=0.4)
    assert simulate([work], 8, Assumptions(), 3) == simulate([work], 8, Assumptions(), 3)
    assert simulate([work], 8, Assumptions(), 3) != simulate([work], 8, Assumptions(), 4)


SWEEP = [
    Work(f"m{number}", 3700, 2.0, survivors, 16, 256) for number, survivors in enumerate([0.5, 0.6, 0.3, 0.65] * 5)
]
HARD = [Work(work.name, work.examples, 40.0, work.survivors, 16, 256) for work in SWEEP]
HARSH = Assumptions(failure_hours=24.0, stragglers=0.1)


@pytest.mark.parametrize("workers", [1, 4, 16, 64, 256, 1024])
@pytest.mark.parametrize(("works", "assumed"), [(SWEEP, Assumptions()), (HARD, HARSH)], ids=["usual", "harsh"])
def test_the_formula_is_within_a_tenth_of_the_simulation(works: list[Work], assumed: Assumptions, workers: int) -> None:
    seeds = range(max(10, 40 // workers))  # one worker alone may be slow
    simulated = statistics.mean(simulate(works, workers, assumed, seed).wall_seconds for seed in seeds)
    assert forecast(works, workers, assumed).wall_seconds == pytest.approx(simulated, rel=0.1)


@pytest.mark.parametrize("workers", [2, 4])
def test_the_last_worker_idles_less_than_a_tenth(workers: int) -> None:
    """512 examples of which two in five survive, each as dear as thirty that fall."""
    work = Work("one", 512, 1.0, survivors=0.4)
    idle = [simulate([work], workers, CALM, seed).idle for seed in range(20)]
    assert statistics.mean(idle) < 0.1


def test_no_workers_are_no_forecast() -> None:
    assert forecast([], 3).wall_seconds == 0
    assert forecast([ALIKE], 2, CALM).worker_hours == pytest.approx(2 * forecast([ALIKE], 2, CALM).wall_seconds / 3600)
    with pytest.raises(ValueError, match="workers must be at least 1, not 0"):
        forecast([ALIKE], 0)
