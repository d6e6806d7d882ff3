"""Whether the host of rank 0 still answers: torchrun cannot do without it, and robench can.

Ranks share their work through the run folder alone. The agent of torchrun on each host, however, asks a store on the
host of rank 0 again and again; when the network between them is gone it hangs, for minutes, and in the end
stops its ranks with a traceback of that store. Somebody must say before then what has happened. Not here: the
guardian that asks for this (`ranks`).
"""

import socket
import threading
import time
from collections.abc import Callable, Mapping

from robench.errors import complaint

LOOK_SECONDS = 5.0
"""Between two looks, and the longest that one takes."""
SILENT_SECONDS = 20.0
"""Without an answer for so long, the host counts as cut off: a few looks, and less than an agent waits."""


def first_host(environment: Mapping[str, str]) -> tuple[str, int] | None:
    """Where torchrun's store answers on the host of rank 0; None for all ranks but one of each of several.

    Example:
      >>> variables = {"LOCAL_RANK": "0", "GROUP_WORLD_SIZE": "2", "MASTER_ADDR": "node1", "MASTER_PORT": "29500"}
      >>> first_host(variables)
      ('node1', 29500)
      >>> first_host({**variables, "LOCAL_RANK": "1"})
    """
    hosts, port = environment.get("GROUP_WORLD_SIZE", "1"), environment.get("MASTER_PORT", "")
    if environment.get("LOCAL_RANK") != "0" or hosts == "1" or not port.isdecimal():
        return None
    return environment["MASTER_ADDR"], int(port)


def look_out(address: tuple[str, int], *, rank: int, ended: threading.Event, say: Callable[[str], None]) -> None:
    """Say when an address falls silent that has answered before, and when it answers again.

    Args:
      address: of the store.
      rank: whose guardian asks.
      ended: set when nobody wants to know any more.
      say: told both.
    """
    heard: float | None = None
    lost = False
    while not ended.is_set():
        if _answers(address):
            if lost:
                say(f"rank {rank}: {address[0]} answers again.")
            heard, lost = time.monotonic(), False
        elif heard is not None and not lost and time.monotonic() - heard > SILENT_SECONDS:
            say(_cut_off(address, rank=rank, seconds=time.monotonic() - heard))
            lost = True
        ended.wait(LOOK_SECONDS)


def _answers(address: tuple[str, int]) -> bool:
    try:
        socket.create_connection(address, timeout=LOOK_SECONDS).close()
    except OSError:
        return False
    return True


def _cut_off(address: tuple[str, int], *, rank: int, seconds: float) -> str:
    advice = (
        "The network between the two is cut, or torchrun has ended there. This rank goes on as long as it sees the run "
        "folder; what is finished is kept, and the others take over what it cannot finish. torchrun on this host hangs "
        "meanwhile, and may end the rank: then give the same command again."
    )
    found = f"silent for {seconds:.0f} s at {address[0]}:{address[1]}"
    return complaint(f"rank {rank}", "rendezvous", found, "an answer from the host of rank 0", advice)
