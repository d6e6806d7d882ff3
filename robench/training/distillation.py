"""Learning from a teacher.

Not here: who teaches whom (`recipes/distillation.toml`).
"""

from pathlib import Path
from shlex import quote

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from robench.errors import RecipeError, complaint
from robench.training.catalogue import load_recipe
from robench.training.construction import build_model
from robench.training.export import export_path
from robench.training.recipe import DistillationRecipe, Recipe
from robench.zoo.state import fill
from robench.zoo.timm_models import HUB_FILE


def load_teacher(recipe: Recipe, path: Path | None, folder: Path) -> tuple[nn.Module, str]:
    """The model that a recipe learns from, in eval mode, without gradients, and the SHA-256 of its weights.

    Args:
      recipe: names the teacher's recipe.
      path: its weights, or the folder they lie in; None: where that recipe's training in `folder` left them.
      folder: of this training.
    Raises:
      RecipeError: there are no weights.
      ModelError: they do not fit.
    """
    assert recipe.distillation is not None
    name = recipe.distillation.teacher
    teacher = load_recipe(name)
    found = path or export_path(teacher, folder)
    if not found.exists():
        command = f"robench train {name} --out {quote(str(folder))}"
        advice = f"Train it first: `{command}`; or name its weights: `--teacher PATH`."
        raise RecipeError(complaint(recipe.name, "teacher", f"missing ({found})", f"the weights of `{name}`", advice))
    weights = found / HUB_FILE if found.is_dir() else found
    with torch.random.fork_rng(devices=[]):
        model = build_model(teacher)
    sha256 = fill(model if teacher.data.source == "mini" else model.network, weights, name)
    return model.eval().requires_grad_(False), sha256


def distilled(loss: Tensor, logits: Tensor, teacher: nn.Module, images: Tensor, recipe: DistillationRecipe) -> Tensor:
    """(1 - alpha) loss + alpha T^2 KL(teacher || student), both softened by T, mean over the images.

    References:
      Hinton, Vinyals & Dean 2015, arXiv:1503.02531. Deviates: none.
    """
    with torch.no_grad():
        answers = teacher(images)
    soft = recipe.temperature
    student, teaching = (F.log_softmax(each / soft, dim=1) for each in (logits, answers))
    divergence = F.kl_div(student, teaching, reduction="batchmean", log_target=True)
    return (1 - recipe.alpha) * loss + recipe.alpha * soft**2 * divergence
