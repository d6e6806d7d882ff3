"""What benches of attacks have in common: model, images, and how fast passes are at best.

Not here: any attack (one file each).
"""

import statistics
from dataclasses import astuple, dataclass

import torch
from torch import Tensor, nn

from robench.attacks.drive import Example
from robench.bench.measurement import Settings
from robench.bench.photographs import fitted, photographs
from robench.classifier import Classifier
from robench.compiled import prepare
from robench.data.mini import attack_set
from robench.fastpath import pass_rate, repeated
from robench.zoo import load_model

RADIUS = "4/255"
"""The radius of `mini-autoattack-linf`, under which most survive."""
SIZES = (16, 32, 64, 128)
"""Batch sizes tried, as far as there are images to fill more than half of them."""
WATCHED = 2.0
"""Seconds for which passes at the best size are timed, or a little more."""


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


@dataclass(frozen=True)
class Pace:
    """Seconds for one image at the best batch size: with gradient, without, and without by the user's own model."""

    gradient: float
    labels: float
    own: float

    def seconds(self, gradients: float, labels: float, own: float) -> float:
        """What so many passes take."""
        return gradients * self.gradient + labels * self.labels + own * self.own


def pace(faster: Classifier, own: Classifier, images: Tensor) -> Pace:
    """How fast bare passes are now; machines drift, so measure before and after what is compared with it."""

    def seconds(classifier: Classifier, gradients: bool) -> float:
        rates = {size: pass_rate(classifier, repeated(images, size), gradients=gradients) for size in _sizes(images)}
        best = max(rates, key=lambda size: rates[size])
        rows, looks = repeated(images, best), max(3, round(WATCHED * rates[best] / best / 5))
        # The highest of several short looks is a lucky one: it says which size is best, and not how fast that is.
        return statistics.mean(1 / pass_rate(classifier, rows, gradients=gradients) for _ in range(looks))

    return Pace(seconds(faster, True), seconds(faster, False), seconds(own, False))


def mean_pace(one: Pace, other: Pace) -> Pace:
    """The mean of two measurements."""
    return Pace(*(statistics.mean(pair) for pair in zip(astuple(one), astuple(other), strict=True)))


def best_size(classifier: Classifier, images: Tensor) -> int:
    """Batch size at which forward and backward passes are fastest."""
    return max(_sizes(images), key=lambda size: pass_rate(classifier, repeated(images, size)))


def _sizes(images: Tensor) -> list[int]:
    return [size for size in SIZES if size < 2 * len(images)] or [SIZES[0]]
