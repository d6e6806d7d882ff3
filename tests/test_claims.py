import fcntl
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from robench import claims
from robench.claims import DEAD_SECONDS, Claims, Worker, working
from robench.errors import RunError
from robench.runs import Run
from tests.fakes import many_outcomes
from tests.test_runs import plan, shard

MANY = many_outcomes(40)
ROOT = Path(__file__).parent.parent
TAKER = """
import sys
from pathlib import Path
from robench.claims import Claims, working
from robench.runs import Run
run = Run.open(Path(sys.argv[1]))
with working(run) as worker:
    print(worker.name, [Claims(run, worker).take(int(shard)) for shard in sys.argv[2:]], flush=True)
    sys.stdin.read()
"""


@pytest.fixture
def run(tmp_path: Path) -> Run:
    return Run.create(tmp_path / "run", plan(MANY))


@contextmanager
def _other(run: Run, *shards: int) -> Iterator[tuple[subprocess.Popen[str], str]]:
    """Another process that has claimed these shards, and its name."""
    command = [sys.executable, "-c", TAKER, str(run.folder), *map(str, shards)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, cwd=ROOT) as other:
        assert other.stdout is not None
        name, _, taken = other.stdout.readline().partition(" ")
        assert taken.strip() == str([True] * len(shards))
        yield other, name
        other.kill()


def _files(run: Run, folder: str) -> list[str]:
    return sorted(path.name for path in (run.folder / folder).iterdir())


def test_a_claim_names_its_worker_and_is_won_once(run: Run) -> None:
    with working(run) as one, working(run) as two:
        assert Claims(run, one).take(3)
        assert not Claims(run, two).take(3)
        assert Claims(run, two).take(4)
        assert (run.folder / "claims" / "000003.0").read_text() == one.name
        assert _files(run, "claims") == ["000003.0", "000004.0"]


def test_of_many_who_ask_at_once_one_gets_each_shard(run: Run) -> None:
    taken: list[int] = []
    start = threading.Barrier(8)

    def ask() -> None:
        with working(run) as worker:
            start.wait()
            taken.extend(index for index in range(20) if Claims(run, worker).take(index))
            start.wait()

    threads = [threading.Thread(target=ask) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(taken) == list(range(20))


def test_who_looks_while_another_worker_starts_does_not_take_it_for_dead(
    run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    flock, seen = fcntl.flock, []

    def look_first(file: Any, operation: int) -> None:
        if operation == fcntl.LOCK_EX:
            seen.append(one.living())
        flock(file, operation)

    monkeypatch.setattr(claims, "_next", lambda began: began)
    with working(run) as one:
        monkeypatch.setattr(fcntl, "flock", look_first)
        with working(run) as two:
            assert seen == [1]
            assert one.living() == 2
            assert Claims(run, two).take(0)
            assert not Claims(run, one).take(0)


def test_a_finished_shard_is_not_taken_though_its_worker_left(run: Run) -> None:
    with working(run) as one:
        assert Claims(run, one).take(0)
        run.write_shard(shard(run, 0, MANY))
    with working(run) as two:
        assert not Claims(run, two).take(0)


def test_the_claims_of_a_killed_worker_are_taken_over_by_one(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(claims, "LOOK_SECONDS", 0.0)
    monkeypatch.setattr(claims, "_next", lambda began: began)
    with working(run) as one, working(run) as two, _other(run, 0, 1) as (other, name):
        assert one.living() == 3
        assert not Claims(run, one).take(0)
        os.kill(other.pid, signal.SIGKILL)
        other.wait()
        assert one.living() == 2
        assert Claims(run, one).take(0)
        assert not Claims(run, two).take(0)
        assert Claims(run, two).take(1)
        assert (run.folder / "claims" / "000000.0").read_text() == name
        assert (run.folder / "claims" / "000000.1").read_text() == one.name


def test_a_stopped_worker_on_this_machine_lives(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    """However old its last sign of life is: the lock is what counts."""
    monkeypatch.setattr(claims, "LOOK_SECONDS", 0.0)
    monkeypatch.setattr(claims, "_next", lambda began: began)
    with working(run) as one, _other(run, 0) as (other, name):
        os.kill(other.pid, signal.SIGSTOP)
        os.utime(run.folder / "workers" / f"{name}.jsonl", (0, 0))
        assert one.is_alive(name)
        assert not Claims(run, one).take(0)


@pytest.mark.parametrize(("silence", "alive"), [(DEAD_SECONDS - 10, True), (DEAD_SECONDS + 10, False)])
@pytest.mark.parametrize("clock", [-86400.0, 0.0, 86400.0])
def test_elsewhere_silence_counts_by_the_clock_of_the_files(
    run: Run, monkeypatch: pytest.MonkeyPatch, silence: float, alive: bool, clock: float
) -> None:
    """Whatever the clock of this machine says, the file server sets all times."""
    with working(run) as one:
        name = "0000abcd-12-34"
        path, server = one.path.with_name(f"{name}.jsonl"), time.time() + clock
        path.touch()
        (run.folder / "claims").mkdir()
        (run.folder / "claims" / "000005.0").write_text(name)
        os.utime(path, (server - silence, server - silence))
        touch = os.utime
        monkeypatch.setattr(os, "utime", lambda touched: touch(touched, (server, server)))
        assert one.is_alive(name) is alive
        assert Claims(run, one).take(5) is not alive


def test_a_claim_that_names_nobody_is_held_for_a_while(run: Run) -> None:
    """Its worker may be about to write its name, or was killed before it could."""
    with working(run) as one:
        path = run.folder / "claims" / "000007.0"
        path.parent.mkdir()
        path.touch()
        assert not Claims(run, one).take(7)
        old = time.time() - DEAD_SECONDS - 1
        os.utime(path, (old, old))
        assert Claims(run, one).take(7)


def test_a_worker_gives_signs_of_life(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(claims, "BEAT_SECONDS", 0.01)
    with working(run) as one:
        os.utime(one.path, (0, 0))
        limit = time.monotonic() + 10
        while not one.path.stat().st_mtime and time.monotonic() < limit:
            time.sleep(0.01)
        assert one.path.stat().st_mtime > 0


def test_a_worker_that_joins_others_records_events_of_its_own(run: Run) -> None:
    again = Run.open(run.folder)
    with working(run) as one, working(again):
        run.record("start", {"slots": 1})
        again.record("start", {"slots": 2})
        assert [event["slots"] for event in Run.open(run.folder).events()] == [1, 2]
        assert len((run.folder / "events.jsonl").read_text().splitlines()) == 1
        assert one.path.stat().st_size == 0
    assert len(_files(run, "workers")) == 1  # an empty file goes with its worker
    assert [event["slots"] for event in Run.open(run.folder).events()] == [1, 2]


def test_who_is_not_first_leaves_the_common_file_to_others(run: Run) -> None:
    with working(run, first=False):
        run.record("start", {})
    assert not (run.folder / "events.jsonl").exists()
    assert len(run.events()) == 1


def test_a_run_that_is_being_started_over_cannot_be_joined(run: Run) -> None:
    expected = "`run` is in use; expected no other process on this run. Wait for it, or stop it."
    with run.locked(), pytest.raises(RunError) as caught, working(run):
        pytest.fail("one starts over, another works")
    assert str(caught.value) == f"{run.folder}: {expected}"
    with working(run), pytest.raises(RunError) as caught, run.locked():
        pytest.fail("one works, another starts over")
    assert str(caught.value) == f"{run.folder}: {expected}"
    run.clear()
    with pytest.raises(RunError, match="`run` is in use"), working(run):
        pytest.fail("the run was cleared between a look at its plan and the start of work")


def test_merged_claims_are_gone_and_who_comes_late_takes_nothing(run: Run) -> None:
    with working(run) as late:
        with working(run) as one:
            for index in range(run.plan.shards):
                assert Claims(run, one).take(index)
                run.write_shard(shard(run, index, MANY))
            assert (run.folder / "claims").exists()
            run.merge({})
        assert not (run.folder / "claims").exists()
        assert not Claims(run, late).take(0)
    assert not (run.folder / "claims").exists()


def test_who_only_watches_is_not_counted(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(claims, "LOOK_SECONDS", 0.0)
    monkeypatch.setattr(claims, "_next", lambda began: began)
    with working(run, attacks=False) as watcher, working(run) as one:
        assert (one.living(), watcher.living()) == (1, 2)
        with pytest.raises(RunError, match="`run` is in use"), run.locked():
            pytest.fail("somebody watches")


def test_names_of_workers_differ(run: Run) -> None:
    assert len({Worker(run).name for _ in range(100)}) == 100
