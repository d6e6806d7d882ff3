"""Two hosts under torchrun's rendezvous, one cut off in the middle: network namespaces stand in for them."""

import contextlib
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from robench.cli.rendezvous import LOOK_SECONDS, SILENT_SECONDS
from robench.runs import Run
from tests.cli.test_ranks import ROOT
from tests.fakes import SLOW_COMMAND, SLOW_MODULE

NODES = ("robench-a", "robench-b")
ADDRESSES = ("10.213.77.1", "10.213.77.2")


def _ip(*words: str) -> None:
    done = subprocess.run(["ip", *words], capture_output=True, text=True, check=False)
    if done.returncode:
        pytest.skip(f"cannot make network namespaces here: ip {' '.join(words)}: {done.stderr.strip()}")


@pytest.fixture
def hosts() -> Iterator[None]:
    """Two network namespaces, joined by one cable."""
    if sys.platform != "linux" or shutil.which("ip") is None:
        pytest.skip("network namespaces need Linux and `ip`")
    with contextlib.ExitStack() as stack:
        for node in NODES:
            _ip("netns", "add", node)
            stack.callback(subprocess.run, ["ip", "netns", "del", node], check=False)
        _ip("link", "add", "rb-a", "netns", NODES[0], "type", "veth", "peer", "name", "rb-b", "netns", NODES[1])
        for node, device, address in zip(NODES, ("rb-a", "rb-b"), ADDRESSES, strict=True):
            _ip("-n", node, "address", "add", f"{address}/24", "dev", device)
            _ip("-n", node, "link", "set", device, "up")
            _ip("-n", node, "link", "set", "lo", "up")
        yield


def _start(node: str, folder: Path, log: Path, environment: dict[str, str]) -> "subprocess.Popen[bytes]":
    command = ["ip", "netns", "exec", node, sys.executable, "-m", "torch.distributed.run", "--nnodes", "2"]
    command += ["--nproc-per-node", "1", "--rdzv-backend", "c10d", "--rdzv-id", "7"]
    command += ["--rdzv-endpoint", f"{ADDRESSES[0]}:29511", "--rdzv-conf"]
    command += [f"is_host={int(node == NODES[0])},read_timeout=8"]
    command += ["--local-addr", ADDRESSES[NODES.index(node)], *SLOW_COMMAND, "--run-dir", str(folder)]
    with log.open("wb") as file:
        return subprocess.Popen(command, env=environment, stdout=file, stderr=file, start_new_session=True)


def _until(condition: Callable[[], object], seconds: float, logs: list[Path]) -> None:
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "\n".join(log.read_text() for log in logs)
        time.sleep(0.05)


def _family(parent: int) -> list[int]:
    """A process and all that it started, and what these started."""
    parents = {}
    for path in Path("/proc").glob("[0-9]*/status"):
        with contextlib.suppress(OSError):
            words = dict(line.split(":\t", 1) for line in path.read_text().splitlines())
            parents[int(path.parent.name)] = int(words["PPid"])
    found = [parent]
    for process in found:  # grows on the way
        found += [child for child, its_parent in parents.items() if its_parent == process]
    return found


def _lose(started: "subprocess.Popen[bytes]") -> None:
    """End everything on a host, as when its power is gone."""
    for process in _family(started.pid):
        with contextlib.suppress(ProcessLookupError):
            os.kill(process, signal.SIGKILL)
    started.wait()


@contextlib.contextmanager
def _both(folder: Path, environment: dict[str, str], logs: list[Path]) -> "Iterator[list[subprocess.Popen[bytes]]]":
    """One torchrun on each host, at work on the folder; lost in the end."""
    started = [_start(node, folder, log, environment) for node, log in zip(NODES, logs, strict=True)]
    try:
        _until(lambda: len(list((folder / "workers").glob("*.jsonl"))) == 2, 90, logs)
        yield started
    finally:
        for each in started:
            _lose(each)


def _cable(state: str) -> None:
    subprocess.run(["ip", "-n", NODES[1], "link", "set", "rb-b", state], check=True)


@pytest.fixture
def environment(tmp_path: Path) -> dict[str, str]:
    module = SLOW_MODULE.replace("0.02", "0.05").replace("mini-resnet", "mini-resnet-adv")
    (tmp_path / "slow_mini.py").write_text(module)
    path = os.pathsep.join([str(tmp_path), str(ROOT), os.environ.get("PYTHONPATH", "")])
    return {**os.environ, "PYTHONPATH": path, "OMP_NUM_THREADS": "1"}


def _same_as_alone(folder: Path, environment: dict[str, str]) -> None:
    """The bytes are those of one process that nothing happened to."""
    whole = folder.with_name("whole")
    command = [word.replace("slow_mini:slow", "mini-resnet-adv") for word in SLOW_COMMAND]
    subprocess.run([sys.executable, *command, "--run-dir", str(whole)], env=environment, check=True)
    assert (folder / "outcomes.csv.gz").read_bytes() == (whole / "outcomes.csv.gz").read_bytes()


@pytest.mark.slow
def test_a_host_that_is_cut_off_and_lost_does_not_keep_the_other_from_finishing(
    tmp_path: Path, hosts: None, environment: dict[str, str]
) -> None:
    folder, logs = tmp_path / "run", [tmp_path / f"{node}.log" for node in NODES]
    with _both(folder, environment, logs) as started:
        _cable("down")
        done = len(Run.open(folder).finished_shards())
        _until(lambda: len(Run.open(folder).finished_shards()) > done, 60, logs)  # both still see the folder
        assert not (folder / "result.json").exists(), "the loss must fall inside the run"
        _lose(started[1])
        _until(lambda: (folder / "result.json").exists(), 150, logs)
    _same_as_alone(folder, environment)


@pytest.mark.slow
def test_a_host_that_is_cut_off_says_so_and_a_restart_completes(
    tmp_path: Path, hosts: None, environment: dict[str, str]
) -> None:
    (tmp_path / "slow_mini.py").write_text((tmp_path / "slow_mini.py").read_text().replace("0.05", "0.4"))
    folder, logs = tmp_path / "run", [tmp_path / f"{node}.log" for node in NODES]
    with _both(folder, environment, logs):
        _cable("down")
        cut = time.monotonic()
        _until(lambda: "`rendezvous` is silent for" in logs[1].read_text(), 60, logs)
        assert time.monotonic() - cut > SILENT_SECONDS - LOOK_SECONDS
        assert "expected an answer from the host of rank 0. The network between the two is cut" in logs[1].read_text()
        assert "is silent for" not in logs[0].read_text()  # it hears itself
        assert not (folder / "result.json").exists(), "both must be lost inside the run"
    _cable("up")
    (tmp_path / "slow_mini.py").write_text((tmp_path / "slow_mini.py").read_text().replace("0.4", "0"))
    with _both(folder, environment, logs):
        _until(lambda: (folder / "result.json").exists(), 150, logs)
    _same_as_alone(folder, environment)
