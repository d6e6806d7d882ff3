import json
import os
import signal
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn

from robench.data import ArraySource, Source
from robench.data.textures import TextureDictionary, read_textures
from robench.errors import DataError, ModelError, RecipeError
from robench.synthesis import TextureRecipe, build, load_recipe, open_images
from tests.synthesis.stripes import network, source, stripes
from tests.synthesis.test_recipe import TINY

ROOT = Path(__file__).parent.parent.parent
PRODUCTS = ("textures.safetensors", "manifest.json", "contact-sheet.png")


class StoppedError(Exception):
    """Stands for whatever ends a process in the middle."""


class Watch:
    """Notes what it is told, and stops the build where it is asked to."""

    def __init__(self, *, stop_at: tuple[int, int] | None = None) -> None:
        self.stop_at = stop_at
        self.begun: list[tuple[list[int], int]] = []
        self.read: list[int] = []
        self.lines: list[dict[str, Any]] = []

    def begin(self, recipe: TextureRecipe, classes: Sequence[int], finished: int) -> None:
        self.begun.append((list(classes), finished))

    def reading(self, label: int) -> None:
        self.read.append(label)

    def step(self, label: int, step: int, distance: float) -> None:
        if (label, step) == self.stop_at:
            raise StoppedError

    def made(self, line: dict[str, Any]) -> None:
        self.lines.append(line)


@pytest.fixture
def recipe(tmp_path: Path) -> TextureRecipe:
    (tmp_path / "tiny.toml").write_text(TINY)
    return load_recipe(tmp_path / "tiny.toml")


def _build(
    recipe: TextureRecipe, folder: Path, watch: Watch | None = None, model: nn.Module | None = None, **changes: Any
) -> TextureDictionary:
    chosen: dict[str, Any] = {"source": source(), "classes": None, **changes}
    return build(
        recipe,
        chosen["source"],
        model if model is not None else network(),
        folder,
        classes=chosen["classes"],
        provenance={"note": "test"},
        watcher=watch or Watch(),
    )


def _bytes(folder: Path) -> list[bytes]:
    return [(folder / name).read_bytes() for name in PRODUCTS]


def test_a_dictionary_is_built_class_by_class(tmp_path: Path, recipe: TextureRecipe) -> None:
    watch, folder = Watch(), tmp_path / "textures"
    made = _build(recipe, folder, watch)
    labels = sorted(set(source().labels))
    assert made.classes == tuple(labels)
    assert len(labels) >= 3
    assert tuple(made.textures.shape) == (len(labels), 2, 3, 16, 16)
    read = read_textures(folder)
    assert read.sha256 == made.sha256
    assert recipe.digest in read.about
    header, *lines = [json.loads(line) for line in (folder / "log.jsonl").read_text().splitlines()]
    assert (header["recipe"]["name"], header["recipe_sha256"], header["note"]) == ("tiny", recipe.digest, "test")
    assert lines == watch.lines
    for line in lines:
        assert line["images"] == min(list(source().labels).count(line["class"]), 20)
        assert line["right"] <= line["images"]
        assert sum(line["sizes"]) == line["right"]
        assert max(line["distance"]) < line["distance_at_start"] * 10
    sheet = np.asarray(Image.open(folder / "contact-sheet.png"))
    assert sheet.shape == (len(labels) * 20 + 4, 40 + 2 * 20, 3)
    assert np.array_equal(sheet[4:20, 40:56], (made.textures[0, 0] * 255).round().permute(1, 2, 0).byte().numpy())
    assert np.array_equal(sheet[24:40, 60:76], (made.textures[1, 1] * 255).round().permute(1, 2, 0).byte().numpy())


def test_textures_come_to_have_the_styles_of_their_class(tmp_path: Path, recipe: TextureRecipe) -> None:
    longer = recipe.synthesis.model_copy(update={"steps": 150, "total_variation": 0.0})
    watch = Watch()
    _build(recipe.model_copy(update={"synthesis": longer}), tmp_path / "textures", watch)
    for line in watch.lines:
        assert max(line["distance"]) < 0.2 * line["distance_at_start"]


def test_the_surest_images_alone_are_taken(tmp_path: Path, recipe: TextureRecipe) -> None:
    images = stripes(80)
    with torch.no_grad():
        logits = network()(images)
    first, second = logits.topk(2, dim=1).values.unbind(dim=1)
    label = int(logits.argmax(dim=1).bincount().argmax())
    of_class = (logits.argmax(dim=1) == label).nonzero()[:, 0]
    best = of_class[(first - second)[of_class].argsort(descending=True)[:2]]
    both = recipe.model_copy(update={"data": recipe.data.model_copy(update={"images": 80, "surest": 2})})
    watch = Watch()
    made = _build(both, tmp_path / "all", watch, classes=[label])
    alone = ArraySource(images[best], [label, label], name="two")
    expected = _build(recipe, tmp_path / "two", source=alone)
    assert watch.lines[0]["right"] == len(of_class) > 2
    assert watch.lines[0]["sizes"] == [1, 1]
    first_two, other_two = made.textures[0], expected.textures[0]
    assert min(float((first_two - each).abs().max()) for each in (other_two, other_two.flip(0))) <= 1.01 / 255
    few = recipe.model_copy(update={"data": recipe.data.model_copy(update={"surest": 1})})
    with pytest.raises(RecipeError) as caught:
        _build(few, tmp_path / "few")
    assert str(caught.value) == "tiny.toml: `data.surest` is 1; expected at least 2, the textures of a class."


def test_a_stopped_build_goes_on_and_ends_in_the_same_bytes(tmp_path: Path, recipe: TextureRecipe) -> None:
    labels = sorted(set(source().labels))
    _build(recipe, tmp_path / "whole")
    with pytest.raises(StoppedError):
        _build(recipe, tmp_path / "stopped", Watch(stop_at=(labels[1], 2)))
    assert not (tmp_path / "stopped" / "manifest.json").exists()
    again = Watch()
    _build(recipe, tmp_path / "stopped", again)
    assert again.begun == [(labels, 1)]
    assert again.read == labels[1:]
    assert _bytes(tmp_path / "stopped") == _bytes(tmp_path / "whole")
    third = Watch()
    _build(recipe, tmp_path / "stopped", third)
    assert (third.begun, third.read) == ([(labels, len(labels))], [])
    assert _bytes(tmp_path / "stopped") == _bytes(tmp_path / "whole")


def test_a_killed_build_goes_on_and_ends_in_the_same_bytes(tmp_path: Path, recipe: TextureRecipe) -> None:
    """The process ends by SIGKILL at its third class, in the middle of painting."""
    code = (
        "import os, signal, sys\n"
        "from pathlib import Path\n"
        "from robench.synthesis import load_recipe\n"
        "from tests.synthesis.test_build import Watch, _build\n"
        "class Killer(Watch):\n"
        "    def step(self, label, step, distance):\n"
        "        if len(self.read) == 3 and step == 2:\n"
        "            os.kill(os.getpid(), signal.SIGKILL)\n"
        "_build(load_recipe(sys.argv[1]), Path(sys.argv[2]), Killer())\n"
    )
    command = [sys.executable, "-c", code, str(tmp_path / "tiny.toml"), str(tmp_path / "killed")]
    environment = {**os.environ, "OMP_NUM_THREADS": str(torch.get_num_threads())}
    done = subprocess.run(command, capture_output=True, text=True, check=False, cwd=ROOT, env=environment)
    assert (done.returncode, done.stderr) == (-signal.SIGKILL, "")
    watch, labels = Watch(), sorted(set(source().labels))
    _build(recipe, tmp_path / "killed", watch)
    assert watch.read == labels[2:]
    _build(recipe, tmp_path / "whole")
    assert _bytes(tmp_path / "killed") == _bytes(tmp_path / "whole")
    assert sorted(path.name for path in (tmp_path / "killed").iterdir()) == sorted([*PRODUCTS, "log.jsonl", "parts"])


def test_more_classes_are_added_to_those_that_are_there(tmp_path: Path, recipe: TextureRecipe) -> None:
    labels = sorted(set(source().labels))
    _build(recipe, tmp_path / "grown", classes=labels[1:2])
    assert read_textures(tmp_path / "grown").classes == (labels[1],)
    watch = Watch()
    _build(recipe, tmp_path / "grown", watch)
    assert watch.read == [labels[0], *labels[2:]]
    _build(recipe, tmp_path / "whole")
    assert _bytes(tmp_path / "grown") == _bytes(tmp_path / "whole")


def test_what_another_build_left_is_refused(tmp_path: Path, recipe: TextureRecipe) -> None:
    folder = tmp_path / "textures"
    _build(recipe, folder)
    before = _bytes(folder)
    others: list[dict[str, Any]] = [
        {"recipe": recipe.model_copy(update={"seed": 4})},
        {"model": network(seed=1)},
        {"source": source(seed=1)},
    ]
    for other in others:
        with pytest.raises(RecipeError) as caught:
            _build(other.pop("recipe", recipe), folder, **other)
        assert str(caught.value) == (
            f"{folder}: `folder` is that of another dictionary; expected a new folder, or one of this recipe, model "
            "and data. Choose another folder, or empty this one to start over."
        )
    for path in (folder / "parts").iterdir():
        path.unlink()
    with pytest.raises(RecipeError, match="`folder` is that of another dictionary"):
        _build(recipe, folder)
    assert _bytes(folder) == before


def test_a_broken_part_is_named(tmp_path: Path, recipe: TextureRecipe) -> None:
    part = tmp_path / "textures" / "parts" / "000000.safetensors"
    part.parent.mkdir(parents=True)
    part.write_bytes(b"no")
    with pytest.raises(RecipeError) as caught:
        _build(recipe, tmp_path / "textures")
    assert str(caught.value).startswith(f"{part}: `file` is unreadable (")
    assert str(caught.value).endswith("; expected a finished class. Delete it: its class is made again.")


def test_a_folder_that_cannot_be_made_is_named(tmp_path: Path, recipe: TextureRecipe) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(RecipeError, match=r"/file/textures: `folder` is not writable \(.+\); expected room to write"):
        _build(recipe, tmp_path / "file" / "textures")


def test_classes_with_too_few_images_are_named_before_any_work(tmp_path: Path, recipe: TextureRecipe) -> None:
    images, labels = stripes(9), [0] * 6 + [3] * 2 + [7]
    with pytest.raises(DataError) as caught:
        _build(recipe, tmp_path / "textures", source=ArraySource(images, labels, name="few"))
    assert str(caught.value) == ("few: `classes` is 7 (1); expected at least 2 images of each, one for each texture.")
    with pytest.raises(DataError, match=r"`classes` is 5 \(0\); expected"):
        _build(recipe, tmp_path / "textures", source=ArraySource(images, labels, name="few"), classes=[0, 5])
    assert not (tmp_path / "textures").exists()


def test_a_class_that_the_model_gets_wrong_is_named(tmp_path: Path, recipe: TextureRecipe) -> None:
    model: Any = network()
    with torch.no_grad():
        model[5].bias[2] += 1e3  # says 2 whatever it sees
    wrong = ArraySource(stripes(60), [2, 3] * 30, name="wrong")
    with pytest.raises(DataError) as caught:
        _build(recipe, tmp_path / "textures", source=wrong, model=model)
    found = f"with 0 of 20 images that {recipe.model} gets right"
    expected = "expected at least 2 of them, one for each texture."
    assert str(caught.value) == f"wrong: `class` is 3, {found}; {expected}"


def test_a_model_that_does_not_fit_is_named_before_any_work(tmp_path: Path, recipe: TextureRecipe) -> None:
    other = recipe.model_copy(update={"attention": recipe.attention.model_copy(update={"layer": "conv5"})})
    with pytest.raises(ModelError, match=r"^tests.synthesis.stripes:network: `layer` is `conv5`; expected a module"):
        _build(other, tmp_path / "textures")
    large = recipe.model_copy(update={"synthesis": recipe.synthesis.model_copy(update={"size": 1})})
    with pytest.raises(ModelError, match=r"`model` is failing on images of 1 x 1 \(.+\); expected features of them"):
        _build(large, tmp_path / "textures")


def test_the_images_of_a_recipe(tmp_path: Path, recipe: TextureRecipe) -> None:
    mini = open_images(recipe, None)
    assert (mini.name, len(mini.ids), mini.classes) == ("mini", 200, 10)
    photographs = recipe.model_copy(update={"data": recipe.data.model_copy(update={"source": "imagenet"})})
    with pytest.raises(DataError) as caught:
        open_images(photographs, None)
    assert str(caught.value) == (
        "robench textures build: `data` is none; expected images of `imagenet`. Give the folder of the training "
        "images with `--data`; one sub-folder for each class."
    )
    for wnid in ("n01675722", "n01440764"):  # of classes 45-ish and 0, as ImageNet's training set names its files
        (tmp_path / "train" / wnid).mkdir(parents=True)
        for index in range(3):
            picture = Image.fromarray(np.full((20, 30, 3), 40 * index, dtype=np.uint8))
            picture.save(tmp_path / "train" / wnid / f"{wnid}_{index}.JPEG")
    found: Source = open_images(photographs, tmp_path / "train", workers=0)
    assert len(found.ids) == 6
    assert len(set(found.labels)) == 2
    assert 0 in found.labels
    assert max(found.labels) > 1  # by ImageNet's order, not by the rank of the folder
    assert {tuple(image.shape) for image in found.images(range(6)) if isinstance(image, torch.Tensor)} == {(3, 16, 16)}
