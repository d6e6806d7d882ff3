"""A folder of stylized copies of images, made as Stylized-ImageNet was: `<class>/<name>.png`, 224 pixels a side.

Each image is painted in the style of one picture. Which one is drawn by its place among the images, as published, so
the lists of images and of pictures belong to the settings: the manifest, `robench-stylized.json`, has their digests.

Not here: the networks (`adain`), the pictures (`style_images`), and how a tree is written (`robench.data.copies`).

References:
  Geirhos et al. 2019, arXiv:1811.12231, and github.com/rgeirhos/Stylized-ImageNet, code/. Deviates: batches instead of
  single images; Pillow of today.
"""

from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from io import BytesIO
from itertools import groupby
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor
from torch.utils.data import Dataset

from robench.data.copies import (
    Written,
    alone,
    check_apart,
    check_goes_on,
    copy_of,
    images_of,
    is_written,
    manifest_content,
    read_content,
    write,
    writing,
)
from robench.data.decoding import default_workers, in_workers
from robench.data.images import as_image, read_pixels
from robench.data.source import ids_digest
from robench.errors import DataError, ModelError, complaint
from robench.synthesis.adain import AdaIN
from robench.synthesis.style_images import SIDE, prepare, style_names

MANIFEST = "robench-stylized.json"
STYLES = ".styles"
"""Folder of the squares that were cut out of the pictures; hidden, so that readers take it for no class."""
RESIZE = 256
"""Shorter side of the images before their centre is cut out."""
REVISION = 1
"""Raised when the same settings give other bytes."""
_SUFFIX = ".png"

_Pixels = NDArray[np.uint8]
_Part = tuple[_Pixels, _Pixels] | str
"""An image and the picture that it is painted after; or why it cannot be read."""


@dataclass(frozen=True)
class Settings:
    """What is made.

    Attributes:
      alpha: how much of the style: 1 all of it, as published.
      seed: of the order of the pictures; as published.
      begin: how many images were painted before these. In the published order the validation set comes first, and the
        training set begins at 50,000.
      batch_size: images painted together; only rounding depends on it.
    """

    alpha: float = 1.0
    seed: int = 49809
    begin: int = 0
    batch_size: int = 8


def write_stylized(
    content: Path,
    styles: Path,
    target: Path,
    networks: AdaIN,
    settings: Settings | None = None,
    *,
    workers: int | None = None,
    on_start: Callable[[str, int], None] = lambda what, count: None,
    on_image: Callable[[], None] = lambda: None,
) -> Written:
    """Write stylized copies of all images of `<content>/<class>/<file>`.

    Args:
      content: a folder with one sub-folder for each class.
      styles: a folder of pictures, or with sub-folders of them.
      target: a new or empty folder, or one that an earlier call wrote: then only what is missing is written.
      networks: encoder and decoder.
      settings: by default the published ones.
      workers: processes that read; 0: this one; None: up to four.
      on_start: told what is worked through next, `pictures` and then `images`, and how many there are.
      on_image: called after each.
    Raises:
      DataError: there is nothing to read, or the target is in use, another's, or cannot be written.
      ModelError: the networks paint what is no number.
    """
    chosen = settings or Settings()
    _check_numbers(chosen)
    check_apart(content, target, "CONTENT")
    images, pictures = images_of(content, _SUFFIX, "CONTENT"), style_names(styles)
    check_apart(styles, target, "STYLES")
    processes = default_workers() if workers is None else workers
    with writing(target):
        target.mkdir(parents=True, exist_ok=True)
        known = _known(chosen, networks, images)
        there = read_content(target / MANIFEST)
        check_goes_on(target / MANIFEST, there, known)
        with alone(target):
            on_start("pictures", len(pictures))
            usable = prepare(styles, target / STYLES, pictures, workers=processes, on_image=on_image)
            manifest = known | {"styles": len(usable), "styles_sha256": ids_digest(usable)}
            check_goes_on(target / MANIFEST, there, manifest)
            write(target / MANIFEST, manifest_content(manifest))
            on_start("images", len(images))
            pairs = _Pairs(content, target, images, [usable[at] for at in order(chosen, len(images), len(usable))])
            return _paint(pairs, networks, chosen, processes, on_image)


def order(settings: Settings, images: int, styles: int) -> NDArray[np.int64]:
    """Which picture each image is painted after: NumPy's legacy generator, one draw for each, as published."""
    drawn: NDArray[np.int64] = np.random.RandomState(settings.seed).randint(0, styles, settings.begin + images)
    return drawn[settings.begin :]


def _known(settings: Settings, networks: AdaIN, images: Sequence[str]) -> dict[str, Any]:
    """What the manifest says before the pictures have been looked at."""
    chosen = asdict(settings)
    del chosen["batch_size"]
    return chosen | {
        "generator": "robench",
        "revision": REVISION,
        "size": SIDE,
        "encoder_sha256": networks.encoder_sha256,
        "decoder_sha256": networks.decoder_sha256,
        "images": len(images),
        "images_sha256": ids_digest(images),
    }


def _check_numbers(settings: Settings) -> None:
    where = "robench data stylize"
    if not 0 <= settings.alpha <= 1:
        raise DataError(complaint(where, "alpha", settings.alpha, "a number from 0 to 1"))
    for name in ("seed", "begin", "batch_size"):
        least = int(name == "batch_size")
        if not least <= getattr(settings, name) < 2**32:
            raise DataError(complaint(where, name, getattr(settings, name), f"a whole number from {least}"))


def _paint(pairs: "_Pairs", networks: AdaIN, settings: Settings, workers: int, on_image: Callable[[], None]) -> Written:
    """Paint every batch of which something is missing, whole, so that the bytes are those of an unbroken run."""
    batches = range(0, len(pairs.images), settings.batch_size)
    todo: list[int] = []
    for begin in batches:
        batch = range(begin, min(begin + settings.batch_size, len(pairs.images)))
        if all(is_written(pairs.copy(position)) for position in batch):
            for _ in batch:
                on_image()
        else:
            todo += batch
    files, unreadable = 0, []
    parts = _read(pairs, todo, workers)
    with ThreadPoolExecutor(max(1, workers)) as pool:
        for _, group in groupby(zip(todo, parts, strict=True), key=lambda each: each[0] // settings.batch_size):
            batch_parts = list(group)
            unreadable += [part for _, part in batch_parts if isinstance(part, str)]
            read = [(position, *part) for position, part in batch_parts if not isinstance(part, str)]
            if read:
                painted = _stylized(networks, settings.alpha, read)
                paths = [pairs.copy(position) for position, _, _ in read]
                files += sum(pool.map(_write_missing, paths, painted))
            for _ in batch_parts:
                on_image()
    return Written(len(pairs.images) - len(unreadable), files, unreadable)


def _stylized(
    networks: AdaIN, alpha: float, read: Sequence[tuple[int, NDArray[np.uint8], NDArray[np.uint8]]]
) -> Tensor:
    """The painted images as bytes, shape (N, 224, 224, 3)."""
    device = next(networks.encoder.parameters()).device
    content = torch.stack([as_image(pixels) for _, pixels, _ in read]).to(device)
    style = torch.stack([as_image(pixels) for _, _, pixels in read]).to(device)
    with torch.inference_mode(), torch.backends.cudnn.flags(enabled=True, deterministic=True, allow_tf32=False):
        image = networks.stylized(content, style, alpha=alpha)
    if not image.isfinite().all():
        raise ModelError(complaint("robench data stylize", "decoder", "painting infinite colours", "finite ones"))
    return (image * 255 + 0.5).clamp(0, 255).to(torch.uint8).permute(0, 2, 3, 1).cpu()


def _write_missing(path: Path, image: Tensor) -> bool:
    """Write an image that is not there; whether it was written."""
    if is_written(path):
        return False
    file = BytesIO()
    Image.fromarray(image.numpy()).save(file, "PNG")
    write(path, file.getvalue())
    return True


def _read(pairs: "_Pairs", positions: Sequence[int], workers: int) -> Iterator[_Part]:
    chosen = _Chosen(pairs, positions)
    if workers and positions:
        return in_workers(chosen, range(len(chosen)), workers, together=1)
    return (chosen[at] for at in range(len(chosen)))


@dataclass(frozen=True)
class _Pairs:
    """Images, and the picture that each is painted after."""

    source: Path
    target: Path
    images: Sequence[str]
    styles: Sequence[str]

    def copy(self, position: int) -> Path:
        """Where the copy of an image goes."""
        return self.target / copy_of(self.images[position], _SUFFIX)

    def read(self, position: int) -> _Part:
        """Image and picture as bytes, shape (3, 224, 224); or why the image cannot be read."""
        name, style = self.images[position], self.styles[position]
        picture = read_pixels(self.target / STYLES / style, resize=None, crop=SIDE, name=f"{STYLES}/{style}")
        try:
            return read_pixels(self.source / name, resize=RESIZE, crop=SIDE, name=name), picture
        except DataError as error:
            return str(error)


@dataclass(frozen=True)
class _Chosen(Dataset[_Part]):
    """Some of the pairs, read when asked for."""

    pairs: _Pairs
    positions: Sequence[int]

    def __len__(self) -> int:
        return len(self.positions)

    def __getitem__(self, at: int) -> _Part:
        return self.pairs.read(self.positions[at])
