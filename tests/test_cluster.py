"""Runs on Ray: the same bytes, whoever is killed. Each starts a cluster of its own, which takes seconds."""

import os
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from robench.cluster import RayCrew, check_executor, cluster, crew_of
from robench.errors import ModelError, RunError
from robench.runs import Run
from tests.fakes import SLOW_COMMAND, SLOW_MODULE
from tests.test_runs import plan

ROOT = Path(__file__).parent.parent


def test_an_executor_that_is_none_is_refused() -> None:
    check_executor("sweep", "local")
    with pytest.raises(RunError) as caught:
        check_executor("sweep", "rai")
    assert str(caught.value) == "sweep: `executor` is `rai`; expected `local` or `ray`. Did you mean `ray`?"


@pytest.mark.parametrize(
    ("processes", "address", "found"), [(2, None, "`processes` is 2"), (1, "head:6379", "`address` is `head:6379`")]
)
def test_what_is_meant_for_ray_is_not_ignored_without_it(processes: int, address: str | None, found: str) -> None:
    with pytest.raises(RunError) as caught, crew_of("local", processes, address, device=None):
        pytest.fail("nobody would start them")
    advice = "Add `--executor ray`; or use torchrun, see docs/scale.md."
    assert str(caught.value) == f"evaluate: {found}; expected none without Ray. {advice}"


def test_a_missing_ray_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "ray", None)
    with pytest.raises(RunError) as caught, cluster():
        pytest.fail("there is no ray")
    advice = "Install it: `pip install 'robench[ray]'`."
    assert str(caught.value) == f"robench: `ray` is not installed; expected the package. {advice}"


class _Lost(Exception):  # noqa: N818  # named as in Ray
    """A worker that is gone."""


class _Failed(_Lost):
    """A task whose own code failed."""

    def __init__(self, cause: Exception) -> None:
        super().__init__(str(cause))
        self.cause = cause


class FakeRay:
    """Ray's functions that are used here, on tasks that end as they are told."""

    class exceptions:  # noqa: N801  # named as in Ray
        """Ray's errors."""

        RayError, RayTaskError = _Lost, _Failed

    def __init__(self, *ends: Exception | None) -> None:
        self.ends = list(ends)

    def remote(self, **needs: Any) -> Callable[..., Any]:
        return lambda work: self

    def wait(self, tasks: list[int], *, num_returns: int, timeout: float) -> tuple[list[int], list[int]]:
        return tasks, []

    def get(self, task: int) -> None:
        end = self.ends[task]
        if end is not None:
            raise end


@pytest.mark.parametrize(
    ("ends", "error", "message"),
    [
        ([None, _Failed(ModelError("the model is wrong"))], ModelError, "the model is wrong"),
        (
            [_Lost("out of memory"), None],
            RunError,
            r"ray: `workers` is lost, 4 times \(out of memory\); expected living workers. What is finished is kept",
        ),
        ([_Failed(ValueError("own code"))], _Failed, "own code"),
    ],
)
def test_a_crew_that_is_gone_says_why(ends: list[Exception | None], error: type[Exception], message: str) -> None:
    crew = RayCrew(FakeRay(*ends), len(ends))
    crew._tasks = list(range(len(ends)))
    with pytest.raises(error, match=message):
        crew.check()


@pytest.fixture
def environment(tmp_path: Path) -> dict[str, str]:
    (tmp_path / "slow_mini.py").write_text(SLOW_MODULE)
    path = os.pathsep.join([str(tmp_path), str(ROOT), os.environ.get("PYTHONPATH", "")])
    return {**os.environ, "PYTHONPATH": path, "OMP_NUM_THREADS": "1"}


@contextmanager
def _on_ray(folder: Path, environment: dict[str, str], processes: int) -> Iterator["subprocess.Popen[bytes]"]:
    pytest.importorskip("ray", reason="needs `pip install robench[ray]`")
    arguments = ["--run-dir", str(folder), "--executor", "ray", "--processes", str(processes)]
    with subprocess.Popen([sys.executable, *SLOW_COMMAND, *arguments], env=environment) as started:
        try:
            yield started
        finally:
            started.terminate()


def _attackers(folder: Path, coordinator: int) -> set[int]:
    found = {int(path.stem.split("-")[1]) for path in (folder / "workers").glob("*.jsonl")}
    return found - {coordinator}


def _until(condition: Callable[[], object], seconds: float = 120) -> None:
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.02)


def _same(folder: Path, whole: Path) -> None:
    for name in ("outcomes.csv.gz", "result.json"):
        assert (folder / name).read_bytes() == (whole / name).read_bytes(), name


def _ancestor(process: int, name: str) -> int:
    """The nearest parent whose name begins so."""
    while process > 1:
        lines = dict(line.split(":\t", 1) for line in Path(f"/proc/{process}/status").read_text().splitlines())
        if lines["Name"].startswith(name):
            return process
        process = int(lines["PPid"])
    pytest.fail(f"no {name} among the parents")


@pytest.fixture
def whole(tmp_path: Path, environment: dict[str, str]) -> Path:
    folder = tmp_path / "whole"
    subprocess.run([sys.executable, *SLOW_COMMAND, "--run-dir", str(folder)], env=environment, check=True)
    return folder


@pytest.mark.slow
@pytest.mark.parametrize("processes", [2, 4])
def test_ray_gives_the_same_bytes(tmp_path: Path, environment: dict[str, str], whole: Path, processes: int) -> None:
    folder = tmp_path / "ray"
    with _on_ray(folder, environment, processes) as started:
        assert started.wait(timeout=170) == 0
    _same(folder, whole)
    wrote = Counter(event["shard"] for event in Run.open(folder).events() if "shard" in event)
    assert wrote == Counter(range(6))


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_a_killed_ray_worker_changes_no_byte(tmp_path: Path, environment: dict[str, str], whole: Path) -> None:
    folder = tmp_path / "ray"
    with _on_ray(folder, environment, 2) as started:
        _until(lambda: _attackers(folder, started.pid) and Run.open(folder).finished_shards())
        os.kill(min(_attackers(folder, started.pid)), signal.SIGKILL)
        assert started.wait(timeout=170) == 0  # Ray starts it again, or the other takes over
    _same(folder, whole)


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_a_killed_ray_head_loses_nothing(tmp_path: Path, environment: dict[str, str], whole: Path) -> None:
    folder = tmp_path / "ray"
    with _on_ray(folder, environment, 2) as started:
        _until(lambda: _attackers(folder, started.pid) and Run.open(folder).finished_shards())
        os.kill(_ancestor(min(_attackers(folder, started.pid)), "raylet"), signal.SIGKILL)
        started.wait(timeout=170)
    subprocess.run([sys.executable, *SLOW_COMMAND, "--run-dir", str(folder)], env=environment, check=True)
    _same(folder, whole)


def test_a_plan_is_there_to_be_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A crew is told of a run that is planned, and of nothing it must not send."""
    sent: list[tuple[Any, ...]] = []
    run = Run.create(tmp_path / "run", plan())

    class Sending(FakeRay):
        def remote(self, *given: Any, **needs: Any) -> Any:
            if given:
                sent.append(given)
                return len(sent) - 1
            return lambda work: self

    from robench.evaluation import Options
    from robench.progress import Silent
    from robench.share import Rank

    crew = RayCrew(Sending(), 2)
    monkeypatch.chdir(tmp_path)
    (tmp_path / "images").mkdir()
    kept, images = Path("fooling"), Path("images")
    options = Options(
        watcher=Silent(), crew=crew, fresh=True, textures=images, clean="hf-hub:org/name", save_adversarial=kept
    )
    crew.take_on("mini-resnet", data="images", run_dir="elsewhere", options=options)
    crew.start(run, save_adversarial=tmp_path / "fooling" / "of-this-protocol")
    assert [model for model, _, _ in sent] == ["mini-resnet"] * 2
    assert {protocol for _, protocol, _ in sent} == {run.plan.parsed_protocol().exact_name}
    assert [given["run_dir"] for _, _, given in sent] == [str(run.folder.resolve())] * 2
    assert [given["options"].rank for _, _, given in sent] == [Rank(1, 2), Rank(2, 2)]
    assert {given["options"].crew for _, _, given in sent} == {None}
    assert {given["options"].fresh for _, _, given in sent} == {False}  # it would delete what the others make
    assert {given["data"] for _, _, given in sent} == {str(tmp_path / "images")}
    assert {given["options"].textures for _, _, given in sent} == {tmp_path / "images"}
    told = {given["options"].save_adversarial for _, _, given in sent}
    assert told == {tmp_path / "fooling" / "of-this-protocol"}, "of several protocols each has a folder of its own"
    assert {given["options"].clean for _, _, given in sent} == {"hf-hub:org/name"}
