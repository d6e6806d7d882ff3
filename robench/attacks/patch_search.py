"""Patches found without learning: random search over the actions of TPA, local search after it, and grey squares.

They show what textures, and what the agent of `tpa.py`, buy at the same number of queries. Not here: pasting
(`patches.py`).
"""

from dataclasses import dataclass, replace

import torch
from torch import Tensor

from robench.attacks.interface import Answer, Examples
from robench.attacks.patch_rounds import PatchRounds, TextureRounds
from robench.attacks.patches import ACTIONS, Bank, PatchState, advance, begin, pick, remember, rewards, spaces
from robench.budgets import PatchArea
from robench.errors import ProtocolError, complaint
from robench.randomness import RandomSource

REACH = 1 / 4
"""How far local search looks in its first round, as a share of the range of a number; in the last, hardly a pixel."""


@dataclass(frozen=True)
class RandomPatches(TextureRounds):
    """Random search over the actions of TPA: place, texture and cut are uniform, the best patch is kept.

    In the last `local_rounds` rounds of each patch, local search: every query changes the best patch seen. Each of
    its five numbers is left alone with chance 1/2; else a place or cut moves by at most the reach, which shrinks
    from round to round, and a texture is any. Nothing ends a search early but success. The wrong choice as an
    attack: these are the lines that TPA has to beat, at as many queries as TPA has at most.
    """

    local_rounds: int = 0
    """Of the rounds of each patch, how many search near the best one."""

    def __post_init__(self) -> None:
        PatchRounds.__post_init__(self)
        if not 0 <= self.local_rounds < self.rounds:
            expected = f"from 0 to {self.rounds - 1}, so that a round of random search comes first"
            raise ProtocolError(complaint("RandomPatches", "local_rounds", self.local_rounds, expected))

    @property
    def name(self) -> str:
        """Random search, or local search after it."""
        return "tpa-local" if self.local_rounds else "tpa-random"

    def start(self, examples: Examples, budget: PatchArea, draws: RandomSource) -> PatchState:
        return self._propose(self.begin(examples, budget, draws))

    def tell(self, state: PatchState, answer: Answer) -> PatchState:
        return self._propose(_remembered(self, state, answer))

    def _propose(self, state: PatchState) -> PatchState:
        """The next round: anywhere, or near the best patch."""
        anywhere = _anywhere(self, state, self.name)
        left = self.rounds - state.round
        near = left <= self.local_rounds
        if not bool(near.any()):
            return replace(state, actions=anywhere)
        uniforms = state.draws.uniform(f"{self.name}/near", (self.queries, ACTIONS), step=self.round_of(state))
        close = _near(state, uniforms, REACH * left / max(self.local_rounds, 1))
        return replace(state, actions=torch.where(near[:, None, None], close, anywhere))


@dataclass(frozen=True)
class GreyPatches(PatchRounds):
    """Squares of one grey at random places, the best one kept: what covering alone does.

    References:
      Yang et al. 2020, arXiv:2004.05682 (MPA_Gray). Deviates: squares of a fixed area at random places, where
      the published agent learns rectangles of any size and pays for their area; and middle grey for the mean
      colour of ImageNet, so that the protocol knows no data set.
    """

    level: float = 0.5
    """Grey of the patches, from 0 to 1."""

    name = "tpa-gray"

    def __post_init__(self) -> None:
        PatchRounds.__post_init__(self)
        if not 0 <= self.level <= 1:
            raise ProtocolError(complaint("GreyPatches", "level", self.level, "from 0 to 1"))

    def start(self, examples: Examples, budget: PatchArea, draws: RandomSource) -> PatchState:
        side = max(budget.side(*examples.images.shape[2:]), 1)
        bank = Bank(torch.full((1, 1, 3, side, side), float(self.level), device=examples.images.device))
        page = torch.zeros_like(examples.labels)
        return self._propose(begin(examples, budget, draws, bank=bank, page=page, patches=self.patches))

    def tell(self, state: PatchState, answer: Answer) -> PatchState:
        return self._propose(_remembered(self, state, answer))

    def _propose(self, state: PatchState) -> PatchState:
        return replace(state, actions=_anywhere(self, state, self.name))


def _remembered(attack: PatchRounds, state: PatchState, answer: Answer) -> PatchState:
    """The state after a round from which nothing is learnt but the best patch."""
    state = remember(state, rewards(state, answer, targeted=attack.targeted))
    state, _ = advance(state, state.round >= attack.rounds, patches=attack.patches)
    return state


def _anywhere(attack: PatchRounds, state: PatchState, name: str) -> Tensor:
    """Patches whose five numbers are uniform, int64, shape (N, queries, ACTIONS)."""
    uniforms = state.draws.uniform(f"{name}/actions", (attack.queries, ACTIONS), step=attack.round_of(state))
    return pick(uniforms, torch.tensor(spaces(state), device=uniforms.device))


def _near(state: PatchState, uniforms: Tensor, share: Tensor) -> Tensor:
    """Patches near the best one of each slot.

    Args:
      state: whose best patches they are near to.
      uniforms: in [0, 1), shape (N, queries, ACTIONS).
      share: how far, as a share of the range of each number, shape (N,).
    Returns:
      int64, shape (N, queries, ACTIONS).
    """
    counts = torch.tensor(spaces(state), device=uniforms.device)
    reach = (share[:, None] * counts).long().clamp(min=1)[:, None]
    chances = 2 * uniforms.double()  # below 1: the number stays
    moved = state.best[:, None] + pick((chances - 1).clamp(min=0), 2 * reach + 1) - reach
    moved[:, :, 2] = pick((chances[:, :, 2] - 1).clamp(min=0), counts[2])
    changed = torch.where(chances < 1, state.best[:, None], moved)
    return changed.clamp(min=torch.zeros_like(counts), max=counts - 1)
