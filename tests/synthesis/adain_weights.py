"""Random weights for AdaIN in the published layout, under which pictures are told apart."""

import math
from pathlib import Path

import torch
from safetensors.torch import save_file
from torch import nn

from robench.synthesis.adain import build_decoder, build_encoder


def random_weights(folder: Path) -> tuple[str, str]:
    """Write encoder and decoder; the encoder's file goes on behind the last layer that is used, as the published one.

    torch's own start of convolutions shrinks what passes through; sqrt(6) times as much keeps its size behind ReLUs.
    """
    with torch.random.fork_rng():
        torch.manual_seed(0)
        networks = build_encoder(), build_decoder()
    for network in networks:
        for layer in network.modules():
            if isinstance(layer, nn.Conv2d):
                layer.weight.data *= math.sqrt(6)
    later = {"32.weight": torch.zeros(512, 512, 3, 3), "32.bias": torch.zeros(512)}
    save_file(networks[0].state_dict() | later, folder / "encoder.safetensors")
    save_file(networks[1].state_dict(), folder / "decoder.safetensors")
    return str(folder / "encoder.safetensors"), str(folder / "decoder.safetensors")
