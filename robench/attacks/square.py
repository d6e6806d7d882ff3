"""Square attack: random squares of change, kept when the margin shrinks; it needs no gradient.

Not here: which images count (`drive.py`), and how attacks are chained (`autoattack.py`).
"""

import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import cache

import torch
from torch import Tensor

from robench import compiled
from robench.arrays import choose
from robench.attacks.interface import Answer, Examples, Query
from robench.budgets import Ball, L2Ball, LinfBall
from robench.errors import BudgetError, ProtocolError, complaint
from robench.losses import margin
from robench.randomness import RandomSource

SCHEDULE = ((10, 1), (50, 2), (200, 4), (500, 8), (1000, 16), (2000, 32), (4000, 64), (6000, 128), (8000, 256))
"""Up to which query the share of the area is divided by how much; by 512 after the last (arXiv:1912.00049)."""
BLOCK = 64
"""Queries whose random numbers are drawn together: drawing costs the same for one as for many."""
NUMBERS = 8
"""Uniforms for one query: two places, a turn, and three signs."""


@dataclass(frozen=True)
class SquareState:
    """What Square remembers of each slot."""

    examples: Examples
    budget: Ball
    draws: RandomSource
    query: Tensor
    """Queries made, int64, shape (N,)."""
    candidate: Tensor
    """Image to look at next, float32, shape (N, 3, H, W)."""
    best: Tensor
    """Image with the lowest margin."""
    lowest: Tensor
    """Its margin, shape (N,); infinite before the first query."""
    numbers: Tensor
    """Uniforms of two blocks of queries, float32, shape (N, 2 BLOCK, NUMBERS)."""
    block: Tensor
    """Which block they begin with, int64, shape (N,)."""
    done: Tensor


@dataclass(frozen=True)
class Square:
    """Random search for a lower margin, by queries alone.

    Starts from vertical stripes (L-inf) or a grid of bumps (L2) at full radius. Each query changes one square
    at a random place: under L-inf to plus or minus the radius in each channel; under L2 to a bump that takes
    up the length which another square gives back. The side of the square shrinks with the queries. The wrong
    choice where gradients can be trusted: it costs fifty times as many passes.

    References:
      Andriushchenko et al. 2020, arXiv:1912.00049; constants as in AutoAttack's published code. Deviates: every
      example draws its own place and signs, where the published L-inf code shares them in the batch; so
      outcomes do not depend on the batch. As there, the last row and column are never a place's first.
    """

    queries: int = 5000
    """Queries after the start; AutoAttack's 5,000."""
    p_init: float = 0.8
    """Share of the area of the first squares; AutoAttack's 0.8."""

    name = "square"
    gradients = False
    works_in = (LinfBall, L2Ball)

    def __post_init__(self) -> None:
        if self.queries < 1:
            raise ProtocolError(complaint("Square", "queries", self.queries, "at least 1"))
        if not 0 < self.p_init <= 1:
            raise ProtocolError(complaint("Square", "p_init", self.p_init, "more than 0 and at most 1"))

    @property
    def steps(self) -> int:
        """Number of the last query."""
        return self.queries

    @property
    def most_passes(self) -> tuple[int, int]:
        """Passes with and without gradient of an example that survives."""
        return 0, self.queries + 1

    def start(self, examples: Examples, budget: Ball, draws: RandomSource) -> SquareState:
        if type(budget) not in _BEGIN:
            expected = " or ".join(kind.__name__ for kind in _BEGIN)
            raise BudgetError(complaint("Square", "budget", type(budget).__name__, expected))
        zeros = torch.zeros_like(examples.labels)
        begin = budget.project(_BEGIN[type(budget)](examples.images, budget, draws), examples.images)
        return SquareState(
            examples=examples,
            budget=budget,
            draws=draws,
            query=zeros,
            candidate=begin,
            best=begin,
            lowest=torch.full((len(zeros),), torch.inf, device=zeros.device),
            numbers=_numbers(draws, zeros),
            block=zeros,
            done=zeros.bool(),
        )

    def ask(self, state: SquareState) -> Query:
        return Query(
            rows=torch.arange(len(state.query), device=state.query.device),
            render=lambda part: state.candidate[part],
            objective=None,
            counts=torch.ones_like(state.done),
            step=state.query,
        )

    def tell(self, state: SquareState, answer: Answer) -> SquareState:
        found = margin(answer.logits, state.examples.labels)
        better = (found < state.lowest) | (found <= 0)
        query = state.query + 1
        block, numbers = state.block, state.numbers
        if bool((query // BLOCK - block >= 2).any()):
            block = query // BLOCK
            numbers = _numbers(state.draws, block)
        state = replace(
            state,
            query=query,
            best=choose(better, state.candidate, state.best),
            lowest=torch.where(better, found, state.lowest),
            numbers=numbers,
            block=block,
            done=state.done | (query > self.queries),
        )
        return replace(state, candidate=self._next(state))

    def _next(self, state: SquareState) -> Tensor:
        """The best image of each slot with one square changed."""
        clean = state.examples.images
        slots = torch.arange(len(clean), device=clean.device)
        numbers = state.numbers[slots, state.query - BLOCK * state.block]
        sides = self._sides(clean.shape[2], clean.shape[3], state.query, isinstance(state.budget, L2Ball))
        if type(state.budget) is LinfBall:
            signs = numbers[:, 3 : 3 + clean.shape[1]]
            swept = compiled.push_squares(state.best, clean, numbers[:, :2], signs, sides, state.budget.epsilon)
            if swept is not None:
                return swept
        images = state.best.clone()  # changed in place
        for side in sorted(set(sides.tolist())):
            which = (sides == side).nonzero()[:, 0]
            _CHANGE[type(state.budget)](images, which, state, side, numbers[which])
        return images

    def _sides(self, height: int, width: int, query: Tensor, odd: bool) -> Tensor:
        """Side of the square of each query but the first in pixels, shape (N,)."""
        limits = torch.tensor([limit for limit, _ in SCHEDULE], device=query.device)
        sides = torch.tensor(_side_table(self.p_init, height, width, odd), device=query.device)
        # The published schedule counts from 0 after the start, and its first limit is 10 inclusive.
        return sides[torch.bucketize(query - 1, limits)]


@cache
def _side_table(p_init: float, height: int, width: int, odd: bool) -> list[int]:
    """Side of the squares in each part of the schedule."""
    sides = []
    for divisor in (*(divisor for _, divisor in SCHEDULE), 512):
        side = max(round(math.sqrt(p_init / divisor * height * width)), 3 if odd else 1)
        sides.append(min(side + (odd and side % 2 == 0), height, width))
    return sides


def _numbers(draws: RandomSource, block: Tensor) -> Tensor:
    """Uniforms of a block of queries and the next, shape (N, 2 BLOCK, NUMBERS)."""
    parts = [draws.uniform("square/0", (BLOCK, NUMBERS), step=block + ahead) for ahead in (0, 1)]
    return torch.cat(parts, dim=1)


def _signs(numbers: Tensor) -> Tensor:
    return torch.where(numbers < 0.5, -1.0, 1.0)


def _corners(numbers: Tensor, sides: Tensor, images: Tensor) -> Tensor:
    """Row and column where each square begins, int64, shape (S, 2).

    Args:
      numbers: two uniforms for each square, shape (S, 2).
      sides: in pixels, int64, shape (S, 1) or (1, 1).
      images: in which they lie.
    """
    room = torch.tensor(images.shape[2:], device=images.device) - sides
    return (numbers * room).to(torch.int64)  # never the last place, unless there is but one


def _places(slots: Tensor, numbers: Tensor, side: int, images: Tensor) -> Tensor:
    """Where the values of one square of each slot stand in all images as one long row.

    Args:
      slots: which images, int64, shape (S,).
      numbers: two uniforms for each slot, shape (S, 2).
      side: of the square in pixels.
      images: shape (N, C, H, W), of which the places are.
    Returns:
      Places, int64, shape (S C side side,): indexing with one number is many times as fast as with four.
    """
    _, channels, height, width = images.shape
    device = images.device
    first = _corners(numbers, torch.tensor([[side]], device=device), images)
    span = torch.arange(side, device=device)
    plane = slots[:, None] * channels + torch.arange(channels, device=device)
    corner = plane * (height * width) + first[:, :1] * width + first[:, 1:]
    return (corner[:, :, None, None] + span[:, None] * width + span).flatten()


def _stripes(clean: Tensor, budget: Ball, draws: RandomSource) -> Tensor:
    """L-inf start: every column of every channel at plus or minus the radius."""
    signs = _signs(draws.uniform("square/0/start", (clean.shape[1], 1, clean.shape[3])))
    return (clean + budget.epsilon * signs).clamp(0, 1)


def _linf_change(images: Tensor, which: Tensor, state: SquareState, side: int, numbers: Tensor) -> None:
    """In `images[which]`, one square goes to plus or minus the radius in each channel."""
    places, epsilon = _places(which, numbers[:, :2], side, images), state.budget.epsilon
    pushes = 2 * epsilon * _signs(numbers[:, 3 : 3 + images.shape[1]])
    values, clean = (every.view(-1).index_select(0, places) for every in (images, state.examples.images))
    pushed = (values.view(*pushes.shape, -1) + pushes[:, :, None]).flatten()
    images.view(-1).index_copy_(0, places, pushed.clamp_(clean - epsilon, clean + epsilon).clamp_(0, 1))


def _bumps(clean: Tensor, budget: Ball, draws: RandomSource) -> Tensor:
    """L2 start: a five by five grid of bumps, at full length together."""
    _, channels, height, width = clean.shape
    side = height // 5
    change = torch.zeros_like(clean)
    if not side:
        return clean + budget.epsilon * draws.normal("square/0/start", clean.shape[1:])
    border = (height - 5 * side) // 2
    places = [(row, column) for row in range(height // side) for column in range(width // side)]
    numbers = draws.uniform("square/0/start", (len(places), 1 + channels))
    for tile, (row, column) in enumerate(places):
        top, left = border + row * side, border + column * side
        signs = _signs(numbers[:, tile, 1:])[:, :, None, None]
        patch = _bump(side, numbers[:, tile, 0], clean.device) * signs
        room = change[:, :, top : top + side, left : left + side]
        room += patch[:, :, : room.shape[2], : room.shape[3]]
    return clean + budget.epsilon * _unit(change)


def _l2_change(images: Tensor, which: Tensor, state: SquareState, side: int, numbers: Tensor) -> None:
    """In `images[which]`, one square takes a bump as long as it, another square and the spare radius together."""
    clean, epsilon, channels = state.examples.images[which], state.budget.epsilon, images.shape[1]
    change = images[which] - clean
    rows = torch.arange(len(which), device=change.device)
    here, there = (_places(rows, pair, side, change) for pair in (numbers[:, :2], numbers[:, 6:8]))
    both = torch.zeros_like(change)
    both.view(-1).index_fill_(0, here, 1).index_fill_(0, there, 1)
    length = (change**2 * both).sum(dim=(2, 3), keepdim=True)
    spare = (epsilon**2 - (change**2).sum(dim=(1, 2, 3), keepdim=True)).clamp(min=0) / channels
    old = change.view(-1).index_select(0, here).view(len(which), channels, side, side)
    old = old / (1e-12 + (old**2).sum(dim=(2, 3), keepdim=True).sqrt())
    new = old + _bump(side, numbers[:, 2], change.device) * _signs(numbers[:, 3 : 3 + channels])[:, :, None, None]
    new = new / (1e-12 + (new**2).sum(dim=(2, 3), keepdim=True).sqrt()) * (spare + length).sqrt()
    change.view(-1).index_fill_(0, there, 0).index_copy_(0, here, new.flatten())
    images[which] = state.budget.project((clean + epsilon * _unit(change)).clamp(0, 1), clean)


def _unit(change: Tensor) -> Tensor:
    return change / ((change**2).sum(dim=(1, 2, 3), keepdim=True).sqrt() + 1e-12)


def _bump(side: int, turn: Tensor, device: torch.device) -> Tensor:
    """A positive and a negative half of length 1 together, upright or on its side, shape (N, 1, side, side)."""
    upper, lower = _peak(side // 2, side), _peak(side - side // 2, side)
    bump = torch.cat([upper, -lower]).to(device)
    bump = bump / (bump**2).sum().sqrt()
    return torch.where((turn > 0.5)[:, None, None, None], bump.T, bump)


def _peak(height: int, width: int) -> Tensor:
    """Nested rectangles around the middle, the inner ones higher, of length 1, shape (height, width)."""
    peak = torch.zeros(height, width)
    top, left = height // 2, width // 2
    for ring in range(max(height // 2 + 1, width // 2 + 1)):
        rows = slice(max(top, 0), min(top + 2 * ring + 1, height))
        columns = slice(max(left, 0), min(left + 2 * ring + 1, width))
        peak[rows, columns] += 1 / (ring + 1) ** 2
        top, left = top - 1, left - 1
    return peak / (peak**2).sum().sqrt() if height else peak


_BEGIN: dict[type, Callable[[Tensor, Ball, RandomSource], Tensor]] = {LinfBall: _stripes, L2Ball: _bumps}
_CHANGE: dict[type, Callable[[Tensor, Tensor, SquareState, int, Tensor], None]] = {
    LinfBall: _linf_change,
    L2Ball: _l2_change,
}
