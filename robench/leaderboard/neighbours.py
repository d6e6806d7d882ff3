"""A claim beside its neighbours on the leaderboard, and the comment of a pull request that says so.

Not here: whether the claim is valid (`validation`).
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from robench.comparison import mcnemar, z_test
from robench.errors import SubmissionError, complaint
from robench.leaderboard import wording
from robench.leaderboard.board import Row, ranked, rows_of
from robench.leaderboard.markdown import escaped, grid
from robench.submission import FOLDER, MODEL_NAME, PROTOCOL_NAME, shown
from robench.validation import Place, Rules
from robench.validation.codes import CODES
from robench.validation.reading import places

BESIDE = 2
"""Rows above and below that are shown."""
MOST = 50
"""Findings and claims that a comment shows."""


@dataclass(frozen=True)
class Neighbour:
    """Another row of the table.

    Attributes:
      model, headline: its name, and the number that ranks with its interval.
      p_value: of the paired test against the claim, where there is one.
    """

    model: str
    headline: str
    p_value: float | None


@dataclass(frozen=True)
class Beside:
    """A claim and the rows around it.

    Attributes:
      model, protocol, rank, headline: the claim's.
      neighbours: the rows around it, best first.
    """

    model: str
    protocol: str
    rank: str
    headline: str
    neighbours: Sequence[Neighbour]


def rows_beside(claims: Sequence[Place], rules: Rules) -> list[Beside]:
    """Each of some valid claims of one repository beside its neighbours."""
    found = []
    for protocol in sorted({claim.protocol for claim in claims}):
        root = next(claim.root for claim in claims)
        same = [place for place in places(root)[0] if place.protocol == protocol]
        table = ranked(rows_of(same, root.parent, rules)[0].get(protocol, []))
        for index, row in enumerate(table):
            if any((claim.model, claim.protocol) == (row.model, protocol) for claim in claims):
                around = [*table[max(0, index - BESIDE) : index], *table[index + 1 : index + 1 + BESIDE]]
                beside = [Neighbour(other.model, wording.ranked(other), _p_value(row, other)) for other in around]
                found.append(Beside(row.model, protocol, row.rank, wording.ranked(row), beside))
    return found


def _p_value(first: Row, second: Row) -> float | None:
    if first.counts is not None and second.counts is not None:
        return z_test(first.counts, second.counts)
    if first.held is None or second.held is None:
        return None
    return mcnemar((first.held & ~second.held).bit_count(), (second.held & ~first.held).bit_count())


class _Record(BaseModel):
    model_config = ConfigDict(extra="ignore", strict=True, frozen=True)


class _Finding(_Record):
    code: str
    file: str = Field(max_length=2000)
    pointer: str = Field(max_length=2000)
    found: str = Field(max_length=2000)
    expected: str = Field(max_length=2000)
    fix: str = Field(max_length=2000)


class _Neighbour(_Record):
    model: str = Field(max_length=100)
    headline: str = Field(max_length=100)
    p_value: float | None = Field(ge=0, le=1)


class _Beside(_Record):
    model: str = Field(max_length=100)
    protocol: str = Field(max_length=100)
    rank: str = Field(max_length=100)
    headline: str = Field(max_length=100)
    neighbours: list[_Neighbour] = Field(max_length=2 * BESIDE)


class _Report(_Record):
    schema_name: Literal["robench.report/1"] = Field(alias="schema")
    claims: int = Field(ge=0)
    findings: list[_Finding]
    rows: list[_Beside] = []


def comment(report: bytes) -> str:
    """The comment that a report makes, as Markdown in which the report's texts are text; "" for a report of nothing.

    Raises:
      SubmissionError: it is no report.
    """
    try:
        read = _Report.model_validate_json(report)
    except ValidationError as error:
        raise SubmissionError(complaint("report", "content", shown(str(error), 200), "a robench.report/1")) from error
    known = [finding for finding in read.findings if finding.code in CODES]
    if not read.claims and not known:
        return ""
    wrong = sum(CODES[finding.code].severity == "error" for finding in known)
    lines = [
        "<!-- robench -->",
        f"**{wording.number(read.claims, 'claim', 'claims')}, {'in' * bool(wrong)}valid.**",
        "",
    ]
    lines += [f"- `{each.code}` {CODES[each.code].severity}: {_sentence(each)}" for each in known[:MOST]]
    lines += [f"- and {len(known) - MOST} more"] * (len(known) > MOST) + [""] * bool(known)
    for beside in read.rows[:MOST]:
        lines += _table(beside)
    lines += _challenge(read.rows[:MOST])
    lines += ["Each finding says what to do; `robench validate` says the same on your machine.", ""]
    return "\n".join(lines)


def _challenge(rows: Sequence[_Beside]) -> list[str]:
    """How a maintainer checks the claims once they are merged."""
    named = [row for row in rows if MODEL_NAME.fullmatch(row.model) and PROTOCOL_NAME.fullmatch(row.protocol)]
    if not named:
        return []
    commands = [
        f'robench verify {FOLDER}/{row.model}/{row.protocol} --public-value "VALUE" --by "NAME"' for row in named
    ]
    how = "After the merge a maintainer attacks a random part again. `VALUE` is the randomness of the first round"
    how += " of drand after the merge; `--data` says where the images lie. `robench refute` lets anybody lower a claim."
    return [how, "", "```sh", *commands, "```", ""]


def _sentence(finding: _Finding) -> str:
    where, pointer = _text(finding.file), _text(finding.pointer or "file")
    said = f"{_text(finding.found)}; expected {_text(finding.expected)}"
    return f"{where}, {pointer}: {said}. {_text(finding.fix)}"


def _text(text: str) -> str:
    """One line of at most 300 characters, escaped."""
    return escaped("".join(character for character in text[:300] if character.isprintable()))


def _table(beside: _Beside) -> list[str]:
    title = f"The row of {_text(beside.model)} under {_text(beside.protocol)}, rank {_text(beside.rank)}"
    rows = [[_text(beside.model), _text(beside.headline), ""]]
    for each in beside.neighbours:
        p_value = "" if each.p_value is None else f"{each.p_value:.2g}"
        rows.append([_text(each.model), _text(each.headline), p_value])
    return [title, "", *grid(["model", "headline [95 %]", "p of the paired test"], rows)]
