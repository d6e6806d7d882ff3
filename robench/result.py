"""A result: what a model scored under a protocol, and the conditions it was measured under.

`result.json` holds counts beside every value, no NaN, no times, sorted keys: the same outcomes give the
same bytes. Not here: the run that gathers outcomes (`runs`), and comparing two results (`comparison`).
"""

import json
import math
from collections.abc import Sequence
from itertools import zip_longest
from pathlib import Path
from shlex import quote
from statistics import NormalDist
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, PrivateAttr, ValidationError

from robench.errors import RunError, complaint, missing_or_unreadable
from robench.intervals import clustered, student_quantile, wilson
from robench.outcome import Outcome, digest, read_outcomes
from robench.protocol import Protocol, Sha256, parse_protocol
from robench.shift import EFFECTIVE_ROBUSTNESS, REFERENCE_DIFFERENCE, means, right, right_cells, tallies

SCHEMA: Literal["robench.result/1"] = "robench.result/1"
CLEAN = "clean"
"""Name of the metric on clean images."""


class _Record(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class Metric(_Record):
    """A proportion with its counts and 95 % interval: Wilson's over examples, or `clustered` over their answers."""

    name: str
    numerator: int = Field(ge=0)
    denominator: int = Field(gt=0)
    value: float
    interval: tuple[float, float]
    group: str = Field(default="", exclude_if=lambda group: not group)
    """Which metrics it belongs to: `cell`, `corruption`, `family` or `bias` under a shift; else none."""

    @property
    def text(self) -> str:
        """Such as `43.8 %`."""
        return percent(self)

    @property
    def bounds(self) -> str:
        """The interval, such as `[39.5, 48.1]`."""
        low, high = self.interval
        return f"[{100 * low:.1f}, {100 * high:.1f}]"

    @classmethod
    def of(cls, name: str, numerator: int, denominator: int, *, group: str = "") -> "Metric":
        return cls._of(name, numerator, denominator, wilson(numerator, denominator), group)

    @classmethod
    def of_answers(cls, name: str, rights: Sequence[int], asks: int, *, group: str = "") -> "Metric":
        """The mean share of right answers, from those about each example."""
        return cls._of(name, sum(rights), len(rights) * asks, clustered(rights, asks), group)

    @classmethod
    def _of(cls, name: str, numerator: int, denominator: int, interval: tuple[float, float], group: str) -> "Metric":
        return cls(
            name=name,
            group=group,
            numerator=numerator,
            denominator=denominator,
            value=round(numerator / denominator, 6),
            interval=(round(interval[0], 6), round(interval[1], 6)),
        )


class Derived(_Record):
    """A number that is no share of right answers, such as mCE."""

    name: str
    value: float
    interval: tuple[float, float] | None
    """At 95 %, Student's over the examples; none of a single one."""
    note: str
    """What the number was computed with."""

    @property
    def is_difference(self) -> bool:
        """Whether it is a distance from another accuracy, told in points."""
        return self.name in (REFERENCE_DIFFERENCE, EFFECTIVE_ROBUSTNESS)

    @property
    def text(self) -> str:
        """Such as `56.2 %`, or `+3.2 points`."""
        return f"{100 * self.value:+.1f} points" if self.is_difference else f"{100 * self.value:.1f} %"

    @property
    def bounds(self) -> str:
        """The interval, such as `[54.1, 58.3]` or `[+1.0, +5.4]`; "" where there is none."""
        if self.interval is None:
            return ""
        low, high = (f"{100 * bound:{'+' if self.is_difference else ''}.1f}" for bound in self.interval)
        return f"[{low}, {high}]"

    @classmethod
    def of(cls, name: str, value: float, parts: Sequence[float], note: str) -> "Derived":
        """A number that spreads as the mean of these parts does, one for each example."""
        count, middle = len(parts), math.fsum(parts) / len(parts)
        if count == 1:
            return cls(name=name, value=round(value, 6), interval=None, note=note)
        spread = math.sqrt(math.fsum((part - middle) ** 2 for part in parts) / (count - 1))
        half = student_quantile(0.975, count - 1) * spread / math.sqrt(count)
        return cls(
            name=name, value=round(value, 6), interval=(round(value - half, 6), round(value + half, 6)), note=note
        )

    @classmethod
    def of_shares(cls, name: str, value: float, *shares: tuple[float, int, float], note: str) -> "Derived":
        """A number that moves with shares of different examples: each with how many these are, and its factor."""
        variances = [factor**2 * share * (1 - share) / count for share, count, factor in shares]
        half = NormalDist().inv_cdf(0.975) * math.sqrt(math.fsum(variances))
        interval = round(value - half, 6), round(value + half, 6)
        return cls(name=name, value=round(value, 6), interval=interval, note=note)


class ProtocolRecord(_Record):
    """Which protocol, exactly."""

    id: str
    version: int
    digest: Sha256
    official: bool

    @property
    def exact_name(self) -> str:
        """`id@version`."""
        return f"{self.id}@{self.version}"


class ModelRecord(_Record):
    """Which model, exactly."""

    name: str
    reference: str | None = None
    """What names the model to robench (`mini-resnet`); none for a callable that was handed in."""
    revision: str | None = None
    """Commit of the repository on the Hub that the weights came from; none for others."""
    loader: str
    """What built it: a class, or `callable`."""
    weights_sha256: Sha256 | None = None
    state_digest: Sha256 | None = None
    configuration_sha256: Sha256 | None = None
    """Of what a module is beside its state: its parts as it prints them, and unsaved buffers."""
    parameters: int | None = None
    fingerprint: tuple[tuple[int, float], ...] = ()
    """Best class and its logit on the pinned images of the mini generator."""


class DataRecord(_Record):
    """Which examples, exactly."""

    source: str
    reference: str | None = None
    """What names the data on the Hub, with its commit; none for other data."""
    count: int
    """Examples evaluated."""
    of: int
    """Examples the protocol asks for."""
    ids_sha256: Sha256
    pixels_sha256: Sha256
    """Sum modulo 2**256 of SHA-256(id, decoded pixels) over the examples, so order does not matter."""
    official: bool
    """Whether the whole id list is the protocol's."""


class Counts(_Record):
    """How many examples met which end."""

    evaluated: int
    errored: int
    unconfirmed: int
    """Successes of the attack that the model itself denied when asked again."""


class OutcomesRecord(_Record):
    """The table of outcomes beside the result."""

    file: Literal["outcomes.csv.gz"] = "outcomes.csv.gz"
    sha256: Sha256
    """Of the uncompressed CSV."""
    rows: int


class Result(_Record):
    """What a model scored under a protocol. `print` shows one line; the fields hold the rest."""

    schema_name: Literal["robench.result/1"] = Field(default=SCHEMA, alias="schema")
    engine: Literal["native", "reference"] = "native"
    attack_revision: int
    """Of the attacks' code; two revisions may differ in outcomes."""
    status: Literal["complete", "partial", "unofficial"]
    """`complete` alone can be submitted: the official protocol on all of its own data, without error."""
    protocol: ProtocolRecord
    model: ModelRecord
    reference: ModelRecord | None = Field(default=None, exclude_if=lambda reference: reference is None)
    """The model to which the difference ranks, where the protocol has one."""
    data: DataRecord
    metrics: tuple[Metric, ...]
    derived: tuple[Derived, ...] = Field(default=(), exclude_if=lambda derived: not derived)
    """Numbers that are no shares of right answers."""
    counts: Counts
    caveats: tuple[str, ...] = ()
    outcomes: OutcomesRecord
    environment: dict[str, str]

    _folder: Path | None = PrivateAttr(default=None)
    _cost: dict[str, Any] = PrivateAttr(default_factory=dict)

    @property
    def run_dir(self) -> Path | None:
        """Folder of the run that gave this result."""
        return self._folder

    @property
    def cost(self) -> dict[str, Any]:
        """Wall seconds, passes and peak memory (`cost.json`); empty when the file is not there."""
        return self._cost

    @property
    def clean(self) -> Metric:
        """Accuracy on the clean images.

        Raises:
          RunError: there were none, as may be under a protocol with `[shift]`.
        """
        found = next((metric for metric in self.metrics if metric.name == CLEAN), None)
        if found is None:
            advice = "Evaluate `imagenet-val`, or where the protocol has cells give `clean=`."
            raise RunError(complaint("result", "clean", "not measured", "clean images", advice))
        return found

    @property
    def headline(self) -> Metric:
        """The number that ranks: the last metric."""
        return self.metrics[-1]

    @property
    def ranking(self) -> Metric | Derived:
        """The number that ranks: the difference to the reference model where there is one, else the headline."""
        return next((each for each in self.derived if each.name == REFERENCE_DIFFERENCE), self.headline)

    @property
    def shifted(self) -> bool:
        """Whether images were shifted away from the training set's, and not attacked."""
        return self.headline.name.startswith("top1")

    @property
    def asks(self) -> int | None:
        """How many answers about each image were scored, under a protocol that asks many times; else None."""
        if self.shifted:
            return None
        return self.headline.denominator // self.data.count if self.headline.denominator > self.data.count else None

    def read_outcomes(self) -> list[Outcome]:
        """The outcomes, one per example in protocol order, from the folder of the run.

        Raises:
          RunError: there is no folder, or its table differs from the one this result was made of.
        """
        if self._folder is None:
            raise RunError(complaint("result", "run_dir", "none", "a result that was read from a run folder"))
        return _verified_outcomes(self, self._folder)

    def to_bytes(self) -> bytes:
        """The content of `result.json`."""
        content = self.model_dump(mode="json", by_alias=True)
        return (json.dumps(content, sort_keys=True, indent=2, allow_nan=False) + "\n").encode()

    def in_folder(self, folder: Path, cost: dict[str, Any]) -> "Result":
        """The same result, which knows its run folder and cost."""
        self._folder, self._cost = folder, cost
        return self

    def __str__(self) -> str:
        parts = [f"clean {percent(metric)}" for metric in self.metrics if metric.name == CLEAN]
        if self.headline.name != CLEAN:
            name = self.headline.name if self.shifted else "robust"
            parts.append(f"{name} {self.headline.text} {self.headline.bounds}")
        parts += [f"{metric.name} {percent(metric)}" for metric in self.metrics if metric.group == "bias"]
        parts += [f"{each.name} {each.text}" for each in self.derived]
        parts.append(f"{self.data.count} images")
        if self.asks is not None:
            parts.append(f"{self.asks} answers each")
        if self.engine != "native":
            parts.append("by the reference implementation")
        if "wall_seconds" in self._cost:
            parts.append(f"{self._cost['wall_seconds']:.0f} s")
        if self.status != "complete":
            parts.append(self.status)
        return ", ".join(parts)


def percent(metric: Metric) -> str:
    """A metric as text, such as `43.8 %`."""
    return f"{100 * metric.numerator / metric.denominator:.1f} %"


def holds(protocol: Protocol, outcome: Outcome) -> bool:
    """Whether an example counts for the headline of its protocol: right clean, and not fooled where it counts.

    Raises:
      RunError: an example is right in a share of its cells.
    """
    if protocol.shift is not None:
        if protocol.shift.kind == "corruptions":
            found = f"of {protocol.exact_name}, which sees each in {len(protocol.shift.cells)} cells"
            raise RunError(complaint("outcome", "examples", found, "examples that are right or wrong"))
        return right(protocol, outcome)
    if protocol.attack is None:
        return outcome.clean_correct
    return outcome.robust_at(protocol.score.steps[-1] if protocol.score.steps else None, protocol.score.scoring)


def shares(protocol: Protocol, outcome: Outcome) -> tuple[float, float]:
    """What an example adds to clean accuracy and to the headline: 0 or 1, or shares of right answers."""
    asks, shift = protocol.score.asks, protocol.shift
    if shift is not None and shift.kind == "corruptions":
        return float(outcome.clean_correct), right_cells(protocol, outcome) / len(shift.cells)
    if asks is None:
        return float(outcome.clean_correct), float(holds(protocol, outcome))
    return _right(outcome, "clean_right", asks) / asks, _right(outcome, "attacked_right", asks) / asks


def _right(outcome: Outcome, column: str, asks: int) -> int:
    """Right answers about an example; none where it has no outcome."""
    right = getattr(outcome, column)
    if right is None or not 0 <= right <= asks:
        raise RunError(complaint(outcome.id, column, right, f"a count from 0 to {asks}, the asks of the protocol"))
    return 0 if outcome.error else int(right)


def score(protocol: Protocol, outcomes: Sequence[Outcome]) -> tuple[Metric, ...]:
    """The metrics of a protocol, computed from outcomes alone; errored examples count as failures.

    Under a protocol that asks many times, counts are answers: those that were right, of all.

    Raises:
      RunError: there are no outcomes, or they lack the counts of right answers.
    """
    if not outcomes:
        raise RunError(complaint(protocol.exact_name, "outcomes", "empty", "at least one example"))
    if protocol.shift is not None:
        return tuple(
            Metric.of(each.name, sum(each.rights), len(each.rights), group=each.group)
            if each.asks == 1
            else Metric.of_answers(each.name, each.rights, each.asks, group=each.group)
            for each in tallies(protocol, outcomes)
        )
    asks, total = protocol.score.asks, len(outcomes)
    if asks is not None:
        columns = {CLEAN: "clean_right", "robust": "attacked_right"}
        rights = {name: [_right(outcome, column, asks) for outcome in outcomes] for name, column in columns.items()}
        return tuple(Metric.of_answers(name, counts, asks) for name, counts in rights.items())
    metrics = [Metric.of(CLEAN, sum(outcome.clean_correct for outcome in outcomes), total)]
    for step in protocol.score.steps:
        survivors = sum(outcome.robust_at(step, protocol.score.scoring) for outcome in outcomes)
        metrics.append(Metric.of(f"robust@{step}", survivors, total))
    stages = protocol.score.stages or ()
    for number, stage in enumerate(stages, start=1):
        survivors = sum(outcome.clean_correct and outcome.stage not in stages[:number] for outcome in outcomes)
        metrics.append(Metric.of(f"robust@{stage}", survivors, total))
    if protocol.attack is not None and not protocol.score.steps and not stages:
        metrics.append(Metric.of("robust", sum(holds(protocol, outcome) for outcome in outcomes), total))
    return tuple(metrics)


def derive(protocol: Protocol, outcomes: Sequence[Outcome]) -> tuple[Derived, ...]:
    """The numbers of a protocol that are no shares of right answers, computed from outcomes alone."""
    if protocol.shift is None:
        return ()
    return tuple(Derived.of(each.name, each.value, each.parts, each.note) for each in means(protocol, outcomes))


def read_result(folder: Path) -> Result:
    """Read `result.json` of a run folder, and recompute its metrics from the outcomes beside it.

    How to recompute is in the protocol, which lies in the `plan.json` of the run; without that file the
    outcomes' digest alone is compared.

    Raises:
      RunError: a file is missing or malformed, or result and outcomes do not belong together.
    """
    path = folder / "result.json"
    try:
        result = Result.model_validate_json(path.read_bytes())
    except OSError as error:
        begun = (folder / "plan.json").is_file()
        advice = f"Finish the run first: `robench resume {quote(str(folder))}`." if begun else "It holds no run."
        found = missing_or_unreadable(error)
        raise RunError(complaint(str(folder), "result.json", found, "a finished run", advice)) from error
    except ValidationError as error:
        first = error.errors()[0]
        key = ".".join(map(str, first["loc"])) or "result"
        raise RunError(complaint(str(path), key, repr(first["input"])[:80], first["msg"])) from error
    _hold_to_outcomes(result, folder, _verified_outcomes(result, folder))
    try:
        cost: dict[str, Any] = json.loads((folder / "cost.json").read_bytes())
    except (OSError, ValueError):
        cost = {}
    return result.in_folder(folder, cost)


def _hold_to_outcomes(result: Result, folder: Path, outcomes: Sequence[Outcome]) -> None:
    """Compare the metrics of a result with those that its outcomes give."""
    path, advice = folder / "plan.json", "One of the two files was changed; run again with `--fresh`."
    if not path.exists():
        return
    try:
        content = json.loads(path.read_bytes())["protocol"]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise RunError(complaint(str(path), "protocol", "unreadable", "the protocol of the run", advice)) from error
    protocol = parse_protocol(content, where=str(path))
    if protocol.digest != result.protocol.digest:
        expected = f"{result.protocol.digest}, as result.json says"
        raise RunError(complaint(str(path), "protocol", protocol.digest, expected, advice))
    for stated, found in zip_longest(result.metrics, score(protocol, outcomes)):
        if stated != found:
            expected = f"{_counts(found)}, as the outcomes say"
            raise RunError(complaint(str(folder / "result.json"), "metrics", _counts(stated), expected, advice))
    if (numbers := derive(protocol, outcomes)) != result.derived:
        found, expected = (
            ", ".join(f"{each.name} {each.value}" for each in some) for some in (result.derived, numbers)
        )
        raise RunError(
            complaint(str(folder / "result.json"), "derived", found, f"{expected}, as the outcomes say", advice)
        )


def _counts(metric: Metric | None) -> str:
    if metric is None:
        return "missing"
    low, high = metric.interval
    return f"{metric.name} {metric.numerator}/{metric.denominator} = {metric.value} [{low}, {high}]"


def _verified_outcomes(result: Result, folder: Path) -> list[Outcome]:
    outcomes = read_outcomes(folder / result.outcomes.file)
    found = digest(outcomes)
    if found != result.outcomes.sha256:
        raise RunError(
            complaint(
                str(folder / result.outcomes.file),
                "sha256",
                found,
                f"{result.outcomes.sha256}, as result.json says",
                "One of the two files was changed; run again with `--fresh`.",
            )
        )
    return outcomes
