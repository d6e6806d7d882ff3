"""How outcomes without an attack become numbers: shares of right answers, and what is computed from them.

Not here: intervals and records (`result`), AlexNet's errors (`alexnet`), and lines (`lines`).
"""

import math
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from robench import alexnet
from robench.errors import RunError, complaint
from robench.lines import line_of
from robench.outcome import Outcome
from robench.protocol import Protocol, ShiftSpec

_HEX = re.compile("[0-9a-f]+")
HEADLINE_OF_CELLS = "top1@cells"
REFERENCE_DIFFERENCE = "over reference"
"""Name of the number that ranks where there is a reference model."""
EFFECTIVE_ROBUSTNESS = "effective robustness"
"""Name of the distance from the line of clean against shifted accuracy."""


@dataclass(frozen=True)
class Tally:
    """Right answers about each of some examples, out of equally many asked."""

    name: str
    group: str
    rights: Sequence[int]
    asks: int = 1


@dataclass(frozen=True)
class Mean:
    """A number whose sampling error is that of a mean over examples.

    Attributes:
      name: of the number.
      value: of all examples together.
      parts: one number for each example, whose spread over the examples is that of `value`; their mean need not be
        `value`, which may be a function of several means.
      note: what it was computed with.
    """

    name: str
    value: float
    parts: Sequence[float]
    note: str = ""


def right_cells(protocol: Protocol, outcome: Outcome) -> int:
    """How many cells of an example were right."""
    return right_mask(protocol, outcome).bit_count()


def right_mask(protocol: Protocol, outcome: Outcome) -> int:
    """Which cells of an example were right: bit i, from the lowest, is cell i of the protocol; none if it is errored.

    Raises:
      RunError: the outcome has no such mask.
    """
    return _mask(_shift(protocol), outcome)


def right(protocol: Protocol, outcome: Outcome) -> bool:
    """Whether an example counts for the headline of a shift that shows one image of it."""
    shift = _shift(protocol)
    predicted = outcome.clean if shift.among is None else _number(outcome, "among")
    return not outcome.error and predicted == outcome.label and scored(protocol, outcome)


def scored(protocol: Protocol, outcome: Outcome) -> bool:
    """Whether the headline asks about an example at all: not where shape and texture are of one class."""
    return _shift(protocol).kind != "textures" or _number(outcome, "texture") != outcome.label


def over_reference(protocol: Protocol, outcome: Outcome) -> int:
    """Right minus right of the reference model: -1, 0 or 1; 0 where there is no outcome."""
    if outcome.error:
        return 0
    return right(protocol, outcome) - (_number(outcome, "reference") == outcome.label)


def tallies(protocol: Protocol, outcomes: Sequence[Outcome]) -> list[Tally]:
    """What is counted, in the order of the metrics; errored examples count as wrong.

    Raises:
      RunError: an outcome lacks what the protocol asks for.
    """
    return _KINDS[_shift(protocol).kind](protocol, outcomes)


def means(protocol: Protocol, outcomes: Sequence[Outcome]) -> list[Mean]:
    """What is computed, and is no share of right answers."""
    shift = _shift(protocol)
    if shift.reference is not None:
        return [_over_reference(protocol, outcomes)]
    if shift.kind == "corruptions":
        return _of_errors(protocol, shift, outcomes)
    return []


def has_clean(outcomes: Sequence[Outcome]) -> bool:
    """Whether clean images were given."""
    return any(outcome.clean >= 0 for outcome in outcomes)


def _shift(protocol: Protocol) -> ShiftSpec:
    if protocol.shift is None:
        raise ValueError(f"{protocol.exact_name} has no shift")
    return protocol.shift


def _number(outcome: Outcome, column: str) -> int:
    value = getattr(outcome, column)
    if value is None:
        raise RunError(complaint(outcome.id, column, "missing", "what the protocol reads off"))
    return int(value)


def _natural(protocol: Protocol, outcomes: Sequence[Outcome]) -> list[Tally]:
    shift = _shift(protocol)
    found = [Tally("top1", "", [int(outcome.clean_correct) for outcome in outcomes])]
    if shift.reference is not None:
        seen = [int(not outcome.error and _number(outcome, "reference") == outcome.label) for outcome in outcomes]
        found.insert(0, Tally("reference", "", seen))
    if shift.among is not None:
        found.append(Tally("top1@among", "", [int(right(protocol, outcome)) for outcome in outcomes]))
    return found


def _over_reference(protocol: Protocol, outcomes: Sequence[Outcome]) -> Mean:
    """Mean of (right minus right of the reference)."""
    parts = [over_reference(protocol, outcome) for outcome in outcomes]
    note = f"top-1 minus that of {_shift(protocol).reference} on the same images, paired"
    return Mean(REFERENCE_DIFFERENCE, math.fsum(parts) / len(parts), parts, note)


def _textures(protocol: Protocol, outcomes: Sequence[Outcome]) -> list[Tally]:
    """Top-1 by shape, and of the decisions for shape or texture the share for shape; conflicts alone."""
    conflicts = [outcome for outcome in outcomes if scored(protocol, outcome)]
    if not conflicts:
        raise RunError(complaint(protocol.exact_name, "texture", "that of the shape everywhere", "some conflicts"))
    for_either = [
        int(outcome.clean_correct)
        for outcome in conflicts
        if not outcome.error and outcome.clean in (outcome.label, outcome.texture)
    ]
    bias = [Tally("shape bias", "bias", for_either)] if for_either else []
    return [*bias, Tally("top1", "", [int(outcome.clean_correct) for outcome in conflicts])]


def _mask(shift: ShiftSpec, outcome: Outcome) -> int:
    """The mask of an example, as a number; none right where it is errored."""
    width, text = len(shift.cells), outcome.cells
    if text is None or len(text) != mask_digits(width) or not _HEX.fullmatch(text) or int(text, 16) >> width:
        raise RunError(
            complaint(outcome.id, "cells", repr(text), f"a mask of {width} bits, {mask_digits(width)} digits")
        )
    return 0 if outcome.error else int(text, 16)


def mask_digits(cells: int) -> int:
    """Hexadecimal digits that a mask of so many bits takes."""
    return -(-cells // 4)


def mask_text(rights: Sequence[bool]) -> str:
    """The mask of some cells, as outcomes store it.

    Example:
      >>> mask_text([True, False, False, False, True])
      '11'
    """
    number = sum(1 << place for place, is_right in enumerate(rights) if is_right)
    return f"{number:0{mask_digits(len(rights))}x}"


def _corruptions(protocol: Protocol, outcomes: Sequence[Outcome]) -> list[Tally]:
    shift = _shift(protocol)
    masks = [_mask(shift, outcome) for outcome in outcomes]
    cells, families = shift.cells, shift.families or {}

    def counted(name: str, group: str, chosen: Callable[[str], bool]) -> Tally:
        bits = sum(1 << place for place, (corruption, _) in enumerate(cells) if chosen(corruption))
        return Tally(name, group, [(mask & bits).bit_count() for mask in masks], bits.bit_count())

    found = []
    if has_clean(outcomes):
        found.append(Tally("clean", "", [int(outcome.clean_correct) for outcome in outcomes]))
    for place, (corruption, severity) in enumerate(cells):
        found.append(Tally(f"{corruption}/{severity}", "cell", [mask >> place & 1 for mask in masks]))
    found += [counted(name, "corruption", name.__eq__) for name in shift.corruptions]
    found += [counted(family, "family", names.__contains__) for family, names in sorted(families.items())]
    return [*found, counted(HEADLINE_OF_CELLS, "", lambda _: True)]


def _of_errors(protocol: Protocol, shift: ShiftSpec, outcomes: Sequence[Outcome]) -> list[Mean]:
    """Mean error, mCE and relative mCE, and effective robustness where clean images were seen."""
    severities, corruptions = shift.severities or 1, shift.corruptions
    wrong = [_wrong_by_corruption(shift, outcome) for outcome in outcomes]
    cells = len(shift.cells)
    errors = [sum(row) / cells for row in wrong]
    mean_error = math.fsum(errors) / len(errors)
    found = [Mean("mean error", mean_error, errors, f"over {len(corruptions)} corruptions x {severities} severities")]
    clean = [float(not outcome.clean_correct) for outcome in outcomes] if has_clean(outcomes) else None
    if shift.errors_of is not None:
        sums = [math.fsum(alexnet.errors(name)[:severities]) for name in corruptions]
        parts = [math.fsum(a / b for a, b in zip(row, sums, strict=True)) / len(sums) for row in wrong]
        found.append(Mean("mCE", math.fsum(parts) / len(parts), parts, "errors divided by AlexNet's"))
        if clean is not None:
            found.append(_relative(wrong, clean, sums, severities))
    line = line_of(protocol.data.source)
    if clean is not None and line is not None:
        accuracy = 1 - math.fsum(clean) / len(clean)
        if 0 < accuracy < 1:
            slope = line.steepness(accuracy)
            parts = [slope * lost - error for error, lost in zip(errors, clean, strict=True)]
            found.append(Mean(EFFECTIVE_ROBUSTNESS, 1 - mean_error - line.at(accuracy), parts, line.source))
    return found


def _wrong_by_corruption(shift: ShiftSpec, outcome: Outcome) -> list[int]:
    """Wrong severities of each corruption; the cells of one stand side by side."""
    mask, severities = _mask(shift, outcome), shift.severities or 1
    one = (1 << severities) - 1
    return [severities - (mask >> severities * place & one).bit_count() for place in range(len(shift.corruptions))]


def _relative(wrong: Sequence[Sequence[int]], clean: Sequence[float], sums: Sequence[float], severities: int) -> Mean:
    """Relative mCE: what corruptions add to the clean error, divided by what they add to AlexNet's."""
    added = [total - severities * alexnet.CLEAN_ERROR for total in sums]
    parts = [
        math.fsum((count - severities * lost) / more for count, more in zip(row, added, strict=True)) / len(added)
        for row, lost in zip(wrong, clean, strict=True)
    ]
    return Mean("relative mCE", math.fsum(parts) / len(parts), parts, "errors added, divided by those of AlexNet")


_KINDS: dict[str, Callable[[Protocol, Sequence[Outcome]], list[Tally]]] = {
    "natural": _natural,
    "corruptions": _corruptions,
    "textures": _textures,
}
