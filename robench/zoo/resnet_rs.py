"""What the ResNet-RS ladder needs and timm has no name for.

Of the published one that is ResNet-200 with squeeze-and-excitation at 1/4: the steps before it are timm's `resnet200`,
the step after it (ResNet-D) and the larger models are timm's `resnetrs50` to `resnetrs420`. The mini ladder climbs on
networks of ten layers (`rs10`, `rs10_se`, `rs10_se_d`), with the channels of `mini-resnet`.

References:
  Bello et al. 2021, arXiv:2103.07579. Deviates: stochastic depth, where a recipe asks for it, grows block by block
  (timm), in the published code stage by stage.

Not here: the recipes of the ladder (`robench/training/recipes/resnet-rs.toml`).
"""

from functools import partial

from timm.layers import get_attn
from timm.models.resnet import BasicBlock, Bottleneck, ResNet

from robench.zoo.registration import Network

_SE = {"attn_layer": partial(get_attn("se"), rd_ratio=0.25)}
_TEN = {"block": BasicBlock, "layers": (1, 1, 1, 1), "channels": (16, 32, 64, 96)}
_D = {"stem_type": "deep", "stem_width": 32, "avg_down": True}
"""ResNet-D: three 3x3 convolutions in place of the 7x7 one, and averages in the shortcuts that shrink."""

NETWORKS = {
    name: Network(ResNet, arguments, first="conv1.0" if "stem_type" in arguments else "conv1", classifier="fc")
    for name, arguments in {
        "resnet200_se": {"block": Bottleneck, "layers": (3, 24, 36, 3), "block_args": _SE},
        "rs10": _TEN,
        "rs10_se": {**_TEN, "block_args": _SE},
        "rs10_se_d": {**_TEN, "block_args": _SE, **_D},
    }.items()
}
