from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from robench.data.arrays import ArraySource
from robench.data.source import by_hash
from robench.errors import DataError


def _images(count: int = 5) -> torch.Tensor:
    return torch.rand(count, 3, 4, 6, generator=torch.Generator().manual_seed(0))


def test_examples_keep_their_image_and_label_in_the_order_of_the_hash() -> None:
    images, labels, ids = _images(40), list(range(40)), [f"x{number}" for number in range(40)]
    source = ArraySource(images, labels, ids=ids)
    assert source.ids == [ids[position] for position in by_hash(ids)]
    assert source.ids != ids
    for position, image in enumerate(source.images(range(40))):
        original = int(source.ids[position][1:])
        assert source.labels[position] == original
        assert torch.equal(image, images[original])


def test_images_come_in_the_order_asked_for_and_more_than_once() -> None:
    source = ArraySource(_images(), [0, 1, 2, 3, 4])
    first, second, again = source.images([3, 0, 3])
    assert torch.equal(first, again)
    assert not torch.equal(first, second)
    assert list(source.images([])) == []


def test_what_is_not_said_has_a_default() -> None:
    source = ArraySource(_images(2), [0, 1])
    assert sorted(source.ids) == ["example-000000", "example-000001"]
    assert source.name == "arrays"
    assert source.classes is None
    named = ArraySource(_images(2), [0, 1], classes=7, name="mine")
    assert (named.name, named.classes) == ("mine", 7)


def test_bytes_become_fractions_of_255() -> None:
    pixels = np.arange(0, 240, dtype=np.uint8).reshape(5, 3, 4, 4)
    for images in (pixels, torch.from_numpy(pixels.copy())):
        (image,) = ArraySource(images, [0] * 5, ids=list("abcde")).images([0])
        assert image.dtype == torch.float32
        row = "abcde".index(ArraySource(images, [0] * 5, ids=list("abcde")).ids[0])
        assert torch.equal(image, torch.tensor(pixels[row] / np.float32(255)))


@pytest.mark.parametrize(
    "labels",
    [
        [2, 0, 1],
        (2, 0, 1),
        np.array([2, 0, 1], dtype=np.uint8),
        torch.tensor([2, 0, 1], dtype=torch.int16),
        np.array([5, 2, 0, 1])[1:],
    ],
)
def test_labels_may_be_any_integers(labels: Any) -> None:
    source = ArraySource(_images(3), labels, ids=["0", "1", "2"])
    assert dict(zip(source.ids, source.labels, strict=True)) == {"0": 2, "1": 0, "2": 1}
    assert all(type(label) is int for label in source.labels)


def test_arrays_that_torch_cannot_share_are_read_all_the_same(tmp_path: Path) -> None:
    pixels = _images(3).numpy()
    np.save(tmp_path / "images.npy", pixels)
    reader: Any = np.load(tmp_path / "images.npy", mmap_mode="r")
    frozen = pixels.copy()
    frozen.flags.writeable = False
    mirrored = np.ascontiguousarray(pixels[:, :, :, ::-1])[:, :, :, ::-1]
    assert mirrored.strides[3] < 0
    expected = list(ArraySource(torch.from_numpy(pixels), [0, 1, 2]).images(range(3)))
    for images in (reader, frozen, mirrored, pixels):
        found = ArraySource(images, [0, 1, 2]).images(range(3))
        assert all(torch.equal(one, other) for one, other in zip(found, expected, strict=True))


def test_a_reader_that_writes_does_not_change_the_callers_array() -> None:
    pixels = np.zeros((2, 3, 4, 4), dtype=np.float32)
    for image in ArraySource(pixels, [0, 1]).images([0, 1]):
        image.fill_(1)
    assert not pixels.any()


def test_images_with_history_lose_it() -> None:
    (image,) = ArraySource(_images(1).requires_grad_(), [0]).images([0])
    assert not image.requires_grad


@pytest.mark.parametrize(
    ("images", "found"),
    [
        (torch.zeros(3, 4, 4), r"torch\.float32 of shape \(3, 4, 4\)"),
        (torch.zeros(2, 4, 4, 3), r"torch\.float32 of shape \(2, 4, 4, 3\)"),
        (torch.zeros(2, 1, 4, 4), r"torch\.float32 of shape \(2, 1, 4, 4\)"),
        (torch.zeros(2, 3, 4, 4, dtype=torch.float64), r"torch\.float64 of shape"),
        (np.zeros((2, 3, 4, 4)), r"float64 of shape \(2, 3, 4, 4\)"),
        (np.zeros((2, 3, 4, 4), dtype=np.int64), r"int64 of shape"),
        (np.zeros((2, 3, 4, 4), dtype=">f4"), r">f4 of shape"),
        (None, r"object of shape \(\)"),
        ("images.npy", r"<U10 of shape \(\)"),
    ],
)
def test_images_of_another_form_are_refused(images: Any, found: str) -> None:
    message = rf"^arrays: `images` is {found}.*; expected float32 in \[0, 1\] or uint8, shape \(N, 3, H, W\)\.$"
    with pytest.raises(DataError, match=message):
        ArraySource(images, [0, 1])


@pytest.mark.parametrize(
    ("labels", "found"),
    [
        ([0], r"int64 of shape \(1,\)"),
        ([[0, 1]], r"int64 of shape \(1, 2\)"),
        ([0.0, 1.0], r"float64 of shape \(2,\)"),
        (torch.tensor([0.0, 1.0]), r"float32 of shape \(2,\)"),
        (np.eye(2, dtype=np.int64), r"int64 of shape \(2, 2\)"),
        (["cat", "dog"], r"<U3 of shape \(2,\)"),
        ([1j, 0], r"complex128 of shape \(2,\)"),
        (None, r"object of shape \(\)"),
    ],
)
def test_labels_of_another_form_are_refused(labels: Any, found: str) -> None:
    with pytest.raises(DataError, match=rf"^arrays: `labels` is {found}; expected integers of shape \(2,\)\.$"):
        ArraySource(_images(2), labels)


def test_ragged_lists_are_refused() -> None:
    with pytest.raises(DataError, match=r"^mine: `labels` is list \(.*\); expected a tensor or array\.$"):
        ArraySource(_images(2), [[0], [0, 1]], name="mine")
    with pytest.raises(DataError, match=r"^mine: `images` is list \(.*\); expected a tensor or array\.$"):
        ArraySource([[0.0], [0.0, 1.0]], [0, 1], name="mine")


def test_ids_must_be_as_many_as_images() -> None:
    with pytest.raises(DataError, match=r"^arrays: `ids` is 3; expected 2, one for each image\.$"):
        ArraySource(_images(2), [0, 1], ids=["a", "b", "c"])


def test_ids_must_be_text() -> None:
    numbers: Any = [1, 2]
    with pytest.raises(DataError, match=r"^arrays: `ids` is 1; expected ids in UTF-8 without line breaks\.$"):
        ArraySource(_images(2), [0, 1], ids=numbers)
