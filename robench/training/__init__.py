"""Reference training: recipes in, weights and a log out."""

from robench.training.loop import Watcher, train
from robench.training.recipe import Recipe, bundled_recipes, load_recipe

__all__ = ["Recipe", "Watcher", "bundled_recipes", "load_recipe", "train"]
