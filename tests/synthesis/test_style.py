import numpy as np
import numpy.typing as npt
import torch
import torch.nn.functional as F
from torch import nn

from robench.synthesis.style import StyleExtractor
from tests.synthesis.stripes import network, stripes

LAYERS = ("0", "3")


def _features(average: bool) -> list[npt.NDArray[np.float64]]:
    """Outputs of both convolutions, in float64; nothing overwrites them."""
    net, images = network().double(), stripes(3).double()
    first = net[0](images)
    pool = F.avg_pool2d if average else F.max_pool2d
    second = net[3](pool(first.relu(), 2))
    return [first.detach().numpy(), second.detach().numpy()]


def _gram(features: npt.NDArray[np.float64], kept: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    """Sum of f f^T over the kept positions, over their number, in plain loops."""
    channels, height, width = features.shape
    gram, count = np.zeros((channels, channels)), 0
    for row in range(height):
        for column in range(width):
            if kept[row, column]:
                count += 1
                gram += np.outer(features[:, row, column], features[:, row, column])
    return gram / count


def _published_loss(one: list[npt.NDArray[np.float64]], other: list[npt.NDArray[np.float64]]) -> float:
    """Mean over layers of the sum of squared Gram differences over 4 C^2, the Grams already over H W."""
    parts = [((a - b) ** 2).sum() / (4 * len(a) ** 2) for a, b in zip(one, other, strict=True)]
    return float(np.mean(parts))


def test_squared_distances_are_the_published_loss() -> None:
    for average in (True, False):
        extractor = StyleExtractor(network().double(), LAYERS, average_pooling=average)
        styles = extractor.styles(stripes(3).double())
        assert styles.shape == (3, 6 * 7 // 2 + 8 * 9 // 2)
        layers = _features(average)
        grams = [[_gram(layer[index], np.ones(layer.shape[2:])) for layer in layers] for index in range(3)]
        for one in range(3):
            for other in range(3):
                found = float((styles[one] - styles[other]).square().sum())
                assert abs(found - _published_loss(grams[one], grams[other])) < 1e-12


def test_a_style_is_taken_where_the_attention_is() -> None:
    """Halves of different stripes: with attention on one half the other does not matter."""
    extractor = StyleExtractor(network().double(), LAYERS, average_pooling=True)
    images, maps = stripes(3).double(), torch.zeros(3, 2, 2, dtype=torch.float64)
    maps[0, 0, 0] = maps[1, :, 1] = maps[2, 1, 0] = 1
    styles = extractor.styles(images, maps, threshold=0.8)
    layers = _features(average=True)
    for index in range(3):
        grams = []
        for layer in layers:
            side = layer.shape[2]
            axis = (np.arange(side) + 0.5) * 2 / side - 0.5  # bilinear, as seen from pixel centres
            axis = np.clip(axis, 0, 1)
            corner = maps[index].numpy()
            resized = np.array(
                [
                    [
                        (1 - y) * ((1 - x) * corner[0, 0] + x * corner[0, 1])
                        + y * ((1 - x) * corner[1, 0] + x * corner[1, 1])
                        for x in axis
                    ]
                    for y in axis
                ]
            )
            resized = (resized - resized.min()) / (resized.max() - resized.min())
            grams.append(_gram(layer[index], resized >= 0.8))
        found = float(styles[index].square().sum())
        assert abs(found - _published_loss(grams, [np.zeros_like(gram) for gram in grams])) < 1e-12


def test_pixels_count_as_one_more_layer_with_their_weight() -> None:
    images = stripes(2).double()
    plain = StyleExtractor(network().double(), LAYERS, average_pooling=True).styles(images)
    both = StyleExtractor(network().double(), LAYERS, average_pooling=True, pixels=3.0).styles(images)
    grams = [_gram(image.numpy(), np.ones((16, 16))) for image in images]
    expected = 9 * ((grams[0] - grams[1]) ** 2).sum() / (4 * 3**2) / len(LAYERS)
    found = (both[0] - both[1]).square().sum() - (plain[0] - plain[1]).square().sum()
    assert abs(float(found) - expected) < 1e-12


def test_the_model_itself_is_left_alone() -> None:
    model = network()
    images = stripes(2).requires_grad_()
    before = model(images).detach()
    styles = StyleExtractor(model, LAYERS, average_pooling=True).styles(images)
    assert styles.requires_grad
    assert isinstance(model[2], nn.MaxPool2d)
    assert isinstance(model[1], nn.ReLU)
    assert model[1].inplace
    assert all(parameter.requires_grad for parameter in model.parameters())
    assert torch.equal(model(images), before)
