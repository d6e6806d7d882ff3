"""Verdicts about submissions, and the tier that follows from them: computed, never typed.

`verifications/<model>/<protocol>@<version>/<name>.json` holds counts: how many of the examples that a claim calls
robust were attacked again, and how many fell. Whether that refutes the claim is an exact binomial test against the rate
at which verdicts flip between honest machines. Not here: the attack of a challenge.
"""

import math
from collections.abc import Iterable
from pathlib import Path
from typing import Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from robench.errors import SubmissionError, complaint
from robench.protocol import Sha256
from robench.submission import Submission, shown

FOLDER = "verifications"
"""Where verdicts lie in the repository."""
LEVEL = 0.001
"""Chance that an honest claim is refuted."""
POWER = 0.97
"""Chance that a claim inflated by `INFLATION` is refuted, for a challenge to count."""
INFLATION = 0.02
"""Share of all examples by which a claim must be inflated to be caught so."""

Tier = Literal["reported", "checked", "spot-verified", "reproduced", "refuted"]
TIERS: dict[Tier, str] = {
    "reported": "valid; nothing says how anybody else gets the model",
    "checked": "valid, and the model can be loaded by anybody",
    "spot-verified": "a random sample of the examples called robust was attacked again, and stood",
    "reproduced": "all examples called robust were attacked again, and stood",
    "refuted": "too many of the examples called robust fell when they were attacked again",
}
"""What each tier means."""


class Verdict(BaseModel):
    """What came of attacking examples of a claim again."""

    model_config = ConfigDict(extra="forbid", strict=True, frozen=True)
    schema_name: Literal["robench.verdict/1"] = Field(alias="schema")
    result_sha256: Sha256
    """Of the `result.json` that was checked; a verdict about another file says nothing."""
    robust: int = Field(ge=0)
    """Examples that the claim calls robust."""
    of: int = Field(ge=1)
    """Examples of the claim."""
    asked: int = Field(ge=0)
    """How many of the robust ones were attacked again."""
    fell: int = Field(ge=0)
    """How many of those were broken."""
    flip_rate: float = Field(ge=0, lt=0.5, allow_inf_nan=False)
    """Measured share of verdicts that differ between honest machines."""
    by: str = Field(min_length=1, max_length=200)
    environment: dict[str, str] = Field(default_factory=dict)

    @model_validator(mode="after")
    def _counts(self) -> "Verdict":
        if not self.fell <= self.asked <= self.robust <= self.of:
            raise ValueError("expected fell <= asked <= robust <= of")
        return self

    @property
    def refutes(self) -> bool:
        """Whether so many examples fell that an honest claim would show it less than once in a thousand times."""
        return tail(self.fell, self.asked, self.flip_rate) < LEVEL

    @property
    def power(self) -> float:
        """Chance to refute a claim inflated by `INFLATION`."""
        if not self.asked:
            return 0.0
        critical = next(fell for fell in range(self.asked + 2) if tail(fell, self.asked, self.flip_rate) < LEVEL)
        false = min(1.0, INFLATION * self.of / self.robust)
        return tail(critical, self.asked, false + (1 - false) * self.flip_rate)


def tail(least: int, trials: int, rate: float) -> float:
    """Chance of at least so many successes in independent trials.

    Example:
      >>> round(tail(11, 300, 0.01), 6)
      0.000265
    """
    if least <= 0 or rate == 1:
        return float(least <= trials)
    if rate == 0 or least > trials:
        return 0.0
    log_rate, log_miss, log_all = math.log(rate), math.log1p(-rate), math.lgamma(trials + 1)
    chances = (
        math.exp(log_all - math.lgamma(n + 1) - math.lgamma(trials - n + 1) + n * log_rate + (trials - n) * log_miss)
        for n in range(least)
    )
    return max(0.0, 1.0 - math.fsum(chances))


def tier_of(submission: Submission, result_sha256: str, verdicts: Iterable[Verdict]) -> Tier:
    """The tier of a valid claim. One refutation counts for more than any number of confirmations."""
    about = [verdict for verdict in verdicts if verdict.result_sha256 == result_sha256]
    if any(verdict.refutes for verdict in about):
        return "refuted"
    if submission.loader is None:
        return "reported"
    if any(verdict.asked == verdict.robust for verdict in about):
        return "reproduced"
    return "spot-verified" if any(verdict.power >= POWER for verdict in about) else "checked"


def read_verdicts(folder: Path) -> list[Verdict]:
    """The verdicts about one claim; none where the folder is missing.

    Raises:
      SubmissionError: a file is no verdict.
    """
    found = []
    for path in sorted(folder.glob("*.json")):
        try:
            found.append(Verdict.model_validate_json(path.read_bytes()))
        except (OSError, ValidationError) as error:
            reason = shown(str(error), 200)
            raise SubmissionError(
                complaint(str(path), "verdict", f"malformed ({reason})", "a robench.verdict/1")
            ) from error
    return found
