"""torchrun: ranks share a run, and a worker that is killed takes nobody down."""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from robench.cli.ranks import check_ranks, device_of, rank_of
from robench.errors import RunError
from robench.runs import Run
from robench.share import Rank
from tests.fakes import SLOW_COMMAND, SLOW_MODULE

ROOT = Path(__file__).parent.parent.parent


@pytest.mark.parametrize(
    ("environment", "expected"),
    [
        ({}, None),
        ({"RANK": "0", "WORLD_SIZE": "1", "LOCAL_RANK": "0"}, None),
        ({"RANK": "5", "WORLD_SIZE": "8", "LOCAL_RANK": "1"}, Rank(5, 8, 1)),
        ({"SLURM_PROCID": "2", "SLURM_STEP_NUM_TASKS": "4", "SLURM_LOCALID": "0"}, Rank(2, 4, 0)),
        ({"SLURM_PROCID": "0", "SLURM_NTASKS": "4"}, None),  # a batch script outside srun
        ({"RANK": "1", "WORLD_SIZE": "2", "SLURM_PROCID": "0", "SLURM_STEP_NUM_TASKS": "1"}, Rank(1, 2, 0)),
    ],
)
def test_who_this_is_stands_in_the_environment(environment: dict[str, str], expected: Rank | None) -> None:
    assert rank_of(environment) == expected


@pytest.mark.parametrize("index", ["4", "-1", "first"])
def test_a_rank_that_makes_no_sense_is_refused(index: str) -> None:
    with pytest.raises(RunError) as caught:
        rank_of({"RANK": index, "WORLD_SIZE": "4", "LOCAL_RANK": "0"})
    found = f"`RANK` is RANK={index}, WORLD_SIZE=4, LOCAL_RANK=0"
    assert str(caught.value) == f"environment: {found}; expected a rank below the number of ranks, from 0."


def test_several_ranks_do_not_start_over_together() -> None:
    check_ranks(None, fresh=True, estimate=True)
    with pytest.raises(RunError) as caught:
        check_ranks(Rank(0, 2), fresh=True, estimate=False)
    advice = "Clear the folder with one process first, or choose a new `--run-dir`."
    assert str(caught.value) == f"evaluate: `--fresh` is given to 2 ranks; expected one process. {advice}"


def test_ranks_on_a_host_get_a_device_each(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("torch.cuda.device_count", lambda: 4)
    assert [device_of(Rank(7, 16, local), "cuda") for local in (0, 3, 4)] == ["cuda:0", "cuda:3", "cuda:0"]
    assert device_of(Rank(7, 16, 3), "cpu") == "cpu"
    assert device_of(Rank(7, 16, 3), None) is None
    assert device_of(None, "cuda") == "cuda"


@pytest.fixture
def environment(tmp_path: Path) -> dict[str, str]:
    (tmp_path / "slow_mini.py").write_text(SLOW_MODULE)
    path = os.pathsep.join([str(tmp_path), str(ROOT), os.environ.get("PYTHONPATH", "")])
    return {**os.environ, "PYTHONPATH": path, "OMP_NUM_THREADS": "1"}


@contextmanager
def _torchrun(
    folder: Path, environment: dict[str, str], *, ranks: int, log: Path
) -> Iterator["subprocess.Popen[bytes]"]:
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(ranks)]
    with log.open("wb") as file:
        arguments = [*SLOW_COMMAND, "--run-dir", str(folder)]
        with subprocess.Popen([*command, *arguments], env=environment, stdout=file, stderr=file) as started:
            try:
                yield started
            finally:
                started.terminate()


def _workers(folder: Path) -> dict[int, Path]:
    """Files of workers by process."""
    return {int(path.stem.split("-")[1]): path for path in (folder / "workers").glob("*.jsonl")}


def _until(condition: object, log: Path, *, seconds: float = 150) -> None:
    end = time.monotonic() + seconds
    while not condition():  # type: ignore[operator]
        assert time.monotonic() < end, log.read_text()
        time.sleep(0.02)


def _alive(process: int) -> bool:
    try:
        return "\nState:\tZ" not in Path(f"/proc/{process}/status").read_text()
    except OSError:
        return False


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_a_killed_worker_is_started_again_and_a_killed_rank_leaves_no_orphan(
    tmp_path: Path, environment: dict[str, str]
) -> None:
    whole, folder, log = tmp_path / "whole", tmp_path / "run", tmp_path / "log"
    subprocess.run([sys.executable, *SLOW_COMMAND, "--run-dir", str(whole)], env=environment, check=True)
    with _torchrun(folder, environment, ranks=2, log=log) as started:
        _until(lambda: len(_workers(folder)) == 2 and Run.open(folder).finished_shards(), log)
        victim = max(_workers(folder))
        os.kill(victim, signal.SIGKILL)
        assert started.wait(timeout=170) == 0, log.read_text()
    text = log.read_text()
    assert "its worker was ended by SIGKILL; starting it again (1 of 3)." in text
    for name in ("outcomes.csv.gz", "result.json"):
        assert (folder / name).read_bytes() == (whole / name).read_bytes(), name
    assert text.count("run: ") == 1  # rank 0 alone reports

    again = tmp_path / "again"
    with _torchrun(again, environment, ranks=2, log=log) as started:
        _until(lambda: len(_workers(again)) == 2 and Run.open(again).finished_shards(), log)
        workers = list(_workers(again))
        status = Path(f"/proc/{workers[0]}/status").read_text()
        guardian = int(next(line.split()[1] for line in status.splitlines() if line.startswith("PPid:")))
        os.kill(guardian, signal.SIGKILL)
        assert started.wait(timeout=170) != 0  # torchrun ends all ranks when one of its children dies
        _until(lambda: not any(map(_alive, workers)), log)
    assert not (again / "result.json").exists()
    subprocess.run([sys.executable, *SLOW_COMMAND, "--run-dir", str(again)], env=environment, check=True)
    assert (again / "outcomes.csv.gz").read_bytes() == (whole / "outcomes.csv.gz").read_bytes()
