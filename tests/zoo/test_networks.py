"""Parameters and multiply-adds of every network beside published or independently counted figures."""

import json
from pathlib import Path

import pytest
import timm
import torch
from torch.utils.flop_counter import FlopCounterMode

from robench.zoo import NETWORKS, load_model
from robench.zoo.roadmap import designs

# Name, side of the image, millions of parameters, 10^9 multiply-adds of convolutions, linear layers and attention.
# None: no figure is published. Figures must agree to half a unit of their last digit.
FIGURES: list[tuple[str, int, str | None, str | None]] = [
    # Bai et al. 2021: parameters as in the README of the published code; multiply-adds as timm's models were counted.
    ("deit_mini_patch16_224", 224, "9.98", "2.14"),
    ("deit_small_patch16_224", 224, "22.05", "4.60"),
    ("resnet18", 224, "11.69", None),
    ("resnet50", 224, "25.56", "4.09"),
    ("resnet101", 224, "44.55", None),
    # Counted by hand: ResNet-18 without its last layer, a 512 to 256 projection, 12 blocks, 50 positions.
    ("hybrid_deit_mini_r18", 224, "21.06", None),
    # Bello et al. 2021, at the size of the image that the figure goes with.
    ("resnet200", 256, "64.67", "19.6"),
    ("resnet200_se", 256, "93.15", None),
    ("resnetrs50", 160, "35.69", "2.28"),
    ("resnetrs200", 256, "93.21", "20.1"),
    # Zhao et al. 2021: counted on the published code.
    ("spach_ms_xxs_conv", 224, "5.09", "0.71"),
    ("spach_ms_xxs_attn", 224, "2.37", "0.53"),
    ("spach_ms_xxs_mlp", 224, "6.56", "0.93"),
    ("spach_ms_xs_conv", 224, "17.30", "2.75"),
    ("spach_ms_xs_attn", 224, "14.48", "3.08"),
    ("spach_ms_xs_mlp", 224, "20.26", "3.41"),
    ("spach_ms_s_conv", 224, "43.58", "7.14"),
    ("spach_ms_s_attn", 224, "39.54", "7.53"),
    ("spach_ms_s_mlp", 224, "46.54", "8.01"),
    ("spach_hybrid_ms_xs", 224, "27.96", "4.44"),
    ("spach_hybrid_ms_s", 224, "63.03", "11.05"),
    ("spach_hybrid_ms_s_plus", 224, "63.14", "12.18"),
    ("spach_ss_xxs_conv", 224, "7.83", "1.45"),
    ("spach_ss_xxs_attn", 224, "3.93", "0.90"),
    ("spach_ss_xxs_mlp", 224, "8.31", "1.63"),
    ("spach_ss_xs_conv", 224, "14.98", "2.85"),
    ("spach_ss_xs_attn", 224, "14.94", "3.19"),
    ("spach_ss_xs_mlp", 224, "15.93", "3.20"),
    ("spach_ss_s_conv", 224, "38.85", "7.50"),
    ("spach_ss_s_attn", 224, "32.51", "6.73"),
    ("spach_ss_s_mlp", 224, "39.82", "7.97"),
    # Liu et al. 2022, tables 10 and 11; "layer_norm" in regime 50 as it must be (printed: 4.46), the last as counted.
    ("convnext_tiny", 224, "28.59", "4.46"),
    ("convnext_small", 224, "50.22", "8.68"),
    ("convnext_base", 224, "88.59", "15.35"),
    ("roadmap50_resnet", 224, "25.56", "4.09"),
    ("roadmap50_stage_ratio", 224, "28.63", "4.53"),
    ("roadmap50_patchify", 224, None, "4.42"),
    ("roadmap50_depthwise", 224, None, "2.35"),
    ("roadmap50_width", 224, None, "5.27"),
    ("roadmap50_inverted", 224, None, "4.64"),
    ("roadmap50_moved_up", 224, None, "4.07"),
    ("roadmap50_kernel5", 224, None, "4.10"),
    ("roadmap50_kernel7", 224, None, "4.15"),
    ("roadmap50_kernel9", 224, None, "4.21"),
    ("roadmap50_kernel11", 224, None, "4.29"),
    ("roadmap50_gelu", 224, None, "4.15"),
    ("roadmap50_fewer_activations", 224, None, "4.15"),
    ("roadmap50_fewer_norms", 224, None, "4.15"),
    ("roadmap50_layer_norm", 224, None, "4.15"),
    ("roadmap50_separate_downsampling", 224, "28.59", "4.46"),
    ("roadmap200_resnet", 224, "64.67", "15.01"),
    ("roadmap200_stage_ratio", 224, None, "14.52"),
    ("roadmap200_patchify", 224, None, "14.38"),
    ("roadmap200_depthwise", 224, None, "7.23"),
    ("roadmap200_width", 224, None, "16.76"),
    ("roadmap200_inverted", 224, None, "15.68"),
    ("roadmap200_moved_up", 224, None, "14.63"),
    ("roadmap200_kernel5", 224, None, "14.70"),
    ("roadmap200_kernel7", 224, None, "14.81"),
    ("roadmap200_kernel9", 224, None, "14.95"),
    ("roadmap200_kernel11", 224, None, "15.13"),
    ("roadmap200_gelu", 224, None, "14.81"),
    ("roadmap200_fewer_activations", 224, None, "14.81"),
    ("roadmap200_fewer_norms", 224, None, "14.81"),
    ("roadmap200_layer_norm", 224, None, "14.81"),
    ("roadmap200_separate_downsampling", 224, "88.59", "15.35"),
    # Ours, for the mini suite; counted by hand where there is a figure.
    ("hybrid_mini", 64, "0.21", None),
    ("rs10", 64, "0.34", None),
    ("rs10_se", 64, None, None),
    ("rs10_se_d", 64, None, None),
    *((f"roadmap17_{step}", 64, None, None) for step in designs(17)),
]


def _close(found: float, printed: str | None) -> bool:
    """Whether a figure agrees with a printed one to half a unit of its last digit; rounding up from 5 is as good."""
    if printed is None:
        return True
    digits = len(printed.partition(".")[2])
    return abs(found - float(printed)) <= 0.5 * float(f"1e-{digits}") + 1e-9


def test_a_printed_figure_is_met_to_half_a_unit_of_its_last_digit() -> None:
    assert _close(4.4555, "4.46")
    assert _close(4.45, "4.5")
    assert not _close(4.4549, "4.46")
    assert not _close(4.4651, "4.46")


@pytest.mark.parametrize(("name", "side", "parameters", "multiply_adds"), FIGURES)
def test_a_network_has_the_size_it_should_have(
    name: str, side: int, parameters: str | None, multiply_adds: str | None
) -> None:
    with torch.device("meta"):
        network = timm.create_model(name).eval()
        images = torch.zeros(1, 3, side, side)
    assert _close(sum(parameter.numel() for parameter in network.parameters()) / 1e6, parameters)
    if multiply_adds is not None:
        with torch.no_grad(), FlopCounterMode(display=False) as counter:
            assert network(images).shape == (1, 1000)
        assert _close(counter.get_total_flops() / 2e9, multiply_adds)  # the counter's unit is half a multiply-add


RS_DEPTHS = {
    "resnetrs50": (3, 4, 6, 3),
    "resnetrs101": (3, 4, 23, 3),
    "resnetrs152": (3, 8, 36, 3),
    "resnetrs200": (3, 24, 36, 3),
    "resnetrs270": (4, 29, 53, 4),
    "resnetrs350": (4, 36, 72, 4),
    "resnetrs420": (4, 44, 87, 4),
}
"""Blocks of each stage, Bello et al. 2021."""


@pytest.mark.parametrize(("name", "depths"), RS_DEPTHS.items())
def test_a_resnet_rs_has_the_parameters_of_its_description(name: str, depths: tuple[int, ...]) -> None:
    """Counted from the text: stem of 32, 32 and 64 channels and a fourth convolution, squeeze to a quarter."""

    def convolution(given: int, made: int, side: int) -> int:
        return given * made * side * side + 2 * made  # with its batch-norm

    expected = convolution(3, 32, 3) + convolution(32, 32, 3) + convolution(32, 64, 3) + convolution(64, 64, 3)
    given = 64
    for width, depth in zip((64, 128, 256, 512), depths, strict=True):
        made = 4 * width
        expected += convolution(given, made, 1)  # the shortcut of the first block
        for _ in range(depth):
            expected += convolution(given, width, 1) + convolution(width, width, 3) + convolution(width, made, 1)
            expected += made * width + width + width * made + made  # squeeze and excitation, with biases
            given = made
    expected += 2048 * 1000 + 1000
    with torch.device("meta"):
        network = timm.create_model(name)
    assert sum(parameter.numel() for parameter in network.parameters()) == expected


def test_every_network_is_in_the_table() -> None:
    assert set(NETWORKS) <= {name for name, *_ in FIGURES}


def test_the_exact_count_of_deit_mini() -> None:
    with torch.device("meta"):
        network = timm.create_model("deit_mini_patch16_224")
    assert sum(parameter.numel() for parameter in network.parameters()) == 9_982_184


def test_every_regime_has_every_step() -> None:
    steps = "resnet stage_ratio patchify depthwise width inverted moved_up kernel5 kernel7 kernel9 kernel11 gelu"
    expected = [*steps.split(), "fewer_activations", "fewer_norms", "layer_norm", "separate_downsampling"]
    assert [list(designs(regime)) for regime in (50, 200, 17)] == [expected, expected, expected]


@pytest.mark.parametrize(
    "name", ["deit_mini_patch16_224", "hybrid_deit_mini_r18", "roadmap50_gelu", "spach_ms_xxs_mlp"]
)
def test_a_network_goes_to_the_hubs_files_and_back(name: str, tmp_path: Path) -> None:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        network = timm.create_model(name, num_classes=7).eval()
        for parameter in network.parameters():  # what starts at zero would hide weights that were not loaded
            torch.nn.init.normal_(parameter, std=0.02)
        images = torch.rand(1, 3, 224, 224)
    network.pretrained_cfg["mean"] = network.pretrained_cfg["std"] = (0.5, 0.5, 0.5)
    timm.models.save_for_hf(network, tmp_path / "saved", safe_serialization=True)
    assert json.loads((tmp_path / "saved" / "config.json").read_text())["architecture"] == name
    loaded = load_model(str(tmp_path / "saved"))
    again = timm.create_model(f"local-dir:{tmp_path / 'saved'}", pretrained=True).eval()
    with torch.no_grad():
        expected = network(2 * images - 1)
        assert expected.shape == (1, 7)
        assert torch.allclose(loaded(images), expected, atol=1e-5)
        assert torch.equal(again(2 * images - 1), expected)
