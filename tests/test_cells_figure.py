"""Pictures of results in cells."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from matplotlib.figure import Figure

from robench import figures
from robench.cells_figure import cells_of, curve
from robench.errors import FigureError
from robench.figures import check_figure, draw_comparison, draw_result
from robench.outcome import Outcome
from robench.registry import load_protocol
from robench.result import Result
from robench.shift import mask_text
from tests.shifted_trees import shift_of
from tests.test_runs import finished_run
from tests.test_runs import plan as plan_of

COUNT = 10


def _run(folder: Path, steepness: int) -> Result:
    """Ten images, nine right clean; in fog of severity s all but `steepness` s are right, in other cells all."""
    outcomes = []
    for image in range(COUNT):
        rights = [name != "fog" or image >= steepness * severity for name, severity in shift_of("imagenet-c").cells]
        clean = 4 if image else 5
        outcomes.append(Outcome(f"e{image}", 4, clean, clean, 0.0, 0.0, cells=mask_text(rights)))
    content = load_protocol("imagenet-c").model_dump(mode="json", by_alias=True, exclude_none=True)
    return finished_run(folder, outcomes, plan_of(outcomes).model_copy(update={"protocol": content}))


@pytest.fixture
def drawn(monkeypatch: pytest.MonkeyPatch) -> list[Figure]:
    """Every figure that is written."""
    kept: list[Figure] = []
    write = figures._write

    def spy(figure: Figure, path: Path) -> None:
        kept.append(figure)
        write(figure, path)

    monkeypatch.setattr(figures, "_write", spy)
    return kept


def _axes(figure: Figure) -> list[Any]:
    return list(figure.axes) + [axes for part in figure.subfigs for axes in part.axes if axes not in figure.axes]


def test_a_curve_starts_clean_and_is_a_mean_over_corruptions(tmp_path: Path) -> None:
    result = _run(tmp_path / "run", 2)
    names, severities, cells = cells_of(result)
    assert (len(names), severities, len(cells)) == (15, [1, 2, 3, 4, 5], 75)
    assert dict(curve(result, ["fog"])) == pytest.approx({0: 90, 1: 80, 2: 60, 3: 40, 4: 20, 5: 0})
    assert dict(curve(result, ["fog", "snow"])) == pytest.approx({0: 90, 1: 90, 2: 80, 3: 70, 4: 60, 5: 50})


def test_the_heat_map_shows_every_cell_and_its_mean(tmp_path: Path, drawn: list[Figure]) -> None:
    result = _run(tmp_path / "run", 1)
    draw_result(tmp_path / "a.png", result)
    heat_map, curves = _axes(drawn[0])
    numbers = heat_map.get_images()[0].get_array()
    assert numbers.shape == (15, 6)
    fog = sorted(shift_of("imagenet-c").corruptions).index("fog")
    assert list(numbers[fog]) == pytest.approx([90, 80, 70, 60, 50, 70])
    assert numbers.sum() == pytest.approx(15 * 600 - 180)
    texts = [text.get_text() for text in heat_map.texts]
    assert len(texts) == 90
    assert texts[6 * fog : 6 * fog + 6] == ["90.0", "80.0", "70.0", "60.0", "50.0", "70.0"]
    assert [label.get_text() for label in heat_map.get_yticklabels()][fog] == "fog"
    labels = [line.get_label() for line in curves.get_lines()]
    assert labels == ["all  (mean error 2.0 %, mCE 2.4 %)", "blur", "digital", "noise", "weather"]
    weather = curves.get_lines()[-1].get_ydata()
    assert list(weather) == pytest.approx([90, *((300 + value) / 4 for value in (90, 80, 70, 60, 50))])


def test_several_runs_are_curves_over_severity(tmp_path: Path, drawn: list[Figure]) -> None:
    results = [_run(tmp_path / name, steepness) for name, steepness in (("a", 1), ("b", 2))]
    draw_comparison(tmp_path / "two.svg", results)
    (axes,) = drawn[0].axes
    for line, result in zip(axes.get_lines(), results, strict=True):
        assert np.asarray(line.get_ydata()).tolist() == pytest.approx(
            [value for _, value in curve(result, cells_of(result)[0])]
        )
    assert [tick.get_text() for tick in axes.get_xticklabels()] == ["clean", "1", "2", "3", "4", "5"]


@pytest.mark.parametrize("suffix", figures.METADATA)
def test_the_same_run_gives_the_same_bytes(tmp_path: Path, suffix: str) -> None:
    result = _run(tmp_path / "run", 1)
    for name in ("a", "b"):
        draw_result(tmp_path / f"{name}{suffix}", result)
    assert (tmp_path / f"a{suffix}").read_bytes() == (tmp_path / f"b{suffix}").read_bytes()


def test_only_protocols_with_an_attack_or_cells_have_a_figure(tmp_path: Path) -> None:
    check_figure(tmp_path / "a.png", protocols=[load_protocol("imagenet-c")])
    with pytest.raises(
        FigureError, match=r"`figure` is of imagenet-a@1, which has no attack and no cells; expected an"
    ):
        check_figure(tmp_path / "a.png", protocols=[load_protocol("imagenet-a")])
