"""Rank intervals: which models are significantly better or worse than which, example by example.

Not here: the p-value of one pair (`comparison`).
"""

from collections.abc import Callable, Sequence
from functools import cache
from typing import TypeVar

from robench.comparison import z_test

LEVEL = 0.05
"""Of each comparison, two-sided; not corrected for how many there are."""

Scored = TypeVar("Scored")


def rank_intervals(scored: Sequence[Scored], better: Callable[[Scored, Scored], bool]) -> list[tuple[int, int]]:
    """Best and worst rank of each: 1 + those significantly better, n minus those significantly worse.

    Args:
      scored: what models did on the same examples.
      better: whether the first is significantly better than the second.
    """
    count = len(scored)
    above, below = [0] * count, [0] * count
    for a in range(count):
        for b in range(a + 1, count):
            if better(scored[a], scored[b]):
                above[b], below[a] = above[b] + 1, below[a] + 1
            elif better(scored[b], scored[a]):
                above[a], below[b] = above[a] + 1, below[b] + 1
    return [(1 + above[index], count - below[index]) for index in range(count)]


def more_examples(first: int, second: int) -> bool:
    """Exact McNemar test at `LEVEL`, on examples as bits: whether the first holds significantly more.

    Example:
      >>> more_examples(0b111111, 0b000000), more_examples(0b11111, 0b00000)
      (True, False)
    """
    only_first, only_second = (first & ~second).bit_count(), (second & ~first).bit_count()
    return only_first > only_second and only_second <= critical(only_first + only_second)


@cache
def critical(total: int) -> int:
    """The largest minority, of so many examples on which two models differ, that is significant; -1: none is."""
    tail, ways, whole = 0, 1, 1 << total
    for count in range(total // 2 + 1):
        tail += ways
        if 2 * tail / whole >= LEVEL:  # the numbers themselves may be larger than any float
            return count - 1
        ways = ways * (total - count) // (count + 1)
    return -1


def more_answers(first: Sequence[int], second: Sequence[int]) -> bool:
    """Paired z test at `LEVEL` of the mean difference of right answers about each example.

    Where answers are 0 or 1 this is McNemar's test in its normal approximation.
    """
    return sum(first) > sum(second) and z_test(first, second) < LEVEL
