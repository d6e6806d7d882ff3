"""What can go wrong, as one tree. No error is raised outside it for a mistake of the caller.

RobenchError
├── ProtocolError    a protocol is unknown, malformed or does not fit its attack
├── ModelError       a model breaks the contract: shape, logits, mode, differentiability
├── DataError        images, labels or ids are missing, unreadable or out of range
├── BudgetError      an attacked image lies outside its budget, or a budget is malformed
├── RunError         a run folder cannot be used: foreign, edited, unwritable
├── SubmissionError  a submission cannot be accepted
├── RecipeError      a training recipe is malformed or cannot be followed
└── FigureError      a picture cannot be drawn or written

Every message has one form, which `complaint` builds:

    <where>: `<argument>` is <value>; expected <constraint>. <What to do.>
"""

from collections.abc import Iterable, Sequence
from difflib import get_close_matches


class RobenchError(Exception):
    """Base of all errors that robench raises on purpose."""


class ProtocolError(RobenchError):
    """A protocol is unknown, malformed or does not fit its attack."""


class ModelError(RobenchError):
    """A model breaks the contract of `robench.classifier`."""


class DataError(RobenchError):
    """Images, labels or ids are missing, unreadable or out of range."""


class BudgetError(RobenchError):
    """An attacked image lies outside its budget, or a budget is malformed."""


class RunError(RobenchError):
    """A run folder cannot be used as it is."""


class SubmissionError(RobenchError):
    """A submission cannot be accepted."""


class RecipeError(RobenchError):
    """A training recipe is malformed or cannot be followed."""


class FigureError(RobenchError):
    """A picture cannot be drawn or written."""


def complaint(where: str, argument: str, value: object, expected: str, advice: str = "") -> str:
    """Build the one sentence form of an error message."""
    message = f"{where}: `{argument}` is {value}; expected {expected}."
    return f"{message} {advice}" if advice else message


def did_you_mean(name: str, known: Iterable[str], *, otherwise: str | None = None) -> str:
    """Return `Did you mean ...?` for a name that is nearly one of `known`, else `otherwise`, else list them."""
    names = sorted(known)
    close = get_close_matches(name, names, n=3, cutoff=0.6)
    if close:
        return f"Did you mean {' or '.join(f'`{match}`' for match in close)}?"
    if otherwise is not None:
        return otherwise
    return f"Known: {', '.join(names)}." if names else ""


def missing_or_unreadable(error: OSError) -> str:
    """What is said of a file that could not be read: `missing`, or why it is `unreadable`."""
    if isinstance(error, FileNotFoundError | NotADirectoryError):
        return "missing"
    return f"unreadable ({error.strerror or type(error).__name__})"


def first_line(error: BaseException) -> str:
    """What an error of somebody else's code says first, where one sentence names it."""
    return (str(error).splitlines() or [""])[0][:200]


def first_few(names: Sequence[str], most: int = 3) -> str:
    """The first names of a list that may be long.

    Example:
      >>> first_few(["a", "b", "c", "d"])
      'a, b, c ...'
    """
    return ", ".join(names[:most]) + (" ..." if len(names) > most else "")
