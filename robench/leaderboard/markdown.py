"""`leaderboard.md`: the leaderboard as Markdown.

Not here: what it says (`board`).
"""

import re
from collections.abc import Iterable, Sequence

from robench.leaderboard import wording
from robench.leaderboard.board import Board, Published, Row, Table
from robench.verification import TIERS

_MEANT = re.compile(
    r"""
    (?P<entity> [<|$] | &(?=[#a-z]) )              # tags, cells of tables, formulas, entities
    | (?P<linked>                                 # what GitHub looks for after Markdown is done:
        (?<!\w)@(?=\w) | @(?=[\w.-]*\.\w)          # mentions, and addresses of mail
        | [#](?=\d) | (?<!\w)GH-(?=\d)             # references
        | :(?=[\w+-]+:) )                          # emojis
    | [\\`*\[\]~]                                 # code, emphasis, links, what is struck out
    | (?<![a-z0-9])_ | _(?![a-z0-9])              # emphasis; inside a word it means nothing
    | :(?=//) | (?<=www)[.]                       # addresses
    """,
    flags=re.ASCII | re.IGNORECASE | re.VERBOSE,
)
"""What means something to Markdown, to HTML, or to GitHub."""


def escaped(text: str) -> str:
    r"""Text that means nothing but itself inside a line or a table: no link, no mention, no markup comes of it.

    Whatever Markdown takes as it is stays so, for those who read the file itself. What GitHub looks for afterwards is
    broken by a character without width, for neither backslash nor entity is left by then.

    Example:
      >>> escaped("snake_case, 5% & (more), mini-pgd-linf@1")
      'snake_case, 5% & (more), mini-pgd-linf@1'
      >>> print(escaped("a|b <i> https://x.org, *www.y.org*, @someone"))
      a&#124;b &lt;i> https\://x.org, \*www\.y.org\*, @&#8203;someone
    """
    return _MEANT.sub(_as_itself, text)


def _as_itself(found: re.Match[str]) -> str:
    character = found.group()
    if found["entity"]:
        return {"<": "&lt;", "&": "&amp;"}.get(character, f"&#{ord(character)};")
    return f"{character}&#8203;" if found["linked"] else f"\\{character}"


def render(board: Board) -> str:
    """The content of `leaderboard.md`."""
    lines = ["# Leaderboard", "", wording.INTRODUCTION, "", wording.RANKS, ""]
    lines += ["[The same with sorting, filters and comparisons](site/index.html). Made by `robench leaderboard`.", ""]
    lines += ["## All protocols", "", *_summary(board)]
    for table in board.active:
        lines += [f"## {table.protocol.exact_name}", "", *_table(table)]
    if board.superseded:
        lines += ["# Superseded protocols", ""]
        for table in board.superseded:
            lines += [f"## {table.protocol.exact_name}", "", *_table(table)]
    lines += ["# As published", "", wording.PUBLISHED, ""]
    for published in board.published:
        lines += _published(published)
    lines += ["# Tiers", "", wording.TIERS_ABOUT, "", *grid(["tier", "what it means"], TIERS.items())]
    return "\n".join(lines).rstrip("\n") + "\n"


def _summary(board: Board) -> list[str]:
    tables = [table for table in board.active if table.rows]
    if not tables:
        return [wording.EMPTY, ""]
    names = [table.protocol.exact_name for table in tables]
    rows = [[escaped(model), *(_cell(found.get(name)) for name in names)] for model, found in board.summary]
    return [wording.NO_SUMMARY_SCORE, "", *grid(["model", *(f"{name} (rank)" for name in names)], rows)]


def _cell(row: Row | None) -> str:
    return "" if row is None else f"{wording.ranking(row)} ({row.rank})"


def _table(table: Table) -> list[str]:
    protocol = table.protocol
    lines = [f"{escaped(protocol.title)}. {protocol.data.count:,} images. Digest `{protocol.digest[:16]}`.", ""]
    if note := wording.note(table):
        lines += [escaped(note), ""]
    if not table.rows:
        return [*lines, wording.EMPTY, ""]
    scores = [score.title for score in wording.scores(table.rows[0], table)]
    columns = ["rank", "model", *scores, "parameters", "training data", "engine", "tier", "caveats"]
    if any(row.broken for row in table.rows):
        lines += [wording.BEST_KNOWN, ""]
    notes = [(row, caveat) for row in table.rows for caveat in row.result.caveats]
    lines += grid(columns, (_row(row, table) for row in table.rows))
    listed = [f"- {escaped(name)}: {escaped(text)}" for name, text in wording.notes(table).items()]
    listed += [f"- {escaped(row.model)}: {escaped(caveat)}" for row, caveat in notes]
    return [*lines, *listed, ""] if listed else lines


def _row(row: Row, table: Table) -> list[str]:
    return [
        row.rank,
        f"[{escaped(row.model)}]({row.folder})",
        *(str(score) for score in wording.scores(row, table)),
        wording.parameters(row),
        escaped(row.submission.training_data),
        row.engine,
        row.tier,
        str(len(row.result.caveats) or ""),
    ]


def _published(table: Published) -> list[str]:
    about = f"{escaped(table.paper)}. Source: {escaped(table.source)}. {escaped(table.note)}"
    rows = ([escaped(cell) for cell in row] for row in table.rows)
    return [
        f"## As published: {escaped(table.title)}",
        "",
        about,
        "",
        *grid([escaped(c) for c in table.columns], rows),
    ]


def grid(columns: Sequence[str], rows: Iterable[Sequence[str]]) -> list[str]:
    """A table as lines; its cells are Markdown already."""
    lines = [columns, ["---"] * len(columns), *rows]
    return [*(f"| {' | '.join(cells)} |" for cells in lines), ""]
