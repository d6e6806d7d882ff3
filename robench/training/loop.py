"""Follows a recipe: epochs, checkpoints, a log, and the weights at the end.

A training may be killed at any moment and started again: it goes on after the last checkpoint, in the middle of an
epoch too, and on one process ends in the same weights on the same machine with the same number of threads. Under
`torchrun` or `accelerate launch` every process takes its share of each batch.

Passes over an image for one step of the optimizer: one forward and one backward; against an adversary of k steps k more
of each; with a teacher one forward of the teacher.

Not here: what a recipe says (`recipe`), where images come from (`batches`, `photographs`), and progress bars (`cli`).
"""

import json
import random
import time
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
import torch.nn.functional as F
from accelerate import Accelerator
from accelerate.state import AcceleratorState
from accelerate.utils import broadcast
from timm.data import Mixup
from timm.utils import ModelEmaV3
from torch import Tensor, nn

from robench.errors import DataError, RecipeError, complaint
from robench.training import checkpoint
from robench.training.adversary import adversarial_images, strength_at
from robench.training.batches import Batches, MiniBatches, Part, Share, seed_all
from robench.training.construction import build_model, build_optimizer
from robench.training.distillation import distilled, load_teacher
from robench.training.export import export_path, export_weights
from robench.training.photographs import Photographs
from robench.training.recipe import Recipe
from robench.training.record import Record
from robench.training.schedules import LearningRate, mixup_of
from robench.training.watching import (
    PROBE_EXAMPLES,
    PROBE_STEPS,
    attacked_accuracy,
    catastrophic_overfitting,
    count_right,
)

_PRECISIONS = {"float32": "no", "float16": "fp16", "bfloat16": "bf16"}
"""What Accelerate calls them."""


class Watcher(Protocol):
    """Who is told how a training goes; of several processes the first one tells."""

    def begin(self, recipe: Recipe, *, steps: int, finished_epochs: int) -> None:
        """Training starts, or goes on after so many epochs; `steps` is the length of an epoch."""
        ...

    def notice(self, text: str) -> None:
        """Something that a user should know."""
        ...

    def step(self, epoch: int, step: int, loss: float) -> None:
        """A batch was learnt."""
        ...

    def epoch(self, line: dict[str, Any]) -> None:
        """An epoch ended; this is its line in the log."""
        ...


@dataclass(frozen=True)
class Options:
    """Where and how a recipe is followed. Of this only the teacher, and `cpu` under float16, move weights.

    Attributes:
      data: folder with ImageNet's `train` and `val`, for recipes for photographs.
      teacher: folder or weights of the teacher; None: where the training of its recipe left it, beside this one's.
      workers: processes that decode; None: up to four.
      cpu: whether to leave a GPU alone.
      minutes: between checkpoints in the middle of an epoch.
      tensorboard: whether to write what TensorBoard reads, too.
    """

    data: Path | None = None
    teacher: Path | None = None
    workers: int | None = None
    cpu: bool = False
    minutes: float = 10.0
    tensorboard: bool = False


def train(
    recipe: Recipe, folder: Path, *, provenance: dict[str, Any], watcher: Watcher, options: Options | None = None
) -> Path:
    """Train a model, or go on where an earlier call was stopped.

    Args:
      recipe: what to do.
      folder: where checkpoint, log, curves and weights go.
      provenance: versions and commit, for the first line of the log.
      watcher: is told of progress.
      options: where the data lies, and the like.
    Returns:
      The weights: of a mini model `<name>.safetensors`, else a folder `<name>` as timm and the Hub lay it out.
    Raises:
      RecipeError: the recipe cannot be followed, the loss is not finite, or the folder cannot be written or holds
        another recipe's checkpoint.
      DataError: images are missing or unreadable.
      ModelError: the teacher's weights do not fit.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        found = f"not writable ({error.strerror or type(error).__name__})"
        raise RecipeError(complaint(str(folder), "folder", found, "a folder that can be made")) from error
    with random_state_kept():
        training = Training(recipe, folder, provenance, options or Options())
        if not training.accelerator.is_main_process:
            watcher = Silent()
        weights = export_path(recipe, folder)
        if training.finished_epochs == recipe.schedule.epochs and weights.exists():
            return weights
        for notice in training.notices:
            watcher.notice(notice)
        training.run(watcher)
        if training.accelerator.is_main_process:
            export_weights(recipe, training.shown_model, weights)
        training.accelerator.wait_for_everyone()
    return weights


class Training:
    """Model, optimizer, schedule and average on their way through the epochs; see `train`."""

    def __init__(self, recipe: Recipe, folder: Path, provenance: dict[str, Any], options: Options) -> None:
        self.recipe, self.options = recipe, options
        self.notices: list[str] = []
        self.steps_per_epoch = recipe.data.examples // recipe.batch_size
        if self.steps_per_epoch == 0:
            expected = f"at most `data.examples`, {recipe.data.examples}"
            raise RecipeError(complaint(recipe.name, "batch_size", recipe.batch_size, expected))
        self.accelerator = self._accelerator()
        processes, device = self.accelerator.num_processes, self.accelerator.device
        part_size = recipe.part_size(processes=processes)
        self.share = Share(self.accelerator.process_index, processes, part_size, device)

        self.model = build_model(recipe).to(device)
        self.optimizer = build_optimizer(recipe, self.model)
        self.learning_rate = LearningRate(recipe.schedule, self.optimizer, updates=self.steps_per_epoch)
        self.average: ModelEmaV3 | None = None
        if recipe.ema is not None:
            copied = recipe.ema.buffers == "copied"
            self.average = ModelEmaV3(self.model, decay=recipe.ema.decay, exclude_buffers=copied)
        self.mixup: Mixup | None = None
        """Of the epoch."""
        self.teacher: nn.Module | None = None
        running: dict[str, Any] = {"processes": processes, "device": device.type}
        running["precision"] = self.accelerator.mixed_precision
        if recipe.distillation is not None:
            teacher, running["teacher_sha256"] = load_teacher(recipe, options.teacher, folder)
            self.teacher = teacher.to(device)

        self.finished_epochs, self.finished_steps = 0, 0
        self.loss_sum, self.seconds = 0.0, 0.0
        header = {"recipe": recipe.model_dump(mode="json", by_alias=True), "recipe_sha256": recipe.digest}
        self.record = Record(folder, recipe.name, header | running | provenance, tensorboard=options.tensorboard)
        self.checkpoint = folder / f"{recipe.name}.checkpoint"
        self.draws: Tensor | None = None
        saved = checkpoint.read(self.checkpoint, recipe.digest) if self.checkpoint.exists() else None
        # The bare model is attacked, watched and saved; what Accelerate wraps has parallel passes and mixed precision.
        self.passes, self.stepper = self.accelerator.prepare(_Passes(self.model), self.optimizer)
        if saved is not None:
            self._restore(saved, running)

    @property
    def shown_model(self) -> nn.Module:
        """The model that is watched, and exported at the end."""
        if self.average is not None and self.recipe.ema is not None and self.recipe.ema.exported:
            averaged: nn.Module = self.average.module
            return averaged
        return self.model

    def run(self, watcher: Watcher) -> None:
        """Learn for as many epochs as are left."""
        epochs = self.recipe.schedule.epochs
        batches = self._batches()
        watcher.begin(self.recipe, steps=self.steps_per_epoch, finished_epochs=self.finished_epochs)
        if self.finished_steps:
            watcher.notice(f"Going on after step {self.finished_steps} of epoch {self.finished_epochs + 1}.")
        if self.finished_epochs == epochs:
            return
        batches.state = self.draws
        if self.accelerator.is_main_process:
            self.record.write()
        for epoch in range(self.finished_epochs, epochs):
            line = self.run_epoch(epoch, batches, watcher)
            watcher.epoch(line)
            if line.get("catastrophic_overfitting"):
                watcher.notice(
                    f"Catastrophic overfitting in epoch {epoch + 1}: PGD breaks what one step does not. "
                    "More steps in `adversary.steps`, or a smaller `adversary.step_size`, prevent it."
                )

    def run_epoch(self, epoch: int, batches: Batches, watcher: Watcher) -> dict[str, Any]:
        """Learn every image once, then watch, log and save."""
        began = saved = time.monotonic()
        self.mixup = mixup_of(self.recipe, epoch, classes=batches.classes)
        parts = batches.parts(epoch, self.finished_steps, self.share)
        self.model.train()
        for step in range(self.finished_steps, self.steps_per_epoch):
            loss = self.learn(epoch, step, parts)
            self.loss_sum += loss
            self.finished_steps = step + 1
            watcher.step(epoch, step, loss)
            now = time.monotonic()
            if now - saved >= 60 * self.options.minutes and step + 1 < self.steps_per_epoch:
                self.seconds, began = self.seconds + now - began, now
                self._save(batches.state)
                saved = time.monotonic()
        line: dict[str, Any] = {
            "epoch": epoch,
            "loss": round(self.loss_sum / self.steps_per_epoch, 4),
            "lr": self.optimizer.param_groups[0]["lr"],
            **self._watch(batches),
            "seconds": round(self.seconds + time.monotonic() - began, 1),
        }
        adversary, lines = self.recipe.adversary, [*self.record.lines, line]
        if adversary is not None and catastrophic_overfitting(lines, clean_epochs=adversary.clean_epochs):
            line["catastrophic_overfitting"] = True
        self.record.lines.append(line)
        self.finished_epochs, self.finished_steps = epoch + 1, 0
        self.loss_sum, self.seconds = 0.0, 0.0
        self._save(None)
        return line

    def learn(self, epoch: int, step: int, parts: Iterator[Part]) -> float:
        """One step of the optimizer; returns the loss."""
        recipe, update = self.recipe, epoch * self.steps_per_epoch + step
        self.learning_rate.set(update)
        self.stepper.zero_grad()
        total = torch.zeros((), device=self.share.device)
        for number in range(recipe.accumulation):
            part = next(parts)
            seed_all(recipe.seed, epoch, step, number, self.share.rank)
            images, labels = part.images, part.labels
            if self.mixup is not None:
                images, labels = self.mixup(images, labels)
            if recipe.adversary is not None:
                images = adversarial_images(
                    self.model,
                    images,
                    labels,
                    recipe.adversary,
                    starts=part.starts,
                    strength=strength_at(recipe.adversary, update, self.steps_per_epoch),
                )
            last = number + 1 == recipe.accumulation
            with nullcontext() if last else self.accelerator.no_sync(self.passes):
                loss = self._loss(images, labels) / recipe.accumulation
                self.accelerator.backward(loss)
            total += loss.detach()
        mean = float(self.accelerator.reduce(total, "mean"))
        if not np.isfinite(mean):
            raise self._not_finite("loss", mean, epoch, step)
        self.stepper.step()
        if self.average is not None:
            self.average.update(self.model)
        return mean

    def _loss(self, images: Tensor, labels: Tensor) -> Tensor:
        """Mean over the images; mixed labels are smoothed already."""
        recipe = self.recipe
        logits = self.passes(images)
        loss = F.cross_entropy(logits, labels, label_smoothing=recipe.label_smoothing if labels.ndim == 1 else 0.0)
        if self.teacher is not None and recipe.distillation is not None:
            loss = distilled(loss, logits, self.teacher, images, recipe.distillation)
        return loss

    def _watch(self, batches: Batches) -> dict[str, float]:
        """Accuracy on validation images, clean and, for adversarial recipes, attacked."""
        model = self.shown_model.eval()
        broadcast(list(model.buffers()))  # batch-norm of each process has its own; those of the first are exported
        counts = torch.tensor(count_right(model, batches.validation(self.share)), device=self.share.device)
        right, total = self.accelerator.reduce(counts, "sum").tolist()
        measured = {"clean": round(right / total, 4)}
        if self.recipe.adversary is not None:
            images, labels = batches.probe(PROBE_EXAMPLES, self.share)
            for name, steps in ((f"pgd@{PROBE_STEPS}", PROBE_STEPS), ("single-step", 1)):
                measured[name] = attacked_accuracy(model, images, labels, self.recipe.adversary, steps=steps)
        return measured

    def _save(self, draws: Tensor | None) -> None:
        """Write a checkpoint, by the first process; the others have nothing of their own."""
        if not self.accelerator.is_main_process:
            return
        if not all(bool(parameter.isfinite().all()) for parameter in self.model.parameters()):
            raise self._not_finite("weights", "not finite", self.finished_epochs, self.finished_steps)
        scaler = self.accelerator.scaler
        content: dict[str, Any] = {
            "recipe": self.recipe.digest,
            "finished_epochs": self.finished_epochs,
            "finished_steps": self.finished_steps,
            "loss_sum": self.loss_sum,
            "seconds": self.seconds,
            "draws": draws,
            "model": self.model.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "average": self.average.module.state_dict() if self.average is not None else None,
            "scaler": scaler.state_dict() if scaler is not None else None,
            "log": self.record.text,
        }
        checkpoint.save(self.checkpoint, content)
        self.record.write(last=self.finished_epochs == self.recipe.schedule.epochs)

    def _restore(self, content: dict[str, Any], running: dict[str, Any]) -> None:
        self._check_teacher(json.loads(content["log"].partition("\n")[0]), running)
        self.model.load_state_dict(content["model"])
        self.optimizer.load_state_dict(content["optimizer"])
        if self.average is not None:
            self.average.module.load_state_dict(content["average"])
        if self.accelerator.scaler is not None and content["scaler"] is not None:
            self.accelerator.scaler.load_state_dict(content["scaler"])
        self.finished_epochs, self.finished_steps = content["finished_epochs"], content["finished_steps"]
        self.loss_sum, self.seconds, self.draws = content["loss_sum"], content["seconds"], content["draws"]
        self.record.restore(content["log"])
        header = self.record.header
        before = header.get("continued", [header])[-1]
        if changed := [f"{key} {before.get(key)} -> {now}" for key, now in running.items() if before.get(key) != now]:
            header.setdefault("continued", []).append({"epoch": self.finished_epochs, **running})
            self.notices.append(f"Goes on in another way than before ({', '.join(changed)}); the log says so.")

    def _check_teacher(self, header: dict[str, Any], running: dict[str, Any]) -> None:
        """What was begun with one teacher does not go on with another."""
        found, expected = header.get("teacher_sha256"), running.get("teacher_sha256")
        if found is not None and found != expected:
            advice = "Go on with the same weights, or train under another `--out`."
            raise RecipeError(complaint(str(self.checkpoint), "teacher", found, f"{expected} (this teacher)", advice))

    def _accelerator(self) -> Accelerator:
        AcceleratorState._reset_state()  # else the precision of an earlier training in this process stays
        cpu = self.options.cpu or not torch.cuda.is_available()
        precision = self.recipe.precision
        if cpu and precision == "float16":
            self.notices.append("Passes are in float32: `precision` is float16, which takes a GPU.")
            precision = "float32"
        return Accelerator(cpu=cpu, mixed_precision=_PRECISIONS[precision])

    def _batches(self) -> Batches:
        recipe = self.recipe
        if recipe.data.source == "mini":
            if self.options.data is not None:
                found, expected = f"`{self.options.data}`", "none, as this recipe paints its images"
                raise DataError(complaint(recipe.name, "data", found, expected, "Leave `--data` out."))
            return MiniBatches(recipe)
        if self.options.data is None:
            advice = "Name the folder that contains `train` and `val`: `--data PATH`."
            raise DataError(complaint(recipe.name, "data", "missing", "ImageNet's folder", advice))
        classes = self.model.network.num_classes
        assert isinstance(classes, int), "as timm's networks have it"
        return Photographs(recipe, self.options.data, classes=classes, workers=self.options.workers)

    def _not_finite(self, what: str, found: object, epoch: int, step: int) -> RecipeError:
        where = f"{self.recipe.name}, epoch {epoch + 1}, step {step + 1} of {self.steps_per_epoch}"
        advice = "Lower `optimizer.lr` or lengthen the warm-up; the last checkpoint is kept."
        return RecipeError(complaint(where, what, found, "a finite loss", advice))


class _Passes(nn.Module):
    """What Accelerate may wrap and change, around the model that stays as it is."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, images: Tensor) -> Tensor:
        logits: Tensor = self.model(images)
        return logits


class Silent:
    """Tells nobody; the log does."""

    def begin(self, recipe: Recipe, *, steps: int, finished_epochs: int) -> None:
        pass

    def notice(self, text: str) -> None:
        pass

    def step(self, epoch: int, step: int, loss: float) -> None:
        pass

    def epoch(self, line: dict[str, Any]) -> None:
        pass


@contextmanager
def random_state_kept() -> Iterator[None]:
    """Give the caller's generators back as they were."""
    ours, numpy = random.getstate(), np.random.get_state()
    devices = [torch.cuda.current_device()] if torch.cuda.is_available() else []
    try:
        with torch.random.fork_rng(devices=devices):
            yield
    finally:
        random.setstate(ours)
        np.random.set_state(numpy)
