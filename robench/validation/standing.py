"""Whether a claim is one that the leaderboard takes: its protocol, its loader, and what is remarkable about it.

Not here: its numbers (`arithmetic`, `consistency`), and other claims (`duplicates`).
"""

from collections import Counter
from collections.abc import Iterator, Sequence

from robench.errors import did_you_mean
from robench.outcome import Outcome
from robench.protocol import Protocol
from robench.result import Result
from robench.submission import OUTCOMES, RESULT, TOML, Submission, loader_of, shown
from robench.validation.findings import Finding
from robench.validation.reading import Place
from robench.validation.rules import Rules

ONE_CLASS = 0.9
"""Share of predictions from which on one class is remarkable."""


def protocol_of(place: Place, rules: Rules) -> Protocol | None:
    """The protocol that the folder names, if it is there."""
    return rules.protocols.get(place.protocol)


def check_protocol(place: Place, result: Result, rules: Rules) -> Iterator[Finding]:
    """The folder's protocol is a released one, and the result was measured under it, whole."""
    where, protocol, stated = place.file(RESULT), protocol_of(place, rules), result.protocol
    named = f"{stated.id}@{stated.version}"
    if named != place.protocol:
        yield Finding("RB305", where, "/protocol/id", shown(named), place.protocol)
    if protocol is None:
        expected = "the folder of a protocol of this version of robench"
        yield Finding(
            "RB301", place.file(), "", place.protocol, expected, did_you_mean(place.protocol, rules.protocols)
        )
        return
    locked = rules.lock.get(place.protocol)
    if protocol.status not in ("active", "superseded") or locked is None:
        yield Finding("RB303", where, "/protocol/id", f"{place.protocol}, {protocol.status}", "an active protocol")
    elif stated.digest != locked:
        yield Finding("RB302", where, "/protocol/digest", stated.digest, f"{locked}, as the lock says")
    if not protocol.ranked:
        yield Finding("RB304", where, "/protocol/id", f"{place.protocol}, not ranked", "a protocol that is ranked")
    yield from _measured_with(where, result, protocol)
    if result.status != "complete":
        yield Finding("RB306", where, "/status", result.status, "complete")
    for pointer, official in (("/protocol/official", stated.official), ("/data/official", result.data.official)):
        if not official:
            yield Finding("RB306", where, pointer, "false", "true")


def _measured_with(where: str, result: Result, protocol: Protocol) -> Iterator[Finding]:
    """The engine and the reference model are the protocol's."""
    if protocol.attack is None and result.engine != "native":
        yield Finding("RB308", where, "/engine", shown(result.engine), "native: nothing attacks here")
    reference = protocol.shift.reference_sha256 if protocol.shift is not None else None
    measured = result.reference.weights_sha256 if result.reference is not None else None
    if measured != reference:
        yield Finding("RB307", where, "/reference/weights_sha256", shown(measured), f"{reference}")


def check_plausibility(
    place: Place, result: Result, protocol: Protocol, outcomes: Sequence[Outcome]
) -> Iterator[Finding]:
    """What is possible, and remarkable."""
    where = place.file(RESULT)
    predicted = Counter(outcome.clean for outcome in outcomes if outcome.clean >= 0) or Counter({0: 0})
    prediction, times = predicted.most_common(1)[0]
    if times > ONE_CLASS * len(outcomes):
        found = f"class {shown(prediction)} for {times} of {len(outcomes)}"
        yield Finding("RB601", place.file(OUTCOMES), "", found, f"at most {ONE_CLASS:.0%} for one class")
    clean = next((metric for metric in result.metrics if metric.name == "clean"), None)
    if protocol.attack is not None and clean is not None:
        headline = result.headline
        if clean.denominator == headline.denominator and clean.numerator == headline.numerator > 0:
            found = f"{headline.numerator} robust of {clean.numerator} right"
            yield Finding("RB603", where, f"/metrics/{len(result.metrics) - 1}", found, "some that the attack breaks")
    if result.environment.get("git_dirty") == "yes":
        yield Finding("RB604", where, "/environment/git_dirty", "yes", "no")


def check_loader(place: Place, submission: Submission, result: Result) -> Iterator[Finding]:
    """What the loader names is what was measured, as far as the result says."""
    where, loader, measured = place.file(TOML), submission.loader, loader_of(result.model)
    if loader is None:
        yield Finding("RB703", where, "/loader", "none", "bundled, timm, hub, or repository")
        return
    named = loader.model_dump(exclude_none=True)
    for kind in ("bundled", "timm"):  # whose weights are published; the digest of others is all that a result knows
        if kind in named and kind not in measured:
            found = f"{shown(result.model.reference or 'a callable')} by {shown(result.model.loader)}"
            yield Finding("RB702", where, f"/loader/{kind}", named[kind], f"a loader of {found}, as result.json says")
    if "hub" in named and "hub" not in measured and "weights_sha256" not in named:
        expected = f"{measured.get('weights_sha256', 'the digest of the file')}, as nothing else says which weights"
        yield Finding("RB701", where, "/loader/weights_sha256", "none", expected)
    for key, expected in measured.items():
        stated = named.get(key)
        if key == "weights_sha256":
            if stated is not None and stated != expected:
                yield Finding("RB701", where, f"/loader/{key}", stated, f"{expected}, as result.json says")
        elif stated != expected:
            said = "none" if stated is None else shown(stated)
            yield Finding("RB702", where, f"/loader/{key}", said, f"{shown(expected)}, as result.json says")
