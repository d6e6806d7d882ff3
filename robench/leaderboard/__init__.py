"""The leaderboard: a pure function of submissions and verdicts, as Markdown and as one page.

Not here: whether submissions hold (`validation`).
"""

from collections.abc import Mapping
from pathlib import Path

from robench.leaderboard import markdown, page
from robench.leaderboard.board import build
from robench.validation import Rules

__all__ = ["FILES", "files_of"]

FILES = ("leaderboard.md", "site/index.html")
"""What is made, from the root of the repository."""


def files_of(repository: Path, rules: Rules | None = None) -> Mapping[str, bytes]:
    """The content of `FILES`.

    Raises:
      SubmissionError: a submission is not valid.
    """
    board = build(repository, rules)
    return dict(zip(FILES, (markdown.render(board).encode(), page.render(board).encode()), strict=True))
