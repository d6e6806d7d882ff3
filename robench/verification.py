"""Verdicts about submissions, and the tier that follows from them: computed, never typed.

`verifications/<model>/<protocol>@<version>/<name>.json` says which examples of a claim were attacked again and what
came of each. Which ones is drawn by a seed that nobody knew when the claim was merged, so a verdict can be checked
against its claim. Whether it refutes the claim is an exact binomial test against the rate at which verdicts flip
between honest machines. Without an attack examples are looked at again, and those right are called robust; where each
is seen in cells, cells take the place of examples. Not here: the attack of a challenge (`challenge`).
"""

import bisect
import hashlib
import itertools
import json
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Literal

from pydantic import BaseModel, ConfigDict, Field, model_validator

from robench.errors import SubmissionError, complaint
from robench.outcome import Outcome
from robench.protocol import Protocol, Sha256
from robench.result import holds
from robench.shift import right_mask, scored
from robench.submission import Commit, Line, Submission, refusing_malformed

SCHEMA: Literal["robench.verdict/1"] = "robench.verdict/1"
FOLDER = "verifications"
"""Where verdicts lie in the repository."""
LEVEL = 0.001
"""Chance that an honest claim is refuted."""
POWER = 0.97
"""Chance that a claim inflated by `INFLATION` is refuted, for a challenge to count."""
INFLATION = 0.02
"""Share of all examples by which a claim must be inflated to be caught so."""
FLIP_RATE = 0.005
"""Share of examples called robust that fall for an honest claim, at most; docs/decisions/0016 has what was measured."""
SOFT_MARGIN = 0.001
"""Margin up to which an example that falls may have fallen by rounding alone."""
SOFT_SHARE = 0.02
"""Share of broken examples whose margin is no more than `SOFT_MARGIN`, at most: they are lost to a challenge."""
MOST = 10_000_000
"""No claim has more examples, or cells of them."""
CONTROLS = 50
"""How many of those called broken are run again, to see that the re-run breaks them, too."""

Tier = Literal["reported", "checked", "spot-verified", "reproduced", "refuted"]
TIERS: dict[Tier, str] = {
    "reported": "valid; nothing says how anybody else gets the model",
    "checked": "valid, and says how anybody gets the model; nobody has loaded it or run it again",
    "spot-verified": "a random sample of the examples called robust (or right) was run again, and stood",
    "reproduced": "all examples called robust (or right) were run again, and stood",
    "refuted": "too many of the examples called robust (or right) fell when they were run again",
}
"""What each tier means."""


class _Record(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True, frozen=True)


class Again(_Record):
    """What came of attacking an example again."""

    id: str = Field(min_length=1, max_length=260)
    """Of the example; where it is seen in cells, `<id> <corruption>/<severity>`."""
    robust: bool
    """Whether it stood."""
    margin: float | None = Field(allow_inf_nan=False)
    """The verifier's own: of the image that fooled, or the lowest margin met; None where nothing attacks."""


class Confirmed(_Record):
    """What came of asking the model about the images of a refutation."""

    sha256: Sha256
    """Of the refutation."""
    ids: tuple[str, ...]
    """Examples whose image fools the model, and lies in the budget."""


class Verdict(_Record):
    """What came of attacking examples of a claim again."""

    schema_name: Literal["robench.verdict/1"] = Field(default=SCHEMA, alias="schema")
    result_sha256: Sha256
    """Of the `result.json` that was checked; a verdict about another file says nothing."""
    robust: int = Field(ge=0, le=MOST)
    """Examples, or cells of them, that the claim calls robust."""
    of: int = Field(ge=1, le=MOST)
    """Examples, or cells of them, that the claim is about."""
    asked: int = Field(ge=0, le=MOST)
    """How many of the robust ones were asked about."""
    fell: int = Field(ge=0, le=MOST)
    """How many of those were broken by more than `soft_margin`."""
    flip_rate: float = Field(ge=0, le=0.005, allow_inf_nan=False)
    """Share of them that may fall for an honest claim; whoever writes a verdict may not forgive more."""
    soft_margin: float = Field(ge=0, le=0.001, allow_inf_nan=False)
    merge_commit: Commit
    """That brought the claim in."""
    public_value: Line
    """What nobody knew at that time."""
    examples: tuple[Again, ...]
    """Those asked about, as they were drawn."""
    controls: tuple[Again, ...]
    """Of those called broken, as they were drawn."""
    confirmed: tuple[Confirmed, ...] = ()
    """Refutations that were looked at."""
    by: Line
    environment: dict[str, str] = Field(default_factory=dict)

    @model_validator(mode="after")
    def _counts(self) -> "Verdict":
        if not self.fell <= self.asked <= self.robust <= self.of:
            raise ValueError("expected fell <= asked <= robust <= of")
        if self.asked != len(self.examples) or self.fell != fallen(self.examples, self.soft_margin):
            raise ValueError("expected the counts that the examples give")
        return self

    @property
    def seed(self) -> str:
        """What the examples were drawn by."""
        return seed_of(self.result_sha256, self.merge_commit, self.public_value)

    @property
    def stood(self) -> int:
        """Examples called broken that the re-run did not break."""
        return sum(each.robust for each in self.controls)

    @property
    def sound(self) -> bool:
        """Whether the re-run breaks what the claim calls broken; if not, it was another attack or another model."""
        return tail(self.stood, len(self.controls), self.flip_rate) >= LEVEL

    @property
    def refutes(self) -> bool:
        """Whether so many examples fell that an honest claim would show it less than once in a thousand times."""
        return tail(self.fell, self.asked, self.flip_rate) < LEVEL

    @property
    def power(self) -> float:
        """Chance to refute a claim inflated by `INFLATION`."""
        return power(self.asked, robust=self.robust, of=self.of, flip_rate=self.flip_rate)

    def to_bytes(self) -> bytes:
        """The content of its file."""
        content = self.model_dump(mode="json", by_alias=True)
        return (json.dumps(content, sort_keys=True, indent=1, allow_nan=False) + "\n").encode()


def fallen(examples: Iterable[Again], soft_margin: float) -> int:
    """How many fell by more than rounding can do, as far as margins say."""
    return sum(not each.robust and (each.margin is None or each.margin < -soft_margin) for each in examples)


def seed_of(result_sha256: str, merge_commit: str, public_value: str) -> str:
    """What the examples of a challenge are drawn by: SHA-256 of the claim, its merge and what came later."""
    return hashlib.sha256(f"{result_sha256}\n{merge_commit}\n{public_value}".encode()).hexdigest()


def drawn(ids: Iterable[str], seed: str, count: int) -> list[str]:
    """So many of these examples, in the order of SHA-256 of seed and id; all where there are fewer."""
    return sorted(ids, key=lambda example: hashlib.sha256(f"{seed}\n{example}".encode()).digest())[:count]


@dataclass(frozen=True)
class Called:
    """What a claim calls its examples; where each is seen in cells, what it calls these.

    Attributes:
      robust: examples called robust, or right where nothing attacks, each with a mask of the cells that are.
      broken: those called broken though right clean, or wrong where nothing attacks, each with such a mask.
      cells: names of the cells; none where an example is seen once.
      of: how many are scored, called so or not.
    """

    robust: Mapping[str, int]
    broken: Mapping[str, int]
    cells: Sequence[str]
    of: int

    @property
    def count(self) -> int:
        """How many are called robust: examples, or cells."""
        return sum(mask.bit_count() for mask in self.robust.values())

    def drawn_robust(self, seed: str, count: int) -> list[str]:
        """So many of those called robust, as the seed draws them; all where there are fewer."""
        return self._drawn(self.robust, seed, count)

    def controls(self, seed: str, asked: int) -> list[str]:
        """`CONTROLS` of those called broken, or all where there are fewer; none where nothing else is asked about."""
        return self._drawn(self.broken, seed, CONTROLS if asked else 0)

    def _drawn(self, masks: Mapping[str, int], seed: str, count: int) -> list[str]:
        return drawn(masks, seed, count) if not self.cells else drawn_cells(masks, self.cells, seed, count)


def drawn_cells(masks: Mapping[str, int], cells: Sequence[str], seed: str, count: int) -> list[str]:
    """So many cells of examples, each as likely as any other, as `<id> <cell>`; all where there are fewer.

    The cells in the masks are numbered through, in the order of the examples and of their bits; the draws are SHA-256
    of the seed and 0, 1, 2, ..., modulo their number, without those that came before.
    """
    ends = list(itertools.accumulate(mask.bit_count() for mask in masks.values()))
    examples, total = list(masks), ends[-1] if ends else 0
    numbers: dict[int, None] = {}
    for step in itertools.count():
        if len(numbers) >= min(count, total):
            break
        digest = hashlib.sha256(f"{seed}\n{step}".encode()).digest()
        numbers.setdefault(int.from_bytes(digest, "big") % total)
    found = []
    for number in numbers:
        place = bisect.bisect_right(ends, number)
        mask = masks[examples[place]]
        bits = [bit for bit in range(len(cells)) if mask >> bit & 1]
        found.append(f"{examples[place]} {cells[bits[number - ends[place]]]}")  # from the end, as the sums are
    return found


def cell_names(protocol: Protocol) -> tuple[str, ...]:
    """Names of the cells of a protocol, in the order of their bits; none where an example is seen once."""
    return tuple(f"{name}/{severity}" for name, severity in protocol.shift.cells) if protocol.shift is not None else ()


def called(protocol: Protocol, outcomes: Sequence[Outcome]) -> Called:
    """What a claim calls its examples.

    Raises:
      SubmissionError: under this protocol, examples are right in a share of their answers.
    """
    if protocol.score.asks is not None:
        found, expected = f"{protocol.exact_name}, which asks many times", "one under which an example stands or falls"
        raise SubmissionError(complaint("verify", "protocol", found, expected, "Evaluate the model again instead."))
    if cells := cell_names(protocol):
        masks, every = {each.id: right_mask(protocol, each) for each in outcomes}, (1 << len(cells)) - 1
        right = {example: mask for example, mask in masks.items() if mask}
        wrong = {example: every & ~mask for example, mask in masks.items() if mask != every}
        return Called(right, wrong, cells, len(outcomes) * len(cells))
    counted = [each for each in outcomes if protocol.shift is None or scored(protocol, each)]
    robust = {each.id: 1 for each in counted if holds(protocol, each)}
    open_to_attack = (each for each in counted if protocol.attack is None or each.clean_correct)
    return Called(robust, {each.id: 1 for each in open_to_attack if each.id not in robust}, (), len(counted))


def example_of(protocol: Protocol, name: str) -> str:
    """The example of a name that `Called` has drawn."""
    return name.rpartition(" ")[0] if cell_names(protocol) else name


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


@cache
def critical(asked: int, flip_rate: float) -> int:
    """The least number of falls that refutes a claim."""
    return next(fell for fell in range(asked + 2) if tail(fell, asked, flip_rate) < LEVEL)


def power(asked: int, *, robust: int, of: int, flip_rate: float = FLIP_RATE) -> float:
    """Chance to refute a claim that calls `INFLATION` of all examples robust which are not.

    As if examples were drawn with replacement, which is never better than what is done, and as if no other fell.
    """
    if not asked:
        return 0.0
    false = min(1.0, INFLATION * of / robust)
    return tail(critical(asked, flip_rate), asked, false * (1 - SOFT_SHARE))


def sample_size(*, robust: int, of: int, flip_rate: float = FLIP_RATE) -> int:
    """How many of the examples called robust a challenge asks about: enough for `POWER`, or all.

    Example:
      >>> sample_size(robust=2000, of=5000), sample_size(robust=320, of=512)
      (257, 320)
    """
    sizes = range(1, robust)
    return next((size for size in sizes if _enough(size, robust=robust, of=of, flip_rate=flip_rate)), robust)


def _enough(size: int, *, robust: int, of: int, flip_rate: float) -> bool:
    """Whether so many suffice, and more would, too: power falls where one more example raises the critical number."""
    return all(power(size + more, robust=robust, of=of, flip_rate=flip_rate) >= POWER for more in range(30))


def tier_of(submission: Submission, result_sha256: str, verdicts: Iterable[Verdict]) -> Tier:
    """The tier of a valid claim. One refutation counts for more than any number of confirmations."""
    about = [verdict for verdict in verdicts if verdict.result_sha256 == result_sha256 and verdict.sound]
    if any(verdict.refutes for verdict in about):
        return "refuted"
    if submission.loader is None:
        return "reported"
    if any(verdict.asked and verdict.asked == verdict.robust for verdict in about):
        return "reproduced"
    return "spot-verified" if any(verdict.power >= POWER for verdict in about) else "checked"


def broken_since(result_sha256: str, verdicts: Iterable[Verdict], refutations: Sequence[str]) -> set[str]:
    """Examples that confirmed refutations break.

    Args:
      result_sha256: of the claim.
      verdicts: about it.
      refutations: SHA-256 of those that lie beside it.
    """
    about = (verdict for verdict in verdicts if verdict.result_sha256 == result_sha256)
    said = (each for verdict in about for each in verdict.confirmed if each.sha256 in refutations)
    return {example for each in said for example in each.ids}


def build_verdict(content: dict[str, object]) -> Verdict:
    """A verdict from its keys.

    Raises:
      SubmissionError: one is missing, unknown or malformed.
    """
    with refusing_malformed("verify", "verdict", schema=SCHEMA, known=(Verdict, Again, Confirmed)):
        return Verdict.model_validate({"schema": SCHEMA, **content})


def read_verdict(content: bytes, *, where: str) -> Verdict:
    """A verdict from the content of its file.

    Raises:
      SubmissionError: it is none.
    """
    with refusing_malformed(where, "verdict", schema=SCHEMA, known=(Verdict, Again, Confirmed)):
        return Verdict.model_validate_json(content)


def read_verdicts(files: Iterable[Path]) -> list[Verdict]:
    """Verdicts from their files.

    Raises:
      SubmissionError: a file is no verdict.
    """
    return [read_verdict(path.read_bytes(), where=str(path)) for path in files]
