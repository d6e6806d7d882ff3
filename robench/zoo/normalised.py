"""A network with its normalisation inside, so that it takes images in [0, 1].

Not here: which mean and standard deviation a network wants (`mini`, `timm_models`).
"""

import torch
from torch import Tensor, nn


class Normalised(nn.Module):
    """A network with its normalisation inside: images in [0, 1] in, logits out."""

    mean: Tensor
    std: Tensor

    def __init__(self, network: nn.Module, mean: tuple[float, ...], std: tuple[float, ...]) -> None:
        super().__init__()
        self.network = network
        self.register_buffer("mean", torch.tensor(mean).reshape(1, -1, 1, 1), persistent=False)
        self.register_buffer("std", torch.tensor(std).reshape(1, -1, 1, 1), persistent=False)

    def forward(self, images: Tensor) -> Tensor:
        logits: Tensor = self.network((images - self.mean) / self.std)
        return logits
