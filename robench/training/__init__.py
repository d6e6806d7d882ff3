"""Reference training: recipes in, weights and a log out."""

from robench.training.catalogue import bundled_recipes, load_recipe, resolve_recipe
from robench.training.loop import Options, Silent, Watcher, train
from robench.training.recipe import Recipe

__all__ = ["Options", "Recipe", "Silent", "Watcher", "bundled_recipes", "load_recipe", "resolve_recipe", "train"]
