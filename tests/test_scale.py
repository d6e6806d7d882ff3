"""The commands of docs/measure that say what several processes gain: their sums, and one small run of each."""

import importlib
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from robench.runs import Run
from tests.test_runs import plan

MEASURE = Path(__file__).parent.parent / "docs" / "measure"


@pytest.fixture
def shards(monkeypatch: pytest.MonkeyPatch) -> Any:
    monkeypatch.syspath_prepend(str(MEASURE))
    return importlib.import_module("shards")


@pytest.fixture
def scale(shards: Any) -> Any:
    return importlib.import_module("scale")


def _told(segment: int, wall: float, cpu: float, **more: float) -> dict[str, Any]:
    return {"segment": f"{segment * 10**9:x}", "wall_seconds": wall, "cpu_seconds": cpu, **more}


def test_what_the_events_of_three_workers_say(tmp_path: Path, shards: Any) -> None:
    """At work from 100 to 110 s, from 102 to 109 with a wait of 2 s, and from 101 to 106; a fourth only watched."""
    run = Run.create(tmp_path / "run", plan())
    for told in (
        _told(100, 2.0, 2.0, shard=0, waited_seconds=0.0),
        _told(100, 10.0, 9.0, shard=3, waited_seconds=0.0),
        _told(102, 7.0, 6.5, shard=1, waited_seconds=2.0),
        _told(101, 5.0, 4.5, shard=2, waited_seconds=0.0),
    ):
        run.record("progress", told)
    run.record("end", _told(100, 10.5, 9.0, waited_seconds=0.5))
    run.record("end", _told(90, 30.0, 1.0, waited_seconds=30.0))
    assert shards.span_of(run) == shards.Span(began=100.0, wall=10.0, cpu=20.0, idle=0.5, workers=3)


def test_figures_are_held_against_their_limits(scale: Any) -> None:
    found = {
        "one process": scale.Timing(wall=100, start=4, attack=90, cpu=95, idle=0.0, outcomes="a"),
        "2 ranks": scale.Timing(wall=54, start=5, attack=46, cpu=97, idle=0.04, outcomes="a"),
        "Ray, 2": scale.Timing(wall=63, start=10, attack=46.92, cpu=97, idle=0.2, outcomes="b"),
    }
    rows = scale.limits(found)
    assert [round(row.found, 3) for row in rows] == [0.54, 6.0, 1.02, 0.04, 0.2, 1.0]
    assert [row.line.endswith("| yes |") for row in rows] == [True, False, True, True, False, False]
    assert rows[0].line == "| wall time of 2 ranks, of one process | 0.55 | 0.540 | yes |"


def test_medians_keep_every_digest(scale: Any) -> None:
    timings = [scale.Timing(wall, 1, wall, wall, 0.0, digest) for wall, digest in ((3, "a"), (1, "b"), (2, "a"))]
    assert scale.medians(timings) == scale.Timing(2, 1, 2, 2, 0.0, "a b")


@pytest.mark.slow
def test_few_shards_through_processes(tmp_path: Path) -> None:
    command = [sys.executable, str(MEASURE / "shards.py"), "--folder", str(tmp_path), "--counts", "20", "40"]
    command += ["--executors", "one process", "2 ranks"]
    for _ in range(2):  # the second time from what is kept
        said = subprocess.run(command, capture_output=True, text=True, check=True).stdout.splitlines()
        assert [line.split(" | ")[0:2] for line in said[2:]] == [
            [f"| {name}", what] for name in ("one process", "2 ranks") for what in ("wall", "cpu", "merge")
        ]
    assert sorted(path.name for path in tmp_path.iterdir()) == [
        f"{name}-{count}.json" for name in ("2-ranks", "one-process") for count in (20, 40)
    ]
    assert 0 < json.loads((tmp_path / "2-ranks-20.json").read_text())["cpu"] < 10
