"""A protocol: the data a model sees, the attack it faces, and how outcomes are scored.

The type and its digest only. Not here: where protocols are found (`registry`), and what the keys of an
attack mean (`evaluation` checks them against the attack's fields).
"""

import hashlib
import json
import re
import tomllib
from fractions import Fraction
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import (
    AfterValidator,
    BaseModel,
    ConfigDict,
    Discriminator,
    Field,
    StringConstraints,
    Tag,
    ValidationError,
    model_validator,
)
from pydantic_core import ErrorDetails

from robench import alexnet
from robench.errors import ProtocolError, complaint, did_you_mean

LEAST_ASKS = 20
"""Answers of a randomised model about one image that a ranked protocol scores, at least."""
MOST_DIGITS = 30
"""Of a numerator or denominator, so that a fraction is a finite float32."""
FRACTION_FORM = 'a fraction of the unit range as a string, such as "4/255"'

Sha256 = Annotated[str, StringConstraints(pattern=r"^[0-9a-f]{64}$")]


def fraction(text: str) -> Fraction:
    """The value of a fraction such as "4/255" or "3"; ValueError for anything else."""
    numerator, slash, denominator = text.partition("/")
    if not (
        numerator.isascii() and numerator.isdigit() and (not slash or (denominator.isascii() and denominator.isdigit()))
    ):
        raise ValueError(f"expected {FRACTION_FORM}")
    if max(len(numerator), len(denominator)) > MOST_DIGITS:
        raise ValueError(f"expected {FRACTION_FORM}, of at most {MOST_DIGITS} digits on a side")
    if slash and int(denominator) == 0:
        raise ValueError("expected a denominator other than zero")
    return Fraction(int(numerator), int(denominator) if slash else 1)


def _is_fraction(text: str) -> str:
    fraction(text)
    return text


FractionText = Annotated[str, AfterValidator(_is_fraction)]


class _Table(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True, frozen=True)


class DataSpec(_Table):
    """The examples: which source, how many, and how an image becomes the one view that is ranked."""

    source: str
    """Name in `robench.data.CATALOGUE`."""
    count: int = Field(gt=0)
    """Number of examples."""
    classes: int = Field(ge=2)
    """Number of logits."""
    ids_sha256: Sha256 | None = None
    """SHA-256 of the ids in protocol order, joined by newlines; none: not known, and no data are official."""
    resize: int | None = Field(default=None, gt=0)
    """Length of the shorter side after resizing (bilinear, Pillow), in pixels; none: not resized."""
    crop: int = Field(gt=0, le=4096)
    """Side of the centre crop, which is what the model sees, in pixels; images are held in memory, many at a time."""


class AttackSpec(BaseModel):
    """The attack: its kind, and scalars named like the fields of that attack."""

    model_config = ConfigDict(extra="allow", strict=True, frozen=True)
    __pydantic_extra__: dict[str, bool | int | str]
    kind: str
    """Name in `robench.attacks.CATALOGUE`."""
    draws: int | None = Field(default=None, ge=1)
    """For randomised models: answers that the attack averages wherever it looks."""

    @property
    def settings(self) -> dict[str, bool | int | str]:
        """The keys beside `kind` and `draws`."""
        return dict(self.__pydantic_extra__)


class BallSpec(_Table):
    """What the attack may change: every value a little."""

    norm: str
    """Name in `robench.budgets.BUDGETS`."""
    epsilon: FractionText
    """Radius in units of the image, as a fraction."""


class PatchSpec(_Table):
    """What the attack may change: a share of the image, to anything."""

    kind: Literal["patches"]
    """Tells it from a ball, which names a norm instead."""
    area: FractionText
    """Largest share of the image's pixels that may change, as a fraction."""
    patches: int = Field(gt=0)
    """Into how many equal squares the area is divided."""


def _kind_of_budget(content: Any) -> str:
    named = "kind" in content if isinstance(content, dict) else isinstance(content, PatchSpec)
    return "patches" if named else "ball"


BudgetSpec = Annotated[
    Annotated[BallSpec, Tag("ball")] | Annotated[PatchSpec, Tag("patches")], Discriminator(_kind_of_budget)
]


class ScoreSpec(_Table):
    """How outcomes become numbers."""

    scoring: Literal["any iterate", "last iterate"] = "any iterate"
    """Whether any iterate up to a step counts, or the one at that step alone."""
    steps: tuple[Annotated[int, Field(ge=0)], ...] = Field(default=(), strict=False)
    """Steps at which robust accuracy is read off; the last one is the headline. None: at the end alone."""
    stages: tuple[str, ...] | None = Field(default=None, strict=False)
    """Names of a cascade's stages, in order; robust accuracy is stated after each, the last one is the headline."""
    asks: int | None = Field(default=None, ge=1)
    """For randomised models: how often the model is asked about the clean image, and about one final attacked image;
    accuracy is the mean share of right answers. None: an image that fools once counts."""

    @model_validator(mode="after")
    def _rising(self) -> "ScoreSpec":
        if list(self.steps) != sorted(set(self.steps)):
            raise ValueError("expected rising steps without repetition")
        if self.stages is not None and (self.steps or not self.stages or len(set(self.stages)) < len(self.stages)):
            raise ValueError("expected stages without repetition, and no steps beside them")
        if self.asks is not None and (self.steps or self.stages):
            raise ValueError("expected no steps and no stages beside `asks`: one final image is scored")
        return self


class ShiftSpec(_Table):
    """What is read off images that are shifted away from the training set's, without an attack."""

    kind: Literal["natural", "corruptions", "textures"]
    """One image of an example; the same image in cells corruption x severity; shape and texture of two classes."""
    among: str | None = None
    """For `natural`: a list of classes (`robench.data.imagenet.subsets`), among which top-1 is the headline."""
    among_sha256: Sha256 | None = None
    """SHA-256 of that list's wnids, joined by newlines."""
    families: dict[str, Annotated[tuple[str, ...], Field(strict=False)]] | None = None
    """For `corruptions`: their names, by family."""
    severities: int | None = Field(default=None, ge=1, le=9)
    """For `corruptions`: how many, from 1."""
    errors_of: Literal["alexnet"] | None = None
    """For `corruptions`: whose errors mCE divides by; none: no mCE."""
    textures_sha256: Sha256 | None = None
    """For `textures`: SHA-256 of their classes in protocol order, joined by newlines."""
    categories: str | None = None
    """For `textures`: groups of classes (`robench.data.categories`) over which probabilities are averaged."""
    reference: str | None = None
    """For `natural`: a model that sees the same images, and to which the difference ranks."""
    reference_sha256: Sha256 | None = None
    """SHA-256 of its weights file."""

    @model_validator(mode="after")
    def _fitting(self) -> "ShiftSpec":
        needed = {"natural": (), "corruptions": ("families", "severities"), "textures": ()}[self.kind]
        allowed = {
            "natural": ("among", "among_sha256", "reference", "reference_sha256"),
            "corruptions": (*needed, "errors_of"),
            "textures": ("categories", "textures_sha256"),
        }[self.kind]
        given = [name for name in type(self).model_fields if name != "kind" and getattr(self, name) is not None]
        for name in needed:
            if name not in given:
                raise ValueError(f"expected `{name}` with the kind {self.kind!r}")
        for name in given:
            if name not in allowed:
                raise ValueError(f"expected no `{name}` with the kind {self.kind!r}")
        if (self.among is None) != (self.among_sha256 is None):
            raise ValueError("expected `among` and `among_sha256` together, or neither")
        if self.reference is None and self.reference_sha256 is not None:
            raise ValueError("expected `reference` beside `reference_sha256`")
        names = self.corruptions
        if self.kind == "corruptions" and (not names or len(set(names)) < len(names)):
            raise ValueError("expected corruptions without repetition")
        unknown = sorted(set(names) - alexnet.known()) if self.errors_of else []
        if unknown:
            raise ValueError(f"expected no `errors_of` with {unknown[0]!r}, of which AlexNet's errors are not known")
        return self

    @property
    def corruptions(self) -> tuple[str, ...]:
        """All corruptions, sorted by name."""
        return tuple(sorted(name for names in (self.families or {}).values() for name in names))

    @property
    def cells(self) -> tuple[tuple[str, int], ...]:
        """Corruption and severity of every cell, sorted; the order of the bits of a mask."""
        return tuple((name, severity) for name in self.corruptions for severity in range(1, (self.severities or 0) + 1))


class Protocol(_Table):
    """A protocol as its TOML file states it; immutable once released."""

    schema_name: Literal["robench.protocol/1"] = Field(alias="schema")
    id: str = Field(pattern=r"^[a-z0-9]+(-[a-z0-9]+)*$")
    version: int = Field(ge=1)
    status: Literal["draft", "active", "superseded", "withdrawn"]
    title: str
    summary: str
    supersedes: str | None = None
    ranked: bool = True
    """Whether results may enter the leaderboard."""
    seed: int = Field(ge=0, lt=2**63)
    """Of the examples' random numbers."""
    confounds: str | None = None
    """What makes its numbers hard to compare, for people."""
    data: DataSpec
    attack: AttackSpec | None = None
    budget: BudgetSpec | None = None
    score: ScoreSpec = ScoreSpec()
    shift: ShiftSpec | None = None

    @model_validator(mode="after")
    def _complete(self) -> "Protocol":
        if self.attack is not None and self.shift is not None:
            raise ValueError("expected `attack` or `shift`, not both")
        if self.shift is not None and self.ranked and self.status != "draft":
            if self.shift.kind == "textures" and self.shift.textures_sha256 is None:
                raise ValueError("expected `shift.textures_sha256`: claims are held to it")
            if self.shift.reference is not None and self.shift.reference_sha256 is None:
                raise ValueError("expected `shift.reference_sha256`: claims are held to it")
        if (self.attack is None) != (self.budget is None):
            raise ValueError("expected `attack` and `budget` together, or neither")
        if self.score.scoring == "last iterate" and not self.score.steps:
            raise ValueError('expected `score.steps` with the scoring "last iterate"')
        if self.attack is None and (self.score.steps or self.score.stages):
            raise ValueError("expected no `score.steps` and no `score.stages` without an attack")
        if (self.score.asks is None) != (self.attack is None or self.attack.draws is None):
            raise ValueError("expected `score.asks` and `attack.draws` together, or neither")
        if self.ranked and self.score.asks is not None and self.score.asks < LEAST_ASKS:
            raise ValueError(f"expected at least {LEAST_ASKS} `score.asks`, or `ranked = false`")
        return self

    @property
    def exact_name(self) -> str:
        """`id@version`."""
        return f"{self.id}@{self.version}"

    @property
    def has_canon(self) -> bool:
        """Whether one copy of its images is the published one; else the difference to a reference on one copy ranks."""
        return self.shift is None or self.shift.reference is None

    @property
    def digest(self) -> str:
        """SHA-256 of everything that changes an answer, in canonical JSON.

        Status, title, summary, `confounds`, `ranked` and `supersedes` may change without a new version.
        """
        loose = {"status", "title", "summary", "supersedes", "ranked", "confounds"}
        content = self.model_dump(mode="json", by_alias=True, exclude=loose, exclude_none=True)
        canonical = json.dumps(content, sort_keys=True, separators=(",", ":"), ensure_ascii=True)
        return hashlib.sha256(canonical.encode()).hexdigest()


def read_protocol(path: Path) -> Protocol:
    """Read a protocol from a TOML file.

    Raises:
      ProtocolError: the file cannot be read, is not TOML, or a key is wrong; file and key are named.
    """
    try:
        content = tomllib.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        reason = error.strerror or type(error).__name__
        raise ProtocolError(complaint(str(path), "file", f"unreadable ({reason})", "a protocol in TOML")) from error
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise ProtocolError(complaint(str(path), "file", f"not TOML ({error})", "a protocol in TOML")) from error
    return parse_protocol(content, where=path.name)


def parse_protocol(content: dict[str, Any], *, where: str) -> Protocol:
    """Build a protocol from the content of its file; `where` names the file in errors."""
    try:
        return Protocol.model_validate(content)
    except ValidationError as error:
        lines = [_explain(detail, where) for detail in error.errors()]
        raise ProtocolError("\n".join(dict.fromkeys(lines))) from error  # a union complains once for each branch


_KNOWN_KEYS = {
    key
    for table in (Protocol, DataSpec, AttackSpec, BallSpec, PatchSpec, ScoreSpec, ShiftSpec)
    for key in (field.alias or name for name, field in table.model_fields.items())
}


def _explain(detail: ErrorDetails, where: str) -> str:
    """One validation error in the form of all messages."""
    path = [str(part) for part in detail["loc"]]
    setting = path[:1] == ["attack"] and len(path) > 2
    if setting:
        path = path[:2]  # the rest names the branches of a union
    if path[:1] == ["budget"]:
        del path[1:2]  # the tag of the union
    key, value = ".".join(path) or "protocol", repr(detail["input"])
    if detail["type"] == "extra_forbidden":
        misplaced = "It does not go with the others here." if path[-1] in _KNOWN_KEYS else ""
        advice = misplaced or did_you_mean(path[-1], _KNOWN_KEYS)
        return complaint(where, key, "unknown", "a key of the protocol schema", advice)
    if detail["type"] == "missing":
        return complaint(where, key, "missing", "a value", "Add the key.")
    if isinstance(detail["input"], float) and (path[-1] in ("epsilon", "area") or path[0] == "attack"):
        return complaint(where, key, value, FRACTION_FORM, "Floats would make two protocols differ in the last bit.")
    if len(value) > 80:
        value = "as it stands in the file"
    if setting:
        return complaint(where, key, value, "a whole number, a string or a boolean")
    reason = re.sub(r"^(Value error, expected|Input should be|String should) ", "", detail["msg"])
    reason = re.sub(r"^a valid (tuple|list)$", "a list", reason)
    return complaint(where, key, value, re.sub(r"^match pattern", "text that matches", reason))
