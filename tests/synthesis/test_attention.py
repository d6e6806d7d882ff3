import numpy as np
import pytest
import torch
from torch import nn

from robench.errors import ModelError
from robench.synthesis.attention import attention, scaled
from robench.synthesis.layers import captured, check_layers
from tests.synthesis.stripes import network, stripes


def test_it_is_the_class_activation_map_where_a_mean_and_a_linear_layer_follow() -> None:
    """There the gradient of a logit by a channel is the weight of the linear layer, the same everywhere."""
    torch.manual_seed(0)
    linear = nn.Linear(5, 3)
    model = nn.Sequential(nn.Conv2d(3, 5, 3), nn.Tanh(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), linear).eval()
    images = torch.rand(6, 3, 9, 9)
    maps, logits = attention(model.requires_grad_(False), "1", images)
    features = model[:2](images).double().numpy()
    weights = linear.weight.double().numpy()
    for index in range(6):
        winner = int(model(images[index : index + 1]).argmax())
        assert int(logits[index].argmax()) == winner
        expected = np.zeros((7, 7))
        for channel in range(5):
            expected += weights[winner, channel] * features[index, channel]
        expected = np.maximum(expected, 0)
        expected = (expected - expected.min()) / (expected.max() - expected.min()) if expected.max() > 0 else expected
        assert np.abs(maps[index].numpy() - expected).max() < 1e-5
    assert not maps.requires_grad


def test_an_image_in_which_nothing_speaks_for_the_class_has_no_map() -> None:
    convolution = nn.Conv2d(3, 2, 1)
    model = nn.Sequential(convolution, nn.AdaptiveAvgPool2d(1), nn.Flatten()).eval()
    state = {"weight": torch.ones(2, 3, 1, 1), "bias": torch.tensor([-90.0, -95.0])}  # all features are negative
    convolution.load_state_dict(state)
    maps, logits = attention(model, "0", torch.rand(3, 3, 4, 4))
    assert logits.argmax(dim=1).tolist() == [0, 0, 0]
    assert bool((maps == 0).all())


def test_maps_are_stretched_one_by_one() -> None:
    maps = torch.stack([torch.tensor([[1.0, 3.0], [2.0, 5.0]]), torch.full((2, 2), 7.0)])
    assert scaled(maps).tolist() == [[[0.0, 0.5], [0.25, 1.0]], [[0.0, 0.0], [0.0, 0.0]]]


def test_what_is_left_behind_is_what_was_found() -> None:
    model = network()
    before = {name: dict(module._forward_hooks) for name, module in model.named_modules()}
    images = stripes(2)
    with captured(model, ["1"]) as outputs:
        model(images)
    assert list(outputs) == ["1"]
    with captured(model, ["1"]), pytest.raises(RuntimeError):
        model(images[:, :2])
    attention(model, "5", images)
    assert {name: dict(module._forward_hooks) for name, module in model.named_modules()} == before
    assert not images.requires_grad
    assert all(parameter.grad is None for parameter in model.parameters())


def test_layers_that_are_missing_or_no_maps_are_named() -> None:
    with pytest.raises(ModelError) as caught:
        check_layers(nn.Sequential(nn.ModuleDict({"conv1": nn.Identity()})), ["0.conf1"], where="small")
    expected = "expected a module of it, as `named_modules()` calls it. Did you mean `0.conv1`?"
    assert str(caught.value) == f"small: `layer` is `0.conf1`; {expected}"
    with pytest.raises(ModelError) as caught:
        attention(network(), "7", stripes(2))
    expected = "expected a layer whose output has the shape (N, C, H, W)."
    assert str(caught.value) == f"Flatten: `layer` is `7`, with output of shape (2, 4); {expected}"
