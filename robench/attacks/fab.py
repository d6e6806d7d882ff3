"""FAB-T: finds the nearest adversarial image, one target class after the other.

Not here: which images count (`drive.py`), and how attacks are chained (`autoattack.py`).
"""

from dataclasses import dataclass, replace

import torch
from torch import Tensor

from robench.arrays import choose, in_cache, rows_of, with_rows
from robench.attacks.interface import Answer, Examples, Query
from robench.budgets import BALLS, Ball
from robench.errors import ProtocolError, complaint
from robench.losses import targets_of
from robench.randomness import RandomSource

MOST_NEWTON_STEPS = 60
"""The sum that `to_hyperplane` solves is piecewise linear: three to eight steps end it, 60 never happen."""


@dataclass(frozen=True)
class FABState:
    """What FAB remembers of each slot."""

    examples: Examples
    budget: Ball
    targets: Tensor
    """Classes to be reached in turn, int64, shape (N, T)."""
    turn: Tensor
    """Which target it is at, int64, shape (N,)."""
    step: Tensor
    """Iterations finished towards it, int64, shape (N,)."""
    point: Tensor
    """Image to look at next, float32, shape (N, 3, H, W)."""
    judged: Tensor
    """Whether that image is asked for its class alone (else for the boundary's slope), bool, shape (N,)."""
    done: Tensor


@dataclass(frozen=True)
class FAB:
    """Fast adaptive boundary attack, targeted: walks along the linearised boundary, close to the clean image.

    At x the boundary between label y and target t is taken for the plane z_t - z_y = 0. d1 leads from x, d2
    from the clean image to that plane, the shortest way inside [0, 1]. With a = min(|d1| / (|d1| + |d2|),
    alpha_max) the next image is (1 - a) (x + eta d1) + a (clean + eta d2); if it is adversarial but outside
    the radius, the walk goes on from clean + beta (x - clean).

    References:
      Croce & Hein 2020, arXiv:1907.02044; targeted version and constants of arXiv:2003.01690. Deviates: an
      image inside the radius ends the walk, where the published code looks for a nearer one; the plane is
      reached by Newton's method instead of a sort, to the same point, and in L2 along coordinates of any slope,
      where that code leaves those below 1e-8 alone; a model with fewer other classes than targets is aimed at
      all of them.
    """

    steps: int = 100
    """Iterations for each target; AutoAttack's 100."""
    targets: int = 9
    """How many classes to aim at in turn, all wrong ones where there are fewer; AutoAttack's 9."""
    alpha_max: float = 0.1
    """Largest pull towards the clean image."""
    eta: float = 1.05
    """Overshoot beyond the plane."""
    beta: float = 0.9
    """Share of the way back to keep after a success outside the radius."""

    name = "fab-t"
    gradients = True
    works_in = BALLS

    def __post_init__(self) -> None:
        for key in ("steps", "targets"):
            if getattr(self, key) < 1:
                raise ProtocolError(complaint("FAB", key, getattr(self, key), "at least 1"))
        for key, low, high in (("alpha_max", 0, 1), ("eta", 1, 2), ("beta", 0, 1)):
            if not low <= getattr(self, key) <= high:
                raise ProtocolError(complaint("FAB", key, getattr(self, key), f"from {low} to {high}"))

    @property
    def most_passes(self) -> tuple[int, int]:
        """Passes with and without gradient of an example that survives."""
        return self.targets * self.steps, self.targets * self.steps

    def start(self, examples: Examples, budget: Ball, draws: RandomSource) -> FABState:
        zeros = torch.zeros_like(examples.labels)
        return FABState(
            examples=examples,
            budget=budget,
            targets=targets_of(examples.logits, examples.labels, self.targets),
            turn=zeros,
            step=zeros,
            point=examples.images,
            judged=zeros.bool(),
            done=torch.full_like(zeros, examples.logits.shape[1] < 2, dtype=torch.bool),
        )

    def ask(self, state: FABState) -> Query:
        rows, judging = _rows(state)
        points = rows_of(state.point, rows)
        labels, aims = state.examples.labels, _aims(state)

        def gap(logits: Tensor, slots: Tensor) -> Tensor:
            return _at(logits, aims[slots]) - _at(logits, labels[slots])

        counts = torch.zeros_like(rows, dtype=torch.bool)
        if judging:
            counts = state.budget.excess(points, rows_of(state.examples.images, rows)) <= 0
        return Query(
            rows=rows,
            render=lambda part: points[part],
            objective=None if judging else gap,
            counts=counts,
            step=(state.turn * self.steps + state.step)[rows],
        )

    def tell(self, state: FABState, answer: Answer) -> FABState:
        rows, judging = _rows(state)
        if judging:
            return self._judge(state, rows, answer.logits)
        assert answer.gradient is not None, "FAB asks for the slope every other time"
        assert answer.value is not None, "and so for the gap"
        moved = self._walk(state, rows, answer.value, answer.gradient)
        return replace(
            state,
            point=with_rows(state.point, rows, moved),
            judged=state.judged.index_fill(0, rows, True),
        )

    def _walk(self, state: FABState, rows: Tensor, gap: Tensor, slope: Tensor) -> Tensor:
        """The next image of these slots."""
        parts = in_cache(rows_of(state.point, rows), rows_of(state.examples.images, rows), slope, gap)
        return torch.cat([self._nearer(*part, budget=state.budget) for part in parts])

    def _nearer(self, point: Tensor, clean: Tensor, slope: Tensor, gap: Tensor, *, budget: Ball) -> Tensor:
        """Near the boundary as it is seen from these images, and nearer to the clean ones."""
        rise = _dot(slope, point) - gap  # the plane: slope . z = rise
        near, far = (to_hyperplane(images, slope, rise, budget) for images in (point, clean))
        lengths = [budget.length(change).clamp(min=1e-8) for change in (near, far)]
        pull = (lengths[0] / (lengths[0] + lengths[1])).clamp(0, self.alpha_max)[:, None, None, None]
        first, second = torch.add(point, near, alpha=self.eta), torch.add(clean, far, alpha=self.eta)
        return first.mul_(1 - pull).add_(second.mul_(pull)).clamp_(0, 1)

    def _judge(self, state: FABState, rows: Tensor, logits: Tensor) -> FABState:
        """Step back where the image was adversarial; count the iteration."""
        point, clean = rows_of(state.point, rows), rows_of(state.examples.images, rows)
        adversarial = logits.argmax(dim=1) != state.examples.labels[rows]
        point = choose(adversarial, (point - clean).mul_(self.beta).add_(clean), point)
        step, turn = state.step[rows] + 1, state.turn[rows]
        over = step >= self.steps
        ended = over & (turn + 1 >= state.targets.shape[1])
        point = choose(over, clean, point)
        return replace(
            state,
            point=with_rows(state.point, rows, point),
            step=state.step.index_copy(0, rows, torch.where(over, 0, step)),
            turn=state.turn.index_copy(0, rows, turn + (over & ~ended)),
            judged=state.judged.index_fill(0, rows, False),
            done=state.done.index_copy(0, rows, state.done[rows] | ended),
        )


def _rows(state: FABState) -> tuple[Tensor, bool]:
    """The slots to ask about, and whether for classes alone: first those in the middle of an iteration."""
    judged = state.judged.nonzero()[:, 0]
    if len(judged):
        return judged, True
    return torch.arange(len(state.judged), device=state.judged.device), False


def _aims(state: FABState) -> Tensor:
    return state.targets.gather(1, state.turn[:, None])[:, 0]


def _dot(one: Tensor, other: Tensor) -> Tensor:
    """Sum of the products of each row's values, shape (N,)."""
    return (one * other).flatten(1).sum(dim=1)


def _at(logits: Tensor, classes: Tensor) -> Tensor:
    return logits.gather(1, classes[:, None])[:, 0]


def to_hyperplane(points: Tensor, normals: Tensor, levels: Tensor, budget: Ball) -> Tensor:
    """The shortest change, in the budget's norm and inside [0, 1], that takes points onto hyperplanes.

    Value i moves by min(m u_i, r_i) towards the plane, where u is the steepest direction of the norm, r_i the
    room that [0, 1] leaves, and m solves sum |w_i| min(m u_i, r_i) = |level - w . point|. The left side is
    concave and piecewise linear in m, so Newton's method from the left ends after a few steps.

    Args:
      points: float32 in [0, 1], shape (N, 3, H, W).
      normals: w, shape (N, 3, H, W).
      levels: w . z on the plane, shape (N,).
      budget: whose norm counts.
    Returns:
      Changes, shape (N, 3, H, W); as far as [0, 1] allows where it does not reach the plane.
    """
    weights, flat = normals.flatten(1), points.flatten(1)
    missing = levels - _dot(weights, flat)
    towards = weights.sign().mul_(torch.where(missing >= 0, 1.0, -1.0)[:, None])
    room = towards.clamp(min=0).sub_(flat).abs_()
    weights, missing = weights.abs(), missing.abs()
    pace = budget.pace(weights)
    wall = room if pace is None else room / pace.clamp(min=1e-30)  # at which m a value meets the edge of [0, 1]
    slope, whole = (weights if pace is None else weights * pace), weights * room
    steepness, space = slope.sum(dim=1), whole.sum(dim=1)
    reach = missing / steepness.clamp(min=1e-30)
    free = torch.empty_like(wall)
    for _ in range(MOST_NEWTON_STEPS):
        torch.gt(wall, reach[:, None], out=free)  # 1 where a value still moves
        left = torch.linalg.vecdot(free, slope)
        used = space - torch.linalg.vecdot(free, whole)
        further = torch.where(left > 1e-6 * steepness, (missing - used) / left.clamp(min=1e-30), torch.inf).clamp(
            max=1e30
        )
        grows = further > reach * (1 + 1e-6)  # each row ends by itself: it must not depend on its neighbours
        if not bool(grows.any()):
            break
        reach = torch.where(grows, further, reach)
    moved = reach[:, None] if pace is None else reach[:, None] * pace
    return torch.minimum(moved, room).mul_(towards).reshape(points.shape)
