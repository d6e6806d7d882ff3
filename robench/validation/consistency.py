"""Whether outcomes can have come from the attack of their protocol: do predictions, margins, steps and stages fit.

Not here: what they add up to (`arithmetic`).
"""

import math
from collections.abc import Callable, Iterator, Sequence, Set
from functools import partial

from robench.caveats import caveats_of
from robench.outcome import Outcome
from robench.protocol import Protocol
from robench.result import Result
from robench.shift import has_clean
from robench.submission import OUTCOMES, RESULT, shown
from robench.validation.findings import Finding
from robench.validation.reading import Place

Check = Callable[[Outcome], tuple[str, str] | None]
"""What was found and what was expected; None where nothing is wrong."""
_OPTIONAL = ("clean_right", "attacked_right", "queries", "patches", "area", "among", "cells", "texture", "reference")
"""Columns of outcomes that only some protocols have."""


def check_consistency(
    place: Place, result: Result, protocol: Protocol, outcomes: Sequence[Outcome]
) -> Iterator[Finding]:
    """Each code is given once, for the first line it is about, with the number of others."""
    table = place.file(OUTCOMES)
    unseen = protocol.shift is not None and protocol.shift.kind == "corruptions" and not has_clean(outcomes)
    native, listed = result.engine == "native", {outcome.label for outcome in outcomes}
    for code, check in _checks(protocol, native=native, least=-1 if unseen else 0, listed=listed).items():
        wrong = [(line, what) for line, outcome in enumerate(outcomes, start=2) if (what := check(outcome)) is not None]
        if wrong:
            line, (found, expected) = wrong[0]
            more = f" (and {len(wrong) - 1} more lines)" if len(wrong) > 1 else ""
            yield Finding(code, table, f"line {line}", found + more, expected)
    for caveat in caveats_of(protocol, outcomes):
        if caveat not in result.caveats:
            yield Finding("RB507", place.file(RESULT), "/caveats", f"{len(result.caveats)} others", shown(caveat, 200))


def _checks(protocol: Protocol, *, native: bool, least: int, listed: Set[int]) -> dict[str, Check]:
    """The checks that have a meaning under this protocol, by code.

    Args:
      protocol: of the claim.
      native: whether robench's own attacks made it.
      least: the lowest class that may have been predicted; -1 where clean images were not seen.
      listed: the classes that examples have.
    """
    classes = partial(_classes, classes=protocol.data.classes, least=least)
    checks: dict[str, Check] = {"RB501": classes, "RB506": _ended}
    if protocol.score.asks is not None:  # classes are those most often answered, and margins of mean logits
        return checks
    checks["RB502"] = _clean
    if protocol.attack is None:
        checks["RB508"] = partial(_only_seen, columns=_read_off(protocol), listed=listed)
        return checks
    last = protocol.score.steps[-1] if protocol.score.scoring == "last iterate" else None
    checks["RB503"] = partial(_broken, last=last)
    checks["RB504"] = partial(_robust, last=last, native=native)
    steps = protocol.attack.settings.get("steps") if protocol.attack.kind == "pgd" else None  # others count queries
    most = steps if isinstance(steps, int) else None
    checks["RB505"] = partial(_steps, stages=protocol.score.stages, most=most)
    return checks


def _read_off(protocol: Protocol) -> set[str]:
    """The columns that outcomes have under a protocol without an attack, beside those that all have."""
    shift = protocol.shift
    asked = {
        "cells": shift is not None and shift.kind == "corruptions",
        "texture": shift is not None and shift.kind == "textures",
        "among": shift is not None and shift.among is not None,
        "reference": shift is not None and shift.reference is not None,
    }
    return {name for name, is_asked in asked.items() if is_asked}


def _classes(outcome: Outcome, classes: int, least: int) -> tuple[str, str] | None:
    predicted = outcome.clean, outcome.attacked
    known = [each for each in (outcome.label, outcome.among, outcome.texture, outcome.reference) if each is not None]
    if outcome.error or (min(predicted) >= least and min(known) >= 0 and max(*predicted, *known) < classes):
        return None
    return shown(f"classes {', '.join(map(str, (*known, *predicted)))}"), f"{least} to {classes - 1}"


def _ended(outcome: Outcome) -> tuple[str, str] | None:
    return (shown(outcome.error), "an outcome for every example") if outcome.error else None


def _clean(outcome: Outcome) -> tuple[str, str] | None:
    right, margin = outcome.clean == outcome.label, outcome.clean_margin
    if outcome.error or (math.isfinite(margin) and (margin >= 0 if right else margin <= 0)):
        return None
    sign = "at least 0" if right else "at most 0"
    return f"{'right' if right else 'wrong'} with a margin of {margin}", f"a margin of {sign}"


def _only_seen(outcome: Outcome, columns: Set[str], listed: Set[int]) -> tuple[str, str] | None:
    """Without an attack there is nothing but the images as they are, and what the protocol reads off."""
    attacked = outcome.attacked != outcome.clean or outcome.attacked_margin != outcome.clean_margin
    if attacked or outcome.fooled_at or outcome.stage or outcome.unconfirmed:
        found = shown(f"class {outcome.attacked} after {outcome.clean}, steps {outcome.fooled_at}")
        return found, "no trace of an attack"
    there = {name for name in _OPTIONAL if getattr(outcome, name) is not None}
    if there != columns:
        return shown(", ".join(sorted(there)) or "no more columns"), ", ".join(sorted(columns)) or "no more columns"
    if outcome.among is not None and outcome.clean in listed and outcome.among != outcome.clean and not outcome.error:
        return shown(f"class {outcome.among} among those of which {outcome.clean} is best of all"), f"{outcome.clean}"
    return None


def _broken(outcome: Outcome, last: int | None) -> tuple[str, str] | None:
    """What is called broken is shown by class and margin, unless only an earlier step broke it."""
    if not outcome.fooled_at or outcome.error:
        return None
    if not outcome.clean_correct:
        return "broken, and wrong without an attack", "no attack on what is wrong clean"
    if last is not None and last not in outcome.fooled_at:
        return None
    if outcome.attacked != outcome.label and outcome.attacked_margin <= 0 and outcome.stage:
        return None
    what = shown(
        f"class {outcome.attacked} of label {outcome.label}, margin {outcome.attacked_margin}, {outcome.stage!r}"
    )
    return what, "another class than the label, a margin of at most 0, and a stage"


def _robust(outcome: Outcome, last: int | None, *, native: bool) -> tuple[str, str] | None:
    """What is called robust shows no trace of a success, unless the model denied it."""
    if outcome.error or outcome.fooled_at:
        return None
    denied = outcome.unconfirmed > 0 or not outcome.clean_correct or last is not None or not native
    if outcome.attacked != outcome.clean or outcome.stage:
        expected = f"the clean class, {outcome.clean}, and no stage"
    elif not math.isfinite(outcome.attacked_margin) or (outcome.attacked_margin < 0 and not denied):
        expected = "a margin of at least 0, or a success that the model denied"
    else:
        return None
    return shown(f"class {outcome.attacked}, margin {outcome.attacked_margin}, stage {outcome.stage!r}"), expected


def _steps(outcome: Outcome, stages: Sequence[str] | None, most: int | None) -> tuple[str, str] | None:
    if outcome.stage and stages and outcome.stage not in stages:
        return shown(outcome.stage), f"one of {', '.join(stages)}"
    steps = outcome.fooled_at
    if steps and (min(steps) < 0 or (most is not None and max(steps) > most)):
        return shown(f"steps {steps}"), f"steps from 0 to {most}" if most is not None else "steps from 0"
    return None
