"""Policies over patches, stacked: every slot has its own LSTM, and all are stepped together.

A policy draws the five numbers of a patch one after the other, each given those before it. It learns by
REINFORCE. All its weights are one row, and so are the moments of its Adam: a slot's policy is taken, put and
parked like any other row. Arithmetic is float64, so that company in the batch changes no action.

Not here: what is rewarded, and when a search ends (`tpa.py`).

References:
  Williams 1992 (REINFORCE); Yang et al. 2020, arXiv:2004.05682, whose agent this is.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache

import torch
from torch import Tensor

from robench.randomness import RandomSource

WIDTH = 30
"""Of embeddings and of the LSTM; the published 30."""
BETAS = (0.9, 0.999)
TINY = 1e-8
"""Adam's usual constants."""
SPREAD_FLOOR = 2.0**-23
"""Added to the spread of rewards before dividing by it; the published float32 epsilon."""


@dataclass(frozen=True)
class Policies:
    """One policy for each slot, float64."""

    weights: Tensor
    """All trained weights, shape (N, P)."""
    first: Tensor
    """Adam's mean of gradients."""
    second: Tensor
    """Adam's mean of squared gradients."""
    updates: Tensor
    """Steps of Adam so far, int64, shape (N,)."""
    opening: Tensor
    """What the LSTM sees before the first number, never trained, shape (N, WIDTH)."""


@cache
def _shapes(spaces: tuple[int, ...]) -> dict[str, tuple[int, ...]]:
    """Shape of every part of a policy's weights, in the order in which they lie in a row."""
    shapes: dict[str, tuple[int, ...]] = {
        "input": (4 * WIDTH, WIDTH),
        "hidden": (4 * WIDTH, WIDTH),
        "input bias": (4 * WIDTH,),
        "hidden bias": (4 * WIDTH,),
    }
    for number, space in enumerate(spaces):
        shapes |= {f"head {number}": (space, WIDTH), f"head bias {number}": (space,)}
    for number, space in enumerate(spaces[:-1]):  # what follows the last number is not asked
        shapes[f"embedding {number}"] = (space, WIDTH)
    return shapes


def parts(weights: Tensor, spaces: tuple[int, ...]) -> dict[str, Tensor]:
    """The parts of stacked weights by name, each of shape (N, ...)."""
    shapes = _shapes(spaces)
    rows = torch.split(weights, [math.prod(shape) for shape in shapes.values()], dim=1)
    return {name: row.reshape(len(row), *shape) for (name, shape), row in zip(shapes.items(), rows, strict=True)}


def fresh(draws: RandomSource, spaces: tuple[int, ...], *, step: Tensor) -> Policies:
    """Policies that have learnt nothing: torch's own starting weights.

    LSTM and heads are uniform up to 1 / sqrt(WIDTH), embeddings standard normal.

    Args:
      draws: of the slots.
      spaces: how many values each number has.
      step: which policy of its example each is, int64, shape (N,).
    """
    shapes = _shapes(spaces)
    sizes = {name: math.prod(shape) for name, shape in shapes.items()}
    embedded = sum(size for name, size in sizes.items() if name.startswith("embedding"))
    uniform = draws.uniform("tpa/policy", (sum(sizes.values()) - embedded,), step=step).double()
    normal = draws.normal("tpa/embeddings", (embedded + WIDTH,), step=step).double()
    weights = torch.cat([(2 * uniform - 1) / math.sqrt(WIDTH), normal[:, WIDTH:]], dim=1)
    zeros = torch.zeros_like(weights)
    return Policies(weights, zeros, zeros, torch.zeros_like(step), normal[:, :WIDTH])


def sample(policies: Policies, uniforms: Tensor, spaces: tuple[int, ...]) -> Tensor:
    """Draw patches.

    Args:
      policies: of N slots.
      uniforms: in [0, 1), one for each number, shape (N, queries, numbers).
      spaces: how many values each number has.
    Returns:
      int64, shape (N, queries, numbers).
    """
    walk, chosen = _Walk(policies.weights, policies.opening, spaces), []
    for number in range(len(spaces)):
        cumulative = walk.log_probabilities(number).exp().cumsum(dim=2)
        wanted = uniforms[:, :, number].double()
        if cumulative.shape[1] == 1:  # all queries are alike so far
            drawn = torch.searchsorted(cumulative[:, 0], wanted.contiguous(), right=True)
        else:
            drawn = torch.searchsorted(cumulative, wanted[:, :, None].contiguous(), right=True)[:, :, 0]
        chosen.append(drawn.clamp(max=spaces[number] - 1))
        walk.take(number, chosen[-1])
    return torch.stack(chosen, dim=2)


def log_probability(weights: Tensor, opening: Tensor, actions: Tensor, spaces: tuple[int, ...]) -> Tensor:
    """Log-probability of each patch under its slot's policy, shape (N, queries)."""
    walk, total = _Walk(weights, opening, spaces), []
    for number in range(len(spaces)):
        chosen = actions[:, :, number]
        each = walk.log_probabilities(number).expand(-1, chosen.shape[1], -1)
        total.append(each.gather(2, chosen[:, :, None])[:, :, 0])
        walk.take(number, chosen)
    return torch.stack(total).sum(dim=0)


def learn(
    policies: Policies, actions: Tensor, reward: Tensor, *, learning_rate: float, spaces: tuple[int, ...]
) -> Policies:
    """One step of REINFORCE and Adam: patches that were rewarded more than others become more likely.

    The advantage is (reward - mean) / spread over a slot's queries, and the loss of a slot is the mean of
    -log-probability times advantage. Losses are summed over slots, so that none knows of another.

    Args:
      policies: of N slots.
      actions: what was drawn, int64, shape (N, queries, numbers).
      reward: of each, shape (N, queries).
      learning_rate: of Adam.
      spaces: how many values each number has.
    """
    spread = reward.std(dim=1, keepdim=True) if reward.shape[1] > 1 else torch.zeros_like(reward)
    advantage = (reward - reward.mean(dim=1, keepdim=True)) / (spread + SPREAD_FLOOR)
    with torch.enable_grad():
        weights = policies.weights.detach().requires_grad_()
        likely = log_probability(weights, policies.opening, actions, spaces)
        (gradient,) = torch.autograd.grad(-(likely * advantage).mean(dim=1).sum(), weights)
    return _adam(policies, gradient, learning_rate)


def _adam(policies: Policies, gradient: Tensor, learning_rate: float) -> Policies:
    """A step of Adam, each slot at its own count."""
    updates = policies.updates + 1
    first = BETAS[0] * policies.first + (1 - BETAS[0]) * gradient
    second = BETAS[1] * policies.second + (1 - BETAS[1]) * gradient**2
    early, late = (1 - beta ** updates.double()[:, None] for beta in BETAS)
    step = learning_rate * (first / early) / ((second / late).sqrt() + TINY)
    return Policies(policies.weights - step, first, second, updates, policies.opening)


class _Walk:
    """Stacked LSTMs on their way through the numbers of a patch; hidden and cell have shape (N, WIDTH, queries).

    Until the first number is taken all queries of a slot are alike, and have one row together.
    """

    def __init__(self, weights: Tensor, opening: Tensor, spaces: Sequence[int]) -> None:
        self.parts = parts(weights, tuple(spaces))
        self.last = len(spaces) - 1
        self.bias = (self.parts["input bias"] + self.parts["hidden bias"])[:, :, None]
        self.hidden = self.cell = torch.zeros_like(opening)[:, :, None]
        self._step(opening[:, None])

    def log_probabilities(self, number: int) -> Tensor:
        """Of every value of a number, given those taken; shape (N, 1 or queries, values)."""
        head, bias = self.parts[f"head {number}"], self.parts[f"head bias {number}"]
        return torch.baddbmm(bias[:, None], self.hidden.mT, head.mT).log_softmax(dim=2)

    def take(self, number: int, chosen: Tensor) -> None:
        """Go on from values of a number, int64, shape (N, queries)."""
        if number < self.last:
            rows = chosen[:, :, None].expand(-1, -1, WIDTH)
            self._step(self.parts[f"embedding {number}"].gather(1, rows))

    def _step(self, seen: Tensor) -> None:
        """One step of every LSTM, shape of `seen` (N, 1 or queries, WIDTH).

        Queries come last, so that each quarter of the gates lies in one piece.
        """
        gates = torch.baddbmm(self.bias, self.parts["input"], seen.mT)
        gates = gates + torch.bmm(self.parts["hidden"], self.hidden)
        enter, forget, new, leave = gates.chunk(4, dim=1)
        self.cell = forget.sigmoid() * self.cell + enter.sigmoid() * new.tanh()
        self.hidden = leave.sigmoid() * self.cell.tanh()
