"""A run may be killed at any moment, or lose its disk, and ends in the same bytes once it is resumed."""

import contextlib
import json
import os
import random
import signal
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from robench.data import ArraySource
from robench.errors import RunError
from robench.evaluation import Options, evaluate
from robench.runs import Run
from tests.fakes import random_images, small_net
from tests.test_evaluation import PROTOCOL

COUNT = 200
SHARD = 8


@pytest.fixture
def protocol(tmp_path: Path) -> Path:
    path = tmp_path / "own.toml"
    path.write_text(PROTOCOL.format(digest="0" * 64).replace("steps = 8", "steps = 20"))
    return path


def _evaluate(protocol: Path, folder: Path, count: int = COUNT) -> None:
    """The same evaluation in every process, slowed down a little so that kills fall inside it."""
    net = small_net()
    images = random_images(count)
    with torch.no_grad():
        labels = net(images).argmax(dim=1)
    net.register_forward_pre_hook(lambda module, arguments: time.sleep(0.002))
    data = ArraySource(images, labels, classes=4)
    evaluate(net, protocol, data=data, run_dir=folder, batch_size=16, options=Options(shard_size=SHARD))


def _fork(protocol: Path, folder: Path) -> int:
    """A child of this process, which has imported torch and holds no threads of it."""
    child = os.fork()
    if child == 0:
        code = 1
        with contextlib.suppress(BaseException):
            _evaluate(protocol, folder)
            code = 0
        os._exit(code)
    return child


def _wait(child: int) -> None:
    _, status = os.waitpid(child, 0)
    assert status == 0, "the evaluation failed in the child"


def _shards(folder: Path) -> int:
    return len(list((folder / "shards").glob("[0-9]*.csv"))) if (folder / "shards").exists() else 0


def _kill_and_resume(protocol: Path, tmp_path: Path, seed: int, kills: int) -> list[int]:
    """Kill a run so many times, finish it, compare; returns the shards found after each kill."""
    torch.set_num_threads(1)  # in the children, so that they spin for no one
    whole, folder = tmp_path / "whole", tmp_path / "killed"
    _wait(_fork(protocol, whole))
    dice, found = random.Random(seed), [0]
    for _ in range(kills):
        child, goal = _fork(protocol, folder), found[-1] + dice.randint(0, 24 // kills)
        while _shards(folder) < goal:
            assert os.waitpid(child, os.WNOHANG) == (0, 0), "the kill must fall inside the run"
            time.sleep(0.001)
        time.sleep(dice.uniform(0, 0.05))
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)
        found.append(_shards(folder))
    _wait(_fork(protocol, folder))
    for name in ("outcomes.csv.gz", "result.json"):
        assert (folder / name).read_bytes() == (whole / name).read_bytes(), name
    return found


@pytest.fixture(autouse=True)
def _threads() -> Iterator[None]:
    threads = torch.get_num_threads()
    yield
    torch.set_num_threads(threads)


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
@pytest.mark.filterwarnings("ignore:.*multi-threaded, use of fork:DeprecationWarning")
def test_a_run_killed_three_times_ends_in_the_same_bytes(tmp_path: Path, protocol: Path) -> None:
    found = _kill_and_resume(protocol, tmp_path, seed=0, kills=3)
    assert found == sorted(found)
    assert 0 < found[-1] < COUNT // SHARD


@pytest.mark.slow
@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
@pytest.mark.filterwarnings("ignore:.*multi-threaded, use of fork:DeprecationWarning")
@pytest.mark.parametrize("seed", range(1, 5))
def test_four_runs_killed_five_times_each_end_in_the_same_bytes(tmp_path: Path, protocol: Path, seed: int) -> None:
    assert _kill_and_resume(protocol, tmp_path, seed=seed, kills=5)[-1] > 0


@pytest.mark.parametrize("damage", ["truncated", "edited", "foreign"])
def test_a_damaged_shard_is_refused_with_both_digests(tmp_path: Path, protocol: Path, damage: str) -> None:
    folder = tmp_path / "run"
    _evaluate(protocol, folder, count=40)
    shard, run = folder / "shards" / "000002.csv", Run.open(folder)
    content = shard.read_bytes()
    stated = json.loads(content.splitlines()[0].removeprefix(b"# "))["sha256"]
    other = tmp_path / "other"
    if damage == "truncated":
        shard.write_bytes(content[:-20])
    elif damage == "edited":
        shard.write_bytes(content.replace(b",pgd,", b",,", 1))
        assert shard.read_bytes() != content
    else:
        _evaluate(protocol, other, count=48)
        shard.write_bytes((other / "shards" / "000002.csv").read_bytes())
    (folder / "result.json").unlink()
    with pytest.raises(RunError) as caught:
        _evaluate(protocol, folder, count=40)
    message = str(caught.value)
    if damage == "foreign":
        assert f"`run` is {Run.open(other).plan.key}; expected {run.plan.key} (a shard of this run)." in message
    else:
        assert f"expected {stated}, as its header says." in message
        assert "`sha256` is " in message
    assert message.endswith("Delete the file and resume: its 8 examples are attacked again.")
    shard.unlink()
    _evaluate(protocol, folder, count=40)
    assert shard.read_bytes() == content


@contextlib.contextmanager
def _tmpfs(folder: Path, size: str) -> Iterator[None]:
    folder.mkdir()
    command = ["mount", "-t", "tmpfs", "-o", f"size={size}", "tmpfs", str(folder)]
    try:
        mounted = subprocess.run(command, capture_output=True, text=True, check=False)
    except OSError as error:
        pytest.skip(f"cannot mount a small disk here: {error}")
    if mounted.returncode:
        pytest.skip(f"cannot mount a small disk here: {mounted.stderr.strip()}")
    try:
        yield
    finally:
        subprocess.run(["umount", str(folder)], check=True)


def test_a_full_disk_stops_the_run_and_keeps_it_resumable(tmp_path: Path, protocol: Path) -> None:
    whole, disk = tmp_path / "whole", tmp_path / "disk"
    _evaluate(protocol, whole)
    with _tmpfs(disk, "64k"):
        ballast = disk / "ballast"
        folder = disk / "run"
        ballast.write_bytes(b"x" * 16 * 1024)
        with pytest.raises(RunError) as caught:
            _evaluate(protocol, folder)
        assert str(caught.value) == (
            f"{folder}: `run_dir` is not writable (No space left on device); expected room to write. "
            f"What is finished is kept: make room, then `robench resume {folder}`."
        )
        run = Run.open(folder)
        assert 0 < len(run.missing_shards()) < run.plan.shards
        assert not list(folder.rglob("*.tmp"))
        ballast.unlink()
        subprocess.run(["mount", "-o", "remount,size=4m", str(disk)], check=True)
        _evaluate(protocol, folder)
        for name in ("outcomes.csv.gz", "result.json"):
            assert (folder / name).read_bytes() == (whole / name).read_bytes(), name
