"""The road map from ResNet to ConvNeXt: every network on the way, in two regimes.

Regime 50 goes from ResNet-50 to ConvNeXt-T, regime 200 from ResNet-200 to ConvNeXt-B. Each step keeps what the
steps before it changed (`ROAD`); kernels of 9 and 11 were tried and not kept, so that the road leaves them aside.
The first network of a regime equals timm's `resnet50` or `resnet200`, the last its `convnext_tiny` or
`convnext_base`, weight for weight. Regime 17 is ours: the same steps at the size of the mini suite.

References:
  Liu et al. 2022, arXiv:2201.03545, section 2 and appendix C. No code of the steps was published; these
  definitions reproduce the printed multiply-adds of every step but "batch-norm to layer-norm" in regime 50
  (printed 4.46 G; any 1:1 replacement leaves 4.15 G). Deviates, where the paper says nothing: the stem keeps its
  norm until "fewer norms" and its activation until "fewer activations"; projections of shortcuts keep their norm
  until down-sampling is separate; a convolution has a bias unless batch-norm follows it; networks with batch-norm
  start as timm's ResNet does, the others as ConvNeXt; layer scale comes with the last step.

Not here: the recipes (`robench/training/recipes/roadmap.toml`).
"""

from dataclasses import dataclass, replace
from typing import Any

import torch
from timm.layers import DropPath, LayerNorm2d, LayerScale2d, trunc_normal_
from torch import Tensor, nn

from robench.zoo.registration import Network


@dataclass(frozen=True)
class Design:
    """What the steps of the road decide; the defaults are those of ResNet."""

    depths: tuple[int, int, int, int]
    """Blocks of each stage."""
    width: int = 64
    """Channels of the stem; of the narrow convolutions in the first stage, until blocks are inverted."""
    patchify: bool = False
    """Stem: one 4x4 convolution in place of a 7x7 one and max-pooling."""
    depthwise: bool = False
    inverted: bool = False
    """Blocks are wide inside (4 times) and narrow outside, with the depthwise convolution on the wide part."""
    moved_up: bool = False
    """The depthwise convolution comes first, on the narrow part."""
    kernel: int = 3
    gelu: bool = False
    fewer_activations: bool = False
    """One activation a block, between its two 1x1 convolutions."""
    fewer_norms: bool = False
    """One norm a block, before its first 1x1 convolution."""
    layer_norm: bool = False
    separate_downsampling: bool = False
    """Norm and 2x2 convolution between stages, norms after stem and pooling, layer scale: ConvNeXt."""

    def norm(self, channels: int) -> nn.Module:
        """A new norm of feature maps."""
        return LayerNorm2d(channels, eps=1e-6) if self.layer_norm else nn.BatchNorm2d(channels)

    def activation(self) -> nn.Module:
        """A new activation."""
        return nn.GELU() if self.gelu else nn.ReLU(inplace=True)

    def convolution(
        self, channels_in: int, channels_out: int, kernel: int, *, stride: int = 1, groups: int = 1, norm: bool
    ) -> list[nn.Module]:
        """A convolution and, if there is to be one, its norm."""
        bias = self.layer_norm or not norm
        padding = (kernel - 1) // 2 if kernel % 2 else 0
        layer = nn.Conv2d(channels_in, channels_out, kernel, stride, padding, groups=groups, bias=bias)
        return [layer, self.norm(channels_out)] if norm else [layer]


class Block(nn.Module):
    """A residual block: three convolutions, with the norms and activations that the design leaves."""

    def __init__(self, design: Design, channels_in: int, channels_out: int, *, stride: int, drop_path: float) -> None:
        super().__init__()
        parts: list[nn.Module] = []
        for number, shape in enumerate(_shapes(design, channels_in, channels_out, stride)):
            parts += design.convolution(**shape, norm=number == 0 or not design.fewer_norms)
            if number == 1 or (number == 0 and not design.fewer_activations):
                parts.append(design.activation())
        if design.separate_downsampling:
            parts.append(LayerScale2d(channels_out, init_values=1e-6))
        self.body = nn.Sequential(*parts)
        self.shortcut: nn.Module = nn.Identity()
        if stride > 1 or channels_in != channels_out:
            self.shortcut = nn.Sequential(*design.convolution(channels_in, channels_out, 1, stride=stride, norm=True))
        self.drop_path = DropPath(drop_path)
        self.after = nn.Identity() if design.fewer_activations else design.activation()

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.after(self.shortcut(x) + self.drop_path(self.body(x)))
        return y


def _shapes(design: Design, channels_in: int, channels_out: int, stride: int) -> list[dict[str, int]]:
    """Shapes of the three convolutions of a block."""
    inner = 4 * channels_out if design.inverted else channels_out // 4
    first = {"channels_in": channels_in, "channels_out": inner, "kernel": 1}
    last = {"channels_in": inner, "channels_out": channels_out, "kernel": 1}
    channels = channels_in if design.moved_up else inner
    groups = channels if design.depthwise else 1
    spatial = {"channels_in": channels, "channels_out": channels, "kernel": design.kernel}
    spatial |= {"stride": stride, "groups": groups}
    return [spatial, first, last] if design.moved_up else [first, spatial, last]


class RoadmapNet(nn.Module):
    """A network of the road map.

    Args:
      design: what its step decides.
      num_classes: number of logits.
      in_chans: channels of the image.
      drop_path_rate: chance to drop the last block of an example; grows from 0 block by block.
    """

    def __init__(
        self, design: Design, *, num_classes: int = 1000, in_chans: int = 3, drop_path_rate: float = 0.0
    ) -> None:
        super().__init__()
        self.num_classes = num_classes
        self.stem = nn.Sequential(*_stem(design, in_chans))
        rates = torch.linspace(0, drop_path_rate, sum(design.depths), device="cpu").tolist()
        channels_in, stages = design.width, list[nn.Module]()
        for number, depth in enumerate(design.depths):
            channels = design.width * 2**number * (1 if design.inverted else 4)
            stride = 1 if number == 0 else 2
            parts: list[nn.Module] = []
            if number and design.separate_downsampling:
                parts += [design.norm(channels_in), nn.Conv2d(channels_in, channels, kernel_size=2, stride=2)]
                channels_in, stride = channels, 1
            for _ in range(depth):
                parts.append(Block(design, channels_in, channels, stride=stride, drop_path=rates.pop(0)))
                channels_in, stride = channels, 1
            stages.append(nn.Sequential(*parts))
        self.stages = nn.Sequential(*stages)
        self.num_features = channels_in
        self.norm = design.norm(channels_in) if design.separate_downsampling else nn.Identity()
        self.head = nn.Linear(channels_in, num_classes)
        self._initialise(design)

    def forward(self, images: Tensor) -> Tensor:
        """Images, shape (N, 3, H, W), to logits, shape (N, num_classes)."""
        pooled = self.stages(self.stem(images)).mean(dim=(2, 3), keepdim=True)
        logits: Tensor = self.head(self.norm(pooled).flatten(1))
        return logits

    def _initialise(self, design: Design) -> None:
        for part in self.modules():
            if design.layer_norm and isinstance(part, nn.Conv2d | nn.Linear):
                trunc_normal_(part.weight, std=0.02)
            elif isinstance(part, nn.Conv2d):
                nn.init.kaiming_normal_(part.weight, mode="fan_out", nonlinearity="relu")
            if isinstance(part, nn.Conv2d) or (design.layer_norm and part is self.head):
                _zero(part.bias)
            if isinstance(part, Block) and isinstance(part.body[-1], nn.BatchNorm2d):
                _zero(part.body[-1].weight)  # as timm: every block starts as its shortcut


def _zero(parameter: Any) -> None:
    if parameter is not None:
        nn.init.zeros_(parameter)


def _stem(design: Design, channels_in: int) -> list[nn.Module]:
    norm = not design.fewer_norms or design.separate_downsampling
    kernel, stride = (4, 4) if design.patchify else (7, 2)
    parts = design.convolution(channels_in, design.width, kernel, stride=stride, norm=norm)
    if not design.fewer_activations:
        parts.append(design.activation())
    if not design.patchify:
        parts.append(nn.MaxPool2d(kernel_size=3, stride=2, padding=1))
    return parts


REGIMES: dict[int, tuple[Design, dict[str, Any], dict[str, Any]]] = {
    50: (Design((3, 4, 6, 3)), {"depths": (3, 3, 9, 3)}, {"width": 96}),
    200: (Design((3, 24, 36, 3)), {"depths": (3, 3, 27, 3), "width": 84}, {"width": 128}),
    17: (Design((1, 1, 2, 1), width=16), {"depths": (1, 1, 3, 1)}, {"width": 24}),
}
"""ResNet, and what "stage ratio" and "width" change in each regime."""

ROAD: dict[str, dict[str, Any]] = {
    "patchify": {"patchify": True},
    "depthwise": {"depthwise": True},
    "width": {},
    "inverted": {"inverted": True},
    "moved_up": {"moved_up": True},
    "kernel5": {"kernel": 5},
    "kernel7": {"kernel": 7},
    "gelu": {"gelu": True},
    "fewer_activations": {"fewer_activations": True},
    "fewer_norms": {"fewer_norms": True},
    "layer_norm": {"layer_norm": True},
    "separate_downsampling": {"separate_downsampling": True},
}
"""What each step after "stage ratio" changes; "width" is the regime's own."""


def designs(regime: int) -> dict[str, Design]:
    """Every network of a regime by the name of its step, in order."""
    design, ratio, width = REGIMES[regime]
    found = {"resnet": design}
    for name, changes in {"stage_ratio": ratio, **ROAD, "width": width}.items():
        design = replace(design, **changes)
        found[name] = design
        if name == "kernel7":
            found |= {f"kernel{size}": replace(design, kernel=size) for size in (9, 11)}
    return found


NETWORKS = {
    f"roadmap{regime}_{name}": Network(RoadmapNet, {"design": design}, first="stem.0", classifier="head")
    for regime in REGIMES
    for name, design in designs(regime).items()
}
