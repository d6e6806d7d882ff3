"""`site/index.html`: the leaderboard as one page that loads nothing else.

Every text goes through Jinja's escaping; scripts and styles run only if their digest is the one in the page's policy.
Not here: what the page says (`board`), and what it does when someone clicks (`page.js`).
"""

import base64
import hashlib
import importlib.resources
import json
from functools import cache
from typing import Any

from jinja2 import Environment, StrictUndefined, Template
from markupsafe import Markup

from robench.leaderboard import scatter, wording
from robench.leaderboard.board import Board, Row, Table, share
from robench.leaderboard.ranks import LEVEL
from robench.result import CLEAN, percent
from robench.submission import FAMILIES
from robench.verification import TIERS

MOST_BYTES = 4_000_000
"""What a table may add to the page, before it is written in base64, so that rows can be compared there."""


def render(board: Board) -> str:
    """The content of `site/index.html`."""
    script, style = _asset("page.js"), _asset("page.css")
    tables = [*board.active, *board.superseded]
    rows = [row for table in tables for row in table.rows]
    return _template().render(
        board=board,
        tables=tables,
        plots=[_plots(table) for table in tables],
        families=[family for family in FAMILIES if any(row.submission.family == family for row in rows)],
        training_data=sorted({row.submission.training_data for row in rows}, key=str.casefold),
        tiers=[(tier, text) for tier, text in TIERS.items()],
        policy=f"default-src 'none'; script-src {_pin(script)}; style-src {_pin(style)}; img-src data:; "
        "base-uri 'none'; form-action 'none'",
        script=Markup(script),
        style=Markup(style),
        data=_json({"level": LEVEL, "tables": [_paired(table) for table in tables]}),
        wording=wording,
        percent=percent,
        scatter=scatter,
    )


@cache
def _template() -> Template:
    environment = Environment(autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True)
    return environment.from_string(_asset("page.html.j2"))


def _asset(name: str) -> str:
    return (importlib.resources.files("robench.leaderboard") / name).read_text(encoding="utf-8")


def _pin(content: str) -> str:
    """What a content security policy knows an inline script or style by."""
    return f"'sha256-{base64.b64encode(hashlib.sha256(content.encode()).digest()).decode()}'"


def _json(content: Any) -> Markup:
    """JSON that cannot end the script element it stands in."""
    text = json.dumps(content, separators=(",", ":"), sort_keys=True)
    return Markup(text.replace("<", "\\u003c").replace(">", "\\u003e").replace("&", "\\u0026"))


def _paired(table: Table) -> dict[str, Any]:
    """What the page needs to compare two rows.

    Either the examples that each row holds, as bits, or what is counted about each example, in bytes that start at the
    least count, and of how many; nothing where that would be too much for a page.
    """
    if not table.rows:
        return {}
    first, count = table.rows[0], table.protocol.data.count
    if first.counts is None:
        return {"total": first.headline.denominator, "held": [_bits(row, count) for row in table.rows]}
    counts = [row.counts or () for row in table.rows]
    low, high = min(map(min, counts)), max(map(max, counts))
    if high - low > 255 or count * len(counts) > MOST_BYTES:
        return {}
    asks = max(1, first.headline.denominator // count)
    return {"asks": asks, "counts": [_base64(bytes(each - low for each in row)) for row in counts]}


def _bits(row: Row, count: int) -> str:
    return _base64((row.held or 0).to_bytes(-(-count // 8), "little"))


def _base64(content: bytes) -> str:
    return base64.b64encode(content).decode()


def _plots(table: Table) -> list[scatter.Scatter]:
    if not table.rows or table.headline == CLEAN:
        return []
    headlines = [share(row.headline) for row in table.rows]
    cleans = [None if row.clean is None else share(row.clean) for row in table.rows]
    sizes = [row.result.model.parameters for row in table.rows]
    over_clean = scatter.shares("clean", table.headline, list(zip(cleans, headlines, strict=True)))
    over_sizes = scatter.over_sizes("parameters", table.headline, list(zip(sizes, headlines, strict=True)))
    return [over_clean, over_sizes] if table.has_clean else [over_sizes]
