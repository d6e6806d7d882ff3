"""Ghost batch-norm: batch statistics over groups of a batch, whatever the size of the batch.

Not here: which recipe wants it (`robench/training/recipes/`).
"""

import torch
from torch import Tensor, nn

from robench.errors import ModelError, complaint


class GhostBatchNorm2d(nn.BatchNorm2d):
    """Batch-norm over groups of `ghost_size` images, one after the other; in eval mode plain batch-norm.

    In training, group g is normalised with its own mean and variance, and moves the one set of running
    statistics by `momentum`. Parameters and buffers have the names of `nn.BatchNorm2d`, so that weights fit either.

    References:
      Hoffer et al. 2017, arXiv:1705.08741. Deviates: the running statistics move once for each group with the
      momentum of one batch. Bai et al. 2021, arXiv:2111.05464, keep a set for each group and each part of an
      accumulated batch, evaluate with the first of them, and decay the scale, which they store as a convolution.
    """

    def __init__(self, channels: int, ghost_size: int, **arguments: object) -> None:
        super().__init__(channels, **arguments)  # type: ignore[arg-type]  # they are those of nn.BatchNorm2d
        self.ghost_size = ghost_size

    def forward(self, images: Tensor) -> Tensor:
        """Normalise features, shape (N, C, H, W); in train mode N must be a multiple of `ghost_size`."""
        if not self.training or len(images) == self.ghost_size:
            return super().forward(images)
        if len(images) % self.ghost_size:
            expected = f"a multiple of `ghost_size`, {self.ghost_size}"
            raise ModelError(complaint("ghost batch-norm", "batch", len(images), expected))
        groups = torch.split(images, self.ghost_size)
        return torch.cat([super(GhostBatchNorm2d, self).forward(group) for group in groups])

    def extra_repr(self) -> str:
        return f"{super().extra_repr()}, ghost_size={self.ghost_size}"  # type: ignore[no-untyped-call]  # torch's


def with_ghost_batch_norm(network: nn.Module, ghost_size: int) -> nn.Module:
    """Put ghost batch-norm in place of every `nn.BatchNorm2d`, with the same tensors; returns the network.

    Raises:
      ModelError: a norm does more than `nn.BatchNorm2d`, such as timm's with an activation inside.
    """
    for name, part in network.named_children():
        if type(part) is nn.BatchNorm2d:
            setattr(network, name, _ghost(part, ghost_size))
        elif isinstance(part, nn.BatchNorm2d):
            found = f"`{type(part).__name__}` at `{name}`"
            raise ModelError(complaint("ghost batch-norm", "network", found, "plain `BatchNorm2d` alone"))
        else:
            with_ghost_batch_norm(part, ghost_size)
    return network


def _ghost(plain: nn.BatchNorm2d, ghost_size: int) -> GhostBatchNorm2d:
    settings = {name: getattr(plain, name) for name in ("eps", "momentum", "affine", "track_running_stats")}
    ghost = GhostBatchNorm2d(plain.num_features, ghost_size, **settings)
    for name in ("weight", "bias", "running_mean", "running_var", "num_batches_tracked"):
        setattr(ghost, name, getattr(plain, name))
    return ghost.train(plain.training)
