"""Only the batches in flight are held: peak memory does not grow with the number of images."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

SCRIPT = """
import json, sys
from pathlib import Path
import torch
from robench.evaluation import evaluate
from tests.fakes import CountingSource, small_net
torch.set_num_threads(1)
count, folder = int(sys.argv[1]), Path(sys.argv[2])
net = small_net(classes=4)
result = evaluate(net, folder / "own.toml", data=CountingSource(count, 224, 4), run_dir=folder / f"run{count}")
print(json.dumps(result.cost["peak_memory_bytes"]))
"""


def peak(count: int, folder: Path) -> int:
    """Peak memory in bytes of a process that evaluates so many images of 224 pixels."""
    command = [sys.executable, "-c", SCRIPT, str(count), str(folder)]
    done = subprocess.run(command, capture_output=True, text=True, check=True, cwd=Path(__file__).parent.parent)
    return int(json.loads(done.stdout))


@pytest.mark.slow
def test_peak_memory_does_not_grow_with_the_number_of_images(tmp_path: Path) -> None:
    from tests.test_evaluation import PROTOCOL

    text = PROTOCOL.format(digest="0" * 64).replace("steps = 8", "steps = 2").replace("steps = [2, 8]", "steps = [2]")
    (tmp_path / "own.toml").write_text(text)
    few, many = peak(200, tmp_path), peak(2000, tmp_path)
    print(f"peak memory at 200 images {few / 2**20:.0f} MiB, at 2,000 images {many / 2**20:.0f} MiB")
    # 1,800 more images would be 1,034 MiB if they were kept.
    # The allocator alone moves the peak by up to 100 MiB from one process to the next.
    assert many - few < 200 * 2**20


@pytest.mark.skipif(sys.platform != "linux", reason="elsewhere the system says no more than a peak with its history")
def test_the_peak_is_of_the_process_itself_and_not_of_the_one_that_began_it(tmp_path: Path) -> None:
    script = "import torch; from robench.execution import _peak_memory; print(_peak_memory(torch.device('cpu')))"
    parent = "import subprocess, sys; large = bytearray(2 * 2**30); large[::4096] = b'1' * len(large[::4096]); "
    parent += (
        "print(subprocess.run([sys.executable, '-c', sys.argv[1]], capture_output=True, check=True).stdout.decode())"
    )
    command = [sys.executable, "-c", parent, script]
    done = subprocess.run(command, capture_output=True, text=True, check=True, cwd=Path(__file__).parent.parent)
    assert 100 * 2**20 < int(done.stdout) < 1.5 * 2**30


CASCADE = """
import json, sys
from pathlib import Path
import timm, torch
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from robench.evaluation import Options, evaluate
from robench.execution import _peak_memory
from robench.progress import Silent
from tests.fakes import random_images
torch.set_num_threads(1)
norm, folder = sys.argv[1], Path(sys.argv[2])
largest = {"at the door": [0, ""], "attacking": [0, ""], "in the model": [0, ""]}
place, inside = "at the door", False


class Recording(TorchDispatchMode):
    def __torch_dispatch__(self, function, types, arguments=(), settings=None):
        answer = function(*arguments, **(settings or {}))
        where = largest["in the model" if inside else place]
        for leaf in tree_leaves(answer):
            if isinstance(leaf, torch.Tensor) and leaf.untyped_storage().nbytes() > where[0]:
                where[:] = [leaf.untyped_storage().nbytes(), str(function)]
        return answer


class Inside(nn.Module):
    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.network = timm.create_model("resnet18", num_classes=1000)

    def forward(self, images):
        global inside
        if images.requires_grad:
            images = images.view_as(images)
            images.register_hook(lambda gradient: enter(False))
        enter(True)
        logits = self.network(images)
        enter(False)
        if images.requires_grad:
            logits.register_hook(lambda gradient: enter(True))
        return logits


def enter(value):
    global inside
    inside = value


class Watching(Silent):
    def begin(self, run_dir, progress):
        global place
        place = "attacking"


model = Inside().eval()
images = random_images(4, 224)
with torch.no_grad():
    labels = model(images).argmax(dim=1)
before = _peak_memory(torch.device("cpu"))
with Recording():
    result = evaluate(model, folder / "mine.toml", data=(images, labels), run_dir=folder / norm, batch_size=4,
                      options=Options(watcher=Watching()))
stages = {metric.name: metric.numerator for metric in result.metrics}
after = _peak_memory(torch.device("cpu"))
print(json.dumps({"largest": largest, "before": before, "peak": after, "stages": stages}))
"""


@pytest.mark.slow
@pytest.mark.parametrize("norm", ["linf", "l2"])
def test_a_thousand_classes_cost_no_more_memory_than_ten(tmp_path: Path, norm: str) -> None:
    """No tensor of ours holds an image for each class: the largest is a batch of the smallest size, 16 rows."""
    from tests.attacks.test_autoattack import write_protocol

    settings = 'version = "standard"\nsteps = 5\ntargets = 1\nqueries = 5\n'
    path = write_protocol(tmp_path, settings)
    path.write_text(path.read_text().replace("4/255", "0").replace('"linf"', f'"{norm}"'))
    command = [sys.executable, "-c", CASCADE, norm, str(tmp_path)]
    done = subprocess.run(command, capture_output=True, text=True, check=True, cwd=Path(__file__).parent.parent)
    found = json.loads(done.stdout)
    image = 3 * 224 * 224 * 4
    for place, (size, operation) in found["largest"].items():
        print(f"{norm}: largest tensor {place}: {size / 2**20:.1f} MiB, {size / image:.1f} images, by {operation}")
    print(f"{norm}: peak memory {found['before'] / 2**20:.0f} MiB before, {found['peak'] / 2**20:.0f} MiB in the end")
    assert set(found["stages"].values()) == {4}  # all four went through all stages
    assert found["largest"]["attacking"][0] <= 16 * image  # one image for each of 1,000 classes and 4 slots is 4,000
    assert found["largest"]["in the model"][0] >= 16 * 64 * 112 * 112 * 4  # its first activations: it is measured
    assert found["peak"] - found["before"] < 2000 * image  # half of that; most of it is the model's own
