"""Training on photographs: what is read, in which order, and how it is augmented."""

from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from robench.data.imagenet.listing import validation
from robench.errors import DataError
from robench.training.batches import Part, Share
from robench.training.photographs import Photographs, epoch_order, training_transform, validation_transform
from robench.training.recipe import Recipe, parse_recipe

CLASSES = ("ant", "bee", "cat", "dog")
SMALL: dict[str, Any] = {
    "schema": "robench.recipe/1",
    "name": "small",
    "architecture": "test_vit",
    "arguments": {"img_size": 32, "num_classes": 4},
    "seed": 3,
    "batch_size": 8,
    "data": {
        "source": "imagenet",
        "examples": 24,
        "validation": 8,
        "size": 32,
        "mean": [0.5, 0.5, 0.5],
        "std": [0.25, 0.25, 0.25],
        "test_resize": 36,
    },
    "optimizer": {"name": "adamw", "lr": 1e-3, "weight_decay": 0.05},
    "schedule": {"epochs": 2, "warmup_epochs": 1},
    "augmentation": {
        "interpolation": "bicubic",
        "randaugment": {"layers": 2, "magnitude": [1, 9], "deviation": 0.5, "increasing": True},
    },
}


def recipe_with(**changes: Any) -> Recipe:
    """The small recipe with some tables or keys replaced."""
    return parse_recipe({**SMALL, **changes}, where="small.toml")


def make_photographs(root: Path, *, a_class: int = 6, watched: int = 2) -> Path:
    """Noise in class folders, every image of its class's colour."""
    generator = np.random.default_rng(0)
    for folder, count in (("train", a_class), ("val", watched)):
        for label, name in enumerate(CLASSES):
            (root / folder / name).mkdir(parents=True)
            for number in range(count):
                pixels = generator.integers(0, 60, (40, 48, 3), dtype=np.uint8)
                pixels[:, :, label % 3] += np.uint8(60 * (1 + label // 3))
                Image.fromarray(pixels).save(root / folder / name / f"{folder}_{number}.png")
    return root


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_photographs(tmp_path_factory.mktemp("photographs"))


def _share(rank: int = 0, processes: int = 1, part_size: int = 8) -> Share:
    return Share(rank, processes, part_size, torch.device("cpu"))


def _open(recipe: Recipe, root: Path, workers: int = 0) -> Photographs:
    return Photographs(recipe, root, classes=4, workers=workers)


def _same(first: list[Part], second: list[Part]) -> bool:
    return len(first) == len(second) and all(
        torch.equal(one.images, other.images)
        and torch.equal(one.labels, other.labels)
        and torch.equal(one.starts.uniform("a", (2,)), other.starts.uniform("a", (2,)))
        for one, other in zip(first, second, strict=True)
    )


def test_an_epoch_shows_every_image_once_in_an_order_of_its_own() -> None:
    recipe = recipe_with()
    orders = [epoch_order(recipe, epoch).tolist() for epoch in range(2)]
    assert all(sorted(order) == list(range(24)) for order in orders)
    assert orders[0] != orders[1]
    assert orders[0] == epoch_order(recipe, 0).tolist()
    assert orders[0] != epoch_order(recipe_with(seed=4), 0).tolist()


def test_repeated_augmentation_shows_a_third_of_the_images_three_times() -> None:
    order = epoch_order(recipe_with(augmentation={"interpolation": "bicubic", "repeats": 3}), 0).tolist()
    assert len(order) == 24
    assert Counter(Counter(order).values()) == {3: 8}


def test_parts_hold_images_in_the_unit_range_with_their_labels(root: Path) -> None:
    plain = {"interpolation": "bilinear"}
    parts = list(_open(recipe_with(augmentation=plain), root).parts(0, 0, _share()))
    assert [len(part.images) for part in parts] == [8, 8, 8]
    for part in parts:
        assert part.images.dtype == torch.float32
        assert part.images.shape == (8, 3, 32, 32)
        assert 0 <= float(part.images.min()) < float(part.images.max()) <= 1
        means = part.images.mean(dim=(2, 3))
        assert means.argmax(dim=1).tolist() == (part.labels % 3).tolist()
    assert sorted(torch.cat([part.labels for part in parts]).tolist()) == sorted([0, 1, 2, 3] * 6)


@pytest.mark.parametrize("erasing", [0.0, 1.0])
def test_a_view_depends_on_seed_epoch_and_position_alone(erasing: float, root: Path) -> None:
    recipe = recipe_with(augmentation={**SMALL["augmentation"], "erasing": erasing})
    photographs = _open(recipe, root)
    whole = list(photographs.parts(1, 0, _share()))
    assert _same(list(photographs.parts(1, 1, _share())), whole[1:])  # gone on in the middle
    assert _same(list(_open(recipe, root, workers=2).parts(1, 0, _share())), whole)
    assert not _same(list(photographs.parts(0, 0, _share())), whole)
    halves = [list(photographs.parts(1, 0, _share(rank, 2, 4))) for rank in range(2)]
    for part, *shares in zip(whole, *halves, strict=True):
        for rank, own in enumerate(shares):
            assert torch.equal(own.images, part.images[rank::2])
            assert torch.equal(own.labels, part.labels[rank::2])
            assert torch.equal(own.starts.uniform("b", (3,)), part.starts.uniform("b", (3,))[rank::2])
            assert own.starts.coin() == part.starts.coin()


def test_copies_of_an_image_go_to_different_processes() -> None:
    recipe = recipe_with(batch_size=12, augmentation={"interpolation": "bicubic", "repeats": 3})
    order = epoch_order(recipe, 0)[:12]
    for rank in range(3):
        (part,) = _share(rank, 3, 4).parts(12)
        assert len(set(order[part].tolist())) == 4


def test_the_callers_noise_decides_nothing(root: Path) -> None:
    photographs = _open(recipe_with(), root)
    torch.manual_seed(0)
    first = list(photographs.parts(0, 0, _share()))
    torch.manual_seed(1)
    assert _same(list(photographs.parts(0, 0, _share())), first)


def test_the_transform_is_timms_with_the_magnitude_of_the_epoch() -> None:
    shown = [str(training_transform(recipe_with(), epoch)) for epoch in (0, 1, 5)]
    assert all("RandomResizedCropAndInterpolation(size=(32, 32)" in text for text in shown)
    assert all("RandomHorizontalFlip(p=0.5)" in text and "bicubic" in text for text in shown)
    assert all("ColorJitter" not in text for text in shown)
    assert "m=1," in shown[0].replace("magnitude=1,", "m=1,")
    assert shown[1] == shown[2] != shown[0]
    without = {"interpolation": "bilinear", "color_jitter": 0.4}
    jittered = str(training_transform(recipe_with(augmentation=without, data={**SMALL["data"], "flip": False}), 0))
    assert "ColorJitter(brightness=(0.6, 1.4), contrast=(0.6, 1.4), saturation=(0.6, 1.4)" in jittered
    assert "Flip" not in jittered
    assert "RandAugment" not in jittered


def test_what_is_erased_is_standard_normal_behind_the_normalisation() -> None:
    recipe = recipe_with(augmentation={"interpolation": "bilinear", "erasing": 1.0})
    grey = Image.fromarray(np.full((64, 64, 3), 128, dtype=np.uint8))
    transform = training_transform(recipe, 0)
    views = torch.stack([transform(grey) for _ in range(300)])
    noise = views[(views - 128 / 255).abs() > 1e-4]
    assert 0.02 < len(noise) / views.numel() < 0.34  # the shares of the image that are erased
    normal = (noise - 0.5) / 0.25
    assert float(normal.mean()) == pytest.approx(0, abs=0.02)
    assert float(normal.std()) == pytest.approx(1, abs=0.02)


def test_validation_images_are_resized_and_cropped_as_the_recipe_says(root: Path) -> None:
    photographs = _open(recipe_with(), root)
    ((images, labels),) = photographs.validation(_share())
    assert images.shape == (8, 3, 32, 32)
    assert sorted(labels.tolist()) == [0, 0, 1, 1, 2, 2, 3, 3]
    with Image.open(root / "val" / "ant" / "val_0.png") as file:
        by_hand = np.asarray(file.convert("RGB").resize((43, 36), Image.Resampling.BILINEAR))[2:34, 6:38]
    expected = torch.from_numpy(by_hand.copy()).permute(2, 0, 1).float() / 255
    assert any(torch.equal(image, expected) for image in images)
    shares = [list(photographs.validation(_share(rank, 2))) for rank in range(2)]
    assert sum(len(labels) for share in shares for _, labels in share) == 8
    assert photographs.probe(3, _share())[1].tolist() == labels[:3].tolist()
    assert "bicubic" in str(validation_transform(recipe_with(data={**SMALL["data"], "test_interpolation": "bicubic"})))


def test_imagenets_validation_files_side_by_side_are_labelled_by_name(tmp_path: Path) -> None:
    make_photographs(tmp_path, watched=0)
    known = {name: label for name, label in validation().items() if label < 4}
    for name in list(known)[:8]:
        Image.new("RGB", (40, 40)).save(tmp_path / "val" / f"{name}.JPEG")
    ((_, labels),) = _open(recipe_with(), tmp_path).validation(_share())
    assert sorted(labels.tolist()) == sorted(list(known.values())[:8])


@pytest.mark.parametrize(
    ("classes", "changes", "message"),
    [
        (5, {}, r"train: `classes` is 4 \(ant, bee, cat \.\.\.\); expected 5 sub-folders, as many as the network has"),
        (
            4,
            {"examples": 25},
            r"train: `images` is 24; expected 25 \(`data\.examples` of small\)\. Complete the",
        ),
        (4, {"validation": 9}, r"val: `images` is 8; expected at least 9 \(`data\.validation` of small\)\.$"),
    ],
)
def test_a_folder_that_is_not_what_the_recipe_says_is_refused(
    classes: int, changes: dict[str, int], message: str, root: Path
) -> None:
    recipe = recipe_with(data={**SMALL["data"], **changes})
    with pytest.raises(DataError, match=message):
        Photographs(recipe, root, classes=classes)


def test_a_folder_without_train_is_refused(tmp_path: Path) -> None:
    message = r"train: `data` is missing; expected a folder with one sub-folder per class\. Name the folder that"
    with pytest.raises(DataError, match=message):
        _open(recipe_with(), tmp_path)


@pytest.mark.parametrize("workers", [0, 2])
def test_an_image_that_cannot_be_read_is_named(workers: int, tmp_path: Path) -> None:
    make_photographs(tmp_path)
    (tmp_path / "train" / "bee" / "train_1.png").write_bytes(b"none")
    message = r"^bee/train_1\.png: `image` is unreadable \(no image that Pillow knows\)"
    with pytest.raises(DataError, match=message):
        list(_open(recipe_with(), tmp_path, workers=workers).parts(0, 0, _share()))
