"""Recomputes every number of a result from its outcomes.

Not here: whether the outcomes are believable (`consistency`).
"""

import hashlib
from collections.abc import Iterable, Iterator, Sequence
from itertools import zip_longest
from typing import Any

from robench.errors import RunError
from robench.outcome import Outcome
from robench.protocol import Protocol
from robench.result import Derived, Metric, Result, derive, score
from robench.submission import OUTCOMES, RESULT, shown
from robench.validation.findings import Finding
from robench.validation.reading import Place


def check_arithmetic(
    place: Place, result: Result, protocol: Protocol, *, outcomes: Sequence[Outcome], digest: str, labels: str | None
) -> Iterator[Finding]:
    """Digests, examples, labels, textures, metrics and counts.

    Args:
      place, result, protocol, outcomes: the claim.
      digest: SHA-256 of the table as it lies there.
      labels: SHA-256 of the official labels, joined by newlines; None: unknown.
    """
    table, stated = place.file(OUTCOMES), place.file(RESULT)
    if digest != result.outcomes.sha256:
        yield Finding("RB401", stated, "/outcomes/sha256", result.outcomes.sha256, f"{digest}, of the table beside it")
    if len(outcomes) != protocol.data.count:
        yield Finding(
            "RB402", table, "", f"{len(outcomes)} outcomes", f"{protocol.data.count}, as {protocol.exact_name} says"
        )
    ids = _digest(outcome.id for outcome in outcomes)
    if ids != protocol.data.ids_sha256:
        yield Finding("RB403", table, *_strange_ids([outcome.id for outcome in outcomes], ids, protocol))
    elif labels is not None and (found := _digest(str(outcome.label) for outcome in outcomes)) != labels:
        yield Finding("RB404", table, "", f"labels with the digest {found}", labels)
    textures = protocol.shift.textures_sha256 if protocol.shift is not None else None
    if textures is not None and (found := _digest(str(outcome.texture) for outcome in outcomes)) != textures:
        yield Finding("RB410", table, "", f"textures with the digest {found}", textures)
    yield from _metrics(stated, result, protocol, outcomes)
    yield from _equal(stated, "RB407", _counts(result, outcomes))
    about = result.data
    yield from _equal(
        stated,
        "RB408",
        {
            "/outcomes/rows": (result.outcomes.rows, len(outcomes)),
            "/data/count": (about.count, len(outcomes)),
            "/data/of": (about.of, protocol.data.count),
            "/data/ids_sha256": (about.ids_sha256, ids),
            "/data/source": (about.source, protocol.data.source),
        },
    )


def _digest(lines: Iterable[str]) -> str:
    return hashlib.sha256("\n".join(lines).encode()).hexdigest()


def _strange_ids(ids: Sequence[str], digest: str, protocol: Protocol) -> tuple[str, str, str]:
    """Pointer, found and expected for ids that are not the protocol's."""
    seen: set[str] = set()
    for line, example in enumerate(ids, start=2):
        if example in seen:
            return f"line {line}", f"{shown(example)} again", "every example once"
        seen.add(example)
    return "", f"ids with the digest {digest}", f"{protocol.data.ids_sha256}: the protocol's examples in its order"


def _metrics(where: str, result: Result, protocol: Protocol, outcomes: Sequence[Outcome]) -> Iterator[Finding]:
    try:
        recomputed, derived = score(protocol, outcomes), derive(protocol, outcomes)
    except RunError as error:
        yield Finding("RB405", where, "/metrics", shown(str(error), 160), "outcomes that can be scored")
        return
    for index, (stated, found) in enumerate(zip_longest(result.metrics, recomputed)):
        pointer = f"/metrics/{index}"
        if stated is None or found is None or _counted(stated) != _counted(found):
            yield Finding("RB405", where, pointer, _written(stated), f"{_written(found)}, as the outcomes say")
        elif stated != found:
            yield Finding("RB406", where, pointer, _bounds(stated), f"{_bounds(found)}, as its counts give")
    for index, (given, right) in enumerate(zip_longest(result.derived, derived)):
        if given != right:
            expected = f"{_named(right)}, as the outcomes say"
            yield Finding("RB409", where, f"/derived/{index}", shown(_named(given)), expected)


def _counted(metric: Metric) -> tuple[str, int, int]:
    return metric.name, metric.numerator, metric.denominator


def _written(metric: Metric | None) -> str:
    return shown(f"{metric.name} {metric.numerator}/{metric.denominator}") if metric is not None else "none"


def _bounds(metric: Metric) -> str:
    low, high = metric.interval
    return f"{metric.value} [{low}, {high}]"


def _named(number: Derived | None) -> str:
    if number is None:
        return "none"
    bounds = f" {list(number.interval)}" if number.interval is not None else ""
    return f"{number.name} {number.value}{bounds} ({number.note})"


def _counts(result: Result, outcomes: Sequence[Outcome]) -> dict[str, tuple[Any, Any]]:
    errored = sum(bool(outcome.error) for outcome in outcomes)
    return {
        "/counts/evaluated": (result.counts.evaluated, len(outcomes) - errored),
        "/counts/errored": (result.counts.errored, errored),
        "/counts/unconfirmed": (result.counts.unconfirmed, sum(outcome.unconfirmed for outcome in outcomes)),
    }


def _equal(where: str, code: str, pairs: dict[str, tuple[Any, Any]]) -> Iterator[Finding]:
    for pointer, (stated, found) in pairs.items():
        if stated != found:
            yield Finding(code, where, pointer, shown(stated), shown(found))
