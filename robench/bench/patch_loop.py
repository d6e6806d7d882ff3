"""TPA as it was published: one image at a time, each patch pasted by a loop, a policy of torch's own parts.

It draws the same random numbers as ours, so that both look at the same patches and must come to the same
verdicts. Not here: times of ours (`tpa`), and how we attack (`robench.attacks`).
"""

import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from robench.attacks.interface import Examples
from robench.attacks.patches import ACTIONS, PatchState, spaces
from robench.attacks.policy import WIDTH, fresh, parts
from robench.attacks.tpa import TPA
from robench.budgets import PatchArea
from robench.randomness import Draws

DTYPE = torch.float64
LEAST_ROUNDS = 3
"""Rounds before a published search may end."""


@dataclass
class LoopRun:
    """What the loop found.

    Attributes:
      robust: which images, bool, shape (N,).
      queries: images shown to the model.
      seconds: without the time in which random numbers were drawn, which a loop of its own would draw faster.
    """

    robust: Tensor
    queries: int = 0
    seconds: float = 0.0

    @contextmanager
    def off_the_clock(self) -> Iterator[None]:
        """What happens inside costs nothing."""
        began = time.perf_counter()
        try:
            yield
        finally:
            self.seconds -= time.perf_counter() - began


def attack_by_loop(
    attack: TPA,
    model: nn.Module,
    images: Tensor,
    labels: Tensor,
    budget: PatchArea,
    *,
    seed: int,
    least: int,
) -> LoopRun:
    """Attack images one after the other.

    Args:
      attack: its settings; not targeted.
      model: in eval mode.
      images: float32 in [0, 1], shape (N, 3, H, W).
      labels: int64, shape (N,).
      budget: what may be changed.
      seed: of the examples' random numbers; ids are rows, as in `robench.bench.scene`.
      least: rounds of a patch before anything ends; `LEAST_ROUNDS` as published, 1 stops at the first success.
    """
    began = time.perf_counter()
    with torch.no_grad():
        right = model(images).argmax(dim=1) == labels
    run = LoopRun(right.clone())
    for index in right.nonzero()[:, 0].tolist():
        image, label = images[index], int(labels[index])
        with run.off_the_clock():
            draws = Draws.of(seed, [f"{index}"], images.device)
            clean = Examples(image[None], labels[index : index + 1], torch.zeros(1, 1, device=images.device))
            state = attack.begin(clean, budget, draws)
        search = _Search(attack, model, state, least)
        run.robust[index] = not search.fools(image, label, run)
    run.seconds += time.perf_counter() - began
    return run


class _Policy(nn.Module):
    """One policy: an LSTM that chooses the numbers of a patch one after the other."""

    def __init__(self, ranges: tuple[int, ...]) -> None:
        super().__init__()
        self.cell = nn.LSTMCell(WIDTH, WIDTH, dtype=DTYPE)
        self.heads = nn.ModuleList(nn.Linear(WIDTH, values, dtype=DTYPE) for values in ranges)
        self.embeddings = nn.ModuleList(nn.Embedding(values, WIDTH, dtype=DTYPE) for values in ranges[:-1])
        self.opening = torch.zeros(WIDTH)

    def begin_with(self, weights: Tensor, opening: Tensor, ranges: tuple[int, ...]) -> None:
        """Take over starting weights, shape (1, P)."""
        given, last = parts(weights, ranges), len(ranges) - 1
        names = {"weight_ih": "input", "weight_hh": "hidden", "bias_ih": "input bias", "bias_hh": "hidden bias"}
        names = {f"cell.{own}": name for own, name in names.items()}
        names |= {f"heads.{number}.weight": f"head {number}" for number in range(last + 1)}
        names |= {f"heads.{number}.bias": f"head bias {number}" for number in range(last + 1)}
        names |= {f"embeddings.{number}.weight": f"embedding {number}" for number in range(last)}
        self.load_state_dict({own: given[name][0] for own, name in names.items()})
        self.opening = opening.to(DTYPE)

    def forward(self, uniforms: Tensor) -> tuple[Tensor, Tensor]:
        """Patches, int64, shape (queries, ACTIONS), and their log-probabilities, shape (queries,)."""
        seen = self.opening.expand(len(uniforms), -1)
        hidden = cell = torch.zeros_like(seen)
        actions, total = [], torch.zeros(len(uniforms), dtype=DTYPE, device=uniforms.device)
        for number, head in enumerate(self.heads):
            hidden, cell = self.cell(seen, (hidden, cell))
            likely = head(hidden).log_softmax(dim=1)
            wanted = uniforms[:, number, None].to(DTYPE).contiguous()
            drawn = torch.searchsorted(likely.detach().exp().cumsum(dim=1), wanted, right=True)
            drawn = drawn.clamp(max=likely.shape[1] - 1)
            total = total + likely.gather(1, drawn)[:, 0]
            actions.append(drawn[:, 0])
            if number < len(self.embeddings):
                seen = self.embeddings[number](drawn[:, 0])
        return torch.stack(actions, dim=1), total


class _Search:
    """The searches of one image, patch after patch.

    Args:
      attack: its settings.
      model: whom to fool.
      state: of one slot that has just begun: which textures it faces, and its random numbers.
      least: rounds before anything ends.
    """

    def __init__(self, attack: TPA, model: nn.Module, state: PatchState, least: int) -> None:
        self.attack, self.model, self.draws, self.least = attack, model, state.draws, least
        self.textures, self.ranges = state.bank.textures[int(state.page)], spaces(state)
        self.side = state.budget.side(*state.canvas.shape[2:])

    def fools(self, canvas: Tensor, label: int, run: LoopRun) -> bool:
        """Whether the patches make the model err."""
        for number in range(self.attack.patches):
            fooled, best = self._one_patch(canvas, label, number, run)
            if fooled:
                return True
            canvas = self._pasted(canvas, [best])[0]
        return False

    def _one_patch(self, canvas: Tensor, label: int, number: int, run: LoopRun) -> tuple[bool, list[int]]:
        """Whether some patch fooled, and the best one seen."""
        policy = _Policy(self.ranges).to(canvas.device)
        with run.off_the_clock():
            start = fresh(self.draws, self.ranges, step=torch.tensor([number], device=canvas.device))
            policy.begin_with(start.weights, start.opening[0], self.ranges)
        optimizer = torch.optim.Adam(policy.parameters(), lr=self.attack.learning_rate)
        best, highest, means, fooled = [0] * ACTIONS, float("-inf"), [], False
        for turn in range(self.attack.rounds):
            with run.off_the_clock():
                step = number * self.attack.rounds + turn
                uniforms = self.draws.uniform("tpa/actions", (self.attack.queries, ACTIONS), step=step)[0]
            actions, likely = policy(uniforms)
            with torch.no_grad():
                logits = self.model(self._pasted(canvas, actions.tolist()))
            run.queries += len(logits)
            reward = _log_failure(logits.to(DTYPE), label)
            top = int(reward.argmax())
            if float(reward[top]) > highest:
                best, highest = actions[top].tolist(), float(reward[top])
            fooled = fooled or bool((logits.argmax(dim=1) != label).any())
            if fooled and turn + 1 >= self.least:
                return True, best
            advantage = (reward - reward.mean()) / (reward.std() + torch.finfo(torch.float32).eps)
            optimizer.zero_grad()
            (-(likely * advantage).mean()).backward()
            optimizer.step()
            means.append(float(reward.mean()))
            if turn + 1 >= max(self.least, LEAST_ROUNDS) and self._is_flat(means):
                break
        return fooled, best

    def _is_flat(self, means: list[float]) -> bool:
        """Whether the mean reward of the last three rounds no longer bends."""
        return abs(means[-1] - 2 * means[-2] + means[-3]) < self.attack.plateau

    def _pasted(self, canvas: Tensor, actions: list[list[int]]) -> Tensor:
        """Copies of the image, each with one patch."""
        images, side = canvas.repeat(len(actions), 1, 1, 1), self.side
        for image, (row, column, texture, cut_row, cut_column) in zip(images, actions, strict=True):
            patch = self.textures[texture, :, cut_row : cut_row + side, cut_column : cut_column + side]
            image[:, row : row + side, column : column + side] = patch
        return images


def _log_failure(logits: Tensor, label: int) -> Tensor:
    """log(1 - p) of the label, shape (queries,)."""
    others = torch.cat([logits[:, :label], logits[:, label + 1 :]], dim=1)
    return others.logsumexp(dim=1) - logits.logsumexp(dim=1)
