import errno
import fcntl
import hashlib
import json
import os
import re
import signal
import subprocess
import sys
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from robench.errors import RunError
from robench.outcome import Outcome, read_outcomes
from robench.result import ModelRecord, Result, read_result
from robench.runs import MARKER, Plan, PlannedData, Run, Shard, run_key
from tests.test_protocol import protocol

KEY = "1f" * 32
ENVIRONMENT = {"python": "3.11", "robench": "0"}
OUTCOMES = [
    Outcome("e0", 0, 0, 0, 2.5, 1.25),
    Outcome("e1", 1, 1, 2, 1.5, -0.5, (3,), "pgd"),
    Outcome("e2", 2, 2, 1, 0.125, -0.25, (7,), "pgd", 1),
    Outcome("e3", 0, 1, 1, -0.5, -0.5),
    Outcome("e4", 1, 1, 1, 3.0, 0.5, (), "", 2),
    Outcome('e5, "quoted"', 2, 2, 2, 4.0, 1.0),
    Outcome("e6", 0, 0, 1, 0.75, -1.0, (10,), "pgd"),
]
SHARD_SIZES = [1, 2, 5]


def ids_of(outcomes: Sequence[Outcome]) -> str:
    return hashlib.sha256("\n".join(outcome.id for outcome in outcomes).encode()).hexdigest()


def plan(
    outcomes: Sequence[Outcome] = OUTCOMES,
    *,
    shard_size: int = 2,
    key: str = KEY,
    limit: int | None = None,
    **data: Any,
) -> Plan:
    details = {
        "count": len(outcomes),
        "of": 7,
        "limit": limit,
        "ids_sha256": ids_of(outcomes),
        "labels_sha256": "1b" * 32,
        "official": True,
        **data,
    }
    return Plan(
        key=key,
        protocol=protocol().model_dump(mode="json", by_alias=True, exclude_none=True),
        official=True,
        model=ModelRecord(name="toy", reference="toy", loader="tests", state_digest="2e" * 32, fingerprint=((1, 0.5),)),
        data=PlannedData(source="toy", **details),
        shard_size=shard_size,
        attack_revision=1,
        caveats=("the gradient is zero",),
    )


def shard(run: Run, index: int, outcomes: Sequence[Outcome] = OUTCOMES) -> Shard:
    """A shard with a pixel digest that follows from its examples."""
    chosen = [outcomes[position] for position in run.plan.examples_of(index)]
    return Shard(index, chosen, sum(3**200 + position for position in run.plan.examples_of(index)) % 2**256)


def fill(run: Run, outcomes: Sequence[Outcome] = OUTCOMES, *, backwards: bool = False) -> Run:
    for index in sorted(run.missing_shards(), reverse=backwards):
        run.write_shard(shard(run, index, outcomes))
    return run


def finished_run(folder: Path, outcomes: Sequence[Outcome] = OUTCOMES, the_plan: Plan | None = None) -> Result:
    return fill(Run.create(folder, the_plan or plan(outcomes)), outcomes).merge(ENVIRONMENT)


def _digests(message: str) -> set[str]:
    return set(re.findall(r"\b[0-9a-f]{64}\b", message))


def _leftovers(folder: Path) -> list[Path]:
    return [path for path in folder.rglob("*") if path.name.startswith(".") or path.suffix == ".tmp"]


# --- create and open


def test_a_run_is_found_again(tmp_path: Path) -> None:
    created = Run.create(tmp_path / "a" / "b", plan())
    assert created.plan == plan()
    assert Run.open(created.folder).plan == plan()
    assert Run.create(created.folder, plan()).plan == plan()
    assert not created.finished
    assert created.missing_shards() == [0, 1, 2, 3]
    assert Run.open(created.folder).plan.parsed_protocol() == protocol()


def test_a_resumed_run_keeps_the_plan_it_began_with(tmp_path: Path) -> None:
    Run.create(tmp_path, plan(shard_size=2))
    assert Run.create(tmp_path, plan(shard_size=5)).plan.shard_size == 2


def test_another_run_in_the_folder_is_refused(tmp_path: Path) -> None:
    Run.create(tmp_path, plan())
    before = (tmp_path / "plan.json").read_bytes()
    with pytest.raises(RunError) as caught:
        Run.create(tmp_path, plan(key="0a" * 32))
    assert str(caught.value) == (
        f"{tmp_path}: `run key` is {KEY}; expected {'0a' * 32} for this call. "
        f"It holds {plan().about}; this call is about {plan().about}. "
        "Choose another `run_dir`, or use `--fresh` to start over here."
    )
    assert (tmp_path / "plan.json").read_bytes() == before


def test_a_folder_without_a_plan_is_no_run(tmp_path: Path) -> None:
    with pytest.raises(RunError) as caught:
        Run.open(tmp_path)
    expected = "the folder of a run. `robench evaluate` starts a run and prints its folder."
    assert str(caught.value) == f"{tmp_path}: `plan.json` is missing; expected {expected}"


def test_a_plan_that_may_not_be_read_is_not_called_missing(tmp_path: Path) -> None:
    (tmp_path / "plan.json").mkdir()
    with pytest.raises(
        RunError, match=r"`plan\.json` is unreadable \(Is a directory\); expected the folder of a run\."
    ):
        Run.open(tmp_path)


@pytest.mark.parametrize(
    ("edit", "key"),
    [
        (lambda content: content.pop("key"), "key"),
        (lambda content: content.update(shard_size=0), "shard_size"),
        (lambda content: content["data"].update(count=0), "data.count"),
        (lambda content: content.update(surprise=1), "surprise"),
        (lambda content: content.update(schema="robench.run/2"), "schema"),
    ],
)
def test_a_malformed_plan_is_refused(tmp_path: Path, edit: Callable[[dict[str, Any]], Any], key: str) -> None:
    path = Run.create(tmp_path, plan()).folder / "plan.json"
    content = json.loads(path.read_bytes())
    edit(content)
    path.write_text(json.dumps(content), encoding="utf-8")
    with pytest.raises(RunError, match=rf"plan\.json: `{key}` is .+; expected .+\. Start over: .*`--fresh`\.$"):
        Run.open(tmp_path)


def test_a_torn_plan_is_refused(tmp_path: Path) -> None:
    path = Run.create(tmp_path, plan()).folder / "plan.json"
    path.write_bytes(path.read_bytes()[:-40])
    with pytest.raises(RunError, match=r"plan\.json: `plan` is .+; expected .+\. Start over: .*`--fresh`\.$"):
        Run.open(tmp_path)


@given(count=st.integers(1, 200), shard_size=st.integers(1, 70))
@settings(max_examples=60, deadline=None, derandomize=True)
def test_shards_split_the_examples(count: int, shard_size: int) -> None:
    wanted = plan(count=count, shard_size=shard_size)
    parts = [list(wanted.examples_of(index)) for index in range(wanted.shards)]
    assert [position for part in parts for position in part] == list(range(count))
    assert {len(part) for part in parts[:-1]} <= {shard_size}
    assert 1 <= len(parts[-1]) <= shard_size


# --- the key

MODEL = ModelRecord(name="a", reference="toy", loader="tests", state_digest="2e" * 32, fingerprint=((1, 0.5),))
CALLABLE = ModelRecord(name="a", loader="callable", fingerprint=((1, 0.5),))


DATA = PlannedData(source="toy", count=4, of=4, ids_sha256="1a" * 32, labels_sha256="1b" * 32, official=True)


def _key(model: ModelRecord = MODEL, data: dict[str, Any] | None = None, **changes: Any) -> str:
    content: dict[str, Any] = {"protocol_digest": "a", "official": True, "attack_revision": 1, **changes}
    return run_key(model=model, data=DATA.model_copy(update=data or {}), **content)


def test_the_key_hashes_what_changes_the_answer() -> None:
    others = [
        _key(protocol_digest="x"),
        _key(official=False),
        _key(attack_revision=2),
        _key(data={"ids_sha256": "2a" * 32}),
        _key(data={"labels_sha256": "2a" * 32}),
        _key(data={"content_sha256": "2a" * 32}),
        _key(data={"limit": 3}),
        _key(MODEL.model_copy(update={"loader": "x"})),
        _key(MODEL.model_copy(update={"reference": "x"})),
        _key(MODEL.model_copy(update={"state_digest": "3e" * 32})),
        _key(MODEL.model_copy(update={"configuration_sha256": "3e" * 32})),
        _key(CALLABLE),
        _key(CALLABLE.model_copy(update={"name": "x"})),
        _key(CALLABLE.model_copy(update={"fingerprint": ((2, 0.5),)})),
    ]
    assert len({_key(), *others}) == len(others) + 1
    assert all(re.fullmatch(r"[0-9a-f]{64}", key) for key in others)


def test_the_key_does_not_hash_what_another_machine_may_change() -> None:
    assert _key(data={"path": "/elsewhere", "count": 3}) == _key()
    rounded = CALLABLE.model_copy(update={"fingerprint": ((1, 0.5001),)})
    assert _key(rounded) == _key(CALLABLE)


def test_the_key_of_a_model_with_parameters_is_not_its_name() -> None:
    for update in ({"name": "x"}, {"fingerprint": ((2, 0.25),)}, {"weights_sha256": "4e" * 32}, {"parameters": 5}):
        assert _key(MODEL.model_copy(update=update)) == _key()


# --- shards


def test_a_shard_is_read_back(tmp_path: Path) -> None:
    run = Run.create(tmp_path, plan())
    for index in (3, 0):
        run.write_shard(shard(run, index))
        assert run.read_shard(index) == shard(run, index)
    assert run.missing_shards() == [1, 2]
    assert _leftovers(tmp_path) == []


def _reheaded(content: bytes, **changes: Any) -> bytes:
    first, _, body = content.partition(b"\n")
    header = {**json.loads(first.removeprefix(b"# ")), **changes}
    return b"# " + json.dumps(header, sort_keys=True).encode() + b"\n" + body


EDITS: dict[str, Callable[[bytes], bytes]] = {
    "another prediction": lambda content: content.replace(b"e1,1,1,2", b"e1,1,1,1"),
    "another example": lambda content: content.replace(b"\ne1,", b"\ne9,"),
    "a line more": lambda content: content + b"e9,1,1,1,1,1,,,0,\n",
    "a line less": lambda content: b"\n".join(content.split(b"\n")[:-2]) + b"\n",
    "cut by a byte": lambda content: content[:-1],
    "cut after the header": lambda content: content[: content.index(b"\n") + 1],
    "other pixels": lambda content: _reheaded(content, pixels=f"{5:064x}"),
    "other rows": lambda content: _reheaded(content, rows=3),
    "another index": lambda content: _reheaded(content, index=1),
    "other line ends": lambda content: content.replace(b"\n", b"\r\n"),
}
ADVICE = "Delete the file and resume: its 2 examples are attacked again."


@pytest.mark.parametrize("edit", EDITS)
def test_an_edited_shard_is_refused_with_both_digests(tmp_path: Path, edit: str) -> None:
    run = fill(Run.create(tmp_path, plan()))
    path = run.shard_path(0)
    whole = path.read_bytes()
    stated = json.loads(whole.split(b"\n")[0].removeprefix(b"# "))["sha256"]
    path.write_bytes(EDITS[edit](whole))
    assert path.read_bytes() != whole
    with pytest.raises(RunError) as caught:
        run.read_shard(0)
    message = str(caught.value)
    pattern = rf"{re.escape(str(path))}: `sha256` is [0-9a-f]{{64}}; expected {stated}, as its header says\. {ADVICE}"
    assert re.fullmatch(pattern, message)
    assert len(_digests(message)) == 2
    with pytest.raises(RunError, match=stated):
        run.merge(ENVIRONMENT)
    assert not run.finished


@pytest.mark.parametrize("cut", [0, 1, 40])
def test_a_shard_cut_in_its_header_is_refused_with_both_digests(tmp_path: Path, cut: int) -> None:
    run = fill(Run.create(tmp_path, plan()))
    path = run.shard_path(0)
    path.write_bytes(path.read_bytes()[:cut])
    found = hashlib.sha256(path.read_bytes()).hexdigest()
    with pytest.raises(RunError) as caught:
        run.read_shard(0)
    expected = f"`header` is unreadable (sha256 {found}); expected a shard of run {KEY}. {ADVICE}"
    assert str(caught.value) == f"{path}: {expected}"


@pytest.mark.parametrize(
    "header", [b"# []", b"# 3", b'# {"sha256": "x"}', b"# {}", b"\xff", b'# {"run": "x", "sha256": 1}']
)
def test_what_is_no_header_is_refused(tmp_path: Path, header: bytes) -> None:
    run = fill(Run.create(tmp_path, plan()))
    run.shard_path(0).write_bytes(header + b"\n")
    with pytest.raises(
        RunError, match=rf"`header` is unreadable \(sha256 \w+\); expected a shard of run {KEY}\. {ADVICE}"
    ):
        run.read_shard(0)


def test_a_foreign_shard_is_refused_with_both_keys(tmp_path: Path) -> None:
    here, there = Run.create(tmp_path / "here", plan()), Run.create(tmp_path / "there", plan(key="0a" * 32))
    fill(there)
    here.shard_path(0).write_bytes(there.shard_path(0).read_bytes())
    with pytest.raises(RunError) as caught:
        here.read_shard(0)
    expected = f"`run` is {'0a' * 32}; expected {KEY} (a shard of this run). {ADVICE}"
    assert str(caught.value) == f"{here.shard_path(0)}: {expected}"


def test_a_shard_in_anothers_place_is_refused(tmp_path: Path) -> None:
    run = fill(Run.create(tmp_path, plan()))
    run.shard_path(1).replace(run.shard_path(0))
    with pytest.raises(
        RunError, match=rf"`index` is 1 with 2 rows \(sha256 \w{{64}}\); expected 0 with 2 rows\. {ADVICE}"
    ):
        run.read_shard(0)


def test_a_shard_with_too_few_rows_is_refused(tmp_path: Path) -> None:
    run = Run.create(tmp_path, plan())
    run.write_shard(Shard(0, OUTCOMES[:1], 0))
    with pytest.raises(RunError, match=r"`index` is 0 with 1 rows \(sha256 \w{64}\); expected 0 with 2 rows\."):
        run.read_shard(0)


def test_a_shard_that_is_gone_is_refused(tmp_path: Path) -> None:
    run = Run.create(tmp_path, plan())
    with pytest.raises(RunError) as caught:
        run.read_shard(0)
    expected = f"`file` is unreadable (No such file or directory); expected a shard. {ADVICE}"
    assert str(caught.value) == f"{run.shard_path(0)}: {expected}"


# --- events and cost


def test_a_line_that_was_cut_is_left_out_and_swallows_nothing(tmp_path: Path) -> None:
    run = Run.create(tmp_path, plan())
    assert run.events() == []
    run.record("start", {"slots": 32})
    run.record("fewer slots", {"slots": 16})
    path = tmp_path / "events.jsonl"
    path.write_bytes(path.read_bytes()[:-9])  # as a kill leaves it
    assert run.events() == [{"event": "start", "slots": 32}]
    run.record("start", {"slots": 8})
    run.record("end", {})
    assert run.events() == [{"event": "start", "slots": 32}, {"event": "start", "slots": 8}, {"event": "end"}]
    assert path.read_bytes().endswith(b'"slots": 8}\n{"event": "end"}\n')


def _progress(run: Run, segment: str, seconds: float, passes: tuple[int, int], peak: int, **where: Any) -> None:
    details = {"wall_seconds": seconds, "forward": passes[0], "backward": passes[1], "peak_memory_bytes": peak}
    run.record("progress", {"segment": segment, **details, "device": "cpu", "slots": 32, **where})


def test_cost_sums_segments_and_takes_the_highest_peak(tmp_path: Path) -> None:
    run = fill(Run.create(tmp_path, plan()))
    run.record("start", {"segment": "a"})
    _progress(run, "a", 1.0, (10, 5), 700)
    _progress(run, "a", 2.5, (20, 15), 900)  # within a segment the figures run on
    _progress(run, "b", 4.25, (100, 50), 800, slots=16)
    _progress(run, "c", 0.5, (1, 0), 100, device="gpu")
    result = run.merge(ENVIRONMENT)
    assert result.cost == {
        "segments": 3,
        "wall_seconds": 7.25,
        "forward": 121,
        "backward": 65,
        "peak_memory_bytes": 900,
        "devices": ["cpu", "gpu"],
        "slots": [32, 16],
    }
    assert json.loads((tmp_path / "cost.json").read_bytes()) == result.cost


# --- merge


def test_the_result_does_not_depend_on_shards_or_their_order(tmp_path: Path) -> None:
    folders = []
    for size in SHARD_SIZES:
        for backwards in (False, True):
            folders.append(tmp_path / f"{size}-{backwards}")
            fill(Run.create(folders[-1], plan(shard_size=size)), backwards=backwards).merge(ENVIRONMENT)
    for name in ("outcomes.csv.gz", "result.json"):
        assert len({(folder / name).read_bytes() for folder in folders}) == 1
    assert read_outcomes(folders[0] / "outcomes.csv.gz") == OUTCOMES


def test_merging_again_gives_the_same_bytes(tmp_path: Path) -> None:
    run = fill(Run.create(tmp_path, plan()))
    names = ("outcomes.csv.gz", "result.json", "cost.json")
    first = run.merge(ENVIRONMENT), [(tmp_path / name).read_bytes() for name in names]
    (tmp_path / "outcomes.csv.gz").write_bytes(b"spoilt")
    again = Run.open(tmp_path).merge(ENVIRONMENT), [(tmp_path / name).read_bytes() for name in names]
    assert first == again
    assert run.finished
    assert _leftovers(tmp_path) == []


def test_a_result_says_what_the_outcomes_say(tmp_path: Path) -> None:
    result = finished_run(tmp_path)
    # Right clean: all but e3. Fooled by step 5: e1; by step 10: e1, e2, e6.
    assert [(each.name, each.numerator, each.denominator) for each in result.metrics] == [
        ("clean", 6, 7),
        ("robust@5", 5, 7),
        ("robust@10", 3, 7),
    ]
    assert result.status == "complete"
    assert (result.counts.evaluated, result.counts.errored, result.counts.unconfirmed) == (7, 0, 3)
    assert (result.data.count, result.data.of, result.data.ids_sha256) == (7, 7, ids_of(OUTCOMES))
    assert int(result.data.pixels_sha256, 16) == sum(3**200 + position for position in range(7)) % 2**256
    assert result.protocol.digest == protocol().digest
    assert result.caveats == ("the gradient is zero",)
    assert result.environment == ENVIRONMENT
    assert result.run_dir == tmp_path
    assert result.outcomes.rows == 7
    assert read_result(tmp_path).to_bytes() == (tmp_path / "result.json").read_bytes()


def test_only_all_of_an_official_protocol_without_error_is_complete(tmp_path: Path) -> None:
    errored = [*OUTCOMES[:-1], replace(OUTCOMES[-1], error="no image")]
    results = [
        finished_run(tmp_path / "limit", OUTCOMES[:3], plan(OUTCOMES[:3], limit=3)),
        finished_run(tmp_path / "errored", errored),
        finished_run(tmp_path / "data", the_plan=plan(official=False)),
        finished_run(tmp_path / "protocol", the_plan=plan().model_copy(update={"official": False})),
    ]
    assert [result.status for result in results] == ["partial", "partial", "unofficial", "unofficial"]
    assert (results[1].counts.evaluated, results[1].counts.errored) == (6, 1)
    assert results[1].clean.numerator == 5


def test_missing_shards_are_not_merged(tmp_path: Path) -> None:
    run = Run.create(tmp_path, plan())
    run.write_shard(shard(run, 1))
    with pytest.raises(RunError) as caught:
        run.merge(ENVIRONMENT)
    expected = f"`shards` is 3 missing; expected 4. `robench resume {tmp_path}` makes them."
    assert str(caught.value) == f"{tmp_path}: {expected}"
    assert not run.finished
    assert not (tmp_path / "outcomes.csv.gz").exists()


def test_other_examples_than_planned_are_not_merged(tmp_path: Path) -> None:
    others = [*OUTCOMES[:-1], replace(OUTCOMES[-1], id="e7")]
    run = fill(Run.create(tmp_path, plan()), others)
    with pytest.raises(RunError) as caught:
        run.merge(ENVIRONMENT)
    expected = f"`ids` is {ids_of(others)}; expected {ids_of(OUTCOMES)}, as planned."
    assert str(caught.value) == f"{tmp_path}: {expected}"


# --- the disk and other processes


def _no_room(_: int) -> None:
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


def _full(folder: Path) -> str:
    advice = f"What is finished is kept: make room, then `robench resume {folder}`."
    return f"{folder}: `run_dir` is not writable (No space left on device); expected room to write. {advice}"


def test_a_full_disk_stops_a_shard_and_keeps_what_is_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run = Run.create(tmp_path, plan())
    run.write_shard(shard(run, 0))
    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", _no_room)
        with pytest.raises(RunError) as caught:
            run.write_shard(shard(run, 1))
        assert str(caught.value) == _full(tmp_path)
        assert isinstance(caught.value.__cause__, OSError)
    assert _leftovers(tmp_path) == []
    assert run.missing_shards() == [1, 2, 3]
    assert run.read_shard(0) == shard(run, 0)
    assert fill(run).merge(ENVIRONMENT).status == "complete"  # with room, the run goes on


def test_a_full_disk_stops_a_merge_and_a_plan(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run = fill(Run.create(tmp_path / "old", plan()))
    monkeypatch.setattr(os, "fsync", _no_room)
    with pytest.raises(RunError) as caught:
        run.merge(ENVIRONMENT)
    assert str(caught.value) == _full(run.folder)
    assert not run.finished
    with pytest.raises(RunError) as caught:
        Run.create(tmp_path / "new", plan())
    assert str(caught.value).endswith("Nothing was computed yet: make room, or choose another `run_dir`.")
    assert not (tmp_path / "new" / "plan.json").exists()
    assert _leftovers(tmp_path) == []


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs a device that is always full")
def test_a_full_disk_stops_an_event(tmp_path: Path) -> None:
    run = Run.create(tmp_path, plan())
    (tmp_path / "events.jsonl").symlink_to("/dev/full")
    with pytest.raises(RunError) as caught:
        run.record("start", {})
    assert str(caught.value) == _full(tmp_path)


def test_a_file_in_the_way_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("x", encoding="utf-8")
    with pytest.raises(
        RunError, match=r"file/run: `run_dir` is not writable \(Not a directory\); expected room to write\."
    ):
        Run.create(tmp_path / "file" / "run", plan())


HOLDER = """
import sys
from pathlib import Path
from robench.runs import Run
with Run.open(Path(sys.argv[1])).locked():
    print("held", flush=True)
    sys.stdin.read()
"""


def test_a_run_that_another_process_works_on_is_refused(tmp_path: Path) -> None:
    run = Run.create(tmp_path, plan())
    command = [sys.executable, "-c", HOLDER, str(tmp_path)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as other:
        assert other.stdout is not None
        assert other.stdout.readline() == "held\n"
        with pytest.raises(RunError) as caught, run.locked():
            pytest.fail("two processes hold the lock")
        expected = "`run` is in use; expected no other process on this run. Wait for it, or stop it."
        assert str(caught.value) == f"{tmp_path}: {expected}"
        other.send_signal(signal.SIGKILL)  # the lock goes with the process, however it ends
        other.wait()
        with run.locked():
            pass
    with run.locked():
        pass


def test_a_file_system_without_locks_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run = Run.create(tmp_path, plan())

    def refuse(file: Any, operation: int) -> None:
        raise OSError(errno.ENOLCK, "No locks available")

    monkeypatch.setattr(fcntl, "flock", refuse)
    message = "`run` is on a file system without locks (No locks available); expected one that has them. Mount it with"
    with pytest.raises(RunError, match=re.escape(message)), run.locked():
        pytest.fail("nothing is locked")


WRITER = """
import os, sys, time
from pathlib import Path
from robench.runs import Run
from tests.test_runs import shard
run = Run.open(Path(sys.argv[1]))
run.write_shard(shard(run, 0))
def stuck(_):
    print("writing", flush=True)
    time.sleep(600)
os.fsync = stuck
with run.locked():
    run.write_shard(shard(run, 1))
"""


def test_a_run_killed_while_it_writes_goes_on_to_the_same_bytes(tmp_path: Path) -> None:
    finished_run(tmp_path / "whole")
    run = Run.create(tmp_path / "killed", plan())
    root = Path(__file__).parent.parent
    command = [sys.executable, "-c", WRITER, str(run.folder)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, cwd=root) as writer:
        assert writer.stdout is not None
        assert writer.stdout.readline() == "writing\n"
        writer.kill()
    assert run.missing_shards() == [1, 2, 3]
    assert run.read_shard(0) == shard(run, 0)
    with run.locked():
        fill(run).merge(ENVIRONMENT)
    for name in ("outcomes.csv.gz", "result.json"):
        assert (run.folder / name).read_bytes() == (tmp_path / "whole" / name).read_bytes()


def test_ctrl_c_is_heard_after_the_write(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run = Run.create(tmp_path / "run", plan())
    flush = os.fsync

    def interrupted(descriptor: int) -> None:
        signal.raise_signal(signal.SIGINT)
        flush(descriptor)

    handler = signal.getsignal(signal.SIGINT)
    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", interrupted)
        with pytest.raises(KeyboardInterrupt):
            run.write_shard(shard(run, 0))
    assert run.read_shard(0).index == 0
    assert signal.getsignal(signal.SIGINT) is handler


def test_a_folder_with_other_files_is_no_place_for_a_run(tmp_path: Path) -> None:
    (tmp_path / "thesis.tex").write_text("all of it")
    with pytest.raises(
        RunError, match=r"`run_dir` is a folder with other files, such as 'thesis\.tex'; expected a new"
    ):
        Run.create(tmp_path, plan())
    assert [path.name for path in tmp_path.iterdir()] == ["thesis.tex"]


def test_what_a_run_itself_puts_there_first_is_nothing_else(tmp_path: Path) -> None:
    """Hidden files, shards of a process that is just as early, and adversarial images."""
    for name in ("shards", "images", ".cache"):
        (tmp_path / name).mkdir()
    (tmp_path / "images" / MARKER).write_text("{}")
    assert Run.create(tmp_path, plan()).folder == tmp_path
