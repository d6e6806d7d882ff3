"""What somebody might do to a claim, and the code that catches it; a change that nobody would catch is no test."""

import re
import shutil
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from robench.errors import RunError
from robench.outcome import Outcome, compress, to_csv
from robench.result import ModelRecord
from robench.submission import OUTCOMES, RESULT, TOML
from robench.validation import Place, Rules, validate
from tests.claims import TOY, claim, edit_json, edit_outcome, model_record, result_of, toy_outcomes, toy_rules
from tests.shifted_claims import KINDS, Kind, shifted_claim, shifted_outcomes, shifted_rules

RULES = toy_rules()
HELD = next(index for index, outcome in enumerate(toy_outcomes()) if outcome.clean_correct and not outcome.fooled_at)
FELL = next(index for index, outcome in enumerate(toy_outcomes()) if outcome.fooled_at)
WRONG = next(index for index, outcome in enumerate(toy_outcomes()) if not outcome.clean_correct)
OTHER = toy_outcomes()[FELL].attacked


def codes(place: Path | Place, rules: Rules = RULES) -> dict[str, list[str]]:
    """Findings by code, as text."""
    found: dict[str, list[str]] = {}
    for finding in validate([place.folder if isinstance(place, Place) else place], rules=rules).findings:
        found.setdefault(finding.code, []).append(str(finding))
    return found


def test_an_honest_claim_is_valid(tmp_path: Path) -> None:
    report = validate([claim(tmp_path, rules=RULES).folder], rules=RULES)
    assert (report.claims, report.valid, report.findings) == (1, True, ())


# --- the table of outcomes, changed alone


def _table(place: Place, outcomes: Sequence[Outcome]) -> None:
    (place.folder / OUTCOMES).write_bytes(compress(to_csv(outcomes)))


TABLES: dict[str, tuple[Callable[[list[Outcome]], list[Outcome]], set[str]]] = {
    "one outcome flipped": (
        lambda table: edit_outcome(table, FELL, fooled_at=()),
        {"RB401", "RB405", "RB504"},
    ),
    "one outcome flipped, all traces removed": (
        lambda table: edit_outcome(
            table, FELL, fooled_at=(), attacked=table[FELL].label, attacked_margin=0.1, stage=""
        ),
        {"RB401", "RB405"},
    ),
    "an id swapped": (
        lambda table: [
            replace(each, id=other.id) for each, other in zip(table, [table[1], table[0], *table[2:]], strict=True)
        ],
        {"RB401", "RB403", "RB408"},
    ),
    "an id twice": (lambda table: edit_outcome(table, 5, id=table[4].id), {"RB401", "RB403", "RB408"}),
    "an example dropped": (lambda table: table[:-1], {"RB401", "RB402", "RB403", "RB405", "RB407", "RB408"}),
    "an example added": (lambda table: [*table, replace(table[0], id="more")], {"RB402"}),
    "a label changed": (
        lambda table: edit_outcome(table, WRONG, label=table[WRONG].clean),
        {"RB401", "RB404", "RB405", "RB502", "RB504"},
    ),
}


@pytest.mark.parametrize("name", TABLES)
def test_a_changed_table_is_caught(name: str, tmp_path: Path) -> None:
    change, expected = TABLES[name]
    place = claim(tmp_path, rules=RULES)
    _table(place, change(toy_outcomes()))
    assert set(codes(place)) == expected


# --- a table whose result was made to fit it


FITTING: dict[str, tuple[Callable[[list[Outcome]], list[Outcome]], str, str]] = {
    "a success hidden": (
        lambda table: edit_outcome(table, FELL, fooled_at=()),
        "RB504",
        f"line {FELL + 2}` is \"class {OTHER}, margin -0.25, stage 'pgd'\"; expected the clean class",
    ),
    "the class put back": (
        lambda table: edit_outcome(table, FELL, fooled_at=(), stage="", attacked=table[FELL].label),
        "RB504",
        "expected a margin of at least 0, or a success that the model denied",
    ),
    "broken with a positive margin": (
        lambda table: edit_outcome(table, FELL, attacked_margin=0.5),
        "RB503",
        "margin 0.5",
    ),
    "broken into its own label": (
        lambda table: edit_outcome(table, FELL, attacked=table[FELL].label),
        "RB503",
        "expected another class than the label",
    ),
    "broken without an attack": (
        lambda table: edit_outcome(table, WRONG, fooled_at=(1,), stage="pgd"),
        "RB503",
        "broken, and wrong without an attack",
    ),
    "a wrong example called right": (
        lambda table: edit_outcome(table, WRONG, clean=table[WRONG].label, attacked=table[WRONG].label),
        "RB502",
        "right with a margin of -",
    ),
    "a right example called wrong": (
        lambda table: edit_outcome(table, HELD, clean=OTHER if table[HELD].label != OTHER else (OTHER + 1) % 3),
        "RB502",
        "wrong with a margin of",
    ),
    "an infinite margin": (
        lambda table: edit_outcome(table, HELD, clean_margin=float("inf")),
        "RB502",
        "margin of inf",
    ),
    "a class that is none": (lambda table: edit_outcome(table, FELL, attacked=3), "RB501", "expected 0 to 2"),
    "a step too many": (
        lambda table: edit_outcome(table, FELL, fooled_at=(11,)),
        "RB505",
        "expected steps from 0 to 10",
    ),
    "a step before the first": (
        lambda table: edit_outcome(table, FELL, fooled_at=(-1,)),
        "RB505",
        "expected steps from 0",
    ),
    "an error": (lambda table: edit_outcome(table, FELL, error="no image"), "RB506", "an outcome for every example"),
}


@pytest.mark.parametrize("name", FITTING)
def test_a_table_whose_result_fits_is_caught_by_itself(name: str, tmp_path: Path) -> None:
    change, code, part = FITTING[name]
    found = codes(claim(tmp_path, rules=RULES, outcomes=change(toy_outcomes())))
    assert code in found
    assert part in found[code][0]
    assert not any(each.startswith("RB4") for each in found)  # the numbers fit, which is the point


def test_each_code_is_given_once_with_the_number_of_other_lines(tmp_path: Path) -> None:
    fell = [index for index, outcome in enumerate(toy_outcomes()) if outcome.fooled_at]
    hidden = [replace(each, fooled_at=()) for each in toy_outcomes()]
    (message,) = codes(claim(tmp_path, rules=RULES, outcomes=hidden))["RB504"]
    assert f"`line {fell[0] + 2}` is " in message
    assert f"(and {len(fell) - 1} more lines)" in message


def test_a_denied_success_may_leave_a_negative_margin(tmp_path: Path) -> None:
    denied = edit_outcome(toy_outcomes(), HELD, attacked_margin=-0.001, unconfirmed=1)
    assert codes(claim(tmp_path, rules=RULES, outcomes=denied)) == {}


# --- the result, changed alone


def _raise_metric(content: dict[str, object]) -> None:
    content["metrics"][-1]["numerator"] += 1  # type: ignore[index]


RESULTS: dict[str, tuple[Callable[..., object], set[str], str]] = {
    "a count raised": (
        lambda r: r["metrics"][-1].update(numerator=r["metrics"][-1]["numerator"] + 1),
        {"RB405"},
        "/metrics/2",
    ),
    "a value raised": (lambda r: r["metrics"][-1].update(value=0.99), {"RB406"}, "/metrics/2"),
    "an interval narrowed": (lambda r: r["metrics"][1].update(interval=[0.5, 0.51]), {"RB406"}, "/metrics/1"),
    "a metric left out": (lambda r: r["metrics"].pop(), {"RB405"}, "/metrics/2"),
    "a metric added": (lambda r: r["metrics"].append(r["metrics"][0]), {"RB405", "RB603"}, "/metrics/3"),
    "a digest edited": (lambda r: r["outcomes"].update(sha256="0" * 64), {"RB401"}, "/outcomes/sha256"),
    "rows": (lambda r: r["outcomes"].update(rows=41), {"RB408"}, "/outcomes/rows"),
    "errors": (lambda r: r["counts"].update(errored=1), {"RB407"}, "/counts/errored"),
    "other data": (lambda r: r["data"].update(source="photos"), {"RB408"}, "/data/source"),
    "fewer data": (lambda r: r["data"].update(count=39), {"RB408"}, "/data/count"),
    "other examples": (lambda r: r["data"].update(ids_sha256="1" * 64), {"RB408"}, "/data/ids_sha256"),
    "a partial run": (lambda r: r.update(status="partial"), {"RB306"}, "/status"),
    "an unofficial protocol": (lambda r: r["protocol"].update(official=False), {"RB306"}, "/protocol/official"),
    "unofficial data": (lambda r: r["data"].update(official=False), {"RB306"}, "/data/official"),
    "another protocol": (lambda r: r["protocol"].update(id="toy-fgsm"), {"RB305"}, "/protocol/id"),
    "a protocol that is not in the lock": (
        lambda r: r["protocol"].update(digest="2" * 64),
        {"RB302"},
        "/protocol/digest",
    ),
    "changed code": (lambda r: r["environment"].update(git_dirty="yes"), {"RB604"}, "/environment/git_dirty"),
    "a key more": (lambda r: r.update(verified=True), {"RB203"}, "/verified"),
    "a key less": (lambda r: r.pop("engine"), {"RB204"}, "line "),
    "a word for a number": (lambda r: r["metrics"][0].update(numerator="36"), {"RB204"}, "line "),
    "an escape in a caveat": (lambda r: r["caveats"].append("\x1b[31mred"), {"RB203"}, "/caveats/0"),
    "a text without end": (lambda r: r["model"].update(name="a" * 1001), {"RB203"}, "/model/name"),
    "no number": (lambda r: r["metrics"][0].update(value=float("nan")), {"RB204"}, "line "),
    "other weights": (lambda r: r["model"].update(weights_sha256="3" * 64), {"RB701"}, "/loader/weights_sha256"),
    "weights of one's own in a bundled network": (
        lambda r: r["model"].update(loader="local weights in robench.zoo:ToyNet"),
        {"RB702"},
        "/loader/bundled",
    ),
    "another model": (lambda r: r["model"].update(reference="mini-resnet"), {"RB702"}, "/loader/bundled"),
}


@pytest.mark.parametrize("name", RESULTS)
def test_a_changed_result_is_caught(name: str, tmp_path: Path) -> None:
    change, expected, pointer = RESULTS[name]
    place = claim(tmp_path, rules=RULES)
    edit_json(place.folder / RESULT, change)
    found = codes(place)
    assert set(found) == expected
    assert all(f"`{pointer}" in message for messages in found.values() for message in messages)


def test_a_missing_caveat_is_caught(tmp_path: Path) -> None:
    rules = toy_rules(
        budget={"norm": "linf", "epsilon": "4/255"},
        attack={"kind": "autoattack"},
        score={"stages": ["apgd-ce", "square"]},
    )
    outcomes = [replace(each, stage="square") if each.fooled_at else each for each in toy_outcomes()]
    (message,) = codes(claim(tmp_path, rules=rules, outcomes=outcomes), rules)["RB507"]
    assert "Square, which sees no gradients, broke" in message
    caveat = re.search(r"expected '(Square.*?masking\))", message)
    assert caveat is not None
    strange = [replace(each, stage="apgd-t") if each.stage == "square" else each for each in outcomes]
    (message,) = codes(claim(tmp_path, "beta", rules=rules, outcomes=strange, seed=1), rules)["RB505"]
    assert "is 'apgd-t' (and" in message


# --- protocols


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({"status": "draft"}, {"RB303"}),
        ({"status": "withdrawn"}, {"RB303"}),
        ({"ranked": False}, {"RB304"}),
        ({"status": "superseded"}, set()),
    ],
)
def test_only_released_ranked_protocols_take_claims(
    changes: dict[str, Any], expected: set[str], tmp_path: Path
) -> None:
    rules = toy_rules(**changes)
    assert set(codes(claim(tmp_path, rules=rules), rules)) == expected


def test_an_unknown_protocol_is_named_with_its_neighbour(tmp_path: Path) -> None:
    place = claim(tmp_path, rules=RULES)
    renamed = place.folder.with_name("toy-pdg@2")
    place.folder.rename(renamed)
    found = codes(renamed)
    assert set(found) == {"RB301", "RB305"}
    assert found["RB301"][0].endswith("Did you mean `toy-pgd@2`?")


def test_labels_that_nobody_pinned_are_a_warning(tmp_path: Path) -> None:
    rules = replace(RULES, labels={})
    report = validate([claim(tmp_path, rules=rules).folder], rules=rules)
    assert [finding.code for finding in report.findings] == ["RB606"]
    assert report.valid


# --- one model under two names


def test_a_copy_of_another_models_outcomes_is_caught(tmp_path: Path) -> None:
    claim(tmp_path, "alpha", rules=RULES)
    copy = claim(tmp_path, "beta", rules=RULES, seed=1, outcomes=toy_outcomes(seed=0))
    found = codes(copy)
    assert set(found) == {"RB802"}
    assert f"that of submissions/alpha/{TOY}" in found["RB802"][0]


def test_a_result_under_two_names_is_caught(tmp_path: Path) -> None:
    first = claim(tmp_path, "alpha", rules=RULES)
    second = tmp_path / "submissions" / "beta" / TOY
    shutil.copytree(first.folder, second)
    assert set(codes(second)) == {"RB801", "RB802"}
    assert codes(tmp_path) == codes(second)  # the later of the two is complained about


def test_two_honest_models_are_two(tmp_path: Path) -> None:
    for seed, name in enumerate(["alpha", "beta", "gamma"]):
        claim(tmp_path, name, rules=RULES, seed=seed)
    assert codes(tmp_path) == {}


# --- plausibility


def test_what_is_possible_and_remarkable_is_a_warning(tmp_path: Path) -> None:
    unbroken = claim(tmp_path, "alpha", rules=RULES, outcomes=toy_outcomes(robust=1.0))
    assert set(codes(unbroken)) == {"RB603"}
    best = claim(tmp_path, "beta", rules=RULES, seed=1, outcomes=toy_outcomes(seed=1, robust=0.2))
    assert set(codes(best)) == set()
    assert set(codes(unbroken)) == {"RB602", "RB603"}
    newer = claim(tmp_path, "gamma", rules=RULES, seed=2, outcomes=toy_outcomes(seed=2, robust=0.2), attack_revision=2)
    assert set(codes(newer)) == {"RB605"}
    assert validate([tmp_path], rules=RULES).valid


def test_a_model_that_always_answers_the_same_is_remarkable(tmp_path: Path) -> None:
    constant = [
        replace(each, clean=0, attacked=0, fooled_at=(), stage="", clean_margin=sign, attacked_margin=sign)
        for each in toy_outcomes()
        for sign in [1.0 if each.label == 0 else -1.0]
    ]
    assert set(codes(claim(tmp_path, rules=RULES, outcomes=constant))) == {"RB601", "RB603"}


def test_a_claim_without_a_loader_is_valid_and_says_so(tmp_path: Path) -> None:
    place = claim(tmp_path, rules=RULES, words={"loader": None})
    (message,) = codes(place)["RB703"]
    assert message == (
        f"RB703 warning: submissions/alpha/{TOY}/{TOML}: `/loader` is none; expected bundled, timm, hub, or "
        "repository. Add `[loader]` to submission.toml (docs/submitting.md)."
    )
    assert validate([place.folder], rules=RULES).valid


def test_the_same_examples_in_another_result_are_recomputed(tmp_path: Path) -> None:
    """The test's own generator gives what `validate` recomputes, for another model as well."""
    outcomes = toy_outcomes(seed=5)
    result = result_of(RULES.protocols[TOY], outcomes, model_record("alpha", 5))
    robust = sum(outcome.clean == outcome.label and not outcome.fooled_at for outcome in outcomes)
    assert result.headline.numerator == robust


# --- without an attack


@pytest.mark.parametrize("kind", KINDS)
def test_honest_claims_without_an_attack_are_valid(kind: Kind, tmp_path: Path) -> None:
    place = shifted_claim(tmp_path, kind)
    assert codes(place, shifted_rules(kind)) == {}


@pytest.mark.parametrize(
    ("kind", "number", "found"), [("reference", "over reference", "0.0"), ("cells", "mean error", "1.0")]
)
def test_a_derived_number_that_the_outcomes_do_not_give(kind: Kind, number: str, found: str, tmp_path: Path) -> None:
    place = shifted_claim(tmp_path, kind)
    edit_json(place.folder / RESULT, lambda content: content["derived"][0].update(value=float(found)))
    ((code, (finding,)),) = codes(place, shifted_rules(kind)).items()
    assert code == "RB409"
    expected = rf"`/derived/0` is '?{number} {found} \[.*; expected {number} .*, as the outcomes say"
    assert re.search(expected, finding)


@pytest.mark.parametrize("reference", [None, model_record("resnet50", 98)])
def test_another_reference_model_than_the_protocols(reference: ModelRecord | None, tmp_path: Path) -> None:
    place = shifted_claim(tmp_path, "reference", reference=reference)
    assert list(codes(place, shifted_rules("reference"))) == ["RB307"]


def test_a_reference_model_where_the_protocol_has_none(tmp_path: Path) -> None:
    place = shifted_claim(tmp_path, "plain", reference=model_record("resnet50", 99))
    assert list(codes(place, shifted_rules("plain"))) == ["RB307"]


def test_an_engine_where_nothing_attacks(tmp_path: Path) -> None:
    place = shifted_claim(tmp_path, "plain", engine="reference")
    assert list(codes(place, shifted_rules("plain"))) == ["RB308"]


def test_a_derived_number_left_out(tmp_path: Path) -> None:
    place = shifted_claim(tmp_path, "cells")
    edit_json(place.folder / RESULT, lambda content: content.pop("derived"))
    assert list(codes(place, shifted_rules("cells"))) == ["RB409"]


SHIFTED: dict[str, tuple[Kind, dict[str, Any], set[str]]] = {
    "a texture called that of the shape": ("textures", {"texture": shifted_outcomes("textures")[1].label}, {"RB410"}),
    "a class predicted under an attack": ("plain", {"attacked": 0, "attacked_margin": -9.0}, {"RB508"}),
    "a step to success": ("cells", {"fooled_at": (3,), "stage": "pgd"}, {"RB508"}),
    "a reference that predicts no class": ("reference", {"reference": 3}, {"RB501"}),
    "a class among others that does not exist": ("among", {"among": -1}, {"RB501"}),
    "one clean image unseen": ("cells", {"clean": -1, "attacked": -1}, {"RB501"}),
    "one clean image seen": ("cells without clean", {"clean": 0, "attacked": 0}, {"RB501"}),
    "a mask of too many cells": ("cells", {"cells": "ff"}, {"RB405"}),
    "a mask that is no number": ("cells", {"cells": "zz"}, {"RB405"}),
    "a mask in other digits": ("cells", {"cells": "3F"}, {"RB405"}),
    "a mask with a sign": ("cells without clean", {"cells": "+f"}, {"RB405"}),
    "no mask": ("cells", {"cells": None}, {"RB206"}),
    "a mask where there are no cells": ("plain", {"cells": "junk"}, {"RB206"}),
    "queries where nothing asks": ("textures", {"queries": 5, "patches": 1, "area": 0.1}, {"RB508"}),
    "another class best among some than best of all": (
        "among",
        {"among": (shifted_outcomes("among")[1].clean + 1) % 3},
        {"RB508"},
    ),
}


@pytest.mark.parametrize("name", SHIFTED)
def test_a_table_that_no_look_gives_is_caught(name: str, tmp_path: Path) -> None:
    kind, changes, expected = SHIFTED[name]
    place, rules = shifted_claim(tmp_path, kind), shifted_rules(kind)
    outcomes = edit_outcome(shifted_outcomes(kind), 1, **changes)
    _table(place, outcomes)
    with suppress(RunError):
        (protocol,) = rules.protocols.values()
        reference = model_record("resnet50", 99) if kind == "reference" else None
        made = result_of(protocol, outcomes, model_record("alpha", 0), reference=reference)
        (place.folder / RESULT).write_bytes(made.to_bytes())
    assert set(codes(place, rules)) - {"RB401"} >= expected
    if "RB405" not in expected:
        assert "RB401" not in codes(place, rules)


def test_weights_of_ones_own_on_the_hub_need_their_digest(tmp_path: Path) -> None:
    """The result knows no repository: any name would do."""
    place = claim(tmp_path, rules=RULES)
    edit_json(place.folder / RESULT, lambda r: r["model"].update(loader="local weights in robench.zoo:ToyNet"))
    path = place.folder / TOML
    head, _, loader = path.read_text().partition("[loader]")
    digest = next(line for line in loader.splitlines() if line.startswith("weights_sha256"))
    hub = f'{head}[loader]\nhub = "some/repo"\nrevision = "{"c" * 40}"\n'
    path.write_text(hub)
    assert set(codes(place)) == {"RB701"}
    path.write_text(f"{hub}{digest}\n")
    assert codes(place) == {}
