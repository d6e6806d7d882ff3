"""ImageNet's photographs for training: found by class folder, augmented by timm in worker processes.

Every view of an image is drawn from the seed, the epoch and its position in the epoch, whichever process makes it.

Not here: which images protocols show (`robench.data.imagenet`), and how a batch is mixed (`loop`).
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from timm.data import create_transform
from torch import Tensor
from torch.utils.data import Dataset
from torchvision import transforms

from robench.data.decoding import default_workers, in_workers
from robench.data.imagenet.listing import id_of, validation
from robench.data.images import read_rgb
from robench.data.source import Unreadable, by_hash
from robench.data.trees import contents_of
from robench.errors import DataError, complaint, first_few
from robench.training.adversary import ExampleDraws
from robench.training.batches import WATCHED_AT_ONCE, Part, Share, seed_all
from robench.training.recipe import Recipe
from robench.training.schedules import randaugment_policy

PLACES = ("ILSVRC/Data/CLS-LOC", "Data/CLS-LOC", ".")
"""Where `train` and `val` lie in what people download, relative to the root they name."""
_TOGETHER = 8
"""Images that a worker makes between two messages."""

Files = Sequence[tuple[str, int]]
"""Paths relative to a folder, and labels."""


class Photographs:
    """A training set in class folders, and a validation set beside it.

    Args:
      recipe: what is done to them.
      root: folder with `train/<class>/*` and `val/<class>/*`; `val` may also hold ImageNet's own files side by side.
      classes: that the network tells apart; a label is the rank of the class's name.
      workers: processes that decode; 0: this one; None: up to four.
    Raises:
      DataError: the folders are not there, or hold other numbers of classes or images than the recipe says.
    """

    state: Tensor | None = None
    """Nothing: every view has random numbers of its own."""

    def __init__(self, recipe: Recipe, root: Path, *, classes: int, workers: int | None = None) -> None:
        self._recipe, self.classes = recipe, classes
        self._workers = default_workers() if workers is None else workers
        place = next((root / place for place in PLACES if (root / place / "train").is_dir()), root)
        self._train, self._val = place / "train", place / "val"
        self._files = _class_files(self._train, classes)
        if len(self._files) != recipe.data.examples:
            expected = f"{recipe.data.examples} (`data.examples` of {recipe.name})"
            advice = "Complete the folder, or say in a recipe of your own how many there are."
            raise DataError(complaint(str(self._train), "images", len(self._files), expected, advice))
        self._watched = _watched_files(self._val, classes)[: recipe.data.validation]
        if len(self._watched) < recipe.data.validation:
            expected = f"at least {recipe.data.validation} (`data.validation` of {recipe.name})"
            raise DataError(complaint(str(self._val), "images", len(self._watched), expected))

    def parts(self, epoch: int, first_step: int, share: Share) -> Iterator[Part]:
        recipe = self._recipe
        order = epoch_order(recipe, epoch)
        shares = [
            (step, part + step * recipe.batch_size)
            for step in range(first_step, len(order) // recipe.batch_size)
            for part in share.parts(recipe.batch_size)
        ]
        positions = torch.cat([part for _, part in shares]).tolist() if shares else []
        files = [self._files[row] for row in order[positions].tolist()]
        views = _Views(self._train, files, training_transform(recipe, epoch), (recipe.seed, epoch), positions)
        images = self._images(views)
        for step, part in shares:
            pixels = torch.stack([next(images) for _ in part])
            labels = torch.tensor([self._files[row][1] for row in order[part].tolist()])
            starts = ExampleDraws(recipe.seed, epoch, step, part.tolist(), device=share.device)
            yield Part(_as_floats(pixels, share.device), labels.to(share.device), starts)

    def validation(self, share: Share) -> Iterator[tuple[Tensor, Tensor]]:
        starts = range(0, len(self._watched), WATCHED_AT_ONCE)[share.rank :: share.processes]
        files = [file for start in starts for file in self._watched[start : start + WATCHED_AT_ONCE]]
        return self._pairs(files, share.device)

    def probe(self, count: int, share: Share) -> tuple[Tensor, Tensor]:
        images, labels = zip(*self._pairs(self._watched[:count], share.device), strict=True)
        return torch.cat(images), torch.cat(labels)

    def _pairs(self, files: Files, device: torch.device) -> Iterator[tuple[Tensor, Tensor]]:
        images = self._images(_Views(self._val, files, validation_transform(self._recipe)))
        for start in range(0, len(files), WATCHED_AT_ONCE):
            labels = [label for _, label in files[start : start + WATCHED_AT_ONCE]]
            pixels = torch.stack([next(images) for _ in labels])
            yield _as_floats(pixels, device), torch.tensor(labels, device=device)

    def _images(self, views: "_Views") -> Iterator[Tensor]:
        if self._workers == 0:
            made: Iterator[_Made] = (views[number] for number in range(len(views)))
        else:
            made = in_workers(views, range(len(views)), self._workers, together=_TOGETHER)
        for each in made:
            if isinstance(each, Unreadable):
                raise DataError(each.reason)
            yield torch.from_numpy(each)


_Made = NDArray[Any] | Unreadable


@dataclass(frozen=True)
class _Views(Dataset[_Made]):
    """Images as a network sees them, uint8 or float32, shape (3, H, W).

    Attributes:
      folder, files: where they are.
      transform: from a Pillow image to a tensor.
      keys, positions: what each one's random numbers are drawn from; without keys there are none.
    """

    folder: Path
    files: Files
    transform: Callable[[Image.Image], Tensor]
    keys: tuple[int, ...] = ()
    positions: Sequence[int] = ()

    def __len__(self) -> int:
        return len(self.files)

    def __getitem__(self, number: int) -> _Made:
        file = self.files[number][0]
        if self.keys:
            seed_all(*self.keys, self.positions[number])
        try:
            return np.asarray(self.transform(read_rgb(self.folder / file, file)))
        except DataError as error:
            return Unreadable(str(error))


def epoch_order(recipe: Recipe, epoch: int) -> Tensor:
    """Which image stands at each position of an epoch; the copies of an image follow one another."""
    repeats = recipe.augmentation.repeats if recipe.augmentation is not None else 1
    generator = torch.Generator().manual_seed(1_000_003 * recipe.seed + epoch)
    order = torch.randperm(recipe.data.examples, generator=generator)
    return order.repeat_interleave(repeats)[: recipe.data.examples]


def training_transform(recipe: Recipe, epoch: int) -> Callable[[Image.Image], Tensor]:
    """timm's transform of an epoch: bytes, or floats in the unit range where noise is erased into them."""
    data, augmentation = recipe.data, recipe.augmentation
    assert augmentation is not None
    assert data.mean is not None
    assert data.std is not None
    erasing = augmentation.erasing > 0
    made: Any = create_transform(
        data.size,
        is_training=True,
        hflip=0.5 if data.flip else 0.0,
        color_jitter=augmentation.color_jitter or None,
        auto_augment=randaugment_policy(recipe, epoch),
        interpolation=augmentation.interpolation,
        mean=data.mean,
        std=data.std,
        re_prob=augmentation.erasing,
        re_mode="pixel",
        normalize=erasing,  # the noise is standard normal in what the network sees behind its normalisation
    )
    if not erasing:
        return made  # type: ignore[no-any-return]  # timm has no annotations to check
    mean, std = (torch.tensor(values).reshape(-1, 1, 1) for values in (data.mean, data.std))
    return lambda image: made(image) * std + mean


def validation_transform(recipe: Recipe) -> Callable[[Image.Image], Tensor]:
    """Resize and crop the centre; bytes."""
    data = recipe.data
    interpolation = transforms.InterpolationMode(data.test_interpolation)
    steps = [transforms.Resize(data.test_resize, interpolation), transforms.CenterCrop(data.size)]
    return transforms.Compose([*steps, transforms.PILToTensor()])  # type: ignore[no-any-return]  # torchvision's


def _as_floats(pixels: Tensor, device: torch.device) -> Tensor:
    pixels = pixels.to(device)
    return pixels.float() / 255 if pixels.dtype == torch.uint8 else pixels


def _class_files(folder: Path, classes: int) -> Files:
    """The images of a folder's class folders, sorted by path."""
    if not folder.is_dir():
        advice = "Name the folder that contains `train` and `val`: `--data PATH`."
        raise DataError(complaint(str(folder), "data", "missing", "a folder with one sub-folder per class", advice))
    names = contents_of(folder)[0]
    if len(names) != classes:
        found = f"{len(names)} ({first_few(names)})" if names else "0"
        expected = f"{classes} sub-folders, as many as the network has classes"
        raise DataError(complaint(str(folder), "classes", found, expected))
    return [(f"{name}/{file}", label) for label, name in enumerate(names) for file in contents_of(folder / name)[1]]


def _watched_files(folder: Path, classes: int) -> Files:
    """The validation images by the hash of their names, so that the first of them are a random sample."""
    files = contents_of(folder)[1] if folder.is_dir() else []
    known = validation() if files else {}
    labelled = [(file, known[example]) for file in files if (example := id_of(file)) in known]
    found = labelled or _class_files(folder, classes)
    return [found[position] for position in by_hash([file for file, _ in found])]
