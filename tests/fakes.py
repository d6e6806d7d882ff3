"""Small models and sources that stand in for real ones at the seam."""

import atexit
import importlib.util
import shutil
import tempfile
from collections.abc import Iterator, Sequence
from functools import cache
from pathlib import Path
from types import ModuleType
from typing import Any

import torch
from torch import Tensor, nn

from robench.attacks.drive import Example
from robench.data.textures import TextureDictionary, write_textures
from robench.outcome import Outcome
from robench.registry import shipped_folder

SLOW_MODULE = """
import time
import robench

def slow():
    model = robench.load_model("mini-resnet")
    model.register_forward_pre_hook(lambda module, arguments: time.sleep(0.02))
    return model
"""
"""Content of `slow_mini.py`: a bundled model that takes its time, for whoever must be caught at work."""
SLOW_COMMAND = ["-m", "robench", "evaluate", "slow_mini:slow", "mini-pgd-linf", "--limit", "96", "--batch-size", "16"]

PATCH_PROTOCOL = """
schema = "robench.protocol/1"
id = "own-patches"
version = 1
status = "draft"
title = "Own"
summary = "Patches on images of 8 pixels."
seed = 0
[data]
source = "own"
count = 20
classes = 4
ids_sha256 = "{digest}"
crop = 8
[attack]
kind = "tpa-random"
textures = "{textures}"
textures_sha256 = "{sha256}"
rounds = 2
queries = 10
patches = 2
[budget]
kind = "patches"
area = "1/4"
patches = 2
"""


class Linear(nn.Module):
    """logits = images . weight + bias, with as many classes as the weight has rows."""

    def __init__(self, weight: Tensor, bias: Tensor) -> None:
        super().__init__()
        self.weight, self.bias = nn.Parameter(weight), nn.Parameter(bias)

    def forward(self, images: Tensor) -> Tensor:
        return images.flatten(1) @ self.weight.T + self.bias


def two_class_linear(size: int, seed: int = 0, dtype: torch.dtype = torch.float32) -> Linear:
    """A linear model of two classes whose logits differ by w . x + b, with w . x + b around 0 at grey."""
    generator = torch.Generator().manual_seed(seed)
    weight = torch.randn(1, 3 * size * size, generator=generator, dtype=torch.float64)
    bias = -0.5 * weight.sum(dim=1)
    model = Linear(torch.cat([weight, -weight]).to(dtype) / 2, torch.cat([bias, -bias]).to(dtype) / 2)
    return model.eval()


def small_net(seed: int = 0, classes: int = 4, dtype: torch.dtype = torch.float32) -> nn.Module:
    """A random convolutional network for images of any size."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        net = nn.Sequential(
            nn.Conv2d(3, 8, 3, padding=1), nn.ReLU(), nn.AdaptiveAvgPool2d(4), nn.Flatten(), nn.Linear(128, classes)
        )
    return net.to(dtype).eval()


def random_images(count: int, size: int = 8, seed: int = 0, low: float = 0.0, high: float = 1.0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return low + (high - low) * torch.rand(count, 3, size, size, generator=generator)


def examples(images: Tensor, labels: Sequence[int]) -> list[Example]:
    return [Example(index, f"e{index}", labels[index], image) for index, image in enumerate(images)]


def labelled_by(model: nn.Module, images: Tensor) -> list[Example]:
    """Examples that the model gets right."""
    with torch.no_grad():
        dtype = next(model.parameters()).dtype
        labels: list[int] = model(images.to(dtype)).argmax(dim=1).tolist()
    return examples(images, labels)


def short_pgd(folder: Path, steps: int = 5) -> Path:
    """`mini-pgd-linf` with few steps, where a run is wanted and not its strength."""
    text = (shipped_folder() / "mini-pgd-linf.toml").read_text(encoding="utf-8")
    for old, new in (
        ('"mini-pgd-linf"', '"short"'),
        ('"active"', '"draft"'),
        ("steps = 50 ", f"steps = {steps} "),
        ("steps = [5, 10, 20, 50]", f"steps = [{steps}]"),
    ):
        assert text.count(old) == 1
        text = text.replace(old, new)
    path = folder / "short.toml"
    path.write_text(text, encoding="utf-8")
    return path


def many_outcomes(count: int) -> list[Outcome]:
    """Outcomes of examples that all survive."""
    return [Outcome(f"e{position}", 0, 0, 0, 1.0, 0.5) for position in range(count)]


def noise_textures(classes: int = 4, count: int = 2, size: int = 8) -> TextureDictionary:
    """Textures whose values are all 0 or 1, so that every corner of the colours occurs in each."""
    generator = torch.Generator().manual_seed(0)
    values = torch.randint(0, 2, (classes, count, 3, size, size), generator=generator).float()
    return TextureDictionary(tuple(range(classes)), values, "Noise for tests.")


@cache
def noise_folder() -> dict[str, Any]:
    """Where `noise_textures` lie and what their digest is, as an attack wants it."""
    folder = tempfile.mkdtemp()
    atexit.register(shutil.rmtree, folder)
    write_textures(noise_textures(), Path(folder))
    return {"textures": folder, "textures_sha256": noise_textures().sha256}


class CountingSource:
    """Generated images that count how many are alive at most; none is kept."""

    name = "generated"

    def __init__(self, count: int, size: int, classes: int | None = None) -> None:
        self.ids = [f"g{index:06d}" for index in range(count)]
        self.labels = [0] * count
        self.classes = classes
        self._size = size

    def images(self, positions: Iterator[int]) -> Iterator[Tensor]:
        for position in positions:
            yield random_images(1, self._size, seed=position)[0]


def measuring_script(name: str) -> ModuleType:
    """A script of `docs/measure`, which is no package, as a module."""
    path = Path(__file__).parent.parent / "docs" / "measure" / f"{name}.py"
    spec = importlib.util.spec_from_file_location(name, path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module
