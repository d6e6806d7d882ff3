"""A refutation: images that break examples which a claim calls robust, as small changes of the clean ones.

`refutations/<model>/<protocol>@<version>/<name>.json` holds the id of each example and the change of its image, in
whole steps of a `unit`, zlib-compressed: no pixel of the data set lies in it, and that a change fits its budget can be
seen without the image. Not here: whether an image fools (`refuting`, and then a verifier).
"""

import base64
import binascii
import json
import math
import zlib
from operator import mul
from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field, StringConstraints, model_validator

from robench.errors import SubmissionError, complaint
from robench.protocol import BallSpec, Protocol, Sha256, fraction
from robench.submission import Line, refusing_malformed, shown

SCHEMA: Literal["robench.refutation/1"] = "robench.refutation/1"
FOLDER = "refutations"
"""Where refutations lie in the repository."""
LARGEST = 2_000_000
"""Most bytes of a refutation."""
MOST_VALUES = 30_000_000
"""Most values of all images of a refutation."""
SLACK = 1e-6
"""How far outside its budget a change may lie through rounding, in units of the image."""


class _Record(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True, frozen=True)


class Change(_Record):
    """How the image that fools differs from the clean one: `clean + unit * steps`, cut to [0, 1]."""

    id: Annotated[str, StringConstraints(min_length=1, max_length=200)]
    shape: tuple[Literal[3], Annotated[int, Field(ge=1)], Annotated[int, Field(ge=1)]]
    """Channels, height and width."""
    unit: float = Field(gt=0, le=1, allow_inf_nan=False)
    """Of the steps, in units of the image."""
    steps: str
    """Whole numbers from -128 to 127, one byte each, row by row; compressed by zlib, in base64."""

    def unpacked(self) -> bytes:
        """The steps, one signed byte for each value of the image.

        Raises:
          SubmissionError: they are not as many as the shape says, or cannot be unpacked.
        """
        count, machine = math.prod(self.shape), zlib.decompressobj()
        try:
            content = machine.decompress(base64.b64decode(self.steps, validate=True), count + 1)
        except (binascii.Error, ValueError, zlib.error) as error:
            raise SubmissionError(complaint(shown(self.id), "steps", "unreadable", "zlib in base64")) from error
        if len(content) != count or not machine.eof:
            found = f"{len(content)} values" if len(content) < count else "too many values"
            raise SubmissionError(complaint(shown(self.id), "steps", found, f"{count}, as the shape says"))
        return content


class Refutation(_Record):
    """What breaks examples of a claim; one file."""

    schema_name: Literal["robench.refutation/1"] = Field(default=SCHEMA, alias="schema")
    result_sha256: Sha256
    """Of the `result.json` whose claim is lowered."""
    by: Line
    """Who found it."""
    how: Line
    """With which attack."""
    images: tuple[Change, ...] = Field(min_length=1)

    @model_validator(mode="after")
    def _bounded(self) -> "Refutation":
        if sum(math.prod(image.shape) for image in self.images) > MOST_VALUES:
            raise ValueError(f"expected at most {MOST_VALUES:,} values in all images")
        return self

    def to_bytes(self) -> bytes:
        """The content of its file."""
        content = self.model_dump(mode="json", by_alias=True)
        return (json.dumps(content, sort_keys=True, indent=1, allow_nan=False) + "\n").encode()


def build_refutation(content: dict[str, object]) -> Refutation:
    """A refutation from its keys.

    Raises:
      SubmissionError: one is missing, unknown or malformed.
    """
    with refusing_malformed("refute", "refutation", schema=SCHEMA, known=(Refutation, Change)):
        return Refutation.model_validate({"schema": SCHEMA, **content})


def packed(steps: bytes) -> str:
    """The reverse of `Change.unpacked`, from steps as bytes."""
    return base64.b64encode(zlib.compress(steps, 9)).decode()


def read_refutation(content: bytes, *, where: str) -> Refutation:
    """A refutation from the content of its file.

    Raises:
      SubmissionError: it is none.
    """
    with refusing_malformed(where, "refutation", schema=SCHEMA, known=(Refutation, Change)):
        return Refutation.model_validate_json(content)


def ball_of(protocol: Protocol) -> BallSpec:
    """The budget of a protocol in which refutations can be written down.

    Raises:
      SubmissionError: it is none: what a patch shows could not be told from the image below it.
    """
    if not isinstance(protocol.budget, BallSpec):
        found = f"{protocol.exact_name}, whose budget is no ball"
        raise SubmissionError(complaint("refutation", "protocol", found, "a budget in L-inf or L2"))
    return protocol.budget


def outside(change: Change, budget: BallSpec) -> str | None:
    """What breaks the budget; None where nothing does.

    Raises:
      SubmissionError: the steps cannot be unpacked.
    """
    steps = memoryview(change.unpacked()).cast("b")
    length = max(max(steps), -min(steps)) if budget.norm == "linf" else math.sqrt(sum(map(mul, steps, steps)))
    epsilon = float(fraction(budget.epsilon))
    return f"a change of {length * change.unit:.6g}" if length * change.unit > epsilon + SLACK else None
