"""A result: what a model scored under a protocol, and the conditions it was measured under.

`result.json` holds counts beside every value, no NaN, no times, sorted keys: the same outcomes give the
same bytes. Not here: the run that gathers outcomes (`runs`), and comparing two results (`comparison`).
"""

import json
import math
from collections.abc import Sequence
from itertools import zip_longest
from pathlib import Path
from statistics import NormalDist
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, PrivateAttr, ValidationError

from robench.errors import RunError, complaint
from robench.outcome import Outcome, digest, read_outcomes
from robench.protocol import Protocol, Sha256, parse_protocol

SCHEMA: Literal["robench.result/1"] = "robench.result/1"


class _Record(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


def wilson(successes: int, total: int, confidence: float = 0.95) -> tuple[float, float]:
    """Wilson score interval of a proportion.

    Args:
      successes: from 0 to total.
      total: number of trials, at least 1.
      confidence: of the two-sided interval.
    Returns:
      Lower and upper bound, in [0, 1].
    Example:
      >>> [round(bound, 4) for bound in wilson(43, 100)]
      [0.3373, 0.5278]

    References:
      Wilson 1927, "Probable inference, the law of succession, and statistical inference". Deviates: none.
    """
    if not 0 <= successes <= total or total < 1:
        raise ValueError(f"wilson: {successes} of {total} is no proportion")
    z = NormalDist().inv_cdf(0.5 + confidence / 2)
    share, square = successes / total, z * z
    centre = (share + square / (2 * total)) / (1 + square / total)
    half = z * math.sqrt(share * (1 - share) / total + square / (4 * total * total)) / (1 + square / total)
    # At 0 and at the total the bound is exactly 0 and 1; rounding must not move it.
    low = 0.0 if successes == 0 else max(0.0, centre - half)
    high = 1.0 if successes == total else min(1.0, centre + half)
    return low, high


class Metric(_Record):
    """A proportion with its counts and 95 % Wilson interval."""

    name: str
    numerator: int = Field(ge=0)
    denominator: int = Field(gt=0)
    value: float
    interval: tuple[float, float]

    @classmethod
    def of(cls, name: str, numerator: int, denominator: int) -> "Metric":
        low, high = wilson(numerator, denominator)
        value = round(numerator / denominator, 6)
        return cls(
            name=name,
            numerator=numerator,
            denominator=denominator,
            value=value,
            interval=(round(low, 6), round(high, 6)),
        )


class ProtocolRecord(_Record):
    """Which protocol, exactly."""

    id: str
    version: int
    digest: Sha256
    official: bool


class ModelRecord(_Record):
    """Which model, exactly."""

    name: str
    reference: str | None = None
    """What names the model to robench (`mini-resnet`); none for a callable that was handed in."""
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
    data: DataRecord
    metrics: tuple[Metric, ...]
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
        """Accuracy on the clean images."""
        return self.metrics[0]

    @property
    def headline(self) -> Metric:
        """The number that ranks: the last metric."""
        return self.metrics[-1]

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
        parts = [f"clean {percent(self.clean)}"]
        if self.headline is not self.clean:
            low, high = self.headline.interval
            parts.append(f"robust {percent(self.headline)} [{100 * low:.1f}, {100 * high:.1f}]")
        parts.append(f"{self.data.count} images")
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
    """Whether an example counts for the headline of its protocol: right clean, and not fooled where it counts."""
    if protocol.attack is None:
        return outcome.clean_correct
    return outcome.robust_at(protocol.score.steps[-1] if protocol.score.steps else None, protocol.score.scoring)


def score(protocol: Protocol, outcomes: Sequence[Outcome]) -> tuple[Metric, ...]:
    """The metrics of a protocol, computed from outcomes alone; errored examples count as failures.

    Raises:
      RunError: there are no outcomes.
    """
    if not outcomes:
        raise RunError(complaint(protocol.exact_name, "outcomes", "empty", "at least one example"))
    total = len(outcomes)
    metrics = [Metric.of("clean", sum(outcome.clean_correct for outcome in outcomes), total)]
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
        advice = f"Finish the run first: `robench resume {folder}`."
        raise RunError(complaint(str(folder), "result.json", "missing", "a finished run", advice)) from error
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
