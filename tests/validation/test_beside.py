"""Verdicts and refutations beside a claim: honest ones pass, and each tampering is found by its code."""

import base64
import hashlib
import json
import os
import zlib
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from robench.budgets import PatchArea
from robench.errors import SubmissionError
from robench.leaderboard.board import rows_of
from robench.protocol import PatchSpec, fraction
from robench.refutation import Change, Patched, Refutation, Square, read_refutation, room
from robench.registry import list_protocols
from robench.submission import RESULT
from robench.validation import Place, Rules, validate
from robench.verification import Verdict, called, read_verdict
from tests.claims import TOY, claim, put_refutation, put_verdict, toy_outcomes, toy_rules
from tests.shifted_claims import KINDS, Kind, shifted_claim, shifted_outcomes, shifted_rules
from tests.test_protocol import MISSING
from tests.test_verification import ABOUT

RULES = toy_rules(200)
ROBUST = [each.id for each in toy_outcomes(200) if each.clean == each.label and not each.fooled_at]
BROKEN = [each.id for each in toy_outcomes(200) if each.fooled_at]
KEYS = [key for record in (Verdict, Refutation, Change, Patched, Square) for key in record.model_fields]
VERDICT, REFUTATION = f"verifications/alpha/{TOY}/verdict.json", f"refutations/alpha/{TOY}/sceptic.json"


@pytest.fixture
def place(tmp_path: Path) -> Place:
    return claim(tmp_path, rules=RULES)


def codes(place: Place, rules: Rules = RULES) -> list[tuple[str, str, str]]:
    report = validate([place.root], rules=rules)
    return [(each.code, each.file, each.pointer) for each in report.findings if each.severity == "error"]


def packed(values: list[int]) -> str:
    return base64.b64encode(zlib.compress(bytes(value % 256 for value in values))).decode()


def test_honest_ones_pass(place: Place) -> None:
    refutation = put_refutation(place, ROBUST[:3])
    sha256 = hashlib.sha256(refutation.read_bytes()).hexdigest()
    put_verdict(place, RULES, asked=50, fell=2, confirmed=[{"sha256": sha256, "ids": ROBUST[:2]}])
    assert codes(place) == []


def _edit(change: Callable[[dict[str, Any]], object]) -> Callable[[Path], object]:
    def edited(path: Path) -> None:
        content = json.loads(path.read_text())
        change(content)
        path.write_text(json.dumps(content))

    return edited


def _stands(content: dict[str, Any]) -> None:
    """One more stood, in counts and in the list: consistent, and yet another draw's."""
    content["examples"][0], content["examples"][1] = content["examples"][1], content["examples"][0]


VERDICTS: dict[str, tuple[Callable[[Path], object], str, str]] = {
    "a count lowered": (_edit(lambda c: c.update(fell=0)), "RB901", ""),
    "a count of examples raised": (_edit(lambda c: c.update(asked=60)), "RB901", ""),
    "an example that fell, left out": (
        _edit(lambda c: (c["examples"].pop(0), c.update(asked=49, fell=1))),
        "RB904",
        "/examples/0/id",
    ),
    "examples in another order": (_edit(_stands), "RB904", "/examples/0/id"),
    "an example the verifier chose": (
        _edit(lambda c: c["examples"][7].update(id=BROKEN[0])),
        "RB904",
        "/examples/7/id",
    ),
    "another public value": (_edit(lambda c: c.update(public_value="round 8")), "RB904", "/examples/0/id"),
    "another merge commit": (_edit(lambda c: c.update(merge_commit="1" * 40)), "RB904", "/examples/0/id"),
    "no control that fell": (_edit(lambda c: c["controls"].reverse()), "RB904", "/controls/0/id"),
    "no controls": (_edit(lambda c: c.update(controls=[])), "RB904", "/controls"),
    "fewer called robust": (_edit(lambda c: c.update(robust=60)), "RB903", "/robust"),
    "fewer examples": (_edit(lambda c: c.update(of=180)), "RB903", "/of"),
    "another result": (_edit(lambda c: c.update(result_sha256="0" * 64)), "RB902", "/result_sha256"),
    "a flip rate that forgives": (_edit(lambda c: c.update(flip_rate=0.4)), "RB901", ""),
    "a soft margin that forgives": (_edit(lambda c: c.update(soft_margin=9.0)), "RB901", ""),
    "a tier": (_edit(lambda c: c.update(tier="reproduced")), "RB901", ""),
    "a refutation that is not there": (
        _edit(lambda c: c.update(confirmed=[{"sha256": "0" * 64, "ids": []}])),
        "RB905",
        "/confirmed/0/sha256",
    ),
    "no JSON": (lambda path: path.write_bytes(b"\xff"), "RB901", ""),
    "huge": (lambda path: path.write_bytes(b" " * 2_000_001), "RB105", ""),
}


@pytest.mark.parametrize("name", VERDICTS)
def test_a_tampered_verdict_is_found(name: str, place: Place) -> None:
    change, code, pointer = VERDICTS[name]
    change(put_verdict(place, RULES, asked=50, fell=2))
    assert (code, VERDICT, pointer) in codes(place)
    assert {each for each, _, _ in codes(place)} == {code}


REFUTATIONS: dict[str, tuple[Callable[[dict[str, Any]], object], str, str]] = {
    "an example called broken": (lambda c: c["images"][0].update(id=BROKEN[0]), "RB906", "/images/0/id"),
    "an example of nobody's": (lambda c: c["images"][1].update(id="toy-x"), "RB906", "/images/1/id"),
    "an example twice": (lambda c: c["images"][1].update(id=ROBUST[0]), "RB906", "/images/1/id"),
    "another result": (lambda c: c.update(result_sha256="0" * 64), "RB902", "/result_sha256"),
    "a larger unit": (lambda c: c["images"][1].update(unit=4.1 / 255), "RB907", "/images/1/steps"),
    "a longer step": (lambda c: c["images"][1].update(steps=packed([0] * 11 + [-2])), "RB907", "/images/1/steps"),
    "too few steps": (lambda c: c["images"][1].update(steps=packed([0] * 11)), "RB907", "/images/1/steps"),
    "too many steps": (lambda c: c["images"][1].update(steps=packed([0] * 10**7)), "RB907", "/images/1/steps"),
    "more behind the steps": (
        lambda c: c["images"][1].update(steps=base64.b64encode(zlib.compress(bytes(12)) + b"more").decode()),
        "RB907",
        "/images/1/steps",
    ),
    "steps of no kind": (lambda c: c["images"][1].update(steps="~"), "RB907", "/images/1/steps"),
    "a huge image": (lambda c: c["images"][1].update(shape=[3, 99999, 99999]), "RB901", ""),
    "a larger image than the protocol's": (
        lambda c: c["images"][1].update(shape=[3, 65, 64], steps=packed([0] * 3 * 65 * 64)),
        "RB907",
        "/images/1/shape",
    ),
    "a negative unit": (lambda c: c["images"][1].update(unit=-0.01), "RB901", ""),
    "no image": (lambda c: c.update(images=[]), "RB901", ""),
    "a pixel": (lambda c: c["images"][0].update(pixels="AAAA"), "RB901", ""),
    "markup over two lines": (lambda c: c.update(how="a\n<b>"), "RB901", ""),
}


@pytest.mark.parametrize("name", REFUTATIONS)
def test_a_tampered_refutation_is_found(name: str, place: Place) -> None:
    change, code, pointer = REFUTATIONS[name]
    _edit(change)(put_refutation(place, ROBUST[:2]))
    assert codes(place) == [(code, REFUTATION, pointer)]


PATCHED = toy_rules(200, budget={"kind": "patches", "area": "1/10", "patches": 2})
"""Images of 20 x 30 pixels have room for two squares of 5."""


def _square(size: int, **changes: Any) -> dict[str, Any]:
    return {"row": 15, "column": 25, "side": size, "pixels": packed([255, 0, 9, 7] * size**2), **changes}


SQUARES: dict[str, tuple[dict[str, Any], str, str]] = {
    "two squares": ({"squares": [_square(5), _square(5, row=0, column=0)]}, "", ""),
    "three squares": ({"squares": [_square(1), _square(1), _square(1)]}, "RB907", "/images/0/squares"),
    "a larger square": ({"squares": [_square(6, row=0, column=0)]}, "RB907", "/images/0/squares"),
    "a square below the image": ({"squares": [_square(5, row=16)]}, "RB907", "/images/0/squares"),
    "a square beside the image": ({"squares": [_square(5, column=26)]}, "RB907", "/images/0/squares"),
    "too few pixels": ({"squares": [_square(5, pixels=packed([0] * 99))]}, "RB907", "/images/0/squares"),
    "too many pixels": ({"squares": [_square(5, pixels=packed([0] * 10**7))]}, "RB907", "/images/0/squares"),
    "pixels of no kind": ({"squares": [_square(5, pixels="~")]}, "RB907", "/images/0/squares"),
    "some channels": ({"squares": [_square(1, pixels=packed([0, 9, 0, 2]))]}, "", ""),
    "a colour that is not seen": ({"squares": [_square(1, pixels=packed([1, 9, 0, 2]))]}, "RB907", "/images/0/squares"),
    "a mask of no channel": ({"squares": [_square(1, pixels=packed([1, 9, 0, 15]))]}, "RB907", "/images/0/squares"),
    "more behind the pixels": (
        {"squares": [_square(1, pixels=base64.b64encode(zlib.compress(bytes(4)) + b"more").decode())]},
        "RB907",
        "/images/0/squares",
    ),
    "a square that is said to be larger": ({"squares": [_square(5, side=7)]}, "RB907", "/images/0/squares"),
    "a huge square": ({"squares": [_square(5, side=10**9)]}, "RB901", ""),
    "a square too long to write": ({"squares": [_square(5, side=10**4000)]}, "RB901", ""),
    "a square of nothing": ({"squares": [_square(5, side=0)]}, "RB901", ""),
    "a square above the image": ({"squares": [_square(5, row=-1)]}, "RB901", ""),
    "an unknown key": ({"squares": [_square(5, colour="red")]}, "RB901", ""),
    "no square": ({"squares": []}, "RB901", ""),
    "a change and squares": ({"squares": [_square(5)], "unit": 0.1, "steps": packed([0] * 1800)}, "RB901", ""),
    "a change": ({"unit": 1 / 255, "steps": packed([0] * 1800)}, "RB907", "/images/0/steps"),
}


@pytest.mark.parametrize("name", SQUARES)
def test_squares_are_held_to_their_budget(name: str, tmp_path: Path) -> None:
    content, code, pointer = SQUARES[name]
    place = claim(tmp_path, rules=PATCHED)
    put_refutation(place, [], images=[{"id": ROBUST[0], "shape": [3, 20, 30], **content}])
    assert codes(place, PATCHED) == ([(code, REFUTATION, pointer)] if code else [])
    findings = validate([place.root], rules=PATCHED).findings
    assert all(len(each.found) < 300 for each in findings)
    if code == "RB907":
        assert {each.expected for each in findings} == {"at most 2 squares of 5 pixels, inside the image"}


def test_what_all_refutations_of_a_claim_unpack_to_is_bounded(place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("robench.validation.beside.MOST_VALUES", 3 * 2 * 2 * 3)
    path = put_refutation(place, ROBUST[:2])
    assert codes(place) == []
    path.with_name("later.json").write_bytes(path.read_bytes())
    assert codes(place) == [("RB105", REFUTATION, "/images")]  # the second by name


def test_what_a_file_unpacks_to_is_bounded_whatever_the_images_shape(place: Place, tmp_path: Path) -> None:
    """Squares count as what they are; a change as all of its image."""
    image = {"id": "x", "shape": [3, 224, 224], "squares": [_square(35)]}
    assert _said(read_refutation, put_refutation(place, [], images=[image] * 1000).read_bytes()) == ""
    many = put_refutation(place, [], images=[{**image, "squares": [_square(1, side=2000)] * 2}])
    assert "expected at most 30,000,000 values in all images" in _said(read_refutation, many.read_bytes())


def test_squares_are_as_large_as_the_attack_makes_them() -> None:
    """Written once in exact fractions for files, once in floats for tensors."""
    checked = 0
    for protocol in list_protocols():
        if isinstance(protocol.budget, PatchSpec):
            size, budget = protocol.data.crop, protocol.budget
            side = PatchArea(float(fraction(budget.area)), budget.patches).side(size, size)
            assert room(budget, size, size) == f"at most {budget.patches} squares of {side} pixels, inside the image"
            checked += 1
    assert checked >= 10


def test_squares_under_a_budget_of_small_changes_are_found(place: Place) -> None:
    put_refutation(place, [], images=[{"id": ROBUST[0], "shape": [3, 20, 30], "squares": [_square(5)]}])
    assert codes(place) == [("RB907", REFUTATION, "/images/0/squares")]


def test_a_malformed_square_is_named_where_it_stands(place: Place) -> None:
    path = put_refutation(place, [], images=[{"id": "x", "shape": [3, 20, 30], "squares": [_square(5, side=0)]}])
    said = _said(read_refutation, path.read_bytes())
    assert "'/images/0/squares/0/side' is 0, expected greater than or equal to 1" in said


def _said(reader: Callable[..., object], content: bytes) -> str:
    """What a reader complains about; "" where it does not."""
    try:
        reader(content, where="file")
    except SubmissionError as error:
        return str(error)
    return ""


@given(
    st.recursive(
        st.none() | st.booleans() | st.integers() | st.floats() | st.text() | st.just("HUGE"),
        lambda inner: st.lists(inner) | st.dictionaries(st.sampled_from([*KEYS, "x"]), inner),
    ),
    st.sampled_from(KEYS),
)
@settings(max_examples=300, deadline=None, derandomize=True)
def test_whatever_stands_in_a_file_is_a_complaint_and_no_traceback(value: Any, key: str) -> None:
    """Any value under any key, among them integers of thousands of digits, and files that are nothing but a value."""
    for content in (value, {**ABOUT, "examples": [], "asked": 0, key: value}):
        text = json.dumps(content).replace('"HUGE"', "9" * 5000).encode()
        for said in (_said(read_refutation, text), _said(read_verdict, text)):
            assert said == "" or (said.startswith("file: ") and len(said) < 1000)


def test_nesting_without_end_is_a_complaint() -> None:
    for content in (b"[" * 100_000, b'{"a":' * 100_000, b"\xff", b""):
        assert _said(read_refutation, content).startswith("file: `refutation` is malformed (content is ")
        assert _said(read_verdict, content).startswith("file: `verdict` is malformed (content is ")


def test_a_ball_is_that_of_the_protocol(tmp_path: Path) -> None:
    """In L2 the length of twelve values counts: 0.05 each is 0.173."""
    for name, epsilon, expected in (("in", "18/100", []), ("out", "17/100", ["RB907"])):
        rules = toy_rules(200, budget={"norm": "l2", "epsilon": epsilon})
        place = claim(tmp_path / name, rules=rules)
        change = {"id": ROBUST[0], "shape": [3, 2, 2], "unit": 0.05, "steps": packed([1, -1] * 6)}
        put_refutation(place, [], images=[change])
        assert [code for code, _, _ in codes(place, rules)] == expected


def test_patches_are_not_refuted_by_changes(tmp_path: Path) -> None:
    rules = toy_rules(200, budget={"kind": "patches", "area": "1/10", "patches": 1})
    place = claim(tmp_path, rules=rules)
    put_refutation(place, ROBUST[:1])
    assert [code for code, _, _ in codes(place, rules)] == ["RB907"]


def test_nothing_lies_beside_shares_of_answers(tmp_path: Path) -> None:
    rules = toy_rules(200, attack__draws=20, score={"asks": 20})
    asked = [replace(each, fooled_at=(), stage="", clean_right=20, attacked_right=3) for each in toy_outcomes(200)]
    place = claim(tmp_path, rules=rules, outcomes=asked)
    put_refutation(place, ROBUST[:1])
    assert [code for code, _, _ in codes(place, rules)] == ["RB902"]


def test_what_is_beside_no_claim_is_found(place: Place) -> None:
    path = put_refutation(place, ROBUST[:1])
    path.parent.parent.rename(path.parent.parent.parent / "omega")
    assert codes(place) == [("RB902", f"refutations/omega/{TOY}", "")]


def test_links_and_other_files_are_not_read(place: Place) -> None:
    path = put_refutation(place, ROBUST[:1])
    (path.parent / "notes.md").write_text("x")
    (path.parent / "link.json").symlink_to("/etc/passwd")
    os.mkfifo(path.parent / "pipe.json")
    folder = path.relative_to(place.root.parent).parent.as_posix()
    found = {(code, file) for code, file, _ in codes(place)}
    assert found == {
        ("RB103", f"{folder}/notes.md"),
        ("RB104", f"{folder}/link.json"),
        ("RB104", f"{folder}/pipe.json"),
    }


@pytest.mark.parametrize("kind", ["refutations", "verifications"])
@pytest.mark.parametrize("depth", [0, 1, 2])
def test_a_linked_folder_is_found_and_nothing_in_it_is_read(
    place: Place, kind: str, depth: int, tmp_path: Path
) -> None:
    secret = "nobody should see this"
    target = tmp_path / "elsewhere"
    parts = [kind, place.model, place.protocol]
    link = place.root.parent.joinpath(*parts[: depth + 1])
    inside = target.joinpath(*parts[depth + 1 :])
    inside.mkdir(parents=True)
    (inside / "secret.json").write_text(json.dumps({"schema": secret}))
    link.parent.mkdir(parents=True, exist_ok=True)
    link.symlink_to(target)
    report = validate([place.root], rules=RULES)
    assert [(each.code, each.file) for each in report.findings] == [("RB104", "/".join(parts[: depth + 1]))]
    assert secret not in str(report.findings)
    assert "secret.json" not in str(report.findings)


def test_a_file_among_folders_of_verdicts_is_found(place: Place) -> None:
    (place.root.parent / "verifications" / "alpha").mkdir(parents=True)
    (place.root.parent / "verifications" / "README.md").write_text("Verdicts.")
    (place.root.parent / "verifications" / "alpha" / "notes.txt").write_text("x")
    assert codes(place) == [("RB103", "verifications/alpha/notes.txt", "")]


def test_a_linked_folder_of_submissions_is_refused(place: Place, tmp_path: Path) -> None:
    linked = tmp_path / "linked"
    linked.mkdir()
    (linked / "submissions").symlink_to(place.root)
    for path in (linked, linked / "submissions", linked / "submissions" / place.model):
        with pytest.raises(SubmissionError, match=r"`path` is a link; expected a folder\."):
            validate([path], rules=RULES)


def test_a_verdict_about_an_attack_that_is_none(tmp_path: Path) -> None:
    """Without an attack nothing is called broken, and what is right is what is called robust."""
    rules = toy_rules(200, attack=MISSING, budget=MISSING, score=MISSING)
    outcomes = [
        replace(each, attacked=each.clean, attacked_margin=each.clean_margin, fooled_at=(), stage="")
        for each in toy_outcomes(200)
    ]
    place = claim(tmp_path, rules=rules, outcomes=outcomes)
    put_verdict(place, rules)
    assert codes(place, rules) == []
    assert (place.folder / RESULT).exists()


# --- without an attack


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("right", [0.0, 0.6, 0.97, 1.0])
def test_an_honest_verdict_about_a_claim_without_an_attack(kind: Kind, right: float, tmp_path: Path) -> None:
    """Also where nothing is right and so nothing is asked, and where almost nothing is wrong and controls are few."""
    rules, place = shifted_rules(kind), shifted_claim(tmp_path, kind, right=right)
    asked = min(30, called(next(iter(rules.protocols.values())), shifted_outcomes(kind, right=right)).count)
    path = put_verdict(place, rules, asked=asked)
    assert codes(place, rules) == []
    content = json.loads(path.read_text())
    assert (len(content["examples"]), bool(content["controls"])) == (asked, right < 1 and asked > 0)
    for key in ("examples", "controls"):
        if len(content[key]) > 1:
            path.write_text(json.dumps({**content, key: [content[key][1], content[key][0], *content[key][2:]]}))
            assert [code for code, _, _ in codes(place, rules)] == ["RB904"]


def test_a_verdict_that_names_a_cell_which_is_called_wrong(tmp_path: Path) -> None:
    rules, place = shifted_rules("cells"), shifted_claim(tmp_path, "cells")
    path = put_verdict(place, rules, asked=5)
    content = json.loads(path.read_text())
    content["examples"][2]["id"] = content["controls"][0]["id"]
    path.write_text(json.dumps(content))
    file = path.relative_to(tmp_path).as_posix()
    assert codes(place, rules) == [("RB904", file, "/examples/2/id")]


def test_verdicts_behind_a_link_move_no_tier(place: Place, tmp_path: Path) -> None:
    path = put_verdict(place, RULES)
    assert [row.tier for row in rows_of([place], tmp_path, RULES)[0][TOY]] == ["reproduced"]
    moved = tmp_path / "elsewhere"
    folder = path.parent.parent
    folder.rename(moved)
    folder.symlink_to(moved)
    (path.parent / "no-verdict.json").write_text("{}")
    assert [row.tier for row in rows_of([place], tmp_path, RULES)[0][TOY]] == ["checked"]
