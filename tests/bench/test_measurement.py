import dataclasses
import os
from pathlib import Path

import pytest

from robench.bench import measurement
from robench.bench.measurement import Measurement, Stopwatch


def _quiet(monkeypatch: pytest.MonkeyPatch, load: float = 0.1, others: tuple[float | None, ...] = (5, 5)) -> None:
    seconds = iter(others)
    monkeypatch.setattr(os, "getloadavg", lambda: (load, 0.0, 0.0))
    monkeypatch.setattr(measurement, "_others_seconds", lambda: next(seconds))


def test_even_times_on_a_quiet_machine_are_valid(monkeypatch: pytest.MonkeyPatch) -> None:
    _quiet(monkeypatch)
    watch = Stopwatch()
    for seconds in (1.0, 1.1, 1.2):
        watch.time("ours", seconds)
    assert watch.median("ours") == 1.1
    assert watch.doubts() == ()


def test_a_load_at_the_start_makes_a_figure_invalid(monkeypatch: pytest.MonkeyPatch) -> None:
    _quiet(monkeypatch, load=1.25)
    assert Stopwatch().doubts() == ("The machine was busy: the load average was 1.25 at the start.",)


def test_other_processes_make_a_figure_invalid(monkeypatch: pytest.MonkeyPatch) -> None:
    _quiet(monkeypatch, others=(5, 5 + 1e6))
    (doubt,) = Stopwatch().doubts()
    assert doubt.startswith("Other processes took ")


def test_a_system_that_does_not_say_is_not_doubted(monkeypatch: pytest.MonkeyPatch) -> None:
    _quiet(monkeypatch, others=(None, None))
    assert Stopwatch().doubts() == ()


def test_uneven_times_make_a_figure_invalid(monkeypatch: pytest.MonkeyPatch) -> None:
    _quiet(monkeypatch)
    watch = Stopwatch()
    for seconds in (1.0, 1.3):
        watch.time("theirs", seconds)
    assert watch.doubts() == ("The runs of theirs took from 1.00 to 1.30 s: too uneven.",)


def test_sides_that_take_turns_may_be_slow_together(monkeypatch: pytest.MonkeyPatch) -> None:
    _quiet(monkeypatch, others=(5, 5, 5))
    watch = Stopwatch()
    for ours, bare in ((1.0, 1.0), (2.0, 1.9)):
        watch.time("ours", ours)
        watch.time("bare", bare)
    assert watch.doubts(in_turns=[("ours", "bare")]) == ()
    watch.time("ours", 1.2)
    watch.time("bare", 1.0)
    expected = "The runs of ours took from 1.00 to 1.20 times as long as bare: too uneven."
    assert watch.doubts(in_turns=[("ours", "bare")]) == (expected,)


@pytest.mark.skipif(not Path("/proc/stat").exists(), reason="the system does not count the time of all processes")
def test_the_time_of_other_processes_leaves_out_our_own() -> None:
    before = measurement._others_seconds()
    began = os.times()
    while os.times().user - began.user < 0.2:
        pass
    after = measurement._others_seconds()
    assert before is not None
    assert after is not None
    assert after - before < 2 * (os.cpu_count() or 1)


def test_the_content_is_one_flat_object() -> None:
    found = Measurement("pgd", "m", 4, 2.0, 5.0, 0.5, 0.5, 0.0, 1.05, details={"steps": 40}, doubts=("Busy.",))
    content = found.content()
    assert content["ratio"] == 2.5
    assert content["valid"] is False
    assert content["doubts"] == ["Busy."]
    assert content["steps"] == 40
    assert found.line("foolbox") == "pgd, m, 4 images: 2 s, foolbox 5 s, 2.50 times as fast; NOT VALID, see why above"
    assert dataclasses.replace(found, doubts=()).line("foolbox").endswith("5 s, 2.50 times as fast")
    assert not any(isinstance(value, dict) for value in content.values())


def test_a_busy_machine_is_waited_for_and_no_longer_than_that(monkeypatch: pytest.MonkeyPatch) -> None:
    loads = iter([2.0, 1.0, 0.2])
    monkeypatch.setattr(os, "getloadavg", lambda: (next(loads), 0.0, 0.0))
    monkeypatch.setattr("time.sleep", lambda seconds: None)
    assert measurement.wait_for_rest()
    monkeypatch.setattr(os, "getloadavg", lambda: (2.0, 0.0, 0.0))
    assert not measurement.wait_for_rest(0)
