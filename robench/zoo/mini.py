"""The bundled models: small relatives of ResNet-50 and DeiT-S for the mini suite, built by timm.

Not here: how they were trained (`robench/training/recipes/`), and their weights (`weights/`).
"""

from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from timm.layers import HybridEmbed, build_sincos2d_pos_embed
from timm.models.resnet import BasicBlock, ResNet
from timm.models.vision_transformer import VisionTransformer
from torch import nn

from robench.data.mini import CLASSES
from robench.zoo.normalised import Normalised


def _mini(network: nn.Module) -> Normalised:
    return Normalised(network, mean=(0.5, 0.5, 0.5), std=(0.25, 0.25, 0.25))


def _resnet(act_layer: str) -> ResNet:
    """ResNet with one basic block a stage and a 16-channel deep stem, 0.22 M parameters."""
    return ResNet(
        BasicBlock,
        [1, 1, 1, 1],
        num_classes=CLASSES,
        stem_type="deep",
        stem_width=8,
        channels=(16, 32, 64, 96),
        act_layer=act_layer,
    )


def resnet_stages(count: int) -> nn.Sequential:
    """Stem and first stages of `mini-resnet`; two of them leave 32 channels at an eighth of the side."""
    network = _resnet("relu")
    stages = (network.layer1, network.layer2, network.layer3, network.layer4)
    return nn.Sequential(network.conv1, network.bn1, network.act1, network.maxpool, *stages[:count])


def _deit() -> VisionTransformer:
    """Vision transformer on 64 tokens of 8x8 pixels, with what makes small ones learn: 0.15 M parameters.

    Its stem is convolutional, its positions start as sines, and it averages its tokens instead of asking
    one for the class.

    References:
      Xiao et al. 2021, arXiv:2106.14881 (stem); Beyer et al. 2022, arXiv:2205.01580 (positions, average).
      Why it is no plain DeiT: docs/decisions/0002.
    """
    stem = nn.Sequential(
        *_convolution(3, 16, stride=2),
        *_convolution(16, 32, stride=2),
        *_convolution(32, 32, stride=1),
        *_convolution(32, 64, stride=2),
    )
    return transformer(stem)


def transformer(stem: nn.Module, *, num_classes: int = CLASSES, **arguments: Any) -> VisionTransformer:
    """The blocks of `mini-deit` on what a stem makes of an image: a feature map of an eighth of its side."""
    network = VisionTransformer(
        img_size=64,
        patch_size=1,  # of the stem's feature map
        embed_layer=partial(HybridEmbed, backbone=stem),
        num_classes=num_classes,
        embed_dim=80,
        depth=2,
        num_heads=4,
        mlp_ratio=2,
        class_token=False,
        global_pool="avg",
        **arguments,
    )
    with torch.no_grad():
        network.pos_embed.copy_(0.5 * build_sincos2d_pos_embed((8, 8), 80)[None])
    return network


def _convolution(channels_in: int, channels_out: int, *, stride: int) -> list[nn.Module]:
    return [
        nn.Conv2d(channels_in, channels_out, kernel_size=3, stride=stride, padding=1, bias=False),
        nn.BatchNorm2d(channels_out),
        nn.GELU(),
    ]


ARCHITECTURES: dict[str, Callable[[], Normalised]] = {
    "mini-resnet": lambda: _mini(_resnet("relu")),
    "mini-resnet-gelu": lambda: _mini(_resnet("gelu")),
    "mini-deit": lambda: _mini(_deit()),
}
"""Untrained architecture by name; a bundled model is one of these with weights."""

MODELS = {f"{architecture}{twin}": architecture for architecture in ARCHITECTURES for twin in ("", "-adv")}
"""Architecture of each bundled model; `-adv` was trained against PGD."""
