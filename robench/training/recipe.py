"""A training recipe: everything that decides what a trained model becomes.

Not here: where recipes are found and how one extends another (`catalogue`), what is built from them (`construction`,
`schedules`), and the loop that follows them (`loop`).
"""

import hashlib
import json
from collections.abc import Iterable
from typing import Annotated, Any, ClassVar, Literal, TypeVar

from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    SerializerFunctionWrapHandler,
    ValidationError,
    model_serializer,
    model_validator,
)
from pydantic_core import ErrorDetails

from robench.errors import RecipeError, complaint, did_you_mean
from robench.protocol import FRACTION_FORM, fraction

SCHEMA = "robench.recipe/1"


def _is_length(text: str) -> str:
    if fraction(text) == 0:
        raise ValueError("more than 0")
    return text


def _as_tuple(value: Any) -> Any:
    """A list as a tuple, and a lone number as a tuple of one."""
    if isinstance(value, list):
        return tuple(value)
    return (value,) if isinstance(value, int | float) else value


_Length = Annotated[str, AfterValidator(_is_length)]
_Name = Annotated[str, Field(pattern=r"^[a-z0-9]+(-[a-z0-9]+)*$")]
_Channels = Annotated[tuple[float, float, float], BeforeValidator(_as_tuple)]
_Share = Annotated[float, Field(ge=0, le=1)]
_Epochs = Annotated[int, Field(gt=0)]
PerEpoch = Annotated[tuple[_Share, ...], BeforeValidator(_as_tuple), Field(min_length=1)]
"""A number, or one for each of the first epochs, of which the last one stays; see `schedules.at_epoch`."""


class Table(BaseModel):
    """A table of a recipe: unknown keys are errors, and values are of the type that is asked for."""

    model_config = ConfigDict(extra="forbid", strict=True, frozen=True, allow_inf_nan=False)

    LATER: ClassVar[frozenset[str]] = frozenset()
    """Keys that joined the schema when models had been trained: they are written only where they say something, so
    that the digests of older recipes stay."""

    @model_serializer(mode="wrap")
    def _write(self, handler: SerializerFunctionWrapHandler) -> dict[str, Any]:
        silent = {key for key in self.LATER if getattr(self, key) == type(self).model_fields[key].get_default()}
        return {key: value for key, value in handler(self).items() if key not in silent}


R = TypeVar("R", bound=Table)


class DataRecipe(Table):
    """What is trained on."""

    LATER = frozenset({"size", "mean", "std", "test_resize", "test_interpolation"})

    source: Literal["mini", "imagenet"]
    examples: int = Field(gt=0)
    """Size of the training set."""
    validation: int = Field(gt=0)
    """Examples to watch the training by; never used to choose anything."""
    flip: bool = True
    """Mirror every image with chance 1/2."""
    size: int | None = Field(default=None, gt=0)
    """Side of the image that the model sees, in pixels; none: images stay as they are."""
    mean: _Channels | None = None
    """Subtracted from each channel of an image in [0, 1]; none: what the architecture brings."""
    std: _Channels | None = None
    """What each channel is divided by after that."""
    test_resize: int | None = Field(default=None, gt=0)
    """Length of the shorter side before the centre crop of a validation image, in pixels."""
    test_interpolation: Literal["bilinear", "bicubic"] = "bilinear"
    """Of that resizing."""


class OptimizerRecipe(Table):
    """timm's `create_optimizer_v2`; biases and 1-d parameters are not decayed."""

    name: Literal["sgd", "adamw"]
    lr: float = Field(gt=0)
    """For the whole `batch_size`; nothing scales it."""
    weight_decay: float = Field(ge=0)
    momentum: float = Field(default=0.9, ge=0, lt=1)
    """Of SGD (Nesterov, as timm builds it)."""


class ScheduleRecipe(Table):
    """The learning rate: a linear warm-up to `lr`, then a cosine or steps."""

    LATER = frozenset({"kind", "warmup_lr", "after_warmup", "milestones", "factor", "each", "lag"})

    epochs: int = Field(gt=0)
    warmup_epochs: int = Field(ge=0)
    min_lr: float = Field(default=0.0, ge=0)
    """Where the cosine ends."""
    kind: Literal["cosine", "steps"] = "cosine"
    warmup_lr: float | None = Field(default=None, ge=0)
    """Where the warm-up begins; none: at a hundredth of `lr`."""
    after_warmup: bool = False
    """The cosine begins when the warm-up ends; else its first part lies under the warm-up."""
    milestones: Annotated[tuple[_Epochs, ...], BeforeValidator(_as_tuple)] = ()
    """First epochs with a learning rate multiplied by `factor` once more; for steps."""
    factor: float = Field(default=0.1, gt=0, lt=1)
    each: Literal["update", "epoch"] = "update"
    """How often the learning rate changes."""
    lag: int = Field(default=0, ge=0)
    """Epochs by which it trails behind, where it changes each epoch."""


class RandAugmentRecipe(Table):
    """RandAugment as timm does it: `layers` operations out of 15, each applied with chance 1/2."""

    layers: int = Field(gt=0)
    magnitude: Annotated[tuple[Annotated[int, Field(ge=0)], ...], BeforeValidator(_as_tuple), Field(min_length=1)]
    """A whole number, or one for each of the first epochs, of which the last one stays."""
    deviation: float = Field(ge=0)
    """Standard deviation of the magnitude from image to image."""
    increasing: bool
    """Whether every operation gets stronger with the magnitude."""


class AugmentationRecipe(Table):
    """What happens to a photograph before it is mixed: a random resized crop, and these."""

    interpolation: Literal["bilinear", "bicubic"]
    color_jitter: float = Field(default=0.0, ge=0)
    """Of brightness, contrast and saturation; timm leaves it out beside RandAugment."""
    erasing: _Share = 0.0
    """Chance that a rectangle of the image becomes noise."""
    repeats: int = Field(default=1, gt=0)
    """How often an image comes in an epoch, each time augmented anew; epochs do not get longer."""
    randaugment: RandAugmentRecipe | None = None


class MixingRecipe(Table):
    """timm's `Mixup`: images of a batch are blended or pasted into one another, labels along with them."""

    mixup: float = Field(default=0.0, ge=0)
    """Alpha of Mixup; 0: none."""
    cutmix: float = Field(default=0.0, ge=0)
    """Alpha of CutMix; 0: none."""
    probability: PerEpoch = (1.0,)
    """Chance that a batch is mixed at all."""
    switch: PerEpoch = (0.5,)
    """Chance of CutMix in place of Mixup where both are on."""


class EmaRecipe(Table):
    """An exponential moving average of the weights, beside them."""

    decay: float = Field(gt=0, lt=1)
    buffers: Literal["averaged", "copied"]
    """What becomes of the running statistics of batch-norm."""
    exported: bool
    """Whether the average is the trained model; else it lies beside it."""


class DistillationRecipe(Table):
    """(1 - alpha) of the usual loss and alpha of the divergence from the teacher's softened answers."""

    teacher: str
    """Name of the recipe that trained the teacher."""
    alpha: _Share
    temperature: float = Field(gt=0)


class AdversaryRecipe(Table):
    """PGD that makes every training image adversarial, with the model in eval mode."""

    LATER = frozenset({"start", "start_from_clean", "clean_epochs"})

    norm: Literal["linf", "l2"]
    epsilon: _Length
    step_size: _Length
    steps: int = Field(gt=0)
    warmup_epochs: int = Field(default=0, ge=0)
    """Epochs over which radius and step grow linearly from 0."""
    clean_epochs: int = Field(default=0, ge=0)
    """Epochs on clean images before that."""
    start: Literal["uniform", "normal-coin"] = "uniform"
    """`uniform`: an example starts at its clean image with chance `start_from_clean`, else at a random point of the
    ball. `normal-coin`, as published: one standard normal number is drawn for the batch, and all of it starts at
    random points if that exceeds `start_from_clean`, else at the clean images."""
    start_from_clean: _Share = 0.0


class Recipe(Table):
    """A training recipe, with nothing left open."""

    LATER = frozenset(
        {"arguments", "zero_branches", "accumulation", "ghost_size", "precision"}
        | {"augmentation", "mixing", "ema", "distillation"}
    )

    schema_name: Literal["robench.recipe/1"] = Field(alias="schema")
    name: _Name
    """Name of the trained model."""
    architecture: str
    """Name in `robench.zoo.ARCHITECTURES`, or one that `timm.create_model` takes."""
    arguments: dict[str, bool | int | float | str] = {}
    """What `timm.create_model` takes beside the name."""
    zero_branches: bool = False
    """Residual branches of a vision transformer start at zero."""
    start_from: str | None = None
    """Name of a bundled model whose weights the training starts from."""
    seed: int = Field(ge=0, lt=2**32)
    batch_size: int = Field(gt=1)
    """Examples of one step of the optimizer, over all processes and parts."""
    accumulation: int = Field(default=1, gt=0)
    """Parts that each process cuts its share of the batch into, to add up their gradients."""
    ghost_size: int | None = Field(default=None, gt=1)
    """Images that share the statistics of batch-norm (ghost batch-norm); none: all of a process and part."""
    precision: Literal["float32", "float16", "bfloat16"] = "float32"
    """Of the passes through the network (automatic mixed precision); weights and attack stay float32."""
    label_smoothing: float = Field(default=0.0, ge=0, lt=1)
    data: DataRecipe
    optimizer: OptimizerRecipe
    schedule: ScheduleRecipe
    augmentation: AugmentationRecipe | None = None
    mixing: MixingRecipe | None = None
    ema: EmaRecipe | None = None
    distillation: DistillationRecipe | None = None
    adversary: AdversaryRecipe | None = None

    @model_validator(mode="after")
    def _consistent(self) -> "Recipe":
        self.part_size(processes=1)
        self._check_schedule()
        if self.data.size is not None and self.data.test_resize is not None and self.data.test_resize < self.data.size:
            raise self._wrong("data.test_resize", self.data.test_resize, f"at least `data.size`, {self.data.size}")
        if self.mixing is not None and self.mixing.mixup == self.mixing.cutmix == 0:
            raise self._wrong("mixing", "without effect", "`mixup` or `cutmix` above 0")
        photographs = self.data.source == "imagenet"
        stated: dict[str, object] = {"data.size": self.data.size, "data.test_resize": self.data.test_resize}
        stated |= {"augmentation": self.augmentation}
        if photographs:
            stated |= {"data.mean": self.data.mean, "data.std": self.data.std}
        for key, value in stated.items():
            if photographs and value is None:
                raise self._wrong(key, "missing", "a value for photographs")
            if not photographs and value is not None:
                raise self._wrong(key, "stated", "none for the mini suite, whose images stay as they are")
        return self

    def _check_schedule(self) -> None:
        """What begins ends, in the epochs that there are."""
        schedule = self.schedule
        if (schedule.kind == "steps") != bool(schedule.milestones):
            found = list(schedule.milestones) or "missing"
            raise self._wrong("schedule.milestones", found, 'epochs with the kind "steps", and none without it')
        if list(schedule.milestones) != sorted(set(schedule.milestones)):
            raise self._wrong("schedule.milestones", list(schedule.milestones), "rising epochs without repetition")
        if schedule.lag and schedule.each == "update":
            raise self._wrong("schedule.lag", schedule.lag, '0 unless `schedule.each` is "epoch"')
        if schedule.warmup_epochs >= schedule.epochs:
            expected = f"fewer than the {schedule.epochs} of `schedule.epochs`"
            raise self._wrong("schedule.warmup_epochs", schedule.warmup_epochs, expected)
        if self.adversary is not None:
            before = self.adversary.clean_epochs + self.adversary.warmup_epochs
            if before >= schedule.epochs:
                expected = f"with `adversary.warmup_epochs` fewer than the {schedule.epochs} of `schedule.epochs`"
                raise self._wrong("adversary.clean_epochs", self.adversary.clean_epochs, expected)

    def part_size(self, *, processes: int) -> int:
        """Examples that a process passes through the network at once.

        Raises:
          RecipeError: the batch does not divide into processes and parts, or a part into ghost batches.
        """
        shares = processes * self.accumulation
        size, rest = divmod(self.batch_size, shares)
        if rest or size == 0:
            expected = f"a multiple of {shares} (`accumulation` {self.accumulation} x {processes} processes)"
            raise self._wrong("batch_size", self.batch_size, expected)
        if self.ghost_size is not None and size % self.ghost_size:
            raise self._wrong("ghost_size", self.ghost_size, f"a divisor of {size}, the part of one process")
        if self.mixing is not None and size % 2:
            raise self._wrong("batch_size", self.batch_size, f"an even part for mixing, not {size}")
        return size

    def _wrong(self, key: str, found: object, expected: str) -> RecipeError:
        return RecipeError(complaint(self.name, key, found, expected))

    @property
    def digest(self) -> str:
        """SHA-256 of the recipe in canonical JSON."""
        return digest_of(self)


def digest_of(recipe: Table) -> str:
    """SHA-256 of a recipe in canonical JSON."""
    content = recipe.model_dump(mode="json", by_alias=True)
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()


TABLES: dict[str, type[Table]] = {
    "": Recipe,
    "data": DataRecipe,
    "optimizer": OptimizerRecipe,
    "schedule": ScheduleRecipe,
    "augmentation": AugmentationRecipe,
    "augmentation.randaugment": RandAugmentRecipe,
    "mixing": MixingRecipe,
    "ema": EmaRecipe,
    "distillation": DistillationRecipe,
    "adversary": AdversaryRecipe,
}
"""Every table of a recipe, by its place in the file."""

_EXPECTED = {
    "model_type": "a table",
    "string_pattern_mismatch": "a name such as `mini-resnet-adv`",
    "too_short": "one value or more",
    "tuple_type": "a number or a list",
}
"""What to say instead of pydantic's own words, by the type of an error."""


def parse_recipe(content: dict[str, Any], *, where: str) -> Recipe:
    """Build a recipe from the content of its file; `where` names the file in errors.

    Raises:
      RecipeError: a key or value is wrong; all of them are named.
    """
    return parse_as(Recipe, content, where=where)


def parse_as(kind: type[R], content: dict[str, Any], *, where: str) -> R:
    """The same for recipes of any kind."""
    try:
        return kind.model_validate(content)
    except ValidationError as error:
        lines = [_explain(detail, where, _keys(kind)) for detail in error.errors()]
        raise RecipeError("\n".join(dict.fromkeys(lines))) from error  # a union complains once for each branch


def _keys(kind: type[Table]) -> set[str]:
    """All keys of a recipe, in whatever table."""
    schema = kind.model_json_schema()
    return {key for table in (schema, *schema.get("$defs", {}).values()) for key in table["properties"]}


def _explain(detail: ErrorDetails, where: str, known: Iterable[str]) -> str:
    """One validation error in the form of all messages."""
    path = [str(part) for part in detail["loc"]]
    if path[:1] == ["arguments"]:
        path = path[:2]  # the rest names the branches of a union
    key, value = ".".join(path) or "recipe", repr(detail["input"])
    if detail["type"] == "extra_forbidden":
        return complaint(where, key, "unknown", "a key of the recipe schema", did_you_mean(path[-1], known))
    if detail["type"] == "missing":
        return complaint(where, key, "missing", "a value", "Add the key.")
    expected = _EXPECTED.get(detail["type"], detail["msg"].removeprefix("Input should be "))
    if path[:1] == ["arguments"]:
        expected = "a number, a string or a boolean"
    if path[-1] in ("epsilon", "step_size"):
        expected = f"{FRACTION_FORM}, more than 0"
    return complaint(where, key, value[:80], expected)
