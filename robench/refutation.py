"""A refutation: images that break examples which a claim calls robust, as what was done to the clean ones.

`refutations/<model>/<protocol>@<version>/<name>.json` holds the id of each example and the change of its image, in
whole steps of a `unit`; or, under a budget of patches, the squares that lie on it. That it fits its budget can be seen
without the image. Not here: how it is made without a pixel of the data set, and whether an image fools (`refuting`, and
then a verifier).
"""

import base64
import binascii
import json
import math
import zlib
from operator import mul
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Discriminator, Field, StringConstraints, Tag, model_validator

from robench.errors import SubmissionError, complaint
from robench.protocol import BallSpec, BudgetSpec, PatchSpec, Protocol, Sha256, fraction
from robench.submission import Line, refusing_malformed, shown

SCHEMA: Literal["robench.refutation/1"] = "robench.refutation/1"
FOLDER = "refutations"
"""Where refutations lie in the repository."""
LARGEST = 2_000_000
"""Most bytes of a refutation."""
MOST_VALUES = 30_000_000
"""Most values that the images of a refutation unpack to."""
SLACK = 1e-6
"""How far outside its budget a change may lie through rounding, in units of the image."""


class _Record(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True, frozen=True)


class _Image(_Record):
    id: Annotated[str, StringConstraints(min_length=1, max_length=200)]
    shape: tuple[Literal[3], Annotated[int, Field(ge=1)], Annotated[int, Field(ge=1)]]
    """Channels, height and width."""


class Change(_Image):
    """How the image that fools differs from the clean one: `clean + unit * steps`, cut to [0, 1]."""

    unit: float = Field(gt=0, le=1, allow_inf_nan=False)
    """Of the steps, in units of the image."""
    steps: str
    """Whole numbers from -128 to 127, one byte each, row by row; compressed by zlib, in base64."""

    def unpacked(self) -> bytes:
        """The steps, one signed byte for each value of the image.

        Raises:
          SubmissionError: they are not as many as the shape says, or cannot be unpacked.
        """
        return _unpacked(self.steps, self.values, where=self.id, key="steps")

    @property
    def values(self) -> int:
        """How many values it unpacks to."""
        return math.prod(self.shape)


class Square(_Record):
    """A square of the image that fools, upright and inside the image."""

    row: int = Field(ge=0)
    column: int = Field(ge=0)
    """Of its upper left pixel."""
    side: int = Field(ge=1)
    """In pixels."""
    pixels: str
    """Red, green, blue and a mask, one byte each, row by row; compressed by zlib, in base64. Bits 1, 2 and 4 of the
    mask say which of red, green and blue are painted; of the others, which are 0 here, the clean image's are seen."""

    def unpacked(self, example: str) -> bytes:
        """Four bytes for each pixel.

        Raises:
          SubmissionError: they are not as many as the side says, cannot be unpacked, or hold more than is painted.
        """
        content = _unpacked(self.pixels, self.values, where=example, key="pixels")
        mask = content[3::4]
        if max(mask) > 7 or any(_both(content[bit::4], mask.translate(_UNPAINTED[bit])) for bit in range(3)):
            expected = "a mask below 8, and 0 for what it leaves out"
            raise SubmissionError(complaint(shown(example), "pixels", "colours that are not seen", expected))
        return content

    @property
    def values(self) -> int:
        """How many values it unpacks to."""
        return 4 * self.side**2


_UNPAINTED = tuple(bytes(0 if mask >> bit & 1 else 255 for mask in range(256)) for bit in range(3))
"""For red, green and blue: 255 for the masks that leave it out, else 0."""


def _both(first: bytes, second: bytes) -> bool:
    """Whether any bit is set in both."""
    return bool(int.from_bytes(first) & int.from_bytes(second))


class Patched(_Image):
    """The image that fools is the clean one under a few squares."""

    squares: tuple[Square, ...] = Field(min_length=1)

    @property
    def values(self) -> int:
        """How many values it unpacks to."""
        return sum(square.values for square in self.squares)


def _unpacked(text: str, count: int, *, where: str, key: str) -> bytes:
    """So many bytes, from zlib in base64."""
    machine = zlib.decompressobj()
    try:
        content = machine.decompress(base64.b64decode(text, validate=True), count + 1)
    except (binascii.Error, ValueError, zlib.error) as error:
        raise SubmissionError(complaint(shown(where), key, "unreadable", "zlib in base64")) from error
    if len(content) != count or not machine.eof or machine.unused_data:
        found = f"{len(content)} values" if len(content) < count else "too many values"
        raise SubmissionError(complaint(shown(where), key, found, f"{count}"))
    return content


def _kind_of_image(content: Any) -> str:
    patched = "squares" in content if isinstance(content, dict) else isinstance(content, Patched)
    return "patched" if patched else "change"


AnyImage = Annotated[
    Annotated[Change, Tag("change")] | Annotated[Patched, Tag("patched")], Discriminator(_kind_of_image)
]
"""What a refutation stores of an image."""


class Refutation(_Record):
    """What breaks examples of a claim; one file."""

    schema_name: Literal["robench.refutation/1"] = Field(default=SCHEMA, alias="schema")
    result_sha256: Sha256
    """Of the `result.json` whose claim is lowered."""
    by: Line
    """Who found it."""
    how: Line
    """With which attack."""
    images: tuple[AnyImage, ...] = Field(min_length=1)

    @model_validator(mode="after")
    def _bounded(self) -> "Refutation":
        if sum(image.values for image in self.images) > MOST_VALUES:
            raise ValueError(f"expected at most {MOST_VALUES:,} values in all images")
        return self

    def to_bytes(self) -> bytes:
        """The content of its file."""
        content = self.model_dump(mode="json", by_alias=True)
        return (json.dumps(content, sort_keys=True, indent=1, allow_nan=False) + "\n").encode()


_RECORDS: tuple[type[BaseModel], ...] = (Refutation, Change, Patched, Square)


def build_refutation(content: dict[str, object]) -> Refutation:
    """A refutation from its keys.

    Raises:
      SubmissionError: one is missing, unknown or malformed.
    """
    with refusing_malformed("refute", "refutation", schema=SCHEMA, known=_RECORDS):
        return Refutation.model_validate({"schema": SCHEMA, **content})


def packed(content: bytes) -> str:
    """The reverse of `unpacked`."""
    return base64.b64encode(zlib.compress(content, 9)).decode()


def read_refutation(content: bytes, *, where: str) -> Refutation:
    """A refutation from the content of its file.

    Raises:
      SubmissionError: it is none.
    """
    with refusing_malformed(where, "refutation", schema=SCHEMA, known=_RECORDS):
        return Refutation.model_validate_json(content)


def budget_of(protocol: Protocol) -> BudgetSpec:
    """The budget that images of a refutation must lie in.

    Raises:
      SubmissionError: there is none: nothing is attacked.
    """
    if protocol.budget is None:
        found = f"{protocol.exact_name}, under which nothing is attacked"
        raise SubmissionError(complaint("refutation", "protocol", found, "one with a budget"))
    return protocol.budget


def room(budget: BudgetSpec, height: int, width: int) -> str:
    """What an image of this size may differ by, in words."""
    if isinstance(budget, BallSpec):
        return f"a change of at most {budget.epsilon} ({budget.norm})"
    return f"at most {budget.patches} squares of {_side(budget, height, width)} pixels, inside the image"


def _side(budget: PatchSpec, height: int, width: int) -> int:
    """Side of each square, as `budgets.PatchArea` has it."""
    return math.isqrt(math.floor(fraction(budget.area) * height * width) // budget.patches)


def outside(image: AnyImage, budget: BudgetSpec) -> str | None:
    """What breaks the budget; None where nothing does.

    Raises:
      SubmissionError: the bytes of the image cannot be unpacked.
    """
    if isinstance(image, Change):
        return _too_long(image, budget) if isinstance(budget, BallSpec) else "a change of the whole image"
    return _too_large(image, budget) if isinstance(budget, PatchSpec) else "squares"


def _too_long(change: Change, budget: BallSpec) -> str | None:
    steps = memoryview(change.unpacked()).cast("b")
    length = max(max(steps), -min(steps)) if budget.norm == "linf" else math.sqrt(sum(map(mul, steps, steps)))
    epsilon = float(fraction(budget.epsilon))
    return f"a change of {length * change.unit:.6g}" if length * change.unit > epsilon + SLACK else None


def _too_large(image: Patched, budget: PatchSpec) -> str | None:
    _, height, width = image.shape
    largest = _side(budget, height, width)
    if len(image.squares) > budget.patches:
        return f"{len(image.squares)} squares"
    for square in image.squares:
        if square.side > largest:
            return f"a square of {shown(square.side)} pixels"
        if square.row + square.side > height or square.column + square.side > width:
            return "a square beyond the image"
        square.unpacked(image.id)
    return None
