import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from robench.zoo.spach import Block, Spach


def _filled(kind: str) -> Block:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        block = Block(kind, 8, side=4, ratio=2, heads=2, drop_path=0.0)
        for parameter in block.parameters():
            torch.nn.init.normal_(parameter, std=0.5)
    return block.eval()


def _layer_norm(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    centred = x - x.mean(-1, keepdim=True)
    return centred / (centred.square().mean(-1, keepdim=True) + 1e-6).sqrt() * weight + bias


def _mlp(x: Tensor, weights: dict[str, Tensor], name: str) -> Tensor:
    inner = x @ weights[f"{name}.fc1.weight"].T + weights[f"{name}.fc1.bias"]
    inner = inner * 0.5 * (1 + torch.erf(inner / 2**0.5))
    return inner @ weights[f"{name}.fc2.weight"].T + weights[f"{name}.fc2.bias"]


def _attention(x: Tensor, weights: dict[str, Tensor]) -> Tensor:
    """Two heads of four channels, one after the other."""
    mixed = x @ weights["spatial.1.qkv.weight"].T + weights["spatial.1.qkv.bias"]
    heads = []
    for head in range(2):
        query, key, value = (mixed[..., 8 * part + 4 * head : 8 * part + 4 * head + 4] for part in range(3))
        heads.append((query @ key.transpose(1, 2) / 4**0.5).softmax(-1) @ value)
    return torch.cat(heads, -1) @ weights["spatial.1.proj.weight"].T + weights["spatial.1.proj.bias"]


@pytest.mark.parametrize("kind", ["c", "a", "m"])
def test_a_block_is_its_formula(kind: str) -> None:
    block = _filled(kind)
    x = torch.randn(3, 16, 8, generator=torch.Generator().manual_seed(1))
    weights = {name: tensor.detach() for name, tensor in block.named_parameters()}
    y = x.clone()
    padded = F.pad(x.reshape(3, 4, 4, 8), (0, 0, 1, 1, 1, 1))
    for row in range(3):
        for column in range(3):
            kernel = weights["bypass.weight"][:, 0, row, column]
            y += (padded[:, row : row + 4, column : column + 4] * kernel).reshape(3, 16, 8)
    y += weights["bypass.bias"]
    if kind != "c":
        normed = _layer_norm(x, weights["spatial.0.weight"], weights["spatial.0.bias"])
        mixed = _attention(normed, weights) if kind == "a" else _mlp(normed.mT, weights, "spatial.1.mlp").mT
        y += weights["spatial.2.gamma"] * mixed
    z = y + _mlp(_layer_norm(y, weights["channel.0.weight"], weights["channel.0.bias"]), weights, "channel.1")
    assert torch.allclose(block(x), z, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(
    ("stages", "expected"), [(("cc", "am"), [0, 0.1, 0.2, 0.3]), (("cama",), [0.3, 0.3, 0.3, 0.3])]
)
def test_drop_path_grows_with_four_stages_and_is_the_same_with_one(
    stages: tuple[str, ...], expected: list[float]
) -> None:
    network = Spach(stages, 32, 2, patch=4, img_size=32, drop_path_rate=0.3)
    assert [part.drop_path.drop_prob for part in network.modules() if isinstance(part, Block)] == pytest.approx(
        expected
    )


def test_a_network_knows_nothing_at_first_and_learns() -> None:
    network = Spach(("c", "a", "m"), 32, 2, patch=4, img_size=32, num_classes=5, deep_stem=True)
    images = torch.rand(4, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    logits = network(images)
    assert torch.equal(logits, torch.zeros(4, 5))
    F.cross_entropy(logits, torch.arange(4)).backward()  # type: ignore[no-untyped-call]  # torch's
    assert float(network.head.weight.grad.abs().sum()) > 0  # type: ignore[union-attr]  # it has one now
