import random
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import robench
from robench.budgets import BALLS, PatchArea
from robench.data import ArraySource, Source
from robench.data.source import Unreadable
from robench.door import build_attack
from robench.errors import BudgetError, DataError, ModelError, ProtocolError, RobenchError, RunError
from robench.evaluation import Options, evaluate, resume
from robench.progress import Progress, Silent
from robench.protocol import parse_protocol
from robench.registry import shipped
from robench.runs import Run
from robench.unattacked import Reading
from tests.fakes import PATCH_PROTOCOL, noise_folder, random_images, small_net

COUNT = 150
PROTOCOL = """
schema = "robench.protocol/1"
id = "own"
version = 1
status = "draft"
title = "A small protocol for tests"
summary = "PGD on random images."
seed = 0
[data]
source = "mini"
count = 150
classes = 4
ids_sha256 = "{digest}"
crop = 8
[attack]
kind = "pgd"
step_size = "1/255"
steps = 8
[budget]
norm = "linf"
epsilon = "4/255"
[score]
steps = [2, 8]
"""


@pytest.fixture
def protocol(tmp_path: Path) -> Path:
    path = tmp_path / "own.toml"
    path.write_text(PROTOCOL.format(digest="0" * 64))
    return path


def _data(net: nn.Module) -> ArraySource:
    images = random_images(COUNT)
    with torch.no_grad():
        labels = net(images.to(next(net.parameters()).dtype)).argmax(dim=1)
    return ArraySource(images, labels, classes=4)


class Shuffled:
    """The same examples, read in the same order but yielded to the driver with other neighbours."""

    def __init__(self, source: Source, keep: Callable[[int], bool]) -> None:
        kept = [position for position in range(len(source.ids)) if keep(position)]
        self._source, self._kept = source, kept
        self.name, self.classes = source.name, source.classes
        self.ids = [source.ids[position] for position in kept]
        self.labels = [source.labels[position] for position in kept]

    def images(self, positions: Iterable[int]) -> Iterator[Tensor | Unreadable]:
        yield from self._source.images(self._kept[position] for position in positions)


def _files(folder: Path) -> tuple[bytes, bytes]:
    return (folder / "outcomes.csv.gz").read_bytes(), (folder / "result.json").read_bytes()


@pytest.mark.parametrize("shards", [1, 2, 5])
def test_the_number_of_shards_changes_no_byte(tmp_path: Path, protocol: Path, shards: int) -> None:
    net = small_net()
    data = _data(net)
    evaluate(net, protocol, data=data, run_dir=tmp_path / "whole")
    options = Options(shard_size=-(-COUNT // shards))
    evaluate(net, protocol, data=data, run_dir=tmp_path / "parts", options=options)
    assert len(list((tmp_path / "parts" / "shards").iterdir())) == shards
    assert _files(tmp_path / "whole") == _files(tmp_path / "parts")


def test_the_order_of_the_examples_changes_no_outcome(tmp_path: Path, protocol: Path) -> None:
    """Shards are attacked in any order, so every example meets other neighbours."""
    net = small_net()
    data = _data(net)
    whole = evaluate(net, protocol, data=data, run_dir=tmp_path / "whole").read_outcomes()
    rows = {outcome.id: outcome for outcome in whole}
    for parity in (0, 1):
        part = Shuffled(data, lambda position, parity=parity: position % 2 == parity)  # type: ignore[misc]
        outcomes = evaluate(net, protocol, data=part, run_dir=tmp_path / f"part{parity}").read_outcomes()
        assert len(outcomes) == COUNT // 2
        assert all(rows[outcome.id] == outcome for outcome in outcomes)


def test_a_float64_model_gets_the_same_verdicts_from_any_number_of_slots(tmp_path: Path, protocol: Path) -> None:
    net = small_net(dtype=torch.float64)
    data = _data(net)
    verdicts = []
    for slots in (16, 64, 256):
        result = evaluate(net, protocol, data=data, batch_size=slots, run_dir=tmp_path / str(slots))
        verdicts.append([(outcome.id, outcome.fooled_at) for outcome in result.read_outcomes()])
    assert verdicts[0] == verdicts[1] == verdicts[2]
    assert any(steps for _, steps in verdicts[0])
    assert not all(steps for _, steps in verdicts[0])


def test_model_and_random_state_are_left_as_found(tmp_path: Path, protocol: Path) -> None:
    net = small_net()
    next(net.parameters()).requires_grad_(False)
    flags = [parameter.requires_grad for parameter in net.parameters()]
    before = {name: tensor.clone() for name, tensor in net.state_dict().items()}
    states = torch.get_rng_state(), random.getstate(), np.random.get_state()[1]  # type: ignore[index]
    evaluate(net, protocol, data=_data(net), run_dir=tmp_path / "run")
    assert torch.equal(states[0], torch.get_rng_state())
    assert states[1] == random.getstate()
    assert np.array_equal(states[2], np.random.get_state()[1])  # type: ignore[index]
    assert [parameter.requires_grad for parameter in net.parameters()] == flags
    assert all(torch.equal(tensor, before[name]) for name, tensor in net.state_dict().items())
    assert not any(part.training for part in net.modules())


def test_the_result_counts_what_the_outcomes_say(tmp_path: Path, protocol: Path) -> None:
    net = small_net()
    result = evaluate(net, protocol, data=_data(net), run_dir=tmp_path / "run")
    outcomes = result.read_outcomes()
    assert [metric.name for metric in result.metrics] == ["clean", "robust@2", "robust@8"]
    assert result.clean.numerator == COUNT
    for metric, step in zip(result.metrics[1:], (2, 8), strict=True):
        assert metric.numerator == sum(not outcome.fooled_at or outcome.fooled_at[0] > step for outcome in outcomes)
    assert 0 < result.headline.numerator < result.metrics[1].numerator < COUNT
    assert result.status == "unofficial"
    assert str(result).startswith("clean 100.0 %, robust ")
    assert result.cost["forward"] > COUNT
    assert result.run_dir == tmp_path / "run"


def test_the_same_call_again_reuses_a_finished_run(tmp_path: Path, protocol: Path) -> None:
    net = small_net()
    data = _data(net)
    first = evaluate(net, protocol, data=data, run_dir=tmp_path / "run")
    stamp = (tmp_path / "run" / "result.json").stat().st_mtime_ns
    assert evaluate(net, protocol, data=data, run_dir=tmp_path / "run") == first
    assert (tmp_path / "run" / "result.json").stat().st_mtime_ns == stamp
    evaluate(net, protocol, data=data, run_dir=tmp_path / "run", options=Options(fresh=True))
    assert (tmp_path / "run" / "result.json").stat().st_mtime_ns != stamp


def test_an_interrupted_run_goes_on_where_it_was(tmp_path: Path, protocol: Path) -> None:
    net = small_net()
    data = _data(net)
    evaluate(net, protocol, data=data, run_dir=tmp_path / "whole", options=Options(shard_size=10))
    folder = tmp_path / "cut"

    def interrupted(images: Tensor) -> Tensor:
        if list(folder.glob("shards/*.csv")):  # the first are there
            raise KeyboardInterrupt
        answer: Tensor = net(images)
        return answer

    net_again = nn.Sequential(net).eval()
    net_again.forward = interrupted  # type: ignore[method-assign]  # the same weights, and a Ctrl-C
    with pytest.raises(KeyboardInterrupt):
        evaluate(net_again, protocol, data=data, run_dir=folder, options=Options(shard_size=10))
    done = 15 - len(Run.open(folder).missing_shards())
    assert 0 < done < 15
    assert Run.open(folder).events()[-1]["event"] == "interrupted"
    net_again.forward = lambda images: net(images)  # type: ignore[method-assign]
    evaluate(net_again, protocol, data=data, run_dir=folder)
    assert (folder / "outcomes.csv.gz").read_bytes() == (tmp_path / "whole" / "outcomes.csv.gz").read_bytes()


def test_a_run_with_other_answers_is_not_resumed(tmp_path: Path, protocol: Path) -> None:
    net = small_net()
    scale = 1.0
    wrapped = nn.Sequential(net).eval()
    wrapped.forward = lambda images: scale * net(images)  # type: ignore[method-assign]
    data = _data(net)
    evaluate(wrapped, protocol, data=data, run_dir=tmp_path / "run")
    (tmp_path / "run" / "result.json").unlink()
    scale = 1.5
    with pytest.raises(RunError, match=r"`model` is different on \d+ of 64 pinned images; expected the same answers"):
        evaluate(wrapped, protocol, data=data, run_dir=tmp_path / "run")


def test_a_source_may_read_its_positions_twice(tmp_path: Path, protocol: Path) -> None:
    net = small_net()
    data = _data(net)
    evaluate(net, protocol, data=data, run_dir=tmp_path / "once")

    class Twice(ArraySource):
        def images(self, positions: Iterable[int]) -> Iterator[Tensor]:
            for _, image in zip(positions, super().images(positions), strict=True):
                yield image

    images = torch.stack(list(data.images(range(COUNT))))
    twice = Twice(images, data.labels, classes=4, ids=data.ids)
    assert twice.ids == data.ids
    evaluate(net, protocol, data=twice, run_dir=tmp_path / "twice")
    assert (tmp_path / "once" / "outcomes.csv.gz").read_bytes() == (tmp_path / "twice" / "outcomes.csv.gz").read_bytes()


@pytest.mark.parametrize(("kept", "found"), [(COUNT - 1, "too few"), (COUNT + 1, "too many")])
def test_a_source_that_miscounts_is_refused(tmp_path: Path, protocol: Path, kept: int, found: str) -> None:
    net = small_net()

    class Miscounting(ArraySource):
        def images(self, positions: Iterable[int]) -> Iterator[Tensor]:
            every = list(super().images(positions))
            yield from [*every, every[0]][:kept] if len(every) == COUNT else every

    data = Miscounting(random_images(COUNT), [0] * COUNT, classes=4)
    with pytest.raises(DataError) as caught:
        evaluate(net, protocol, data=data, run_dir=tmp_path / "run")
    assert str(caught.value) == f"arrays: `images` is {found}; expected one for each position asked for."


def test_another_run_in_the_folder_is_refused(tmp_path: Path, protocol: Path) -> None:
    net = small_net()
    evaluate(net, protocol, data=_data(net), run_dir=tmp_path / "run")
    with pytest.raises(RunError, match=r"`run key` is [0-9a-f]{64}; expected [0-9a-f]{64} for this call\."):
        evaluate(small_net(1), protocol, data=_data(net), run_dir=tmp_path / "run")


def test_fresh_deletes_runs_only(tmp_path: Path, protocol: Path) -> None:
    net, folder = small_net(), tmp_path / "precious"
    folder.mkdir()
    (folder / "thesis.tex").write_text("years of work")
    with pytest.raises(RunError, match="`run_dir` is not a run; expected a run to start over, or a new folder"):
        evaluate(net, protocol, data=_data(net), run_dir=folder, options=Options(fresh=True))
    assert (folder / "thesis.tex").exists()


def test_fresh_starts_over_where_the_plan_is_damaged(tmp_path: Path, protocol: Path) -> None:
    net, folder = small_net(), tmp_path / "run"
    before = evaluate(net, protocol, data=_data(net), run_dir=folder)
    path = folder / "plan.json"
    path.write_bytes(path.read_bytes()[:-40])
    with pytest.raises(RunError, match=r"plan\.json: `plan` is .+ Start over: `robench evaluate` with `--fresh`\.$"):
        evaluate(net, protocol, data=_data(net), run_dir=folder)
    after = evaluate(net, protocol, data=_data(net), run_dir=folder, options=Options(fresh=True))
    assert after.to_bytes() == before.to_bytes()


def test_a_model_that_fails_in_the_middle_is_named_and_what_is_finished_is_kept(tmp_path: Path, protocol: Path) -> None:
    net = small_net()
    data = _data(net)
    evaluate(net, protocol, data=data, run_dir=tmp_path / "whole", options=Options(shard_size=10))
    folder = tmp_path / "cut"

    def failing(images: Tensor) -> Tensor:
        if list(folder.glob("shards/*.csv")):  # the first are there
            raise ValueError("the licence server is gone\nand more")
        answer: Tensor = net(images)
        return answer

    net_again = nn.Sequential(net).eval()
    net_again.forward = failing  # type: ignore[method-assign]  # the same weights, and a failure
    with pytest.raises(ModelError) as caught:
        evaluate(net_again, protocol, data=data, run_dir=folder, options=Options(shard_size=10))
    assert str(caught.value) == (
        "Sequential: `model` is failing with ValueError: the licence server is gone; expected logits for any batch of "
        "images. What is finished is kept: mend the model, and make the same call again."
    )
    assert isinstance(caught.value.__cause__, ValueError)
    assert 0 < len(Run.open(folder).missing_shards()) < 15
    net_again.forward = lambda images: net(images)  # type: ignore[method-assign]
    evaluate(net_again, protocol, data=data, run_dir=folder)
    assert (folder / "outcomes.csv.gz").read_bytes() == (tmp_path / "whole" / "outcomes.csv.gz").read_bytes()


def test_several_protocols_give_several_results(tmp_path: Path, protocol: Path) -> None:
    net = small_net()
    second = tmp_path / "other.toml"
    second.write_text(protocol.read_text().replace('id = "own"', 'id = "other"').replace("4/255", "0"))
    results = evaluate(net, [protocol, second], data=_data(net), run_dir=tmp_path / "runs")
    assert [result.protocol.id for result in results] == ["own", "other"]
    assert results[1].headline.numerator == COUNT
    assert sorted(path.name for path in (tmp_path / "runs").iterdir()) == ["other@1", "own@1"]


def test_a_misspelt_protocol_costs_no_work(tmp_path: Path, protocol: Path) -> None:
    with pytest.raises(ProtocolError, match="Did you mean `pgd-linf`"):
        evaluate(small_net(), [protocol, "pdg-linf"], data=_data(small_net()), run_dir=tmp_path / "runs")
    assert not (tmp_path / "runs").exists()


def test_a_protocol_without_attack_only_classifies(tmp_path: Path, protocol: Path) -> None:
    net = small_net()
    text = protocol.read_text()
    protocol.write_text(text[: text.index("[attack]")])
    result = evaluate(net, protocol, data=_data(net), run_dir=tmp_path / "run")
    assert [metric.name for metric in result.metrics] == ["clean"]
    assert str(result).startswith(f"clean 100.0 %, {COUNT} images")


def test_the_default_folder_names_model_and_protocol(
    tmp_path: Path, protocol: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    result = evaluate(small_net(), protocol, data=_data(small_net()), limit=20, options=Options(name="my net/v1"))
    key = Run.open(result.run_dir or Path()).plan.key
    assert result.run_dir == Path("runs") / "my-net-v1" / f"own-{key[:8]}"


def test_a_numpy_or_lambda_model_has_a_run_of_its_own(tmp_path: Path, protocol: Path) -> None:
    nets = small_net(0), small_net(1)
    data = _data(nets[0])
    keys = []
    for index, net in enumerate([*nets, nets[0]]):
        evaluate(lambda images, net=net: net(images), protocol, data=data, run_dir=tmp_path / str(index), limit=20)
        keys.append(Run.open(tmp_path / str(index)).plan.key)
    assert keys[0] == keys[2] != keys[1]


BAD_CALLS: list[tuple[dict[str, Any], type[RobenchError], str]] = [
    ({"limit": 0}, DataError, "evaluate: `limit` is 0; expected a whole number of at least 1."),
    ({"limit": -3}, DataError, "evaluate: `limit` is -3; expected a whole number of at least 1."),
    ({"batch_size": 0}, RunError, "evaluate: `batch_size` is 0; expected a whole number of at least 1."),
    (
        {"options": Options(shard_size=0)},
        RunError,
        "evaluate: `shard_size` is 0; expected a whole number of at least 1.",
    ),
    (
        {"data": 7},
        DataError,
        "robench: `data` is int; expected a folder, `hf-hub:org/name`, a pair (images, labels), or a "
        "robench.data.Source.",
    ),
    (
        {"data": (random_images(20) * 255, [0] * 20)},
        DataError,
        "Divide by 255, and leave normalisation to the model.",
    ),
    ({"data": (random_images(20) - 0.5, [0] * 20)}, DataError, "expected values in [0, 1]."),
    (
        {"data": (random_images(20), [0] * 19 + [-1])},
        DataError,
        "arrays: `labels` is -1; expected class numbers from 0",
    ),
    (
        {"data": (random_images(0), torch.zeros(0, dtype=torch.int64))},
        DataError,
        "arrays: `data` is empty; expected at least one example.",
    ),
    ({"data": (random_images(20), [0] * 19)}, DataError, "`labels` is int64 of shape (19,); expected integers"),
    ({"data": (random_images(20) * torch.nan, [0] * 20)}, DataError, "`image` is from nan to nan; expected values in"),
    ({"data": (random_images(20), [9] * 20)}, ModelError, "expected shape (16, at least 10)."),
]


@pytest.mark.parametrize(("arguments", "kind", "message"), BAD_CALLS, ids=[case[2][:40] for case in BAD_CALLS])
def test_bad_arguments_are_refused_at_the_door(
    tmp_path: Path, protocol: Path, arguments: dict[str, Any], kind: type[RobenchError], message: str
) -> None:
    net, folder = small_net(), tmp_path / "run"
    with pytest.raises(kind) as caught:
        evaluate(net, protocol, **{"data": _data(net), "run_dir": folder, **arguments})
    assert message in str(caught.value)
    assert not folder.exists()


def test_data_that_is_not_shipped_must_be_named() -> None:
    with pytest.raises(DataError) as caught:
        evaluate(small_net(), "pgd-linf")
    start = (
        "robench: `data` is none; expected the images of `imagenet`. Give their folder as `data=` (or `--data`), set "
    )
    assert str(caught.value).startswith(start)


def test_a_run_of_a_handed_in_model_is_resumed_from_python(tmp_path: Path, protocol: Path) -> None:
    net, folder = small_net(), tmp_path / "run"
    evaluate(net, protocol, data=_data(net), run_dir=folder)
    with pytest.raises(RunError) as caught:
        resume(folder)
    assert str(caught.value) == (
        f"{folder}: `plan.json` is of a model handed in from Python; expected names to load. "
        f'Call `robench.evaluate` again with the same arguments and `run_dir="{folder}"`.'
    )


def _attack(**changes: Any) -> dict[str, Any]:
    import tomllib

    content = tomllib.loads(PROTOCOL.format(digest="0" * 64))
    content["attack"] = {key: value for key, value in {**content["attack"], **changes}.items() if value is not None}
    return content


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"kind": "pdg"}, "own.toml: `attack.kind` is `pdg`; expected the name of an attack. Did you mean `pgd`?"),
        ({"setps": 3}, "own.toml: `attack.setps` is unknown; expected a field. Did you mean `steps`?"),
        ({"steps": None}, "own.toml: `attack.steps` is missing; expected a value. Add the key."),
        ({"steps": "8"}, "own.toml: `attack.steps` is '8'; expected a value of type int."),
        ({"steps": True}, "own.toml: `attack.steps` is True; expected a value of type int."),
        (
            {"step_size": "0.01"},
            "own.toml: `attack.step_size` is '0.01'; expected a fraction of the unit range as a string, "
            'such as "4/255".',
        ),
        ({"steps": 7}, "own.toml: `score.steps` is 8; expected at most 7, the steps of the attack."),
        ({"step_size": "0"}, "own.toml: PGD: `step_size` is 0.0; expected more than 0."),
    ],
)
def test_the_keys_of_an_attack_are_checked_against_its_fields(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ProtocolError) as caught:
        build_attack(parse_protocol(_attack(**changes), where="own.toml"))
    assert str(caught.value) == message


@pytest.mark.parametrize("name", sorted(shipped()))
def test_every_shipped_protocol_builds(name: str) -> None:
    stages, budget = build_attack(shipped()[name])
    if shipped()[name].attack is None:
        shift = shipped()[name].shift
        assert not stages
        assert shift is None or Reading.of(shift, name).least_logits <= shipped()[name].data.classes
        return
    if shipped()[name].score.asks is None:
        assert len(stages) == len(shipped()[name].score.stages or ["one"])
    assert budget.area > 0 if isinstance(budget, PatchArea) else isinstance(budget, BALLS) and budget.epsilon > 0


def test_evaluate_is_the_public_one() -> None:
    assert robench.evaluate is evaluate


def test_other_images_or_labels_under_the_same_ids_are_another_run(tmp_path: Path, protocol: Path) -> None:
    net, images = small_net(), random_images(20)
    other = random_images(20, seed=1)
    labels = net(images).argmax(dim=1)
    keys = []
    for index, data in enumerate([(images, labels), (other, labels), (images, (labels + 1) % 4), (images, labels)]):
        evaluate(net, protocol, data=data, run_dir=tmp_path / str(index))
        keys.append(Run.open(tmp_path / str(index)).plan.key)
    assert keys[0] == keys[3]
    assert len(set(keys)) == 3


def test_modules_that_differ_outside_their_state_are_other_models(tmp_path: Path, protocol: Path) -> None:
    keys = []
    for index, tail in enumerate([nn.Identity(), nn.Hardtanh(-50, 50)]):
        evaluate(
            nn.Sequential(small_net(), tail).eval(), protocol, data=_data(small_net()), run_dir=tmp_path / str(index)
        )
        keys.append(Run.open(tmp_path / str(index)).plan.key)
    assert keys[0] != keys[1]


def test_gradients_that_are_no_numbers_err_the_example(tmp_path: Path, protocol: Path) -> None:
    """They would make PGD stand still, and the model look robust."""
    net = small_net()

    def breaks_away_from_the_clean_images(images: Tensor) -> Tensor:
        shown = images * 1
        whole = (images * 255 - (images * 255).round()).abs().flatten(1).amax(dim=1) < 1e-3
        if shown.requires_grad:
            register: Any = shown.register_hook  # torch leaves it untyped
            register(lambda gradient: gradient.where(whole[:, None, None, None], torch.nan))
        answer: Tensor = net(shown)
        return answer

    images = (random_images(40) * 255).to(torch.uint8)
    labels = net(images.float() / 255).argmax(dim=1)
    result = evaluate(breaks_away_from_the_clean_images, protocol, data=(images, labels), run_dir=tmp_path / "run")
    errors = {outcome.error for outcome in result.read_outcomes() if outcome.error}
    assert errors == {"the gradient is not finite at step 0 of pgd"}
    assert result.counts.errored > 20
    assert result.headline.numerator == 0


def test_a_model_is_put_back_even_while_the_error_is_kept(tmp_path: Path, protocol: Path) -> None:
    net = small_net()

    class Breaks(Silent):
        def update(self, progress: Progress) -> None:
            raise ValueError("a bug in a watcher")

    with pytest.raises(ValueError, match="a bug in a watcher") as kept:
        evaluate(net, protocol, data=_data(net), run_dir=tmp_path / "run", options=Options(watcher=Breaks()))
    assert kept.value.__traceback__ is not None
    assert all(parameter.requires_grad for parameter in net.parameters())


def test_an_unknown_device_is_refused(protocol: Path) -> None:
    for device in ("gpu", "cuda:99"):
        with pytest.raises(RunError, match=rf"`device` is `{device}`; expected a device of this machine\."):
            evaluate(small_net(), protocol, data=_data(small_net()), device=device)


def test_images_of_another_size_are_found_before_they_are_stacked(tmp_path: Path, protocol: Path) -> None:
    class Mixed(ArraySource):
        def images(self, positions: Iterable[int]) -> Iterator[Tensor]:
            for position in positions:
                yield random_images(1, 8 if position < 30 else 9)[0]

    data = Mixed(random_images(40), [0] * 40, classes=4)
    with pytest.raises(DataError, match=r"`image` is of shape \(3, 9, 9\); expected \(3, 8, 8\), as before\."):
        evaluate(small_net(), protocol, data=data, run_dir=tmp_path / "run")


def test_one_logit_alone_is_refused_even_where_all_labels_are_zero(tmp_path: Path, protocol: Path) -> None:
    data, folder = (random_images(20), [0] * 20), tmp_path / "run"
    with pytest.raises(ModelError, match=r"`logits` is of shape \(16, 1\); expected shape \(16, at least 2\)\."):
        evaluate(small_net(classes=1), protocol, data=data, run_dir=folder)
    assert not folder.exists()


# --- patches


@pytest.fixture
def patches(tmp_path: Path) -> Path:
    folder = noise_folder()
    text = PATCH_PROTOCOL.format(digest="0" * 64, textures=folder["textures"], sha256=folder["textures_sha256"])
    path = tmp_path / "own-patches.toml"
    path.write_text(text)
    return path


def test_a_run_with_patches_is_resumed_to_the_same_bytes(tmp_path: Path, patches: Path) -> None:
    net = small_net()
    images = random_images(40)
    labels = net(images).argmax(dim=1)
    labels[:3] = (labels[:3] + 1) % 4  # wrong clean
    options = Options(shard_size=16)
    for name in ("whole", "killed"):
        evaluate(net, patches, data=(images, labels), run_dir=tmp_path / name, options=options)
    (tmp_path / "killed" / "result.json").unlink()
    (tmp_path / "killed" / "shards" / "000001.csv").unlink()
    result = evaluate(net, patches, data=(images, labels), run_dir=tmp_path / "killed", options=options)
    whole = tmp_path / "whole" / "outcomes.csv.gz"
    assert whole.read_bytes() == (tmp_path / "killed" / "outcomes.csv.gz").read_bytes()
    assert result.headline.numerator == sum(
        each.clean_correct and not each.fooled_at for each in result.read_outcomes()
    )
    assert 0 < result.headline.numerator < result.clean.numerator == 37
    for each in result.read_outcomes():
        if not each.clean_correct:
            assert (each.queries, each.patches, each.area) == (None, None, None)
        elif each.fooled_at:
            assert each.queries is not None
            assert each.patches in (1, 2)
            assert each.area is not None
            assert 0 < each.area <= 0.25
            assert each.fooled_at[0] <= each.queries <= 40
        else:
            assert (each.queries, each.patches, each.area) == (40, None, None)


@pytest.mark.parametrize(
    ("old", "new", "error", "message"),
    [
        (
            '"tpa-random"',
            '"square"',
            ProtocolError,
            "own-patches.toml: `attack.textures` is unknown; expected a field.",
        ),
        (
            "patches = 2\n[budget]",
            "patches = 3\n[budget]",
            BudgetError,
            "PatchArea: `patches` is 3; expected at most 2",
        ),
        (
            'area = "1/4"',
            'area = "1/100"',
            BudgetError,
            "PatchArea: `area` is 2 squares of 0 x 0 pixels in images of 8",
        ),
        (
            'area = "1/4"',
            'area = "5/4"',
            ProtocolError,
            "own-patches.toml: PatchArea: `area` is 1.25; expected a share",
        ),
        (
            'kind = "patches"\narea = "1/4"\npatches = 2',
            'norm = "linf"\nepsilon = "1/4"',
            ProtocolError,
            "own-patches.toml: `budget` is LinfBall; expected PatchArea for `tpa-random`.",
        ),
        (
            "rounds = 2",
            "rounds = 0",
            ProtocolError,
            "own-patches.toml: RandomPatches: `rounds` is 0; expected at least 1.",
        ),
        (
            "rounds = 2",
            "targeted = 1",
            ProtocolError,
            "own-patches.toml: `attack.targeted` is 1; expected a value of type bool",
        ),
    ],
)
def test_patches_that_do_not_fit_are_refused_before_the_model_is_asked(
    tmp_path: Path, patches: Path, old: str, new: str, error: type[RobenchError], message: str
) -> None:
    patches.write_text(patches.read_text().replace(old, new))
    with pytest.raises(error) as caught:
        evaluate(_never, patches, data=(random_images(2), [0, 1]), run_dir=tmp_path / "run")
    assert str(caught.value).startswith(message)
    assert not (tmp_path / "run").exists()


def _never(images: Tensor) -> Tensor:
    raise AssertionError("the model was asked")


def test_a_gradient_attack_takes_no_patches(patches: Path) -> None:
    text = patches.read_text()
    begin, end = text.index("[attack]"), text.index("[budget]")
    patches.write_text(f'{text[:begin]}[attack]\nkind = "apgd"\n{text[end:]}')
    with pytest.raises(ProtocolError) as caught:
        evaluate(_never, patches, data=(random_images(2), [0, 1]))
    assert str(caught.value) == "own-patches.toml: `budget` is PatchArea; expected LinfBall or L2Ball for `apgd-ce`."


def test_textures_that_are_not_there_are_missed_before_any_other_protocol_runs(tmp_path: Path, patches: Path) -> None:
    broken = tmp_path / "broken.toml"
    broken.write_text(patches.read_text().replace(noise_folder()["textures"], str(tmp_path / "nowhere")))
    with pytest.raises(DataError, match=r"nowhere/manifest\.json: `file` is unreadable"):
        evaluate(_never, [patches, broken], data=(random_images(2), [0, 1]), run_dir=tmp_path / "run")
    with pytest.raises(DataError, match=r"^robench: `textures` is nowhere; expected `tpa-textures`\. Fetch them with "):
        evaluate(_never, "tpa", data=(random_images(2, 224), [0, 1]), run_dir=tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_images_of_another_size_are_measured_anew(tmp_path: Path, patches: Path) -> None:
    with pytest.raises(DataError, match=r"^textures: `size` is 8; expected at least 11, the side of a patch\.$"):
        evaluate(small_net(), patches, data=(random_images(2, 32), [0, 1]), run_dir=tmp_path / "run")
