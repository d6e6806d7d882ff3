"""AdaIN against formulas and torchvision's VGG-19."""

import math
from pathlib import Path

import pytest
import torch
from torch import nn
from torchvision.models import vgg19

from robench.errors import ModelError
from robench.synthesis.adain import AdaIN, adapted, build_decoder, build_encoder
from tests.synthesis.adain_weights import random_weights


@pytest.fixture(scope="module")
def weights(tmp_path_factory: pytest.TempPathFactory) -> tuple[str, str]:
    return random_weights(tmp_path_factory.mktemp("weights"))


def test_features_get_mean_and_spread_of_the_style_channel_by_channel() -> None:
    """By a loop over channels in plain Python; the variance is the sample's, plus 1e-5."""
    generator = torch.Generator().manual_seed(1)
    content = torch.randn(2, 3, 4, 5, generator=generator) * 3 + 1
    style = torch.randn(2, 3, 6, 2, generator=generator) * 0.5 - 2
    content[0, 1] = 0.25  # without any spread
    found = adapted(content, style)
    for image in range(2):
        for channel in range(3):
            values = content[image, channel].flatten().tolist()
            others = style[image, channel].flatten().tolist()
            mean, mean_of_style = math.fsum(values) / 20, math.fsum(others) / 12
            spread = math.sqrt(math.fsum((value - mean) ** 2 for value in values) / 19 + 1e-5)
            wanted = math.sqrt(math.fsum((value - mean_of_style) ** 2 for value in others) / 11 + 1e-5)
            expected = [(value - mean) / spread * wanted + mean_of_style for value in values]
            assert found[image, channel].flatten().tolist() == pytest.approx(expected, abs=1e-4)


def test_the_encoder_is_vgg19_behind_a_layer_that_normalises() -> None:
    """With torchvision's borders and weights both say the same; `relu4_1` is its layer 20."""
    with torch.random.fork_rng():
        torch.manual_seed(2)
        theirs = vgg19(weights=None).features[:21].eval()
        ours = build_encoder()
    convolutions = [layer for layer in ours if isinstance(layer, nn.Conv2d)]
    with torch.no_grad():
        convolutions[0].weight.copy_(torch.eye(3)[:, :, None, None])
        convolutions[0].bias.zero_()  # type: ignore[union-attr]  # it has one
    theirs_convolutions = [layer for layer in theirs if isinstance(layer, nn.Conv2d)]
    assert len(convolutions) == 1 + len(theirs_convolutions) == 10
    for mine, other in zip(convolutions[1:], theirs_convolutions, strict=True):
        mine.load_state_dict(other.state_dict())
    images = torch.rand(1, 3, 64, 64, generator=torch.Generator().manual_seed(3))
    with torch.no_grad():
        assert ours(images).shape == theirs(images).shape == (1, 512, 8, 8)
        for place, layer in enumerate(ours):
            if isinstance(layer, nn.ReflectionPad2d):
                ours[place] = nn.ZeroPad2d(1)
        torch.testing.assert_close(ours(images), theirs(images))


def test_the_decoder_leads_back_to_images_and_alpha_mixes(weights: tuple[str, str]) -> None:
    networks = AdaIN.load(*weights)
    content, style = torch.rand(2, 2, 3, 32, 32, generator=torch.Generator().manual_seed(4))
    with torch.no_grad():
        assert networks.stylized(content, style).shape == (2, 3, 32, 32)
        plain = networks.decoder(networks.encoder(content))
        torch.testing.assert_close(networks.stylized(content, style, alpha=0), plain)
        torch.testing.assert_close(networks.stylized(content, content, alpha=1), plain)
        assert (networks.stylized(content, style) - plain).abs().max() > 1e-2
    assert networks.decoder[-1].bias is not None  # type: ignore[index]  # a sequence: no ReLU ends it


def test_the_layers_stand_where_the_published_files_have_them() -> None:
    """Numbers of the convolutions in github.com/naoto0804/pytorch-AdaIN, net.py."""
    encoder = {name: tuple(tensor.shape) for name, tensor in build_encoder().state_dict().items()}
    decoder = {name: tuple(tensor.shape) for name, tensor in build_decoder().state_dict().items()}
    assert [int(name[:-7]) for name in encoder if name.endswith(".weight")] == [0, 2, 5, 9, 12, 16, 19, 22, 25, 29]
    assert [int(name[:-7]) for name in decoder if name.endswith(".weight")] == [1, 5, 8, 11, 14, 18, 21, 25, 28]
    assert encoder["16.weight"] == (256, 128, 3, 3)
    assert encoder["29.bias"] == (512,)
    assert decoder["14.weight"] == (128, 256, 3, 3)
    assert decoder["28.weight"] == (3, 64, 3, 3)


def test_what_is_missing_is_said_with_the_way_to_get_it(weights: tuple[str, str], tmp_path: Path) -> None:
    encoder, decoder = weights
    message = (
        r"^robench data stylize: `encoder` is not given; expected AdaIN's encoder as safetensors, a path or "
        r"`hf-hub:org/name/file`, laid out as vgg_normalised\.pth\. robench ships none\. Take the published file from "
        r"github\.com/naoto0804/pytorch-AdaIN, make it loadable with `robench convert vgg_normalised\.pth "
        r"encoder\.safetensors`, and give `--encoder encoder\.safetensors`\.$"
    )
    with pytest.raises(ModelError, match=message):
        AdaIN.load(None, decoder)
    with pytest.raises(ModelError, match=r"`decoder` is not given; .* `robench convert decoder\.pth decoder\.safe"):
        AdaIN.load(encoder, None)
    with pytest.raises(ModelError, match=r"`device` is `cudda`; expected a device of this machine\. `robench doctor`"):
        AdaIN.load(encoder, decoder, device="cudda")
    with pytest.raises(ModelError, match=r"`encoder` is `there\.safetensors`; expected a file, or `hf-hub:org/name/"):
        AdaIN.load("there.safetensors", decoder)
    with pytest.raises(ModelError, match=r"`encoder` is `hf-hub:a/b`; expected `hf-hub:org/name/file\[@revision\]`"):
        AdaIN.load("hf-hub:a/b", decoder)
    with pytest.raises(
        ModelError, match=r"`weights` is of another model .*decoder, as in decoder\.pth: `1\.weight` \("
    ):
        AdaIN.load(encoder, encoder)
    pickle = tmp_path / "decoder.pth"
    torch.save({"a": torch.zeros(1)}, pickle)
    with pytest.raises(
        ModelError, match=r"`weights` is a pickle; .* Convert it: robench convert .*decoder\.safetensors"
    ):
        AdaIN.load(encoder, str(pickle))
