from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from robench.curves import RadiusPoint, at_radius, radius_curve
from robench.data import ArraySource
from robench.errors import ProtocolError
from robench.evaluation import Options, evaluate
from robench.protocol import BallSpec, read_protocol
from robench.registry import load_protocol
from robench.zoo import Loaded, resolve
from tests.fakes import random_images, short_pgd, small_net, two_class_linear
from tests.test_evaluation import PROTOCOL

COUNT = 40


@pytest.fixture
def protocol(tmp_path: Path) -> Path:
    path = tmp_path / "own.toml"
    path.write_text(PROTOCOL.format(digest="0" * 64))
    return path


def _data(net: nn.Module, *, classes: int = 4) -> ArraySource:
    images = random_images(COUNT, low=0.4, high=0.6)
    with torch.no_grad():
        labels = net(images).argmax(dim=1)
    labels[:3] = (labels[:3] + 1) % classes  # some are wrong clean
    return ArraySource(images, labels, classes=classes)


def test_a_linear_model_falls_where_its_margin_says(tmp_path: Path, protocol: Path) -> None:
    """Under L-inf an image falls exactly when epsilon times the L1 length of the weights exceeds its margin."""
    net = two_class_linear(8)
    source = _data(net, classes=2)
    radii = ["1/1000", "0", "1/200", "1/500"]
    with torch.no_grad():
        images = torch.stack(list(source.images(range(COUNT))))
        logits = net(images)
    labels = torch.tensor(source.labels)
    margins = (logits.gather(1, labels[:, None])[:, 0] - logits.gather(1, 1 - labels[:, None])[:, 0]).double()
    reach = (net.weight[0] - net.weight[1]).abs().sum().item()
    expected = [int((margins > epsilon * reach).sum()) for epsilon in (0, 1 / 1000, 1 / 500, 1 / 200)]
    curve = radius_curve(net, protocol, radii, data=source, run_dir=tmp_path / "runs")
    assert [point.radius for point in curve.points] == ["0", "1/1000", "1/500", "1/200"]
    assert [point.numerator for point in curve.points] == expected
    assert expected[0] == COUNT - 3
    assert len(set(expected)) > 2
    assert all(point.denominator == COUNT for point in curve.points)


def test_what_fell_at_a_smaller_radius_stays_fallen(tmp_path: Path, protocol: Path) -> None:
    net = small_net()
    curve = radius_curve(net, protocol, ["8/255", "1/255", "4/255"], data=_data(net), run_dir=tmp_path / "runs")
    tables = [{o.id: o.robust_at(8, "any iterate") for o in result.read_outcomes()} for result in curve.results]
    for index, point in enumerate(curve.points):
        assert point.numerator == sum(all(table[each] for table in tables[: index + 1]) for each in tables[0])


def test_every_radius_is_a_run_that_is_reused(tmp_path: Path, protocol: Path) -> None:
    net, folder = small_net(), tmp_path / "runs"
    first = radius_curve(net, protocol, ["1/255", "2/255"], data=_data(net), run_dir=folder)
    names = ["own-radius-1-255@1", "own-radius-2-255@1"]
    assert sorted(path.name for path in folder.iterdir()) == names
    assert [result.status for result in first.results] == ["unofficial"] * 2
    stamp = (folder / names[0] / "result.json").stat().st_mtime_ns
    (folder / names[1] / "result.json").unlink()
    (folder / names[1] / "shards" / "000000.csv").unlink()
    assert radius_curve(net, protocol, ["1/255", "2/255"], data=_data(net), run_dir=folder).points == first.points
    assert (folder / names[0] / "result.json").stat().st_mtime_ns == stamp


def test_radius_zero_alone_is_the_clean_accuracy(tmp_path: Path, protocol: Path) -> None:
    net = small_net()
    curve = radius_curve(net, protocol, ["0"], data=_data(net), run_dir=tmp_path / "runs")
    assert curve.points == (RadiusPoint("0", COUNT - 3, COUNT),)
    assert str(curve) == "robust at 0: 92.5 %; 40 images, unranked"


def test_the_protocols_own_radius_gives_its_own_verdicts(tmp_path: Path, protocol: Path) -> None:
    net = small_net()
    curve = radius_curve(net, protocol, ["4/255"], data=_data(net), run_dir=tmp_path / "runs")
    result = evaluate(net, protocol, data=_data(net), run_dir=tmp_path / "whole")
    assert curve.results[0].read_outcomes() == result.read_outcomes()


def test_steps_grow_with_the_radius_and_nothing_else_changes() -> None:
    whole = load_protocol("mini-pgd-linf")
    derived = at_radius(whole, "8/255")
    assert derived.attack is not None
    assert derived.attack.settings == {"step_size": "2/255", "steps": 50}
    assert isinstance(derived.budget, BallSpec)
    assert (derived.budget.epsilon, derived.budget.norm) == ("8/255", "linf")
    assert (derived.id, derived.status, derived.ranked) == ("mini-pgd-linf-radius-8-255", "draft", False)
    assert (derived.data, derived.score, derived.seed) == (whole.data, whole.score, whole.seed)


def test_a_curve_loads_its_model_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    calls = []

    def counted(reference: str, *, weights: Any = None) -> Loaded:
        calls.append(reference)
        return resolve(reference, weights=weights)

    monkeypatch.setattr("robench.evaluation.resolve_model", counted)
    radius_curve("mini-resnet", short_pgd(tmp_path), ["1/255", "2/255"], limit=8, run_dir=tmp_path / "runs")
    assert calls == ["mini-resnet"]


def test_adversarial_images_get_a_folder_for_each_radius(tmp_path: Path, protocol: Path) -> None:
    net, saved = small_net(), tmp_path / "images"
    options = Options(save_adversarial=saved)
    curve = radius_curve(net, protocol, ["0", "8/255"], data=_data(net), run_dir=tmp_path / "runs", options=options)
    assert [path.name for path in saved.iterdir()] == ["own-radius-8-255@1"]
    fooled = sum(bool(outcome.fooled_at) for outcome in curve.results[0].read_outcomes())
    assert len(list(saved.rglob("*.npy"))) == fooled > 0


FRACTION = 'expected a fraction of the unit range as a string, such as "4/255".'


@pytest.mark.parametrize(
    ("radii", "message"),
    [
        ([], "radius_curve: `radii` is empty; expected at least one radius."),
        (
            [0.03],
            f"radius_curve: `radii` is 0.03; {FRACTION} Floats would make two protocols differ in the last bit.",
        ),
        (["0.03"], f"radius_curve: `radii` is '0.03'; {FRACTION}"),
        (["-1/255"], f"radius_curve: `radii` is '-1/255'; {FRACTION}"),
        (["1/0"], f"radius_curve: `radii` is '1/0'; {FRACTION}"),
        ([4], f"radius_curve: `radii` is 4; {FRACTION}"),
        (["1/255", "0", "1/255"], "radius_curve: `radii` is `1/255` twice; expected radii that differ."),
        (["1/2", "2/4"], "radius_curve: `radii` is `1/2` and `2/4`; expected radii that differ."),
        (
            "0,1/255",
            "radius_curve: `radii` is '0,1/255'; expected a list of fractions as strings. Such as `['0', '1/255']`.",
        ),
    ],
)
def test_wrong_radii_are_refused(radii: Any, message: str) -> None:
    with pytest.raises(ProtocolError) as caught:
        radius_curve(small_net(), "mini-pgd-linf", radii)
    assert str(caught.value) == message


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("[attack]", "[nothing]", "own@1: `attack` is none; expected an attack in a norm ball."),
        ('"linf"', '"area"', "own@1: `budget.norm` is `area`; expected the norm of a ball (linf, l2)."),
        ('"4/255"', '"0"', "own@1: `budget.epsilon` is `0`; expected more than 0, so that steps can be scaled."),
    ],
)
def test_a_protocol_without_a_radius_is_refused(protocol: Path, old: str, new: str, message: str) -> None:
    text = protocol.read_text().replace(old, new)
    protocol.write_text(text.partition("[nothing]")[0])
    with pytest.raises(ProtocolError) as caught:
        radius_curve(small_net(), read_protocol(protocol), ["1/255"])
    assert str(caught.value) == f"{message} Choose a protocol with a radius."


def test_a_protocol_of_patches_has_no_radius() -> None:
    with pytest.raises(ProtocolError) as caught:
        radius_curve(small_net(), "mini-tpa", ["1/255"])
    expected = "mini-tpa@1: `budget.kind` is `patches`; expected a norm ball. Choose a protocol with a radius."
    assert str(caught.value) == expected


def test_several_protocols_are_refused() -> None:
    several: Any = ["mini-pgd-linf", "pgd-linf"]
    with pytest.raises(ProtocolError) as caught:
        radius_curve(small_net(), several, ["1/255"])
    assert str(caught.value) == ("radius_curve: `protocol` is 2 protocols; expected one. Ask for one curve at a time.")
