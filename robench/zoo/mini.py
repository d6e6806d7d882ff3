"""The bundled models: small relatives of ResNet-50 and DeiT-S for the mini suite, built by timm.

Not here: how they were trained (`robench/training/recipes/`), and their weights (`weights/`).
"""

from collections.abc import Callable
from functools import partial

import torch
from timm.layers import HybridEmbed, build_sincos2d_pos_embed
from timm.models.resnet import BasicBlock, ResNet
from timm.models.vision_transformer import VisionTransformer
from torch import nn

from robench.data.mini import CLASSES
from robench.zoo.normalised import Normalised


def _mini(network: nn.Module) -> Normalised:
    return Normalised(network, mean=(0.5, 0.5, 0.5), std=(0.25, 0.25, 0.25))


def _resnet(act_layer: str) -> Normalised:
    """ResNet with one basic block a stage and a 16-channel deep stem, 0.22 M parameters."""
    network = ResNet(
        BasicBlock,
        [1, 1, 1, 1],
        num_classes=CLASSES,
        stem_type="deep",
        stem_width=8,
        channels=(16, 32, 64, 96),
        act_layer=act_layer,
    )
    return _mini(network)


def _deit() -> Normalised:
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
    network = VisionTransformer(
        img_size=64,
        patch_size=1,  # of the stem's feature map, which is an eighth of the image
        embed_layer=partial(HybridEmbed, backbone=stem),
        num_classes=CLASSES,
        embed_dim=80,
        depth=2,
        num_heads=4,
        mlp_ratio=2,
        class_token=False,
        global_pool="avg",
    )
    with torch.no_grad():
        network.pos_embed.copy_(0.5 * build_sincos2d_pos_embed((8, 8), 80)[None])
    return _mini(network)


def _convolution(channels_in: int, channels_out: int, *, stride: int) -> list[nn.Module]:
    return [
        nn.Conv2d(channels_in, channels_out, kernel_size=3, stride=stride, padding=1, bias=False),
        nn.BatchNorm2d(channels_out),
        nn.GELU(),
    ]


ARCHITECTURES: dict[str, Callable[[], Normalised]] = {
    "mini-resnet": lambda: _resnet("relu"),
    "mini-resnet-gelu": lambda: _resnet("gelu"),
    "mini-deit": _deit,
}
"""Untrained architecture by name; a bundled model is one of these with weights."""

MODELS = {f"{architecture}{twin}": architecture for architecture in ARCHITECTURES for twin in ("", "-adv")}
"""Architecture of each bundled model; `-adv` was trained against PGD."""
