"""Runs on files, end to end: what is official, what is missing, and what cannot be read."""

import fcntl
import json
import multiprocessing
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from robench.bench import photographs as bundled
from robench.data.imagenet.listing import listed
from robench.errors import DataError, RunError
from robench.evaluation import Options, evaluate, resume
from robench.registry import shipped_folder
from tests.photographs import listed_images, photographs, wnid_folders

OWN = """
from tests.test_imagenet_runs import Favourite


def build():
    return Favourite().eval()
"""


class Favourite(nn.Module):
    """A thousand logits that see the mean colour and lean towards one class."""

    def __init__(self, label: int = 609) -> None:
        super().__init__()
        weight = torch.randn(1000, 3, generator=torch.Generator().manual_seed(0)) / 100
        bias = torch.zeros(1000)
        bias[label] = 4
        self.weight, self.bias = nn.Parameter(weight), nn.Parameter(bias)

    def forward(self, images: Tensor) -> Tensor:
        return images.mean(dim=(2, 3)) @ self.weight.T + self.bias


@pytest.fixture
def protocol(tmp_path: Path) -> Path:
    """`pgd-linf` with two steps."""
    text = (shipped_folder() / "pgd-linf.toml").read_text()
    text = text.replace("steps = 100  #", "steps = 2  #").replace("steps = [5, 10, 50, 100]", "steps = [1, 2]")
    (tmp_path / "short.toml").write_text(text)
    return tmp_path / "short.toml"


def _cut(path: Path) -> None:
    content = path.read_bytes()
    path.unlink()
    path.write_bytes(content[: len(content) // 2])


def test_a_cut_photograph_is_errored_and_the_run_goes_on(tmp_path: Path, protocol: Path) -> None:
    root = wnid_folders(tmp_path / "val")
    whole = evaluate(Favourite().eval(), protocol, data=root, run_dir=tmp_path / "whole")
    assert (whole.counts.evaluated, whole.counts.errored, whole.clean.numerator) == (20, 0, 2)
    (victim,) = root.glob("*/imagenet_06_609.jpg")
    _cut(victim)
    result = evaluate(Favourite().eval(), protocol, data=root, run_dir=tmp_path / "cut")
    assert (result.counts.evaluated, result.counts.errored) == (19, 1)
    assert result.status == "unofficial"
    assert (result.clean.numerator, result.clean.denominator) == (1, 20)
    (lost,) = [outcome for outcome in result.read_outcomes() if outcome.error]
    assert lost.id == victim.relative_to(root).as_posix()
    assert lost.error.startswith(f"{lost.id}: `image` is unreadable (")
    assert str(tmp_path) not in lost.error
    before = {outcome.id: outcome for outcome in whole.read_outcomes()}
    assert all(
        before[outcome.id] == outcome for outcome in result.read_outcomes() if outcome is not lost and not outcome.error
    )


def test_a_run_with_an_unreadable_image_resumes_to_the_same_bytes(
    tmp_path: Path, protocol: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "own_favourite.py").write_text(OWN)
    monkeypatch.syspath_prepend(str(tmp_path))
    root = wnid_folders(tmp_path / "val")
    _cut(next(root.glob("*/imagenet_00_243.jpg")))
    options = Options(shard_size=8)
    first = evaluate("own_favourite:build", protocol, data=root, run_dir=tmp_path / "a", options=options)
    shutil.copytree(tmp_path / "a", tmp_path / "b")
    for name in ("result.json", "shards/000001.csv"):
        (tmp_path / "b" / name).unlink()
    again = resume(tmp_path / "b", workers=0)
    assert (first.counts.errored, again.counts.errored) == (1, 1)
    assert first.to_bytes() == again.to_bytes()
    assert (tmp_path / "a" / "outcomes.csv.gz").read_bytes() == (tmp_path / "b" / "outcomes.csv.gz").read_bytes()


def test_the_first_images_of_the_list_are_a_partial_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    text = (shipped_folder() / "pgd-linf.toml").read_text()
    monkeypatch.setenv("ROBENCH_IMAGENET", str(listed_images(tmp_path / "val", count=80)))
    protocol = tmp_path / "clean.toml"
    protocol.write_text(text[: text.index("[attack]")] + '[score]\nscoring = "any iterate"\n')
    with pytest.raises(DataError, match=r"`images` is 4920 of 5000 missing \(ILSVRC2012_val_"):
        evaluate(Favourite().eval(), protocol, run_dir=tmp_path / "all")
    prefix = evaluate(Favourite().eval(), protocol, limit=3, run_dir=tmp_path / "prefix")
    assert (prefix.data.official, prefix.data.count, prefix.data.of) == (True, 3, 5000)
    assert [outcome.id for outcome in prefix.read_outcomes()] == list(listed())[:3]
    some = evaluate(Favourite().eval(), protocol, limit=100, run_dir=tmp_path / "some", options=Options(workers=2))
    assert (some.data.official, some.data.count, some.counts.errored) == (False, 80, 0)
    assert [outcome.id for outcome in some.read_outcomes()] == list(listed())[:80]
    alone = evaluate(Favourite().eval(), protocol, limit=100, run_dir=tmp_path / "alone", options=Options(workers=0))
    assert alone.to_bytes() == some.to_bytes()


def test_a_run_on_all_that_was_there_resumes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "own_favourite.py").write_text(OWN)
    monkeypatch.syspath_prepend(str(tmp_path))
    text = (shipped_folder() / "pgd-linf.toml").read_text()
    protocol = tmp_path / "clean.toml"
    protocol.write_text(text[: text.index("[attack]")] + '[score]\nscoring = "any iterate"\n')
    root = listed_images(tmp_path / "val", count=9)
    first = evaluate("own_favourite:build", protocol, data=root, limit=10, run_dir=tmp_path / "run")
    for name in ("result.json", "shards/000000.csv"):
        (tmp_path / "run" / name).unlink()
    assert json.loads((tmp_path / "run" / "plan.json").read_text())["data"]["limit"] is None
    assert resume(tmp_path / "run").to_bytes() == first.to_bytes()


def test_photographs_have_no_place_where_none_can_be_read(tmp_path: Path, protocol: Path) -> None:
    root = wnid_folders(tmp_path / "val")
    for name in photographs():
        _cut(next(root.glob(f"*/{name}")))
    with pytest.raises(DataError, match=r"^n[0-9]{8}/imagenet_.*: `image` is unreadable \("):
        evaluate(Favourite().eval(), protocol, data=root, run_dir=tmp_path / "run")


@pytest.mark.parametrize("workers", [-1, 1.5, True])
def test_workers_are_a_whole_number(tmp_path: Path, protocol: Path, workers: int) -> None:
    message = rf"^evaluate: `workers` is {workers}; expected a whole number of at least 0\.$"
    with pytest.raises(RunError, match=message):
        evaluate(Favourite().eval(), protocol, data=tmp_path, options=Options(workers=workers))


KILLED = """
import multiprocessing, sys, time
from tests.test_imagenet_runs import Favourite
from robench.evaluation import Options, evaluate

class Slow(Favourite):
    def forward(self, images):
        if multiprocessing.active_children():
            print("working", flush=True)
            time.sleep(60)
        return super().forward(images)

protocol, data, folder = sys.argv[1:]
evaluate(Slow().eval(), protocol, data=data, limit=100, run_dir=folder, batch_size=32, options=Options(workers=2))
"""


def _working(*arguments: Path) -> "subprocess.Popen[str]":
    """An evaluation in a process group of its own, in the middle of its first batch."""
    process = subprocess.Popen(
        [sys.executable, "-W", "always", "-c", KILLED, *map(str, arguments)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    assert process.stdout is not None
    assert process.stdout.readline() == "working\n"
    return process


@pytest.fixture
def clean_run(tmp_path: Path) -> tuple[Path, Path, Path]:
    """A protocol without attack, 100 images, and a folder for the run."""
    text = (shipped_folder() / "pgd-linf.toml").read_text()
    protocol = tmp_path / "clean.toml"
    protocol.write_text(text[: text.index("[attack]")] + '[score]\nscoring = "any iterate"\n')
    return protocol, listed_images(tmp_path / "val", count=100), tmp_path / "run"


def test_a_killed_run_leaves_no_worker_that_holds_its_lock(clean_run: tuple[Path, Path, Path]) -> None:
    process = _working(*clean_run)
    process.kill()
    process.communicate(timeout=30)
    with (clean_run[2] / "lock").open("w") as lock:
        deadline = time.monotonic() + 2
        while True:
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except OSError:
                assert time.monotonic() < deadline
                time.sleep(0.01)


def test_ctrl_c_in_a_model_ends_the_workers_quietly(clean_run: tuple[Path, Path, Path]) -> None:
    process = _working(*clean_run)
    os.killpg(process.pid, signal.SIGINT)
    _, stderr = process.communicate(timeout=30)
    assert process.returncode != 0
    assert stderr.count("Traceback") == 1
    assert stderr.rstrip().endswith("KeyboardInterrupt")
    assert "arning" not in stderr


def test_a_worker_that_dies_while_the_model_works_is_a_data_error(clean_run: tuple[Path, Path, Path]) -> None:
    protocol, data, folder = clean_run

    class Killer(Favourite):
        def forward(self, images: Tensor) -> Tensor:
            for child in multiprocessing.active_children():
                child.kill()
            time.sleep(0.2)
            return super().forward(images)

    with pytest.raises(DataError, match=r"^decoding: `workers` is dying \(DataLoader worker \(pid"):
        evaluate(Killer().eval(), protocol, data=data, limit=100, run_dir=folder, options=Options(workers=2))
    assert multiprocessing.active_children() == []


@pytest.mark.slow
@pytest.mark.parametrize("name", ["resnet50", "deit_small_patch16_224"])
def test_pgd_linf_runs_on_real_photographs_and_networks_of_their_size(name: str, tmp_path: Path) -> None:
    """Pretrained weights cannot be had offline, so the last layer is fitted to the photographs first."""
    model = bundled.fitted(name, *bundled.photographs())
    named = {key.removeprefix("network."): tensor for key, tensor in model.state_dict().items()}
    state = {key: tensor.contiguous() for key, tensor in named.items()}
    save_file(state, tmp_path / "w.safetensors")
    result = evaluate(
        f"timm:{name}",
        "pgd-linf",
        data=wnid_folders(tmp_path / "val"),
        run_dir=tmp_path / "run",
        options=Options(weights=tmp_path / "w.safetensors"),
    )
    print(f"{name}: {result}")
    assert result.status == "unofficial"
    assert result.clean.numerator == 20
    assert [metric.name for metric in result.metrics] == ["clean", "robust@5", "robust@10", "robust@50", "robust@100"]
    assert result.headline.numerator < 20
