"""Objectives of attacks: one value per example, to be driven up.

Not here: losses of training (`robench.training`), and how gradients are taken (`classifier`).
"""

import torch
import torch.nn.functional as F
from torch import Tensor


def cross_entropy(logits: Tensor, labels: Tensor) -> Tensor:
    """Cross-entropy of each example, in nats: -log softmax(logits)[label].

    Vanishes to zero gradient where the logits are saturated; use a margin there.

    Args:
      logits: shape (N, K).
      labels: int64, shape (N,).
    Returns:
      Values, shape (N,).
    """
    return F.cross_entropy(logits, labels, reduction="none")


def margin(logits: Tensor, labels: Tensor) -> Tensor:
    """Logit of the true class minus the best other one: positive when the label wins, negative when it loses.

    At 0 logits are equal, and the prediction is the first of them, as `argmax` has it: everywhere in robench.

    Args:
      logits: shape (N, K), K at least 2.
      labels: int64, shape (N,).
    Returns:
      Margins in units of the logits, shape (N,).
    """
    true = logits.gather(1, labels[:, None])[:, 0]
    others = logits.scatter(1, labels[:, None], -torch.inf)
    return true - others.amax(dim=1)


def dlr(logits: Tensor, labels: Tensor) -> Tensor:
    """Difference of logits ratio: -(z_y - best other z) / (z_1 - z_3), z_1 and z_3 the largest and third largest.

    Unlike the cross-entropy it does not change when logits are scaled. With fewer than three classes there
    is no third logit, and the loss is the difference alone.

    Args:
      logits: shape (N, K).
      labels: int64, shape (N,).
    Returns:
      Values, shape (N,), positive exactly when the label loses.

    References:
      Croce & Hein 2020, arXiv:2003.01690, equation 6.
    """
    difference = -margin(logits, labels)
    if logits.shape[1] < 3:
        return difference
    top = logits.topk(3, dim=1).values
    return difference / (top[:, 0] - top[:, 2] + 1e-12)


def targeted_dlr(logits: Tensor, labels: Tensor, targets: Tensor) -> Tensor:
    """Targeted difference of logits ratio: -(z_y - z_t) / (z_1 - (z_3 + z_4) / 2).

    With fewer than four classes there is no fourth logit, and the loss is the difference alone.

    Args:
      logits: shape (N, K).
      labels: int64, shape (N,).
      targets: classes to be reached, int64, shape (N,).
    Returns:
      Values, shape (N,), positive exactly when the target beats the label.

    References:
      Croce & Hein 2020, arXiv:2003.01690, equation 7.
    """
    difference = logits.gather(1, targets[:, None])[:, 0] - logits.gather(1, labels[:, None])[:, 0]
    if logits.shape[1] < 4:
        return difference
    top = logits.topk(4, dim=1).values
    return difference / (top[:, 0] - (top[:, 2] + top[:, 3]) / 2 + 1e-12)


def targets_of(logits: Tensor, labels: Tensor, count: int) -> Tensor:
    """The wrong classes that the model ranks highest, best first.

    Args:
      logits: of the clean images, shape (N, K).
      labels: int64, shape (N,).
      count: how many; fewer where there are not so many wrong classes.
    Returns:
      Classes, int64, shape (N, min(count, K - 1)).
    """
    others = logits.scatter(1, labels[:, None], -torch.inf)
    order = others.sort(dim=1, descending=True, stable=True).indices  # of equals the first, on every device
    return order[:, : max(min(count, logits.shape[1] - 1), 0)]
