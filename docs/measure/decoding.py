"""Does decoding keep ahead? Images a second of an evaluation and of a bare DataLoader; prints a line and a JSON object.

    python docs/measure/decoding.py --count 1024 --workers 2
    python docs/measure/decoding.py --cells --count 1024 --workers 2

The images are generated JPEGs of 500x375 pixels. The evaluation has a model of negligible cost and no attack; it
decodes, digests the pixels, checks and writes everything that a run does. Beside it, over the same files with the same
number of workers: `bare`, the loader that most people write (torchvision's resize, crop and conversion to floats,
batches of 32), and `bytes`, the same without floats, which no model could be shown. With `--cells` it is `imagenet-c`
that is evaluated: so many JPEGs of 224x224 pixels over its 75 cells, none resized; `bytes` then only decodes.
Repeats are interleaved; the figures are medians. The line and, on a busy machine, why the figures are not valid go to
stderr, the object to stdout.
"""

import argparse
import json
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch.utils.data import DataLoader, Dataset
from torchvision import transforms

import robench
from robench.bench.measurement import Stopwatch
from robench.data.corruptions import COMMON, SEVERITIES
from robench.data.imagenet.listing import validation, wnids

CLASSES = 8
CELLS = [(corruption, severity) for corruption in COMMON for severity in SEVERITIES]
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


@dataclass(frozen=True)
class Scene:
    """What is measured.

    Attributes:
      images: folder of the files.
      protocol: id, or a file.
      count: files in all.
      examples: what the evaluation counts; each is seen in several files, where there are cells.
      resize: shorter side after resizing; None: as it is.
      classes: logits of the model.
    """

    images: Path
    protocol: str | Path
    count: int
    examples: int
    resize: int | None
    classes: int

    @property
    def files(self) -> list[Path]:
        """All files, sorted."""
        return sorted(path for path in self.images.rglob("*") if path.is_file())


def photographs(folder: Path, count: int) -> Scene:
    """JPEGs of the size of ImageNet's, some 90 kB each, in class folders."""
    for number in range(count):
        save_waves(folder / "images" / f"class{number % CLASSES}" / f"{number:06d}.jpg", (375, 500), number)
    (folder / "decoding.toml").write_text(PROTOCOL.format(digest="0" * 64))
    return Scene(folder / "images", folder / "decoding.toml", count, count, 256, CLASSES)


def cells(folder: Path, count: int) -> Scene:
    """A tree like that of ImageNet-C with about so many JPEGs of 224 pixels a side."""
    examples = max(1, round(count / len(CELLS)))
    names = [f"{wnids()[label]}/{example}.JPEG" for example, label in list(validation().items())[:examples]]
    for place, (corruption, severity) in enumerate(CELLS):
        for number, name in enumerate(names):
            path = folder / "images" / corruption / str(severity) / name
            save_waves(path, (224, 224), place * examples + number)
    return Scene(folder / "images", "imagenet-c", examples * len(CELLS), examples, None, 1000)


def save_waves(path: Path, size: tuple[int, int], seed: int) -> None:
    """Waves under noise, height and width as given."""
    path.parent.mkdir(parents=True, exist_ok=True)
    draws = np.random.default_rng(seed)
    rows, columns = np.arange(size[0])[:, None, None], np.arange(size[1])[None, :, None]
    waves = 96 + 64 * np.sin(rows / draws.uniform(5, 50, 3)) + 64 * np.sin(columns / draws.uniform(5, 50, 3))
    pixels = (waves + draws.normal(0, 12, waves.shape)).clip(0, 255).astype(np.uint8)
    Image.fromarray(pixels).save(path, quality=90)


class Usual(Dataset[torch.Tensor]):
    """Files as most people read them."""

    def __init__(self, scene: Scene, last: Callable[[Image.Image], torch.Tensor]) -> None:
        resize = [] if scene.resize is None else [transforms.Resize(scene.resize), transforms.CenterCrop(224)]
        self.files, self.view = scene.files, transforms.Compose([*resize, last])

    def __len__(self) -> int:
        return len(self.files)

    def __getitem__(self, position: int) -> torch.Tensor:
        image: torch.Tensor = self.view(Image.open(self.files[position]).convert("RGB"))
        return image


def bare(scene: Scene, workers: int) -> float:
    """Seconds of a loop over a loader of floats that does nothing with them."""
    return _seconds(Usual(scene, transforms.ToTensor()), workers)


def bytes_alone(scene: Scene, workers: int) -> float:
    """Seconds of the same without floats."""
    return _seconds(Usual(scene, transforms.PILToTensor()), workers)


def _seconds(images: Usual, workers: int) -> float:
    began = time.perf_counter()
    assert sum(len(batch) for batch in DataLoader(images, batch_size=32, num_workers=workers)) == len(images)
    return time.perf_counter() - began


def evaluation(scene: Scene, workers: int) -> float:
    """Seconds of an evaluation, from its first example to its last."""

    def model(batch: torch.Tensor) -> torch.Tensor:
        return batch[:, :, :20].flatten(1)[:, : scene.classes]

    with tempfile.TemporaryDirectory() as run_dir:
        options = robench.Options(workers=workers, name="negligible")
        result = robench.evaluate(
            model, scene.protocol, data=scene.images, limit=scene.examples, run_dir=run_dir, options=options
        )
    assert result.counts.evaluated == scene.examples
    return float(result.cost["wall_seconds"])


WAYS = {"bare": bare, "bytes": bytes_alone, "evaluation": evaluation}


def measure(scene: Scene, watch: Stopwatch, *, workers: int, repeats: int) -> dict[str, Any]:
    """All ways in turn, again and again."""
    for _ in range(repeats):
        for name, way in WAYS.items():
            watch.time(name, way(scene, workers))
    rates = {name: [scene.count / each for each in seconds] for name, seconds in watch.seconds.items()}
    ratios = {
        name: statistics.median(b / a for a, b in zip(rates[name], rates["evaluation"], strict=True))
        for name in ("bare", "bytes")
    }
    doubts = watch.doubts()
    return {
        "images": scene.count,
        "workers": workers,
        "repeats": repeats,
        "images_per_second": {name: round(statistics.median(each), 1) for name, each in rates.items()},
        "spread": {name: [round(min(each), 1), round(max(each), 1)] for name, each in rates.items()},
        "evaluation_to": {name: round(each, 3) for name, each in ratios.items()},
        "valid": not doubts,
        "doubts": list(doubts),
    }


def line(found: dict[str, Any]) -> str:
    """What was found, in one line."""
    rates, ratio = found["images_per_second"], found["evaluation_to"]["bare"]
    text = f"{found['protocol']}, {found['images']} images, {found['workers']} workers: {rates['evaluation']} a second"
    text += f", {ratio} times a bare DataLoader's {rates['bare']}"
    return text if found["valid"] else f"{text}; NOT VALID: {' '.join(found['doubts'])}"


def main(arguments: list[str] | None = None) -> None:
    """Make the images, measure, and print what was found."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--count", default=1024, type=int)
    parser.add_argument("--workers", default=2, type=int)
    parser.add_argument("--repeats", default=5, type=int)
    parser.add_argument("--cells", action="store_true", help="imagenet-c, not photographs")
    chosen = parser.parse_args(arguments)
    watch = Stopwatch()  # before the images are made, which keeps the machine busy
    with tempfile.TemporaryDirectory() as folder:
        scene = (cells if chosen.cells else photographs)(Path(folder), chosen.count)
        found = measure(scene, watch, workers=chosen.workers, repeats=chosen.repeats)
    found = {"protocol": "imagenet-c" if chosen.cells else "decoding", **found}
    sys.stderr.write(line(found) + "\n")
    sys.stdout.write(json.dumps(found) + "\n")


if __name__ == "__main__":
    main()
