import ast
import hashlib
import inspect
import itertools
import math
import random
from types import ModuleType
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from robench.data import mini
from robench.data.mini import generator, shapes, textures
from robench.data.mini.generator import paint
from robench.errors import DataError
from robench.randomness import Draws

Pixels = NDArray[np.uint8]
Mask = NDArray[np.bool_]


def _sha256(array: NDArray[Any]) -> str:
    return hashlib.sha256(array.tobytes()).hexdigest()


def _draws(count: int, seed: int = 0) -> Draws:
    return Draws.of(seed, [f"test-{index}" for index in range(count)])


def _mask(name: str) -> Mask:
    """One shape on every whole coordinate from -1024 to 1023."""
    axis = np.arange(-1024, 1024, dtype=np.int64)
    return shapes.SHAPES[name](*np.broadcast_arrays(axis[None, :], axis[:, None]))


def test_the_shipped_attack_set_is_what_the_generator_paints() -> None:
    shipped, labels = mini.attack_set()
    painted, painted_labels = mini.make_attack_set()
    assert shipped.dtype == painted.dtype == np.uint8
    assert shipped.shape == (512, 3, 64, 64)
    assert shipped.tobytes() == painted.tobytes()
    assert labels.tolist() == painted_labels.tolist()


def test_the_sets_are_pinned() -> None:
    # Recorded when the suite's difficulty was settled; models and fingerprints rest on these bytes.
    assert _sha256(mini.attack_set()[0]) == mini.ATTACK_SET_SHA256
    assert (
        _sha256(mini.training_set(50, seed=0)[0]) == "02f2603caf2cbe43090fc1c267f55595405abe6d0c33bfff5c38e67b71478cc1"
    )
    assert _sha256(mini.validation_set(50)[0]) == "5eaaaa1f04e9ade20d7ae1d4e1f230575d7bade29e3250954ee3d2159d21f0d8"
    assert _sha256(mini.pinned_images()) == "4785c5967e656162cf7fd027f13a061c2149ab3ffd461b2570e0f9bde60cda42"


def test_a_changed_sheet_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(mini, "ATTACK_SET_SHA256", "0" * 64)
    message = r"^attack_set\.webp: `sha256` is [0-9a-f]{64}; expected 0{64}\. Install robench again\.$"
    with pytest.raises(DataError, match=message):
        mini.attack_set()


def test_the_sheet_holds_the_images_row_by_row() -> None:
    images = mini.attack_set()[0][:64]
    sheet = np.asarray(mini.sheet(images))
    assert sheet.shape == (128, 32 * 64, 3)
    assert np.array_equal(sheet[64:, 64:128], images[33].transpose(1, 2, 0))


def test_sets_of_different_names_or_seeds_share_no_image() -> None:
    sets = [
        mini.attack_set()[0],
        mini.training_set(300, seed=0)[0],
        mini.training_set(300, seed=1)[0],
        mini.validation_set(300)[0],
        mini.pinned_images(),
    ]
    digests = [_sha256(image) for images in sets for image in images]
    assert len(set(digests)) == len(digests) == 512 + 3 * 300 + 64


def test_a_longer_training_set_begins_with_the_shorter() -> None:
    short, long = mini.training_set(37, seed=3), mini.training_set(120, seed=3)
    assert np.array_equal(long[0][:37], short[0])
    assert long[1][:37].tolist() == short[1].tolist()


@pytest.mark.parametrize("count", [0, -1])
def test_an_empty_set_is_refused(count: int) -> None:
    with pytest.raises(DataError, match=rf"^robench\.data\.mini: `n` is {count}; expected at least 1\.$"):
        mini.training_set(count, seed=0)


def test_labels_are_balanced() -> None:
    for labels in (mini.attack_set()[1], mini.training_set(995, seed=0)[1], mini.validation_set(200)[1]):
        counts = np.bincount(labels, minlength=10)
        assert len(counts) == mini.CLASSES == len(mini.CLASS_NAMES) == 10
        assert counts.max() - counts.min() <= 1
        assert labels.dtype == np.int64


def test_an_image_depends_on_its_own_draws_alone() -> None:
    draws = _draws(6)
    together = paint(draws, [0, 3, 9, 5, 5, 7])
    alone = paint(Draws(draws.keys[4:5]), [5])
    assert np.array_equal(together[4], alone[0])
    assert not np.array_equal(together[3], together[4])


def test_painting_nothing_gives_an_empty_batch() -> None:
    assert paint(_draws(0), [], 32).shape == (0, 3, 32, 32)


@pytest.mark.parametrize("size", [32, 33, 224])
def test_the_size_changes_the_resolution_and_not_the_picture(size: int) -> None:
    draws, labels = _draws(5), [0, 1, 2, 3, 4]
    images = paint(draws, labels, size)
    assert images.dtype == np.uint8
    assert images.shape == (5, 3, size, size)
    large = paint(draws, labels, 3 * size).astype(np.int64).reshape(5, 3, size, 3, size, 3).mean(axis=(3, 5))
    assert np.abs(large - images).mean() < 8  # grain is -7 to 8, and textures are sampled, not averaged
    assert np.abs(large[::-1] - images).mean() > 20  # other pictures are far away


def test_pinned_images_come_in_any_size() -> None:
    assert mini.pinned_images(224, count=3).shape == (3, 3, 224, 224)
    assert np.array_equal(mini.pinned_images(count=3), mini.pinned_images()[:3])


def test_whoever_writes_on_pinned_images_writes_on_a_copy() -> None:
    images = mini.pinned_images(32)
    before = images.copy()
    images[:] = 0
    assert np.array_equal(mini.pinned_images(32), before)


@pytest.fixture
def painted(monkeypatch: pytest.MonkeyPatch) -> list[tuple[str, Any]]:
    """What the generator painted: each texture by number, each coverage as an array, in order."""
    calls: list[tuple[str, Any]] = []
    texture, coverage = generator._texture, generator._coverage

    def watched_texture(kind: int, *arguments: Any) -> Any:
        calls.append(("texture", kind))
        return texture(kind, *arguments)

    def watched_coverage(*arguments: Any, **options: Any) -> Any:
        cells = coverage(*arguments, **options)
        calls.append(("coverage", cells))
        return cells

    monkeypatch.setattr(generator, "_texture", watched_texture)
    monkeypatch.setattr(generator, "_coverage", watched_coverage)
    return calls


def _worn(calls: list[tuple[str, Any]]) -> list[int]:
    """Textures of the figures: an image wears four, of ground, bystander, figure, bystander."""
    return [kind for what, kind in calls if what == "texture"][2::4]


def test_texture_agrees_with_shape_in_seventy_per_cent_and_by_chance(painted: list[tuple[str, Any]]) -> None:
    count = 3000
    labels = [index % 10 for index in range(count)]
    paint(_draws(count), labels, 8)
    worn = _worn(painted)
    assert len(worn) == count
    agreeing = sum(kind == label for kind, label in zip(worn, labels, strict=True)) / count
    # 0.7 + 0.3 / 10; three standard errors are 0.024
    assert agreeing == pytest.approx(0.73, abs=0.025)
    others = np.bincount([(kind - label) % 10 for kind, label in zip(worn, labels, strict=True)], minlength=10)[1:]
    assert others.min() > 0.6 * others.mean()  # the rest is spread over all nine


def test_swapped_texture_never_agrees_and_changes_the_figure_alone(painted: list[tuple[str, Any]]) -> None:
    draws, labels = _draws(200), [index % 10 for index in range(200)]
    swapped = paint(draws, labels, 32, swap_texture=True)
    assert all(kind != label for kind, label in zip(_worn(painted), labels, strict=True))
    assert len(set(_worn(painted))) == 10
    figures = [cells for what, cells in painted if what == "coverage"][1::3]
    outside = np.stack(figures)[:, None] == 0
    plain = paint(draws, labels, 32)
    assert np.array_equal(np.where(outside, plain, 0), np.where(outside, swapped, 0))
    assert any(not np.array_equal(a, b) for a, b in zip(plain, swapped, strict=True))


def test_the_figure_is_large_and_inside(painted: list[tuple[str, Any]]) -> None:
    paint(_draws(300), [index % 10 for index in range(300)], 64)
    for cells in [cells for what, cells in painted if what == "coverage"][1::3]:
        assert 0.04 < cells.mean() / 4 < 0.5
        edge = np.concatenate([cells[0], cells[-1], cells[:, 0], cells[:, -1]])
        assert not edge.any()


def _lens(first: float, second: float, apart: float) -> float:
    """Area that two disks share, from their radii and the distance of their centres."""
    one = (apart**2 + first**2 - second**2) / (2 * apart)
    two = apart - one
    return (
        first**2 * math.acos(one / first)
        - one * math.sqrt(first**2 - one**2)
        + second**2 * math.acos(two / second)
        - two * math.sqrt(second**2 - two**2)
    )


AREAS = {
    "disk": math.pi * 880**2,
    "ring": math.pi * (960**2 - 520**2),
    "square": 1560**2,
    "triangle": 1960 * 1720 / 2,
    "cross": 2 * 600 * 1920 - 600**2,
    "star": 5 * 1020 * 420 * math.sin(math.pi / 5),  # ten triangles between a tip and a dent
    "crescent": math.pi * 960**2 - _lens(960, 800, 460),
    "arrow": 1100 * 560 + 850 * 1600 / 2,
    "hourglass": 2 * 900**2,
    "ell": 600 * 1920 + 920 * 600,
}


@pytest.mark.parametrize("name", shapes.SHAPES)
def test_each_shape_has_the_area_that_geometry_gives(name: str) -> None:
    area = int(_mask(name).sum())
    assert area == pytest.approx(AREAS[name], rel=0.01)
    assert 0.15 < area / 2048**2 < 0.7


def test_the_shapes_differ_from_one_another() -> None:
    masks = {name: _mask(name) for name in shapes.SHAPES}
    for one, two in itertools.combinations(masks, 2):
        smaller = min(masks[one].sum(), masks[two].sum())
        assert (masks[one] ^ masks[two]).sum() > 0.15 * smaller, (one, two)


def _winding_number(point: tuple[int, int], corners: list[tuple[int, int]]) -> int:
    """How often a polygon runs around a point: the sum of the angles under which its sides are seen."""
    total = 0.0
    for (x1, y1), (x2, y2) in zip(corners, [*corners[1:], corners[0]], strict=True):
        ax, ay, bx, by = x1 - point[0], y1 - point[1], x2 - point[0], y2 - point[1]
        total += math.atan2(ax * by - ay * bx, ax * bx + ay * by)
    return round(total / (2 * math.pi))


def _on_outline(point: tuple[int, int], corners: list[tuple[int, int]]) -> bool:
    for (x1, y1), (x2, y2) in zip(corners, [*corners[1:], corners[0]], strict=True):
        ax, ay, bx, by = x1 - point[0], y1 - point[1], x2 - point[0], y2 - point[1]
        if ax * by == ay * bx and ax * bx + ay * by <= 0:
            return True
    return False


def test_inside_polygon_agrees_with_winding_numbers() -> None:
    chance = random.Random(0)
    axis = np.arange(-7, 8, dtype=np.int64)
    x, y = np.broadcast_arrays(axis[None, :], axis[:, None])
    compared = 0
    for _ in range(150):  # crossing sides, level sides, and corners at the height of the points included
        corners = [(chance.randint(-6, 6), chance.randint(-6, 6)) for _ in range(chance.randint(3, 8))]
        found = shapes.inside_polygon(x, y, corners)
        for row, column in np.ndindex(found.shape):
            point = (int(axis[column]), int(axis[row]))
            if not _on_outline(point, corners):
                assert found[row, column] == (_winding_number(point, corners) % 2 == 1), (point, corners)
                compared += 1
    assert compared > 20_000


def test_polygons_that_share_a_side_share_no_point_and_leave_no_gap() -> None:
    axis = np.arange(-10, 11, dtype=np.int64)
    x, y = np.broadcast_arrays(axis[None, :], axis[:, None])
    whole = [(-8, -8), (8, -8), (8, 8), (-8, 8)]
    parts = [[whole[0], whole[1], whole[2]], [whole[0], whole[2], whole[3]]]
    inside = [shapes.inside_polygon(x, y, part).astype(int) for part in parts]
    assert np.array_equal(inside[0] + inside[1], shapes.inside_polygon(x, y, whole).astype(int))


@pytest.mark.parametrize("name", textures.TEXTURES)
def test_textures_are_integers_in_their_range(name: str) -> None:
    axis = np.arange(0, 4096, 16, dtype=np.int64)
    x, y = np.broadcast_arrays(axis[None, :], axis[:, None])
    for period in (420, 587, 760):
        values = textures.TEXTURES[name](x, y, period)
        assert values.dtype == np.int64
        assert values.shape == x.shape
        assert values.min() >= -256
        assert values.max() <= 256
        assert values.max() - values.min() > 400


def test_textures_differ_from_one_another() -> None:
    axis = np.arange(0, 4096, 16, dtype=np.int64)
    x, y = np.broadcast_arrays(axis[None, :], axis[:, None])
    painted = [texture(x, y, 587) for texture in textures.TEXTURES.values()]
    for one, two in itertools.combinations(painted, 2):
        assert np.abs(one - two).mean() > 50


def test_a_wave_is_a_triangle_of_its_period() -> None:
    phase = np.arange(-3000, 3000, dtype=np.int64)
    for period in (420, 587, 760):
        found = textures.wave(phase, period)
        exact = np.abs(np.mod(phase / period, 1.0) * 1024 - 512) - 256
        assert np.abs(found - exact).max() <= 1
        assert np.array_equal(found[period:], found[:-period])


@pytest.mark.parametrize("module", [generator, shapes, textures], ids=lambda module: str(module.__name__))
def test_the_generator_computes_with_integers_only(module: ModuleType) -> None:
    integer_functions = {
        "abs",
        "arange",
        "array",
        "broadcast_arrays",
        "clip",
        "int64",
        "bool_",
        "ndarray",
        "stack",
        "uint8",
        "where",
        "zeros",
    }
    for node in ast.walk(ast.parse(inspect.getsource(module))):
        assert not (isinstance(node, ast.BinOp | ast.AugAssign) and isinstance(node.op, ast.Div))
        assert not (isinstance(node, ast.Constant) and isinstance(node.value, float | complex))
        assert not (isinstance(node, ast.Import) and any(alias.name == "math" for alias in node.names))
        if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name) and node.value.id == "np":
            assert node.attr in integer_functions


def test_every_stage_of_the_generator_holds_integers(monkeypatch: pytest.MonkeyPatch) -> None:
    seen: dict[str, set[str]] = {}

    def watch(name: str) -> None:
        original = getattr(generator, name)

        def watched(*arguments: Any, **options: Any) -> Any:
            answer = original(*arguments, **options)
            arrays = [value for value in (*arguments, answer) if isinstance(value, np.ndarray)]
            seen.setdefault(name, set()).update(str(array.dtype) for array in arrays)
            return answer

        monkeypatch.setattr(generator, name, watched)

    for name in ("_axis", "_coverage", "_texture", "_surface", "_cover", "_bystander", "_paint_one"):
        watch(name)
    paint(_draws(20), [index % 10 for index in range(20)], 32)
    assert seen.pop("_paint_one") == {"int64", "uint8"}
    assert set(seen) == {"_axis", "_coverage", "_texture", "_surface", "_cover", "_bystander"}
    assert set().union(*seen.values()) == {"int64"}
