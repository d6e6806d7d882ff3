from pathlib import Path
from typing import Any

import pytest
import timm
import torch
from torch import nn

from robench.errors import RecipeError
from robench.synthesis import bundled_recipes, load_recipe

TINY = """
schema = "robench.texture-recipe/1"
name = "tiny"
model = "tests.synthesis.stripes:network"
seed = 3

[data]
source = "mini"
images = 20
crop = 16

[attention]
layer = "5"
threshold = 0.5

[style]
layers = ["1", "4"]
average_pooling = true

[synthesis]
textures = 2
size = 16
steps = 4
lr = 0.02
total_variation = 1.0
"""


def test_the_bundled_recipes_load_under_their_own_names() -> None:
    assert {name: load_recipe(name).name for name in bundled_recipes()} == {"imagenet": "imagenet", "mini": "mini"}


def test_the_recipe_for_imagenet_is_the_published_one() -> None:
    """Every number from the facts about PatchAttack's code."""
    recipe = load_recipe("imagenet")
    assert recipe.model == "timm:vgg19.tv_in1k"
    assert recipe.style.layers == tuple(f"network.features.{index}" for index in (1, 6, 11, 20, 29))
    assert (recipe.attention.layer, recipe.attention.threshold) == ("network.features.35", 0.8)
    assert (recipe.synthesis.textures, recipe.synthesis.size, recipe.synthesis.steps) == (30, 224, 10_000)
    assert recipe.synthesis.lr == pytest.approx(0.01 * (0.229 + 0.224 + 0.225) / 3, rel=0.005)
    assert recipe.synthesis.total_variation == 0
    assert recipe.style.average_pooling


def test_the_digest_sees_every_value(tmp_path: Path) -> None:
    path = tmp_path / "tiny.toml"
    digests = set()
    for old, new in (
        ("seed = 3", "seed = 4"),
        ("0.5", "0.6"),
        ('"1", "4"', '"1"'),
        ("steps = 4", "steps = 5"),
        ("", ""),
    ):
        path.write_text(TINY.replace(old, new) if old else TINY)
        digests.add(load_recipe(path).digest)
    assert len(digests) == 5


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("seed = 3", "sead = 3", "`sead` is unknown; expected a key of the recipe schema. Did you mean `seed`"),
        ("steps = 4", "", "tiny.toml: `synthesis.steps` is missing; expected a value. Add the key."),
        ("steps = 4", "steps = 0", "tiny.toml: `synthesis.steps` is 0; expected greater than 0."),
        (
            "threshold = 0.5",
            "threshold = 1.5",
            "tiny.toml: `attention.threshold` is 1.5; expected less than or equal to 1.",
        ),
        ('"1", "4"', "", "tiny.toml: `style.layers` is []; expected one value or more"),
        ('"mini"', '"cifar"', "tiny.toml: `data.source` is 'cifar'; expected 'imagenet' or 'mini'."),
        ("[data]", "[data", "/tiny.toml: `file` is unreadable ("),
    ],
)
def test_a_wrong_key_is_named(tmp_path: Path, old: str, new: str, message: str) -> None:
    path = tmp_path / "tiny.toml"
    path.write_text(TINY.replace(old, new, 1))
    with pytest.raises(RecipeError) as caught:
        load_recipe(path)
    assert message in str(caught.value)


def test_an_unknown_recipe_is_named() -> None:
    with pytest.raises(RecipeError) as caught:
        load_recipe("minni")
    expected = "expected a recipe's name or a TOML file. Did you mean `mini`?"
    assert str(caught.value) == f"robench textures build: `recipe` is `minni`; {expected}"


def test_the_layers_of_the_recipe_for_imagenet_are_what_it_says() -> None:
    """The ReLU after the first convolution of each block of VGG-19, and after the last of block 5; without weights."""
    recipe = load_recipe("imagenet")
    with torch.device("meta"):
        modules = dict(timm.create_model("vgg19.tv_in1k", pretrained=False).named_modules(prefix="network"))

    def convolution_before(name: str) -> Any:
        assert isinstance(modules[name], nn.ReLU)
        stem, _, index = name.rpartition(".")
        return modules[f"{stem}.{int(index) - 1}"]

    assert [convolution_before(name).out_channels for name in recipe.style.layers] == [64, 128, 256, 512, 512]
    assert [convolution_before(name).in_channels for name in recipe.style.layers] == [3, 64, 128, 256, 512]
    last = int(recipe.attention.layer.rpartition(".")[2])
    assert convolution_before(recipe.attention.layer).out_channels == 512
    assert isinstance(modules[f"network.features.{last + 1}"], nn.MaxPool2d)
    assert f"network.features.{last + 2}" not in modules
