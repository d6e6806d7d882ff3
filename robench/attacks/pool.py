"""The slots of one stage: who sits in them, who waits, and the tensors that go with each.

Not here: when a pool runs, and what becomes of its answers (`drive.py`).
"""

from collections import deque
from dataclasses import dataclass
from itertools import islice
from typing import Any

import torch
from torch import Tensor

from robench.arrays import batch_of, join, place, take
from robench.attacks.interface import Attack, Examples, SearchingAttack
from robench.attacks.record import Record
from robench.budgets import Budget
from robench.randomness import Draws

ENOUGH = 16
"""Slots that are stepped together as fast as more of them, where each asks for many images."""


@dataclass(frozen=True)
class Stage:
    """An attack and how its iterates are scored.

    Attributes:
      attack: the attack.
      read_off: None scores any iterate: the first confirmed adversarial image ends the example. Steps
        score the iterates at these steps alone, and the attack always runs to its end. An empty set scores
        none: every example, right clean or not, runs to the end for the final image of an `EndingAttack`.
    """

    attack: Attack
    read_off: frozenset[int] | None = None

    @property
    def to_the_end(self) -> bool:
        """Whether no image counts on the way."""
        return self.read_off is not None and not self.read_off


@dataclass(frozen=True)
class Slots:
    """The state of the attack and the margin to report, slot by slot."""

    state: Any
    margin: Tensor


class Pool:
    """The slots of one stage, and the records that wait for one.

    Args:
      stage: whose slots they are.
      budget: what its attack may change.
      seed: of the examples' random numbers.
      device: where the tensors lie.
    """

    def __init__(self, stage: Stage, budget: Budget, seed: int, device: torch.device) -> None:
        self.stage = stage
        self.records: list[Record | None] = []
        self.waiting: deque[tuple[Record, Slots | None]] = deque()
        self.rows_a_slot = stage.attack.images_a_slot if isinstance(stage.attack, SearchingAttack) else 1
        """Images that each slot asks for at a time."""
        self._slots: Slots | None = None
        self._budget, self._seed, self._device = budget, seed, device

    @property
    def slots(self) -> Slots:
        """The tensors of all slots, empty ones included; there are some once `fill` had work."""
        assert self._slots is not None, "a pool is filled before it is used"
        return self._slots

    @slots.setter
    def slots(self, slots: Slots) -> None:
        self._slots = slots

    @property
    def work(self) -> int:
        """Records in slots or waiting."""
        return sum(record is not None for record in self.records) + len(self.waiting)

    def capacity(self, rows: int) -> int:
        """Slots that pay where the model is shown so many images at a time.

        Where each slot asks for many images a few of them fill every batch; with more, what they remember would no
        longer fit into the cache.
        """
        return min(rows, max(rows // self.rows_a_slot, ENOUGH))

    def fill(self, capacity: int, least: int, *, halving: bool = False) -> None:
        """Put waiting records into free slots, and drop slots that stay empty.

        Args:
          capacity: slots there may be.
          least: so many slots are kept, filled or not, or a multiple of them.
          halving: drop half of the slots, or none; where `least` is 1, all that are empty.
        """
        free = [slot for slot, record in enumerate(self.records) if record is None]
        free += range(len(self.records), min(capacity, len(self.records) + len(self.waiting)))
        newcomers = list(islice(self.waiting, len(free)))
        if newcomers:
            back = [(record, parked) for record, parked in newcomers if parked is not None]
            fresh = [record for record, parked in newcomers if parked is None]
            incoming = [parked for _, parked in back] + ([self._fresh(fresh)] if fresh else [])
            self._seat(free[: len(newcomers)], [record for record, _ in back] + fresh, _joined(incoming))
            for _ in newcomers:  # only now: where memory runs out, they still wait
                self.waiting.popleft()
        busy = [slot for slot, record in enumerate(self.records) if record is not None]
        if halving and least > 1:
            kept = max(len(self.records) // 2, least)
            kept = kept if len(busy) <= kept else len(self.records)
        else:
            kept = -(-len(busy) // least) * least
        if kept < len(self.records):
            idle = [slot for slot, record in enumerate(self.records) if record is None]
            self._keep(busy + idle[: kept - len(busy)])

    def parked(self, slot: int) -> Slots:
        """A copy of one slot, to be seated again later."""
        return take(self.slots, self._rows([slot]))

    def shrink(self, capacity: int) -> None:
        """Send the records in slots that are no more to the head of the queue, states included."""
        if len(self.records) <= capacity:
            return
        for slot in reversed(range(capacity, len(self.records))):
            record = self.records[slot]
            if record is not None:
                self.waiting.appendleft((record, self.parked(slot)))
        self._keep(list(range(capacity)))

    def _seat(self, seats: list[int], records: list[Record], incoming: Slots) -> None:
        present = len(self.records)
        old = [row for row, slot in enumerate(seats) if slot < present]
        new = [row for row, slot in enumerate(seats) if slot >= present]
        if old:
            newcomers = take(incoming, self._rows(old)) if new else incoming
            self.slots = place(self.slots, self._rows([seats[row] for row in old]), newcomers)
        if new:
            added = take(incoming, self._rows(new))
            self.slots = added if self._slots is None else join([self._slots, added])
            self.records += [None] * len(new)
        for row, slot in enumerate(seats):
            self.records[slot] = records[row]

    def _fresh(self, records: list[Record]) -> Slots:
        """Slots of records that enter the stage."""
        examples = Examples(
            images=batch_of([record.example.image for record in records], self._device),
            labels=torch.tensor([record.example.label for record in records], device=self._device),
            logits=torch.stack([record.logits for record in records]),
        )
        draws = Draws.of(self._seed, [record.example.id for record in records], self._device)
        lowest = torch.tensor([record.attacked_margin for record in records], device=self._device)
        return Slots(self.stage.attack.start(examples, self._budget, draws), lowest)

    def _keep(self, kept: list[int]) -> None:
        self.slots = take(self.slots, self._rows(kept))
        self.records = [self.records[slot] for slot in kept]

    def _rows(self, slots: list[int]) -> Tensor:
        return torch.tensor(slots, dtype=torch.int64, device=self._device)


def _joined(slots: list[Slots]) -> Slots:
    return join(slots) if len(slots) > 1 else slots[0]
