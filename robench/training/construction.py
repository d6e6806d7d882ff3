"""Builds what a recipe names: the untrained model with its normalisation inside, and the optimizer.

Not here: what changes over the epochs (`schedules`).
"""

import timm
import torch
from timm.models import is_model
from timm.optim import create_optimizer_v2
from torch import nn

from robench.errors import RecipeError, complaint, did_you_mean
from robench.training.recipe import Recipe
from robench.zoo import ARCHITECTURES, MODELS, Normalised, load_model
from robench.zoo.ghost import with_ghost_batch_norm


def build_model(recipe: Recipe) -> Normalised:
    """The model as the training starts it, from the recipe's seed; on the current default device.

    Raises:
      RecipeError: architecture or start are unknown, or do not take the arguments.
    """
    torch.manual_seed(recipe.seed)
    if recipe.architecture in ARCHITECTURES:
        model = _bundled(recipe)
    elif is_model(recipe.architecture):
        model = Normalised(_network(recipe), *_constants(recipe))
    else:
        advice = did_you_mean(recipe.architecture, [*ARCHITECTURES, *timm.list_models()], otherwise="")
        raise RecipeError(complaint(recipe.name, "architecture", f"`{recipe.architecture}`", "a known one", advice))
    if recipe.zero_branches:
        _zero_branches(model.network, recipe)
    if recipe.ghost_size is not None:
        with_ghost_batch_norm(model, recipe.ghost_size)
    if recipe.start_from is not None:
        fitting = [name for name, architecture in MODELS.items() if architecture == recipe.architecture]
        if recipe.start_from not in fitting:
            advice = did_you_mean(recipe.start_from, fitting)
            expected = f"a bundled model of architecture `{recipe.architecture}`"
            raise RecipeError(complaint(recipe.name, "start_from", f"`{recipe.start_from}`", expected, advice))
        model.load_state_dict(load_model(recipe.start_from).state_dict())
    return model


def build_optimizer(recipe: Recipe, model: Normalised) -> torch.optim.Optimizer:
    """timm's optimizer over the model: biases and 1-d parameters are not decayed, nor are positions and class tokens.

    The bundled models were trained with their positions decayed, and that stays.
    """
    optimizer: torch.optim.Optimizer = create_optimizer_v2(
        model if recipe.architecture in ARCHITECTURES else model.network,  # the network names what is not decayed
        opt=recipe.optimizer.name,
        lr=recipe.optimizer.lr,
        weight_decay=recipe.optimizer.weight_decay,
        momentum=recipe.optimizer.momentum,
    )
    return optimizer


def _bundled(recipe: Recipe) -> Normalised:
    for key, value in (("arguments", recipe.arguments), ("data.mean", recipe.data.mean), ("data.std", recipe.data.std)):
        if value:
            expected = f"none with `{recipe.architecture}`, which brings its own"
            raise RecipeError(complaint(recipe.name, key, value, expected))
    return ARCHITECTURES[recipe.architecture]()


def _network(recipe: Recipe) -> nn.Module:
    try:
        network: nn.Module = timm.create_model(recipe.architecture, pretrained=False, **recipe.arguments)
    except Exception as error:  # whatever an architecture makes of its arguments
        summary = (str(error).splitlines() or [""])[0][:200]
        found = f"`{recipe.arguments}`, with which timm cannot build {recipe.architecture} ({summary})"
        expected = f"arguments of {recipe.architecture}"
        raise RecipeError(complaint(recipe.name, "arguments", found, expected)) from error
    patches = getattr(network, "patch_embed", None)  # what holds timm's transformers to one size of image
    wanted, size = getattr(patches, "img_size", None), recipe.data.size
    if (
        wanted is not None
        and size is not None
        and getattr(patches, "strict_img_size", False)
        and wanted != (size, size)
    ):
        advice = "Correct it, or set `img_size` in `arguments`."
        raise RecipeError(complaint(recipe.name, "data.size", size, f"{wanted[0]}, as the network has it", advice))
    return network


def _constants(recipe: Recipe) -> tuple[tuple[float, ...], tuple[float, ...]]:
    if recipe.data.mean is None or recipe.data.std is None:
        expected = f"`mean` and `std`, which `{recipe.architecture}` does not bring"
        raise RecipeError(complaint(recipe.name, "data", "incomplete", expected))
    return recipe.data.mean, recipe.data.std


def _zero_branches(network: nn.Module, recipe: Recipe) -> None:
    """Zero the last weights of every residual branch."""
    ends = [part for name, part in network.named_modules() if name.endswith((".attn.proj", ".mlp.fc2"))]
    if not ends:
        expected = "false for a network without the blocks of timm's vision transformers"
        raise RecipeError(complaint(recipe.name, "zero_branches", "true", expected))
    for part in ends:
        assert isinstance(part, nn.Linear), "timm's branches end in linear layers"
        nn.init.zeros_(part.weight)
