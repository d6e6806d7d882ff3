import hashlib
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

from robench.data import CATALOGUE, ArraySource, FileSource, Source, open_source
from robench.data.source import by_hash, check_ids, check_image, check_source, ids_digest, pixel_digest
from robench.errors import DataError
from robench.registry import load_protocol


class Fixed:
    """A source of a user's own: any object with these attributes."""

    name = "fixed"

    def __init__(self, ids: Sequence[Any], labels: Sequence[int], classes: int | None = None) -> None:
        self.ids, self.labels, self.classes = ids, labels, classes

    def images(self, positions: Iterable[int]) -> Iterator[Tensor]:
        for _ in positions:
            yield torch.zeros(3, 4, 4)


def test_by_hash_orders_by_the_digest_in_hexadecimal() -> None:
    ids = [f"image {number}" for number in range(300)] + ["Ä", "日本"]
    expected = sorted(ids, key=lambda name: hashlib.sha256(name.encode("utf-8")).hexdigest())
    order = by_hash(ids)
    assert [ids[position] for position in order] == expected
    assert sorted(order) == list(range(302))
    assert expected != ids


def test_the_order_does_not_depend_on_what_else_is_there() -> None:
    ids = [f"e{number}" for number in range(100)]
    some = [ids[position] for position in by_hash(ids) if position % 3 == 0]
    fewer = ids[::3]
    assert [fewer[position] for position in by_hash(fewer)] == some


def test_ids_digest_is_that_of_the_lines() -> None:
    # printf 'a\nb' | sha256sum
    assert ids_digest(["a", "b"]) == "7e18f737311b2dc3b2f269dd78396b0351f14fb66efa879f768cb23181883c78"
    assert ids_digest(["b", "a"]) != ids_digest(["a", "b"])
    assert ids_digest(iter(["a", "b"])) == ids_digest(["a", "b"])


def _sha256(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()


def test_pixel_digest_sees_id_and_pixels_and_not_the_layout_in_memory() -> None:
    image = torch.arange(48, dtype=torch.float32).reshape(3, 4, 4) / 48
    expected = int(_sha256(b"a\0" + image.numpy().astype("<f4").tobytes()), 16)
    assert pixel_digest("a", image) == expected
    assert pixel_digest("b", image) != expected
    assert pixel_digest("a", image.flip(2)) != expected
    assert pixel_digest("a", image.permute(1, 2, 0).contiguous().permute(2, 0, 1)) == expected


def test_the_mini_set_is_the_one_that_its_protocol_pins() -> None:
    source, protocol = open_source("mini", None, resize=None, crop=64), load_protocol("mini-pgd-linf@1")
    assert ids_digest(source.ids) == protocol.data.ids_sha256
    assert len(source.ids) == protocol.data.count
    assert source.classes == protocol.data.classes
    assert source.name == "mini"


def test_every_data_set_of_the_catalogue_keeps_the_laws() -> None:
    for name, opener in CATALOGUE.items():
        source = opener()
        check_source(source, where=name)
        assert [source.ids[position] for position in by_hash(source.ids)] == list(source.ids)
        for position, image in zip((0, 5, 5), source.images([0, 5, 5]), strict=True):
            assert isinstance(image, Tensor)
            check_image(image, source.ids[position])
        assert source.classes is not None
        assert set(source.labels) == set(range(source.classes))


def test_a_users_own_source_is_taken_as_it_is() -> None:
    source = Fixed(["b", "a"], [0, 1])
    assert isinstance(source, Source)
    assert open_source("imagenet", source, resize=256, crop=224) is source


def test_data_is_opened_by_what_it_is(tmp_path: Path) -> None:
    images, labels = torch.zeros(2, 3, 4, 4), [0, 1]
    assert isinstance(open_source("mini", (images, labels), resize=None, crop=4), ArraySource)
    (tmp_path / "cat").mkdir()
    Image.new("RGB", (8, 8)).save(tmp_path / "cat" / "a.png")
    for data in (tmp_path, str(tmp_path)):
        assert isinstance(open_source("mini", data, resize=None, crop=4), FileSource)


@pytest.mark.parametrize("data", [[torch.zeros(2, 3, 4, 4), [0, 1]], 3, (1, 2, 3), object()])
def test_what_is_no_data_is_refused(data: Any) -> None:
    kind = type(data).__name__
    message = rf"^robench: `data` is {kind}; expected a folder, `hf-hub:org/name`, a pair \(images, labels\), or a "
    with pytest.raises(DataError, match=message):
        open_source("mini", data, resize=None, crop=4)


def test_data_that_is_not_shipped_is_asked_for() -> None:
    message = (
        r"^robench: `data` is none; expected the images of `imagenet`\. Give their folder as `data=` \(or `--data`\), "
        r"set ROBENCH_IMAGENET, or write `imagenet` under `\[data\]` into .*robench/config\.toml\.$"
    )
    with pytest.raises(DataError, match=message):
        open_source("imagenet", None, resize=256, crop=224)
    message = r"expected the images of `no-such-set`\. Give their folder as `data=` \(or `--data`\)\.$"
    with pytest.raises(DataError, match=message):
        open_source("no-such-set", None, resize=256, crop=224)


@pytest.mark.parametrize(
    ("source", "message"),
    [
        (Fixed([], []), r"`data` is empty; expected at least one example\."),
        (Fixed(["a", "b"], [0]), r"`labels` is 1 for 2 examples; expected one label for each example\."),
        (Fixed(["a", "b", "a"], [0, 0, 0]), r"`ids` is not unique \('a' twice\); expected an id of its own"),
        (Fixed(["a", "b\nc"], [0, 0]), r"`ids` is 'b\\nc'; expected ids in UTF-8 without line breaks\."),
        (Fixed(["a", "b\r"], [0, 0]), r"`ids` is 'b\\r'; expected ids"),
        (Fixed(["a", "b\0"], [0, 0]), r"`ids` is 'b\\x00'; expected ids"),
        (Fixed(["a", "\udcff.png"], [0, 0]), r"`ids` is '\\udcff\.png'; expected ids in UTF-8"),
        (Fixed(["a", ""], [0, 0]), r"`ids` is ''; expected ids"),
        (Fixed(["a", 7], [0, 0]), r"`ids` is 7; expected ids"),
        (Fixed(["a", "b"], [0, 3], classes=3), r"`labels` is 3; expected class numbers from 0 to 2\."),
        (Fixed(["a", "b"], [-1, 0]), r"`labels` is -1; expected class numbers from 0 to 0\."),
    ],
)
def test_broken_ids_and_labels_are_refused(source: Fixed, message: str) -> None:
    with pytest.raises(DataError, match=f"^here: {message}"):
        check_source(source, where="here")


def test_ids_may_hold_anything_else() -> None:
    check_ids(["n01440764/ILSVRC2012_val_00000293.JPEG", 'a,"b" c', "Ä 日本 🐈", "#", "\u2028\t"], where="here")


def test_labels_without_a_number_of_classes_may_be_any() -> None:
    check_source(Fixed(["a", "b"], [0, 999]), where="here")


def test_a_good_image_passes() -> None:
    check_image(torch.rand(3, 4, 5, generator=torch.Generator().manual_seed(0)), "e")
    check_image(torch.tensor([0.0, 1.0, 0.5]).reshape(3, 1, 1), "e")


@pytest.mark.parametrize(
    ("image", "message"),
    [
        (torch.zeros(1, 4, 4), r"torch\.float32 of shape \(1, 4, 4\); expected torch\.float32 of shape \(3, H, W\)\."),
        (torch.zeros(4, 4), r"torch\.float32 of shape \(4, 4\); expected"),
        (torch.zeros(3, 4, 4, dtype=torch.float64), r"torch\.float64 of shape \(3, 4, 4\); expected"),
        (torch.zeros(3, 4, 4, dtype=torch.uint8), r"torch\.uint8 of shape"),
        (torch.full((3, 4, 4), 255.0), r"from 255 to 255; expected values in \[0, 1\]\. Divide by 255, and leave"),
        (torch.full((3, 4, 4), -0.1), r"from -0\.1 to -0\.1; expected values in \[0, 1\]\."),
        (torch.full((3, 4, 4), float("nan")), r"from nan to nan; expected values in \[0, 1\]\."),
        (torch.tensor([0.0, float("inf"), 0.5]).reshape(3, 1, 1), r"from 0 to inf; expected"),
    ],
)
def test_a_broken_image_is_refused(image: Tensor, message: str) -> None:
    with pytest.raises(DataError, match=f"^e7: `image` is {message}"):
        check_image(image, "e7")


def test_one_nan_among_good_pixels_is_found() -> None:
    image = torch.from_numpy(np.full((3, 4, 4), 0.5, dtype=np.float32))
    image[1, 2, 3] = float("nan")
    with pytest.raises(DataError, match=r"^e: `image` is from nan to nan"):
        check_image(image, "e")
