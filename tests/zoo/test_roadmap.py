from collections.abc import Iterable
from dataclasses import replace
from itertools import pairwise

import pytest
import timm
import torch
from torch import Tensor, nn

from robench.zoo.roadmap import Block, RoadmapNet, designs


def _filled(network: nn.Module) -> nn.Module:
    """In eval mode, with every parameter and statistic random."""
    generator = torch.Generator().manual_seed(0)
    for tensor in (*network.parameters(), *network.buffers()):
        if tensor.is_floating_point():
            with torch.no_grad():
                tensor.copy_(torch.rand(tensor.shape, generator=generator) * 0.1 + (0.5 if tensor.ndim == 1 else -0.05))
    return network.double().eval()


PARTS = {"0": "conv_dw", "1": "norm", "2": "mlp.fc1", "4": "mlp.fc2", "5": "gamma"}


def _in_convnext(name: str) -> str:
    """What timm's ConvNeXt calls a tensor of the last network of the road."""
    top, *rest = name.split(".")
    if top != "stages":
        return {"stem": name, "norm": f"head.{name}", "head": f"head.fc.{rest[-1]}"}[top]
    stage, place, *more = rest
    first = 0 if stage == "0" else 2  # norm and convolution of the down-sampling come before the blocks
    if int(place) < first:
        return f"stages.{stage}.downsample.{place}.{more[-1]}"
    part = PARTS[more[1]]
    return f"stages.{stage}.blocks.{int(place) - first}.{part if part == 'gamma' else f'{part}.{more[2]}'}"


def _copy(target: nn.Module, source: nn.Module, names: Iterable[str]) -> None:
    state, own = source.state_dict(), target.state_dict()
    assert len(own) == len(state)
    target.load_state_dict({key: state[name].reshape(own[key].shape) for key, name in zip(own, names, strict=True)})


def _logits(network: nn.Module) -> Tensor:
    images = torch.rand(2, 3, 64, 64, dtype=torch.double, generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        return network(images)  # type: ignore[no-any-return]  # a module


def test_the_road_begins_at_resnet_50() -> None:
    reference = _filled(timm.create_model("resnet50"))
    network = RoadmapNet(designs(50)["resnet"]).double().eval()
    _copy(network, reference, reference.state_dict())
    assert torch.allclose(_logits(network), _logits(reference))


def test_the_road_ends_at_convnext_t() -> None:
    reference = _filled(timm.create_model("convnext_tiny"))
    network = RoadmapNet(designs(50)["separate_downsampling"]).double().eval()
    _copy(network, reference, map(_in_convnext, network.state_dict()))
    assert torch.allclose(_logits(network), _logits(reference))


@pytest.mark.parametrize(("step", "name"), [("resnet", "resnet50"), ("separate_downsampling", "convnext_tiny")])
def test_both_ends_start_as_timms_do(step: str, name: str) -> None:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        own, reference = RoadmapNet(designs(50)[step]).state_dict(), timm.create_model(name).state_dict()
    names = reference if step == "resnet" else map(_in_convnext, own)
    for tensor, expected in zip(own.values(), (reference[key].float() for key in names), strict=True):
        assert float(tensor.float().mean()) == pytest.approx(float(expected.mean()), abs=0.02)
        if tensor.numel() > 1:
            assert float(tensor.std()) == pytest.approx(float(expected.std()), rel=0.1, abs=1e-3)


@pytest.mark.parametrize("regime", [50, 200])
def test_each_step_changes_one_thing(regime: int) -> None:
    road = [design for name, design in designs(regime).items() if name not in ("kernel9", "kernel11")]
    for before, after in pairwise(road):
        changed = {key for key, value in vars(after).items() if value != vars(before)[key]}
        assert len(changed) == 1 or changed == {"depths", "width"}


def test_every_step_learns() -> None:
    images = torch.rand(2, 3, 64, 64, generator=torch.Generator().manual_seed(1))
    for design in designs(50).values():
        network = RoadmapNet(replace(design, depths=(1, 2, 1, 1), width=8), num_classes=5, drop_path_rate=0.1).train()
        network(images).square().sum().backward()
        assert all(parameter.grad is not None for parameter in network.parameters())


def test_blocks_are_dropped_more_the_deeper_they_lie() -> None:
    network = RoadmapNet(designs(50)["gelu"], drop_path_rate=0.34)
    rates = [block.drop_path.drop_prob for block in network.modules() if isinstance(block, Block)]
    assert rates == pytest.approx([0.02 * number for number in range(18)])
