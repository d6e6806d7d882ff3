"""A model that is there twice, whatever was done to its weights; real models of the suite as the measure."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from robench.classifier import Classifier
from robench.door import model_record
from robench.outcome import Outcome
from robench.result import ModelRecord
from robench.submission import RESULT
from robench.validation import validate
from robench.validation.duplicates import SAME, Identity, check_duplicates, distance, identities
from robench.validation.reading import places
from robench.zoo import MODELS, load_model
from tests.claims import TOY, claim, edit_json, toy_outcomes, toy_rules
from tests.claims import model_record as drawn_record

RULES = toy_rules()


def found(repository: Path) -> dict[str, str]:
    """What was found, by code; random toys may be remarkable, which is not the question here."""
    findings = validate([repository], rules=RULES).findings
    return {finding.code: finding.found for finding in findings if not finding.code.startswith("RB6")}


def _record(model: nn.Module, name: str) -> ModelRecord:
    record = model_record(Classifier(model, name=name), None, (64, 64))
    loaded = {"weights_sha256": record.state_digest, "loader": "robench.zoo:Toy", "reference": "toy"}
    return record.model_copy(update=loaded)


@pytest.fixture(scope="module")
def records() -> dict[str, ModelRecord]:
    return {name: _record(load_model(name), name) for name in MODELS}


class _Scaled(nn.Module):
    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        logits: torch.Tensor = self.model(images)
        return 2 * logits


def _nudged() -> nn.Module:
    """One weight of the model, one unit in the last place."""
    model = load_model("mini-resnet-adv")
    weight = next(model.parameters())
    weight.data.view(-1)[0] = torch.nextafter(weight.data.view(-1)[0], torch.tensor(10.0))
    return model


def _halved() -> nn.Module:
    """Weights rounded to half floats."""
    model = load_model("mini-resnet-adv")
    return model.half().float()


@pytest.mark.parametrize("change", [_nudged, _halved, lambda: _Scaled(load_model("mini-resnet-adv"))])
def test_a_copy_is_found_whatever_was_done_to_its_weights(
    change: Any, tmp_path: Path, records: dict[str, ModelRecord]
) -> None:
    copy = _record(change(), "copy")
    assert copy.state_digest != records["mini-resnet-adv"].state_digest
    claim(tmp_path, "alpha", rules=RULES, record=records["mini-resnet-adv"], seed=1)
    claim(tmp_path, "beta", rules=RULES, record=copy, seed=2)
    assert found(tmp_path) == {"RB803": f"that of submissions/alpha/{TOY}"}


def test_the_bundled_models_are_far_from_each_other(tmp_path: Path, records: dict[str, ModelRecord]) -> None:
    for seed, (name, record) in enumerate(records.items()):
        claim(tmp_path, name, rules=RULES, record=record, seed=seed)
    assert found(tmp_path) == {}
    known = identities(places(tmp_path)[0])
    gaps = [distance(a.function, b.function) for a in known for b in known if a.name != b.name]
    assert min(gaps) > 10 * SAME


def test_a_renamed_copy_is_found_under_another_protocol_too(tmp_path: Path) -> None:
    other = toy_rules(id="toy-b").protocols["toy-b@2"]
    rules = toy_rules(40, other)
    claim(tmp_path, "alpha", rules=rules)
    copy = claim(
        tmp_path, "beta", rules=rules, name="toy-b@2", record=drawn_record("beta", 0), outcomes=toy_outcomes(seed=3)
    )
    codes = [finding.code for finding in validate([copy.folder], rules=rules).findings]
    assert codes == ["RB801"]


def test_two_models_under_one_name_are_found(tmp_path: Path) -> None:
    other = toy_rules(id="toy-b").protocols["toy-b@2"]
    rules = toy_rules(40, other)
    claim(tmp_path, "alpha", rules=rules)
    second = claim(tmp_path, "alpha", rules=rules, name="toy-b@2", seed=1)
    findings = validate([second.folder], rules=rules).findings
    assert [finding.code for finding in findings] == ["RB805"]


def test_a_loader_under_two_names_is_found_though_neither_model_has_weights_to_compare(tmp_path: Path) -> None:
    code = {"repository": "https://a.org/x", "commit": "0" * 40, "entry_point": "a:b", "weights_sha256": "1" * 64}
    bare = {"state_digest": None, "configuration_sha256": None, "fingerprint": ()}
    for seed, (name, said) in enumerate([("alpha", code), ("beta", code), ("gamma", {**code, "entry_point": "a:c"})]):
        record = drawn_record(name, seed).model_copy(update=bare)
        claim(tmp_path, name, rules=RULES, seed=seed, record=record, words={"loader": said})
    findings = [each for each in validate([tmp_path], rules=RULES).findings if each.code.startswith("RB8")]
    assert [(each.code, each.file, each.found) for each in findings] == [
        ("RB806", f"submissions/beta/{TOY}/submission.toml", f"that of submissions/alpha/{TOY}")
    ]


@pytest.mark.parametrize("content", ["loader = 3", "loader = []", "[loader", "", "\xff", "a = 1e999"])
def test_a_loader_that_cannot_be_read_is_nobodys(content: str, tmp_path: Path) -> None:
    for seed, name in enumerate(["alpha", "beta"]):
        place = claim(tmp_path, name, rules=RULES, seed=seed, record=drawn_record(name, seed))
        (place.folder / "submission.toml").write_text(content, encoding="latin-1")
    assert not {"RB806"} & {each.code for each in validate([tmp_path], rules=RULES).findings} or content == "loader = 3"


def _noisy(outcomes: list[Outcome], factor: float) -> list[Outcome]:
    """Margins scaled, and changed in their third digit."""
    return [
        replace(each, clean_margin=float(f"{factor * each.clean_margin * (1 + (index % 3 - 1) * 0.002):.3g}"))
        for index, each in enumerate(outcomes)
    ]


@pytest.mark.parametrize("factor", [1.0, 3.0])
def test_nearly_equal_margins_are_found(factor: float, tmp_path: Path) -> None:
    claim(tmp_path, "alpha", rules=RULES)
    claim(tmp_path, "beta", rules=RULES, seed=1, outcomes=_noisy(toy_outcomes(), factor))
    assert found(tmp_path) == {"RB804": f"nearly the margins of submissions/alpha/{TOY}"}


def test_margins_that_agree_at_first_are_read_to_the_end(tmp_path: Path) -> None:
    rules = toy_rules(200)
    first, second = toy_outcomes(200, seed=0), toy_outcomes(200, seed=1)
    claim(tmp_path, "alpha", rules=rules, outcomes=first)
    claim(tmp_path, "beta", rules=rules, seed=1, outcomes=[*first[:64], *second[64:]])
    assert [finding.code for finding in validate([tmp_path], rules=rules).findings] == []


def test_a_model_without_weights_and_fingerprint_is_compared_by_margins_alone(tmp_path: Path) -> None:
    bare = {"state_digest": None, "configuration_sha256": None, "fingerprint": (), "weights_sha256": None}
    for seed, name in enumerate(["alpha", "beta"]):
        record = drawn_record(name, seed).model_copy(update=bare)
        words = {"loader": None}
        claim(tmp_path, name, rules=RULES, seed=seed, record=record, words=words)
    assert set(found(tmp_path)) == {"RB703"}


def test_a_broken_neighbour_does_not_hide_a_copy(tmp_path: Path) -> None:
    first = claim(tmp_path, "alpha", rules=RULES)
    broken = claim(tmp_path, "aardvark", rules=RULES, seed=4)
    edit_json(broken.folder / RESULT, lambda content: content.pop("model"))
    assert json.loads((first.folder / RESULT).read_bytes())["model"]
    claim(tmp_path, "beta", rules=RULES, record=drawn_record("beta", 0), seed=5)
    assert set(found(tmp_path)) == {"RB203", "RB801"}


def test_distance_of_what_cannot_be_compared_is_infinite() -> None:
    assert distance(None, [1.0]) == distance([1.0], [0.6, 0.8]) == float("inf")
    assert distance([0.6, 0.8], [0.6, 0.8]) == pytest.approx(0, abs=1e-7)
    assert distance([1.0, 0.0], [0.0, 1.0]) == pytest.approx(2**0.5)


def test_nothing_is_compared_with_nothing() -> None:
    known: list[Identity] = []
    assert list(check_duplicates(known, [])) == []
