"""Gives an image the style of another, by adaptive instance normalization (AdaIN) between an encoder and a decoder.

Weights are not shipped; they are read from safetensors in the layout of the published files. Not here: which image gets
which style (`stylized_tree`).

References:
  Huang & Belongie 2017, arXiv:1703.06868. Weights: github.com/naoto0804/pytorch-AdaIN.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import torch
from torch import Tensor, nn

from robench.classifier import check_device
from robench.data.locations import expanded
from robench.errors import ModelError, complaint
from robench.hub import SCHEME, Hub, open_snapshot, parse
from robench.zoo.state import load_strictly, sha256_of, tensors_of

Part = Literal["encoder", "decoder"]

PUBLISHED: dict[Part, str] = {"encoder": "vgg_normalised.pth", "decoder": "decoder.pth"}
"""Files of the published weights."""
_ENCODER = ((64, 64), (128, 128), (256, 256, 256, 256), (512,))
"""Channels of the convolutions between two poolings: VGG-19 up to the first one of its fourth block."""
_DECODER = ((256,), (256, 256, 256, 128), (128, 64), (64,))
"""Channels of the convolutions between two enlargements; one to three channels follows."""
_TINY = 1e-5
"""Added to variances, as published."""
_LAYOUT: dict[Part, str] = {
    "encoder": "`0.weight` (3, 3, 1, 1), `2.weight` (64, 3, 3, 3) to `29.weight` (512, 256, 3, 3), with biases",
    "decoder": "`1.weight` (256, 512, 3, 3) to `28.weight` (3, 64, 3, 3), with biases",
}


def build_encoder() -> nn.Sequential:
    """VGG-19 up to `relu4_1`, each convolution behind a reflecting border; the first layer normalises images."""
    layers: list[nn.Module] = [nn.Conv2d(3, 3, 1)]
    channels = 3
    for block, widths in enumerate(_ENCODER):
        if block:
            layers.append(nn.MaxPool2d(2, ceil_mode=True))
        for width in widths:
            layers += [nn.ReflectionPad2d(1), nn.Conv2d(channels, width, 3), nn.ReLU()]
            channels = width
    return nn.Sequential(*layers)


def build_decoder() -> nn.Sequential:
    """The way back, enlarging by nearest neighbours instead of pooling, without a last ReLU."""
    layers: list[nn.Module] = []
    channels = 512
    for block, widths in enumerate(_DECODER):
        if block:
            layers.append(nn.UpsamplingNearest2d(scale_factor=2))
        for width in widths:
            layers += [nn.ReflectionPad2d(1), nn.Conv2d(channels, width, 3), nn.ReLU()]
            channels = width
    return nn.Sequential(*layers, nn.ReflectionPad2d(1), nn.Conv2d(channels, 3, 3))


def adapted(content: Tensor, style: Tensor) -> Tensor:
    """Features of a content, each channel with the mean and standard deviation of the style's.

    std(s) (c - mean(c)) / std(c) + mean(s), where std is sqrt(variance + 1e-5) and variances divide by the number of
    positions minus one.

    Args:
      content, style: shape (N, C, H, W); of the style, H and W may differ.
    """
    (mean, std), (wanted_mean, wanted_std) = _moments(content), _moments(style)
    return (content - mean) / std * wanted_std + wanted_mean


def _moments(features: Tensor) -> tuple[Tensor, Tensor]:
    variance, mean = torch.var_mean(features, dim=(2, 3), keepdim=True)
    return mean, (variance + _TINY).sqrt()


@dataclass(frozen=True)
class AdaIN:
    """Encoder and decoder.

    Attributes:
      encoder, decoder: in eval mode, without gradients.
      encoder_sha256, decoder_sha256: of the files of their weights.
    """

    encoder: nn.Module
    decoder: nn.Module
    encoder_sha256: str
    decoder_sha256: str

    @classmethod
    def load(cls, encoder: str | None, decoder: str | None, *, device: str | torch.device = "cpu") -> "AdaIN":
        """Load both.

        Args:
          encoder, decoder: a safetensors file, or `hf-hub:org/name/file[@revision]`; None is an error that says more.
          device: where they go.
        Raises:
          ModelError: weights are not named, cannot be had, or have another layout; or there is no such device.
        """
        check_device(device, "robench data stylize")
        paths = _found("encoder", encoder), _found("decoder", decoder)
        networks = build_encoder(), build_decoder()
        for part, path, network in zip(PUBLISHED, paths, networks, strict=True):
            state = tensors_of(path)
            if part == "encoder":  # the published file goes on to the end of VGG-19
                last = len(network)
                state = {name: tensor for name, tensor in state.items() if not _is_later(name, last)}
            reference = f"AdaIN's {part}, as in {PUBLISHED[part]}: {_LAYOUT[part]}"
            load_strictly(network, state, str(path), reference)
            network.eval().requires_grad_(False).to(device)
        return cls(*networks, *(sha256_of(path) for path in paths))

    def stylized(self, content: Tensor, style: Tensor, *, alpha: float = 1.0) -> Tensor:
        """The content in that style.

        Args:
          content, style: float32 in [0, 1], shape (N, 3, H, W); sides are multiples of 8.
          alpha: from 0, the content as the decoder knows it, to 1.
        Returns:
          Float32, the content's shape; not limited to [0, 1].
        """
        features = self.encoder(content)
        mixed = alpha * adapted(features, self.encoder(style)) + (1 - alpha) * features
        image: Tensor = self.decoder(mixed)
        return image


def _is_later(name: str, last: int) -> bool:
    """Whether a tensor belongs to a layer behind the last one that is used."""
    number = name.partition(".")[0]
    return number.isdecimal() and int(number) >= last


def _found(part: Part, reference: str | None) -> Path:
    """The file of a part's weights, fetched where it is on the Hub."""
    if reference is None:
        file = PUBLISHED[part]
        advice = (
            "robench ships none. Take the published file from github.com/naoto0804/pytorch-AdaIN, make it loadable "
            f"with `robench convert {file} {part}.safetensors`, and give `--{part} {part}.safetensors`."
        )
        expected = f"AdaIN's {part} as safetensors, a path or `hf-hub:org/name/file`, laid out as {file}"
        raise ModelError(complaint("robench data stylize", part, "not given", expected, advice))
    if reference.startswith(SCHEME):
        address = parse(reference)
        if address.file is None:
            expected = "`hf-hub:org/name/file[@revision]`"
            raise ModelError(complaint("robench data stylize", part, f"`{reference}`", expected))
        return open_snapshot(address, Hub(), (address.file,)).fetch(address.file)
    path = expanded(reference)
    if not path.is_file():
        raise ModelError(complaint("robench data stylize", part, f"`{reference}`", "a file, or `hf-hub:org/name/file`"))
    return path
