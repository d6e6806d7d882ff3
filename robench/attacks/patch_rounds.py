"""What attacks that look for patches in rounds of queries have in common: their lengths, their start, what they ask.

Not here: what a round looks at, and what is learnt from it (`tpa.py`, `patch_search.py`).
"""

from dataclasses import dataclass

from torch import Tensor

from robench.attacks.interface import Examples, Query
from robench.attacks.patches import PatchState, begin_with_textures, check_settings, query
from robench.budgets import PatchArea
from robench.randomness import RandomSource


@dataclass(frozen=True, kw_only=True)
class PatchRounds:
    """For each patch some rounds of queries, the best patch seen is fixed, and the next is looked for on that image."""

    rounds: int = 50
    """Rounds of queries for each patch; the published 50 steps of TPA."""
    queries: int = 500
    """Queries of a round; the published 500."""
    patches: int = 4
    """Patches, fixed one after the other; Bai et al.'s 4."""

    gradients = False
    works_in = (PatchArea,)
    targeted = False

    def __post_init__(self) -> None:
        check_settings(type(self).__name__, rounds=self.rounds, queries=self.queries, patches=self.patches)

    @property
    def steps(self) -> int:
        """Number of the last query."""
        return self.patches * self.rounds * self.queries

    @property
    def images_a_slot(self) -> int:
        """Images of a round."""
        return self.queries

    @property
    def most_passes(self) -> tuple[int, int]:
        """Passes with and without gradient of an example that survives."""
        return 0, self.steps

    def ask(self, state: PatchState) -> Query:
        """All patches of a round."""
        return query(state, targeted=self.targeted)

    def round_of(self, state: PatchState) -> Tensor:
        """Number of the round over all patches, which says what to draw, int64, shape (N,)."""
        return state.fixed * self.rounds + state.round


@dataclass(frozen=True)
class TextureRounds(PatchRounds):
    """The same with patches that are cut from textures of one class other than the example's own."""

    textures: str
    """Dictionary of textures: `mini`, `tpa-textures`, or a folder."""
    textures_sha256: str
    """Its digest."""
    targeted: bool = False
    """Whether images must be taken for the class of the texture."""

    def begin(self, examples: Examples, budget: PatchArea, draws: RandomSource) -> PatchState:
        """State of slots before their first round; what to look at is still to be said."""
        return begin_with_textures(
            examples,
            budget,
            draws,
            textures=self.textures,
            sha256=self.textures_sha256,
            patches=self.patches,
            targeted=self.targeted,
        )
