"""Makes networks known to timm, so that `timm.create_model` builds them and the Hub's `config.json` names them.

Not here: the networks (`deit`, `resnet_rs`, `roadmap`, `spach`).
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from timm.data.constants import IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD
from timm.models import build_model_with_cfg, generate_default_cfgs, register_model
from torch import nn


@dataclass(frozen=True)
class Network:
    """A row of a catalogue: what builds a network, and with which arguments.

    Attributes:
      build: class or function; takes `num_classes` and `drop_path_rate` beside `arguments`.
      arguments: what makes this network of all that it can build.
      first: name of its first convolution, as timm wants to know it.
      classifier: name of its last linear layer, likewise.
    """

    build: Callable[..., nn.Module]
    arguments: Mapping[str, Any]
    first: str
    classifier: str


default_cfgs: dict[str, Any] = {}
"""Where timm looks for the preprocessing of what this module registers."""


def register(name: str, network: Network) -> None:
    """Register a network of 224-pixel ImageNet photographs under a name of its own."""
    settings = {
        "url": "",
        "num_classes": 1000,
        "input_size": (3, 224, 224),
        "crop_pct": 0.875,
        "interpolation": "bicubic",
        "mean": IMAGENET_DEFAULT_MEAN,
        "std": IMAGENET_DEFAULT_STD,
        "first_conv": network.first,
        "classifier": network.classifier,
    }
    default_cfgs.update(generate_default_cfgs({name: settings}))

    def entry(pretrained: bool = False, **arguments: Any) -> Any:
        return build_model_with_cfg(network.build, name, pretrained, **{**network.arguments, **arguments})

    entry.__name__ = name  # what timm registers it under
    register_model(entry)
