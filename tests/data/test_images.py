import hashlib
from pathlib import Path

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from PIL import Image
from torchvision import transforms

from robench.data.images import read_image, read_pixels, read_rgb
from robench.errors import DataError


def _picture(width: int, height: int, seed: int = 0) -> NDArray[np.uint8]:
    """Noise over broad waves, so that resizing has something to get wrong."""
    noise = np.random.default_rng(seed).integers(0, 64, (height, width, 3))
    waves = np.arange(height)[:, None, None] * 3 + np.arange(width)[None, :, None] * 5
    return (waves % 192 + noise).astype(np.uint8)


@pytest.mark.parametrize(
    "size", [(301, 227), (227, 301), (257, 256), (256, 256), (225, 333), (333, 225), (1001, 259), (50, 47)]
)
def test_the_view_is_torchvisions_pixel_for_pixel(tmp_path: Path, size: tuple[int, int]) -> None:
    path = tmp_path / "picture.png"
    Image.fromarray(_picture(*size)).save(path)
    reference = transforms.Compose(
        [
            transforms.Resize(256, transforms.InterpolationMode.BILINEAR),
            transforms.CenterCrop(224),
            transforms.PILToTensor(),
        ]
    )
    with Image.open(path) as file:
        expected = reference(file.convert("RGB"))
    found = read_image(path, resize=256, crop=224)
    assert found.dtype == torch.float32
    assert torch.equal((found * 255).round().to(torch.uint8), expected)
    assert torch.equal(found, expected.to(torch.float32) / 255)


def test_what_is_left_out_before_resizing_changes_no_byte(tmp_path: Path) -> None:
    chance = np.random.default_rng(0)
    for number in range(150):
        width, height = (int(side) for side in chance.integers(20, 700, 2))
        resize = int(chance.choice([64, 128, 232, 256]))  # all but one a power of two
        crop = int(chance.integers(1, resize + 1))
        path = tmp_path / f"{number}.bmp"
        Image.fromarray(_picture(width, height, number)).save(path)
        found = read_pixels(path, resize=resize, crop=crop)
        size = (resize * width // min(width, height), resize * height // min(width, height))
        with Image.open(path) as file:
            rows = file.convert("RGB").resize((size[0], height), Image.Resampling.BILINEAR)
        whole = np.asarray(rows.resize(size, Image.Resampling.BILINEAR)).transpose(2, 0, 1)
        top, left = round((size[1] - crop) / 2), round((size[0] - crop) / 2)
        assert np.array_equal(found, whole[:, top : top + crop, left : left + crop]), (width, height, resize, crop)


def test_a_tall_image_has_the_same_bytes_under_every_pillow(tmp_path: Path) -> None:
    # Digests of what Pillow 12 gives; Pillow 13 would round otherwise in one call.
    digests = {
        (300, 700): "656e3ba8d03dd7c38b863e773cb44cb95121d92e093c036ccfb48ce2d68d58d3",
        (300, 1200): "b87d187f56d4c96572062f7d7229ec780b01fb99486fedb189d4175dd5e641ca",
    }
    for size, digest in digests.items():
        Image.fromarray(_picture(*size)).save(tmp_path / "tall.png")
        assert hashlib.sha256(read_pixels(tmp_path / "tall.png", resize=256, crop=224).tobytes()).hexdigest() == digest


@pytest.mark.parametrize("suffix", ["jpg", "png", "bmp", "webp"])
def test_an_image_outlives_its_file(tmp_path: Path, suffix: str) -> None:
    path = tmp_path / f"image.{suffix}"
    Image.fromarray(_picture(40, 30)).save(path)
    image = read_rgb(path, path.name)
    with Image.open(path) as file:
        expected = np.asarray(file.convert("RGB"))
    path.unlink()
    assert np.array_equal(np.asarray(image.crop((0, 0, 40, 30))), expected)
    assert np.array_equal(np.asarray(image), expected)


@pytest.mark.parametrize("size", [(9, 8), (8, 8), (13, 11), (11, 14)])
def test_the_crop_without_resizing_is_torchvisions_too(tmp_path: Path, size: tuple[int, int]) -> None:
    path = tmp_path / "picture.png"
    Image.fromarray(_picture(*size)).save(path)
    with Image.open(path) as file:
        expected = transforms.Compose([transforms.CenterCrop(8), transforms.PILToTensor()])(file.convert("RGB"))
    assert torch.equal(read_image(path, resize=None, crop=8), expected.to(torch.float32) / 255)


def test_grey_images_have_three_equal_channels(tmp_path: Path) -> None:
    grey = _picture(10, 10)[:, :, 0]
    Image.fromarray(grey).save(tmp_path / "grey.png")
    image = read_image(tmp_path / "grey.png", resize=None, crop=10)
    assert torch.equal(image, torch.from_numpy(grey).to(torch.float32).expand(3, -1, -1) / 255)


def test_cmyk_images_become_rgb(tmp_path: Path) -> None:
    # ImageNet has such JPEGs. No ink is white, all inks but one leave one colour, black is black.
    inks = {
        (0, 0, 0, 0): (1, 1, 1),
        (0, 255, 255, 0): (1, 0, 0),
        (255, 255, 0, 0): (0, 0, 1),
        (0, 0, 0, 255): (0, 0, 0),
    }
    for number, (ink, colour) in enumerate(inks.items()):
        path = tmp_path / f"{number}.jpg"
        Image.new("CMYK", (16, 16), ink).save(path, quality=100)
        image = read_image(path, resize=None, crop=16)
        assert image.shape == (3, 16, 16)
        assert torch.allclose(image, torch.tensor(colour, dtype=torch.float32)[:, None, None], atol=0.02)


def test_palettes_and_transparency_become_rgb(tmp_path: Path) -> None:
    picture = Image.fromarray(_picture(12, 12))
    plain = torch.from_numpy(np.array(picture)).permute(2, 0, 1).to(torch.float32) / 255
    opaque = picture.copy()
    opaque.putalpha(Image.new("L", (12, 12), 7))
    opaque.save(tmp_path / "alpha.png")
    assert torch.equal(read_image(tmp_path / "alpha.png", resize=None, crop=12), plain)
    picture.quantize(256).save(tmp_path / "palette.png")
    assert (read_image(tmp_path / "palette.png", resize=None, crop=12) - plain).abs().mean() < 0.05


def test_sixteen_bits_are_refused_because_pillow_would_clip_them(tmp_path: Path) -> None:
    deep = (np.arange(100, dtype=np.uint16) * 600).reshape(10, 10)
    Image.fromarray(deep).save(tmp_path / "deep.png")
    message = r"deep\.png: `image` is of mode I(;16)?; expected 8 bits a channel\. Convert it to 8 bits first\.$"
    with pytest.raises(DataError, match=message):
        read_image(tmp_path / "deep.png", resize=None, crop=10)


def _broken(tmp_path: Path) -> dict[str, Path]:
    whole = tmp_path / "whole.png"
    Image.fromarray(_picture(40, 50)).save(whole)
    content = whole.read_bytes()
    broken = {
        "text.png": b"not an image",
        "empty.jpg": b"",
        "half.png": content[: len(content) // 2],
        "header.png": content[:20],
        "chunk.png": content.replace(b"IDAT", b"I\x7fAT"),
    }
    for name, damaged in broken.items():
        (tmp_path / name).write_bytes(damaged)
    return {name: tmp_path / name for name in broken}


def test_an_unreadable_file_is_named(tmp_path: Path) -> None:
    for name, path in _broken(tmp_path).items():
        message = rf"{name}: `image` is unreadable \(.+\); expected an image that Pillow decodes\.$"
        with pytest.raises(DataError, match=message):
            read_image(path, resize=None, crop=10)


def test_damage_anywhere_in_a_file_never_escapes_as_another_error(tmp_path: Path) -> None:
    chance = np.random.default_rng(0)
    outcomes = {"read": 0, "refused": 0}
    for suffix in ("png", "jpg", "bmp", "webp"):
        path = tmp_path / f"image.{suffix}"
        Image.fromarray(_picture(24, 30)).save(path)
        content = np.frombuffer(path.read_bytes(), dtype=np.uint8)
        for _ in range(100):
            damaged = content.copy()
            places = chance.integers(0, min(len(content), 120), 3)
            damaged[places] = chance.integers(0, 256, 3)
            path.write_bytes(damaged.tobytes())
            try:
                assert read_image(path, resize=None, crop=8).shape == (3, 8, 8)
                outcomes["read"] += 1
            except DataError:
                outcomes["refused"] += 1
    assert min(outcomes.values()) > 20


@pytest.mark.parametrize("size", [(223, 300), (300, 223), (1, 1)])
def test_too_small_an_image_is_refused(tmp_path: Path, size: tuple[int, int]) -> None:
    Image.fromarray(_picture(*size)).save(tmp_path / "small.png")
    message = rf"small\.png: `image` is {size[0]}x{size[1]} pixels; expected at least 224x224 pixels\.$"
    with pytest.raises(DataError, match=message):
        read_image(tmp_path / "small.png", resize=None, crop=224)


def test_what_a_message_says_is_the_same_on_every_machine(tmp_path: Path) -> None:
    _broken(tmp_path)
    expected = "no image that Pillow knows"
    for name, reason in (("text.png", expected), ("empty.jpg", expected), ("gone.png", "No such file or directory")):
        with pytest.raises(DataError) as raised:
            read_pixels(tmp_path / name, resize=None, crop=10, name=f"cat/{name}")
        message = f"cat/{name}: `image` is unreadable ({reason}); expected an image that Pillow decodes."
        assert str(raised.value) == message
    with pytest.raises(DataError) as raised:
        read_pixels(tmp_path / "half.png", resize=None, crop=10, name="cat/half.png")
    assert str(tmp_path) not in str(raised.value)
    assert "0x" not in str(raised.value)


def test_pixels_are_the_bytes_of_the_image(tmp_path: Path) -> None:
    picture = _picture(8, 8)
    Image.fromarray(picture).save(tmp_path / "a.png")
    pixels = read_pixels(tmp_path / "a.png", resize=None, crop=8)
    assert pixels.flags.c_contiguous
    assert np.array_equal(pixels, picture.transpose(2, 0, 1))
    image = read_image(tmp_path / "a.png", resize=None, crop=8)
    assert image.is_contiguous()
    assert np.array_equal(image.numpy(), pixels / np.float32(255))
