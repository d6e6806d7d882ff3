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

from robench.runs import Run
from tests.cli.test_ranks import COMMAND, MODULE, ROOT

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
    command += ["--local-addr", ADDRESSES[NODES.index(node)], *COMMAND, "--run-dir", str(folder)]
    with log.open("wb") as file:
        return subprocess.Popen(command, env=environment, stdout=file, stderr=file, start_new_session=True)


def _until(condition: Callable[[], object], seconds: float, logs: list[Path]) -> None:
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "\n".join(log.read_text() for log in logs)
        time.sleep(0.05)


@pytest.mark.slow
def test_a_host_that_is_cut_off_says_so_and_the_other_finishes(tmp_path: Path, hosts: None) -> None:
    (tmp_path / "slow_mini.py").write_text(MODULE.replace("0.02", "0.4").replace("mini-resnet", "mini-resnet-adv"))
    path = os.pathsep.join([str(tmp_path), str(ROOT), os.environ.get("PYTHONPATH", "")])
    environment = {**os.environ, "PYTHONPATH": path, "OMP_NUM_THREADS": "1"}
    folder, logs = tmp_path / "run", [tmp_path / f"{node}.log" for node in NODES]
    started = [_start(node, folder, log, environment) for node, log in zip(NODES, logs, strict=True)]
    try:
        _until(lambda: len(list((folder / "workers").glob("*.jsonl"))) == 2, 90, logs)
        subprocess.run(["ip", "-n", NODES[1], "link", "set", "rb-b", "down"], check=True)
        _until(lambda: started[1].poll() is not None, 90, logs)
        assert started[1].returncode != 0
        assert "RendezvousConnectionError" in logs[1].read_text()
        assert not (folder / "result.json").exists(), "the cut must fall inside the run"
        _until(lambda: (folder / "result.json").exists(), 120, logs)
    finally:
        for each in started:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(each.pid, signal.SIGKILL)
            each.wait()
    run = Run.open(folder)
    assert run.missing_shards() == []
    again = subprocess.run([sys.executable, *COMMAND, "--run-dir", str(folder)], env=environment, check=False)
    assert again.returncode == 0
