"""The bundled models on the mini suite: what README and design promise of them."""

import json
import os
from importlib.resources import files
from pathlib import Path

import pytest

import robench
from robench.training import load_recipe
from robench.zoo import MODELS, bundled_weights

ADVERSARIAL = [name for name in MODELS if name.endswith("-adv")]


@pytest.mark.parametrize("name", MODELS)
def test_weights_come_from_the_recipe_with_their_log(name: str) -> None:
    log = (files("robench.zoo") / "weights" / f"{name}.jsonl").read_text().splitlines()
    header, epochs = json.loads(log[0]), [json.loads(line) for line in log[1:]]
    recipe = load_recipe(name)
    assert header["recipe_sha256"] == recipe.digest
    assert header["environment"]["git_dirty"] == "no"
    assert [line["epoch"] for line in epochs] == list(range(recipe.schedule.epochs))
    assert bundled_weights(name).stat().st_size <= 1_000_000


@pytest.mark.parametrize("name", MODELS)
def test_clean_accuracy_lies_where_the_suite_was_tuned_to(name: str, tmp_path: Path) -> None:
    text = (files("robench_benchmarks") / "mini-pgd-linf.toml").read_text()
    protocol = tmp_path / "clean.toml"
    clean = text[: text.index("[attack]")].replace('"mini-pgd-linf"', '"clean"').replace('"active"', '"draft"')
    protocol.write_text(clean)
    result = robench.evaluate(name, protocol, run_dir=tmp_path / "run")
    assert 0.85 <= result.clean.value <= 0.98


@pytest.mark.slow
@pytest.mark.parametrize("name", ADVERSARIAL)
def test_verdicts_hardly_depend_on_the_number_of_slots(name: str, tmp_path: Path) -> None:
    verdicts = {}
    for slots in (16, 64, 256):
        result = robench.evaluate(name, "mini-pgd-linf", batch_size=slots, run_dir=tmp_path / str(slots))
        verdicts[slots] = [outcome.fooled_at == () for outcome in result.read_outcomes()]
    total = len(verdicts[16])
    for slots in (64, 256):
        same = sum(first == second for first, second in zip(verdicts[16], verdicts[slots], strict=True))
        print(f"{name}: {same} of {total} verdicts agree at 16 and {slots} slots")
        assert same / total >= 0.995


@pytest.mark.slow
@pytest.mark.skipif((os.cpu_count() or 1) < 2, reason="the promise is for two cores")
def test_the_mini_evaluation_takes_less_than_a_minute(tmp_path: Path) -> None:
    result = robench.evaluate("mini-resnet-gelu-adv", "mini-pgd-linf", run_dir=tmp_path)
    print(f"{result.cost['wall_seconds']} s")
    assert result.cost["wall_seconds"] < 60
