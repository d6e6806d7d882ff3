"""Which word a claim gets, from seeds and images that were made up; tests beside scipy's."""

import numpy as np
import pytest
import scipy.stats
from numpy.typing import NDArray

from robench.reproduction.verdict import (
    Difference,
    difference,
    judge,
    mean_interval,
    student_quantile,
    student_tails,
    welch,
)


@pytest.mark.parametrize("degrees", [1, 2, 2.7, 3.99, 4, 10, 511])
@pytest.mark.parametrize("t", [0.0, 0.3, -1.0, 2.776, 12.7, 80.0])
def test_students_tails_are_scipys(t: float, degrees: float) -> None:
    assert student_tails(t, degrees) == pytest.approx(2 * scipy.stats.t.sf(abs(t), degrees), rel=1e-5, abs=1e-9)


@pytest.mark.parametrize("degrees", [1, 2, 3.3, 4, 511])
def test_students_quantiles_are_scipys(degrees: float) -> None:
    assert student_quantile(0.05, degrees) == pytest.approx(scipy.stats.t.ppf(0.975, degrees), rel=1e-5)


def test_welchs_test_is_scipys() -> None:
    arm, against = [0.61, 0.64, 0.58], [0.52, 0.57, 0.56, 0.55]
    expected = scipy.stats.ttest_ind(arm, against, equal_var=False)
    low, high = expected.confidence_interval(0.95)
    found = welch(arm, against)
    assert found is not None
    assert found[0] == pytest.approx((low, high), rel=1e-5)
    assert found[1] == pytest.approx(expected.pvalue, rel=1e-5)


def test_welchs_test_without_spread_or_seeds() -> None:
    assert welch([0.5], [0.4, 0.3, 0.2]) is None
    assert welch([0.0, 0.0, 0.0], [0.0, 0.0, 0.0]) == ((0.0, 0.0), 1.0)
    assert welch([0.5, 0.5], [0.25, 0.25]) == ((0.25, 0.25), 0.0)


def test_the_interval_over_seeds_is_scipys() -> None:
    values = [0.61, 0.64, 0.58]
    expected = scipy.stats.t.interval(0.95, 2, np.mean(values), scipy.stats.sem(values))
    assert mean_interval(values) == pytest.approx(expected, rel=1e-5)
    assert mean_interval([0.5]) is None


def _arm(*rates: float, images: int = 400) -> list[list[float]]:
    """Models that are right on the first so many images of a random order, the same for all arms."""
    order = np.random.default_rng(0).permutation(images)
    return [(order < rate * images).astype(float).tolist() for rate in rates]


def test_a_difference_has_both_intervals_and_the_tests_of_each_seed() -> None:
    arm, against = np.array(_arm(0.60, 0.66, 0.63)), np.array(_arm(0.50, 0.52, 0.57))
    found = difference(arm.tolist(), against.tolist())
    parts: NDArray[np.float64] = arm.mean(axis=0) - against.mean(axis=0)
    assert found.value == pytest.approx(parts.mean(), abs=1e-6)
    expected = scipy.stats.t.interval(0.95, len(parts) - 1, parts.mean(), scipy.stats.sem(parts))
    assert found.over_images == pytest.approx(expected, abs=1e-5)
    assert found.over_seeds is not None
    over_seeds = scipy.stats.ttest_ind(arm.mean(axis=1), against.mean(axis=1), equal_var=False)
    assert found.over_seeds[1] == pytest.approx(over_seeds.pvalue, rel=1e-5)
    for first, second, p_value in zip(arm, against, found.pairs, strict=True):
        only = int(((first == 1) & (second == 0)).sum()), int(((first == 0) & (second == 1)).sum())
        assert p_value == pytest.approx(scipy.stats.binomtest(only[0], sum(only)).pvalue)
    assert found.seeds == 3


def test_shares_of_several_answers_have_no_test_of_their_own() -> None:
    assert difference([[0.2, 1.0], [0.4, 0.8]], [[0.1, 0.9], [0.3, 0.7]]).pairs == ()


def test_arms_on_other_images_are_refused() -> None:
    with pytest.raises(ValueError, match="every model needs a share for each image"):
        difference([[1.0, 0.0]], [[1.0]])


HIGHER, LOWER, NEAR = _arm(0.60, 0.62, 0.61), _arm(0.40, 0.42, 0.41), _arm(0.605, 0.615, 0.61)
WIDE = _arm(0.30, 0.62, 0.95)


@pytest.mark.parametrize(
    ("arm", "against", "expected", "word"),
    [
        (HIGHER, LOWER, "higher", "agrees"),
        (LOWER, HIGHER, "higher", "does not"),
        (NEAR, HIGHER, "higher", "cannot tell"),
        (WIDE, LOWER, "higher", "cannot tell"),  # images say so, seeds do not
        (HIGHER[:2], LOWER[:2], "higher", "cannot tell"),  # two seeds
        (HIGHER, LOWER[:1], "higher", "cannot tell"),  # one seed on one side
        (NEAR, HIGHER, "the same", "agrees"),
        (HIGHER, LOWER, "the same", "does not"),
        (LOWER, HIGHER, "the same", "does not"),
        (WIDE, HIGHER, "the same", "cannot tell"),
        (NEAR[:2], HIGHER[:2], "the same", "cannot tell"),
    ],
)
def test_the_word(arm: list[list[float]], against: list[list[float]], expected: str, word: str) -> None:
    assert judge(difference(arm, against), expected, 3.0) == word  # type: ignore[arg-type]  # one of two words


def test_both_intervals_count() -> None:
    """Seeds that agree on few images: the difference may be one of these images."""
    few = difference(_arm(0.7, 0.7, 0.8, images=10), _arm(0.4, 0.4, 0.5, images=10))
    assert few.over_seeds is not None
    assert few.over_images is not None
    assert few.over_seeds[0][0] > 0 > few.over_images[0]
    assert judge(few, "higher", 3.0) == "cannot tell"


@pytest.mark.parametrize(("margin", "word"), [(3.0, "agrees"), (1.0, "cannot tell")])
def test_the_margin_decides_what_is_the_same(margin: float, word: str) -> None:
    found = Difference(0.01, ((-0.005, 0.025), 0.1), (0.0, 0.02), (), 3)
    assert judge(found, "the same", margin) == word
