"""Intervals of proportions, and of means of answers that go together.

Not here: which numbers of a result carry which (`result`), and differences of two results (`comparison`).
"""

import math
from collections.abc import Sequence
from statistics import NormalDist


def wilson(successes: int, total: int, confidence: float = 0.95) -> tuple[float, float]:
    """Wilson score interval of a proportion.

    Args:
      successes: from 0 to total.
      total: number of trials, at least 1.
      confidence: of the two-sided interval.
    Returns:
      Lower and upper bound, in [0, 1].
    Example:
      >>> [round(bound, 4) for bound in wilson(43, 100)]
      [0.3373, 0.5278]

    References:
      Wilson 1927, "Probable inference, the law of succession, and statistical inference". Deviates: none.
    """
    if not 0 <= successes <= total or total < 1:
        raise ValueError(f"wilson: {successes} of {total} is no proportion")
    return _wilson(successes / total, total, confidence)


def _wilson(share: float, total: float, confidence: float) -> tuple[float, float]:
    """The same for a share of a number of trials that need not be whole."""
    z = NormalDist().inv_cdf(0.5 + confidence / 2)
    square = z * z
    centre = (share + square / (2 * total)) / (1 + square / total)
    half = z * math.sqrt(share * (1 - share) / total + square / (4 * total * total)) / (1 + square / total)
    # At 0 and at 1 the bound is exactly that; rounding must not move it.
    low = 0.0 if share == 0 else max(0.0, centre - half)
    high = 1.0 if share == 1 else min(1.0, centre + half)
    return low, high


def clustered(rights: Sequence[int], asks: int, confidence: float = 0.95) -> tuple[float, float]:
    """Interval of the mean share of right answers over examples that were each asked about equally often.

    Answers about one image are not independent of each other, examples are. With n examples, m asks of each,
    shares p_i = rights_i / m, their mean p and variance s^2 (n - 1 in the denominator), the mean is worth as
    many independent answers as

        n_eff = max(n, min(p (1 - p) n / s^2, n m) (z / t)^2),

    where z and t are the quantiles of the normal distribution and of Student's with n - 1 degrees of freedom;
    the interval is Wilson's for the share p of n_eff trials. An example is never worth less than one answer: for a
    model that always answers the same the interval is Wilson's over the examples.

    Args:
      rights: right answers about each example, from 0 to `asks`; at least one example.
      asks: answers about each example.
      confidence: of the two-sided interval.
    Returns:
      Lower and upper bound, in [0, 1].
    Example:
      >>> [round(bound, 4) for bound in clustered([20, 0, 13, 7, 20, 20], 20)]
      [0.3, 0.9032]

    References:
      Korn & Graubard 1998, "Confidence intervals for proportions with small expected number of positive counts
      estimated from survey data" (effective sample size, adjusted for degrees of freedom); Franco, Little, Louis &
      Slud 2019, "Comparative study of confidence intervals for proportions in complex sample surveys" (which
      recommends Wilson's form for it). Deviates: n_eff is at least n.
    """
    count = len(rights)
    if not count or asks < 1 or not all(0 <= right <= asks for right in rights):
        raise ValueError(f"clustered: {list(rights)} of {asks} each are no shares")
    share = sum(rights) / (count * asks)
    worth = float(count)
    if count > 1 and 0 < share < 1:
        squares = sum((right / asks - share) ** 2 for right in rights) / (count - 1)
        most = float(count * asks)
        answers = min(share * (1 - share) * count / squares, most) if squares else most
        quantile = 0.5 + confidence / 2
        shrunk = (NormalDist().inv_cdf(quantile) / student_quantile(quantile, count - 1)) ** 2
        worth = max(worth, answers * shrunk)
    return _wilson(share, worth, confidence)


def student_quantile(quantile: float, degrees: int) -> float:
    """Quantile of Student's distribution, above one half, to a percent from two degrees of freedom on.

    References:
      Abramowitz & Stegun 1964, 26.7.5: the expansion around the normal quantile.
    """
    z = NormalDist().inv_cdf(quantile)
    terms = (
        (z**3 + z) / 4,
        (5 * z**5 + 16 * z**3 + 3 * z) / 96,
        (3 * z**7 + 19 * z**5 + 17 * z**3 - 15 * z) / 384,
        (79 * z**9 + 776 * z**7 + 1482 * z**5 - 1920 * z**3 - 945 * z) / 92160,
    )
    return z + math.fsum(term / degrees**power for power, term in enumerate(terms, start=1))
