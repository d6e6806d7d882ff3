"""Every recipe for photographs takes two steps of its optimizer; `make test-recipes` runs all of them."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from robench.training import Options, Recipe, bundled_recipes, load_recipe, train
from robench.training.construction import build_model
from robench.training.export import export_weights
from tests.training.test_loop import PROVENANCE, StoppedError, Watch

FAMILIES = ("resnet18-best", "deit-mini", "spach-ms-xxs-conv", "resnet50-gelu-adv", "resnet-rs-50-160", "convnext-t")
"""One of each family, small, which the default tests take."""
NAMES = [name for name in bundled_recipes() if load_recipe(name).data.source == "imagenet"]


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Eight generated images of 224 pixels in four classes, and as many to watch by."""
    root, generator = tmp_path_factory.mktemp("generated"), np.random.default_rng(0)
    for folder in ("train", "val"):
        for name in "abcd":
            (root / folder / name).mkdir(parents=True)
            for number in range(2):
                pixels = generator.integers(0, 256, (224, 224, 3), dtype=np.uint8)
                Image.fromarray(pixels).save(root / folder / name / f"{number}.png")
    return root


def _small(recipe: Recipe) -> Recipe:
    """The same recipe for a batch of four images in four classes; everything else stays."""
    changes: dict[str, Any] = {"examples": 8, "validation": 8}
    return recipe.model_copy(
        update={
            "batch_size": 4,
            "accumulation": min(recipe.accumulation, 2),
            "ghost_size": recipe.ghost_size and 2,
            "arguments": {**recipe.arguments, "num_classes": 4},
            "data": recipe.data.model_copy(update=changes),
        }
    )


@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=() if name in FAMILIES else pytest.mark.slow) for name in NAMES]
)
def test_two_steps_are_taken(name: str, root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    recipe, teacher = _small(load_recipe(name)), None
    if recipe.distillation is not None:
        teaching = _small(load_recipe(recipe.distillation.teacher))
        monkeypatch.setattr("robench.training.distillation.load_recipe", lambda name: teaching)
        with torch.random.fork_rng(devices=[]):
            teacher = tmp_path / "teacher"
            export_weights(teaching, build_model(teaching), teacher)
    watch = Watch(stop_in_epoch=0)
    options = Options(data=root, teacher=teacher, workers=0, cpu=True)
    with pytest.raises(StoppedError):
        train(recipe, tmp_path / "out", provenance=PROVENANCE, watcher=watch, options=options)
    assert watch.steps == [(0, 0), (0, 1)]
    assert all(0 < loss < 100 for loss in watch.losses)


def test_every_family_is_there_by_default() -> None:
    assert set(FAMILIES) <= set(NAMES)
