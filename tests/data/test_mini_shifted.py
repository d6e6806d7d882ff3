"""The attack set of the mini suite in cells of corruptions, and in other textures."""

import numpy as np
import pytest
import torch
from torch import Tensor

from robench.data import ArraySource, Views, open_source
from robench.data.corruptions import corrupt
from robench.data.mini import attack_set, attack_set_ids
from robench.data.mini.generator import paint, worn_textures
from robench.data.mini.stylized import MiniStylized, stylized_set
from robench.data.mini.textures import TEXTURES
from robench.data.source import ids_digest
from robench.evaluation import evaluate
from robench.randomness import Draws
from robench.registry import load_protocol
from tests.shifted_trees import shift_of

CELLS = shift_of("mini-c").cells


def _source() -> Views:
    data = load_protocol("mini-c").data
    source = open_source("mini-c", None, resize=data.resize, crop=data.crop, cells=CELLS)
    assert isinstance(source, Views)
    return source


def test_views_are_the_corrupted_attack_set() -> None:
    source = _source()
    assert ids_digest(source.ids) == load_protocol("mini-c").data.ids_sha256
    assert list(source.view_names) == ["clean", *(f"{name}/{severity}" for name, severity in CELLS)]
    positions = [3, 0]
    views = [view for view in source.views(positions) if isinstance(view, Tensor)]
    assert len(views) == 2 * 76
    images, _ = attack_set()
    by_id = dict(zip(attack_set_ids(), torch.from_numpy(images), strict=True))
    for at, position in enumerate(positions):
        example = source.ids[position]
        clean = by_id[example][None]
        assert torch.equal(views[76 * at], clean[0])
        for view, (name, severity) in zip(views[76 * at + 1 : 76 * at + 76], CELLS, strict=True):
            expected = corrupt(clean, [example], name, severity, seed=0, scale="tiny", ice="procedural")
            assert torch.equal(view, expected[0])


def test_views_do_not_depend_on_what_is_read_with_them() -> None:
    alone = [view for view in _source().views([5]) if isinstance(view, Tensor)]
    together = [view for view in _source().views(range(18)) if isinstance(view, Tensor)][5 * 76 : 6 * 76]
    assert all(map(torch.equal, alone, together))


def test_a_run_sees_clean_and_corrupted_images_at_once(tmp_path_factory: pytest.TempPathFactory) -> None:
    folder = tmp_path_factory.mktemp("runs")
    result = evaluate("mini-deit", "mini-c", limit=6, run_dir=folder / "c")
    clean = evaluate("mini-deit", "mini-pgd-linf", limit=6, run_dir=folder / "clean")
    assert result.clean.numerator == clean.clean.numerator
    assert [outcome.clean for outcome in result.read_outcomes()] == [each.clean for each in clean.read_outcomes()]
    assert (result.headline.name, result.headline.denominator) == ("top1@cells", 6 * 75)
    assert [each.name for each in result.derived] == ["mean error"]
    assert len(result.read_outcomes()[0].cells or "") == 19


def test_shapes_keep_their_place_and_wear_another_texture() -> None:
    images, textures = stylized_set()
    labels = [at % 10 for at in range(512)]
    draws = Draws.of(0, attack_set_ids())
    usual = worn_textures(draws, labels)
    assert all(worn != label for worn, label in zip(textures, labels, strict=True))
    assert set(textures) == set(range(len(TEXTURES)))
    assert sum(worn == label for worn, label in zip(usual, labels, strict=True)) > 0.65 * 512
    original, _ = attack_set()
    changed = (images != original).any(axis=1).mean(axis=(1, 2))
    same = np.array(textures) == np.array(usual)
    assert (changed[same] == 0).all()
    assert (changed[~same] < 0.6).all()  # the ground, bystanders and light are as they were
    assert (changed[~same] > 0.02).all()
    again = paint(Draws.of(0, attack_set_ids()[:4]), labels[:4], swap_texture=True)
    assert np.array_equal(again, images[:4])


def test_textures_go_with_their_images() -> None:
    source = MiniStylized()
    assert isinstance(source, ArraySource)
    _, textures = stylized_set()
    for example, texture in zip(source.ids, source.textures, strict=True):
        assert texture == textures[int(example.removeprefix("mini-attack-"))]
