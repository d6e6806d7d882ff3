"""Compares two runs on the same examples: a paired test, and non-inferiority within a margin.

Not here: ranks over many models (`leaderboard`).
"""

import math
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from robench.errors import RunError, complaint
from robench.intervals import wilson
from robench.lines import line_of
from robench.outcome import Outcome
from robench.protocol import Protocol
from robench.result import Derived, Metric, Result, holds, read_result
from robench.runs import Run
from robench.shift import EFFECTIVE_ROBUSTNESS, over_reference, right_cells, scored


@dataclass(frozen=True)
class Comparison:
    """Two models on the same examples under the same protocol.

    Attributes:
      both, only_a, only_b, neither: examples on which both, one or none is robust.
      p_value: exact two-sided McNemar test of equal rates.
      difference: rate of B minus rate of A.
      interval: 95 % interval of the difference.
    """

    a: Result
    b: Result
    both: int
    only_a: int
    only_b: int
    neither: int

    @property
    def total(self) -> int:
        return self.both + self.only_a + self.only_b + self.neither

    @property
    def p_value(self) -> float:
        return mcnemar(self.only_a, self.only_b)

    @property
    def difference(self) -> float:
        return (self.only_b - self.only_a) / self.total

    @property
    def interval(self) -> tuple[float, float]:
        return paired_difference_interval(self.both, self.only_a, self.only_b, self.neither)

    def non_inferior(self, margin: float) -> bool:
        """Whether B is shown to be at most `margin` points (of 100) worse than A, at the 2.5 % level."""
        return self.interval[0] > -margin / 100


def compare(run_a: Path, run_b: Path) -> Comparison:
    """Compare two finished runs, example by example, at the headline of their protocol.

    Raises:
      RunError: a run is not finished, the two differ in protocol or examples, or their protocol counts more about each
        example than right or wrong.
    """
    protocol, (a, outcomes_a), (b, outcomes_b) = _paired(run_a, run_b)
    if counted(protocol) is not None:
        found, expected = f"{protocol.exact_name}, which counts more", "examples that are right or wrong"
        raise RunError(complaint(f"compare {run_a} {run_b}", "protocol", found, expected, "Use `compare_means`."))
    pairs = [
        (holds(protocol, first), holds(protocol, second))
        for first, second in zip(outcomes_a, outcomes_b, strict=True)
        if protocol.shift is None or scored(protocol, first)
    ]
    return Comparison(
        a,
        b,
        both=pairs.count((True, True)),
        only_a=pairs.count((True, False)),
        only_b=pairs.count((False, True)),
        neither=pairs.count((False, False)),
    )


def counted(protocol: Protocol) -> Callable[[Outcome], int] | None:
    """What a protocol counts about each example; None where examples are just right or wrong.

    Right answers, right cells, or right minus right of its reference model.
    """
    if protocol.score.asks is not None:
        return lambda outcome: outcome.attacked_right or 0
    if protocol.shift is not None and protocol.shift.kind == "corruptions":
        return partial(right_cells, protocol)
    if protocol.shift is not None and protocol.shift.reference is not None:
        return partial(over_reference, protocol)
    return None


@dataclass(frozen=True)
class MeanComparison:
    """Two models on the same examples under a protocol that counts something about each.

    Attributes:
      whole: mean of B minus mean of A at the number that ranks, paired by example.
      p_value: two-sided, of a paired z test.
    """

    a: Result
    b: Result
    whole: Derived
    p_value: float

    @property
    def difference(self) -> float:
        return self.whole.value

    @property
    def interval(self) -> tuple[float, float]:
        return self.whole.interval or (-1.0, 1.0)

    def non_inferior(self, margin: float) -> bool:
        """Whether B is shown to be at most `margin` points (of 100) worse than A, at the 2.5 % level."""
        return self.interval[0] > -margin / 100


def compare_means(run_a: Path, run_b: Path) -> MeanComparison:
    """Compare two finished runs by what their protocol counts about each example.

    Where there is a reference model, the images may be of two copies of the data.

    Raises:
      RunError: as `compare`, but for what is counted.
    """
    protocol, (a, outcomes_a), (b, outcomes_b) = _paired(run_a, run_b)
    count = counted(protocol)
    if count is None:
        found, expected = f"{protocol.exact_name}, under which they are right or wrong", "a count about each example"
        raise RunError(complaint(f"compare {run_a} {run_b}", "protocol", found, expected, "Use `compare`."))
    most = protocol.score.asks or len(protocol.shift.cells if protocol.shift is not None else ()) or 1
    first, second = list(map(count, outcomes_a)), list(map(count, outcomes_b))
    parts = [(after - before) / most for before, after in zip(first, second, strict=True)]
    note = "mean over examples of the difference of what is counted about them"
    whole = Derived.of("difference", math.fsum(parts) / len(parts), parts, note)
    return MeanComparison(a, b, whole, z_test(first, second))


def compares_means(run: Path) -> bool:
    """Whether a run's protocol counts something about each example; not, where there is no run."""
    return (run / "plan.json").exists() and counted(Run.open(run).plan.parsed_protocol()) is not None


Half = tuple[Result, list[Outcome]]


def _paired(run_a: Path, run_b: Path) -> tuple[Protocol, Half, Half]:
    """The protocol of two runs, and their results and outcomes, which pair up."""
    a, b = read_result(run_a), read_result(run_b)
    where = f"compare {run_a} {run_b}"
    if a.protocol.digest != b.protocol.digest:
        names = [f"{run.protocol.id}@{run.protocol.version}" for run in (a, b)]
        raise RunError(
            complaint(where, "protocol", " and ".join(names), "one protocol", "Evaluate both under the same one.")
        )
    if a.attack_revision != b.attack_revision:
        revisions = f"{a.attack_revision} and {b.attack_revision}"
        raise RunError(complaint(where, "attack_revision", revisions, "one revision", "Evaluate the older run again."))
    protocol = Run.open(run_a).plan.parsed_protocol()
    outcomes_a, outcomes_b = a.read_outcomes(), b.read_outcomes()
    same_pixels = a.data.pixels_sha256 == b.data.pixels_sha256 or (a.data.official and b.data.official)
    if protocol.shift is not None and protocol.shift.reference is not None:
        same_pixels = True  # copies may differ: that is what the reference model is for
    pairs_up = [(o.id, o.label) for o in outcomes_a] == [(o.id, o.label) for o in outcomes_b]
    if not (pairs_up and same_pixels):
        found = f"{len(outcomes_a)} and {len(outcomes_b)} examples that differ"
        raise RunError(complaint(where, "ids", found, "the same examples", "Use the same data and `--limit`."))
    return protocol, (a, outcomes_a), (b, outcomes_b)


def effective_robustness(shifted: Result, clean: Result) -> Derived | None:
    """How far accuracy on shifted images lies above what clean accuracy on other images leads to expect.

    Args:
      shifted: of a set with a line in `robench.lines`.
      clean: of the same model, with a metric `clean`.
    Returns:
      The distance, as a share; None where there is no line, or an accuracy is 0 or 1.
    Raises:
      RunError: the two are of different models.
    """
    line, accuracy = line_of(shifted.data.source), clean.clean
    if (
        line is None
        or accuracy.numerator in (0, accuracy.denominator)
        or any(each.name == EFFECTIVE_ROBUSTNESS for each in shifted.derived)
    ):
        return None
    if (shifted.model.state_digest, shifted.model.fingerprint) != (clean.model.state_digest, clean.model.fingerprint):
        names = f"{shifted.model.name} and {clean.model.name}"
        raise RunError(complaint("effective_robustness", "models", names, "one model"))
    return Derived.of_shares(
        EFFECTIVE_ROBUSTNESS,
        shifted.headline.value - line.at(accuracy.value),
        (shifted.headline.value, shifted.data.count, 1.0),
        (accuracy.value, clean.data.count, line.steepness(accuracy.value)),
        note=line.source,
    )


def clean_among(clean: Result, classes: Collection[int]) -> Metric | None:
    """Clean accuracy on the images of some classes, over all logits; None where there is no such image.

    Args:
      clean: a result with a metric `clean`; its outcomes are read.
      classes: such as the 200 of ImageNet-R.
    """
    rights = [outcome.clean_correct for outcome in clean.read_outcomes() if outcome.label in classes]
    return Metric.of("clean", sum(rights), len(rights)) if rights else None


def mcnemar(only_a: int, only_b: int) -> float:
    """Exact two-sided McNemar test: p-value of a fair coin giving counts at least this uneven.

    References:
      McNemar 1947, "Note on the sampling error of the difference between correlated proportions".
      Deviates: the exact binomial in place of the chi-square approximation.
    """
    total, fewer = only_a + only_b, min(only_a, only_b)
    tail, ways = 0, 1
    for count in range(fewer + 1):
        tail += ways
        ways = ways * (total - count) // (count + 1)  # `math.comb` afresh for each count would take minutes
    return min(1.0, 2 * tail / (1 << total))


def z_test(first: Sequence[int], second: Sequence[int]) -> float:
    """Two-sided p-value of a paired z test of equal means; 1 where no example differs.

    Where counts are 0 or 1 this is McNemar's test in its normal approximation.
    """
    differences = [after - before for before, after in zip(first, second, strict=True)]
    spread = math.sqrt(sum(each * each for each in differences))
    return math.erfc(abs(sum(differences)) / spread / math.sqrt(2)) if spread else 1.0


def paired_difference_interval(both: int, only_a: int, only_b: int, neither: int) -> tuple[float, float]:
    """95 % interval of (rate of B - rate of A) from paired counts.

    Combines the Wilson intervals of the two rates, taking their correlation into account.

    Returns:
      Lower and upper bound, in [-1, 1].
    References:
      Newcombe 1998, "Improved confidence intervals for the difference between binomial proportions
      based on paired data", method 10. Deviates: none.
    """
    total = both + only_a + only_b + neither
    successes_a, successes_b = both + only_a, both + only_b
    rate_a, rate_b = successes_a / total, successes_b / total
    low_a, high_a = wilson(successes_a, total)
    low_b, high_b = wilson(successes_b, total)
    product = successes_a * (total - successes_a) * successes_b * (total - successes_b)
    cross = both * neither - only_a * only_b
    if cross > 0:
        cross = max(cross - total / 2, 0)  # type: ignore[assignment]  # continuity correction gives a float
    correlation = cross / math.sqrt(product) if product else 0.0
    difference = rate_b - rate_a

    def half(first: float, second: float) -> float:
        return math.sqrt(max(0.0, first**2 - 2 * correlation * first * second + second**2))

    low = difference - half(rate_b - low_b, high_a - rate_a)
    high = difference + half(high_b - rate_b, rate_a - low_a)
    return max(-1.0, low), min(1.0, high)
