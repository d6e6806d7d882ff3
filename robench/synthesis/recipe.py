"""A texture recipe: everything that decides what a texture dictionary becomes, as a TOML file.

Not here: what follows it (`build`).
"""

import importlib.resources
import tomllib
from pathlib import Path
from typing import Literal

from pydantic import Field

from robench.errors import RecipeError, complaint, did_you_mean
from robench.training.recipe import Table, digest_of, parse_as


class ImagesRecipe(Table):
    """The images whose styles are taken."""

    source: Literal["imagenet", "mini"]
    """`imagenet`: a folder of training images; `mini`: painted by the generator of the mini suite."""
    images: int = Field(gt=0)
    """Images of each class that are looked at, at most."""
    surest: int | None = Field(default=None, gt=0)
    """Of those that the model gets right, so many with the largest margin are taken; none: all."""
    resize: int | None = Field(default=None, gt=0)
    """Length of the shorter side after resizing (bilinear, Pillow), in pixels; none: not resized."""
    crop: int = Field(gt=0)
    """Side of the centre crop, in pixels."""


class AttentionRecipe(Table):
    """Where in an image the model looks (Grad-CAM)."""

    layer: str
    """Module whose output is weighted by its gradient."""
    threshold: float = Field(gt=0, le=1)
    """The style is taken where the attention, scaled to [0, 1], is at least this."""


class StyleRecipe(Table):
    """What a style is: Gram matrices of features."""

    layers: tuple[str, ...] = Field(min_length=1, strict=False)
    """Modules whose outputs are the features."""
    average_pooling: bool
    """Whether max-pooling is replaced by average-pooling of the same kernel."""
    pixels: float = Field(default=0.0, ge=0)
    """Weight of the pixels beside the layers, as if they were one more."""


class SynthesisRecipe(Table):
    """How a texture is painted."""

    textures: int = Field(gt=0)
    """Textures of each class."""
    size: int = Field(gt=0)
    """Side of a texture in pixels."""
    steps: int = Field(gt=0)
    """Steps of Adam."""
    lr: float = Field(gt=0)
    """Of Adam, in units of the image."""
    total_variation: float = Field(default=0.0, ge=0)
    """Weight of the mean squared difference of neighbouring pixels."""


class TextureRecipe(Table):
    """A texture recipe as its TOML file states it."""

    schema_name: Literal["robench.texture-recipe/1"] = Field(alias="schema")
    name: str = Field(pattern=r"^[a-z0-9]+(-[a-z0-9]+)*$")
    model: str
    """Name of the model whose features and attention are looked at."""
    seed: int = Field(ge=0)
    data: ImagesRecipe
    attention: AttentionRecipe
    style: StyleRecipe
    synthesis: SynthesisRecipe

    @property
    def digest(self) -> str:
        """SHA-256 of the recipe in canonical JSON."""
        return digest_of(self)


def bundled_recipes() -> dict[str, Path]:
    """Files of the bundled recipes by name."""
    folder = Path(str(importlib.resources.files("robench.synthesis") / "recipes"))
    return {path.stem: path for path in sorted(folder.glob("*.toml"))}


def load_recipe(name: str | Path) -> TextureRecipe:
    """A texture recipe by name or path of a TOML file.

    Raises:
      RecipeError: there is no such recipe, or a key is wrong; file and key are named.
    """
    text, bundled = str(name), bundled_recipes()
    if text not in bundled and not text.endswith(".toml"):
        found, advice = f"`{text}`", did_you_mean(text, bundled)
        raise RecipeError(
            complaint("robench textures build", "recipe", found, "a recipe's name or a TOML file", advice)
        )
    path = bundled.get(text, Path(text))
    try:
        content = tomllib.loads(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, tomllib.TOMLDecodeError) as error:
        raise RecipeError(complaint(str(path), "file", f"unreadable ({error})", "a recipe in TOML")) from error
    return parse_as(TextureRecipe, content, where=path.name)
