"""Patches whose pixels climb the gradient: what the same squares can do to whoever sees the model.

Not here: patches that are found by queries (`tpa.py`, `patch_search.py`).
"""

from dataclasses import dataclass, replace

import torch
import torch.nn.functional as F
from torch import Tensor

from robench.arrays import choose
from robench.attacks.interface import Answer, Examples, Query
from robench.attacks.patches import check_patches, check_settings, crop, log_success, paste
from robench.budgets import PatchArea
from robench.errors import ProtocolError, complaint
from robench.randomness import RandomSource


@dataclass(frozen=True)
class AscentState:
    """What gradient ascent remembers of each slot."""

    examples: Examples
    budget: PatchArea
    canvas: Tensor
    """Image with the patches that are fixed, float32, shape (N, 3, H, W)."""
    fixed: Tensor
    """How many these are, int64, shape (N,)."""
    look: Tensor
    """Images looked at for the next patch, int64, shape (N,)."""
    asked: Tensor
    """Images looked at so far, int64, shape (N,)."""
    corners: Tensor
    """Positions to try for the next patch: upper left corners, int64, shape (N, positions, 2)."""
    colours: Tensor
    """What the gradient at the canvas wants everywhere, 0 or 1, float32, shape (N, 3, H, W)."""
    corner: Tensor
    """Of the patch to look at next, int64, shape (N, 2)."""
    patch: Tensor
    """Its pixels, float32, shape (N, 3, side, side)."""
    best_value: Tensor
    """Highest objective met with the next patch, float32, shape (N,)."""
    best_corner: Tensor
    best_patch: Tensor
    done: Tensor


@dataclass(frozen=True)
class WhiteBoxPatches:
    """Squares whose pixels climb the gradient of log(1 - p_true), at the best of some positions, one after the other.

    For each patch: one gradient says what every position would gain if the model were linear, with the better of 0
    and 1 for each value. The positions that promise most, none nearer than half a patch to another, are looked at
    with these colours. At the best of them the pixels step in the direction of the gradient's sign, and the best
    patch seen is fixed. Nothing is drawn at random. The wrong choice for models whose gradients are masked; and no
    texture is pasted: it says what the squares can do, not what textures do.

    References:
      Brown et al. 2017, arXiv:1712.09665 (adversarial patches). Deviates: patches for one image at its own
      positions instead of one patch for all images and positions; signs of gradients, as in PGD.
    """

    patches: int = 4
    """Patches, fixed one after the other; Bai et al.'s 4."""
    positions: int = 10
    """Positions that are tried for each patch."""
    rounds: int = 100
    """Looks at the pixels of each patch while they climb; PGD's number of steps in `pgd-linf`."""
    step_size: float = 1 / 16
    """Length of a step in units of the image."""

    name = "tpa-whitebox"
    gradients = True
    works_in = (PatchArea,)

    def __post_init__(self) -> None:
        check_settings("WhiteBoxPatches", patches=self.patches, positions=self.positions, rounds=self.rounds)
        if not self.step_size > 0:
            raise ProtocolError(complaint("WhiteBoxPatches", "step_size", self.step_size, "more than 0"))

    @property
    def steps(self) -> int:
        """Number of the last look."""
        return self.patches * (1 + self.positions + self.rounds)

    @property
    def most_passes(self) -> tuple[int, int]:
        """Passes with and without gradient of an example that survives."""
        return self.steps, 0

    def start(self, examples: Examples, budget: PatchArea, draws: RandomSource) -> AscentState:
        check_patches(budget, self.patches)
        zeros, side = torch.zeros_like(examples.labels), budget.side(*examples.images.shape[2:])
        corner = zeros[:, None].expand(-1, 2)
        patch = crop(examples.images, corner, side)
        return AscentState(
            examples=examples,
            budget=budget,
            canvas=examples.images,
            fixed=zeros,
            look=zeros,
            asked=zeros,
            corners=corner[:, None].expand(-1, self.positions, -1),
            colours=torch.zeros_like(examples.images),
            corner=corner,
            patch=patch,
            best_value=torch.full(zeros.shape, -torch.inf, device=zeros.device),
            best_corner=corner,
            best_patch=patch,
            done=zeros.bool(),
        )

    def ask(self, state: AscentState) -> Query:
        labels = state.examples.labels
        return Query(
            rows=torch.arange(len(labels), device=labels.device),
            render=lambda rows: paste(state.canvas[rows].clone(), state.corner[rows], state.patch[rows]),
            objective=lambda logits, slots: log_success(logits, labels[slots]),
            counts=torch.ones_like(state.done),
            step=state.asked + 1,
            patches=state.fixed + (state.look > 0),
        )

    def tell(self, state: AscentState, answer: Answer) -> AscentState:
        gradient, value = answer.gradient, answer.value
        assert gradient is not None, "a gradient is asked for every time"
        assert value is not None, "and a value with it"
        state = _surveyed(_remembered(state, value), gradient)
        state = self._onward(self._moved(state, gradient))
        return replace(state, asked=state.asked + 1)

    def _moved(self, state: AscentState, gradient: Tensor) -> AscentState:
        """The patch to look at next: another position, the best one again, or a step further up."""
        look, side = state.look + 1, state.patch.shape[2]
        stepped = (state.patch + self.step_size * crop(gradient, state.corner, side).sign()).clamp(0, 1)
        slots = torch.arange(len(look), device=look.device)
        tried = state.corners[slots, (look - 1).clamp(max=self.positions - 1)]
        trying, turning = look <= self.positions, look == self.positions + 1
        patch = choose(trying, crop(state.colours, tried, side), choose(turning, state.best_patch, stepped))
        corner = choose(trying, tried, choose(turning, state.best_corner, state.corner))
        return replace(state, look=look, corner=corner, patch=patch)

    def _onward(self, state: AscentState) -> AscentState:
        """Fix the best patch where its looks are over, and begin the next one; after the last, the slot is done."""
        ended = state.look > self.positions + self.rounds
        last = state.fixed + 1 >= self.patches
        onward = ended & ~last
        if bool(onward.any()):
            canvas = paste(state.canvas.clone(), state.best_corner, state.best_patch)
            canvas = choose(onward, canvas, state.canvas)
            patch = choose(onward, crop(canvas, state.corner, state.patch.shape[2]), state.patch)
            state = replace(state, canvas=canvas, patch=patch)
        return replace(
            state,
            fixed=state.fixed + onward,
            look=torch.where(onward, 0, state.look),
            best_value=torch.where(onward, -torch.inf, state.best_value),
            done=state.done | (ended & last),
        )


def _remembered(state: AscentState, value: Tensor) -> AscentState:
    """Keep the best patch seen; the canvas without it is none."""
    better = (state.look > 0) & (value > state.best_value)
    return replace(
        state,
        best_value=torch.where(better, value, state.best_value),
        best_corner=choose(better, state.corner, state.best_corner),
        best_patch=choose(better, state.patch, state.best_patch),
    )


def _surveyed(state: AscentState, gradient: Tensor) -> AscentState:
    """What the gradient promises, in slots that were shown the canvas without the next patch."""
    rows = (state.look == 0).nonzero()[:, 0]
    if not len(rows):
        return state
    slope, side = gradient[rows], state.patch.shape[2]
    promise = slope.clamp(min=0) * (1 - state.canvas[rows]) + (-slope).clamp(min=0) * state.canvas[rows]
    corners = _best_corners(_sums(promise.double().sum(dim=1), side), state.corners.shape[1], side)
    return replace(
        state,
        corners=state.corners.index_copy(0, rows, corners),
        colours=state.colours.index_copy(0, rows, (slope > 0).to(slope.dtype)),
    )


def _sums(values: Tensor, side: int) -> Tensor:
    """Sums over every square of this side, shape (N, H - side + 1, W - side + 1), from values (N, H, W)."""
    whole = F.pad(values.cumsum(dim=1).cumsum(dim=2), (1, 0, 1, 0))
    height, width = (size - side + 1 for size in values.shape[1:])
    above, left = whole[:, :height], whole[:, side:]
    return left[:, :, side:] - left[:, :, :width] - above[:, :, side:] + above[:, :, :width]


def _best_corners(gains: Tensor, count: int, side: int) -> Tensor:
    """Positions of the highest gains, none nearer than half a side to another as long as there are such.

    Args:
      gains: of each position, float64, shape (N, rows, columns).
      count: how many positions.
      side: of the patches.
    Returns:
      Rows and columns, int64, shape (N, count, 2).
    """
    rows, columns = (torch.arange(size, device=gains.device) for size in gains.shape[1:])
    flat = gains.flatten(1)
    lower = (flat.amax(dim=1) - flat.amin(dim=1) + 1)[:, None, None]
    found = []
    for _ in range(count):
        best = gains.flatten(1).argmax(dim=1)
        row, column = best // len(columns), best % len(columns)
        away = (rows - row[:, None]).abs()[:, :, None].maximum((columns - column[:, None]).abs()[:, None])
        gains = torch.where(2 * away < max(side, 1), gains - lower, gains)
        found.append(torch.stack([row, column], dim=1))
    return torch.stack(found, dim=1)
