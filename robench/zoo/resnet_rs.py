"""The one step of the ResNet-RS ladder that timm has no name for: ResNet-200 with squeeze-and-excitation at 1/4.

The steps before it are timm's `resnet200`, the step after it (ResNet-D) and the larger models are timm's
`resnetrs50` to `resnetrs420`.

References:
  Bello et al. 2021, arXiv:2103.07579. Deviates: stochastic depth, where a recipe asks for it, grows block by block
  (timm), in the published code stage by stage.

Not here: the recipes of the ladder (`robench/training/recipes/resnet-rs.toml`).
"""

from functools import partial

from timm.layers import get_attn
from timm.models.resnet import Bottleneck, ResNet

from robench.zoo.registration import Network

NETWORKS = {
    "resnet200_se": Network(
        ResNet,
        {
            "block": Bottleneck,
            "layers": (3, 24, 36, 3),
            "block_args": {"attn_layer": partial(get_attn("se"), rd_ratio=0.25)},
        },
        first="conv1",
        classifier="fc",
    )
}
