"""The attack set of the mini suite, clean and corrupted; made when it is asked for, from pinned seeds.

Not here: the corruptions (`robench.data.corruptions`).
"""

import itertools
from collections.abc import Iterable, Iterator, Sequence

import torch
from torch import Tensor

from robench.data.arrays import ArraySource
from robench.data.corruptions import Ice, Scale, corrupt
from robench.data.mini import CLASSES, attack_set, attack_set_ids
from robench.data.source import CLEAN

SCALE: Scale = "tiny"
ICE: Ice = "procedural"
"""Frost is made of procedural ice, whether or not the published photographs are installed."""
_TOGETHER = 16
"""Examples that are corrupted together; all their views are in memory at once."""


class MiniCells(ArraySource):
    """The attack set, clean and in cells.

    Args:
      cells: corruption and severity of each.
    """

    def __init__(self, cells: Sequence[tuple[str, int]]) -> None:
        images, labels = attack_set()
        super().__init__(images, labels, classes=CLASSES, ids=attack_set_ids(), name="mini-c")
        self._cells = list(cells)
        self.view_names = [CLEAN, *(f"{corruption}/{severity}" for corruption, severity in cells)]

    def views(self, positions: Iterable[int]) -> Iterator[Tensor]:
        drawn = iter(positions)
        while part := list(itertools.islice(drawn, _TOGETHER)):
            clean = torch.stack([self.bytes_of(position) for position in part])
            ids = [self.ids[position] for position in part]
            views = [clean, *(corrupt(clean, ids, *cell, seed=0, scale=SCALE, ice=ICE) for cell in self._cells)]
            yield from torch.stack(views, dim=1).flatten(0, 1)
