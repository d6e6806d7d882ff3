import copy
import hashlib
import json
from collections.abc import Iterator
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import ValidationError

from robench.errors import ProtocolError
from robench.protocol import PatchSpec, Protocol, fraction, parse_protocol, read_protocol

CONTENT: dict[str, Any] = {
    "schema": "robench.protocol/1",
    "id": "toy-pgd",
    "version": 2,
    "status": "draft",
    "title": "A toy",
    "summary": "For tests.",
    "supersedes": "toy-pgd@1",
    "ranked": True,
    "seed": 7,
    "data": {"source": "toy", "count": 7, "classes": 3, "ids_sha256": "ab" * 32, "resize": 72, "crop": 64},
    "attack": {"kind": "pgd", "step_size": "1/255", "steps": 10, "clip": True},
    "budget": {"norm": "linf", "epsilon": "4/255"},
    "score": {"scoring": "any iterate", "steps": [5, 10]},
}
LOOSE = {"status", "title", "summary", "supersedes", "ranked"}
MISSING = object()


def changed(**changes: Any) -> dict[str, Any]:
    """CONTENT with other values; `data__count=3` sets data.count, MISSING removes the key."""
    content = copy.deepcopy(CONTENT)
    for path, value in changes.items():
        *tables, key = path.split("__")
        table = content
        for name in tables:
            table = table[name]
        if value is MISSING:
            del table[key]
        else:
            table[key] = value
    return content


def protocol(**changes: Any) -> Protocol:
    return parse_protocol(changed(**changes), where="toy-pgd.toml")


def to_toml(content: dict[str, Any]) -> str:
    """TOML of scalars, lists and one level of tables, for which JSON's literals are TOML's."""
    top = [f"{key} = {json.dumps(value)}" for key, value in content.items() if not isinstance(value, dict)]
    for name, table in content.items():
        if isinstance(table, dict):
            top += [f"[{name}]", *(f"{key} = {json.dumps(value)}" for key, value in table.items())]
    return "\n".join(top) + "\n"


def _leaves(content: dict[str, Any], prefix: str = "") -> Iterator[str]:
    for key, value in content.items():
        if isinstance(value, dict):
            yield from _leaves(value, f"{prefix}{key}__")
        else:
            yield f"{prefix}{key}"


# One other legal value of every key that the digest must see.
OTHER_VALUES: dict[str, Any] = {
    "id": "toy-pgd-b",
    "version": 3,
    "seed": 8,
    "data__source": "other",
    "data__count": 8,
    "data__classes": 4,
    "data__ids_sha256": "cd" * 32,
    "data__resize": 73,
    "data__crop": 65,
    "attack__kind": "other",
    "attack__step_size": "2/255",
    "attack__steps": 11,
    "attack__clip": False,
    "budget__norm": "l2",
    "budget__epsilon": "5/255",
    "score__scoring": "last iterate",
    "score__steps": [5, 9],
}


def test_a_file_is_read_as_it_stands(tmp_path: Path) -> None:
    path = tmp_path / "toy-pgd.toml"
    path.write_text(to_toml(CONTENT), encoding="utf-8")
    read = read_protocol(path)
    assert read == protocol()
    assert read.exact_name == "toy-pgd@2"
    assert read.attack is not None
    assert read.attack.settings == {"step_size": "1/255", "steps": 10, "clip": True}
    assert read.score.steps == (5, 10)


def test_what_is_dumped_into_a_plan_reads_back_the_same() -> None:
    for each in (protocol(), protocol(data__resize=MISSING, supersedes=MISSING)):
        dumped = each.model_dump(mode="json", by_alias=True, exclude_none=True)
        again = parse_protocol(json.loads(json.dumps(dumped)), where="plan.json")
        assert again == each
        assert again.digest == each.digest


def test_a_protocol_does_not_change() -> None:
    with pytest.raises(ValidationError, match="frozen"):
        protocol().seed = 3


def test_few_asks_are_for_protocols_that_are_not_ranked() -> None:
    few = protocol(attack__draws=1, score={"asks": 3}, ranked=False)
    assert (few.score.asks, few.ranked) == (3, False)
    assert few.attack is not None
    assert "draws" not in few.attack.settings


def test_asks_and_draws_are_in_the_digest() -> None:
    digests = {protocol(attack__draws=draws, score={"asks": asks}).digest for draws in (1, 2) for asks in (20, 21)}
    assert len(digests | {protocol().digest}) == 5


# --- digest


def test_the_digest_is_sha256_of_the_binding_content_in_canonical_json() -> None:
    canonical = (
        '{"attack":{"clip":true,"kind":"pgd","step_size":"1/255","steps":10},'
        '"budget":{"epsilon":"4/255","norm":"linf"},'
        '"data":{"classes":3,"count":7,"crop":64,"ids_sha256":"' + "ab" * 32 + '","resize":72,"source":"toy"},'
        '"id":"toy-pgd","schema":"robench.protocol/1","score":{"scoring":"any iterate","steps":[5,10]},'
        '"seed":7,"version":2}'
    )
    assert protocol().digest == hashlib.sha256(canonical.encode()).hexdigest()


@given(st.randoms(use_true_random=False))
@settings(max_examples=25, deadline=None, derandomize=True)
def test_the_digest_does_not_see_the_order_of_keys(random: Any) -> None:
    def shuffled(table: dict[str, Any]) -> dict[str, Any]:
        keys = list(table)
        random.shuffle(keys)
        return {key: shuffled(table[key]) if isinstance(table[key], dict) else table[key] for key in keys}

    assert parse_protocol(shuffled(CONTENT), where="x").digest == protocol().digest


@given(
    status=st.sampled_from(["draft", "active", "superseded", "withdrawn"]),
    title=st.text(),
    summary=st.text(),
    supersedes=st.none() | st.text(),
    ranked=st.booleans(),
)
@settings(max_examples=40, deadline=None, derandomize=True)
def test_the_digest_does_not_see_what_may_change_without_a_new_version(**loose: Any) -> None:
    assert set(loose) == LOOSE
    assert protocol(**loose).digest == protocol().digest


def test_the_digest_sees_every_other_key() -> None:
    assert set(OTHER_VALUES) == set(_leaves(CONTENT)) - LOOSE - {"schema"}  # there is one legal schema
    digests = {path: protocol(**{path: value}).digest for path, value in OTHER_VALUES.items()}
    assert len({protocol().digest, *digests.values()}) == len(digests) + 1


def test_the_digest_sees_keys_that_come_and_go() -> None:
    others = [
        protocol(attack__restarts=2),
        protocol(attack__clip=MISSING),
        protocol(attack__clip=1),
        protocol(data__resize=MISSING),
        protocol(score=MISSING),
        protocol(attack=MISSING, budget=MISSING, score=MISSING),
    ]
    assert len({protocol().digest, *(other.digest for other in others)}) == len(others) + 1


@given(
    st.sampled_from(["version", "seed", "data__count", "data__crop", "data__resize", "attack__steps"]),
    st.integers(1, 4096),
    st.integers(1, 4096),
)
@settings(max_examples=40, deadline=None, derandomize=True)
def test_equal_numbers_and_only_they_have_equal_digests(path: str, first: int, second: int) -> None:
    equal = protocol(**{path: first}).digest == protocol(**{path: second}).digest
    assert equal == (first == second)


def test_a_default_that_is_written_out_is_the_same_protocol() -> None:
    assert protocol(score__scoring=MISSING).digest == protocol().digest


# --- fractions


@given(st.integers(0, 10**9), st.none() | st.integers(1, 10**9))
@settings(max_examples=40, deadline=None, derandomize=True)
def test_a_fraction_is_its_value(numerator: int, denominator: int | None) -> None:
    text = str(numerator) if denominator is None else f"{numerator}/{denominator}"
    assert fraction(text) == Fraction(numerator, denominator or 1)


@pytest.mark.parametrize(
    "text", ["", "/", "4/", "/255", "-4/255", "4/-255", "+4", "0.5", "1e-3", " 4/255", "4/2/5", "²/5", "٣", "1_0"]
)
def test_anything_else_is_no_fraction(text: str) -> None:
    with pytest.raises(ValueError, match=r'^expected a fraction of the unit range as a string, such as "4/255"$'):
        fraction(text)


@pytest.mark.parametrize("text", ["9" * 31, f"1/{'9' * 31}", "9" * 5000])
def test_a_fraction_has_digits_that_a_float_can_hold(text: str) -> None:
    with pytest.raises(ValueError, match=r"^expected a fraction .*, of at most 30 digits on a side$"):
        fraction(text)
    assert np.isfinite(np.float32(float(fraction("9" * 30))))


def test_a_denominator_is_not_zero() -> None:
    with pytest.raises(ValueError, match=r"^expected a denominator other than zero$"):
        fraction("4/0")


# --- errors

FRACTION = 'a fraction of the unit range as a string, such as "4/255"'
FLOATS = f"{FRACTION}. Floats would make two protocols differ in the last bit."
MESSAGES: list[tuple[dict[str, Any], str]] = [
    ({"seed": MISSING}, "`seed` is missing; expected a value. Add the key."),
    ({"schema": MISSING}, "`schema` is missing; expected a value. Add the key."),
    ({"schema": "robench.protocol/2"}, "`schema` is 'robench.protocol/2'; expected 'robench.protocol/1'."),
    ({"attack__kind": MISSING}, "`attack.kind` is missing; expected a value. Add the key."),
    ({"data__cuont": 3}, "`data.cuont` is unknown; expected a key of the protocol schema. Did you mean `count`?"),
    ({"seeed": 3}, "`seeed` is unknown; expected a key of the protocol schema. Did you mean `seed`?"),
    ({"budget__epsilon": 0.5}, f"`budget.epsilon` is 0.5; expected {FLOATS}"),
    ({"budget__epsilon": "0.5"}, f"`budget.epsilon` is '0.5'; expected {FRACTION}."),
    ({"budget__epsilon": "4/0"}, "`budget.epsilon` is '4/0'; expected a denominator other than zero."),
    ({"attack__step_size": 0.01}, f"`attack.step_size` is 0.01; expected {FLOATS}"),
    ({"attack__steps": [1]}, "`attack.steps` is [1]; expected a whole number, a string or a boolean."),
    ({"budget__norm": 2}, "`budget.norm` is 2; expected a valid string."),
    ({"status": "new"}, "`status` is 'new'; expected 'draft', 'active', 'superseded' or 'withdrawn'."),
    ({"version": True}, "`version` is True; expected a valid integer."),
    ({"version": 0}, "`version` is 0; expected greater than or equal to 1."),
    ({"seed": -1}, "`seed` is -1; expected greater than or equal to 0."),
    ({"data__crop": 4097}, "`data.crop` is 4097; expected less than or equal to 4096."),
    ({"seed": 2**63}, f"`seed` is {2**63}; expected less than {2**63}."),
    ({"data__crop": "64"}, "`data.crop` is '64'; expected a valid integer."),
    ({"data__count": 0}, "`data.count` is 0; expected greater than 0."),
    ({"data__classes": 1}, "`data.classes` is 1; expected greater than or equal to 2."),
    ({"data__ids_sha256": "AB"}, "`data.ids_sha256` is 'AB'; expected text that matches '^[0-9a-f]{64}$'."),
    ({"id": "Toy PGD"}, "`id` is 'Toy PGD'; expected text that matches '^[a-z0-9]+(-[a-z0-9]+)*$'."),
    ({"score__steps": [5.0]}, "`score.steps.0` is 5.0; expected a valid integer."),
    ({"score__steps": [-1]}, "`score.steps.0` is -1; expected greater than or equal to 0."),
    ({"budget": MISSING}, "expected `attack` and `budget` together, or neither."),
    ({"attack": MISSING}, "expected `attack` and `budget` together, or neither."),
    (
        {"score": {"scoring": "last iterate"}},
        'expected `score.steps` with the scoring "last iterate".',
    ),
    ({"score": {"asks": 0}}, "`score.asks` is 0; expected greater than or equal to 1."),
    ({"attack__draws": "20"}, "`attack.draws` is '20'; expected a valid integer."),
    ({"attack__draws": 20}, "expected `score.asks` and `attack.draws` together, or neither."),
    ({"score": {"asks": 20}}, "expected `score.asks` and `attack.draws` together, or neither."),
    (
        {"attack__draws": 20, "score__asks": 20},
        "expected no steps and no stages beside `asks`: one final image is scored.",
    ),
    (
        {"attack__draws": 20, "score": {"asks": 19}},
        "expected at least 20 `score.asks`, or `ranked = false`.",
    ),
    ({"attack": MISSING, "budget": MISSING}, "expected no `score.steps` and no `score.stages` without an attack."),
]


@pytest.mark.parametrize(("changes", "expected"), MESSAGES)
def test_a_wrong_key_is_named_once(changes: dict[str, Any], expected: str) -> None:
    with pytest.raises(ProtocolError) as caught:
        protocol(**changes)
    message = str(caught.value)
    assert message.startswith("toy-pgd.toml: `")
    assert message.endswith(expected)
    assert "\n" not in message


PATCHES = {"kind": "patches", "area": "1/10", "patches": 4}


def test_a_budget_of_patches_is_read_dumped_and_digested() -> None:
    read = protocol(budget=PATCHES)
    assert read.budget == PatchSpec(kind="patches", area="1/10", patches=4)
    dumped = read.model_dump(mode="json", by_alias=True, exclude_none=True)
    assert dumped["budget"] == PATCHES
    assert parse_protocol(dumped, where="x") == read
    others = [protocol(), protocol(budget={**PATCHES, "area": "1/5"}), protocol(budget={**PATCHES, "patches": 2})]
    assert len({read.digest, *(other.digest for other in others)}) == 4


@pytest.mark.parametrize(
    ("budget", "expected"),
    [
        ({**PATCHES, "kind": "patch"}, "`budget.kind` is 'patch'; expected 'patches'."),
        ({**PATCHES, "area": 0.1}, f"`budget.area` is 0.1; expected {FLOATS}"),
        ({**PATCHES, "area": "10 %"}, f"`budget.area` is '10 %'; expected {FRACTION}."),
        ({**PATCHES, "patches": 0}, "`budget.patches` is 0; expected greater than 0."),
        ({"kind": "patches", "area": "1/10"}, "`budget.patches` is missing; expected a value. Add the key."),
        (
            {**PATCHES, "norm": "linf"},
            "`budget.norm` is unknown; expected a key of the protocol schema. It does not go with the others here.",
        ),
        (
            {"norm": "linf", "epsilon": "1/10", "aera": "1/10"},
            "`budget.aera` is unknown; expected a key of the protocol schema. Did you mean `area`?",
        ),
        ("linf", "`budget` is 'linf'; expected "),
    ],
)
def test_a_wrong_budget_is_named(budget: object, expected: str) -> None:
    with pytest.raises(ProtocolError) as caught:
        protocol(budget=budget)
    assert str(caught.value).startswith(f"toy-pgd.toml: {expected}")


@pytest.mark.parametrize("steps", [[10, 5], [5, 5]])
def test_steps_rise(steps: list[int]) -> None:
    with pytest.raises(
        ProtocolError, match=r"toy-pgd\.toml: `score` is .*; expected rising steps without repetition\."
    ):
        protocol(score__steps=steps)


def test_every_wrong_key_gets_its_line() -> None:
    with pytest.raises(ProtocolError) as caught:
        protocol(version=0, budget__norm=1, seeed=1)
    lines = str(caught.value).splitlines()
    assert [line.split("`")[1] for line in lines] == ["version", "budget.norm", "seeed"]
    assert all(line.startswith("toy-pgd.toml: `") for line in lines)


def test_a_file_that_cannot_be_read_is_named(tmp_path: Path) -> None:
    path = tmp_path / "x.toml"
    with pytest.raises(ProtocolError) as caught:
        read_protocol(path)
    expected = f"{path}: `file` is unreadable (No such file or directory); expected a protocol in TOML."
    assert str(caught.value) == expected
    for content in (b"id = \n", b'id = "\xff"\n'):
        path.write_bytes(content)
        with pytest.raises(ProtocolError, match=r"x\.toml: `file` is not TOML \(.+\); expected a protocol in TOML\."):
            read_protocol(path)
