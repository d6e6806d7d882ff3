"""What benches of attacks have in common: model and images.

Not here: any attack (one file each), and how fast passes are (`ruler.py`).
"""

import torch
from torch import Tensor, nn

from robench.attacks.drive import Example
from robench.bench.measurement import Settings
from robench.bench.photographs import fitted, photographs
from robench.compiled import prepare
from robench.data.mini import attack_set
from robench.zoo import load_model

RADIUS = "4/255"
"""The radius of `mini-autoattack-linf`, under which most survive."""


def scene(settings: Settings) -> tuple[nn.Module, Tensor, Tensor]:
    """Model, images and labels; what is compiled at its first use is compiled now."""
    prepare()
    kind, _, name = settings.model.partition(":")
    if kind == "photographs":
        images, labels = photographs()
        return fitted(name, images, labels), images[: settings.images], labels[: settings.images]
    pixels, classes = attack_set()
    images, labels = torch.from_numpy(pixels).float() / 255, torch.from_numpy(classes)
    model = linear(images, labels) if settings.model == "linear" else load_model(settings.model)
    return model.eval(), images[: settings.images], labels[: settings.images]


def linear(images: Tensor, labels: Tensor) -> nn.Module:
    """A linear model fitted to images by least squares: passes of it cost next to nothing.

    Args:
      images: float32, shape (N, 3, H, W), fewer than they have values.
      labels: int64, shape (N,).
    """
    values = images.flatten(1).double() - 0.5
    wanted = 10 * nn.functional.one_hot(labels).double()
    weight = torch.linalg.lstsq(values, wanted, driver="gelsd").solution
    layer = nn.Linear(*weight.shape)
    with torch.no_grad():
        layer.weight.copy_(weight.T)
        layer.bias.copy_(-0.5 * weight.sum(dim=0))
    return nn.Sequential(nn.Flatten(), layer)


def examples_of(images: Tensor, labels: Tensor) -> list[Example]:
    """Images and labels as a driver takes them; the id of each is its row."""
    pairs = enumerate(zip(labels.tolist(), images, strict=True))
    return [Example(row, f"{row}", label, image) for row, (label, image) in pairs]
