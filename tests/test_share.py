"""Shards are dealt out one by one, each once, without looking at the folder again and again."""

import time
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from types import SimpleNamespace

import pytest

from robench import claims, share
from robench.claims import Worker, working
from robench.runs import Run
from robench.share import Share
from tests.fakes import many_outcomes
from tests.test_runs import plan, shard

MANY = many_outcomes(40)


@pytest.fixture
def run(tmp_path: Path) -> Run:
    return Run.create(tmp_path / "run", plan(MANY))


@pytest.fixture(autouse=True)
def _quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(claims, "LOOK_SECONDS", 0.0)
    monkeypatch.setattr(claims, "_next", lambda began: began)
    monkeypatch.setattr(share, "POLL_SECONDS", (0.01, 0.01))


def _make(run: Run, shards: Iterator[int]) -> list[int]:
    """Write each shard as it is drawn."""
    made = []
    for index in shards:
        run.write_shard(shard(run, index, MANY))
        made.append(index)
    return made


def test_a_lone_worker_gets_what_is_missing_in_order(run: Run) -> None:
    run.write_shard(shard(run, 3, MANY))
    with working(run) as worker:
        rounds = Share(run, worker).rounds(lambda left: pytest.fail("nobody else is there"))
        assert [_make(run, shards) for shards in rounds] == [[index for index in range(20) if index != 3]]


def test_a_shard_is_claimed_when_it_is_drawn(run: Run) -> None:
    with working(run) as one, working(run) as two:
        first, second = (next(Share(run, worker).rounds(lambda left: None)) for worker in (one, two))
        assert [next(first), next(second), next(first), next(second)] == [0, 1, 2, 3]


def test_what_a_dead_worker_leaves_is_made_by_another(run: Run) -> None:
    waited: list[int] = []
    with ExitStack() as gone, working(run) as alive:
        dead = gone.enter_context(working(run))
        theirs = next(Share(run, dead).rounds(lambda left: None))
        assert [next(theirs), next(theirs), next(theirs)] == [0, 1, 2]
        run.write_shard(shard(run, 1, MANY))

        def waiting(left: int) -> None:
            waited.append(left)
            if len(waited) == 3:
                gone.close()

        mine = Share(run, alive)
        assert [_make(run, shards) for shards in mine.rounds(waiting)] == [list(range(3, 20)), [0, 2]]
        assert waited == [2, 2, 2]
        assert mine.waited > 0
    assert run.missing_shards() == []


def test_who_waits_looks_often_while_a_look_costs_little(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    now, pauses, costs = [0.0], list[float](), iter([0.0, 0.01, 1.0, 0.0])

    def claimed_by_another(index: int) -> bool:
        now[0] += next(costs) if index == 0 else 0.0
        return False

    def sleep(seconds: float) -> None:
        now[0] += seconds
        pauses.append(seconds)
        if len(pauses) == 3:
            for index in range(20):
                run.write_shard(shard(run, index, MANY))

    monkeypatch.setattr(share, "time", SimpleNamespace(monotonic=lambda: now[0], sleep=sleep))
    monkeypatch.setattr(share, "POLL_SECONDS", (0.1, 2.0))
    with working(run) as worker:
        mine = Share(run, worker)
        monkeypatch.setattr(mine._claims, "take", claimed_by_another)
        assert list(mine.rounds(lambda left: None)) == []
    assert pauses == pytest.approx([0.1, 0.2, 2.0])
    assert mine.waited == pytest.approx(sum(pauses) + 1.01)


def test_a_worker_has_a_small_part_in_flight_whatever_others_have(run: Run) -> None:
    """20 shards of 2, two workers: a quarter of the examples that are left."""
    with working(run) as one, working(run) as two:
        two.publish(0)
        mine = Share(run, one)
        shards = next(mine.rounds(lambda left: None))
        assert next(shards) == 0  # 19 are left, of 38 examples: 9 in flight
        assert [mine.holds_back(in_flight, 1) for in_flight in (0, 7, 8)] == [False, False, True]
        for _ in range(13):
            next(shards)  # 6 are left: 12 examples
        assert [mine.holds_back(in_flight, 1) for in_flight in (0, 1, 2)] == [False, False, True]


def test_beyond_that_the_worker_with_least_before_it_takes_the_next_shard(run: Run) -> None:
    with working(run) as one, working(run) as two, working(run) as three:
        two.publish(30)
        three.publish(20)
        mine = Share(run, one)
        assert [mine.holds_back(20, load) for load in (19, 20, 21)] == [False, False, True]
        assert one._load_of(one.name).read_text() == "21"
        assert mine.holds_back(20, 19, known=False)
        two.publish(10)
        assert mine.holds_back(20, 11)
    assert not list(run.folder.glob("workers/*.load"))


def test_what_costs_the_same_is_taken_in_small_parts_of_what_is_left(run: Run) -> None:
    with working(run) as one:
        mine = Share(run, one)
        shards = next(mine.rounds(lambda left: None))
        assert mine.part() == 20
        with working(run):
            assert mine.part() == 20 // 4
            assert [next(shards) for _ in range(18)] == list(range(18))
            assert mine.part() == 1


def test_who_has_not_said_yet_has_nothing(run: Run) -> None:
    with working(run) as one, working(run) as two:
        mine = Share(run, one)
        assert mine.holds_back(20, 1)
        two._load_of(two.name).write_text("half a num")
        assert mine.holds_back(20, 1)


def test_a_lone_worker_never_holds_back_unless_others_are_expected(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    with working(run) as worker:
        assert not Share(run, worker).holds_back(10**9, 1)
        assert Share(run, worker, expected=2).holds_back(10**9, 1)
        monkeypatch.setattr(share, "ARRIVAL_SECONDS", 0.0)
        assert not Share(run, worker, expected=2).holds_back(10**9, 1)


def _seconds_a_shard(folder: Path, shards: int, workers: int) -> float:
    """Workers that take turns at trivial work; time of this thread, not of other processes."""
    run = Run.create(folder, plan(count=shards, shard_size=1))
    with ExitStack() as stack:
        crew: list[Worker] = [stack.enter_context(working(run)) for _ in range(workers)]
        began = time.thread_time()
        drawn = [next(Share(run, worker).rounds(lambda left: None)) for worker in crew]
        while drawn:
            for each in list(drawn):
                index = next(each, None)
                if index is None:
                    drawn.remove(each)
                else:
                    run.shard_path(index).touch()
        seconds = time.thread_time() - began
    assert run.missing_shards() == []
    return seconds / shards


@pytest.mark.parametrize("workers", [1, 4])
def test_time_for_a_shard_does_not_grow_with_their_number(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, workers: int
) -> None:
    monkeypatch.setattr(claims, "LOOK_SECONDS", 1.0)
    slower = []
    for attempt in range(3):  # a busy machine may disturb one of them
        few = _seconds_a_shard(tmp_path / f"few{attempt}", 1_000, workers)
        slower.append(_seconds_a_shard(tmp_path / f"many{attempt}", 10_000, workers) / few)
        if slower[-1] < 1.5:
            return
    pytest.fail(f"{slower} times as long for a shard of 10,000 as of 1,000")
