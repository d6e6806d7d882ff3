import os
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

for name in ("COLUMNS", "LINES"):  # pytest's own processes set them, and what a command prints would be cut accordingly
    os.environ.pop(name, None)


@pytest.fixture(autouse=True)
def no_data_of_this_machine(monkeypatch: pytest.MonkeyPatch, tmp_path_factory: pytest.TempPathFactory) -> None:
    """Tests see neither the user's configuration nor the data it names, nor what was fetched."""
    for name in ("ROBENCH_IMAGENET", "ROBENCH_TPA_TEXTURES"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("XDG_CONFIG_HOME", str(Path(tmp_path_factory.getbasetemp()) / "no-configuration"))
    monkeypatch.setenv("XDG_CACHE_HOME", str(Path(tmp_path_factory.getbasetemp()) / "no-cache"))


@pytest.fixture(scope="module")
def one_thread() -> Iterator[None]:
    """For tests that fork: children of a process with threads would wait for them."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)
