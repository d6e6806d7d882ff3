"""The style of an image: which features of a network go together, wherever they are.

Not here: where in an image the style is taken (`attention`).
"""

import copy
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from robench.synthesis.attention import scaled
from robench.synthesis.layers import captured


class StyleExtractor:
    """Takes styles with the features of a network.

    Args:
      model: in eval mode, normalisation inside; it is copied.
      layers: modules whose outputs are the features.
      average_pooling: whether max-pooling is replaced, as Gatys et al. do for smoother gradients.
      pixels: weight of the pixels beside the layers, as if they were one more; for networks whose first layer sees
        few colours.
    References:
      Gatys, Ecker & Bethge 2015, arXiv:1505.07376.
    """

    def __init__(self, model: nn.Module, layers: Sequence[str], *, average_pooling: bool, pixels: float = 0.0) -> None:
        self._model = copy.deepcopy(model).requires_grad_(False)
        self._layers, self._pixels = tuple(layers), pixels
        for module in self._model.modules():
            if getattr(module, "inplace", False):
                # In place it would overwrite the features of the layer before it.
                module.inplace = False  # type: ignore[assignment]  # a flag of activations, which Module does not know
        if average_pooling:
            _average(self._model)

    def styles(self, images: Tensor, maps: Tensor | None = None, threshold: float = 0.0) -> Tensor:
        """One vector for each image.

        For each of L layers with C channels: G, the mean of f f^T over the positions kept, f being the features
        at one; its upper triangle, the diagonal once and the rest times sqrt(2); divided by 2 C sqrt(L). So the
        squared distance of two vectors is the mean over layers of ||G - G'||^2 / (4 C^2).

        Args:
          images: float32 in [0, 1], shape (N, 3, H, W).
          maps: attention in [0, 1], shape (N, h, w); resized to each layer, stretched again, and kept where it is
            at least `threshold`. None: everywhere.
          threshold: see `maps`.
        Returns:
          Shape (N, D), with gradient if the images have one.
        """
        with captured(self._model, self._layers) as outputs:
            self._model(images)
        styles = [self._style(outputs[name], maps, threshold) for name in self._layers]
        if self._pixels:
            styles.append(self._pixels * self._style(images, maps, threshold))
        return torch.cat(styles, dim=1)

    def _style(self, features: Tensor, maps: Tensor | None, threshold: float) -> Tensor:
        channels, positions = features.shape[1], features.shape[2] * features.shape[3]
        flat = features.flatten(2)
        if maps is None:
            gram = flat @ flat.mT / positions
        else:
            resized = F.interpolate(maps[:, None], size=features.shape[2:], mode="bilinear")[:, 0]
            kept = (scaled(resized) >= threshold).to(flat.dtype).flatten(1)[:, None]
            gram = (flat * kept) @ flat.mT / kept.sum(dim=2, keepdim=True)
        rows, columns = torch.triu_indices(channels, channels, device=features.device)
        twice = torch.where(rows == columns, 1.0, 2.0).to(flat.dtype).sqrt()
        style: Tensor = gram[:, rows, columns] * twice / (2 * channels * len(self._layers) ** 0.5)
        return style


def _average(model: nn.Module) -> None:
    """Replace every max-pooling by average-pooling, in place."""
    for parent in list(model.modules()):
        for name, child in parent.named_children():
            if isinstance(child, nn.MaxPool2d):
                pool = nn.AvgPool2d(child.kernel_size, child.stride, child.padding, child.ceil_mode)
                setattr(parent, name, pool)
