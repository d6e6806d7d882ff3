"""Freed memory is used again instead of being fetched from the kernel once more."""

import os
import platform
import subprocess
import sys

import pytest

from robench.heap import keep_freed_memory

SCRIPT = """
import resource, sys
import torch
from robench.heap import keep_freed_memory
if sys.argv[1] == "keep":
    assert keep_freed_memory()
torch.set_num_threads(1)
before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
for turn in range(50):
    blocks = [torch.empty(size, 2**20).fill_(1) for size in (1, 10, 3)]  # of 4, 40 and 12 MiB
    del blocks
print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="needs glibc")
def test_memory_that_is_asked_for_again_costs_no_new_pages() -> None:
    def faults(how: str) -> int:
        command = [sys.executable, "-c", SCRIPT, how]
        return int(subprocess.run(command, capture_output=True, check=True, text=True).stdout)

    pages = 56 * 2**20 // os.sysconf("SC_PAGE_SIZE")
    assert faults("leave") > 25 * pages
    assert faults("keep") < 5 * pages  # once, and while blocks of other sizes still find their places


def test_other_systems_are_left_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "platform", "darwin")
    assert not keep_freed_memory()
