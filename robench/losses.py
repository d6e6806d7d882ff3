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
    """Logit of the true class minus the best other one: positive exactly when the label wins.

    Args:
      logits: shape (N, K), K at least 2.
      labels: int64, shape (N,).
    Returns:
      Margins in units of the logits, shape (N,).
    """
    true = logits.gather(1, labels[:, None])[:, 0]
    others = logits.scatter(1, labels[:, None], -torch.inf)
    return true - others.amax(dim=1)
