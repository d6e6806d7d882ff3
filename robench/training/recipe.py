"""A training recipe: everything that decides what a trained model becomes, as a TOML file.

Not here: the loop that follows it (`loop`).
"""

import hashlib
import importlib.resources
import json
import tomllib
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Annotated, Literal, TypeVar

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, ValidationError
from pydantic_core import ErrorDetails

from robench.errors import RecipeError, complaint, did_you_mean
from robench.protocol import FRACTION_FORM, fraction


def _is_length(text: str) -> str:
    if fraction(text) == 0:
        raise ValueError("more than 0")
    return text


_Length = Annotated[str, AfterValidator(_is_length)]


class Table(BaseModel):
    """A table of a recipe: unknown keys are errors, and values are of the type that is asked for."""

    model_config = ConfigDict(extra="forbid", strict=True, frozen=True, allow_inf_nan=False)


R = TypeVar("R", bound=Table)


class DataRecipe(Table):
    """What is trained on."""

    source: Literal["mini"]
    examples: int = Field(gt=0)
    """Size of the training set."""
    validation: int = Field(gt=0)
    """Examples to watch the training by; never used to choose anything."""
    flip: bool = True
    """Mirror every image with chance 1/2."""


class OptimizerRecipe(Table):
    """timm's `create_optimizer_v2`; biases and 1-d parameters are not decayed."""

    name: Literal["sgd", "adamw"]
    lr: float = Field(gt=0)
    weight_decay: float = Field(ge=0)
    momentum: float = Field(default=0.9, ge=0, lt=1)
    """Of SGD (Nesterov, as timm builds it)."""


class ScheduleRecipe(Table):
    """Cosine from `lr` to `min_lr` after a linear warm-up, updated every step."""

    epochs: int = Field(gt=0)
    warmup_epochs: int = Field(ge=0)
    min_lr: float = Field(default=0.0, ge=0)


class AdversaryRecipe(Table):
    """PGD that makes every training image adversarial, with the model in eval mode."""

    norm: Literal["linf", "l2"]
    epsilon: _Length
    step_size: _Length
    steps: int = Field(gt=0)
    warmup_epochs: int = Field(default=0, ge=0)
    """Epochs over which radius and step grow linearly from 0."""


class Recipe(Table):
    """A training recipe as its TOML file states it."""

    schema_name: Literal["robench.recipe/1"] = Field(alias="schema")
    name: str = Field(pattern=r"^[a-z0-9]+(-[a-z0-9]+)*$")
    """Name of the trained model."""
    architecture: str
    """Name in `robench.zoo.ARCHITECTURES`."""
    start_from: str | None = None
    """Name of a bundled model whose weights the training starts from."""
    seed: int = Field(ge=0, lt=2**32)
    batch_size: int = Field(gt=1)
    label_smoothing: float = Field(default=0.0, ge=0, lt=1)
    data: DataRecipe
    optimizer: OptimizerRecipe
    schedule: ScheduleRecipe
    adversary: AdversaryRecipe | None = None

    @property
    def digest(self) -> str:
        """SHA-256 of the recipe in canonical JSON."""
        return digest_of(self)


def digest_of(recipe: Table) -> str:
    """SHA-256 of a recipe in canonical JSON."""
    content = recipe.model_dump(mode="json", by_alias=True)
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()


def bundled_recipes() -> dict[str, Path]:
    """Files of the bundled recipes by name."""
    folder = Path(str(importlib.resources.files("robench.training") / "recipes"))
    return {path.stem: path for path in sorted(folder.glob("*.toml"))}


def load_recipe(name: str | Path) -> Recipe:
    """A recipe by name or path of a TOML file.

    Raises:
      RecipeError: there is no such recipe, or a key is wrong; file and key are named.
    """
    return read_recipe(find_recipe(name, bundled_recipes(), where="robench train"), Recipe)


def find_recipe(name: str | Path, bundled: Mapping[str, Path], *, where: str) -> Path:
    """The file of a bundled recipe, or the path itself of a TOML file.

    Raises:
      RecipeError: the name is neither.
    """
    text = str(name)
    if text not in bundled and not text.endswith(".toml"):
        advice = did_you_mean(text, bundled)
        raise RecipeError(complaint(where, "recipe", f"`{text}`", "a recipe's name or a TOML file", advice))
    return bundled.get(text, Path(text))


def read_recipe(path: Path, kind: type[R]) -> R:
    """A recipe of this kind from a TOML file.

    Raises:
      RecipeError: the file cannot be read, or a key is wrong; file and key are named.
    """
    try:
        content = tomllib.loads(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, tomllib.TOMLDecodeError) as error:
        raise RecipeError(complaint(str(path), "file", f"unreadable ({error})", "a recipe in TOML")) from error
    try:
        return kind.model_validate(content)
    except ValidationError as error:
        known = _keys(kind)
        raise RecipeError("\n".join(_explain(detail, path.name, known) for detail in error.errors())) from error


def _keys(kind: type[Table]) -> set[str]:
    """All keys of a recipe, in whatever table."""
    schema = kind.model_json_schema()
    return {key for table in (schema, *schema.get("$defs", {}).values()) for key in table["properties"]}


def _explain(detail: ErrorDetails, where: str, known: Iterable[str]) -> str:
    """One validation error in the form of all messages."""
    path = [str(part) for part in detail["loc"]]
    key, value = ".".join(path) or "recipe", repr(detail["input"])
    if detail["type"] == "extra_forbidden":
        return complaint(where, key, "unknown", "a key of the recipe schema", did_you_mean(path[-1], known))
    if detail["type"] == "missing":
        return complaint(where, key, "missing", "a value", "Add the key.")
    expected = {"model_type": "a table", "string_pattern_mismatch": "a name such as `mini-resnet-adv`"}.get(
        detail["type"], detail["msg"].removeprefix("Input should be ")
    )
    if path[-1] in ("epsilon", "step_size"):
        expected = f"{FRACTION_FORM}, more than 0"
    return complaint(where, key, value[:80], expected)
