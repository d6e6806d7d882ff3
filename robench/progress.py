"""What an evaluation says while it runs; the command line shows it, others may ignore it.

Not here: bars and lines (`cli`).
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from robench.result import Result


@dataclass(frozen=True)
class Progress:
    """How far a run has come.

    Attributes:
      total, done: examples of the run, and those whose outcome is final.
      prefix: length of the longest finished prefix in protocol order, without examples that are not scored.
      clean, robust: examples of the prefix that are right clean, and robust at the headline step, or the sums of
        their shares of right answers. Over all finished examples these would lie, because fooled examples finish
        first.
      stage: which stage of a cascade is at work, and how many examples have come to it; else "".
      shifted: whether there is no attack, and `robust` is the accuracy on shifted images.
    """

    total: int
    done: int
    prefix: int
    clean: float
    robust: float
    stage: str = ""
    shifted: bool = False


class Watcher(Protocol):
    """Who is told."""

    def begin(self, run_dir: Path, progress: Progress) -> None:
        """A run starts or goes on."""
        ...

    def notice(self, text: str) -> None:
        """Something a user should know: which version, which run is reused, fewer slots."""
        ...

    def update(self, progress: Progress) -> None:
        """Some outcome became final."""
        ...

    def end(self, result: Result) -> None:
        """The result is written."""
        ...


class Silent:
    """Says nothing."""

    def begin(self, run_dir: Path, progress: Progress) -> None:
        pass

    def notice(self, text: str) -> None:
        pass

    def update(self, progress: Progress) -> None:
        pass

    def end(self, result: Result) -> None:
        pass
