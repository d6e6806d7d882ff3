"""Runs whose attack owns its loop, and foolbox models as models, through the public front door."""

import json
from pathlib import Path
from typing import Any

import foolbox
import numpy as np
import pytest
import torch
from torch import Tensor, nn
from typer.testing import CliRunner

import robench
from robench.adversarial import read_adversarial
from robench.audits import NO_START
from robench.cli.main import app
from robench.curves import at_radius, radius_curve
from robench.data import ArraySource
from robench.data.mini import attack_set
from robench.errors import FigureError, ModelError, ProtocolError, RunError
from robench.estimate import estimate
from robench.evaluation import Options
from robench.registry import load_protocol, shipped
from robench.runs import Run
from robench.showcase import Showcase
from tests.attacks.test_whole import OWN
from tests.fakes import random_images, short_pgd, small_net

COUNT = 12


@pytest.fixture
def protocol(tmp_path: Path) -> Path:
    path = tmp_path / "own.toml"
    path.write_text(OWN.format(digest="0" * 64))
    return path


def _data(net: Any, count: int = COUNT) -> ArraySource:
    images = random_images(count)
    with torch.no_grad():
        return ArraySource(images, net(images).argmax(dim=1), classes=4)


def _black_box(images: np.ndarray) -> np.ndarray:
    """A model that takes arrays and nothing else, and is not linear."""
    if not isinstance(images, np.ndarray):
        raise TypeError("arrays only")
    weight = np.random.default_rng(0).normal(size=(192, 4))
    answer: np.ndarray = np.tanh((images.reshape(len(images), -1) - 0.5) @ weight / 8)
    return answer.astype(np.float32)


def test_a_numpy_callable_is_attacked_from_end_to_end(tmp_path: Path, protocol: Path) -> None:
    data = _data(lambda images: torch.from_numpy(_black_box(images.numpy())))
    kept = Options(save_adversarial=tmp_path / "images")
    result = robench.evaluate(_black_box, protocol, data=data, run_dir=tmp_path / "run", options=kept)
    assert [metric.name for metric in result.metrics] == ["clean", "robust"]
    assert result.clean.numerator == COUNT
    assert 0 < result.headline.numerator < COUNT
    assert result.cost["backward"] == 0
    assert result.environment["foolbox"] == foolbox.__version__
    assert COUNT < result.cost["forward"] <= COUNT * 202 + 5 * 16 + 64  # at the door, and the pinned images
    for row, outcome in enumerate(result.read_outcomes()):
        assert outcome.stage == ("hopskipjump" if outcome.fooled_at else "")
        if outcome.fooled_at:
            image = read_adversarial(tmp_path / "images", outcome.id)
            clean = next(iter(data.images([row])))
            assert isinstance(clean, Tensor)
            assert float((image - clean).norm()) <= 0.3 + 1e-6
            assert int(_black_box(image[None].numpy()).argmax()) == outcome.attacked != outcome.label


def test_an_interrupted_run_goes_on_to_the_same_bytes(tmp_path: Path, protocol: Path) -> None:
    net = small_net()
    data = _data(net)
    robench.evaluate(net, protocol, data=data, run_dir=tmp_path / "whole", options=Options(shard_size=3))
    folder = tmp_path / "cut"

    def interrupted(images: Tensor) -> Tensor:
        if len(list(folder.glob("shards/*.csv"))) == 2:
            raise KeyboardInterrupt
        answer: Tensor = net(images)
        return answer

    again = nn.Sequential(net).eval()
    again.forward = interrupted  # type: ignore[method-assign]  # the same weights, and a Ctrl-C
    random_state = torch.get_rng_state()
    with pytest.raises(KeyboardInterrupt):
        robench.evaluate(again, protocol, data=data, run_dir=folder, options=Options(shard_size=3))
    assert torch.equal(random_state, torch.get_rng_state())
    assert all(parameter.requires_grad for parameter in net.parameters())
    assert len(Run.open(folder).missing_shards()) == 2
    again.forward = lambda images: net(images)  # type: ignore[method-assign]
    result = robench.evaluate(again, protocol, data=data, run_dir=folder)
    assert (folder / "outcomes.csv.gz").read_bytes() == (tmp_path / "whole" / "outcomes.csv.gz").read_bytes()
    assert 0 < result.headline.numerator < COUNT


def test_images_without_a_start_are_robust_and_a_caveat_says_so(tmp_path: Path, protocol: Path) -> None:
    def stubborn(images: Tensor) -> Tensor:
        return torch.stack([1 + images.mean(dim=(1, 2, 3)), *images.mean(dim=(2, 3)).T], dim=1)

    data = (random_images(4), [0] * 4)
    result = robench.evaluate(stubborn, protocol, data=data, run_dir=tmp_path / "run")
    assert (result.headline.numerator, result.counts.errored) == (4, 0)
    assert result.caveats == (NO_START.format(attack="hopskipjump"),)
    other = robench.evaluate(small_net(), protocol, data=_data(small_net(), 3), run_dir=tmp_path / "other")
    assert other.caveats == ()


def test_a_model_that_wants_batches_is_refused_at_the_door(tmp_path: Path, protocol: Path) -> None:
    net = small_net()

    def squeezed(images: Tensor) -> Tensor:
        answer: Tensor = net(images)
        return answer.squeeze()

    with pytest.raises(ModelError, match="This protocol's attack looks at one image at a time"):
        robench.evaluate(squeezed, protocol, data=_data(net), run_dir=tmp_path / "run")
    assert not (tmp_path / "run").exists()
    text = protocol.read_text().split("[attack]")[0]
    (tmp_path / "clean.toml").write_text(text)
    robench.evaluate(squeezed, tmp_path / "clean.toml", data=_data(net), run_dir=tmp_path / "clean")


def test_the_reference_has_no_such_attack(tmp_path: Path, protocol: Path) -> None:
    options = Options(engine="reference")
    with pytest.raises(RunError, match=r"^reference: `attack` is hopskipjump; expected a stage of AutoAttack\.$"):
        robench.evaluate(small_net(), protocol, data=_data(small_net()), run_dir=tmp_path / "run", options=options)


def test_the_showcase_holds_what_the_run_found_and_the_nearest_image_of_survivors(
    tmp_path: Path, protocol: Path
) -> None:
    net, showcase = small_net(), Showcase(broken=2, surviving=2)
    data, options = _data(net), Options(showcase=showcase, save_adversarial=tmp_path / "images")
    result = robench.evaluate(net, protocol, data=data, run_dir=tmp_path / "run", options=options)
    outcomes = result.read_outcomes()
    expected = [outcome.id for outcome in outcomes if outcome.fooled_at][:2]
    expected += [outcome.id for outcome in outcomes if not outcome.fooled_at][:2]
    assert [each.id for each in showcase.exhibits] == expected
    assert [each.broken for each in showcase.exhibits] == [True, True, False, False]
    for each in showcase.exhibits:
        change = float((each.adversarial - each.image).norm())
        assert 0 < change <= 0.3 + 1e-6
        if each.broken:
            assert torch.equal(each.adversarial, read_adversarial(tmp_path / "images", each.id))
        else:
            assert change == pytest.approx(0.3, rel=1e-3)


def test_over_the_radius_robust_accuracy_falls(tmp_path: Path, protocol: Path) -> None:
    net = small_net()
    curve = radius_curve(net, protocol, ["0", "1/10", "1"], data=_data(net), run_dir=tmp_path / "curve")
    values = [point.numerator for point in curve.points]
    assert values[0] == COUNT
    assert values == sorted(values, reverse=True)
    assert values[-1] < values[1]


# --- the shipped protocols

SHIPPED = ["mini-boundary-l2", "mini-hopskipjump-l2"]


@pytest.mark.parametrize("name", SHIPPED)
def test_a_shipped_protocol_is_listed_shown_and_estimated(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("COLUMNS", "200")
    run = CliRunner()
    assert f"{name}@1" in run.invoke(app, ["list"]).stdout
    shown = run.invoke(app, ["show", name]).stdout
    assert "attack.queries" in shown
    command = ["evaluate", "mini-resnet", name, "--estimate", "--limit", "16"]
    assert "one at a time" in run.invoke(app, command).stdout
    found = json.loads(run.invoke(app, [*command, "--json"]).stdout)
    queries = load_protocol(name).attack.settings["queries"]  # type: ignore[union-attr]  # it has one
    right = round(16 * found["clean"])
    assert [stage["labels"] for stage in found["stages"]] == [16, right * queries]
    assert [stage["gradients"] for stage in found["stages"]] == [0, 0]
    assert found["stages"][1]["seconds"] == pytest.approx(right * queries / found["single_rate"])
    assert list(tmp_path.iterdir()) == []


def test_other_protocols_are_estimated_in_batches() -> None:
    assert estimate("mini-resnet", "mini-pgd-linf", limit=16).single_rate is None


def test_a_shipped_protocol_runs(tmp_path: Path) -> None:
    protocol = at_radius(shipped()["mini-hopskipjump-l2@1"], "6")
    result = robench.evaluate("mini-resnet", protocol, limit=3, run_dir=tmp_path / "run")
    assert (result.clean.numerator, result.headline.numerator) == (3, 0)
    assert result.caveats == ()


def test_figures_of_such_runs_can_be_drawn(tmp_path: Path, protocol: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from robench.figures import check_figure, draw_result

    net, showcase = small_net(), Showcase(broken=1, surviving=1)
    check_figure(tmp_path / "a.png", protocols=[load_protocol(protocol)])
    options = Options(showcase=showcase)
    result = robench.evaluate(net, protocol, data=_data(net), run_dir=tmp_path / "run", options=options)
    draw_result(tmp_path / "a.png", result, showcase.exhibits)
    assert (tmp_path / "a.png").stat().st_size > 1000
    with pytest.raises(FigureError):
        draw_result(tmp_path / "a.txt", result)


# --- foolbox models


def test_a_foolbox_model_gets_the_verdicts_of_the_module_inside(tmp_path: Path) -> None:
    """With a preprocessing of its own, in its own range, under a gradient attack."""
    model = robench.load_model("mini-resnet-adv")
    network, (mean, std) = model.network, (model.get_buffer(name).flatten() for name in ("mean", "std"))
    preprocessing = {"mean": 255 * mean, "std": 255 * std, "axis": -3}
    by_foolbox = foolbox.PyTorchModel(network, bounds=(0, 255), device="cpu", preprocessing=preprocessing)
    images, labels = attack_set()
    results = [
        robench.evaluate(each, short_pgd(tmp_path, 10), data=(images[:24], labels[:24]), run_dir=tmp_path / str(index))
        for index, each in enumerate((model, by_foolbox))
    ]
    assert results[1].model.name == "PyTorchModel"
    verdicts = [[(o.clean, bool(o.fooled_at)) for o in result.read_outcomes()] for result in results]
    assert verdicts[0] == verdicts[1]
    assert 0 < sum(fooled for _, fooled in verdicts[0]) < 24


def test_a_foolbox_model_is_attacked_by_foolboxs_attacks(tmp_path: Path, protocol: Path) -> None:
    net = small_net()
    wide = foolbox.PyTorchModel(net, bounds=(0, 255), device="cpu", preprocessing={"std": 255.0})
    models = {"module": net, "pytorch": wide, "numpy": foolbox.models.NumPyModel(_by(net), bounds=(0, 255))}
    verdicts = {}
    for name, model in models.items():
        result = robench.evaluate(
            model, protocol, data=_data(net), run_dir=tmp_path / name, options=Options(fast_path=False)
        )
        verdicts[name] = [bool(outcome.fooled_at) for outcome in result.read_outcomes()]
        assert result.counts.errored == 0
    assert verdicts["module"] == verdicts["pytorch"] == verdicts["numpy"]
    assert set(verdicts["module"]) == {True, False}


def _by(net: nn.Module) -> Any:
    def in_numpy(pixels: np.ndarray) -> np.ndarray:
        with torch.no_grad():
            answer: np.ndarray = net(torch.from_numpy(pixels / np.float32(255))).numpy()
        return answer

    return in_numpy


def test_foolboxs_numpy_model_is_refused_by_gradient_protocols(tmp_path: Path) -> None:
    model = foolbox.models.NumPyModel(_by(small_net(classes=10)), bounds=(0, 255))
    with pytest.raises(ModelError, match="or choose a black-box protocol"):
        robench.evaluate(model, "mini-pgd-linf", limit=8, run_dir=tmp_path / "run")


def test_a_foolbox_model_may_come_by_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "own_foolbox_model.py").write_text(
        "import foolbox\nfrom tests.fakes import small_net\n\n\ndef build():\n"
        "    return foolbox.PyTorchModel(small_net(classes=10), bounds=(0, 1), device='cpu')\n"
    )
    monkeypatch.syspath_prepend(str(tmp_path))
    result = robench.evaluate("own_foolbox_model:build", "mini-pgd-linf", limit=8, run_dir=tmp_path / "run")
    assert result.data.count == 8


def test_several_protocols_are_checked_before_the_first_runs(tmp_path: Path, protocol: Path) -> None:
    wrong = tmp_path / "wrong.toml"
    wrong.write_text(protocol.read_text().replace("directions = 40", "directions = 400"))
    with pytest.raises(ProtocolError, match="`queries` is 200; expected more than 450, which finding a start may take"):
        robench.evaluate(small_net(), [protocol, wrong], data=_data(small_net()), run_dir=tmp_path / "runs")
    assert not (tmp_path / "runs").exists()
