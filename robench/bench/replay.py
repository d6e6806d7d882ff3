"""An attack of ours fed the very noise that the reference draws, so that verdicts can be compared one by one.

The reference draws from torch's global generator, for all images that are still robust at once; so here
the batch is attacked as a whole, and fooled images leave between runs. Not here: how we attack (`drive`).
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from robench.arrays import take
from robench.attacks.apgd import APGD
from robench.attacks.interface import Answer, Examples
from robench.budgets import Ball
from robench.losses import margin


class _GlobalNoise:
    """Random numbers from torch's global generator, drawn as the reference draws them."""

    def uniform(self, stream: str, shape: Sequence[int], *, step: int | Tensor = 0) -> Tensor:
        return torch.rand(_count(step), *shape)

    def normal(self, stream: str, shape: Sequence[int], *, step: int | Tensor = 0) -> Tensor:
        return torch.randn(_count(step), *shape)


def _count(step: int | Tensor) -> int:
    assert isinstance(step, Tensor), "APGD says for each image which draw it wants"
    return len(step)


@dataclass(frozen=True)
class Replayed:
    """What APGD left.

    Attributes:
      robust: which images, bool, shape (N,).
      lowest: the lowest margin met on the way, in logits, shape (N,).
    """

    robust: Tensor
    lowest: Tensor


def replay(attack: APGD, model: nn.Module, images: Tensor, labels: Tensor, budget: Ball, seed: int) -> Replayed:
    """Run APGD on the noise that the reference draws under this seed.

    Args:
      attack: the attack.
      model: in eval mode.
      images: float32 in [0, 1], shape (N, 3, H, W).
      labels: int64, shape (N,).
      budget: what may be changed.
      seed: of torch's global generator, which is put back.
    """
    with torch.no_grad():
        clean = model(images)
    robust, lowest = clean.argmax(dim=1) == labels, margin(clean, labels)
    present = robust.nonzero()[:, 0]
    if not len(present):
        return Replayed(robust, lowest)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        state = attack.start(Examples(images[present], labels[present], clean[present]), budget, _GlobalNoise())
        while not bool(state.done.all()):
            query = attack.ask(state)
            assert query.objective is not None, "APGD asks for a gradient every time"
            leaf = query.render(slice(None)).detach().requires_grad_()
            logits = model(leaf)
            value = query.objective(logits, query.rows)
            (gradient,) = torch.autograd.grad(value.sum(), leaf)
            robust[present[logits.argmax(dim=1) != labels[present]]] = False
            lowest[present] = torch.minimum(lowest[present], margin(logits.detach(), labels[present]))
            kept = torch.arange(len(present))
            if bool((state.step == attack.steps).all()):
                kept = robust[present].nonzero()[:, 0]
            if not len(kept):
                break
            present = present[kept]
            answer = Answer(logits.detach()[kept], value.detach()[kept], gradient[kept])
            state = attack.tell(take(state, kept), answer)
    return Replayed(robust, lowest)
