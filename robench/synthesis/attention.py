"""Where a network looks when it names the class of an image (Grad-CAM).

Not here: what is taken from there (`style`).
"""

import torch
from torch import Tensor, nn

from robench.synthesis.layers import captured


def attention(model: nn.Module, layer: str, images: Tensor) -> tuple[Tensor, Tensor]:
    """Grad-CAM for the class that the model names.

    The channels of a layer, each weighted by the mean gradient of the winning logit by it, are summed; what is
    negative becomes 0, and the rest is scaled to [0, 1] in each image.

    Args:
      model: in eval mode; its parameters need no gradient.
      layer: module whose output is looked at.
      images: float32 in [0, 1], shape (N, 3, H, W).
    Returns:
      Maps, shape (N, h, w) as the layer has it, zero all over where nothing speaks for the class; and the
      logits, shape (N, K).
    References:
      Selvaraju et al. 2017, arXiv:1610.02391.
    """
    with torch.enable_grad(), captured(model, [layer]) as outputs:
        logits = model(images.detach().requires_grad_())
        (gradient,) = torch.autograd.grad(logits.amax(dim=1).sum(), outputs[layer])
    weights = gradient.mean(dim=(2, 3), keepdim=True)
    return scaled((weights * outputs[layer].detach()).sum(dim=1).relu()), logits.detach()


def scaled(maps: Tensor) -> Tensor:
    """Each map stretched to [0, 1], shape (N, h, w); one that is flat becomes 0."""
    low, high = maps.amin(dim=(1, 2), keepdim=True), maps.amax(dim=(1, 2), keepdim=True)
    return torch.where(high > low, (maps - low) / (high - low).clamp_min(torch.finfo(maps.dtype).tiny), 0)
