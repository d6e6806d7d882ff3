"""Vision transformers that timm can build and has no name for: DeiT-Mini, Hybrid-DeiT, and the hybrid in miniature.

References:
  Bai et al. 2021, arXiv:2111.05464. Deviates: the published code does not define DeiT-Mini; 256 channels in 12
  blocks give the published 9.98 M parameters, 4 heads are ours (64 channels a head, as in every DeiT). No code of
  Hybrid-DeiT was published; here the last stage of ResNet-18 (512 channels, 7x7) goes through one linear layer
  into the blocks of DeiT-Mini, with its own 50 positions. `hybrid_mini` stands to `mini-resnet` and `mini-deit` as
  Hybrid-DeiT to its parents, but for the stage: the second, whose 8x8 places are as many as the tokens of `mini-deit`.

Not here: DeiT-S and DeiT-B, which are timm's `deit_small_patch16_224` and `deit_base_patch16_224`.
"""

from functools import partial
from typing import Any

import timm
from timm.layers import HybridEmbed
from timm.models.vision_transformer import VisionTransformer
from torch import nn

from robench.zoo.mini import resnet_stages, transformer
from robench.zoo.registration import Network

MINI = {"embed_dim": 256, "depth": 12, "num_heads": 4}


def _hybrid(**arguments: Any) -> nn.Module:
    stages = timm.create_model("resnet18", features_only=True, out_indices=(4,))
    embed = partial(HybridEmbed, backbone=stages, feature_size=7, feature_ratio=32)
    network: nn.Module = VisionTransformer(patch_size=1, embed_layer=embed, **arguments)
    return network


def _hybrid_mini(**arguments: Any) -> nn.Module:
    network: nn.Module = transformer(resnet_stages(2), **{"num_classes": 1000, **arguments})
    return network


NETWORKS = {
    "deit_mini_patch16_224": Network(
        VisionTransformer, {"patch_size": 16, **MINI}, first="patch_embed.proj", classifier="head"
    ),
    "hybrid_deit_mini_r18": Network(_hybrid, MINI, first="patch_embed.backbone.conv1", classifier="head"),
    "hybrid_mini": Network(_hybrid_mini, {}, first="patch_embed.backbone.0", classifier="head"),
}
