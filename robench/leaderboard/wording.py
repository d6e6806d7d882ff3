"""What the leaderboard says in words and numbers, the same in Markdown and on the page.

Not here: markup.
"""

from robench.leaderboard.board import Row
from robench.leaderboard.ranks import LEVEL
from robench.result import Metric, percent

INTRODUCTION = (
    "Each table is one protocol: the same images and the same attack for every row, at one digest. Every number was "
    "computed again from the outcomes that lie beside the claim, and carries its 95 % interval."
)
RANKS = (
    "A rank is an interval: from 1 plus the number of models that are significantly better, to the number of models "
    f"minus those that are significantly worse (exact paired McNemar test, {LEVEL:.0%} level for each comparison, not "
    "corrected for their number). Models whose intervals overlap may stand in any order."
)
MINI = "The mini suite is a testbed of generated images, not a substitute for photographs."
PUBLISHED = (
    "Figures as their authors published them, from the sources named. Nobody here has measured them, no outcomes come "
    "with them, they are not ranked, and they must not be mixed with the rows above."
)
BEST_KNOWN = (
    "Best known: what is left of the figure after refutations that a verifier has confirmed: images inside the budget, "
    "from any attack. Ranks stay those of the figure, which is the same attack for every row."
)
NO_SUMMARY_SCORE = "There is no mean over protocols: they measure different things."
EMPTY = "No submission yet."


def interval(metric: Metric) -> str:
    """Such as `[39.5, 48.1]`."""
    low, high = metric.interval
    return f"[{100 * low:.1f}, {100 * high:.1f}]"


def headline(row: Row) -> str:
    """Such as `43.8 % [39.5, 48.1]`, and what is known beyond it."""
    return f"{percent(row.headline)} {interval(row.headline)}{best_known(row)}"


def best_known(row: Row) -> str:
    """Such as `, best known 41.0 %`; "" where nobody has broken more examples than the protocol's attack."""
    if not row.broken:
        return ""
    return f", best known {100 * (row.headline.numerator - row.broken) / row.headline.denominator:.1f} %"


def difference(row: Row) -> str:
    """Points between headline and clean accuracy."""
    return f"{row.difference:+.1f}"


def parameters(row: Row) -> str:
    """Such as `25.6 M`."""
    count = row.result.model.parameters
    if count is None:
        return "unknown"
    return f"{count / 1e6:.1f} M" if count >= 1e6 else f"{count / 1e3:.0f} k" if count >= 1e3 else str(count)


def number(count: int, singular: str, plural: str) -> str:
    """Such as `1 model` or `2 models`."""
    return f"{count:,} {singular if count == 1 else plural}"
