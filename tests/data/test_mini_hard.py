"""The set `mini-a` with stand-ins for its reference models."""

import hashlib
import importlib.resources
import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor

import robench
from robench.data import open_source
from robench.data.mini import attack_set, training_set
from robench.data.mini.hard import HardSet, MiniHard, candidates, choose, ids_of, shipped_set
from robench.errors import DataError
from robench.registry import load_protocol, read_labels, shipped_folder
from robench.training import bundled_recipes, load_recipe, resolve_recipe
from robench.zoo import ARCHITECTURES, MODELS, resolve
from robench.zoo.baselines import bundled
from tests.fakes import measuring_script

JUDGES = Path(__file__).parents[2] / "docs" / "measure" / "judges"


def _judge(threshold: float) -> Callable[[Tensor], Tensor]:
    """Right about bright images; about others it says the next class, the surer the darker they are."""

    def answer(images: Tensor) -> Tensor:
        brightness = images.mean(dim=(1, 2, 3))
        labels = torch.arange(len(images)) % 10  # chunks begin at a multiple of ten
        said = torch.where(brightness > threshold, labels, (labels + 1) % 10)
        sure = 40 * (brightness - threshold).abs()
        return torch.nn.functional.one_hot(said, 10) * sure[:, None]

    return answer


def test_the_first_of_each_class_that_both_get_wrong_with_confidence_are_taken() -> None:
    judges = {"one": _judge(0.45), "two": _judge(0.5)}
    chosen = choose(judges, {"one": "a", "two": "b"}, count=20, most=1000)
    images, labels = candidates(range(chosen.looked_at))
    brightness = images.astype(np.float64).mean(axis=(1, 2, 3)) / 255
    hard: dict[int, list[int]] = {label: [] for label in range(10)}
    for number, (value, label) in enumerate(zip(brightness, labels, strict=True)):
        # the label's share is 1 / (9 + e^s), at most a tenth wherever the answer is wrong
        if value < 0.45 and 1 / (9 + np.exp(40 * (0.45 - value))) <= 0.1:
            hard[int(label)].append(number)
    assert chosen.numbers == tuple(hard[label][place] for place in range(2) for label in range(10))
    assert chosen.wrong == {"one": int((brightness <= 0.45).sum()), "two": int((brightness <= 0.5).sum())}
    assert chosen.weights == {"one": "a", "two": "b"}


def test_a_wrong_answer_without_confidence_is_not_hard() -> None:
    def unsure(images: Tensor) -> Tensor:
        labels = torch.arange(len(images)) % 10
        one_hot = torch.nn.functional.one_hot
        return 3.0 * one_hot(labels, 10) + 3.01 * one_hot((labels + 1) % 10, 10)

    with pytest.raises(DataError, match=r"^mini-a: `hard images` is 0, 0, .* by class; expected 1 of each class"):
        choose({"one": unsure}, {}, count=10, most=250)
    with pytest.raises(DataError, match=r"^mini-a: `count` is 15; expected a multiple of 10\.$"):
        choose({"one": unsure}, {}, count=15, most=250)


def test_candidates_are_painted_by_their_number_alone_and_are_in_no_other_set() -> None:
    some, labels = candidates([3, 250, 17])
    everything, _ = candidates(range(260))
    assert labels.tolist() == [3, 0, 7]
    assert np.array_equal(some, everything[[3, 250, 17]])
    others = {each.tobytes() for each in (*attack_set()[0], *training_set(300, seed=0)[0])}
    assert not others & {each.tobytes() for each in everything}


def test_the_set_is_read_with_its_digest_and_a_model_sees_it(tmp_path: Path) -> None:
    images, labels = candidates(range(30))
    chosen = HardSet(tuple(range(30)), hashlib.sha256(images.tobytes()).hexdigest(), 30, {}, {})
    (tmp_path / "set.json").write_text(chosen.content())
    assert HardSet.read(tmp_path / "set.json") == chosen
    source = MiniHard(chosen)
    assert sorted(zip(source.ids, source.labels, strict=True)) == sorted(zip(ids_of(range(30)), labels, strict=True))
    protocol = tmp_path / "hard.toml"
    protocol.write_text(
        'schema = "robench.protocol/1"\nid = "hard"\nversion = 1\nstatus = "draft"\ntitle = "x"\nsummary = "x"\n'
        'ranked = false\nseed = 0\n[data]\nsource = "mini-a"\ncount = 30\nclasses = 10\ncrop = 64\n'
        '[shift]\nkind = "natural"\n'
    )
    result = robench.evaluate("mini-resnet", protocol, data=source, run_dir=tmp_path / "run")
    with torch.no_grad():
        said = robench.load_model("mini-resnet")(torch.from_numpy(images).float() / 255).argmax(dim=1)
    assert result.headline.numerator == int((said.numpy() == labels).sum())
    with pytest.raises(DataError, match=r"^mini-a: `sha256` is [0-9a-f]{64}; expected 0{64}\. Please report it"):
        MiniHard(HardSet((1,), "0" * 64, 1, {}, {}))
    (tmp_path / "set.json").write_text("{}")
    with pytest.raises(DataError, match=r"set\.json: `file` is unreadable \('numbers'\); expected a set of"):
        HardSet.read(tmp_path / "set.json")


def test_the_command_makes_the_file_from_two_models(tmp_path: Path) -> None:
    """With networks that say class 0 always: no image of it is hard, and every other one is."""
    weights = []
    for name in ("mini-resnet", "mini-deit"):
        with torch.random.fork_rng():
            torch.manual_seed(0)
            state = {key: value.contiguous() for key, value in ARCHITECTURES[name]().state_dict().items()}
        last = next(key for key in ("network.fc.bias", "network.head.bias") if key in state)
        state[last] = 30 * torch.eye(10)[0]  # says class 0, always
        save_file(state, tmp_path / f"{name}.safetensors")
        weights.append(tmp_path / f"{name}.safetensors")
    with pytest.raises(DataError, match=r"`hard images` is 0, 1, 1, 1, 1, 1, 1, 1, 1, 1 by class; expected 1 of each"):
        measuring_script("hard").make(weights, tmp_path / "set.json", count=10, most=250)
    assert not (tmp_path / "set.json").exists()
    state[last] = 30 * torch.eye(10)[1]
    save_file(state, weights[1])
    with pytest.raises(DataError, match=r"`hard images` is 0, 0, 1, 1, 1, 1, 1, 1, 1, 1 by class; expected 1 of each"):
        measuring_script("hard").make(weights, tmp_path / "set.json", count=10, most=250)


def test_the_reference_models_have_recipes_of_their_own_and_are_no_baselines() -> None:
    for name, model in measuring_script("hard").JUDGES.items():
        recipe, baseline = resolve_recipe(name).recipe, resolve_recipe(model).recipe
        assert recipe.architecture == model
        assert recipe.seed not in {resolve_recipe(each).recipe.seed for each in MODELS}
        assert recipe.schedule == baseline.schedule
        assert name in bundled_recipes()
        assert name not in MODELS
        assert name not in {each.name for each in bundled()}


# --- the set that is shipped


def test_the_shipped_set_is_what_its_judges_choose() -> None:
    """Both get every image of it wrong with confidence; and of the first candidates it has those, and no others."""
    chosen = shipped_set()
    first = range(1000)
    images, labels = candidates([*chosen.numbers, *first])
    is_wrong, most = np.ones(len(images), dtype=bool), np.zeros(len(images))
    for name, architecture in measuring_script("hard").JUDGES.items():
        weights = JUDGES / f"{name}.safetensors"
        assert hashlib.sha256(weights.read_bytes()).hexdigest() == chosen.weights[name]
        model = resolve(architecture, weights=weights).model
        with torch.inference_mode():
            batches = torch.split(torch.from_numpy(images), 250)
            logits = torch.cat([model(batch.float() / 255) for batch in batches]).numpy()
        shares = np.exp(logits - logits.max(axis=1, keepdims=True))
        share = shares[np.arange(len(labels)), labels] / shares.sum(axis=1)
        is_wrong &= logits.argmax(axis=1) != labels
        most = np.maximum(most, share)
    count, noise = len(chosen.numbers), 1e-4  # of the last bits, which are the machine's
    assert (is_wrong & (most <= 0.1 + noise))[:count].all()
    surely = set(np.flatnonzero((is_wrong & (most <= 0.1 - noise))[count:]).tolist())
    perhaps = set(np.flatnonzero((is_wrong & (most <= 0.1 + noise))[count:]).tolist())
    assert surely <= {number for number in chosen.numbers if number in first} <= perhaps
    assert np.bincount(labels[:count]).tolist() == [count // 10] * 10
    assert max(chosen.numbers) < chosen.looked_at


def test_the_protocol_pins_the_shipped_set() -> None:
    protocol = load_protocol("mini-a")
    source = open_source("mini-a", None, resize=None, crop=protocol.data.crop)
    assert len(source.ids) == protocol.data.count == len(shipped_set().numbers)
    ids, labels = (
        hashlib.sha256("\n".join(map(str, each)).encode()).hexdigest() for each in (source.ids, source.labels)
    )
    assert protocol.data.ids_sha256 == ids
    assert read_labels(shipped_folder() / "labels.lock")[ids] == labels


def test_the_judges_come_from_their_recipes_with_their_logs() -> None:
    for name in measuring_script("hard").JUDGES:
        log = (importlib.resources.files("robench.zoo") / "weights" / f"{name}.jsonl").read_text().splitlines()
        header, epochs = json.loads(log[0]), [json.loads(line) for line in log[1:]]
        recipe = load_recipe(name)
        assert header["recipe_sha256"] == recipe.digest
        assert header["environment"]["git_dirty"] == "no"
        assert [line["epoch"] for line in epochs] == list(range(recipe.schedule.epochs))
