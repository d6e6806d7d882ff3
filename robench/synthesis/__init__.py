"""Makes texture dictionaries: styles of a class's images, clustered, and painted anew.

Not here: how dictionaries are read and pinned (`robench.data.textures`), and how attacks use them.
"""

from robench.synthesis.build import Watcher, build, open_images
from robench.synthesis.recipe import TextureRecipe, bundled_recipes, load_recipe

__all__ = ["TextureRecipe", "Watcher", "build", "bundled_recipes", "load_recipe", "open_images"]
