import random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from robench.leaderboard.ranks import LEVEL, critical, more_answers, more_examples, rank_intervals


@given(st.integers(0, 2**40 - 1), st.integers(0, 2**40 - 1))
@settings(max_examples=200, deadline=None, derandomize=True)
def test_significance_is_scipys_binomial_test(first: int, second: int) -> None:
    only = [bin(first & ~second).count("1"), bin(second & ~first).count("1")]
    p = stats.binomtest(only[0], sum(only), 0.5).pvalue if sum(only) else 1.0
    assert more_examples(first, second) == (only[0] > only[1] and p < LEVEL)


@pytest.mark.parametrize("total", [0, 1, 5, 6, 7, 100, 1001])
def test_the_critical_count_is_the_last_significant_one(total: int) -> None:
    significant = [k for k in range(total // 2 + 1) if total and stats.binomtest(k, total, 0.5).pvalue < LEVEL]
    assert critical(total) == (significant[-1] if significant else -1)


@pytest.mark.parametrize("total", [1025, 5000])
def test_many_examples_on_which_models_differ_are_tested_exactly(total: int) -> None:
    """More than the exponent of a float holds."""
    last = critical(total)
    assert stats.binomtest(last, total, 0.5).pvalue < LEVEL <= stats.binomtest(last + 1, total, 0.5).pvalue
    assert more_examples((1 << total) - 1, 0)


def test_ranks_by_hand() -> None:
    """Better means larger by more than one."""
    assert rank_intervals([5, 4, 1, 9], lambda a, b: a > b + 1) == [(2, 3), (2, 3), (4, 4), (1, 1)]
    assert rank_intervals([1, 1, 1], lambda a, b: a > b) == [(1, 3), (1, 3), (1, 3)]
    assert rank_intervals([], lambda a, b: a > b) == []


@given(st.lists(st.integers(0, 2**30 - 1), min_size=1, max_size=8))
@settings(max_examples=50, deadline=None, derandomize=True)
def test_ranks_hold_the_place_of_each(held: list[int]) -> None:
    order = sorted(range(len(held)), key=lambda index: -held[index].bit_count())
    intervals = rank_intervals(held, more_examples)
    for index, (best, worst) in enumerate(intervals):
        assert 1 <= best <= order.index(index) + 1 <= worst <= len(held)


def test_answers_that_are_0_or_1_are_tested_as_examples_are() -> None:
    """In the normal approximation: the two may differ at the edge alone."""
    chance, agree = random.Random(0), 0
    for _ in range(200):
        first, second = ([int(chance.random() < rate) for _ in range(300)] for rate in (0.6, chance.uniform(0.3, 0.6)))
        bits = [int("".join(map(str, each)), 2) for each in (first, second)]
        agree += more_answers(first, second) == more_examples(*bits)
    assert agree >= 190


def test_answers_are_significant_as_often_as_stated_where_nothing_differs() -> None:
    chance, found = random.Random(1), 0
    for _ in range(2000):
        first, second = ([sum(chance.random() < 0.7 for _ in range(5)) for _ in range(60)] for _ in range(2))
        found += more_answers(first, second) or more_answers(second, first)
    assert 60 <= found <= 140  # 100 expected, within four standard errors
    assert not more_answers([3, 3], [3, 3])
