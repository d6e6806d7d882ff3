import math
from dataclasses import replace
from itertools import product
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from robench.comparison import Comparison, compare, mcnemar, paired_difference_interval, z_test
from robench.errors import RunError
from robench.outcome import Outcome
from robench.runs import Run
from tests.test_protocol import MISSING, protocol
from tests.test_runs import OUTCOMES, finished_run, plan

COUNTS = st.tuples(st.integers(0, 300), st.integers(0, 300), st.integers(0, 300), st.integers(0, 300)).filter(any)

# --- McNemar's test


@given(st.integers(0, 400), st.integers(0, 400))
@settings(max_examples=80, deadline=None, derandomize=True)
def test_mcnemar_is_a_fair_coin(only_a: int, only_b: int) -> None:
    total = only_a + only_b
    reference = stats.binomtest(only_a, total, 0.5).pvalue if total else 1.0
    assert mcnemar(only_a, only_b) == pytest.approx(reference, rel=1e-9)
    assert mcnemar(only_b, only_a) == mcnemar(only_a, only_b)


@pytest.mark.parametrize(("only_a", "only_b"), [(0, 0), (7, 7), (1, 0)])
def test_mcnemar_is_at_most_one(only_a: int, only_b: int) -> None:
    assert mcnemar(only_a, only_b) == 1.0


def test_mcnemar_is_exact_and_quick_on_fifty_thousand_images() -> None:
    assert mcnemar(24_600, 25_400) == pytest.approx(stats.binomtest(24_600, 50_000).pvalue, rel=1e-9)
    assert mcnemar(0, 50_000) == 0.0  # smaller than any float


# --- the interval of a paired difference


@given(COUNTS)
@settings(max_examples=80, deadline=None, derandomize=True)
def test_the_interval_holds_the_difference_and_mirrors(counts: tuple[int, int, int, int]) -> None:
    both, only_a, only_b, neither = counts
    low, high = paired_difference_interval(both, only_a, only_b, neither)
    assert -1 <= low <= (only_b - only_a) / sum(counts) <= high <= 1
    swapped = paired_difference_interval(both, only_b, only_a, neither)
    assert swapped == pytest.approx((-high, -low), abs=1e-12)
    failures = paired_difference_interval(neither, only_a, only_b, both)  # failures in place of successes
    assert failures == pytest.approx((low, high), abs=1e-12)


@pytest.mark.parametrize(
    ("both", "only_a", "only_b", "neither"), [(0, 0, 7, 13), (0, 7, 0, 13), (13, 7, 0, 0), (13, 0, 7, 0), (0, 0, 20, 0)]
)
def test_without_correlation_it_combines_two_wilson_intervals(
    both: int, only_a: int, only_b: int, neither: int
) -> None:
    """One model is always or never right, so the correlation is 0 by definition."""
    total, right_a, right_b = both + only_a + only_b + neither, both + only_a, both + only_b
    a = stats.binomtest(right_a, total).proportion_ci(method="wilson")
    b = stats.binomtest(right_b, total).proportion_ci(method="wilson")
    low = (right_b - right_a) / total - math.hypot(right_b / total - b.low, a.high - right_a / total)
    high = (right_b - right_a) / total + math.hypot(b.high - right_b / total, right_a / total - a.low)
    found = paired_difference_interval(both, only_a, only_b, neither)
    assert found == pytest.approx((max(low, -1), min(high, 1)), abs=1e-12)


@pytest.mark.parametrize("shares", [(0.5, 0.1, 0.2, 0.2), (0.1, 0.3, 0.3, 0.3), (0.6, 0.05, 0.01, 0.34)])
def test_on_many_examples_it_is_the_normal_interval(shares: tuple[float, float, float, float]) -> None:
    total = 10**8
    both, only_a, only_b, neither = (round(share * total) for share in shares)
    difference = (only_b - only_a) / total
    half = stats.norm.ppf(0.975) * math.sqrt(((only_a + only_b) / total - difference**2) / total)
    low, high = paired_difference_interval(both, only_a, only_b, neither)
    assert difference - low == pytest.approx(half, rel=1e-3)
    assert high - difference == pytest.approx(half, rel=1e-3)


@pytest.mark.parametrize(
    "shares", [(0.4, 0.1, 0.2, 0.3), (0.3, 0.15, 0.15, 0.4), (0.85, 0.05, 0.05, 0.05), (0.1, 0.4, 0.4, 0.1)]
)
def test_its_exact_coverage_on_forty_examples(shares: tuple[float, float, float, float]) -> None:
    """Every table of 40 examples, weighed by its probability."""
    total, truth = 40, shares[2] - shares[1]
    tables = [
        (both, only_a, only_b, total - both - only_a - only_b)
        for both, only_a, only_b in product(range(total + 1), repeat=3)
        if both + only_a + only_b <= total
    ]
    weights = stats.multinomial.pmf(np.array(tables), total, shares)
    assert weights.sum() == pytest.approx(1)
    bounds = np.array([paired_difference_interval(*table) for table in tables])
    covered = (bounds[:, 0] <= truth) & (truth <= bounds[:, 1])
    assert 0.94 <= float(weights[covered].sum()) <= 0.99


@pytest.mark.parametrize("shares", [(0.4, 0.04, 0.06, 0.5), (0.2, 0.2, 0.1, 0.5), (0.02, 0.02, 0.03, 0.93)])
def test_its_coverage_on_the_mini_suite(shares: tuple[float, float, float, float]) -> None:
    draws = np.random.default_rng(0).multinomial(512, shares, size=4000)
    truth, covered = shares[2] - shares[1], 0
    for table in draws.tolist():
        low, high = paired_difference_interval(*table)
        covered += low <= truth <= high
    assert 0.94 <= covered / len(draws) <= 0.965  # the standard error is 0.0034


# --- two runs


def _comparison(tmp_path: Path, counts: tuple[int, int, int, int]) -> Comparison:
    result = finished_run(tmp_path)
    return Comparison(result, result, *counts)


def test_a_comparison_counts_in_one_direction(tmp_path: Path) -> None:
    found = _comparison(tmp_path, (50, 10, 25, 15))
    assert found.total == 100
    assert found.difference == 0.15  # B minus A
    assert found.interval == paired_difference_interval(50, 10, 25, 15)
    assert found.p_value == pytest.approx(stats.binomtest(10, 35).pvalue)


def test_b_is_not_inferior_when_its_lower_bound_is_above_the_margin(tmp_path: Path) -> None:
    found = _comparison(tmp_path, (400, 10, 10, 92))
    low = -100 * found.interval[0]
    assert 0 < low < 5
    assert found.non_inferior(low + 0.01)
    assert not found.non_inferior(low - 0.01)
    assert not found.non_inferior(0)


def test_two_runs_are_paired_example_by_example(tmp_path: Path) -> None:
    # Robust at step 10 under A: e0, e4, e5. B loses e0 and gains e1 and e6.
    others = [
        replace(OUTCOMES[0], fooled_at=(9,)),
        replace(OUTCOMES[1], fooled_at=()),
        *OUTCOMES[2:6],
        replace(OUTCOMES[6], fooled_at=()),
    ]
    a, b = finished_run(tmp_path / "a"), finished_run(tmp_path / "b", others)
    found = compare(tmp_path / "a", tmp_path / "b")
    assert (found.both, found.only_a, found.only_b, found.neither) == (2, 1, 2, 2)
    assert (found.a.to_bytes(), found.b.to_bytes()) == (a.to_bytes(), b.to_bytes())
    assert found.both + found.only_a == a.headline.numerator
    assert found.both + found.only_b == b.headline.numerator
    back = compare(tmp_path / "b", tmp_path / "a")
    assert (back.both, back.only_a, back.only_b, back.neither) == (2, 2, 1, 2)


def _finished_under(folder: Path, outcomes: list[Outcome], **changes: object) -> None:
    content = protocol(**changes).model_dump(mode="json", by_alias=True, exclude_none=True)
    finished_run(folder, outcomes, plan(outcomes).model_copy(update={"protocol": content}))


def test_the_protocol_says_what_counts(tmp_path: Path) -> None:
    others = [replace(OUTCOMES[0], clean=1), *OUTCOMES[1:]]
    for name, outcomes in (("a", OUTCOMES), ("b", others)):
        _finished_under(tmp_path / f"last-{name}", outcomes, score__scoring="last iterate")
        _finished_under(tmp_path / f"none-{name}", outcomes, attack=MISSING, budget=MISSING, score=MISSING)
    last = compare(tmp_path / "last-a", tmp_path / "last-b")
    assert (last.both, last.only_a, last.only_b, last.neither) == (4, 1, 0, 2)
    clean = compare(tmp_path / "none-a", tmp_path / "none-b")
    assert (clean.both, clean.only_a, clean.only_b, clean.neither) == (5, 1, 0, 1)


def test_other_protocols_are_not_compared(tmp_path: Path) -> None:
    finished_run(tmp_path / "a")
    _finished_under(tmp_path / "b", OUTCOMES, version=3)
    with pytest.raises(RunError) as caught:
        compare(tmp_path / "a", tmp_path / "b")
    assert str(caught.value) == (
        f"compare {tmp_path / 'a'} {tmp_path / 'b'}: `protocol` is toy-pgd@2 and toy-pgd@3; expected one protocol. "
        "Evaluate both under the same one."
    )


def test_other_examples_are_not_compared(tmp_path: Path) -> None:
    finished_run(tmp_path / "a")
    finished_run(tmp_path / "b", OUTCOMES[:3], plan(OUTCOMES[:3], limit=3))
    finished_run(tmp_path / "c", OUTCOMES[::-1])
    for other, count in (("b", 3), ("c", 7)):
        with pytest.raises(RunError) as caught:
            compare(tmp_path / "a", tmp_path / other)
        assert str(caught.value) == (
            f"compare {tmp_path / 'a'} {tmp_path / other}: `ids` is 7 and {count} examples that differ; "
            "expected the same examples. Use the same data and `--limit`."
        )


def test_an_unfinished_run_is_not_compared(tmp_path: Path) -> None:
    finished_run(tmp_path / "a")
    Run.create(tmp_path / "b", plan())
    with pytest.raises(
        RunError, match=r"b: `result\.json` is missing; expected a finished run\. Finish the run first:"
    ):
        compare(tmp_path / "a", tmp_path / "b")


# --- counts


@settings(max_examples=200)
@given(st.lists(st.tuples(st.integers(0, 1), st.integers(0, 1)), min_size=1, max_size=60))
def test_the_z_test_of_zeros_and_ones_is_mcnemars_normal_approximation(pairs: list[tuple[int, int]]) -> None:
    first, second = [a for a, _ in pairs], [b for _, b in pairs]
    only_a, only_b = pairs.count((1, 0)), pairs.count((0, 1))
    expected = stats.chi2.sf((only_a - only_b) ** 2 / (only_a + only_b), 1) if only_a + only_b else 1.0
    assert z_test(first, second) == pytest.approx(expected)
    assert z_test(second, first) == z_test(first, second)
