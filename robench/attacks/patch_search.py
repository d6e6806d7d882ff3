"""Patches found without learning: random search over the actions of TPA, and grey squares.

They show what textures, and what the agent of `tpa.py`, buy at the same number of queries. Not here: pasting
(`patches.py`).
"""

from dataclasses import dataclass, replace

import torch
from torch import Tensor

from robench.attacks.interface import Answer, Examples, Query
from robench.attacks.patches import (
    ACTIONS,
    Bank,
    PatchState,
    advance,
    begin,
    begin_with_textures,
    check_settings,
    pick,
    query,
    remember,
    rewards,
    spaces,
)
from robench.budgets import PatchArea
from robench.errors import ProtocolError, complaint
from robench.randomness import RandomSource


@dataclass(frozen=True)
class RandomPatches:
    """Random search over the actions of TPA: place, texture and cut are uniform, the best patch is kept.

    As many rounds of as many queries for each patch as TPA has at most; nothing ends a search early but success.
    The wrong choice as an attack: it is the line that TPA has to beat.
    """

    textures: str
    """Dictionary of textures: `mini`, `tpa-textures`, or a folder."""
    textures_sha256: str
    """Its digest."""
    rounds: int = 50
    """Rounds for each patch; TPA's."""
    queries: int = 500
    """Queries of a round; TPA's."""
    patches: int = 4
    """Patches, fixed one after the other."""
    targeted: bool = False
    """Whether images must be taken for the class of the texture."""

    name = "tpa-random"
    gradients = False
    works_in = (PatchArea,)

    def __post_init__(self) -> None:
        check_settings("RandomPatches", rounds=self.rounds, queries=self.queries, patches=self.patches)

    @property
    def steps(self) -> int:
        """Number of the last query."""
        return self.patches * self.rounds * self.queries

    @property
    def most_passes(self) -> tuple[int, int]:
        return 0, self.steps

    def start(self, examples: Examples, budget: PatchArea, draws: RandomSource) -> PatchState:
        state = begin_with_textures(
            examples,
            budget,
            draws,
            textures=self.textures,
            sha256=self.textures_sha256,
            patches=self.patches,
            targeted=self.targeted,
        )
        return _propose(state, self.name, rounds=self.rounds, queries=self.queries)

    def ask(self, state: PatchState) -> Query:
        return query(state, targeted=self.targeted)

    def tell(self, state: PatchState, answer: Answer) -> PatchState:
        state = remember(state, rewards(state, answer, targeted=self.targeted))
        state, _ = advance(state, state.round >= self.rounds, patches=self.patches)
        return _propose(state, self.name, rounds=self.rounds, queries=self.queries)


@dataclass(frozen=True)
class GreyPatches:
    """Squares of one grey at random places, the best one kept: what covering alone does.

    References:
      Yang et al. 2020, arXiv:2004.05682 (MPA_Gray). Deviates: squares of a fixed area at random places, where
      the published agent learns rectangles of any size and pays for their area; and middle grey for the mean
      colour of ImageNet, so that the protocol knows no data set.
    """

    rounds: int = 50
    """Rounds for each patch; TPA's."""
    queries: int = 500
    """Queries of a round; TPA's."""
    patches: int = 4
    """Patches, fixed one after the other."""
    level: float = 0.5
    """Grey of the patches, from 0 to 1."""

    name = "tpa-gray"
    gradients = False
    works_in = (PatchArea,)

    def __post_init__(self) -> None:
        check_settings("GreyPatches", rounds=self.rounds, queries=self.queries, patches=self.patches)
        if not 0 <= self.level <= 1:
            raise ProtocolError(complaint("GreyPatches", "level", self.level, "from 0 to 1"))

    @property
    def steps(self) -> int:
        """Number of the last query."""
        return self.patches * self.rounds * self.queries

    @property
    def most_passes(self) -> tuple[int, int]:
        return 0, self.steps

    def start(self, examples: Examples, budget: PatchArea, draws: RandomSource) -> PatchState:
        side = max(budget.side(*examples.images.shape[2:]), 1)
        bank = Bank(torch.full((1, 1, 3, side, side), float(self.level), device=examples.images.device))
        page = torch.zeros_like(examples.labels)
        state = begin(examples, budget, draws, bank=bank, page=page, patches=self.patches)
        return _propose(state, self.name, rounds=self.rounds, queries=self.queries)

    def ask(self, state: PatchState) -> Query:
        return query(state, targeted=False)

    def tell(self, state: PatchState, answer: Answer) -> PatchState:
        state = remember(state, rewards(state, answer, targeted=False))
        state, _ = advance(state, state.round >= self.rounds, patches=self.patches)
        return _propose(state, self.name, rounds=self.rounds, queries=self.queries)


def _propose(state: PatchState, name: str, *, rounds: int, queries: int) -> PatchState:
    """The next round: all five numbers uniform."""
    step = state.fixed * rounds + state.round
    uniforms = state.draws.uniform(f"{name}/actions", (queries, ACTIONS), step=step)
    counts: Tensor = torch.tensor(spaces(state), device=uniforms.device)
    return replace(state, actions=pick(uniforms, counts))
