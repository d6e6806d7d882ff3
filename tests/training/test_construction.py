from pathlib import Path
from typing import Any

import pytest
import timm
import torch
from torch import nn

from robench.errors import RecipeError
from robench.training import Recipe, bundled_recipes, load_recipe
from robench.training.construction import build_model, build_optimizer
from robench.training.schedules import LearningRate
from robench.zoo.ghost import GhostBatchNorm2d
from robench.zoo.normalised import Normalised
from tests.training.test_recipe import TINY

RECIPES = {name: load_recipe(name) for name in bundled_recipes()}
_BUILT: dict[str, Normalised] = {}


def _built(recipe: Recipe) -> Normalised:
    """The model of a recipe on the meta device; recipes with the same model share it."""
    keys = {"architecture", "arguments", "ghost_size", "zero_branches", "start_from"}
    key = recipe.model_dump_json(include=keys) + repr(recipe.data.mean)
    if key not in _BUILT:
        with torch.random.fork_rng(devices=[]), torch.device("meta"):
            _BUILT[key] = build_model(recipe.model_copy(update={"start_from": None}))
    return _BUILT[key]


@pytest.mark.parametrize("name", RECIPES)
def test_every_recipe_builds_its_model_optimizer_and_schedule(name: str) -> None:
    recipe = RECIPES[name]
    model = _built(recipe)
    assert {parameter.device.type for parameter in model.parameters()} == {"meta"}
    optimizer = build_optimizer(recipe, model)
    held = [parameter for group in optimizer.param_groups for parameter in group["params"]]
    assert sorted(map(id, held)) == sorted(map(id, model.parameters()))
    decayed = [group for group in optimizer.param_groups if group["weight_decay"] > 0]
    assert {group["weight_decay"] for group in decayed} == {recipe.optimizer.weight_decay}
    assert all(parameter.ndim > 1 for group in decayed for parameter in group["params"])
    updates = recipe.data.examples // recipe.batch_size
    learning_rate = LearningRate(recipe.schedule, optimizer, updates=updates)
    learning_rate.set(updates * recipe.schedule.epochs - 1)
    assert 0 < optimizer.param_groups[0]["lr"] < recipe.optimizer.lr


def test_parameters_of_published_sizes() -> None:
    published = {  # README of the published code of Bai et al. 2021
        "deit-s": 22_050_664,
        "deit-mini": 9_982_184,
        "resnet18-aligned": 11.69e6,
        "resnet50": 25.56e6,
        "resnet50-aligned": 25.56e6,
        "resnet50-gelu-adv": 25.56e6,
        "resnet101-best": 44.55e6,
    }
    for name, expected in published.items():
        found = sum(parameter.numel() for parameter in _built(RECIPES[name]).parameters())
        assert found == pytest.approx(expected, abs=5000)


def test_ghost_batch_norm_is_where_the_recipe_wants_it() -> None:
    for name, size in (("resnet50-gelu-adv", 64), ("resnet50-aligned", 64), ("resnet50", None)):
        norms = [part for part in _built(RECIPES[name]).modules() if isinstance(part, nn.BatchNorm2d)]
        assert len(norms) == 53
        assert {getattr(norm, "ghost_size", None) for norm in norms} == {size}
        assert all(isinstance(norm, GhostBatchNorm2d) for norm in norms) == (size is not None)


def test_the_activation_is_the_recipes() -> None:
    for name, kind in (("resnet50-gelu-adv", "GELU"), ("resnet50-relu-adv", "ReLU")):
        parts = [type(part).__name__ for part in _built(RECIPES[name]).modules()]
        assert [part for part in parts if part in ("ReLU", "GELU")] == [kind] * 49


def test_positions_and_class_tokens_of_photographs_are_not_decayed() -> None:
    model = _built(RECIPES["deit-s"])
    optimizer = build_optimizer(RECIPES["deit-s"], model)
    free = {id(each) for group in optimizer.param_groups if not group["weight_decay"] for each in group["params"]}
    assert {id(model.network.pos_embed), id(model.network.cls_token)} <= free


def test_positions_of_the_bundled_transformer_stay_decayed() -> None:
    # Its weights were trained so; another grouping would train another model under the same recipe.
    model = _built(RECIPES["mini-deit"])
    optimizer = build_optimizer(RECIPES["mini-deit"], model)
    decayed = {id(each) for group in optimizer.param_groups if group["weight_decay"] for each in group["params"]}
    assert id(model.network.pos_embed) in decayed


@pytest.fixture
def small(tmp_path: Path) -> Recipe:
    """A recipe of timm's smallest vision transformer on the mini suite."""
    path = tmp_path / "tiny.toml"
    content = TINY.replace('"mini-resnet"', '"test_vit"\narguments.num_classes = 10\narguments.img_size = 64')
    path.write_text(
        content.replace("validation = 64", "validation = 64\nmean = [0.5, 0.5, 0.5]\nstd = [0.25, 0.25, 0.25]")
    )
    return load_recipe(path)


def test_the_normalisation_is_inside(small: Recipe) -> None:
    model = build_model(small).eval()
    images = torch.rand(2, 3, 64, 64, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        assert torch.equal(model(images), model.network((images - 0.5) / 0.25))


def test_the_seed_decides_the_weights(small: Recipe) -> None:
    def first(seed: int) -> torch.Tensor:
        return next(build_model(small.model_copy(update={"seed": seed})).parameters())

    assert torch.equal(first(1), first(1))
    assert not torch.equal(first(1), first(2))


def test_zero_branches_make_every_block_the_identity(small: Recipe) -> None:
    def blocks(recipe: Recipe) -> list[nn.Module]:
        parts = build_model(recipe).network.get_submodule("blocks").children()
        return list(parts)

    tokens = torch.rand(2, 17, 64, generator=torch.Generator().manual_seed(0))
    zeroed = blocks(small.model_copy(update={"zero_branches": True}))
    assert len(zeroed) > 1
    assert all(torch.equal(block(tokens), tokens) for block in zeroed)
    assert not any(torch.equal(block(tokens), tokens) for block in blocks(small))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"architecture": "test_vitt"}, r"^tiny: `architecture` is `test_vitt`; expected a known one\. Did you mean"),
        ({"architecture": "roadmap50_gel"}, r"Did you mean .*`roadmap50_gelu`"),
        (
            {"arguments": {"depht": 3}},
            r"^tiny: `arguments` is `\{'depht': 3\}`, with which timm cannot build test_vit \(.*depht.*\); expected",
        ),
        (
            {"architecture": "test_resnet", "arguments": {}, "zero_branches": True},
            r"^tiny: `zero_branches` is true; expected false for a network without the blocks of timm's vision",
        ),
        (
            {"architecture": "mini-resnet"},
            r"^tiny: `arguments` is \{.*\}; expected none with `mini-resnet`, which brings its own\.",
        ),
        (
            {"architecture": "mini-resnet", "arguments": {}},
            r"^tiny: `data\.mean` is \(0\.5, 0\.5, 0\.5\); expected none with `mini-resnet`, which brings its own\.",
        ),
    ],
)
def test_a_model_that_cannot_be_built_is_named(changes: dict[str, Any], message: str, small: Recipe) -> None:
    with pytest.raises(RecipeError, match=message):
        build_model(small.model_copy(update=changes))


def test_a_network_for_another_size_is_named() -> None:
    recipe = RECIPES["deit-s"]
    smaller = recipe.model_copy(update={"data": recipe.data.model_copy(update={"size": 192})})
    message = r"^deit-s: `data\.size` is 192; expected 224, as the network has it\. Correct it, or set `img_size` in"
    with torch.device("meta"):
        with pytest.raises(RecipeError, match=message):
            build_model(smaller)
        build_model(smaller.model_copy(update={"arguments": {**recipe.arguments, "img_size": 192}}))
        convolutional = RECIPES["resnet50"]
        build_model(convolutional.model_copy(update={"data": smaller.data}))


def test_a_timm_architecture_needs_its_normalisation(small: Recipe) -> None:
    data = small.data.model_copy(update={"std": None})
    message = r"^tiny: `data` is incomplete; expected `mean` and `std`, which `test_vit` does not bring\.$"
    with pytest.raises(RecipeError, match=message):
        build_model(small.model_copy(update={"data": data}))


def test_timms_name_is_what_is_built() -> None:
    with torch.device("meta"):
        expected = timm.create_model("resnet50", act_layer="gelu").state_dict()
    found = _built(RECIPES["resnet50-gelu-adv"]).network.state_dict()
    assert {name: tensor.shape for name, tensor in found.items()} == {
        name: tensor.shape for name, tensor in expected.items()
    }
