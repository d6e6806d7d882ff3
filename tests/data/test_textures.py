import json
import os
import pickle
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from robench.data import location_of, textures_of
from robench.data.locations import cached
from robench.data.textures import (
    TextureDictionary,
    mini_textures,
    read_folder,
    read_published,
    read_textures,
    write_textures,
)
from robench.errors import DataError
from robench.registry import load_protocol
from tests.fakes import noise_textures

PUBLISHED = os.environ.get("ROBENCH_TPA_TEXTURES")
PUBLISHED_SHA256 = "c644f4c6ac288e73c8a3cb3e2f82c208af212db8455d55b41ff1e35c512a05b0"
MINI_SHA256 = "1b184580ffb1c4ef9a44dc04ca9943fcf9b601db61e8812a80c8cd4c5e899476"


# --- our own format


def test_what_is_written_is_read_back(tmp_path: Path) -> None:
    dictionary = noise_textures()
    write_textures(dictionary, tmp_path / "a")
    again = read_textures(tmp_path / "a")
    assert torch.equal(again.textures, dictionary.textures)
    assert (again.classes, again.about, again.sha256) == (dictionary.classes, dictionary.about, dictionary.sha256)
    write_textures(again, tmp_path / "b")
    for name in ("manifest.json", "textures.safetensors"):
        assert (tmp_path / "a" / name).read_bytes() == (tmp_path / "b" / name).read_bytes()


def test_whole_numbers_of_255ths_take_a_byte_each_and_lose_nothing(tmp_path: Path) -> None:
    levels = torch.arange(256, dtype=torch.uint8).repeat(3).reshape(1, 1, 3, 16, 16)
    coarse = TextureDictionary((4,), levels.float() / 255)
    fine = TextureDictionary((4,), (levels.float() + 0.25).clamp(max=255) / 255)
    for name, dictionary, kind in (("coarse", coarse, torch.uint8), ("fine", fine, torch.float32)):
        write_textures(dictionary, tmp_path / name)
        assert load_file(tmp_path / name / "textures.safetensors")["textures"].dtype == kind
        again = read_textures(tmp_path / name)
        assert torch.equal(again.textures, dictionary.textures)
        assert (again.textures.dtype, again.sha256) == (torch.float32, dictionary.sha256)


def test_the_digest_sees_classes_values_and_their_order() -> None:
    base = noise_textures()
    brighter = base.textures.clone()
    brighter[0, 0, 0, 0, 0] = 0.5
    others = [
        TextureDictionary(base.classes, brighter),
        TextureDictionary((5, 1, 2, 3), base.textures),
        TextureDictionary(base.classes, base.textures.flip(0)),
        TextureDictionary(base.classes, base.textures[:, :1]),
    ]
    assert len({base.sha256, *(other.sha256 for other in others)}) == 5
    assert TextureDictionary(base.classes, base.textures, about="Others.", name="x").sha256 == base.sha256


def _spoil(folder: Path, **changes: Any) -> None:
    path = folder / "manifest.json"
    manifest = {**json.loads(path.read_text()), **changes}
    path.write_text(json.dumps({key: value for key, value in manifest.items() if value is not None}))


def _replace(folder: Path, **tensors: Tensor) -> None:
    save_file({name: values.contiguous() for name, values in tensors.items()}, folder / "textures.safetensors")


VALUES = noise_textures().textures
SPOILS: list[tuple[Any, str]] = [
    (
        lambda folder: (folder / "manifest.json").unlink(),
        "/manifest.json: `file` is unreadable (.+); expected a manifest",
    ),
    (lambda folder: (folder / "manifest.json").write_text("{"), "/manifest.json: `file` is unreadable (.+); expected"),
    (
        lambda folder: (folder / "manifest.json").write_text("[]"),
        "/manifest.json: `keys` is list; expected schema, about",
    ),
    (lambda folder: _spoil(folder, about=None), "/manifest.json: `keys` is classes, schema, sha256, shape; expected"),
    (lambda folder: _spoil(folder, about=3), "/manifest.json: `about` is 3; expected a value of type str."),
    (lambda folder: _spoil(folder, schema="x/2"), "/manifest.json: `schema` is 'x/2'; expected 'robench.textures/1'."),
    (lambda folder: _spoil(folder, classes=[0, 1, 2, "3"]), "/manifest.json: `classes` is .+; expected whole numbers."),
    (lambda folder: _spoil(folder, shape=[1]), r"/manifest.json: `shape` is \[1\]; expected \[4, 2, 3, 8, 8\], as in"),
    (
        lambda folder: _spoil(folder, sha256="ab"),
        ": `sha256` is .+; expected ab, as manifest.json says. The textures were",
    ),
    (
        lambda folder: _spoil(folder, classes=[0, 1, 2]),
        r": `classes` is \[0, 1, 2\] for 4 groups of textures; expected",
    ),
    (lambda folder: _spoil(folder, classes=[0, 1, 2, 2]), r": `classes` is \[0, 1, 2, 2\] for 4 groups of textures;"),
    (lambda folder: _spoil(folder, classes=[0, 1, 2, -3]), r": `classes` is .+; expected class numbers of at least 0."),
    (
        lambda folder: (folder / "textures.safetensors").write_bytes(b"no"),
        "/textures.safetensors: `file` is unreadable",
    ),
    (lambda folder: (folder / "textures.safetensors").unlink(), "/textures.safetensors: `file` is unreadable"),
    (lambda folder: _replace(folder, x=VALUES), "/textures.safetensors: `tensors` is x; expected `textures` alone."),
    (lambda folder: _replace(folder, textures=VALUES[:, :0]), r": `textures` is of shape \(4, 0, 3, 8, 8\); expected"),
    (
        lambda folder: _replace(folder, textures=VALUES[:, :, :2]),
        r": `textures` is of shape \(4, 2, 2, 8, 8\); expected",
    ),
    (
        lambda folder: _replace(folder, textures=VALUES[..., :5]),
        r": `textures` is of shape \(4, 2, 3, 8, 5\); expected",
    ),
    (
        lambda folder: _replace(folder, textures=VALUES[0]),
        r": `textures` is of shape \(2, 3, 8, 8\); expected \(classes",
    ),
    (
        lambda folder: _replace(folder, textures=VALUES.double()),
        ": `textures` is of type torch.float64; expected torch",
    ),
    (
        lambda folder: _replace(folder, textures=VALUES - 0.5),
        r": `textures` is from -0.5 to 0.5; expected values in \[",
    ),
    (lambda folder: _replace(folder, textures=VALUES / 0), ": `textures` is from nan to nan; expected values in"),
    (lambda folder: _replace(folder, textures=VALUES / 2), ": `sha256` is .+; expected .+, as manifest.json says."),
]


@pytest.mark.parametrize(("spoil", "message"), SPOILS)
def test_a_dictionary_that_is_not_as_it_was_written_is_refused(tmp_path: Path, spoil: Any, message: str) -> None:
    write_textures(noise_textures(), tmp_path)
    spoil(tmp_path)
    with pytest.raises(DataError, match=f"^{tmp_path}{message}"):
        read_textures(tmp_path)


# --- by name


def test_a_protocol_gets_the_dictionary_it_names_or_none(tmp_path: Path) -> None:
    write_textures(noise_textures(), tmp_path)
    assert torch.equal(textures_of(str(tmp_path), noise_textures().sha256).textures, VALUES)
    with pytest.raises(DataError) as other:
        textures_of(str(tmp_path), MINI_SHA256)
    assert str(other.value) == (
        f"{tmp_path}: `sha256` is {noise_textures().sha256}; expected {MINI_SHA256}, as the protocol says. "
        "The textures were changed, or are others."
    )
    with pytest.raises(
        DataError, match=r"^robench: `textures` is nowhere; expected `tpa-textures`\. Fetch them with "
    ) as caught:
        textures_of("tpa-textures", PUBLISHED_SHA256)
    for way in ("`robench data fetch tpa-textures`", "`--textures DIR`", "ROBENCH_TPA_TEXTURES", "config.toml"):
        assert way in str(caught.value)


def test_the_published_textures_are_found_like_data(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    _publish(tmp_path)
    monkeypatch.setenv("ROBENCH_TPA_TEXTURES", str(tmp_path))
    location = location_of("tpa-textures")
    assert location is not None
    assert (location.path, location.origin) == (tmp_path, "ROBENCH_TPA_TEXTURES")
    expected = read_published(tmp_path)
    assert torch.equal(textures_of("tpa-textures", expected.sha256).textures, expected.textures)


# --- the mini suite's


def test_the_textures_of_the_mini_suite_are_those_of_its_protocols() -> None:
    dictionary = mini_textures()
    assert dictionary.classes == tuple(range(10))
    assert dictionary.textures.shape[2:] == (3, 64, 64)
    assert dictionary.sha256 == MINI_SHA256
    for name in ("mini-tpa", "mini-tpa-random"):
        attack = load_protocol(name).attack
        assert attack is not None
        assert (attack.settings["textures"], attack.settings["textures_sha256"]) == ("mini", MINI_SHA256)


# --- the published format

MEAN, STD = (np.array(values).reshape(3, 1, 1) for values in ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)))


def _path(folder: Path, label: int, cluster: int) -> Path:
    settings = folder / f"attention-style_t-label_{label}" / "conv_5_cam-thred_0.8_n-clusters_30" / "cls-w_0_scale_1"
    return settings / f"cluster_{cluster}" / "iter_9999.pt"


def _publish(folder: Path, classes: tuple[int, ...] = (45, 7), count: int = 12) -> dict[tuple[int, int], Any]:
    """A folder of the published form; returns the pixels of every texture."""
    pixels = {}
    for label in classes:
        for cluster in range(count):
            image = np.random.default_rng(100 * label + cluster).random((3, 6, 6))
            path = _path(folder, label, cluster)
            path.parent.mkdir(parents=True)
            torch.save(torch.from_numpy((image - MEAN) / STD).float(), path)
            pixels[label, cluster] = image
    return pixels


def test_the_published_form_is_read_without_its_normalisation(tmp_path: Path) -> None:
    pixels = _publish(tmp_path)
    (tmp_path / "LICENSE").write_text("MIT")
    dictionary = read_published(tmp_path)
    assert dictionary.classes == (7, 45)
    assert tuple(dictionary.textures.shape) == (2, 12, 3, 6, 6)
    for (label, cluster), image in pixels.items():  # cluster 10 comes after 9, not after 1
        found = dictionary.textures[(7, 45).index(label), cluster].numpy()
        assert float(np.abs(found - image).max()) < 1e-6


def test_a_folder_is_read_in_whichever_form_it_has(tmp_path: Path) -> None:
    _publish(tmp_path / "theirs", count=2)
    write_textures(noise_textures(), tmp_path / "ours")
    assert read_folder(tmp_path / "theirs").sha256 == read_published(tmp_path / "theirs").sha256
    assert read_folder(tmp_path / "ours").sha256 == noise_textures().sha256
    with pytest.raises(DataError, match=r"/nowhere/manifest\.json: `file` is unreadable"):
        read_folder(tmp_path / "nowhere")


def test_what_was_fetched_is_found_last(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    assert location_of("tpa-textures") is None
    _publish(cached("tpa-textures"), count=2)
    found = location_of("tpa-textures")
    assert found is not None
    assert (found.path, found.origin) == (tmp_path / "cache" / "robench" / "tpa-textures", "`robench data fetch`")
    monkeypatch.setenv("ROBENCH_TPA_TEXTURES", str(tmp_path))
    named = location_of("tpa-textures")
    assert named is not None
    assert named.path == tmp_path


class _Evil:
    """Runs code when it is unpickled."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> Any:
        return (Path.touch, (self.path,))


def _repickled(path: Path, content: object) -> None:
    with path.open("wb") as file:
        pickle.dump(content, file, protocol=2)  # the one that torch reads without a warning


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (
            lambda path: path.write_bytes(b"no pickle"),
            "file` is unreadable (.+); expected a plain tensor; nothing else is",
        ),
        (lambda path: path.write_bytes(b""), "file` is unreadable (.+); expected a plain tensor; nothing else is read"),
        (
            lambda path: torch.save({"x": torch.zeros(3, 6, 6)}, path),
            "texture` is dict; expected torch.float32 of shape",
        ),
        (
            lambda path: torch.save(torch.zeros(6, 6), path),
            r"texture` is torch.float32 of shape \(6, 6\); expected torch",
        ),
        (lambda path: torch.save(torch.zeros(3, 6, 6).double(), path), "texture` is torch.float64 of shape"),
        (lambda path: torch.save(torch.full((3, 6, 6), 3.0), path), "texture` is from 1.08 to 1.17 once ImageNet's"),
        (lambda path: torch.save(torch.full((3, 6, 6), torch.nan), path), "texture` is from nan to nan once"),
    ],
)
def test_a_published_file_that_is_no_texture_is_refused(tmp_path: Path, spoil: Any, message: str) -> None:
    _publish(tmp_path, count=2)
    path = _path(tmp_path, 45, 1)
    spoil(path)
    with pytest.raises(DataError, match=f"^{path}: `{message}"):
        read_published(tmp_path)


@pytest.mark.parametrize("write", [torch.save, lambda content, path: _repickled(path, content)])
def test_a_pickle_that_is_no_plain_tensor_is_refused_and_never_run(tmp_path: Path, write: Any) -> None:
    _publish(tmp_path, count=2)
    path, ran = _path(tmp_path, 45, 1), tmp_path / "ran"
    write(_Evil(ran), path)
    with pytest.raises(
        DataError, match=rf"^{path}: `file` is unreadable \(.+\); expected a plain tensor; nothing else"
    ):
        read_published(tmp_path)
    assert not ran.exists()


def test_classes_without_textures_or_with_fewer_are_refused(tmp_path: Path) -> None:
    with pytest.raises(
        DataError, match=rf"^{tmp_path}: `textures` is none; expected `attention-style_t-label_<class>`"
    ):
        read_published(tmp_path)
    _publish(tmp_path, count=3)
    second = _path(tmp_path, 7, 0).with_name("iter_3000.pt")
    shutil.copy(_path(tmp_path, 7, 0), second)
    with pytest.raises(DataError, match=r"a second texture for cluster 0 of class 7; expected one. Keep the last"):
        read_published(tmp_path)
    second.unlink()
    _path(tmp_path, 7, 2).unlink()
    with pytest.raises(
        DataError, match=rf"^{tmp_path}: `textures` is {{7: 2, 45: 3}} by class; expected as many for every"
    ):
        read_published(tmp_path)
    _path(tmp_path, 45, 2).unlink()
    torch.save(torch.zeros(3, 5, 5), _path(tmp_path, 45, 1))
    with pytest.raises(DataError, match=r"`textures` is of shapes \[\(3, 5, 5\), \(3, 6, 6\)\]; expected one shape\."):
        read_published(tmp_path)
    _path(tmp_path, 45, 1).parent.rename(_path(tmp_path, 45, 1).parent.with_name("cluster_one"))
    with pytest.raises(DataError, match=r"iter_9999\.pt: `path` is of another form; expected a class and a cluster"):
        read_published(tmp_path)


@pytest.mark.skipif(PUBLISHED is None, reason="ROBENCH_TPA_TEXTURES does not name the published textures")
def test_the_published_textures_are_those_of_the_protocol() -> None:
    assert PUBLISHED is not None
    dictionary = read_published(Path(PUBLISHED))
    assert dictionary.classes == (45, 723)
    assert tuple(dictionary.textures.shape) == (2, 30, 3, 224, 224)
    assert dictionary.sha256 == PUBLISHED_SHA256
