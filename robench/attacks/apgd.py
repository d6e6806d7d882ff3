"""Auto-PGD: gradient ascent with momentum that halves its own step size, untargeted or on targets in turn.

Not here: which iterates count (`drive.py`), and how attacks are chained (`autoattack.py`).
"""

from dataclasses import dataclass, replace
from functools import cached_property

import torch
from torch import Tensor

from robench.arrays import choose, put, take
from robench.attacks.interface import Answer, Examples, Query
from robench.budgets import BALLS, Ball, advance_with_momentum
from robench.errors import ProtocolError, complaint
from robench.losses import cross_entropy, dlr, targeted_dlr, targets_of
from robench.randomness import RandomSource

MOMENTUM = 0.75
"""Weight of the new step against the last one (Croce & Hein 2020)."""
FIRST_STEP = 2.0
"""First step size, in radii (Croce & Hein 2020)."""
LOSSES = {"ce": cross_entropy, "dlr": dlr}


@dataclass(frozen=True)
class APGDState:
    """What APGD remembers of each slot; tensors of images are float32, shape (N, 3, H, W)."""

    examples: Examples
    budget: Ball
    draws: RandomSource
    targets: Tensor
    """Classes to be reached in turn, int64, shape (N, T); of no meaning without targets."""
    turn: Tensor
    """Which target it is at, int64, shape (N,)."""
    step: Tensor
    """Steps taken towards it, int64, shape (N,)."""
    iterate: Tensor
    """Image to look at next."""
    origin: Tensor
    """Where the last step set out from."""
    step_size: Tensor
    """float32, shape (N, 1, 1, 1)."""
    best: Tensor
    """Image with the highest loss."""
    best_gradient: Tensor
    best_loss: Tensor
    last_loss: Tensor
    rises: Tensor
    """Steps since the last checkpoint at which the loss rose."""
    checked_loss: Tensor
    """Best loss at the last checkpoint."""
    halved: Tensor
    """Whether the step size was halved there, bool."""
    done: Tensor


@dataclass(frozen=True)
class APGD:
    """Projected gradient ascent with momentum; a step size that no longer pays is halved.

    x_0 is a random point of the boundary. z = project(x_k + step(gradient at x_k)) and
    x_(k+1) = project(x_k + 0.75 (z - x_k) + 0.25 (x_k - x_(k-1))). At checkpoints (after 22 % of the steps,
    then in windows that shrink by 3 % down to 6 %) a slot whose loss rose in at most `rho` of the window, or
    did not improve its best, halves its step size and goes on from its best image. With `targets` the
    targeted loss is driven up for the classes that the model ranks second, third and so on for the clean
    image, each from a new start.

    References:
      Croce & Hein 2020, arXiv:2003.01690, Algorithm 1 and section 4; constants as in the published code.
      Deviates: starts are drawn for each example, not for the batch; a model with fewer other classes than
      targets is aimed at all of them, and one with too few for DLR's denominator has none (`losses`). As in the
      published code the first window counts a rise or fall at its first step against a loss of 0.
    """

    steps: int = 100
    """Steps after the start, for each target; AutoAttack's 100."""
    loss: str = "ce"
    """`ce` or `dlr`; with targets the loss is the targeted DLR, whatever stands here."""
    targets: int = 0
    """How many classes to aim at in turn, all wrong ones where there are fewer; 0 aims at none. AutoAttack's second
    stage: 9."""
    rho: float = 0.75
    """Share of a window in which the loss must rise."""

    gradients = True
    works_in = BALLS

    def __post_init__(self) -> None:
        if self.steps < 1:
            raise ProtocolError(complaint("APGD", "steps", self.steps, "at least 1"))
        if self.loss not in LOSSES:
            raise ProtocolError(complaint("APGD", "loss", f"`{self.loss}`", "`ce` or `dlr`"))
        if self.targets < 0:
            raise ProtocolError(complaint("APGD", "targets", self.targets, "at least 0"))
        if not 0 <= self.rho <= 1:
            raise ProtocolError(complaint("APGD", "rho", self.rho, "from 0 to 1"))

    @property
    def name(self) -> str:
        """`apgd-ce`, `apgd-dlr` or `apgd-t`."""
        return "apgd-t" if self.targets else f"apgd-{self.loss}"

    @cached_property
    def checkpoints(self) -> dict[int, int]:
        """Steps after which the step size is judged, and the length of the window that ends there."""
        window = max(int(0.22 * self.steps), 1)
        least, shrink = max(int(0.06 * self.steps), 1), max(int(0.03 * self.steps), 1)
        found, step = {}, window
        while step <= self.steps:
            found[step] = window
            window = max(window - shrink, least)
            step += window
        return found

    @property
    def most_passes(self) -> tuple[int, int]:
        """Passes with and without gradient of an example that survives."""
        return max(self.targets, 1) * (self.steps + 1), 0

    def start(self, examples: Examples, budget: Ball, draws: RandomSource) -> APGDState:
        targets = targets_of(examples.logits, examples.labels, self.targets)
        turn = torch.zeros_like(examples.labels)
        state = self._run(examples, budget, draws, targets, turn)
        return replace(state, done=torch.full_like(state.done, bool(self.targets) and targets.shape[1] == 0))

    def _run(self, examples: Examples, budget: Ball, draws: RandomSource, targets: Tensor, turn: Tensor) -> APGDState:
        """Slots at the start of a run, towards the target whose turn it is."""
        begin = budget.random_edge_point(examples.images, draws, f"{self.name}/0", step=turn)
        zeros, nothing = torch.zeros_like(turn), torch.zeros(len(turn), device=turn.device)
        return APGDState(
            examples=examples,
            budget=budget,
            draws=draws,
            targets=targets,
            turn=turn,
            step=zeros,
            iterate=begin,
            origin=begin,
            step_size=torch.full((len(turn), 1, 1, 1), FIRST_STEP * budget.epsilon, device=turn.device),
            best=begin,
            best_gradient=torch.zeros_like(begin),
            best_loss=torch.full_like(nothing, -torch.inf),
            last_loss=nothing,
            rises=zeros,
            checked_loss=nothing,
            halved=torch.ones_like(zeros, dtype=torch.bool),
            done=torch.zeros_like(zeros, dtype=torch.bool),
        )

    def ask(self, state: APGDState) -> Query:
        labels = state.examples.labels

        def objective(logits: Tensor, slots: Tensor) -> Tensor:
            if not self.targets:
                return LOSSES[self.loss](logits, labels[slots])
            aims = state.targets[slots].gather(1, state.turn[slots, None])[:, 0]
            return targeted_dlr(logits, labels[slots], aims)

        return Query(
            rows=torch.arange(len(labels), device=labels.device),
            render=lambda rows: state.iterate[rows],
            objective=objective,
            counts=torch.ones_like(state.done),
            step=state.turn * (self.steps + 1) + state.step,
        )

    def tell(self, state: APGDState, answer: Answer) -> APGDState:
        assert answer.gradient is not None, "APGD asks for a gradient every time"
        assert answer.value is not None, "and so for a value"
        loss, gradient, first = answer.value, answer.gradient, state.step == 0
        better = loss > state.best_loss
        best = choose(better, state.iterate, state.best)
        best_gradient = choose(better, gradient, state.best_gradient)
        best_loss = torch.where(better, loss, state.best_loss)
        rises = state.rises + ((loss > state.last_loss) & ~first)
        checked_loss = torch.where(first, loss, state.checked_loss)
        point, step_size, halved = state.iterate, state.step_size, state.halved

        window = self._windows(state.step)
        if bool((window > 0).any()):
            checked = window > 0
            stuck = (rises <= window * self.rho) | (~halved & (checked_loss >= best_loss))
            back = checked & stuck
            step_size = torch.where(back[:, None, None, None], step_size / 2, step_size)
            point, gradient = choose(back, best, point), choose(back, best_gradient, gradient)
            halved = torch.where(checked, stuck, halved)
            checked_loss = torch.where(checked, best_loss, checked_loss)
            rises = torch.where(checked, 0, rises)

        moved = replace(
            state,
            step=state.step + 1,
            iterate=self._next(state, point, gradient, step_size),
            origin=point,
            step_size=step_size,
            best=best,
            best_gradient=best_gradient,
            best_loss=best_loss,
            last_loss=torch.where(first, 0.0, loss),
            rises=rises,
            checked_loss=checked_loss,
            halved=halved,
        )
        return self._turn(moved)

    def _windows(self, step: Tensor) -> Tensor:
        """Length of the window that ends at each slot's step, 0 where none does."""
        table = [self.checkpoints.get(at, 0) for at in range(self.steps + 1)]
        return torch.tensor(table, device=step.device)[step.clamp(max=self.steps)]

    def _next(self, state: APGDState, point: Tensor, gradient: Tensor, step_size: Tensor) -> Tensor:
        """The image after a step from `point`, pulled along by the step before."""
        weight = torch.where(state.step == 0, 1.0, MOMENTUM)[:, None, None, None]
        ball, clean = state.budget, state.examples.images
        return advance_with_momentum(ball, point, state.origin, gradient, step_size, weight, clean)

    def _turn(self, state: APGDState) -> APGDState:
        """Slots at the end of a run go on with their next target, or are done."""
        over = (state.step > self.steps) & ~state.done
        if not bool(over.any()):
            return state
        state = replace(state, done=state.done | (over & (state.turn + 1 >= max(state.targets.shape[1], 1))))
        rows = (over & ~state.done).nonzero()[:, 0]
        if not len(rows):
            return state
        old = take(state, rows)
        return put(state, rows, self._run(old.examples, old.budget, old.draws, old.targets, old.turn + 1))
