"""Follows a recipe: epochs, checkpoints, a log, and the weights at the end.

A training may be killed at any moment and started again: it goes on after the last whole epoch, and
ends in the same weights on the same machine with the same number of threads.

Not here: what a recipe says (`recipe`), and progress bars (`cli`).
"""

import json
import os
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, Protocol

import torch
import torch.nn.functional as F
from pydantic import BaseModel
from safetensors.torch import save_file
from torch import Tensor, nn

from robench.data import mini
from robench.errors import RecipeError, complaint
from robench.training.adversary import adversarial_images, probe
from robench.training.construction import build_model, build_optimizer
from robench.training.recipe import Recipe
from robench.training.schedules import LearningRate

NOT_FOLLOWED = ("accumulation", "precision", "augmentation", "mixing", "ema", "distillation")
"""Keys of recipes for photographs, which this loop, over the mini suite on one processor, does not follow."""
PROBE_STEPS = 10
PROBE_EXAMPLES = 256
"""Adversarial accuracy is watched on this many validation images, with this many steps of PGD."""


class Watcher(Protocol):
    """Who is told how a training goes."""

    def begin(self, recipe: Recipe, *, steps: int, finished_epochs: int) -> None:
        """Training starts, or goes on after so many epochs; `steps` is the length of an epoch."""
        ...

    def step(self, epoch: int, step: int, loss: float) -> None:
        """A batch was learnt."""
        ...

    def epoch(self, line: dict[str, Any]) -> None:
        """An epoch ended; this is its line in the log."""
        ...


def train(recipe: Recipe, folder: Path, *, provenance: dict[str, Any], watcher: Watcher) -> Path:
    """Train a model, or go on where an earlier call was stopped.

    Args:
      recipe: what to do.
      folder: where checkpoint, log and weights go; `<name>.safetensors` and `<name>.jsonl`.
      provenance: versions and commit, for the first line of the log.
      watcher: is told of progress.
    Returns:
      The weights file.
    Raises:
      RecipeError: the recipe asks for what this version does not do, architecture or start are unknown, or the
        folder cannot be written, or holds another recipe's checkpoint.
    """
    _refuse_what_is_not_followed(recipe)
    weights = folder / f"{recipe.name}.safetensors"
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        found = f"not writable ({error.strerror or type(error).__name__})"
        raise RecipeError(complaint(str(folder), "folder", found, "a folder that can be made")) from error
    with torch.random.fork_rng(devices=[]):
        training = _Training(recipe, folder, provenance)
        if training.finished_epochs == recipe.schedule.epochs and weights.exists():
            return weights
        images, labels = (torch.from_numpy(array) for array in mini.training_set(recipe.data.examples, recipe.seed))
        watcher.begin(recipe, steps=training.steps_per_epoch, finished_epochs=training.finished_epochs)
        for epoch in range(training.finished_epochs, recipe.schedule.epochs):
            watcher.epoch(training.run_epoch(epoch, images, labels, watcher.step))
    temporary = weights.with_suffix(".tmp")
    save_file({name: tensor.contiguous() for name, tensor in training.model.state_dict().items()}, temporary)
    temporary.replace(weights)
    return weights


class _Training:
    """Model, optimizer and schedule on their way through the epochs; see `train`."""

    def __init__(self, recipe: Recipe, folder: Path, provenance: dict[str, Any]) -> None:
        self.recipe = recipe
        self.checkpoint = folder / f"{recipe.name}.checkpoint"
        self.log = folder / f"{recipe.name}.jsonl"
        self.model = build_model(recipe)
        self.optimizer = build_optimizer(recipe, self.model)
        self.steps_per_epoch = recipe.data.examples // recipe.batch_size
        if self.steps_per_epoch == 0:
            expected = f"at most `data.examples`, {recipe.data.examples}"
            raise RecipeError(complaint(recipe.name, "batch_size", recipe.batch_size, expected))
        self.learning_rate = LearningRate(recipe.schedule, self.optimizer, updates=self.steps_per_epoch)
        arrays = mini.validation_set(recipe.data.validation)
        self.validation = torch.from_numpy(arrays[0]).float() / 255, torch.from_numpy(arrays[1])
        self.finished_epochs = 0
        if self.checkpoint.exists():
            self._restore()
        else:
            header = {"recipe": recipe.model_dump(mode="json", by_alias=True), "recipe_sha256": recipe.digest}
            self.log.write_text(json.dumps(header | provenance) + "\n")

    def run_epoch(
        self, epoch: int, images: Tensor, labels: Tensor, on_step: Callable[[int, int, float], None]
    ) -> dict[str, Any]:
        """Learn every image once, then log and save."""
        began = time.monotonic()
        generator = torch.Generator().manual_seed(1_000_003 * self.recipe.seed + epoch)
        order = torch.randperm(len(images), generator=generator)
        self.model.train()
        total = 0.0
        for step in range(self.steps_per_epoch):
            rows = order[step * self.recipe.batch_size : (step + 1) * self.recipe.batch_size]
            update = epoch * self.steps_per_epoch + step
            self.learning_rate.set(update)
            loss = self._learn(images[rows].float() / 255, labels[rows], update, generator)
            total += loss
            on_step(epoch, step, loss)
        line = {
            "epoch": epoch,
            "loss": round(total / self.steps_per_epoch, 4),
            "lr": self.optimizer.param_groups[0]["lr"],
            **self._watch(),
            "seconds": round(time.monotonic() - began, 1),
        }
        self._save(epoch + 1, line)
        return line

    def _learn(self, images: Tensor, labels: Tensor, update: int, generator: torch.Generator) -> float:
        """One step of the optimizer; returns the loss."""
        if self.recipe.data.flip:
            mirrored = torch.rand(len(images), 1, 1, 1, generator=generator) < 0.5
            images = torch.where(mirrored, images.flip(3), images)
        adversary = self.recipe.adversary
        if adversary is not None:
            warmup = adversary.warmup_epochs * self.steps_per_epoch
            strength = min(1.0, update / warmup) if warmup else 1.0
            images = adversarial_images(self.model, images, labels, adversary, generator=generator, strength=strength)
        loss = F.cross_entropy(self.model(images), labels, label_smoothing=self.recipe.label_smoothing)
        if not bool(loss.isfinite()):
            advice = "Lower `optimizer.lr` or lengthen the warm-up."
            raise RecipeError(complaint(self.recipe.name, "loss", float(loss.detach()), "a finite loss", advice))
        self.optimizer.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]  # torch leaves Tensor.backward untyped
        self.optimizer.step()
        return float(loss.detach())

    def _watch(self) -> dict[str, float]:
        """Accuracy on validation images, clean and, for adversarial recipes, attacked."""
        images, labels = self.validation
        self.model.eval()
        measured = {"clean": _accuracy(self.model, images, labels)}
        if self.recipe.adversary is not None:
            images, labels = images[:PROBE_EXAMPLES], labels[:PROBE_EXAMPLES]
            attack = probe(self.recipe.adversary, PROBE_STEPS)
            attacked = [
                adversarial_images(self.model, part, targets, attack, generator=torch.Generator().manual_seed(0))
                for part, targets in zip(torch.split(images, 64), torch.split(labels, 64), strict=True)
            ]
            measured[f"pgd@{PROBE_STEPS}"] = _accuracy(self.model, torch.cat(attacked), labels)
        return measured

    def _save(self, finished_epochs: int, line: dict[str, Any]) -> None:
        temporary = self.checkpoint.with_suffix(".tmp")
        content: dict[str, Any] = {
            "recipe": self.recipe.digest,
            "finished_epochs": finished_epochs,
            "model": self.model.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "log": self.log.read_text() + json.dumps(line) + "\n",
        }
        with temporary.open("wb") as file:
            torch.save(content, file)
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(self.checkpoint)
        self.log.write_text(content["log"])

    def _restore(self) -> None:
        advice = "Choose another `--out`, or delete the checkpoint to start over."
        try:
            content = torch.load(self.checkpoint, weights_only=True)
            found = content["recipe"]
        except Exception as error:  # a broken file makes torch raise RuntimeError, EOFError, KeyError and others
            reason = f"unreadable ({type(error).__name__})"
            raise RecipeError(complaint(str(self.checkpoint), "file", reason, "a checkpoint", advice)) from error
        if found != self.recipe.digest:
            expected = f"{self.recipe.digest} (this recipe)"
            raise RecipeError(complaint(str(self.checkpoint), "recipe", found, expected, advice))
        self.model.load_state_dict(content["model"])
        self.optimizer.load_state_dict(content["optimizer"])
        self.finished_epochs = content["finished_epochs"]
        self.log.write_text(content["log"])


def _refuse_what_is_not_followed(recipe: Recipe) -> None:
    if recipe.data.source != "mini":
        advice = "This version trains on the mini suite alone; recipes for photographs can be read and built."
        raise RecipeError(complaint(recipe.name, "data.source", f"`{recipe.data.source}`", "`mini`", advice))
    for key in NOT_FOLLOWED:
        value = getattr(recipe, key)
        if value != Recipe.model_fields[key].default:
            found = "a table" if isinstance(value, BaseModel) else value
            advice = "This version does not follow it."
            raise RecipeError(complaint(recipe.name, key, found, "a recipe without it", advice))


def _accuracy(model: nn.Module, images: Tensor, labels: Tensor) -> float:
    with torch.no_grad():
        right = [
            (model(part).argmax(dim=1) == targets)
            for part, targets in zip(torch.split(images, 256), torch.split(labels, 256), strict=True)
        ]
    return round(float(torch.cat(right).float().mean()), 4)
