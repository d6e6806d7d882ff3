"""Policies over patches, stacked: every slot has its own LSTM, and all are stepped together.

A policy draws the five numbers of a patch one after the other, each given those before it. It learns by
REINFORCE. All its weights are one row, and so are the moments of its Adam: a slot's policy is taken, put and
parked like any other row. Arithmetic is float64, so that company in the batch changes no action.

Not here: what is rewarded, and when a search ends (`tpa.py`).

References:
  Williams 1992 (REINFORCE); Yang et al. 2020, arXiv:2004.05682, whose agent this is.
"""

import math
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


@dataclass(frozen=True)
class _Step:
    """Where stacked LSTMs stand after a step; queries come last, so that each quarter of the gates is one piece.

    Until the first number is taken all queries of a slot are alike, and have one column together.
    """

    gates: Tensor
    """What enters, what is kept, what is new, and what leaves, each between its bounds, shape (N, 4 * WIDTH, Q)."""
    cell: Tensor
    """Shape (N, WIDTH, Q)."""
    bent: Tensor
    """tanh of the cell."""
    hidden: Tensor
    """What leaves of it."""


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
    """The parts of stacked weights by name, views of shape (N, ...)."""
    shapes = _shapes(spaces)
    rows = torch.split(weights, [math.prod(shape) for shape in shapes.values()], dim=1)
    return {name: row.view(len(row), *shape) for (name, shape), row in zip(shapes.items(), rows, strict=True)}


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
    given, chosen = parts(policies.weights, spaces), []
    step = _first_step(given, policies.opening)
    for number, values in enumerate(spaces):
        cumulative = _chances(given, number, step.hidden).cumsum(dim=2)
        wanted = uniforms[:, :, number].double()
        if cumulative.shape[1] == 1:  # all queries are alike so far
            drawn = torch.searchsorted(cumulative[:, 0], wanted.contiguous(), right=True)
        else:
            drawn = torch.searchsorted(cumulative, wanted[:, :, None].contiguous(), right=True)[:, :, 0]
        chosen.append(drawn.clamp_(max=values - 1))
        if number + 1 < len(spaces):
            step = _next_step(given, _embedded(given, number, chosen[-1]), step)
    return torch.stack(chosen, dim=2)


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
    return _adam(policies, _gradient(policies, actions, advantage / reward.shape[1], spaces), learning_rate)


def _gradient(policies: Policies, actions: Tensor, shares: Tensor, spaces: tuple[int, ...]) -> Tensor:
    """Gradient of -(log-probability times share), summed over queries, with respect to the weights, shape (N, P).

    Written out, backwards through the steps of the LSTM: on a CPU autograd would spend more on bookkeeping and on
    fresh memory than on arithmetic. A column of rows stands for all queries of a slot until they part.

    Args:
      policies: of N slots.
      actions: what was drawn, int64, shape (N, queries, numbers).
      shares: of each patch in the loss, shape (N, queries).
      spaces: how many values each number has.
    """
    given, last = parts(policies.weights, spaces), len(spaces) - 1
    seen = [policies.opening[:, None], *(_embedded(given, number, actions[:, :, number]) for number in range(last))]
    steps = [_first_step(given, policies.opening)]
    for each in seen[1:]:
        steps.append(_next_step(given, each, steps[-1]))
    gradient = torch.zeros_like(policies.weights)
    wanted = parts(gradient, spaces)
    lift = fall = torch.zeros((), dtype=gradient.dtype, device=gradient.device)
    for number in reversed(range(last + 1)):
        step, before = steps[number], steps[number - 1] if number else None
        slopes = _chance_slopes(_chances(given, number, step.hidden), actions[:, :, number], shares)
        wanted[f"head {number}"].copy_(torch.bmm(slopes.mT, step.hidden.mT))
        wanted[f"head bias {number}"].copy_(slopes.sum(dim=1))
        lift = torch.bmm(given[f"head {number}"].mT, slopes.mT).add_(lift)
        gates, fall = _gate_slopes(step, before, lift, fall)
        whole = gates.sum(dim=2, keepdim=True)
        wanted["input bias"] += whole[:, :, 0]
        wanted["input"] += torch.bmm(gates, seen[number])
        if before is None:
            break
        embedded = torch.bmm(gates.mT, given["input"])
        rows = actions[:, :, number - 1, None].expand(-1, -1, WIDTH)
        wanted[f"embedding {number - 1}"].scatter_add_(1, rows, embedded)
        if before.hidden.shape[2] == 1:  # one column stands for all queries
            gates, fall = whole, fall.sum(dim=2, keepdim=True)
        wanted["hidden"] += torch.bmm(gates, before.hidden.mT)
        lift = torch.bmm(given["hidden"].mT, gates)
    wanted["hidden bias"].copy_(wanted["input bias"])
    return gradient


def _chance_slopes(chances: Tensor, chosen: Tensor, shares: Tensor) -> Tensor:
    """Gradient of -(log-probability times share) with respect to the logits of one number, shape of `chances`."""
    rows = chances.shape[:2]  # one for all queries, or one for each
    shares = shares.reshape(*rows, -1)
    slopes = chances.mul_(shares.sum(dim=2, keepdim=True))
    return slopes.scatter_add_(2, chosen.reshape(*rows, -1), -shares)


def _gate_slopes(step: _Step, before: _Step | None, lift: Tensor, fall: Tensor) -> tuple[Tensor, Tensor]:
    """The way back through one step.

    Args:
      step: where it came to.
      before: where it came from; None: from nothing.
      lift: gradient with respect to the hidden state, shape (N, WIDTH, Q).
      fall: with respect to the cell, as far as later steps say.
    Returns:
      Gradients with respect to the gates before their nonlinearities, shape (N, 4 * WIDTH, Q), and to the cell before.
    """
    enter, forget, new, leave = step.gates.chunk(4, dim=1)
    fall = torch.addcmul(fall, lift * leave, 1 - step.bent.square())
    slopes = torch.addcmul(step.gates, step.gates, step.gates, value=-1)  # s (1 - s), of a sigmoid
    of_enter, of_forget, of_new, of_leave = slopes.chunk(4, dim=1)
    of_new.copy_(1 - new.square())
    of_enter.mul_(fall).mul_(new)
    of_forget.mul_(fall).mul_(before.cell if before is not None else 0)
    of_new.mul_(fall).mul_(enter)
    of_leave.mul_(lift).mul_(step.bent)
    return slopes, fall * forget


def _adam(policies: Policies, gradient: Tensor, learning_rate: float) -> Policies:
    """A step of Adam, each slot at its own count."""
    updates = policies.updates + 1
    first = policies.first.lerp(gradient, 1 - BETAS[0])
    second = (BETAS[1] * policies.second).addcmul_(gradient, gradient, value=1 - BETAS[1])
    early, late = (1 - beta ** updates.double()[:, None] for beta in BETAS)
    width = second.sqrt().mul_(late.rsqrt()).add_(TINY).mul_(early)
    weights = torch.addcdiv(policies.weights, first, width, value=-learning_rate)
    return Policies(weights, first, second, updates, policies.opening)


def _first_step(given: dict[str, Tensor], opening: Tensor) -> _Step:
    """The step before the first number, from nothing."""
    gates = torch.baddbmm(_bias(given), given["input"], opening[:, :, None])
    return _moved(gates, torch.zeros_like(opening)[:, :, None])


def _next_step(given: dict[str, Tensor], seen: Tensor, before: _Step) -> _Step:
    """The step after a number; `seen` is what stands for it, shape (N, queries, WIDTH)."""
    recalled = torch.baddbmm(_bias(given), given["hidden"], before.hidden)
    return _moved(torch.baddbmm(recalled, given["input"], seen.mT), before.cell)


def _bias(given: dict[str, Tensor]) -> Tensor:
    return (given["input bias"] + given["hidden bias"])[:, :, None]


def _moved(gates: Tensor, cell: Tensor) -> _Step:
    """Where a cell comes to through gates that have not met their nonlinearities, and meet them in place."""
    enter, forget, new, leave = gates.chunk(4, dim=1)
    gates[:, : 2 * WIDTH].sigmoid_()
    new.mul_(2).sigmoid_().mul_(2).sub_(1)  # tanh(x) is 2 sigmoid(2x) - 1, which a CPU has in a third of the time
    leave.sigmoid_()
    cell = (forget * cell).addcmul_(enter, new)
    bent = cell.tanh()
    return _Step(gates, cell, bent, leave * bent)


def _chances(given: dict[str, Tensor], number: int, hidden: Tensor) -> Tensor:
    """Of every value of a number, given those taken; shape (N, 1 or queries, values)."""
    head, bias = given[f"head {number}"], given[f"head bias {number}"]
    return torch.baddbmm(bias[:, None], hidden.mT, head.mT).softmax(dim=2)


def _embedded(given: dict[str, Tensor], number: int, chosen: Tensor) -> Tensor:
    """What stands for values of a number, int64, shape (N, queries): shape (N, queries, WIDTH)."""
    slots = torch.arange(len(chosen), device=chosen.device)[:, None]
    return given[f"embedding {number}"][slots, chosen]
