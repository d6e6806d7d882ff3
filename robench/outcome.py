"""An outcome: what became of one example, and its line in `outcomes.csv.gz`.

Every headline number is recomputed from these lines by whoever reads it. Not here: what the lines add
up to (`result`).
"""

import csv
import gzip
import hashlib
import io
import itertools
import math
import re
import zlib
from collections.abc import Callable, Collection, Iterable, Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

from robench.errors import RunError, complaint


@dataclass(frozen=True)
class Outcome:
    """What became of one example.

    Attributes:
      id: the data set's own name of the example.
      label: true class.
      clean: predicted class of the clean image.
      attacked: predicted class of the attacked image that counts.
      clean_margin: logit of the label minus the best other one, on the clean image, 3 digits.
      attacked_margin: the same on the attacked image; where nothing fooled, the lowest margin met.
      fooled_at: under "any iterate" the step of the first confirmed success; under "last iterate" the
        steps read off at which the image fooled.
      stage: the attack that fooled it, else "".
      unconfirmed: successes that the model itself denied when asked again.
      error: why there is no outcome, else "".
      clean_right, attacked_right: where a randomised model was asked many times, how many of its answers about
        the clean and about the final attacked image were right; else None. `clean` and `attacked` are then the
        classes most often answered, margins are those of the mean logits, and `stage` is whose image it is.
      queries: images that attacks with patches showed the model; None where none did.
      among: under protocols that also score over a list of classes, the class predicted among these.
      cells: under protocols with corruptions, which cells were right: a mask in hexadecimal, as wide as all cells
        need; bit i, from the lowest, is cell i of the protocol, sorted by corruption and severity.
      texture: under protocols with textures, the class of the texture; `label` is that of the shape.
      reference: class predicted by the protocol's reference model.
      patches, area: how many patches the image that fooled has, and the share of its pixels that differ from the
        clean image, 3 digits; None where there is no such image.
    """

    id: str
    label: int
    clean: int
    attacked: int
    clean_margin: float
    attacked_margin: float
    fooled_at: tuple[int, ...] = ()
    stage: str = ""
    unconfirmed: int = 0
    error: str = ""
    clean_right: int | None = None
    attacked_right: int | None = None
    queries: int | None = None
    patches: int | None = None
    area: float | None = None
    among: int | None = None
    cells: str | None = None
    texture: int | None = None
    reference: int | None = None

    @property
    def has_image(self) -> bool:
        """Whether there is an attacked image that counts."""
        return bool(self.fooled_at) or (self.attacked_right is not None and not self.error)

    @property
    def clean_correct(self) -> bool:
        return not self.error and self.clean == self.label

    def robust_at(self, step: int | None, scoring: str) -> bool:
        """Whether the example is right clean and not fooled at this step ("any iterate": or before).

        None is the end of the attack. Steps mean something within one stage only.
        """
        if not self.clean_correct:
            return False
        if step is None or not self.fooled_at:
            return not self.fooled_at
        if scoring == "any iterate":
            return min(self.fooled_at) > step
        return step not in self.fooled_at

    def row(self, columns: Sequence[str]) -> list[str]:
        """The fields as text, in the order of `columns`; counts of right answers that were not taken are left out."""
        values = ((name, getattr(self, name)) for name in columns)
        return [_FORMS[name][1](value) for name, value in values if value is not None or name in PATCH_COLUMNS]

    @classmethod
    def of_row(cls, row: Sequence[str], *, columns: Sequence[str]) -> "Outcome":
        """The reverse of `row`; ValueError for anything that `row` does not write in all of these columns."""
        if len(row) != len(columns):
            raise ValueError(f"{len(row)} columns instead of {len(columns)}")
        outcome = cls(**{name: _FORMS[name][0](cell) for name, cell in zip(columns, row, strict=True)})
        again = outcome.row(columns)
        if again != list(row):  # such as "+1" or a fourth digit: the digest would not see the difference
            raise ValueError(f"{','.join(row)!r}, which reads as {','.join(again)!r}")
        return outcome


ASKED = ("clean_right", "attacked_right")
"""Columns that come after the others where a randomised model was asked many times."""

PATCH_COLUMNS = ("queries", "patches", "area")
"""Columns that come last, and only where an attack with patches says something in them."""

SHIFT_COLUMNS = ("among", "cells", "texture", "reference")
"""Columns that come last under protocols without an attack, each where its protocol asks for it."""

COLUMNS = tuple(field.name for field in fields(Outcome) if field.name not in ASKED + PATCH_COLUMNS + SHIFT_COLUMNS)
"""The columns of every `outcomes.csv.gz`."""

_MORE: tuple[tuple[str, ...], ...] = (ASKED, PATCH_COLUMNS, *((name,) for name in SHIFT_COLUMNS))
"""What may follow them, in this order."""
_HEADERS = {
    COLUMNS + tuple(itertools.chain.from_iterable(itertools.compress(_MORE, chosen)))
    for chosen in itertools.product((False, True), repeat=len(_MORE))
}
"""What the first line of a table may be."""


def _margin(text: str) -> float:
    value = float(text)
    if math.isnan(value):
        raise ValueError("a margin that is no number")
    return value


def _three_digits(value: float) -> str:
    return f"{value:.3g}"


_Form = tuple[Callable[[str], Any], Callable[[Any], str]]
_TEXT: _Form = (str, str)
_WHOLE: _Form = (int, str)
_MARGIN: _Form = (_margin, _three_digits)
_STEPS: _Form = (lambda text: tuple(map(int, text.split())), lambda steps: " ".join(map(str, steps)))


def _perhaps(form: _Form) -> _Form:
    """The same, where nothing may stand."""
    read, write = form
    return (lambda text: read(text) if text else None), (lambda value: "" if value is None else write(value))


_FORMS: dict[str, _Form] = {
    "id": _TEXT,
    "label": _WHOLE,
    "clean": _WHOLE,
    "attacked": _WHOLE,
    "clean_margin": _MARGIN,
    "attacked_margin": _MARGIN,
    "fooled_at": _STEPS,
    "stage": _TEXT,
    "unconfirmed": _WHOLE,
    "error": _TEXT,
    "clean_right": _WHOLE,
    "attacked_right": _WHOLE,
    "queries": _perhaps(_WHOLE),
    "patches": _perhaps(_WHOLE),
    "area": _perhaps((float, _three_digits)),
    "among": _WHOLE,
    "cells": _TEXT,
    "texture": _WHOLE,
    "reference": _WHOLE,
}
"""How each field is read from a cell, and written into one."""


def to_csv(outcomes: Iterable[Outcome]) -> bytes:
    """Outcomes as CSV with a header, the same bytes on every machine."""
    table = list(outcomes)
    columns = _columns(table)
    return _written([columns, *(outcome.row(columns) for outcome in table)])


def _columns(table: Sequence[Outcome], among: Collection[str] | None = None) -> tuple[str, ...]:
    """The columns in which outcomes say something; nothing is said but in those named."""
    columns = COLUMNS
    for more in (more for more in _MORE if among is None or more[0] in among):
        if any(getattr(outcome, name) is not None for outcome in table for name in more):
            columns += more
    return columns


def _written(rows: Sequence[Sequence[str]]) -> bytes:
    lines = [",".join(row) for row in rows]
    text = "".join(f"{line}\n" for line in lines)
    separators = {",": sum(map(len, rows)) - len(rows), "\n": len(rows), '"': 0, "\r": 0}
    if any(text.count(character) != count for character, count in separators.items()):  # some stand in cells
        text = "".join(",".join(map(_cell, row)) + "\n" for row in rows)
    return text.encode()


def _cell(text: str) -> str:
    """A field, quoted where needed; `csv.writer` leaves a carriage return bare before Python 3.13."""
    return '"' + text.replace('"', '""') + '"' if _QUOTED.search(text) else text


_QUOTED = re.compile(r'[",\r\n]')


def from_csv(content: bytes, *, where: str) -> list[Outcome]:
    """The reverse of `to_csv`.

    Raises:
      RunError: a line is not an outcome; `where` and the line are named.
    """
    try:
        rows = list(csv.reader(io.StringIO(content.decode()), strict=True))
    except (UnicodeDecodeError, csv.Error) as error:
        raise RunError(complaint(where, "content", f"no CSV ({error})", "outcomes as robench writes them")) from error
    if not rows or tuple(rows[0]) not in _HEADERS:
        raise RunError(complaint(where, "line 1", repr(rows[0] if rows else ""), f"the columns {','.join(COLUMNS)}"))
    try:
        outcomes = _in_columns(rows[1:], rows[0])
    except ValueError:
        outcomes = _line_by_line(rows[1:], rows[0], where=where)
    if (
        tuple(rows[0]) != _columns(outcomes, rows[0]) or _written(rows) != content
    ):  # each row is known to be what `row` writes
        what = "written with other line ends or quotes"
        raise RunError(complaint(where, "content", what, "outcomes as robench writes them"))
    return outcomes


def _in_columns(rows: Sequence[Sequence[str]], columns: Sequence[str]) -> list[Outcome]:
    """All outcomes of a table, each spelling read once; ValueError if `Outcome.of_row` refuses one."""
    if not rows:
        return []
    cells = dict(zip(columns, zip(*rows, strict=True), strict=True))
    return list(map(Outcome, *(_values(field.name, cells.get(field.name)) for field in fields(Outcome))))


def _values(name: str, cells: Sequence[str] | None) -> Iterable[Any]:
    """A field of all outcomes; None where the table has no such column."""
    if cells is None:
        return itertools.repeat(None)
    read, write = _FORMS[name]
    values = {cell: read(cell) for cell in set(cells)}
    if any(write(value) != cell for cell, value in values.items()):
        raise ValueError("another spelling")
    return map(values.__getitem__, cells)


def _line_by_line(rows: Iterable[Sequence[str]], columns: Sequence[str], *, where: str) -> list[Outcome]:
    outcomes = []
    for number, row in enumerate(rows, start=2):
        try:
            outcomes.append(Outcome.of_row(row, columns=columns))
        except ValueError as error:
            raise RunError(complaint(where, f"line {number}", str(error), "an outcome")) from error
    return outcomes


def digest(outcomes: Iterable[Outcome]) -> str:
    """SHA-256 of the CSV, independent of the compression library."""
    return hashlib.sha256(to_csv(outcomes)).hexdigest()


def compress(content: bytes) -> bytes:
    """gzip with a fixed header: no time, no name."""
    buffer = io.BytesIO()
    with gzip.GzipFile(filename="", mode="wb", compresslevel=9, fileobj=buffer, mtime=0) as file:
        file.write(content)
    return buffer.getvalue()


def read_outcomes(path: Path) -> list[Outcome]:
    """Read `outcomes.csv.gz`.

    Raises:
      RunError: the file is missing, no gzip, or a line is not an outcome.
    """
    try:
        with gzip.open(path) as file:
            content = file.read()
    except (OSError, EOFError, zlib.error) as error:
        raise RunError(
            complaint(str(path), "file", f"unreadable ({error})", "outcomes as robench writes them")
        ) from error
    return from_csv(content, where=path.name)
