"""What the leaderboard says, from the files of submissions and verdicts alone: no clock, no network.

Not here: how it looks (`markdown`, `page`).
"""

import hashlib
import importlib.resources
import tomllib
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path

from robench import refutation, verification
from robench.comparison import counted
from robench.errors import SubmissionError
from robench.leaderboard.ranks import more_answers, more_examples, rank_intervals
from robench.protocol import Protocol
from robench.result import CLEAN, Derived, Metric, Result, holds
from robench.submission import FOLDER, Submission
from robench.validation import Claim, Finding, Rules, errors, examine
from robench.validation.duplicates import check_duplicates, identities
from robench.validation.reading import Place, places


@dataclass(frozen=True)
class Row:
    """One claim on the leaderboard.

    Attributes:
      model: its name.
      folder: of the claim, from the root of the repository.
      submission, result: its files.
      tier: how well it is confirmed.
      held: the examples that count as right under the protocol, as bits, the first one lowest; None where more is
        counted about each.
      counts: right answers about each example, or right cells of each, or right minus right of the reference model;
        None where examples are counted.
      ranks: best and worst rank; None where the claim is refuted.
      broken: examples called robust that confirmed refutations break.
    """

    model: str
    folder: str
    submission: Submission
    result: Result
    tier: verification.Tier
    held: int | None = None
    counts: tuple[int, ...] | None = None
    ranks: tuple[int, int] | None = None
    broken: int = 0

    @property
    def clean(self) -> Metric | None:
        """Accuracy on the clean images; None where there were none."""
        return next((metric for metric in self.result.metrics if metric.name == CLEAN), None)

    @property
    def headline(self) -> Metric:
        return self.result.headline

    @property
    def difference(self) -> float | None:
        """Points that the headline lies above clean accuracy; None where clean images were not seen."""
        return None if self.clean is None else 100 * (share(self.headline) - share(self.clean))

    @cached_property
    def others(self) -> dict[str, Metric | Derived]:
        """What else a protocol without an attack says, by name: top-1 over all classes, shape bias, mCE."""
        if not self.result.shifted:
            return {}
        others = [metric for metric in self.result.metrics[:-1] if metric.group == "bias" or not metric.group]
        found: list[Metric | Derived] = [metric for metric in others if metric.name != CLEAN]
        return {each.name: each for each in [*found, *self.result.derived]}

    @property
    def engine(self) -> str:
        """Which code attacked."""
        return f"{self.result.engine} {self.result.attack_revision}"

    @property
    def rank(self) -> str:
        """The rank interval as text."""
        if self.ranks is None:
            return "none"
        best, worst = self.ranks
        return str(best) if best == worst else f"{best} to {worst}"


@dataclass(frozen=True)
class Table:
    """The claims under one protocol, by the number that ranks; refuted ones last."""

    protocol: Protocol
    rows: Sequence[Row]

    @property
    def headline(self) -> str:
        """Name of the headline."""
        return self.rows[0].headline.name if self.rows else ""

    @property
    def ranking(self) -> str:
        """Name of the number that ranks."""
        return self.rows[0].result.ranking.name if self.rows else ""

    @cached_property
    def has_clean(self) -> bool:
        """Whether any row saw clean images."""
        return any(row.clean is not None for row in self.rows)

    @cached_property
    def others(self) -> list[str]:
        """Names of what else its rows say."""
        return list(dict.fromkeys(name for row in self.rows for name in row.others))


@dataclass(frozen=True)
class Published:
    """Figures as their authors published them."""

    title: str
    paper: str
    source: str
    note: str
    columns: Sequence[str]
    rows: Sequence[Sequence[str]]


@dataclass(frozen=True)
class Board:
    """All that the leaderboard says.

    Attributes:
      active: one table for each active, ranked protocol, also where there is no claim yet.
      superseded: those of superseded protocols that have claims.
      published: figures of papers.
    """

    active: Sequence[Table]
    superseded: Sequence[Table]
    published: Sequence[Published]

    @property
    def summary(self) -> list[tuple[str, dict[str, Row]]]:
        """Each model's row under each active protocol, by name."""
        models: dict[str, dict[str, Row]] = defaultdict(dict)
        for table in self.active:
            for row in table.rows:
                models[row.model][table.protocol.exact_name] = row
        return sorted(models.items(), key=lambda item: item[0].casefold())


def build(repository: Path, rules: Rules | None = None) -> Board:
    """The leaderboard of a repository.

    Raises:
      SubmissionError: a submission is not valid, or a verdict is malformed.
    """
    held, folder = rules or Rules.shipped(), repository / FOLDER
    found, misplaced = places(folder) if folder.is_dir() else ([], [])
    rows, wrong = rows_of(found, repository, held)
    findings = [*misplaced, *wrong, *check_duplicates(identities(found), set(found))]
    if errors(findings):
        raise SubmissionError("\n".join(map(str, errors(findings))))
    protocols = [protocol for protocol in held.protocols.values() if protocol.ranked]
    active = [protocol for protocol in protocols if protocol.status == "active"]
    superseded = [protocol for protocol in protocols if protocol.status == "superseded" and rows[protocol.exact_name]]
    return Board(_tables(active, rows), _tables(superseded, rows), read_published())


def rows_of(found: Sequence[Place], repository: Path, rules: Rules) -> tuple[dict[str, list[Row]], list[Finding]]:
    """The rows of valid claims by protocol, without ranks, and what was found about all."""
    rows: dict[str, list[Row]] = defaultdict(list)
    findings: list[Finding] = []
    for place in found:
        claim, wrong = examine(place, rules)
        findings += wrong
        if claim is not None and not errors(wrong):
            rows[place.protocol].append(_row(claim, repository))
    return rows, findings


def _tables(protocols: Sequence[Protocol], rows: dict[str, list[Row]]) -> list[Table]:
    ordered = sorted(protocols, key=lambda protocol: (protocol.id, -protocol.version))
    return [Table(protocol, ranked(rows[protocol.exact_name])) for protocol in ordered]


def _row(claim: Claim, repository: Path) -> Row:
    place = claim.place
    verdicts = verification.read_verdicts(place.records(verification.FOLDER))
    digests = [hashlib.sha256(path.read_bytes()).hexdigest() for path in place.records(refutation.FOLDER)]
    broken = len(verification.broken_since(claim.result_sha256, verdicts, digests))
    tier = verification.tier_of(claim.submission, claim.result_sha256, verdicts)
    row = Row(place.model, place.file(), claim.submission, claim.result, tier, broken=broken)
    count = counted(claim.protocol)
    if count is not None:
        return replace(row, counts=tuple(map(count, claim.outcomes)))
    bits = "".join("1" if holds(claim.protocol, outcome) else "0" for outcome in reversed(claim.outcomes))
    return replace(row, held=int(bits, 2))


def ranked(rows: Sequence[Row]) -> list[Row]:
    """Rows by the number that ranks, with rank intervals; refuted ones last, without."""
    standing = [row for row in rows if row.tier != "refuted"]
    intervals = rank_intervals(standing, _better)
    placed = [replace(row, ranks=ranks) for row, ranks in zip(standing, intervals, strict=True)]
    refuted = [row for row in rows if row.tier == "refuted"]
    return [row for group in (placed, refuted) for row in sorted(group, key=_order)]


def _better(first: Row, second: Row) -> bool:
    if first.held is not None and second.held is not None:
        return more_examples(first.held, second.held)
    return more_answers(first.counts or (), second.counts or ())


def _order(row: Row) -> tuple[float, float, str]:
    return -share(row.result.ranking), -share(row.clean) if row.clean is not None else 0.0, row.model


def share(number: Metric | Derived) -> float:
    """A number as exactly as it is known."""
    return number.numerator / number.denominator if isinstance(number, Metric) else number.value


def read_published() -> list[Published]:
    """The tables of `published.toml`."""
    text = (importlib.resources.files("robench.leaderboard") / "published.toml").read_text(encoding="utf-8")
    return [Published(**table) for table in tomllib.loads(text)["table"]]
