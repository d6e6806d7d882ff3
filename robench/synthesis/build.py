"""Builds a texture dictionary, class by class; a build that was killed goes on with the class it was at.

What a folder holds: `parts/`, a file for each finished class; and at the end `textures.safetensors` and
`manifest.json` (the dictionary), `log.jsonl` and `contact-sheet.png`.

Not here: what a recipe says (`recipe`), and progress bars (`cli`).
"""

import hashlib
import json
import time
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

from robench.arrays import state_digest
from robench.data import ArraySource, Source, Unreadable, mini, open_source
from robench.data.source import check_image, ids_digest
from robench.data.textures import TextureDictionary, write_textures
from robench.data.writing import written_whole
from robench.errors import DataError, ModelError, RecipeError, complaint, first_few
from robench.randomness import Draws
from robench.synthesis.attention import attention
from robench.synthesis.clusters import cluster
from robench.synthesis.layers import check_layers
from robench.synthesis.painting import misfit, paint
from robench.synthesis.recipe import TextureRecipe
from robench.synthesis.sheet import contact_sheet
from robench.synthesis.style import StyleExtractor

BATCH = 32
"""Images whose styles are taken at a time."""


class Watcher(Protocol):
    """Who is told how a build goes."""

    def begin(self, recipe: TextureRecipe, classes: Sequence[int], finished: int) -> None:
        """A build starts, or goes on when so many classes are finished."""
        ...

    def reading(self, label: int) -> None:
        """The images of a class are looked at."""
        ...

    def step(self, label: int, step: int, distance: float) -> None:
        """The textures of a class took a step; their mean distance from the styles they are to have."""
        ...

    def made(self, line: dict[str, Any]) -> None:
        """A class is finished; this is its line in the log."""
        ...


def open_images(recipe: TextureRecipe, data: Path | None, *, workers: int | None = None) -> Source:
    """The images that a recipe asks for.

    Args:
      recipe: says which, and how they are cropped.
      data: a folder with one sub-folder for each class, in place of the recipe's own.
      workers: processes that decode files; see `robench.data.open_source`.
    Raises:
      DataError: there are none, or the recipe needs a folder.
    """
    spec = recipe.data
    if data is not None:
        return open_source(spec.source, data, resize=spec.resize, crop=spec.crop, limit=1, workers=workers)
    if spec.source == "mini":
        images, labels = mini.training_set(spec.images * mini.CLASSES, recipe.seed)
        ids = [f"mini-train-{index:06d}" for index in range(len(labels))]
        return ArraySource(images, labels, classes=mini.CLASSES, ids=ids, name="mini")
    advice = "Give the folder of the training images with `--data`; one sub-folder for each class."
    raise DataError(complaint("robench textures build", "data", "none", f"images of `{spec.source}`", advice))


def build(
    recipe: TextureRecipe,
    source: Source,
    model: nn.Module,
    folder: Path,
    *,
    classes: Sequence[int] | None = None,
    provenance: dict[str, Any],
    watcher: Watcher,
) -> TextureDictionary:
    """Build a dictionary, or go on where an earlier call was stopped.

    For each class: the styles of the images that the model gets right, taken where it looks; k-means; and a
    texture painted for each centre. On one machine with one number of threads the dictionary has the same bytes
    however often it was stopped. 8 bits a value are kept.

    Args:
      recipe: what to do.
      source: the images; see `open_images`.
      model: in eval mode, normalisation inside, with a logit for each class; where it lies, textures are painted.
      folder: where everything goes.
      classes: class numbers; None: all that have images.
      provenance: model's name, versions and so on, for the first line of the log.
      watcher: is told of progress.
    Returns:
      The dictionary, as `robench.data.textures.read_textures` reads it.
    Raises:
      RecipeError: the recipe asks for more textures than images, or the folder cannot be written, or holds what
        another recipe, model or data made.
      ModelError: the model lacks a layer.
      DataError: a class has too few images, or too few that the model gets right.
    """
    wanted = _check_classes(recipe, source, classes)
    parts = _Parts(folder / "parts", _key(recipe, source, model))
    parts.prepare()
    _check_model(recipe, model)
    extractor = _extractor(recipe, model)
    watcher.begin(recipe, wanted, sum(parts.has(label) for label in wanted))
    for label in wanted:
        if not parts.has(label):
            made = _make(_Class(recipe, source, label), model, extractor, watcher)
            parts.write(label, *made)
            watcher.made(made[1])
    textures, lines = zip(*(parts.read(label) for label in wanted), strict=True)
    header = {"recipe": recipe.model_dump(mode="json", by_alias=True), "recipe_sha256": recipe.digest, **provenance}
    about = f"Synthesised from images of {source.name} by the recipe {recipe.name}, {recipe.digest}."
    dictionary = TextureDictionary(tuple(wanted), torch.stack(textures).float() / 255, about, str(folder))
    with _writing(folder):
        write_textures(dictionary, folder)
        with written_whole(folder / "log.jsonl") as path:
            path.write_text("".join(json.dumps(line) + "\n" for line in (header, *lines)), encoding="utf-8")
        with written_whole(folder / "contact-sheet.png") as path:
            contact_sheet(dictionary).save(path, format="PNG")
    return dictionary


def _check_classes(recipe: TextureRecipe, source: Source, classes: Sequence[int] | None) -> list[int]:
    """The classes to build, rising; each has as many images as it is to have textures."""
    least, surest = recipe.synthesis.textures, recipe.data.surest
    if surest is not None and surest < least:
        expected = f"at least {least}, the textures of a class"
        raise RecipeError(complaint(f"{recipe.name}.toml", "data.surest", surest, expected))
    wanted = sorted(set(source.labels if classes is None else classes))
    counts = {label: list(source.labels).count(label) for label in wanted}
    few = [f"{label} ({count})" for label, count in counts.items() if count < least]
    if few or not wanted:
        expected = f"at least {least} images of each, one for each texture"
        raise DataError(complaint(source.name, "classes", first_few(few) or "none", expected))
    return wanted


def _check_model(recipe: TextureRecipe, model: nn.Module) -> None:
    """The model has the layers, and they can be looked at."""
    check_layers(model, (recipe.attention.layer, *recipe.style.layers), where=recipe.model)
    for side in {recipe.data.crop, recipe.synthesis.size}:
        blank = torch.zeros(2, 3, side, side, device=_device(model))
        try:
            attention(model, recipe.attention.layer, blank)
            _extractor(recipe, model).styles(blank)
        except (RuntimeError, AssertionError) as error:  # what networks raise about sizes they cannot take
            summary = " ".join(str(error).split())[:200]
            found = f"failing on images of {side} x {side} ({summary})"
            advice = "Change `data.crop` or `synthesis.size`, or the layers."
            raise ModelError(complaint(recipe.model, "model", found, "features of them", advice)) from error


def _extractor(recipe: TextureRecipe, model: nn.Module) -> StyleExtractor:
    spec = recipe.style
    return StyleExtractor(model, spec.layers, average_pooling=spec.average_pooling, pixels=spec.pixels)


def _key(recipe: TextureRecipe, source: Source, model: nn.Module) -> str:
    """SHA-256 of what changes a texture."""
    content = {
        "recipe": recipe.digest,
        "model": state_digest(model.state_dict()),
        "ids": ids_digest(source.ids),
        "labels": ids_digest(str(label) for label in source.labels),
        "content": getattr(source, "content_sha256", None),
    }
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()


def _device(model: nn.Module) -> torch.device:
    return next((tensor.device for tensor in model.parameters()), torch.device("cpu"))


@dataclass(frozen=True)
class _Class:
    """What a class is made of."""

    recipe: TextureRecipe
    source: Source
    label: int

    def images(self) -> Iterator[Tensor]:
        """Its readable images, in the order of the source."""
        labels = enumerate(self.source.labels)
        positions = [position for position, label in labels if label == self.label][: self.recipe.data.images]
        for position, image in zip(positions, self.source.images(positions), strict=True):
            if not isinstance(image, Unreadable):
                check_image(image, self.source.ids[position])
                yield image

    def draws(self, what: str, count: int) -> Draws:
        """Random numbers, a key for each of so many."""
        return Draws.of(self.recipe.seed, [f"{what}/{self.label}/{number}" for number in range(count)])


def _make(job: _Class, model: nn.Module, extractor: StyleExtractor, watcher: Watcher) -> tuple[Tensor, dict[str, Any]]:
    """The textures of a class, uint8, shape (textures, 3, size, size), and its line in the log."""
    began, recipe = time.monotonic(), job.recipe.synthesis
    watcher.reading(job.label)
    seen, margins, styles = _styles(job, model, extractor)
    if len(margins) < recipe.textures:
        found = f"{job.label}, with {len(margins)} of {seen} images that {job.recipe.model} gets right"
        expected = f"at least {recipe.textures} of them, one for each texture"
        raise DataError(complaint(job.source.name, "class", found, expected))
    surest = margins.argsort(descending=True, stable=True)[: job.recipe.data.surest]
    centres, sizes = cluster(styles[surest], recipe.textures, job.draws("clusters", 1))
    distances: list[float] = []

    def on_step(step: int, distance: float) -> None:
        distances.append(distance)
        watcher.step(job.label, step, distance)

    painted = paint(extractor, centres, recipe, job.draws("textures", recipe.textures), on_step=on_step)
    textures = (painted * 255).round().to(torch.uint8)
    with torch.no_grad():
        kept = misfit(extractor.styles(textures.float() / 255), centres)
    line = {
        "class": job.label,
        "images": seen,
        "right": len(margins),
        "sizes": sizes.tolist(),
        "distance_at_start": round(distances[0], 4),
        "distance": [round(float(each), 4) for each in kept],
        "seconds": round(time.monotonic() - began, 1),
    }
    return textures.cpu(), line


def _styles(job: _Class, model: nn.Module, extractor: StyleExtractor) -> tuple[int, Tensor, Tensor]:
    """How many images there are; and of those that the model gets right, margins, shape (N,), and styles, (N, D)."""
    spec = job.recipe
    seen = 0
    styles: list[Tensor] = []
    margins: list[Tensor] = []
    for images in _batches(job.images()):
        seen += len(images)
        images = images.to(_device(model))
        maps, logits = attention(model, spec.attention.layer, images)
        kept = (logits.argmax(dim=1) == job.label) & (maps.amax(dim=(1, 2)) > 0)
        if bool(kept.any()):
            with torch.no_grad():
                styles.append(extractor.styles(images[kept], maps[kept], spec.attention.threshold))
            first, second = logits[kept].topk(2, dim=1).values.unbind(dim=1)
            margins.append(first - second)
    if not styles:
        return seen, torch.zeros(0), torch.zeros(0, 0)
    return seen, torch.cat(margins), torch.cat(styles)


def _batches(images: Iterable[Tensor]) -> Iterator[Tensor]:
    waiting: list[Tensor] = []
    for image in images:
        waiting.append(image)
        if len(waiting) == BATCH:
            yield torch.stack(waiting)
            waiting = []
    if waiting:
        yield torch.stack(waiting)


class _Parts:
    """The finished classes of a build, a file each; a file of another build is refused."""

    def __init__(self, folder: Path, key: str) -> None:
        self._folder, self._key = folder, key

    def prepare(self) -> None:
        """Make the folder, and look that what lies in it was made by this build.

        Raises:
          RecipeError: it was not, or the folder cannot be made.
        """
        home = self._folder.parent
        with _writing(home):
            self._folder.mkdir(parents=True, exist_ok=True)
        found = sorted(self._folder.glob("*.safetensors"))
        foreign = next((path for path in found if self._metadata(path)["build"] != self._key), None)
        if foreign is None and (found or not (home / "manifest.json").exists()):
            return
        expected = "a new folder, or one of this recipe, model and data"
        advice = "Choose another folder, or empty this one to start over."
        raise RecipeError(complaint(str(home), "folder", "that of another dictionary", expected, advice))

    def has(self, label: int) -> bool:
        """Whether a class is finished."""
        return self._path(label).exists()

    def write(self, label: int, textures: Tensor, line: dict[str, Any]) -> None:
        """Keep a finished class, whole or not at all."""
        metadata = {"build": self._key, "line": json.dumps(line)}
        with _writing(self._folder.parent), written_whole(self._path(label)) as path:
            save_file({"textures": textures.contiguous()}, path, metadata)

    def read(self, label: int) -> tuple[Tensor, dict[str, Any]]:
        """The textures of a finished class, and its line in the log."""
        path = self._path(label)
        with safe_open(path, "pt") as file:
            return file.get_tensor("textures"), json.loads(self._metadata(path)["line"])

    def _path(self, label: int) -> Path:
        return self._folder / f"{label:06d}.safetensors"

    def _metadata(self, path: Path) -> dict[str, str]:
        try:
            with safe_open(path, "pt") as file:
                metadata: dict[str, str] = file.metadata()
                return {name: metadata[name] for name in ("build", "line")}
        except (OSError, SafetensorError, KeyError, TypeError) as error:
            found = f"unreadable ({type(error).__name__})"
            advice = "Delete it: its class is made again."
            raise RecipeError(complaint(str(path), "file", found, "a finished class", advice)) from error


@contextmanager
def _writing(folder: Path) -> Iterator[None]:
    """Turn a failed write into an error that says how to go on."""
    try:
        yield
    except (OSError, SafetensorError) as error:
        found = f"not writable ({getattr(error, 'strerror', None) or error})"
        advice = "What is finished is kept: the same command goes on."
        raise RecipeError(complaint(str(folder), "folder", found, "room to write", advice)) from error
