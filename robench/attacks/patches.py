"""What attacks with patches share: where a patch may lie, how it is pasted, and which one was best.

A patch is said by five numbers: row and column of its upper left corner, which texture it is cut from, and
row and column of the cut. Patches are fixed one after the other: the best one seen is pasted, and the search
for the next begins on that image.

Not here: how the five numbers are chosen (`tpa.py`, `patch_search.py`), and textures (`robench.data.textures`).
"""

from dataclasses import dataclass, replace
from functools import lru_cache
from typing import Any

import torch
from torch import Tensor

from robench.attacks.interface import Answer, Examples, Query
from robench.budgets import PatchArea
from robench.data import TextureDictionary, textures_of
from robench.errors import BudgetError, DataError, ProtocolError, complaint
from robench.randomness import RandomSource

ACTIONS = 5
"""Numbers that say where a patch lies and what it shows."""


class Bank:
    """Textures that patches are cut from, shared by all slots: no record, so that nobody takes rows of it.

    Args:
      textures: float32 in [0, 1], shape (pages, textures, 3, size, size).
    """

    def __init__(self, textures: Tensor) -> None:
        self.textures = textures


@dataclass(frozen=True)
class PatchState:
    """What an attack with patches remembers of each slot."""

    examples: Examples
    budget: PatchArea
    draws: RandomSource
    bank: Bank
    page: Tensor
    """Page of the bank that the slot cuts from, int64, shape (N,)."""
    target: Tensor
    """Class that images must be taken for; -1: any but the label, int64, shape (N,)."""
    canvas: Tensor
    """Image with the patches that are fixed, float32, shape (N, 3, H, W)."""
    fixed: Tensor
    """How many these are, int64, shape (N,)."""
    round: Tensor
    """Rounds of queries for the next patch, int64, shape (N,)."""
    asked: Tensor
    """Images looked at so far, int64, shape (N,)."""
    actions: Tensor
    """Patches to look at next, int64, shape (N, queries, ACTIONS)."""
    best: Tensor
    """The next patch with the highest reward, int64, shape (N, ACTIONS)."""
    best_reward: Tensor
    """Its reward, float64, shape (N,)."""
    done: Tensor
    agent: Any = None
    """What the attack learns, a record with the slot as first axis, or nothing."""


def check_settings(where: str, **numbers: int) -> None:
    """Check that numbers of rounds, queries and patches are at least 1."""
    for name, number in numbers.items():
        if number < 1:
            raise ProtocolError(complaint(where, name, number, "at least 1"))


def check_patches(budget: PatchArea, patches: int) -> None:
    """Check that a budget allows so many patches.

    Raises:
      BudgetError: more than it has.
    """
    if patches > budget.patches:
        raise BudgetError(complaint("PatchArea", "patches", patches, f"at most {budget.patches}, those of the budget"))


def begin(
    examples: Examples, budget: PatchArea, draws: RandomSource, *, bank: Bank, page: Tensor, patches: int
) -> PatchState:
    """State of slots before their first round; what to look at is still to be said.

    Raises:
      BudgetError: more patches than the budget has, or patches that do not fit into the images.
      DataError: the textures are smaller than a patch.
    """
    check_patches(budget, patches)
    side, size = budget.side(*examples.images.shape[2:]), bank.textures.shape[3]
    if side > size:
        raise DataError(complaint("textures", "size", size, f"at least {side}, the side of a patch"))
    zeros = torch.zeros_like(examples.labels)
    return PatchState(
        examples=examples,
        budget=budget,
        draws=draws,
        bank=bank,
        page=page,
        target=torch.full_like(zeros, -1),
        canvas=examples.images,
        fixed=zeros,
        round=zeros,
        asked=zeros,
        actions=zeros[:, None, None].expand(-1, 1, ACTIONS),
        best=zeros[:, None].expand(-1, ACTIONS),
        best_reward=torch.full(zeros.shape, -torch.inf, dtype=torch.float64, device=zeros.device),
        done=zeros.bool(),
    )


@lru_cache(maxsize=4)
def _bank(textures: str, sha256: str, device: torch.device) -> tuple[TextureDictionary, Bank]:
    dictionary = textures_of(textures, sha256)
    return dictionary, Bank(dictionary.textures.to(device))


def begin_with_textures(
    examples: Examples,
    budget: PatchArea,
    draws: RandomSource,
    *,
    textures: str,
    sha256: str,
    patches: int,
    targeted: bool,
) -> PatchState:
    """The same with a dictionary of textures; each example faces those of one class other than its own.

    The class is drawn from a stream of its own, the same for every attack, so that attacks can be compared
    example by example.

    Raises:
      BudgetError, DataError: as in `begin`, and what `robench.data.textures_of` raises; or the dictionary
        has one class only, or a target that the model has no logit for.
    """
    dictionary, bank = _bank(textures, sha256, examples.images.device)
    if len(dictionary.classes) < 2:
        expected = "at least two classes, so that every example can face another than its own"
        raise DataError(complaint(textures, "classes", list(dictionary.classes), expected))
    logits = examples.logits.shape[1]
    if targeted and max(dictionary.classes) >= logits:
        expected = f"classes below {logits}, which the model has logits for"
        raise DataError(complaint(textures, "classes", list(dictionary.classes), expected))
    classes = torch.tensor(dictionary.classes, device=examples.labels.device)
    page = _other_class(classes, examples.labels, draws)
    state = begin(examples, budget, draws, bank=bank, page=page, patches=patches)
    return replace(state, target=classes[page]) if targeted else state


def _other_class(classes: Tensor, labels: Tensor, draws: RandomSource) -> Tensor:
    """Position of a class that is not the label, all with equal chance, int64, shape (N,)."""
    others = classes != labels[:, None]
    wanted = pick(draws.uniform("patches/class", ()), others.sum(dim=1))
    reached = others.cumsum(dim=1) == wanted[:, None] + 1
    return (reached & others).int().argmax(dim=1)


def pick(uniforms: Tensor, count: int | Tensor) -> Tensor:
    """Whole numbers from 0 to count - 1, all with equal chance, from uniforms in [0, 1)."""
    return (uniforms.double() * count).to(torch.int64)  # in float32 the product may round up to count


def spaces(state: PatchState) -> tuple[int, ...]:
    """How many values each of the five numbers has."""
    height, width = state.canvas.shape[2:]
    textures, size = state.bank.textures.shape[1], state.bank.textures.shape[3]
    side = state.budget.side(height, width)
    return height - side + 1, width - side + 1, textures, size - side + 1, size - side + 1


def cut(bank: Bank, page: Tensor, actions: Tensor, side: int) -> Tensor:
    """What patches show.

    Args:
      bank: what they are cut from.
      page: of each patch, int64, shape (Q,).
      actions: of each patch, int64, shape (Q, ACTIONS).
      side: in pixels.
    Returns:
      float32, shape (Q, 3, side, side).
    """
    texture, row, column = actions[:, 2:].unbind(dim=1)
    return _squares(bank.textures, side)[page, texture, :, row, column]


def crop(images: Tensor, corners: Tensor, side: int) -> Tensor:
    """The square of each image at its upper left corner (row, column), shape (Q, 3, side, side)."""
    return _squares(images, side)[_each(images), :, corners[:, 0], corners[:, 1]]


def paste(images: Tensor, corners: Tensor, patches: Tensor) -> Tensor:
    """Paste one patch into each image, in place, all in one assignment.

    Args:
      images: float32, shape (Q, 3, H, W); changed.
      corners: row and column of each patch's upper left corner, int64, shape (Q, 2).
      patches: float32, shape (Q, 3, side, side).
    Returns:
      `images`.
    """
    _squares(images, patches.shape[2])[_each(images), :, corners[:, 0], corners[:, 1]] = patches
    return images


def _squares(images: Tensor, side: int) -> Tensor:
    """Every square in images of shape (..., H, W), a view of shape (..., rows, columns, side, side).

    So an index says corners alone, and rows of a square are copied as they lie: much faster than a list of pixels.
    """
    return images.unfold(-2, side, 1).unfold(-2, side, 1)


def _each(images: Tensor) -> Tensor:
    """Index of each image."""
    return torch.arange(len(images), device=images.device)


def pasted(state: PatchState, rows: Tensor, actions: Tensor) -> Tensor:
    """Images of some slots with one patch more, shape (Q, 3, H, W)."""
    patches = cut(state.bank, state.page[rows], actions, state.budget.side(*state.canvas.shape[2:]))
    return paste(state.canvas.index_select(0, rows), actions[:, :2], patches)


def query(state: PatchState, *, targeted: bool) -> Query:
    """All patches of a round, one image each; images are made as they are looked at."""
    slots, count = state.actions.shape[:2]
    device = state.actions.device
    rows = torch.arange(slots, device=device).repeat_interleave(count)
    actions = state.actions.reshape(-1, ACTIONS)
    return Query(
        rows=rows,
        render=lambda part: pasted(state, rows[part], actions[part]),
        objective=None,
        counts=torch.ones_like(rows, dtype=torch.bool),
        step=state.asked[rows] + 1 + torch.arange(count, device=device).repeat(slots),
        targets=state.target[rows] if targeted else None,
        patches=state.fixed[rows] + 1,
    )


def rewards(state: PatchState, answer: Answer, *, targeted: bool) -> Tensor:
    """Log-probability of success of each patch, see `log_success`; float64, shape (N, queries)."""
    count = state.actions.shape[1]
    classes = (state.target if targeted else state.examples.labels).repeat_interleave(count)
    return log_success(answer.logits.double(), classes, targeted=targeted).reshape(-1, count)


def log_success(logits: Tensor, classes: Tensor, *, targeted: bool = False) -> Tensor:
    """log(1 - p) of the true class of each image, or log(p) of its target, shape (Q,).

    From logits, without the rounding of 1 - p: however sure the model is, better patches have higher values.
    """
    whole = logits.logsumexp(dim=1)
    if targeted:
        return logits.gather(1, classes[:, None])[:, 0] - whole
    return logits.scatter(1, classes[:, None], -torch.inf).logsumexp(dim=1) - whole


def fooled(state: PatchState, answer: Answer) -> Tensor:
    """Which slots have a patch that fools the model that was looked at, bool, shape (N,).

    That ends the example, unless the user's own model denies it; then the search goes on, none the wiser.
    """
    predictions = answer.logits.argmax(dim=1).reshape(state.actions.shape[:2])
    targeted = state.target[:, None] >= 0
    right = torch.where(targeted, predictions == state.target[:, None], predictions != state.examples.labels[:, None])
    return right.any(dim=1)


def remember(state: PatchState, reward: Tensor) -> PatchState:
    """Count the round, and keep the best patch seen so far."""
    first = reward.argmax(dim=1)
    slots = torch.arange(len(first), device=first.device)
    better = reward[slots, first] > state.best_reward
    return replace(
        state,
        round=state.round + 1,
        asked=state.asked + reward.shape[1],
        best=torch.where(better[:, None], state.actions[slots, first], state.best),
        best_reward=torch.where(better, reward[slots, first], state.best_reward),
    )


def advance(state: PatchState, ended: Tensor, *, patches: int) -> tuple[PatchState, Tensor]:
    """Fix the best patch where a search ended, and begin the next one; after the last, the slot is done.

    Returns:
      The state, and the slots that begin anew, int64, shape (M,).
    """
    last = state.fixed + 1 >= patches
    onward = ended & ~last
    rows = onward.nonzero()[:, 0]
    canvas = state.canvas
    if len(rows):
        canvas = canvas.index_copy(0, rows, pasted(state, rows, state.best[rows]))
    state = replace(
        state,
        canvas=canvas,
        fixed=state.fixed + onward,
        round=torch.where(onward, 0, state.round),
        best_reward=torch.where(onward, -torch.inf, state.best_reward),
        done=state.done | (ended & last),
    )
    return state, rows
