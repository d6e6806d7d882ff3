import colorsys
from typing import Any

import numpy as np
import pytest
import scipy.stats
import torch

from robench.data.corruptions import CATALOGUE, COMMON, EXTRA, Scale, corrupt
from robench.data.mini import attack_set, attack_set_ids
from robench.errors import DataError


def _mini(count: int) -> tuple[torch.Tensor, list[str]]:
    return torch.from_numpy(attack_set()[0][:count]), list(attack_set_ids()[:count])


def test_fifteen_are_scored_and_four_are_extra() -> None:
    """Names and groups of the paper, in the order of its code."""
    assert " ".join(COMMON) == (
        "gaussian_noise shot_noise impulse_noise defocus_blur glass_blur motion_blur zoom_blur snow frost fog "
        "brightness contrast elastic_transform pixelate jpeg_compression"
    )
    assert " ".join(EXTRA) == "speckle_noise gaussian_blur spatter saturate"
    families = [CATALOGUE[name].family for name in COMMON]
    assert families == ["noise"] * 3 + ["blur"] * 4 + ["weather"] * 4 + ["digital"] * 4
    assert all(len(each.imagenet) == len(each.tiny) == 5 for each in CATALOGUE.values())


@pytest.mark.parametrize("severity", [1, 5])
@pytest.mark.parametrize("name", CATALOGUE)
def test_bytes_depend_on_the_example_alone(name: str, severity: int) -> None:
    """Alone, in company, in another order, and with another number of threads."""
    images, ids = _mini(7)
    together = corrupt(images, ids, name, severity, scale="tiny")
    assert (together.shape, together.dtype) == (images.shape, torch.uint8)
    alone = [corrupt(images[at : at + 1], ids[at : at + 1], name, severity, scale="tiny") for at in range(7)]
    assert torch.equal(torch.cat(alone), together)
    order = [6, 2, 0, 5, 1, 3, 4]
    mixed = corrupt(images[order], [ids[at] for at in order], name, severity, scale="tiny")
    assert torch.equal(mixed, together[order])
    threads = torch.get_num_threads()
    try:
        torch.set_num_threads(3 - min(threads, 2))
        assert torch.equal(corrupt(images, ids, name, severity, scale="tiny"), together)
    finally:
        torch.set_num_threads(threads)


RANDOM = set(CATALOGUE) - {
    "defocus_blur",
    "zoom_blur",
    "brightness",
    "contrast",
    "pixelate",
    "jpeg_compression",
    "gaussian_blur",
    "saturate",
}


@pytest.mark.parametrize("name", CATALOGUE)
def test_another_seed_and_another_name_draw_other_numbers(name: str) -> None:
    images, ids = _mini(2)
    images = images[:1].expand(2, -1, -1, -1)
    one, other = corrupt(images, ids, name, 3, scale="tiny")
    again = corrupt(images, ids, name, 3, scale="tiny", seed=1)[0]
    assert torch.equal(one, other) is (name not in RANDOM)
    assert torch.equal(one, again) is (name not in RANDOM)


@pytest.mark.parametrize("name", CATALOGUE)
def test_nothing_of_the_callers_is_changed(name: str) -> None:
    images, ids = _mini(3)
    before, state, numpy_state = images.clone(), torch.random.get_rng_state(), str(np.random.get_state())
    corrupt(images, ids, name, 4, scale="tiny")
    assert torch.equal(images, before)
    assert torch.equal(torch.random.get_rng_state(), state)
    assert str(np.random.get_state()) == numpy_state


@pytest.mark.parametrize("shape", [(224, 224), (96, 128), (33, 40)])
@pytest.mark.parametrize("name", CATALOGUE)
def test_any_size_from_32_pixels_will_do(name: str, shape: tuple[int, int]) -> None:
    levels = torch.arange(3 * shape[0] * shape[1]).reshape(1, 3, *shape) % 251
    found = corrupt(levels.to(torch.uint8), ["ramp"], name, 5)
    assert found.shape == (1, 3, *shape)
    assert not torch.equal(found, levels.to(torch.uint8))


@pytest.mark.parametrize("level", [0, 255])
@pytest.mark.parametrize("scale", ["imagenet", "tiny"])
@pytest.mark.parametrize("name", CATALOGUE)
def test_black_and_white_images_do_no_harm(name: str, scale: Any, level: int) -> None:
    images = torch.full((1, 3, 64, 64), level, dtype=torch.uint8)
    for severity in (1, 5):
        assert corrupt(images, ["flat"], name, severity, scale=scale).shape == images.shape


BLURS = ["glass_blur", "motion_blur", "zoom_blur", "gaussian_blur", "contrast", "pixelate"]


@pytest.mark.parametrize("name", [*BLURS, "elastic_transform"])
def test_a_flat_image_stays_as_it_is_under_what_only_moves_light(name: str) -> None:
    scales: tuple[Scale, ...] = ("imagenet", "tiny")
    for scale in scales:
        for severity in (1, 3, 5):
            images = torch.tensor([13, 128, 200], dtype=torch.uint8)[:, None, None].expand(1, 3, 64, 64)
            found = corrupt(images, ["flat"], name, severity, scale=scale)
            assert torch.equal(found, images)


@pytest.mark.parametrize("severity", [1, 2, 3, 4, 5])
@pytest.mark.parametrize("name", ["brightness", "saturate"])
def test_closed_forms_are_what_hsv_gives(name: str, severity: int) -> None:
    """Pixel by pixel through the standard library's HSV."""
    generator = torch.Generator().manual_seed(0)
    images = torch.randint(0, 256, (1, 3, 32, 32), generator=generator, dtype=torch.uint8)
    images[:, :, 0] = torch.tensor([0, 128, 255, 1] * 8, dtype=torch.uint8)  # greys
    found = corrupt(images, ["random"], name, severity)[0].permute(1, 2, 0).reshape(-1, 3).tolist()
    first, *second = CATALOGUE[name].imagenet[severity - 1]
    for pixel, ours in zip(images[0].permute(1, 2, 0).reshape(-1, 3).tolist(), found, strict=True):
        hue, saturation, value = colorsys.rgb_to_hsv(*(level / 255 for level in pixel))
        if name == "brightness":
            value = min(value + first, 1)
        else:
            saturation = min(max(saturation * first + second[0], 0), 1)
        wanted = [int(255 * level + 1e-6) for level in colorsys.hsv_to_rgb(hue, saturation, value)]
        assert wanted == ours


def test_photons_follow_poisson() -> None:
    """Chi-squared of 100,000 counts at one grey level, on both scales."""
    for scale, photons in (("imagenet", 12), ("tiny", 50)):
        images = torch.full((8, 3, 64, 64), 100, dtype=torch.uint8)
        found = corrupt(images, [f"{number}" for number in range(8)], "shot_noise", 3, scale=scale)  # type: ignore[arg-type]
        expected = photons * 100 / 255
        levels = np.minimum((np.arange(200) * 255 / photons + 1e-6).astype(int), 255)
        probability = np.bincount(levels, scipy.stats.poisson.pmf(np.arange(200), expected), minlength=256)
        counts = np.bincount(found.flatten().numpy(), minlength=256)
        assert counts[probability == 0].sum() == 0
        likely = probability * counts.sum() >= 5
        rest = probability[likely].sum()
        statistic = scipy.stats.chisquare(counts[likely], probability[likely] / rest * counts[likely].sum())
        assert statistic.pvalue > 1e-3


def test_noise_has_the_published_spread() -> None:
    images = torch.full((4, 3, 64, 64), 128, dtype=torch.uint8)
    ids = [f"{number}" for number in range(4)]
    for severity, spread in ((1, 0.08), (2, 0.12)):
        found = corrupt(images, ids, "gaussian_noise", severity).double()
        assert abs(float(found.std()) / 255 - spread) < 0.002
        assert abs(float(found.mean()) - 127.5) < 0.5  # cut off, not rounded
    for severity, share in ((1, 0.03), (5, 0.27)):
        found = corrupt(images, ids, "impulse_noise", severity)
        assert abs(float((found == 255).double().mean()) - share / 2) < 0.005
        assert abs(float((found == 0).double().mean()) - share / 2) < 0.005


IMAGES = torch.zeros(2, 3, 64, 64, dtype=torch.uint8)
REFUSED: dict[str, tuple[dict[str, Any], str]] = {
    "unknown": (
        {"name": "gausian_noise"},
        r"^corrupt: `corruption` is `gausian_noise`; expected the name of a corruption\. Did you mean `gaussian_noise`",
    ),
    "severity 0": ({"severity": 0}, r"^corrupt: `severity` is 0; expected a whole number from 1 to 5\.$"),
    "severity 6": ({"severity": 6}, r"^corrupt: `severity` is 6; expected a whole number from 1 to 5\.$"),
    "severity True": ({"severity": True}, r"^corrupt: `severity` is True; expected a whole number from 1 to 5\.$"),
    "scale": ({"scale": "huge"}, r"^corrupt: `scale` is `huge`; expected `imagenet` or `tiny`\.$"),
    "ice": ({"ice": "cream"}, r"^corrupt: `ice` is `cream`; expected `published` or `procedural`\.$"),
    "floats": (
        {"images": IMAGES.float()},
        r"^corrupt: `images` is torch\.float32 of shape \(2, 3, 64, 64\); expected torch\.uint8 of shape",
    ),
    "grey": ({"images": IMAGES[:, :1]}, r"of shape \(2, 1, 64, 64\); expected torch\.uint8 of shape \(N, 3, H, W\)\.$"),
    "array": ({"images": IMAGES.numpy()}, r"^corrupt: `images` is ndarray; expected torch\.uint8 of shape"),
    "small": ({"images": IMAGES[..., :31]}, r"^corrupt: `images` is 31x64 pixels; expected at least 32 pixels a side"),
    "ids": ({"ids": ["one"]}, r"^corrupt: `ids` is 1 names; expected one for each of 2 images\.$"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_what_makes_no_sense_is_refused(case: str) -> None:
    changes, message = REFUSED[case]
    arguments = {"images": IMAGES, "ids": ["a", "b"], "name": "fog", "severity": 3, **changes}
    with pytest.raises(DataError, match=message):
        corrupt(**arguments)


def test_no_images_are_no_images() -> None:
    assert corrupt(IMAGES[:0], [], "fog", 3).shape == (0, 3, 64, 64)
