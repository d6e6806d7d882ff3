"""Models are trained and scored once, whatever is stopped; the report is the same."""

import multiprocessing
import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from robench.errors import RunError
from robench.reproduction import Plan
from robench.reproduction.report import report
from robench.reproduction.scores import Scores
from robench.reproduction.work import Finished, is_finished, run_dir, weights_of, work
from tests.reproduction import tiny


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("reproduced")


@pytest.fixture(scope="module")
def plan(folder: Path) -> Plan:
    return tiny.plan(folder, ("seeds = [1, 2, 3]", "seeds = [2]"))


@pytest.fixture(scope="module")
def told(plan: Plan, folder: Path) -> list[Finished]:
    """What was told while the plan was carried out."""
    told: list[Finished] = []
    work(plan.jobs(), folder, processes=0, tell=told.append)
    return told


def test_every_model_is_trained_and_scored_teachers_first(plan: Plan, folder: Path, told: list[Finished]) -> None:
    assert [finished.job.name for finished in told] == ["plain-s2", "taught-s2"]
    assert [(finished.done, finished.total) for finished in told] == [(count, 2) for count in range(1, 3)]
    assert told[0].left > 0 == told[-1].left
    assert all(is_finished(job, folder) for job in plan.jobs())


def test_a_second_call_does_nothing(plan: Plan, folder: Path, told: list[Finished]) -> None:
    before = {path: path.stat().st_mtime_ns for path in folder.rglob("*") if path.is_file()}
    work(plan.jobs(), folder, processes=0, tell=lambda finished: pytest.fail("nothing was missing"))
    assert {path: path.stat().st_mtime_ns for path in folder.rglob("*") if path.is_file()} == before


def test_what_is_missing_is_done_again_and_comes_out_the_same(plan: Plan, folder: Path, told: list[Finished]) -> None:
    before = report(plan, folder)
    job, student = plan.jobs()
    weights_of(job, folder).unlink()
    (folder / "trained" / f"{job.name}.checkpoint").unlink()
    (run_dir(student, folder, "mini-stylized") / "result.json").unlink()
    again: list[Finished] = []
    work(plan.jobs(), folder, processes=0, tell=again.append)
    assert [finished.job.name for finished in again] == ["plain-s2", "taught-s2"]
    assert report(plan, folder) == before


def test_models_of_another_recipe_are_refused(plan: Plan, folder: Path, told: list[Finished]) -> None:
    other = plan.model_copy(update={"examples": 96})
    with pytest.raises(RunError, match=r"`recipe_sha256` is [0-9a-f]{64}; expected .*Choose another `--out`\.$"):
        work(other.jobs(), folder, processes=0, tell=told.append)


def test_scores_are_those_of_the_results(plan: Plan, folder: Path, told: list[Finished]) -> None:
    found = Scores(plan, folder).of(plan.arm("taught"), "mini-stylized")
    assert found.means("headline") == pytest.approx([result.headline.value for result in found.results], abs=1e-6)
    assert len(found.results) == 1
    with pytest.raises(RunError, match=r"^mini-stylized@1: `score` is not measured; expected clean images\."):
        found.shares("clean")


def test_scores_that_are_missing_are_named_with_the_command(plan: Plan, tmp_path: Path) -> None:
    with pytest.raises(
        RunError, match=r"missing of 2 models \(plain-s2 first\); .*`robench reproduce .*/plan.toml --out "
    ):
        Scores(plan, tmp_path)


def test_a_process_that_is_lost_ends_the_work(plan: Plan, tmp_path: Path) -> None:
    def lose() -> None:
        while not (children := multiprocessing.active_children()):
            time.sleep(0.01)
        os.kill(children[0].pid or 0, signal.SIGKILL)

    thread = threading.Thread(target=lose)
    thread.start()
    with pytest.raises(RunError, match=r"`process` is lost \(exit code -9\); expected .*The same command goes on; "):
        work(plan.jobs(), tmp_path, processes=1, tell=lambda finished: None)
    thread.join()
    assert not multiprocessing.active_children()


def _command(folder: Path, out: Path) -> list[str]:
    return [
        sys.executable,
        "-m",
        "robench",
        "reproduce",
        str(folder / "plan.toml"),
        "--out",
        str(out),
        "--processes",
        "2",
    ]


@pytest.mark.slow
def test_killed_at_any_moment_it_ends_the_same(plan: Plan, folder: Path, told: list[Finished], tmp_path: Path) -> None:
    """While nothing is trained, after a model, and in the middle of one."""
    expected, out = report(plan, folder), tmp_path / "out"
    for seconds in (4, 7, 9, 12):
        process = subprocess.Popen(_command(folder, out), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        time.sleep(seconds)
        process.kill()
        process.wait()
    done = subprocess.run(_command(folder, out), capture_output=True, text=True, check=True)
    assert done.stdout == expected
    assert (out / "report.md").read_text() == expected
