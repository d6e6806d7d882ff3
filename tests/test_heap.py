"""Freed memory is used again instead of being fetched from the kernel once more."""

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
images = torch.rand(64, 16, 48, 48, requires_grad=True)
for turn in range(12):
    if turn == 4:
        before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    values = images
    for _ in range(8):
        values = values.sin() * values.cos()
    values.sum().backward()
print((resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before) // 8)
"""


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="needs glibc")
def test_memory_that_is_asked_for_again_costs_no_new_pages() -> None:
    def faults(how: str) -> int:
        command = [sys.executable, "-c", SCRIPT, how]
        return int(subprocess.run(command, capture_output=True, check=True, text=True).stdout)

    assert faults("leave") > 3 * faults("keep")


def test_other_systems_are_left_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "platform", "darwin")
    assert not keep_freed_memory()
