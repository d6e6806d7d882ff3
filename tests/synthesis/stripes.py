"""Four classes of stripes that a fixed network tells apart: by direction and by colour."""

from typing import Any

import torch
from torch import Tensor, nn

from robench.data import ArraySource, Source

SIZE = 16


def network(seed: int = 0) -> nn.Sequential:
    """A random network with a max-pooling and an activation that overwrites; not trained, all classes alike likely."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        layers: Any = [
            nn.Conv2d(3, 6, 3, padding=1),
            nn.ReLU(inplace=True),
            nn.MaxPool2d(2),
            nn.Conv2d(6, 8, 3, padding=1),
            nn.ReLU(inplace=True),
            nn.Conv2d(8, 4, 3, padding=1),
            nn.AdaptiveAvgPool2d(1),
            nn.Flatten(),
        ]
        net = nn.Sequential(*layers)
        with torch.no_grad():
            net[5].bias -= net(stripes(40)).mean(dim=0)
    return net.eval()


def stripes(count: int, seed: int = 0) -> Tensor:
    """Horizontal or vertical stripes in random colours, float32 in [0, 1], shape (count, 3, 16, 16)."""
    generator = torch.Generator().manual_seed(seed)
    images = torch.empty(count, 3, SIZE, SIZE)
    for index in range(count):
        wave = (torch.arange(SIZE) // 2 % 2).float()
        pattern = wave[:, None].expand(SIZE, SIZE) if index % 2 else wave[None].expand(SIZE, SIZE)
        low, high = torch.rand(2, 3, 1, 1, generator=generator)
        images[index] = low + (high - low) * pattern
    return images


def source(count: int = 80, seed: int = 0) -> Source:
    """Images of stripes, labelled by the network, so that it is right about all of them."""
    images = stripes(count, seed)
    with torch.no_grad():
        labels = network()(images).argmax(dim=1)
    return ArraySource(images, labels, classes=4, name="stripes")
