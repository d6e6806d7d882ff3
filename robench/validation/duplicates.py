"""Finds a model that is there twice: by its weights, its loader, its outcomes, its function, its margins.

A digest of weights changes with the last bit of one of them; what the model answers does not. So answers are compared
as vectors scaled to length one, which finds a copy whose weights were nudged, re-encoded or scaled, too. Not here: one
claim alone.
"""

import csv
import json
import math
import tomllib
from collections import Counter, defaultdict
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from operator import mul

from pydantic import ValidationError

from robench.result import Result
from robench.submission import OUTCOMES, RESULT, TOML
from robench.validation.findings import Finding
from robench.validation.reading import LARGEST, Place, read_plain, unpack

SAME = 0.005
"""Distance of two answers, as vectors of length one, below which they are the same function's; the tests show what half
floats change, and how far the bundled models are from each other."""
PREFIX = 64
"""Examples that are compared before all are read."""
POINTS = 0.05
"""Lead over the best other claim that is remarkable."""


@dataclass(frozen=True)
class Identity:
    """What a claim is compared by."""

    place: Place
    result: Result

    @property
    def name(self) -> str:
        return self.place.model

    @cached_property
    def state(self) -> tuple[str, str | None] | None:
        """Weights and configuration."""
        model = self.result.model
        return (model.state_digest, model.configuration_sha256) if model.state_digest is not None else None

    @cached_property
    def loader(self) -> str | None:
        """The claim's `[loader]`, whatever the order of its keys; None where it has none."""
        try:
            content = read_plain(self.place.folder / TOML, LARGEST[TOML])
            said = tomllib.loads((content or b"").decode()).get("loader")
            return json.dumps(said, sort_keys=True, default=str) if said else None
        except (OSError, ValueError, RecursionError):
            return None  # says its own finding where it is checked

    @cached_property
    def function(self) -> Sequence[float] | None:
        """Logits of the best class on the pinned images; None for a model that draws random numbers."""
        return _unit([logit for _, logit in self.result.model.fingerprint])

    @cached_property
    def classes(self) -> Sequence[int]:
        return [best for best, _ in self.result.model.fingerprint]

    @cached_property
    def few_margins(self) -> Sequence[float] | None:
        """Clean margins of the first examples."""
        return _unit(self._margins(PREFIX))

    def margins(self) -> Sequence[float] | None:
        """Clean margins of all examples."""
        return _unit(self._margins(self.result.data.count))

    def _margins(self, count: int) -> list[float]:
        try:
            compressed = read_plain(self.place.folder / OUTCOMES, LARGEST[OUTCOMES])
            content = unpack(compressed or b"", (count + 1) * 120)
            rows = csv.DictReader((content or b"").decode(errors="replace").splitlines()[: count + 1])
            return [float(row["clean_margin"]) for row in rows]
        except (OSError, KeyError, TypeError, ValueError, csv.Error):
            return []  # says its own finding where it is checked


def _unit(values: Sequence[float]) -> list[float] | None:
    """The vector with length one; None where that means nothing."""
    length = math.sqrt(math.fsum(value * value for value in values)) if all(map(math.isfinite, values)) else 0.0
    return [value / length for value in values] if 0 < length < math.inf else None


def distance(first: Sequence[float] | None, second: Sequence[float] | None) -> float:
    """Of two vectors of length one; infinite where one is missing or they have different dimensions."""
    if first is None or second is None or len(first) != len(second):
        return math.inf
    return math.sqrt(max(0.0, 2 - 2 * sum(map(mul, first, second))))


def near(first: Sequence[float] | None, second: Sequence[float] | None, most: float) -> bool:
    """Whether the distance is below `most`; most pairs are told apart by their first number alone."""
    if first and second and abs(first[0] - second[0]) >= most:
        return False
    return distance(first, second) < most


def identities(places: Iterable[Place]) -> list[Identity]:
    """Those of all claims that can be read."""
    found = []
    for place in places:
        try:
            content = read_plain(place.folder / RESULT, LARGEST[RESULT])
            found.append(Identity(place, Result.model_validate_json(content or b"")))
        except (OSError, ValidationError):
            continue  # says its own finding where it is checked
    return found


def check_duplicates(known: Sequence[Identity], checked: Collection[Place]) -> Iterator[Finding]:
    """Compare the checked claims with all; of two checked ones the later is complained about."""
    ordered = sorted(known, key=lambda each: (each.place in checked, each.place))
    yield from _same_digests(ordered, checked)
    yield from _same_functions(ordered, checked)
    yield from _remarkable(ordered, checked)


def _same_digests(ordered: Sequence[Identity], checked: Collection[Place]) -> Iterator[Finding]:
    by_state: dict[object, Identity] = {}
    by_outcomes: dict[object, Identity] = {}
    by_name: dict[str, Identity] = {}
    by_loader: dict[str, Identity] = {}
    for each in ordered:
        file = each.place.file(RESULT)
        if each.loader is not None:
            like = by_loader.setdefault(each.loader, each)
            known = each.state is not None and each.state == like.state  # said below
            if like.name != each.name and each.place in checked and not known:
                found = f"that of {like.place.file()}"
                yield Finding("RB806", each.place.file(TOML), "/loader", found, "a loader of its own")
        if each.state is not None:
            first = by_state.setdefault(each.state, each)
            if first.name != each.name and each.place in checked:
                yield Finding(
                    "RB801", file, "/model/state_digest", f"that of {first.place.file()}", "weights of its own"
                )
            own = by_name.setdefault(each.name, each)
            if own.state != each.state and each.place in checked:
                yield Finding(
                    "RB805", file, "/model/state_digest", f"not that of {own.place.file()}", "one model under a name"
                )
        outcomes = by_outcomes.setdefault((each.place.protocol, each.result.outcomes.sha256), each)
        if outcomes.name != each.name and each.place in checked:
            yield Finding("RB802", file, "/outcomes/sha256", f"that of {outcomes.place.file()}", "outcomes of its own")


def _same_functions(ordered: Sequence[Identity], checked: Collection[Place]) -> Iterator[Finding]:
    models: dict[str, Identity] = {}
    same_protocol: Mapping[str, list[Identity]] = defaultdict(list)
    for each in ordered:
        if each.place in checked:
            file = each.place.file(RESULT)
            other = next((known for known in models.values() if _function_of_another(each, known)), None)
            if other is not None and each.name not in models:
                yield Finding(
                    "RB803", file, "/model/fingerprint", f"that of {other.place.file()}", "answers of its own"
                )
            like = next(
                (known for known in same_protocol[each.place.protocol] if _margins_of_another(each, known)), None
            )
            if like is not None and like.result.outcomes.sha256 != each.result.outcomes.sha256:
                table = each.place.file(OUTCOMES)
                yield Finding("RB804", table, "", f"nearly the margins of {like.place.file()}", "margins of its own")
        models.setdefault(each.name, each)
        same_protocol[each.place.protocol].append(each)


def _function_of_another(each: Identity, other: Identity) -> bool:
    """Whether two names stand for the same answers, from weights that differ."""
    if each.name == other.name or (each.state is not None and each.state == other.state):
        return False
    if not near(each.function, other.function, SAME):
        return False
    return sum(a != b for a, b in zip(each.classes, other.classes, strict=True)) <= len(each.classes) // 16


def _margins_of_another(each: Identity, other: Identity) -> bool:
    if each.name == other.name or not near(each.few_margins, other.few_margins, 2 * SAME):
        return False
    return near(each.margins(), other.margins(), SAME)


def _remarkable(ordered: Sequence[Identity], checked: Collection[Place]) -> Iterator[Finding]:
    """Claims far above all others, and by other attack code than all others."""
    same_protocol: Mapping[str, list[Identity]] = defaultdict(list)
    for each in ordered:
        if each.result.metrics:  # of a malformed claim, there may be none
            same_protocol[each.place.protocol].append(each)
    for claims in same_protocol.values():
        leaders = sorted(claims, key=lambda each: each.result.ranking.value)[-2:]
        revisions = Counter(each.result.attack_revision for each in claims)
        for each in claims:
            if each.place in checked and len(claims) > 1:
                rival = next(other for other in reversed(leaders) if other is not each)
                others = revisions - Counter([each.result.attack_revision])
                yield from _beyond(each, rival.result.ranking.value, sorted(others))


def _beyond(each: Identity, best: float, revisions: Sequence[int]) -> Iterator[Finding]:
    """A claim against the best value and the attack revisions of all others under its protocol."""
    file, ranking, revision = each.place.file(RESULT), each.result.ranking, each.result.attack_revision
    if ranking.value > best + POINTS:
        pointer = f"/metrics/{len(each.result.metrics) - 1}/value" if ranking is each.result.headline else "/derived"
        yield Finding("RB602", file, pointer, f"{ranking.value}", f"about {best}, the best so far")
    if revision not in revisions:
        yield Finding("RB605", file, "/attack_revision", f"{revision}", ", ".join(map(str, revisions)))
