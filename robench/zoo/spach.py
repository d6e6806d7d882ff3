"""SPACH: convolution, attention and MLP in one framework, which differ in nothing but how they mix positions.

A block on tokens x of shape (B, N, C), with depthwise 3x3 convolution D and channel MLP M:

    y = x + D(x) + scale * F(norm(x))        F: attention, token MLP, or nothing ("conv": D alone)
    z = y + M(norm(y))

The stages of a network are words with a letter for each block: c for convolution alone, a for attention, m for MLP.
In networks of four stages the first is all c. The number of heads is the same in all stages.

References:
  Zhao et al. 2021, arXiv:2108.13002, and its code, which this follows where the two differ: F comes before the
  channel MLP, and D has no normalisation. Deviates: images must be square; F is never shared between blocks.

Not here: the recipe (`robench/training/recipes/spach.toml`).
"""

import torch
from timm.layers import DropPath, Mlp
from timm.models.vision_transformer import Attention, LayerScale
from torch import Tensor, nn

from robench.zoo.registration import Network

HEAD_CHANNELS = 32
"""Channels of an attention head in the first stage; as many heads stay in stages with more channels."""


class TokenMlp(nn.Module):
    """An MLP over the token axis, half as wide as there are tokens: (B, N, C) to (B, N, C)."""

    def __init__(self, tokens: int) -> None:
        super().__init__()
        self.mlp = Mlp(tokens, tokens // 2)

    def forward(self, x: Tensor) -> Tensor:
        mixed: Tensor = self.mlp(x.transpose(1, 2)).transpose(1, 2)
        return mixed


class Block(nn.Module):
    """One block on (B, N, C) tokens of a square grid; see the module.

    Args:
      kind: "c", "a" or "m".
      channels: C.
      side: of the grid, N = side ** 2.
      ratio: width of the channel MLP in units of C.
      heads: of attention.
      drop_path: chance to drop a branch of an example.
    """

    def __init__(self, kind: str, channels: int, *, side: int, ratio: int, heads: int, drop_path: float) -> None:
        super().__init__()
        self.side = side
        self.bypass = nn.Conv2d(channels, channels, kernel_size=3, padding=1, groups=channels)
        self.spatial: nn.Sequential | None = None
        if kind != "c":
            mix = Attention(channels, heads, qkv_bias=True) if kind == "a" else TokenMlp(side**2)
            scale = LayerScale(channels, init_values=1e-4)
            self.spatial = nn.Sequential(nn.LayerNorm(channels, eps=1e-6), mix, scale)
        self.channel = nn.Sequential(nn.LayerNorm(channels, eps=1e-6), Mlp(channels, ratio * channels))
        self.drop_path = DropPath(drop_path)

    def forward(self, x: Tensor) -> Tensor:
        y = x + _tokens(self.bypass(_grid(x, self.side)))
        if self.spatial is not None:
            y = y + self.drop_path(self.spatial(x))
        return y + self.drop_path(self.channel(y))  # type: ignore[no-any-return]  # timm is untyped


class Spach(nn.Module):
    """The whole network: stem, stages, and a linear layer on the mean token.

    Args:
      stages: a word for each stage; the side halves and the channels double between stages.
      channels: of the first stage.
      ratio: width of the channel MLPs in units of their channels.
      patch: side of a patch of the stem, in pixels.
      deep_stem: four convolutions in place of one.
      img_size: side of the image, in pixels.
      num_classes: number of logits.
      in_chans: channels of the image.
      drop_path_rate: of the last block; it grows from 0 with four stages, and is the same everywhere with one.
    """

    def __init__(
        self,
        stages: tuple[str, ...],
        channels: int,
        ratio: int,
        *,
        patch: int,
        deep_stem: bool = False,
        img_size: int = 224,
        num_classes: int = 1000,
        in_chans: int = 3,
        drop_path_rate: float = 0.0,
    ) -> None:
        super().__init__()
        self.num_classes = num_classes
        self.stem = (_deep_stem if deep_stem else _convolution)(in_chans, channels, patch)
        self.norm = nn.LayerNorm(channels, eps=1e-6)
        depth = sum(len(word) for word in stages)
        rates = torch.linspace(0 if len(stages) > 1 else drop_path_rate, drop_path_rate, depth, device="cpu").tolist()
        heads, side, parts = channels // HEAD_CHANNELS, img_size // patch, list[nn.Module]()
        for number, word in enumerate(stages):
            if number:
                parts.append(Downsample(channels, side))
                channels, side = 2 * channels, side // 2
            for kind in word:
                block = Block(kind, channels, side=side, ratio=ratio, heads=heads, drop_path=rates.pop(0))
                parts.append(block)
        self.blocks = nn.Sequential(*parts)
        self.num_features = channels
        self.head_norm = nn.LayerNorm(channels, eps=1e-6)
        self.head = nn.Linear(channels, num_classes)
        self.apply(_initialise)
        nn.init.zeros_(self.head.weight)

    def forward(self, images: Tensor) -> Tensor:
        """Images, shape (B, 3, S, S), to logits, shape (B, num_classes)."""
        x = self.norm(_tokens(self.stem(images)))
        logits: Tensor = self.head(self.head_norm(self.blocks(x)).mean(dim=1))
        return logits


class Downsample(nn.Module):
    """Halves the side of the grid and doubles the channels: (B, N, C) to (B, N / 4, 2 C)."""

    def __init__(self, channels: int, side: int) -> None:
        super().__init__()
        self.side = side
        self.reduce = nn.Sequential(
            nn.Conv2d(channels, 2 * channels, kernel_size=2, stride=2, bias=False), nn.GroupNorm(1, 2 * channels)
        )

    def forward(self, x: Tensor) -> Tensor:
        return _tokens(self.reduce(_grid(x, self.side)))


def _grid(tokens: Tensor, side: int) -> Tensor:
    """(B, N, C) to (B, C, side, side)."""
    return tokens.transpose(1, 2).reshape(len(tokens), -1, side, side)


def _tokens(grid: Tensor) -> Tensor:
    """(B, C, H, W) to (B, H * W, C)."""
    return grid.flatten(2).transpose(1, 2)


def _convolution(channels_in: int, channels_out: int, size: int) -> nn.Conv2d:
    """Patches of `size` pixels, each to `channels_out` numbers."""
    return nn.Conv2d(channels_in, channels_out, kernel_size=size, stride=size)


def _deep_stem(channels_in: int, channels_out: int, size: int) -> nn.Sequential:
    """The same in four convolutions."""
    parts: list[nn.Module] = []
    for channels, kernel, stride in ((channels_in, 7, 2), (64, 3, 1), (64, 3, 1)):
        parts += [
            nn.Conv2d(channels, 64, kernel_size=kernel, stride=stride, padding=kernel // 2, bias=False),
            nn.BatchNorm2d(64),
            nn.ReLU(),
        ]
    return nn.Sequential(*parts, _convolution(64, channels_out, size // 2))


def _initialise(part: nn.Module) -> None:
    if isinstance(part, nn.Linear):
        nn.init.xavier_uniform_(part.weight)
    elif isinstance(part, nn.Conv2d):
        nn.init.kaiming_normal_(part.weight, mode="fan_out")
    if isinstance(part, nn.Linear | nn.Conv2d) and part.bias is not None:
        nn.init.zeros_(part.bias)


def _network(*stages: str, channels: int, ratio: int, patch: int = 4, deep_stem: bool = False) -> Network:
    first = "stem.0" if deep_stem else "stem"
    arguments = {"stages": stages, "channels": channels, "ratio": ratio, "patch": patch, "deep_stem": deep_stem}
    return Network(Spach, arguments, first=first, classifier="head")


def _four(kind: str, depths: tuple[int, int, int, int], *, channels: int, ratio: int) -> Network:
    """Four stages of one kind, but for the first, where attention and MLP would cost too much."""
    first, *others = depths
    return _network("c" * first, *(kind * depth for depth in others), channels=channels, ratio=ratio)


def _one(kind: str, depth: int, *, channels: int, ratio: int) -> Network:
    return _network(kind * depth, channels=channels, ratio=ratio, patch=16)


XXS, XS = (2, 2, 6, 2), (3, 4, 12, 3)
HYBRID_S = ("ccc", "ccaa", "cc" + 10 * "a", "caa")
NETWORKS = {
    "spach_ms_xxs_conv": _four("c", XXS, channels=64, ratio=2),
    "spach_ms_xxs_attn": _four("a", XXS, channels=32, ratio=2),
    "spach_ms_xxs_mlp": _four("m", XXS, channels=64, ratio=2),
    "spach_ms_xs_conv": _four("c", XS, channels=96, ratio=2),
    "spach_ms_xs_attn": _four("a", XS, channels=64, ratio=2),
    "spach_ms_xs_mlp": _four("m", XS, channels=96, ratio=2),
    "spach_ms_s_conv": _four("c", XS, channels=128, ratio=3),
    "spach_ms_s_attn": _four("a", XS, channels=96, ratio=3),
    "spach_ms_s_mlp": _four("m", XS, channels=128, ratio=3),
    "spach_hybrid_ms_xs": _network("ccc", "cccc", "cc" + 10 * "a", "caa", channels=96, ratio=2),
    "spach_hybrid_ms_s": _network(*HYBRID_S, channels=128, ratio=3),
    "spach_hybrid_ms_s_plus": _network(*HYBRID_S, channels=128, ratio=3, deep_stem=True),
    "spach_ss_xxs_conv": _one("c", 12, channels=384, ratio=2),
    "spach_ss_xxs_attn": _one("a", 12, channels=192, ratio=2),
    "spach_ss_xxs_mlp": _one("m", 12, channels=384, ratio=2),
    "spach_ss_xs_conv": _one("c", 24, channels=384, ratio=2),
    "spach_ss_xs_attn": _one("a", 12, channels=384, ratio=2),
    "spach_ss_xs_mlp": _one("m", 24, channels=384, ratio=2),
    "spach_ss_s_conv": _one("c", 24, channels=512, ratio=3),
    "spach_ss_s_attn": _one("a", 12, channels=512, ratio=3),
    "spach_ss_s_mlp": _one("m", 24, channels=512, ratio=3),
}
"""ms: four stages; ss: one stage; each as convolution, attention and MLP; hybrids mix the first two."""
