"""Texture patch attack (TPA): an agent learns where to paste which texture.

Not here: the agent's policy (`policy.py`), pasting (`patches.py`), which images count (`drive.py`).
"""

from dataclasses import dataclass, replace

import torch
from torch import Tensor

from robench.arrays import put, rows_of, take
from robench.attacks.interface import Answer, Examples
from robench.attacks.patch_rounds import PatchRounds, TextureRounds
from robench.attacks.patches import ACTIONS, PatchState, advance, fooled, remember, rewards, spaces
from robench.attacks.policy import Policies, fresh, learn, sample
from robench.budgets import PatchArea
from robench.errors import ProtocolError, complaint
from robench.randomness import RandomSource

LOOKBACK = 3
"""Rounds whose mean rewards say whether learning goes on."""


@dataclass(frozen=True)
class Agent:
    """What TPA learns in each slot."""

    policies: Policies
    means: Tensor
    """Mean reward of the last rounds, the newest last, float64, shape (N, LOOKBACK)."""


@dataclass(frozen=True)
class TPA(TextureRounds):
    """Texture patch attack: a policy learns by its rewards which patch to paste, one patch after the other.

    Each example faces the textures of one class other than its own. For each patch a fresh LSTM policy draws
    `queries` patches a round; the reward is log(1 - p_true), or log(p_target). After `rounds` rounds, or when
    the mean reward no longer bends, the best patch seen is pasted, and the next one is searched on that image.
    The first image that fools ends the example. The wrong choice where gradients can be trusted and any pixel
    may change: it costs up to `patches * rounds * queries` forward passes.

    References:
      Yang et al. 2020, arXiv:2004.05682, and its published code; four patches of 2.5 % of the area as in Bai
      et al. 2021, arXiv:2111.05464. Deviates: see docs/decisions/0010.
    """

    learning_rate: float = 0.03
    """Of Adam; the published 0.03."""
    plateau: float = 1e-4
    """A search ends when the second difference of the mean reward is smaller; the published 1e-4. 0: never."""

    name = "tpa"

    def __post_init__(self) -> None:
        PatchRounds.__post_init__(self)
        if not self.learning_rate > 0:
            raise ProtocolError(complaint("TPA", "learning_rate", self.learning_rate, "more than 0"))
        if not self.plateau >= 0:
            raise ProtocolError(complaint("TPA", "plateau", self.plateau, "at least 0"))

    def start(self, examples: Examples, budget: PatchArea, draws: RandomSource) -> PatchState:
        state = self.begin(examples, budget, draws)
        return self._propose(replace(state, agent=_fresh(draws, state)))

    def tell(self, state: PatchState, answer: Answer) -> PatchState:
        reward = rewards(state, answer, targeted=self.targeted)
        state = remember(state, reward)
        means = torch.cat([state.agent.means[:, 1:], reward.mean(dim=1, keepdim=True)], dim=1)
        ended = self._ended(state, means)
        state = replace(state, agent=Agent(self._learnt(state, reward, fooled(state, answer) | ended), means))
        state, anew = advance(state, ended, patches=self.patches)
        if len(anew):
            beginners = _fresh(take(state.draws, anew), take(state, anew))
            state = replace(state, agent=put(state.agent, anew, beginners))
        return self._propose(state)

    def _learnt(self, state: PatchState, reward: Tensor, over: Tensor) -> Policies:
        """Policies after a round; those of slots whose search is over need not learn."""
        policies: Policies = state.agent.policies
        rows = (~over).nonzero()[:, 0]
        if not len(rows):
            return policies
        everyone = len(rows) == len(over)
        learnt = learn(
            policies if everyone else take(policies, rows),
            rows_of(state.actions, rows),
            rows_of(reward, rows),
            learning_rate=self.learning_rate,
            spaces=spaces(state),
        )
        return learnt if everyone else put(policies, rows, learnt)

    def _ended(self, state: PatchState, means: Tensor) -> Tensor:
        """Which searches have had all their rounds, or no longer learn, bool, shape (N,)."""
        oldest, middle, newest = means.unbind(dim=1)
        bend = (newest - 2 * middle + oldest).abs()
        ended: Tensor = (state.round >= self.rounds) | ((state.round >= LOOKBACK) & (bend < self.plateau))
        return ended

    def _propose(self, state: PatchState) -> PatchState:
        """The next round, drawn by the policies."""
        uniforms = state.draws.uniform("tpa/actions", (self.queries, ACTIONS), step=self.round_of(state))
        return replace(state, actions=sample(state.agent.policies, uniforms, spaces(state)))


def _fresh(draws: RandomSource, state: PatchState) -> Agent:
    """Agents that have learnt nothing, for the next patch of each slot."""
    policies = fresh(draws, spaces(state), step=state.fixed)
    return Agent(policies, torch.zeros(len(state.fixed), LOOKBACK, dtype=torch.float64, device=state.fixed.device))
