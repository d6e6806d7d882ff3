"""A store that falls silent is missed in good time, once, and found again."""

import socket
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import pytest

from robench.cli import rendezvous
from robench.cli.rendezvous import first_host, look_out

VARIABLES = {"LOCAL_RANK": "0", "GROUP_WORLD_SIZE": "2", "MASTER_ADDR": "node1", "MASTER_PORT": "29500"}


@pytest.mark.parametrize(
    ("changed", "expected"),
    [
        ({}, ("node1", 29500)),
        ({"LOCAL_RANK": "1"}, None),  # another rank of this host asks
        ({"GROUP_WORLD_SIZE": "1"}, None),  # no other host
        ({"MASTER_PORT": ""}, None),
    ],
)
def test_one_rank_of_each_of_several_hosts_looks_out(changed: dict[str, str], expected: tuple[str, int] | None) -> None:
    assert first_host({**VARIABLES, **changed}) == expected


def test_ranks_of_slurm_have_no_store_to_look_at() -> None:
    assert first_host({"SLURM_PROCID": "1", "SLURM_STEP_NUM_TASKS": "4", "SLURM_LOCALID": "0"}) is None


def _listen(port: int = 0) -> socket.socket:
    return socket.create_server(("127.0.0.1", port))


@contextmanager
def _looking(port: int) -> Iterator[list[str]]:
    said: list[str] = []
    ended = threading.Event()
    options = {"rank": 3, "ended": ended, "say": said.append}
    thread = threading.Thread(target=look_out, args=(("127.0.0.1", port),), kwargs=options)
    thread.start()
    try:
        yield said
    finally:
        ended.set()
        thread.join(timeout=10)
    assert not thread.is_alive()


def _until(condition: Callable[[], object], seconds: float = 10) -> None:
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.005)


@pytest.fixture(autouse=True)
def _quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(rendezvous, "LOOK_SECONDS", 0.01)
    monkeypatch.setattr(rendezvous, "SILENT_SECONDS", 0.2)


def test_a_silent_store_is_missed_once_and_found_again() -> None:
    server = _listen()
    port = server.getsockname()[1]
    with _looking(port) as said:
        server.accept()[0].close()  # it has been heard
        server.close()
        closed = time.monotonic()
        _until(lambda: said)
        assert time.monotonic() - closed > 0.1
        time.sleep(0.1)
        assert len(said) == 1
        with _listen(port):
            _until(lambda: len(said) == 2)
    assert said[0] == (
        f"rank 3: `rendezvous` is silent for 0 s at 127.0.0.1:{port}; expected an answer from the host of rank 0. "
        "The network between the two is cut, or torchrun has ended there. This rank goes on as long as it sees the run "
        "folder; what is finished is kept, and the others take over what it cannot finish. torchrun on this host hangs "
        "meanwhile, and may end the rank: then give the same command again."
    )
    assert said[1] == "rank 3: 127.0.0.1 answers again."


def test_a_store_that_never_answered_is_not_missed() -> None:
    """Where torchrun keeps none, or closes it early, that means nothing."""
    with _listen() as server:
        port = server.getsockname()[1]
    with _looking(port) as said:
        time.sleep(0.5)
    assert said == []


def test_a_store_that_hangs_for_a_moment_is_not_missed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(rendezvous, "SILENT_SECONDS", 5.0)
    server = _listen()
    port = server.getsockname()[1]
    with _looking(port) as said:
        server.accept()[0].close()
        server.close()
        time.sleep(0.1)
        with _listen(port) as again:
            again.accept()[0].close()
    assert said == []
