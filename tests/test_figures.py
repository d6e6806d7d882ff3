import builtins
import dataclasses
import subprocess
import sys
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np
import pytest
import torch
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.text import Text
from torch import nn

from robench import figures
from robench.curves import radius_curve
from robench.errors import FigureError
from robench.evaluation import Options, evaluate
from robench.figures import check_figure, draw_comparison, draw_radii, draw_result, letter, step_curve
from robench.protocol import parse_protocol, read_protocol
from robench.registry import load_protocol
from robench.result import Result
from robench.runs import Run
from robench.showcase import Showcase
from tests.fakes import PATCH_PROTOCOL, noise_folder, random_images, small_net
from tests.test_evaluation import PROTOCOL

COUNT = 40
LONG = "timm/vit_large_patch14_reg4_dinov2.lvd142m with $x^2$ and an {unusually} long \\name"


@pytest.fixture
def protocol(tmp_path: Path) -> Path:
    path = tmp_path / "own.toml"
    path.write_text(PROTOCOL.format(digest="0" * 64))
    return path


@pytest.fixture
def drawn(monkeypatch: pytest.MonkeyPatch) -> list[Figure]:
    """The figures that are written."""
    seen: list[Figure] = []
    write = figures._write

    def spy(figure: Figure, path: Path) -> None:
        seen.append(figure)
        write(figure, path)

    monkeypatch.setattr(figures, "_write", spy)
    return seen


def _run(protocol: Path, folder: Path, net: nn.Module | None = None, limit: int = COUNT) -> tuple[Result, Showcase]:
    net, showcase = net or small_net(), Showcase()
    images = random_images(COUNT)
    with torch.no_grad():
        labels = small_net()(images).argmax(dim=1)
    options = Options(showcase=showcase, name=LONG)
    return evaluate(net, protocol, data=(images, labels), limit=limit, run_dir=folder, options=options), showcase


def _all_texts(figure: Figure) -> list[Any]:
    return [text for text in figure.findobj(Text) if text.get_visible() and text.get_text()]


def _texts(figure: Figure) -> list[str]:
    return [text.get_text() for text in _all_texts(figure)]


def _overlaps(figure: Figure) -> list[tuple[str, str]]:
    """Pairs of texts that touch each other, or leave the page."""
    renderer: Any = FigureCanvasAgg(figure).get_renderer()  # type: ignore[no-untyped-call]  # matplotlib's
    figure.draw(renderer)
    boxes = [(text.get_text(), text.get_window_extent(renderer)) for text in _all_texts(figure)]
    pairs = [
        (first, second)
        for index, (first, box) in enumerate(boxes)
        for second, other in boxes[index + 1 :]
        if box.overlaps(other)
    ]
    page = figure.bbox
    outside = [
        (text, "the page")
        for text, box in boxes
        if box.x0 < page.x0 - 1 or box.x1 > page.x1 + 1 or box.y0 < page.y0 - 1 or box.y1 > page.y1 + 1
    ]
    return pairs + outside


# --- the curve


@pytest.mark.parametrize(("scoring", "steps"), [("any iterate", list(range(9))), ("last iterate", [2, 8])])
def test_a_step_curve_counts_the_survivors(tmp_path: Path, protocol: Path, scoring: str, steps: list[int]) -> None:
    protocol.write_text(protocol.read_text().replace("[score]", f'[score]\nscoring = "{scoring}"'))
    result, _ = _run(protocol, tmp_path / "run")
    curve = step_curve(read_protocol(protocol), result)
    assert [step for step, _ in curve] == steps
    outcomes = [outcome for outcome in result.read_outcomes() if outcome.clean == outcome.label]
    for step, metric in curve:
        fooled = [
            any(at <= step for at in outcome.fooled_at) if scoring == "any iterate" else step in outcome.fooled_at
            for outcome in outcomes
        ]
        assert (metric.numerator, metric.denominator) == (fooled.count(False), COUNT)
    assert [metric for step, metric in curve if step in (2, 8)] == list(result.metrics[1:])


def test_the_line_its_markers_and_its_band_are_the_curve(tmp_path: Path, protocol: Path, drawn: list[Figure]) -> None:
    result, _ = _run(protocol, tmp_path / "run")
    draw_result(tmp_path / "a.png", result)
    (axes,) = drawn[0].axes
    line, clean = axes.lines
    curve = step_curve(read_protocol(protocol), result)
    assert list(line.get_xdata()) == [step for step, _ in curve]  # type: ignore[arg-type]  # an array
    assert list(line.get_ydata()) == [100 * metric.value for _, metric in curve]  # type: ignore[arg-type]  # an array
    assert line.get_markevery() == [2, 8]
    assert set(clean.get_ydata()) == {100.0}  # type: ignore[arg-type]  # an array
    band = np.asarray(axes.collections[0].get_paths()[0].vertices)
    bounds = {round(100 * bound, 3) for _, metric in curve for bound in metric.interval}
    assert set(band[:, 1].round(3).tolist()) == bounds


# --- the pictures


def test_a_run_is_drawn_with_its_examples(tmp_path: Path, protocol: Path, drawn: list[Figure]) -> None:
    result, showcase = _run(protocol, tmp_path / "run")
    assert {each.broken for each in showcase.exhibits} == {True, False}
    draw_result(tmp_path / "a.png", result, showcase.exhibits)
    texts = _texts(drawn[0])
    for word in ("clean", "attacked", "difference\nx 31"):
        assert word in texts
    for each in showcase.exhibits:
        verdict = "broken" if each.broken else "survives"
        assert f"{verdict}\ntrue {each.truth}\nsaid {each.clean}" in texts
        assert f"said {each.attacked}" in texts
    images = [image.get_array() for axes in drawn[0].axes for image in axes.images]
    assert len(images) == 3 * len(showcase.exhibits)
    assert _overlaps(drawn[0]) == []


@pytest.mark.parametrize(
    ("epsilon", "limit", "kinds"),
    [("255/255", COUNT, {True}), ("0", COUNT, {False}), ("4/255", 1, {True}), ("4/255", COUNT, {True, False})],
    ids=["all broken", "all surviving", "one example", "mixed"],
)
def test_nothing_overlaps(
    tmp_path: Path, protocol: Path, drawn: list[Figure], epsilon: str, limit: int, kinds: set[bool]
) -> None:
    protocol.write_text(protocol.read_text().replace("4/255", epsilon))
    result, showcase = _run(protocol, tmp_path / "run", limit=limit)
    exhibits = [dataclasses.replace(each, truth="a class of a very long name") for each in showcase.exhibits]
    if epsilon != "255/255":
        assert {each.broken for each in exhibits} == kinds
    else:
        exhibits = [each for each in exhibits if each.broken]
    assert exhibits
    draw_result(tmp_path / "a.png", result, exhibits)
    assert _overlaps(drawn[0]) == []


# --- patches


@pytest.fixture
def patches(tmp_path: Path) -> Path:
    folder = noise_folder()
    text = PATCH_PROTOCOL.format(digest="0" * 64, textures=folder["textures"], sha256=folder["textures_sha256"])
    path = tmp_path / "own-patches.toml"
    path.write_text(text)
    return path


def test_patches_are_shown_as_they_lie(tmp_path: Path, patches: Path, drawn: list[Figure]) -> None:
    result, showcase = _run(patches, tmp_path / "run")
    assert {each.broken for each in showcase.exhibits} == {True, False}
    draw_result(tmp_path / "a.png", result, showcase.exhibits)
    assert "patches" in _texts(drawn[0])
    assert not any(text.startswith("difference") for text in _texts(drawn[0]))
    tiles = [axes for axes in drawn[0].axes if axes.images]
    columns = len(showcase.exhibits)
    rows: list[list[Any]] = [[], [], []]
    for axes in tiles:
        rows[sum(axes.get_position().y0 < other.get_position().y0 - 1e-6 for other in tiles) // columns].append(axes)
    shown = sorted(rows[2], key=lambda axes: axes.get_position().x0)
    for each, axes in zip(showcase.exhibits, shown, strict=True):
        picture = np.asarray(axes.images[0].get_array())
        clean, attacked = each.image.permute(1, 2, 0).numpy(), each.adversarial.permute(1, 2, 0).numpy()
        changed = (clean != attacked).any(axis=2)
        assert changed.any()
        assert np.array_equal(picture[changed], attacked[changed])
        assert bool((np.ptp(picture[~changed], axis=1) == 0).all())  # the rest is grey
        (lines,) = axes.collections
        edges = {tuple(map(tuple, segment)) for segment in lines.get_segments()}
        expected = set()
        for row in range(9):
            for column in range(8):
                above = changed[row - 1, column] if row else False
                if above != (changed[row, column] if row < 8 else False):
                    expected.add(((column - 0.5, row - 0.5), (column + 0.5, row - 0.5)))
                left = changed[column, row - 1] if row else False
                if left != (changed[column, row] if row < 8 else False):
                    expected.add(((row - 0.5, column - 0.5), (row - 0.5, column + 0.5)))
        assert edges == expected
    assert _overlaps(drawn[0]) == []


def test_the_curve_of_patches_is_over_queries(tmp_path: Path, patches: Path, drawn: list[Figure]) -> None:
    result, _ = _run(patches, tmp_path / "run")
    outcomes = [each for each in result.read_outcomes() if each.clean_correct]
    curve = step_curve(read_protocol(patches), result)
    assert [query for query, _ in curve] == sorted({0, 40, *(each.fooled_at[0] for each in outcomes if each.fooled_at)})
    for query, metric in curve:
        standing = [each for each in outcomes if not each.fooled_at or each.fooled_at[0] > query]
        assert (metric.numerator, metric.denominator) == (len(standing), COUNT)
    assert curve[0][1].numerator == result.clean.numerator
    assert (curve[-1][0], curve[-1][1].numerator) == (40, result.headline.numerator)
    draw_result(tmp_path / "a.png", result)
    (axes,) = drawn[0].axes
    line, _ = axes.lines
    assert list(line.get_xdata()) == [query for query, _ in curve]  # type: ignore[arg-type]  # an array
    assert line.get_drawstyle() == "steps-post"  # it falls at a query, and stays
    assert axes.get_xlabel().startswith("queries of the attack")
    assert [tick.get_text() for tick in axes.get_xticklabels()] == ["0", "1", "10", "40"]
    draw_comparison(tmp_path / "b.png", [result, result])
    assert _overlaps(drawn[1]) == []


def test_several_runs_share_one_axes(tmp_path: Path, protocol: Path, drawn: list[Figure]) -> None:
    results = [_run(protocol, tmp_path / str(seed), small_net(seed))[0] for seed in range(3)]
    draw_comparison(tmp_path / "a.png", results * 3)
    (axes,) = drawn[0].axes
    assert len(axes.lines) == 9
    assert len({(line.get_color(), line.get_linestyle()) for line in axes.lines}) == 9
    labels = [text for text in _texts(drawn[0]) if "robust@8" in text]
    assert [label[0] for label in labels] == list("ABCDEFGHI")
    assert r"\$x^2\$" in labels[0] or "…" in labels[0]
    assert _overlaps(drawn[0]) == []


def test_runs_without_clean_images_are_compared_in_a_picture(tmp_path: Path, drawn: list[Figure]) -> None:
    results = [
        evaluate(name, "mini-stylized", limit=32, run_dir=tmp_path / name) for name in ("mini-resnet", "mini-deit")
    ]
    draw_comparison(tmp_path / "a.png", results)
    (axes,) = drawn[0].axes
    assert [list(line.get_ydata()) for line in axes.lines] == [  # type: ignore[arg-type]  # arrays
        [100 * metric.value for metric in result.metrics] for result in results
    ]
    assert axes.get_ylabel() == "accuracy, %"
    assert _overlaps(drawn[0]) == []


def test_letters_go_on_after_z() -> None:
    assert [letter(index) for index in (0, 1, 25, 26)] == ["A", "B", "Z", "#27"]


def test_accuracy_over_the_radius_is_drawn(tmp_path: Path, protocol: Path, drawn: list[Figure]) -> None:
    radii, net, images = ["0", "1/1000", "1/255", "2/255", "8/255"], small_net(), random_images(COUNT)
    with torch.no_grad():
        data = images, net(images).argmax(dim=1)
    curve = radius_curve(net, protocol, radii, data=data, run_dir=tmp_path / "runs")
    draw_radii(tmp_path / "a.png", curve)
    (axes,) = drawn[0].axes
    assert list(axes.lines[0].get_ydata()) == [100 * point.value for point in curve.points]  # type: ignore[arg-type]  # an array
    assert [tick.get_text() for tick in axes.get_xticklabels()] == ["0", "", "1/255", "2/255", "8/255"]
    assert _overlaps(drawn[0]) == []
    only = dataclasses.replace(curve, points=curve.points[:1])
    draw_radii(tmp_path / "b.png", only)
    assert _overlaps(drawn[1]) == []


def test_a_protocol_that_counts_no_steps_is_drawn_as_two_points(
    tmp_path: Path, protocol: Path, drawn: list[Figure]
) -> None:
    protocol.write_text(protocol.read_text().replace("steps = [2, 8]", "steps = []"))
    result, _ = _run(protocol, tmp_path / "run")
    draw_result(tmp_path / "a.png", result)
    (axes,) = drawn[0].axes
    assert list(axes.lines[0].get_ydata()) == [100 * result.clean.value, 100 * result.headline.value]  # type: ignore[arg-type]  # an array
    assert _overlaps(drawn[0]) == []


@pytest.mark.parametrize("suffix", [".png", ".svg", ".pdf"])
def test_the_same_run_gives_the_same_bytes(tmp_path: Path, protocol: Path, suffix: str) -> None:
    result, showcase = _run(protocol, tmp_path / "run")
    draw_result(tmp_path / f"a{suffix}", result, showcase.exhibits)
    again, shown = _run(protocol, tmp_path / "run")
    with matplotlib.rc_context({"font.size": 20, "axes.facecolor": "red"}):  # the user's own style
        draw_result(tmp_path / f"b{suffix}", again, shown.exhibits)
        assert matplotlib.rcParams["font.size"] == 20
    assert (tmp_path / f"a{suffix}").read_bytes() == (tmp_path / f"b{suffix}").read_bytes()


def test_drawing_needs_neither_pyplot_nor_torch_nor_a_display(tmp_path: Path, protocol: Path) -> None:
    result, _ = _run(protocol, tmp_path / "run")
    code = (
        "import sys; from pathlib import Path\n"
        "from robench.figures import draw_comparison; from robench.result import read_result\n"
        f"result = read_result(Path({str(result.run_dir)!r}))\n"
        f"draw_comparison({str(tmp_path / 'a.png')!r}, [result, result])\n"
        "print(sorted({'torch', 'matplotlib.pyplot'} & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert (done.stdout, done.stderr) == ("[]\n", "")
    assert (tmp_path / "a.png").read_bytes().startswith(b"\x89PNG")


# --- the door


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("a.jpg", "`suffix` is `.jpg`; expected one of .png, .svg, .pdf."),
        ("a", "`suffix` is missing; expected one of .png, .svg, .pdf."),
        ("no/a.png", "`folder` is missing; expected a folder. Make it: `mkdir -p {0}/no`."),
        ("folder.png", "`figure` is a folder; expected a file."),
    ],
)
def test_a_picture_that_cannot_be_written_is_refused_at_the_door(tmp_path: Path, name: str, message: str) -> None:
    (tmp_path / "folder.png").mkdir()
    with pytest.raises(FigureError) as caught:
        check_figure(tmp_path / name)
    assert str(caught.value) == f"{tmp_path / name}: {message.format(tmp_path)}"


def test_a_figure_shows_one_protocol_with_an_attack(tmp_path: Path) -> None:
    whole = load_protocol("mini-pgd-linf")
    with pytest.raises(FigureError) as caught:
        check_figure(tmp_path / "a.png", protocols=[whole, whole])
    assert str(caught.value) == (
        f"{tmp_path / 'a.png'}: `figure` is of 2 protocols; expected one protocol. "
        "Draw one figure for each, or compare runs: `robench compare A B --figure FILE`."
    )
    content = whole.model_dump(mode="json", by_alias=True, exclude_none=True, exclude={"attack", "budget", "score"})
    with pytest.raises(FigureError) as caught:
        check_figure(tmp_path / "a.png", protocols=[parse_protocol(content, where="test")])
    expected = "`figure` is of mini-pgd-linf@1, which has no attack and no cells; expected an attack or cells to show."
    assert str(caught.value) == f"{tmp_path / 'a.png'}: {expected}"


def test_without_matplotlib_the_message_says_how_to_install_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    real = builtins.__import__

    def refuse(name: str, *arguments: Any, **options: Any) -> Any:
        if name.startswith("matplotlib"):
            raise ImportError(name)
        return real(name, *arguments, **options)

    monkeypatch.setattr(builtins, "__import__", refuse)
    with pytest.raises(FigureError) as caught:
        check_figure(tmp_path / "a.png")
    assert str(caught.value) == (
        "robench: `matplotlib` is not installed; expected it, to draw. Install it: `pip install 'robench[figures]'`."
    )


def test_a_failed_write_keeps_the_run(tmp_path: Path, protocol: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    result, _ = _run(protocol, tmp_path / "run")

    def full(path: Path, content: bytes) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(figures, "write_whole", full)
    with pytest.raises(FigureError) as caught:
        draw_result(tmp_path / "a.png", result)
    assert str(caught.value) == (
        f"{tmp_path / 'a.png'}: `figure` is not writable (No space left on device); expected room to write. "
        "The runs are kept: the same call draws them again."
    )
    assert Run.open(tmp_path / "run").finished
