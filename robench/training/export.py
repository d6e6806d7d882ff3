"""What a training leaves behind: weights that `robench.load_model` reads, and that the Hub takes.

Not here: checkpoints to go on from (`checkpoint`).
"""

import shutil
from contextlib import suppress
from pathlib import Path
from typing import Any

import timm
from huggingface_hub import HfApi
from safetensors.torch import save_file
from torch import nn

from robench.errors import ModelError, complaint
from robench.hub import LIBRARY, LOG_IN, Address, Hub, own_token, page_of, parse
from robench.training.checkpoint import writing
from robench.training.recipe import Recipe
from robench.zoo import Normalised
from robench.zoo.state import SUFFIX

_OF_OTHER_WEIGHTS = ("url", "hf_hub_id", "file", "tag", "license", "origin_url", "paper_name", "paper_ids")
"""What timm says of the weights that it publishes itself."""


def export_path(recipe: Recipe, folder: Path) -> Path:
    """Where the trained model goes: a file of weights for a mini model, else a folder as timm lays it out."""
    return folder / (f"{recipe.name}.safetensors" if recipe.data.source == "mini" else recipe.name)


def export_weights(recipe: Recipe, model: nn.Module, path: Path) -> None:
    """Write a trained model; what is there is replaced at once.

    Raises:
      RecipeError: it cannot be written.
    """
    temporary = path.with_suffix(".tmp") if recipe.data.source == "mini" else path.with_name(f"{path.name}.tmp")
    with writing(path):
        try:
            if recipe.data.source == "mini":
                state = {name: tensor.detach().cpu().contiguous() for name, tensor in model.state_dict().items()}
                save_file(state, temporary)
            else:
                assert isinstance(model, Normalised)
                _remove(temporary)
                _write_folder(recipe, model, temporary)
                shutil.rmtree(path, ignore_errors=True)
            temporary.replace(path)
        except BaseException:
            _remove(temporary)
            raise


def _remove(path: Path) -> None:
    """A file or folder, where it can be removed."""
    if path.is_dir():
        shutil.rmtree(path, ignore_errors=True)
    else:
        with suppress(OSError):
            path.unlink()


def _write_folder(recipe: Recipe, model: Normalised, folder: Path) -> None:
    """timm's `config.json` and `model.safetensors`, of a network without its normalisation."""
    network: Any = model.network.cpu()
    data = recipe.data
    assert data.size is not None
    assert data.test_resize is not None
    settings = network.pretrained_cfg
    for key in _OF_OTHER_WEIGHTS:
        settings.pop(key, None)
    settings["mean"], settings["std"] = data.mean, data.std
    settings["input_size"] = (3, data.size, data.size)
    settings["crop_pct"], settings["interpolation"] = data.size / data.test_resize, data.test_interpolation
    network.pretrained_cfg = settings
    arguments = {"num_classes": network.num_classes, **recipe.arguments}
    timm.models.save_for_hf(network, folder, model_args=arguments, safe_serialization=True)


def push(folder: Path, repository: str, hub: Hub | None = None) -> str:
    """Put an exported folder into a repository on the Hub, which is made if it is not there; returns its page.

    Args:
      folder: from `train`.
      repository: `org/name`, or `hf-hub:org/name`.
      hub: where it goes.
    Raises:
      ModelError: the folder is a mini model's file, no one is logged in, or the Hub refuses.
    """
    hub = hub or Hub()
    address, token = check_push(folder, repository)
    api = HfApi(endpoint=hub.endpoint, token=token, library_name=LIBRARY)
    try:
        api.create_repo(address.repository, exist_ok=True)
        api.upload_folder(repo_id=address.repository, folder_path=folder, commit_message="Weights and configuration")
    except Exception as error:  # what the client's transport raises has no public parent
        reason = f"{type(error).__name__}: {' '.join(str(error).split())[:200]}"
        raise ModelError(complaint(address.reference, "push", f"refused ({reason})", "a Hub that takes it")) from error
    return page_of(address, hub)


def check_push(path: Path, repository: str) -> tuple[Address, str]:
    """Check, before a training, what can be known of a push; returns the repository, and the token that it takes.

    Args:
      path: where the trained model goes; see `export_path`.
      repository: as in `push`.
    Raises:
      ModelError: the model is a mini model, the repository has no such name, or no one is logged in.
    """
    address = parse(repository if ":" in repository else f"hf-hub:{repository}")
    if path.suffix == SUFFIX:
        expected = "a folder with timm's `config.json`"
        advice = "Mini models are loaded by `robench evaluate mini-resnet --weights FILE`."
        raise ModelError(complaint(str(path), "push", "a file of a mini model", expected, advice))
    token = own_token()
    if token is None:
        advice = f"First {LOG_IN}; the token needs the right to write."
        raise ModelError(complaint(address.reference, "token", "none", "someone who is logged in", advice))
    return address, token
