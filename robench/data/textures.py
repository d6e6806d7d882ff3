"""Texture dictionaries: what attacks with patches cut their patches from.

Pixels are in [0, 1] and know nothing of any model's normalisation. A dictionary is known by the digest of
its values. On disk it is a folder with `textures.safetensors` and `manifest.json`; the published folder of
PatchAttack is read as well.

Not here: how textures are made (`robench.synthesis`), fetched (`fetching.py`) and pasted
(`robench.attacks.patches`).
"""

import importlib.resources
import io
import json
import pickle
import re
from dataclasses import dataclass, field
from functools import cached_property, lru_cache
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from robench.arrays import state_digest
from robench.data.locations import Location, way_to_name
from robench.data.writing import written_whole
from robench.errors import DataError, complaint, first_few

SCHEMA = "robench.textures/1"
IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)
"""In whose units the published textures are stored."""
ROUNDING = 1e-3
"""How far published values, clamped in those units, may lie outside [0, 1]; they are clamped again."""


@dataclass(frozen=True, eq=False)
class TextureDictionary:
    """Textures of some classes, as many of each.

    Attributes:
      classes: class numbers, all different.
      textures: float32 in [0, 1], shape (classes, textures, 3, size, size).
      about: where they come from, one sentence.
      name: what errors call it.
    """

    classes: tuple[int, ...]
    textures: Tensor = field(repr=False)
    about: str = ""
    name: str = "textures"

    def __post_init__(self) -> None:
        shape, values = tuple(self.textures.shape), self.textures
        expected = "(classes, textures, 3, size, size), none of them 0"
        if len(shape) != 5 or shape[2] != 3 or shape[3] != shape[4] or 0 in shape:
            raise DataError(complaint(self.name, "textures", f"of shape {shape}", expected))
        if values.dtype != torch.float32:
            raise DataError(complaint(self.name, "textures", f"of type {values.dtype}", "torch.float32"))
        if len(set(self.classes)) != len(self.classes) or len(self.classes) != shape[0]:
            found = f"{list(self.classes)} for {shape[0]} groups of textures"
            raise DataError(complaint(self.name, "classes", found, "one class number for each group, all different"))
        if min(self.classes) < 0:
            raise DataError(complaint(self.name, "classes", list(self.classes), "class numbers of at least 0"))
        low, high = float(values.min()), float(values.max())
        if not (low >= 0 and high <= 1):  # NaN is neither
            advice = "Undo the normalisation before writing the dictionary."
            raise DataError(
                complaint(self.name, "textures", f"from {low:.3g} to {high:.3g}", "values in [0, 1]", advice)
            )

    @property
    def size(self) -> int:
        """Side of every texture in pixels."""
        return int(self.textures.shape[3])

    @cached_property
    def sha256(self) -> str:
        """Digest of class numbers and float32 values."""
        return state_digest({"classes": torch.tensor(self.classes), "textures": self.textures})


def write_textures(dictionary: TextureDictionary, folder: Path) -> None:
    """Write a dictionary into a folder, which is made; the same dictionary gives the same bytes.

    Where every value is a whole number of 255ths, these are written, a byte each, and nothing is lost.
    """
    folder.mkdir(parents=True, exist_ok=True)
    with written_whole(folder / "textures.safetensors") as path:
        save_file({"textures": _smallest(dictionary.textures)}, path)
    manifest = {
        "schema": SCHEMA,
        "about": dictionary.about,
        "classes": list(dictionary.classes),
        "shape": list(dictionary.textures.shape),
        "sha256": dictionary.sha256,
    }
    with written_whole(folder / "manifest.json") as path:
        path.write_text(json.dumps(manifest, indent=2, sort_keys=True) + "\n", encoding="utf-8")


def _smallest(textures: Tensor) -> Tensor:
    """The values as uint8 if dividing these by 255 gives the same float32, else as they are."""
    levels = (textures * 255).round().to(torch.uint8)
    return levels if torch.equal(levels.float() / 255, textures) else textures.contiguous()


def read_folder(folder: Path) -> TextureDictionary:
    """Read a dictionary in either form: ours, or the one that PatchAttack publishes.

    Raises:
      DataError: as `read_textures` and `read_published` do.
    """
    published = any(folder.glob("attention-style_t-label_*"))
    return read_published(folder) if published else read_textures(folder)


def read_textures(folder: Path) -> TextureDictionary:
    """Read a dictionary that `write_textures` wrote.

    Raises:
      DataError: a file is missing or malformed, or the values are not those that the manifest names.
    """
    manifest = _manifest(folder / "manifest.json")
    path = folder / "textures.safetensors"
    try:
        tensors = load_file(path)
    except (OSError, SafetensorError) as error:
        expected = "a safetensors file with the tensor `textures`"
        raise DataError(complaint(str(path), "file", f"unreadable ({error})", expected)) from error
    if set(tensors) != {"textures"}:
        raise DataError(complaint(str(path), "tensors", first_few(sorted(tensors)) or "none", "`textures` alone"))
    values = tensors["textures"]
    pixels = values.float() / 255 if values.dtype == torch.uint8 else values
    dictionary = TextureDictionary(tuple(manifest["classes"]), pixels, manifest["about"], str(folder))
    if manifest["shape"] != list(dictionary.textures.shape):
        expected = f"{list(dictionary.textures.shape)}, as in textures.safetensors"
        raise DataError(complaint(str(folder / "manifest.json"), "shape", manifest["shape"], expected))
    check_digest(str(folder), dictionary, manifest["sha256"], "manifest.json says")
    return dictionary


_KEYS = {"schema": str, "about": str, "classes": list, "shape": list, "sha256": str}


def _manifest(path: Path) -> dict[str, Any]:
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise DataError(complaint(str(path), "file", f"unreadable ({error})", "a manifest in JSON")) from error
    if not isinstance(content, dict) or content.keys() != _KEYS.keys():
        found = first_few(sorted(content), 9) if isinstance(content, dict) else type(content).__name__
        raise DataError(complaint(str(path), "keys", found or "none", ", ".join(_KEYS)))
    for key, kind in _KEYS.items():
        if not isinstance(content[key], kind):
            raise DataError(complaint(str(path), key, repr(content[key]), f"a value of type {kind.__name__}"))
    if content["schema"] != SCHEMA:
        raise DataError(complaint(str(path), "schema", repr(content["schema"]), repr(SCHEMA)))
    if not all(type(number) is int for number in content["classes"]):
        raise DataError(complaint(str(path), "classes", content["classes"], "whole numbers"))
    return content


def check_digest(where: str, dictionary: TextureDictionary, expected: str, origin: str) -> None:
    """Check that a dictionary is the one that something says it is.

    Raises:
      DataError: it is another.
    """
    if dictionary.sha256 != expected:
        advice = "The textures were changed, or are others."
        raise DataError(complaint(where, "sha256", dictionary.sha256, f"{expected}, as {origin}", advice))


def read_published(folder: Path) -> TextureDictionary:
    """Read the folder that PatchAttack publishes: one torch file for each texture, ImageNet-normalised.

    `attention-style_t-label_<class>/<settings>/<settings>/cluster_<number>/iter_<iterations>.pt`, each a tensor
    of shape (3, size, size). The files are pickles, of which tensors alone are read; nothing in them is run.

    Raises:
      DataError: there is no such file, one is no plain tensor, or classes differ in their textures.

    References:
      Yang et al. 2020, arXiv:2004.05682; its published code, folder TextureDict_demo.
    """
    groups: dict[int, dict[int, Tensor]] = {}
    for path in sorted(folder.glob("attention-style_t-label_*/*/*/cluster_*/iter_*.pt")):
        label = re.fullmatch(r"attention-style_t-label_(\d+)", path.relative_to(folder).parts[0])
        cluster = re.fullmatch(r"cluster_(\d+)", path.parent.name)
        if label is None or cluster is None:
            raise DataError(complaint(str(path), "path", "of another form", "a class and a cluster, both numbers"))
        clusters = groups.setdefault(int(label[1]), {})
        if int(cluster[1]) in clusters:
            found = f"a second texture for cluster {cluster[1]} of class {label[1]}"
            raise DataError(complaint(str(path), "path", found, "one", "Keep the last iteration alone."))
        try:
            content = path.read_bytes()
        except OSError as error:
            found = f"unreadable ({error.strerror or type(error).__name__})"
            raise DataError(complaint(str(path), "file", found, "a texture")) from error
        clusters[int(cluster[1])] = published_texture(content, str(path))
    if not groups:
        raise DataError(complaint(str(folder), "textures", "none", "`attention-style_t-label_<class>` with textures"))
    counts = {label: len(clusters) for label, clusters in sorted(groups.items())}
    shapes = {tuple(texture.shape) for clusters in groups.values() for texture in clusters.values()}
    if len(set(counts.values())) > 1:
        raise DataError(complaint(str(folder), "textures", f"{counts} by class", "as many for every class"))
    if len(shapes) > 1:
        raise DataError(complaint(str(folder), "textures", f"of shapes {sorted(shapes)}", "one shape"))
    ordered = [torch.stack([texture for _, texture in sorted(groups[label].items())]) for label in counts]
    return TextureDictionary(tuple(counts), torch.stack(ordered), "Published with PatchAttack (MIT).", str(folder))


def published_texture(content: bytes, where: str) -> Tensor:
    """One texture from its torch file, in [0, 1], shape (3, size, size).

    Args:
      content: of the file.
      where: what errors call it.
    Raises:
      DataError: it is no plain tensor, or of another shape, type or range.
    """
    try:
        texture = torch.load(io.BytesIO(content), map_location="cpu", weights_only=True)
    except (OSError, EOFError, RuntimeError, ValueError, pickle.UnpicklingError) as error:
        summary = (str(error).splitlines() or [type(error).__name__])[0][:200]
        expected = "a plain tensor; nothing else is read from a pickle"
        raise DataError(complaint(where, "file", f"unreadable ({summary})", expected)) from error
    if not isinstance(texture, Tensor) or texture.ndim != 3 or texture.shape[0] != 3 or texture.dtype != torch.float32:
        is_tensor = isinstance(texture, Tensor)
        found = f"{texture.dtype} of shape {tuple(texture.shape)}" if is_tensor else type(texture).__name__
        raise DataError(complaint(where, "texture", found, "torch.float32 of shape (3, size, size)"))
    mean, std = (torch.tensor(values)[:, None, None] for values in (IMAGENET_MEAN, IMAGENET_STD))
    pixels = texture.detach() * std + mean
    if not float((pixels - pixels.clamp(0, 1)).abs().max()) <= ROUNDING:
        found = f"from {float(pixels.min()):.3g} to {float(pixels.max()):.3g} once ImageNet's normalisation is undone"
        raise DataError(complaint(where, "texture", found, "values in [0, 1]"))
    return pixels.clamp(0, 1)


def mini_textures() -> TextureDictionary:
    """Textures of the mini suite, synthesised from its images by the recipe `mini`; they are shipped."""
    return read_textures(Path(str(importlib.resources.files("robench.data.mini") / "textures")))


PUBLISHED = {"tpa-textures": read_published}
"""What reads a dictionary that is not shipped, by its name in a protocol; `robench data fetch` gets it."""


def open_textures(name: str, sha256: str, location: Location | None) -> TextureDictionary:
    """The dictionary of a protocol.

    Args:
      name: `mini`, a name in `PUBLISHED`, or the path of a folder that `read_folder` reads.
      sha256: its digest; another dictionary is refused.
      location: where one of `PUBLISHED` lies, if anything says it.
    Raises:
      DataError: it is not there, malformed, or another one.
    """
    return _opened(name, sha256, location.path if location is not None else None)


@lru_cache(maxsize=4)
def _opened(name: str, sha256: str, folder: Path | None) -> TextureDictionary:
    if name == "mini":
        dictionary = mini_textures()
    elif name in PUBLISHED:
        if folder is None:
            ways = f"`robench data fetch {name}`, name a copy with `--textures DIR`, {way_to_name(name)}"
            raise DataError(complaint("robench", "textures", "nowhere", f"`{name}`", f"Fetch them with {ways}."))
        dictionary = PUBLISHED[name](folder)
    else:
        dictionary = read_folder(Path(name))
    check_digest(name, dictionary, sha256, "the protocol says")
    return dictionary
