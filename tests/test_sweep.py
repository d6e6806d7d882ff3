import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from robench import sweep as sweep_room
from robench.errors import ProtocolError, RunError
from robench.sweep import (
    Job,
    Row,
    SweepPlan,
    carry_out,
    gpu_share,
    read_sweep,
    row_without_its_model,
    shards_done,
    sweep,
    works_of,
)

PLAN = """
schema = "robench.sweep/1"
protocols = ["mini-pgd-linf"]
run_dir = "{folder}"
limit = 4
[[models]]
model = "mini-resnet"
survivors = 0.25
[[models]]
model = "nowhere:model"
"""


@pytest.fixture
def plan(tmp_path: Path) -> SweepPlan:
    path = tmp_path / "plan.toml"
    path.write_text(PLAN.format(folder=tmp_path / "sweep"))
    return read_sweep(path)


def test_a_failure_is_a_row_and_a_restart_skips_what_is_done(plan: SweepPlan, monkeypatch: pytest.MonkeyPatch) -> None:
    told: list[Row] = []
    rows = sweep(plan, None, processes=1, on_row=told.append)
    assert told == rows
    assert [row.job for row in rows] == ["mini-resnet under mini-pgd-linf", "nowhere:model under mini-pgd-linf"]
    assert rows[0].result.startswith("clean ")
    assert rows[0].error == ""
    assert rows[1].result == ""
    assert "`nowhere:model`" in rows[1].error
    summary = json.loads((plan.run_dir / "summary.json").read_text())
    assert summary == [row.__dict__ for row in rows]
    assert shards_done(plan) == (1, 1)
    events = (Path(rows[0].folder) / "events.jsonl").read_bytes()
    assert sweep(plan, None, processes=1, on_row=told.append) == rows
    assert (Path(rows[0].folder) / "events.jsonl").read_bytes() == events  # nothing was attacked again


def _changed(plan: SweepPlan, **changes: Any) -> SweepPlan:
    """The plan with other values, those of its first model under `models.`."""
    own = {name.removeprefix("models."): value for name, value in changes.items() if name.startswith("models.")}
    rest = {name: value for name, value in changes.items() if not name.startswith("models.")}
    return plan.model_copy(update={**rest, "models": (plan.models[0].model_copy(update=own), *plan.models[1:])})


def test_a_finished_run_is_read_without_its_model_unless_something_else_is_meant(
    plan: SweepPlan, tmp_path: Path
) -> None:
    [job, _] = plan.jobs()
    assert row_without_its_model(job) is None
    row = carry_out(job)
    assert row_without_its_model(job) == row
    for same in (_changed(plan, batch_size=16), _changed(plan, **{"models.survivors": 1.0})):
        assert row_without_its_model(same.jobs()[0]) == row
    own = {"models.name": "mini-resnet"}  # in the same folder
    others: list[dict[str, Any]] = [
        {"limit": 5},
        {"limit": None},
        {"data": tmp_path},
        {"models.model": "mini-deit", **own},
        {"models.model": "mini-resnet@1", **own},
        {"models.weights": tmp_path / "weights.safetensors"},
    ]
    for changes in others:
        other = _changed(plan, **changes).jobs()[0]
        assert other.folder == job.folder
        assert row_without_its_model(other) is None, changes
    (job.folder / "outcomes.csv.gz").write_bytes(b"")
    assert row_without_its_model(job) is None


@pytest.mark.parametrize(
    ("where", "key", "value"),
    [
        ("plan", "attack_revision", 0),
        ("plan", "engine", "reference"),
        ("plan", "weights", "weights.safetensors"),
        ("model", "reference", "tests.fakes:model"),
        ("model", "name", "other"),
        ("protocol", "title", "Another"),
    ],
)
def test_a_run_of_something_else_is_not_taken_for_it(plan: SweepPlan, where: str, key: str, value: Any) -> None:
    job = _changed(plan, **{"models.name": "mini-resnet"}).jobs()[0]
    assert row_without_its_model(job) is None
    carry_out(job)
    assert row_without_its_model(job) is not None
    path = job.folder / "plan.json"
    content = json.loads(path.read_text())
    (content if where == "plan" else content[where])[key] = value
    path.write_text(json.dumps(content))
    assert row_without_its_model(job) is None


def test_a_restart_starts_no_task_for_what_is_finished(plan: SweepPlan) -> None:
    done = carry_out(plan.jobs()[0])
    ray = _Ray(lambda job: Row(job.name, "", result="fine"))
    rows = sweep(plan, ray, processes=2, on_row=lambda row: None)
    assert rows == [done, Row(plan.jobs()[1].name, "", result="fine")]
    assert ray.started == [plan.jobs()[1].name]


def test_whatever_a_model_raises_is_a_row(plan: SweepPlan, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*given: Any, **more: Any) -> None:
        raise ZeroDivisionError("own code")

    monkeypatch.setattr(sweep_room, "evaluate", broken)
    assert carry_out(plan.jobs()[0]).error == "ZeroDivisionError: own code"


class _Ray:
    """Tasks that end in order of their start; what each does is told."""

    class exceptions:  # noqa: N801  # named as in Ray
        """Ray's errors."""

        class RayError(Exception):  # named as in Ray
            """A worker that is gone."""

    def __init__(self, work: Callable[[Job], Row | None]) -> None:
        self.work, self.started, self.going = work, [], []  # type: ignore[var-annotated]

    def remote(self, *given: Any, **needs: Any) -> Any:
        if not given or not isinstance(given[0], Job):
            return (lambda work: self) if needs else self
        self.started.append(given[0].name)
        self.going.append(given[0])
        return len(self.started) - 1

    def wait(self, tasks: list[int], *, timeout: float) -> tuple[list[int], list[int]]:
        return tasks[:1], tasks[1:]

    def get(self, task: int) -> Row:
        row = self.work(self.going[task])
        if row is None:
            raise self.exceptions.RayError("out of memory")
        return row


def test_a_worker_that_is_lost_for_good_is_a_row(plan: SweepPlan) -> None:
    ray = _Ray(lambda job: None if "nowhere" in job.name else Row(job.name, "", result="fine"))
    rows = sweep(plan, ray, processes=2, on_row=lambda row: None)
    assert [(row.result, row.error) for row in rows] == [
        ("fine", ""),
        ("", "the worker was lost 4 times: out of memory"),
    ]
    assert ray.started == [job.name for job in plan.jobs()]


def test_who_has_nothing_to_do_helps_where_most_is_left(plan: SweepPlan, monkeypatch: pytest.MonkeyPatch) -> None:
    missing = {plan.jobs()[0].name: 12, plan.jobs()[1].name: 3}
    monkeypatch.setattr(sweep_room._Tasks, "_missing", staticmethod(lambda job: missing[job.name]))

    def work(job: Job) -> Row:
        missing[job.name] = 0
        return Row(job.name, "", result="fine")

    ray = _Ray(work)
    rows = sweep(plan, ray, processes=5, on_row=lambda row: None)
    assert [row.result for row in rows] == ["fine", "fine"]
    first, second = (job.name for job in plan.jobs())
    # 12 shards for one, 6 for each of two, 4 for each of three, against 3; when those are made, one helps with the 3.
    assert ray.started == [first, second, first, first, first, second]


def test_a_run_gets_a_whole_gpu_until_its_model_is_measured(plan: SweepPlan, monkeypatch: pytest.MonkeyPatch) -> None:
    job = plan.jobs()[0]
    assert gpu_share(job) == 1.0
    carry_out(job)
    cost = job.folder / "cost.json"
    content = json.loads(cost.read_text())

    class Properties:
        total_memory = 80 * 2**30

    monkeypatch.setattr("torch.cuda.is_available", lambda: True)
    monkeypatch.setattr("torch.cuda.get_device_properties", lambda index: Properties)
    for gigabytes, share in ((1, 0.125), (8, 0.125), (9, 0.25), (40, 0.625), (79, 1.0)):
        cost.write_text(json.dumps({**content, "peak_memory_bytes": gigabytes * 2**30}))
        assert gpu_share(job) == share


def test_what_is_damaged_stops_neither_measuring_nor_counting(plan: SweepPlan, monkeypatch: pytest.MonkeyPatch) -> None:
    """A run that was killed while it was merged, or whose plan is cut off, beside a sound one."""
    job = plan.jobs()[0]
    carry_out(job)
    (job.folder / "result.json").unlink()
    other = job.folder.parent / "other"
    other.mkdir()
    (other / "cost.json").write_text("{")

    class Properties:
        total_memory = 2**30

    monkeypatch.setattr("torch.cuda.is_available", lambda: True)
    monkeypatch.setattr("torch.cuda.get_device_properties", lambda index: Properties)
    assert gpu_share(job) == 1.0
    (job.folder / "plan.json").write_text("{")
    assert sweep_room._Tasks._missing(job) == 0
    shards_done(plan)


def test_paths_of_a_plan_mean_the_same_everywhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "images").mkdir()
    (tmp_path / "sweep.toml").write_text(
        'schema = "robench.sweep/1"\nprotocols = ["mini-pgd-linf"]\nrun_dir = "runs"\ndata = "images"\n'
        '[[models]]\nmodel = "mini-resnet"\n'
    )
    found = read_sweep(tmp_path / "sweep.toml")
    assert (found.run_dir, found.data) == (tmp_path / "runs", tmp_path / "images")


def test_what_a_sweep_would_take_comes_from_a_few_batches(plan: SweepPlan) -> None:
    first = SweepPlan.model_validate({**plan.model_dump(by_alias=True), "models": [plan.models[0]]})
    [work] = works_of(first)
    assert work.name == "mini-resnet under mini-pgd-linf"
    assert (work.survivors, work.shard_size) == (0.25, 16)
    assert 0 < work.examples <= 4
    assert work.surviving_seconds > 0
    assert not plan.run_dir.exists()


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("limit = 4", "limits = 4", r"`limits` is 4; expected Extra inputs are not permitted\. docs/scale\.md"),
        ("limit = 4", "limit = 0", r"`limit` is 0; expected greater than 0"),
        ("schema", "sch ema", r"`file` is no TOML \(.*\); expected the plan of a sweep\."),
        (
            "nowhere:model",
            "mini-resnet",
            "`models` is naming `mini-resnet under mini-pgd-linf` twice; expected a `name`",
        ),
    ],
)
def test_a_wrong_plan_is_refused(tmp_path: Path, old: str, new: str, message: str) -> None:
    path = tmp_path / "plan.toml"
    path.write_text(PLAN.format(folder=tmp_path).replace(old, new))
    with pytest.raises(RunError, match=message):
        read_sweep(path)


def test_a_plan_with_an_unknown_protocol_or_none_at_all_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "plan.toml"
    with pytest.raises(RunError, match=r"`file` is unreadable \(.*\); expected the plan of a sweep\."):
        read_sweep(path)
    path.write_text(PLAN.format(folder=tmp_path).replace("mini-pgd-linf", "mini-pdg-linf"))
    with pytest.raises(ProtocolError, match="mini-pdg-linf"):
        read_sweep(path)
