"""Twenty real photographs, from foolbox's wheel, and networks that tell them apart.

Pretrained weights cannot be had everywhere; a random network whose last layer is fitted to the
photographs has something to attack at the cost of a real one. Not here: real models (`robench.zoo`).
"""

import importlib.util
import re
from pathlib import Path

import timm
import torch
from torch import Tensor, nn

from robench.data.images import read_image
from robench.errors import DataError, ModelError, complaint
from robench.zoo import Normalised

RESIZE, CROP = 256, 224


def photograph_files() -> list[tuple[Path, int]]:
    """The files and their ImageNet classes (ranks of the wnid), in the order of their names.

    Raises:
      DataError: foolbox is not installed.
    """
    found = importlib.util.find_spec("foolbox")
    if found is None or not found.submodule_search_locations:
        advice = "Install it: `pip install foolbox`."
        raise DataError(complaint("robench bench", "foolbox", "not installed", "its 20 photographs", advice))
    folder = Path(found.submodule_search_locations[0]) / "data"
    pattern = re.compile(r"imagenet_\d+_(\d+)\.jpg")
    matches = [(path, pattern.fullmatch(path.name)) for path in sorted(folder.iterdir())]
    return [(path, int(match[1])) for path, match in matches if match]


def photographs() -> tuple[Tensor, Tensor]:
    """The photographs, float32 in [0, 1], shape (20, 3, 224, 224), and their classes, int64, shape (20,)."""
    files = photograph_files()
    images = torch.stack([read_image(path, resize=RESIZE, crop=CROP) for path, _ in files])
    return images, torch.tensor([label for _, label in files])


def fitted(name: str, images: Tensor, labels: Tensor) -> nn.Module:
    """A random network of timm's whose last layer is fitted to images by least squares, in eval mode.

    Args:
      name: timm's name of it; its classifier must be one linear layer.
      images: float32 in [0, 1], shape (N, 3, H, W).
      labels: int64, shape (N,).
    Raises:
      ModelError: its classifier is no linear layer.
    """
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        network = timm.create_model(name, pretrained=False).eval()
    model = Normalised(network, network.pretrained_cfg["mean"], network.pretrained_cfg["std"]).eval()
    head = network.get_classifier()
    if not isinstance(head, nn.Linear):
        found, expected = type(head).__name__, "a network whose classifier is a linear layer"
        raise ModelError(complaint(name, "classifier", found, expected))
    with torch.no_grad():
        normalised = (images - model.mean) / model.std
        features = network.forward_head(network.forward_features(normalised), pre_logits=True)
        wanted = 10 * nn.functional.one_hot(labels, head.out_features).to(features.dtype)
        extended = torch.cat([features, torch.ones(len(features), 1)], dim=1)
        solution = torch.linalg.lstsq(extended, wanted, driver="gelsd").solution
        head.weight.copy_(solution[:-1].T)
        head.bias.copy_(solution[-1])
    return model
