"""Randomised models from the front door to the result."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from typer.testing import CliRunner

from robench.adversarial import image_file, read_adversarial
from robench.cli.main import app
from robench.comparison import compare, compare_means, z_test
from robench.curves import radius_curve
from robench.data import ArraySource
from robench.door import FOR_RANDOMISED, NOT_RANDOMISED, UNSEEDED, build_attack
from robench.errors import FigureError, ModelError, ProtocolError, RobenchError, RunError
from robench.estimate import estimate
from robench.evaluation import Options, evaluate
from robench.figures import check_figure
from robench.registry import load_protocol, shipped
from robench.result import Result, read_result
from robench.runs import Run
from robench.showcase import Showcase
from tests.fakes import random_images, small_net
from tests.test_averaging import Noisy
from tests.test_evaluation import PROTOCOL, _files

COUNT = 40
EPSILON = 4 / 255


@pytest.fixture
def protocol(tmp_path: Path) -> Path:
    text = PROTOCOL.format(digest="0" * 64)
    path = tmp_path / "own.toml"
    attack = '[attack]\nkind = "autoattack"\nversion = "rand"\nsteps = 3\ndraws = 4\n'
    text = text[: text.index("[attack]")] + attack + text[text.index("[budget]") : text.index("[score]")]
    path.write_text(f"{text}[score]\nasks = 20\n")
    return path


def _noisy() -> Noisy:
    return Noisy(small_net(), 0.05).eval()


def _data() -> ArraySource:
    images = random_images(COUNT)
    with torch.no_grad():
        return ArraySource(images, small_net()(images).argmax(dim=1), classes=4)


def _of_chance(result: Result) -> list[str]:
    """Caveats about random numbers; the audits have their own about untrained networks."""
    return [caveat for caveat in result.caveats if caveat in (NOT_RANDOMISED, UNSEEDED)]


def test_two_runs_agree_and_their_numbers_are_those_of_their_outcomes(tmp_path: Path, protocol: Path) -> None:
    net, state = _noisy(), torch.get_rng_state()
    result = evaluate(net, protocol, data=_data(), run_dir=tmp_path / "one")
    evaluate(net, protocol, data=_data(), run_dir=tmp_path / "two")
    assert _files(tmp_path / "one") == _files(tmp_path / "two")
    assert torch.equal(state, torch.get_rng_state())
    outcomes = result.read_outcomes()
    assert [metric.name for metric in result.metrics] == ["clean", "robust"]
    for metric, column in zip(result.metrics, ("clean_right", "attacked_right"), strict=True):
        assert metric.denominator == 20 * COUNT
        assert metric.numerator == sum(getattr(outcome, column) for outcome in outcomes)
    assert 0 < result.headline.numerator < result.clean.numerator < 20 * COUNT
    assert any(0 < (outcome.attacked_right or 0) < 20 for outcome in outcomes)
    assert not any(outcome.fooled_at or outcome.unconfirmed for outcome in outcomes)
    assert {outcome.stage for outcome in outcomes} >= {"apgd-ce", "apgd-dlr"}
    assert _of_chance(result) == []
    assert Run.open(tmp_path / "one").plan.fast_path == ()


def test_a_killed_run_is_resumed_to_the_same_outcomes(tmp_path: Path, protocol: Path) -> None:
    options, folder = Options(shard_size=10), tmp_path / "cut"
    evaluate(_noisy(), protocol, data=_data(), run_dir=tmp_path / "whole", options=options)
    net = _noisy()
    forward = net.forward

    def interrupted(images: Tensor) -> Tensor:
        if len(list(folder.glob("shards/*.csv"))) == 2:
            raise KeyboardInterrupt
        return forward(images)

    net.forward = interrupted  # type: ignore[method-assign]  # the same weights, and a Ctrl-C
    with pytest.raises(KeyboardInterrupt):
        evaluate(net, protocol, data=_data(), run_dir=folder, options=options)
    assert len(Run.open(folder).missing_shards()) == 2
    evaluate(_noisy(), protocol, data=_data(), run_dir=folder)
    assert _files(folder)[0] == _files(tmp_path / "whole")[0]


def test_an_image_that_cannot_be_read_has_no_right_answer(tmp_path: Path, protocol: Path) -> None:
    from robench.data.source import Unreadable

    class Broken(ArraySource):
        def images(self, positions: Any) -> Any:
            for position, image in zip(positions, super().images(positions), strict=True):
                yield Unreadable("torn") if position == 17 else image

    whole = _data()
    labels = torch.tensor(whole.labels)
    data = Broken(random_images(COUNT), labels, classes=4)
    result = evaluate(_noisy(), protocol, data=data, run_dir=tmp_path / "run")
    outcome = result.read_outcomes()[17]
    assert (outcome.error, outcome.clean_right, outcome.attacked_right) == ("torn", 0, 0)
    assert result.counts.errored == 1
    assert result.clean.denominator == 20 * COUNT


# --- the door


def test_the_protocols_that_are_named_ask_many_times() -> None:
    names = [name for name in FOR_RANDOMISED.split("`") if name.endswith("rand")]
    assert names == ["autoattack-linf-rand", "mini-autoattack-linf-rand"]
    for name in names:
        found = load_protocol(name)
        assert found.score.asks == 20
        assert found.attack is not None
        assert found.attack.draws == 20
    assert {each.id for each in shipped().values() if each.score.asks is not None} == set(names)


def test_other_protocols_refuse_a_randomised_model_and_name_its_own(tmp_path: Path) -> None:
    with pytest.raises(ModelError) as caught:
        evaluate(Noisy(small_net(classes=10), 0.1).eval(), "mini-pgd-linf", limit=16, run_dir=tmp_path)
    assert str(caught.value) == (
        "Noisy: `model` is randomised: two passes over the same images differ; expected the same answer every time. "
        "The standard protocols would flatter or slander it: fix its random draws, or use a protocol for such models: "
        "`autoattack-linf-rand`, or on the mini suite `mini-autoattack-linf-rand`."
    )


PATCHES = '[budget]\nkind = "patches"\narea = "1/4"\npatches = 2\n'


@pytest.mark.parametrize(
    ("attack", "message"),
    [
        (
            'kind = "tpa-gray"\nrounds = 2\nqueries = 10\npatches = 2',
            "own.toml: `score.asks` is 20; expected none with patches, which are counted up to the first image that "
            "fools. Leave it and `attack.draws` out.",
        ),
        (
            'kind = "autoattack"\nversion = "rand"\nsteps = 3',
            "own.toml: `budget` is PatchArea; expected LinfBall or L2Ball for `apgd-ce`.",
        ),
    ],
    ids=["patches", "apgd"],
)
def test_many_asks_and_patches_do_not_go_together(tmp_path: Path, protocol: Path, attack: str, message: str) -> None:
    text = protocol.read_text()
    start, end = text.index("[attack]"), text.index("[score]")
    protocol.write_text(f"{text[:start]}[attack]\n{attack}\ndraws = 4\n{PATCHES}{text[end:]}")
    with pytest.raises(ProtocolError) as caught:
        evaluate(_noisy(), protocol, data=_data(), run_dir=tmp_path / "run")
    assert str(caught.value) == message
    assert not (tmp_path / "run").exists()
    protocol.write_text(protocol.read_text().replace("draws = 4\n", "").replace("asks = 20\n", ""))
    if "tpa-gray" in attack:  # nothing else was wrong with it
        stages, _ = build_attack(load_protocol(protocol))
        assert [stage.attack.name for stage in stages] == ["tpa-gray"]


def test_a_model_that_is_not_randomised_gets_a_caveat(tmp_path: Path, protocol: Path) -> None:
    result = evaluate(small_net(), protocol, data=_data(), run_dir=tmp_path / "run")
    assert _of_chance(result) == [NOT_RANDOMISED]
    assert {outcome.attacked_right for outcome in result.read_outcomes()} == {0, 20}
    assert result.clean.numerator == 20 * COUNT


def _hidden_generator() -> Callable[[Tensor], Tensor]:
    chance, net = np.random.default_rng(0), small_net()

    def model(images: Tensor) -> Tensor:
        answer: Tensor = net(images)
        return answer + torch.from_numpy(chance.normal(0, 0.05, answer.shape)).float()

    return model


def test_a_model_that_no_seed_reaches_gets_a_caveat_and_can_be_resumed(tmp_path: Path, protocol: Path) -> None:
    options, folder = Options(shard_size=10), tmp_path / "run"
    result = evaluate(_hidden_generator(), protocol, data=_data(), run_dir=folder, options=options)
    assert _of_chance(result) == [UNSEEDED]
    assert result.model.fingerprint == ()
    before = result.read_outcomes()
    (folder / "shards" / "000002.csv").unlink()
    (folder / "result.json").unlink()
    again = evaluate(_hidden_generator(), protocol, data=_data(), run_dir=folder, options=options)
    after = again.read_outcomes()
    assert after[:20] + after[30:] == before[:20] + before[30:]
    assert [outcome.id for outcome in after] == [outcome.id for outcome in before]
    assert after[20:30] != before[20:30]  # other draws: this is why there is a caveat


def test_a_callable_is_known_by_its_seeded_answers(tmp_path: Path, protocol: Path) -> None:
    keys = []
    for index, net in enumerate([_noisy(), _noisy(), Noisy(small_net(1), 0.05).eval()]):
        model: Callable[[Tensor], Tensor] = lambda images, net=net: net(images)  # type: ignore[misc]  # noqa: E731
        evaluate(model, protocol, data=_data(), limit=16, run_dir=tmp_path / str(index))
        keys.append(Run.open(tmp_path / str(index)).plan.key)
    assert keys[0] == keys[1] != keys[2]


def test_a_randomised_model_in_train_mode_is_still_refused(protocol: Path) -> None:
    with pytest.raises(ModelError, match="in train mode"):
        evaluate(_noisy().train(), protocol, data=_data())


# --- what goes along, and what does not


def test_the_final_image_of_every_example_is_kept(tmp_path: Path, protocol: Path) -> None:
    options = Options(save_adversarial=tmp_path / "images", shard_size=10)
    result = evaluate(_noisy(), protocol, data=_data(), run_dir=tmp_path / "run", options=options)
    clean = random_images(COUNT)
    for outcome in result.read_outcomes():
        change = read_adversarial(tmp_path / "images", outcome.id) - clean[int(outcome.id.removeprefix("example-"))]
        assert float(change.abs().max()) <= EPSILON + 1e-6
        assert (float(change.abs().max()) > 0) == bool(outcome.stage)
    (tmp_path / "images" / image_file(outcome.id)).unlink()
    with pytest.raises(RunError, match=r"is without 1 of the 40 images of finished examples; expected one for every"):
        evaluate(_noisy(), protocol, data=_data(), run_dir=tmp_path / "run", options=options)


def test_an_estimate_counts_every_pass(tmp_path: Path, protocol: Path) -> None:
    found = estimate(_noisy(), protocol, data=_data(), batch_size=16)
    assert [stage.stage for stage in found.stages] == ["clean", "apgd-ce", "apgd-dlr", "asking"]
    assert [stage.gradients for stage in found.stages] == [0, COUNT * 4 * 4, COUNT * 4 * 4, 0]
    assert [stage.labels for stage in found.stages] == [COUNT * 4, 0, 0, COUNT * (3 * 4 + 40)]
    cost = evaluate(_noisy(), protocol, data=_data(), batch_size=16, run_dir=tmp_path / "run").cost
    door, sweep = 16, 25 * COUNT * 4
    assert cost["backward"] == sum(stage.gradients for stage in found.stages) + door + sweep


REFUSALS: list[tuple[Callable[[Path, Path], Any], type[RobenchError], str]] = [
    (
        lambda path, folder: evaluate(_noisy(), path, data=_data(), options=Options(engine="reference")),
        RunError,
        "evaluate: `engine` is `reference`; expected nothing of it under own@1, which asks the model 20 times.",
    ),
    (
        lambda path, folder: evaluate(_noisy(), path, data=_data(), options=Options(showcase=Showcase())),
        RunError,
        "evaluate: `showcase` is asked for; expected nothing of it under own@1, which asks the model 20 times.",
    ),
    (
        lambda path, folder: check_figure(folder / "x.png", protocols=[load_protocol(path)]),
        FigureError,
        "`figure` is of own@1, which asks the model 20 times; expected a protocol under which an example is broken or "
        "survives.",
    ),
    (
        lambda path, folder: radius_curve(_noisy(), path, ["0", "1/255"], data=_data()),
        ProtocolError,
        "own@1: `score.asks` is 20; expected none: what fell at a radius stays fallen, and shares of answers do not "
        "fall. Choose a protocol without it.",
    ),
]


@pytest.mark.parametrize(("call", "kind", "message"), REFUSALS, ids=["reference", "showcase", "figure", "radii"])
def test_what_shares_of_answers_do_not_allow_is_refused_at_the_door(
    tmp_path: Path, protocol: Path, call: Callable[[Path, Path], Any], kind: type[RobenchError], message: str
) -> None:
    with pytest.raises(kind) as caught:
        call(protocol, tmp_path)
    assert str(caught.value).endswith(message)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["own.toml"]


def test_shares_are_not_compared_as_verdicts(tmp_path: Path, protocol: Path) -> None:
    for name in ("a", "b"):
        evaluate(_noisy(), protocol, data=_data(), limit=16, run_dir=tmp_path / name)
    with pytest.raises(RunError) as caught:
        compare(tmp_path / "a", tmp_path / "b")
    assert str(caught.value) == (
        f"compare {tmp_path / 'a'} {tmp_path / 'b'}: `protocol` is own@1, which counts more; expected examples that "
        "are right or wrong. Use `compare_means`."
    )
    found = compare_means(tmp_path / "a", tmp_path / "b")
    first, second = ([each.attacked_right or 0 for each in half.read_outcomes()] for half in (found.a, found.b))
    differences = [(after - before) / 20 for before, after in zip(first, second, strict=True)]
    assert found.difference == pytest.approx(sum(differences) / 16, abs=1e-6)
    assert found.p_value == pytest.approx(z_test(first, second))


class _MiniNoisy(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            self.net = nn.Sequential(nn.AvgPool2d(8), nn.Flatten(), nn.Linear(3 * 8 * 8, 10))

    def forward(self, images: Tensor) -> Tensor:
        logits: Tensor = self.net(images)
        return logits + 0.1 * torch.randn_like(logits)


def test_the_shipped_protocol_runs_on_the_command_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "noisy_model.py").write_text(
        "from tests.test_randomised_runs import _MiniNoisy\n\ndef build():\n    return _MiniNoisy().eval()\n"
    )
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))
    command = ["evaluate", "noisy_model:build", "mini-autoattack-linf-rand", "--limit", "2", "--run-dir", "run"]
    shown = CliRunner().invoke(app, command)
    assert shown.exit_code == 0, shown.output
    assert "right answers" in shown.output
    assert "20 answers each" in shown.output
    assert "robench compare" not in shown.output
    result = read_result(Path("run"))
    assert result.asks == 20
    assert json.loads(Path("run/result.json").read_bytes())["metrics"][1]["denominator"] == 40
