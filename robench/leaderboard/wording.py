"""What the leaderboard says in words and numbers, the same in Markdown and on the page.

Not here: markup.
"""

from dataclasses import dataclass, replace

from robench.leaderboard.board import Row, Table, share
from robench.leaderboard.ranks import LEVEL
from robench.result import CLEAN, Derived, Metric

HEADLINE = "headline"
"""What the headline is called in addresses and in the downloaded table, whatever it is."""

INTRODUCTION = (
    "Each table is one protocol: the same images and the same attack, or none, for every row, at one digest. Every "
    "number was computed again from the outcomes that lie beside the claim, and carries its 95 % interval."
)
RANKS = (
    "A rank is an interval: from 1 plus the number of models that are significantly better, to the number of models "
    f"minus those that are significantly worse (exact paired McNemar test, {100 * LEVEL:.0f} % level for each "
    "comparison, not corrected for their number; where images are not just right or wrong, but right in a share of "
    "their cells or answers, or compared with a reference model, a paired z test over the images). Models whose "
    "intervals overlap may stand in any order."
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
TIERS_ABOUT = (
    "A tier is about the number that ranks. What else a row says, such as clean accuracy or shape bias, follows from "
    "the outcomes that its author gave."
)
NO_SUMMARY_SCORE = "There is no mean over protocols: they measure different things."
EMPTY = "No submission yet."


@dataclass(frozen=True)
class Score:
    """A number of a row.

    Attributes:
      key: what it is called in addresses and in the downloaded table.
      title: of its column.
      number, rest: it as text, and what stands behind it; "" where the row does not have it.
      value: as a share, or in points where it is a difference; None where the row does not have it.
    """

    key: str
    title: str
    number: str
    rest: str
    value: float | None

    def __str__(self) -> str:
        return f"{self.number} {self.rest}".strip()


def scores(row: Row, table: Table) -> list[Score]:
    """The numbers of a row, in the order of the table's columns."""
    clean = _score("clean", "clean", row.clean)
    if table.headline == CLEAN:
        headline, difference = [replace(_score(HEADLINE, "[95 %]", row.headline), number="")], []
    else:
        found = _score(HEADLINE, f"{table.headline} [95 %]", row.headline)
        headline = [replace(found, rest=f"{found.rest}{best_known(row)}")]
        points = "" if row.difference is None else f"{row.difference:+.1f}"
        exact = None if row.difference is None else round(row.difference, 4)
        difference = [Score("difference", "to clean", points, "", exact)]
    about_clean = [[replace(clean, rest="")], difference] if table.has_clean else [[], []]
    others = [_score(name, name, row.others.get(name)) for name in table.others]
    return [*about_clean[0], *headline, *about_clean[1], *others]


def _score(key: str, title: str, number: Metric | Derived | None) -> Score:
    if number is None:
        return Score(key, title, "", "", None)
    unit = 100 if isinstance(number, Derived) and number.is_difference else 1
    return Score(key, title, number.text, number.bounds, round(unit * share(number), 6))


def notes(table: Table) -> dict[str, str]:
    """What the derived numbers of a table were computed with, by their names."""
    found = (number for row in table.rows for number in row.result.derived)
    return {number.name: number.note for number in found if number.note}


def ranking(row: Row) -> str:
    """The number that ranks, such as `43.8 %`."""
    return row.result.ranking.text


def ranking_key(table: Table) -> str:
    """The key of the number that ranks."""
    return HEADLINE if table.ranking == table.headline else table.ranking


def ranked(row: Row) -> str:
    """The number that ranks and its interval, such as `43.8 % [39.5, 48.1]`, and what is known beyond it."""
    return f"{ranking(row)} {row.result.ranking.bounds}{best_known(row)}"


def headline(row: Row) -> str:
    """Such as `43.8 % [39.5, 48.1]`, and what is known beyond it."""
    return f"{row.headline.text} {row.headline.bounds}{best_known(row)}"


def best_known(row: Row) -> str:
    """Such as `, best known 41.0 %`; "" where nobody has broken more examples than the protocol's attack."""
    if not row.broken:
        return ""
    return f", best known {100 * (row.headline.numerator - row.broken) / row.headline.denominator:.1f} %"


def note(table: Table) -> str:
    """What to know before reading a table; "" where there is nothing."""
    return table.protocol.confounds or (MINI if table.protocol.id.startswith("mini") else "")


def parameters(row: Row) -> str:
    """Such as `25.6 M`."""
    count = row.result.model.parameters
    if count is None:
        return "unknown"
    return f"{count / 1e6:.1f} M" if count >= 1e6 else f"{count / 1e3:.0f} k" if count >= 1e3 else str(count)


def number(count: int, singular: str, plural: str) -> str:
    """Such as `1 model` or `2 models`."""
    return f"{count:,} {singular if count == 1 else plural}"
