"""Does decoding keep ahead? Images a second of an evaluation and of a bare DataLoader; prints one JSON line.

    python docs/measure/decoding.py --count 1024 --workers 2

The images are generated JPEGs of 500x375 pixels. The evaluation has a model of negligible cost and no attack; it
decodes, digests the pixels, checks and writes everything that a run does. Beside it, over the same files with the same
number of workers: `bare`, the loader that most people write (torchvision's resize, crop and conversion to floats,
batches of 32), and `bytes`, a loader over robench's own decoding that sends bytes and does nothing with them, so that
the difference is what a run adds. Repeats are interleaved; the figures are medians.
"""

import argparse
import json
import statistics
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch.utils.data import DataLoader, Dataset
from torchvision import transforms
from torchvision.datasets import ImageFolder

import robench
from robench.data.decoding import Decoder, ImageFile

CLASSES = 8
PROTOCOL = """
schema = "robench.protocol/1"
id = "decoding"
version = 1
status = "draft"
title = "Clean accuracy"
summary = "Reads every image once."
ranked = false
seed = 0

[data]
source = "imagenet"
count = 1
classes = 8
ids_sha256 = "{digest}"
resize = 256
crop = 224

[score]
scoring = "any iterate"
"""


def make_images(folder: Path, count: int) -> None:
    """JPEGs of the size of ImageNet's, waves under noise, some 90 kB each."""
    for label in range(CLASSES):
        (folder / f"class{label}").mkdir(parents=True)
    draws = np.random.default_rng(0)
    rows, columns = np.arange(375)[:, None, None], np.arange(500)[None, :, None]
    for number in range(count):
        waves = 96 + 64 * np.sin(rows / draws.uniform(5, 50, 3)) + 64 * np.sin(columns / draws.uniform(5, 50, 3))
        pixels = (waves + draws.normal(0, 12, waves.shape)).clip(0, 255).astype(np.uint8)
        Image.fromarray(pixels).save(folder / f"class{number % CLASSES}" / f"{number:06d}.jpg", quality=90)


def bare(images: Path, count: int, workers: int) -> float:
    """Images a second of a loop over a loader that does nothing with them."""
    view = transforms.Compose([transforms.Resize(256), transforms.CenterCrop(224), transforms.ToTensor()])
    began = time.perf_counter()
    loader = DataLoader(ImageFolder(str(images), view), batch_size=32, num_workers=workers)
    seen = sum(len(batch) for batch, _ in loader)
    assert seen == count
    return count / (time.perf_counter() - began)


class Bytes(Dataset[Any]):
    """What robench's workers decode."""

    def __init__(self, images: Path) -> None:
        self.files = [ImageFile(path.name, path) for path in sorted(images.glob("*/*.jpg"))]

    def __len__(self) -> int:
        return len(self.files)

    def __getitem__(self, position: int) -> Any:
        return Decoder(256, 224).decode(self.files[position])


def as_they_are(batch: list[Any]) -> list[Any]:
    """A batch without a copy."""
    return batch


def bytes_alone(images: Path, count: int, workers: int) -> float:
    """Images a second of a loop over robench's own decoding."""
    began = time.perf_counter()
    loader = DataLoader(Bytes(images), batch_size=8, num_workers=workers, collate_fn=as_they_are)
    assert sum(len(batch) for batch in loader) == count
    return count / (time.perf_counter() - began)


def evaluation(images: Path, count: int, workers: int, protocol: Path) -> float:
    """Images a second of an evaluation, from its first example to its last."""

    def model(batch: torch.Tensor) -> torch.Tensor:
        return batch[:, :, :CLASSES, 0].mean(dim=1)

    with tempfile.TemporaryDirectory() as run_dir:
        options = robench.Options(workers=workers, name="negligible")
        result = robench.evaluate(model, protocol, data=images, run_dir=run_dir, options=options)
    assert result.counts.evaluated == count
    return float(count / result.cost["wall_seconds"])


def main() -> None:
    """Make the images, and measure both ways in turn."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--count", default=1024, type=int)
    parser.add_argument("--workers", default=2, type=int)
    parser.add_argument("--repeats", default=5, type=int)
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        images, protocol = Path(folder) / "images", Path(folder) / "decoding.toml"
        make_images(images, arguments.count)
        protocol.write_text(PROTOCOL.format(digest="0" * 64))
        rates: dict[str, list[float]] = {"bare": [], "bytes": [], "evaluation": []}
        for _ in range(arguments.repeats):
            rates["bare"].append(bare(images, arguments.count, arguments.workers))
            rates["bytes"].append(bytes_alone(images, arguments.count, arguments.workers))
            rates["evaluation"].append(evaluation(images, arguments.count, arguments.workers, protocol))
    medians = {name: round(statistics.median(each), 1) for name, each in rates.items()}
    ratios = {
        name: round(statistics.median(b / a for a, b in zip(rates[name], rates["evaluation"], strict=True)), 3)
        for name in ("bare", "bytes")
    }
    spread = {name: [round(min(each), 1), round(max(each), 1)] for name, each in rates.items()}
    line = {
        "images": arguments.count,
        "workers": arguments.workers,
        "images_per_second": medians,
        "spread": spread,
        "evaluation_to": ratios,
    }
    sys.stdout.write(json.dumps(line) + "\n")


if __name__ == "__main__":
    main()
