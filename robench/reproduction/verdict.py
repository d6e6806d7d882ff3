"""Whether figures of ours agree with a claim: a test over training seeds, and one over images.

Two arms are compared by the difference of their mean accuracies. It has two intervals: over seeds (Welch: would other
trainings have given it?) and over images (paired: would other images?). A claim needs both, and at least `MIN_SEEDS`
seeds an arm.

Not here: where accuracies come from (`scores`), and how verdicts are shown (`report`).
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from robench.comparison import mcnemar
from robench.result import Derived

MIN_SEEDS = 3
"""Training seeds an arm without which nothing is said about a recipe or an architecture."""
LEVEL = 0.05
"""Of every test, two-sided; intervals are at 95 %."""

Word = Literal["agrees", "does not", "cannot tell"]
Interval = tuple[float, float]
Shares = Sequence[Sequence[float]]
"""For each seed, for each image in one order: the share of right answers, 0 or 1 where there is one."""


@dataclass(frozen=True)
class Difference:
    """Accuracy of an arm minus that of another.

    Attributes:
      value: difference of the means over seeds.
      over_seeds: interval and p-value of Welch's test; None with a single seed in an arm.
      over_images: paired interval over images; None of a single image.
      pairs: exact McNemar p-value of each seed that both arms have; none where an image is right in a share of
        several answers.
      seeds: of the arm that has fewer.
    """

    value: float
    over_seeds: tuple[Interval, float] | None
    over_images: Interval | None
    pairs: tuple[float, ...]
    seeds: int


def difference(arm: Shares, against: Shares) -> Difference:
    """Compare two arms on the same images; the seeds of both are in one order."""
    count = len(arm[0])
    if not count or any(len(shares) != count for shares in (*arm, *against)):
        raise ValueError("difference: every model needs a share for each image")
    means = [[math.fsum(shares) / count for shares in each] for each in (arm, against)]
    parts = [first - second for first, second in zip(_by_image(arm), _by_image(against), strict=True)]
    derived = Derived.of("difference", math.fsum(parts) / count, parts, "")
    pairs = tuple(
        _paired(first, second) for first, second in zip(arm, against, strict=False) if _whole(first) and _whole(second)
    )
    return Difference(derived.value, welch(*means), derived.interval, pairs, min(len(arm), len(against)))


def judge(found: Difference, expected: Literal["higher", "the same"], margin: float) -> Word:
    """Whether a difference agrees with a claim.

    "Higher" agrees if both intervals lie above 0, and does not if both lie below. "The same" agrees if both lie within
    the margin, and does not if both lie beyond it on one side.

    Args:
      found: of the arm that the claim is about, minus the other.
      expected: what is claimed.
      margin: points of 100 within which accuracies are the same.
    """
    if found.seeds < MIN_SEEDS or found.over_seeds is None or found.over_images is None:
        return "cannot tell"
    intervals = (found.over_seeds[0], found.over_images)
    low, high = min(low for low, _ in intervals), max(high for _, high in intervals)
    if expected == "higher":
        return "agrees" if low > 0 else "does not" if high < 0 else "cannot tell"
    within = margin / 100
    if -within <= low and high <= within:
        return "agrees"
    return "does not" if low > within or high < -within else "cannot tell"


def welch(arm: Sequence[float], against: Sequence[float]) -> tuple[Interval, float] | None:
    """95 % interval and two-sided p-value of a difference of means with variances of their own.

    Returns:
      None where a side has a single value.
    References:
      Welch 1947, "The generalization of Student's problem when several different population variances are involved".
    """
    if min(len(arm), len(against)) < 2:
        return None
    middle = math.fsum(arm) / len(arm) - math.fsum(against) / len(against)
    parts = [(_variance(each) / len(each), len(each) - 1) for each in (arm, against)]
    variance = parts[0][0] + parts[1][0]
    if variance == 0:
        return (middle, middle), float(middle == 0)
    degrees = variance**2 / math.fsum(part**2 / freedom for part, freedom in parts)
    half = student_quantile(LEVEL, degrees) * math.sqrt(variance)
    return (middle - half, middle + half), student_tails(middle / math.sqrt(variance), degrees)


def mean_interval(values: Sequence[float]) -> Interval | None:
    """95 % interval of the mean over seeds, Student's; None of a single value."""
    if len(values) < 2:
        return None
    middle, degrees = math.fsum(values) / len(values), len(values) - 1
    half = student_quantile(LEVEL, degrees) * math.sqrt(_variance(values) / len(values))
    return middle - half, middle + half


def student_tails(t: float, degrees: float) -> float:
    """Chance that Student's variable lies at least as far from 0 as `t`.

    With t = sqrt(degrees) tan(a), its density becomes that of cos(a)^(degrees - 1) on (-pi/2, pi/2), which Simpson's
    rule integrates.
    """
    end, steps = math.pi / 2, 1000
    begin = math.atan(abs(t) / math.sqrt(degrees))
    width = (end - begin) / steps
    weights = [1, *(4 if index % 2 else 2 for index in range(1, steps)), 1]
    heights = [max(math.cos(begin + index * width), 0.0) ** (degrees - 1) for index in range(steps + 1)]
    area = width / 3 * math.fsum(weight * height for weight, height in zip(weights, heights, strict=True))
    log_norm = math.lgamma((degrees + 1) / 2) - math.lgamma(degrees / 2) - math.log(math.pi) / 2
    return min(1.0, 2 * math.exp(log_norm) * area)


def student_quantile(level: float, degrees: float) -> float:
    """How far from 0 Student's variable lies with this chance; by halving."""
    low, high = 0.0, 1.0
    while student_tails(high, degrees) > level:
        high *= 2
    for _ in range(40):
        middle = (low + high) / 2
        low, high = (middle, high) if student_tails(middle, degrees) > level else (low, middle)
    return (low + high) / 2


def _variance(values: Sequence[float]) -> float:
    middle = math.fsum(values) / len(values)
    return math.fsum((value - middle) ** 2 for value in values) / (len(values) - 1)


def _by_image(arm: Shares) -> list[float]:
    """Mean over seeds of each image's shares."""
    return [math.fsum(shares) / len(arm) for shares in zip(*arm, strict=True)]


def _whole(shares: Sequence[float]) -> bool:
    return all(share in (0.0, 1.0) for share in shares)


def _paired(arm: Sequence[float], against: Sequence[float]) -> float:
    pairs = list(zip(arm, against, strict=True))
    return mcnemar(pairs.count((1.0, 0.0)), pairs.count((0.0, 1.0)))
