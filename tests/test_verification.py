import hashlib
import math
import random
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import ValidationError
from scipy import stats

from robench.errors import SubmissionError
from robench.outcome import Outcome
from robench.registry import load_protocol
from robench.submission import Submission
from robench.verification import (
    FLIP_RATE,
    LEVEL,
    POWER,
    TIERS,
    Verdict,
    broken_since,
    called,
    cell_names,
    critical,
    drawn,
    example_of,
    read_verdicts,
    sample_size,
    seed_of,
    tail,
    tier_of,
)
from tests.claims import TOY, WORDS, edit_outcome, loader, model_record, sha, toy_outcomes, toy_rules
from tests.shifted_claims import COUNT, Kind, shifted_outcomes, shifted_rules

ROOT = Path(__file__).parent.parent
ABOUT: dict[str, Any] = {
    "schema": "robench.verdict/1",
    "result_sha256": sha("result"),
    "robust": 2000,
    "of": 5000,
    "asked": 300,
    "fell": 0,
    "flip_rate": 0.005,
    "soft_margin": 0.001,
    "merge_commit": "0" * 40,
    "public_value": "round 7",
    "controls": (),
    "by": "A. Maintainer",
}
LOADED = Submission.model_validate({**WORDS, "loader": loader(model_record("alpha", 0))})
BARE = Submission.model_validate(WORDS)


def again(number: int, *, robust: bool, margin: float = 0.5) -> dict[str, Any]:
    return {"id": f"toy-{number:05d}", "robust": robust, "margin": margin if robust else -margin}


def verdict(**changes: Any) -> Verdict:
    """A verdict whose first `fell` examples fell, unless `changes` says something else."""
    about = {**ABOUT, **changes}
    examples = tuple(again(number, robust=number >= about["fell"]) for number in range(about["asked"]))
    return Verdict.model_validate({"examples": examples, **about})


@given(st.integers(0, 400), st.integers(0, 400), st.sampled_from([0.0, 1e-6, 0.01, 0.3, 0.99, 1.0]))
@settings(max_examples=200, deadline=None, derandomize=True)
def test_the_tail_is_scipys(least: int, trials: int, rate: float) -> None:
    expected = stats.binom.sf(least - 1, trials, rate) if trials else float(least <= 0)
    assert tail(least, trials, rate) == pytest.approx(expected, abs=1e-9)


def test_a_verdict_refutes_beyond_what_honest_machines_do() -> None:
    """The critical count of 300 examples at a flip rate of half a percent, from scipy."""
    critical = next(k for k in range(301) if stats.binom.sf(k - 1, 300, 0.005) < LEVEL)
    assert not verdict(fell=critical - 1).refutes
    assert verdict(fell=critical).refutes


@pytest.mark.parametrize(("asked", "robust"), [(300, 2000), (100, 2000), (300, 3000), (200, 200)])
def test_the_power_is_that_of_a_simulated_cheat(asked: int, robust: int) -> None:
    found = verdict(asked=asked, robust=robust)
    critical = next(k for k in range(asked + 2) if stats.binom.sf(k - 1, asked, 0.005) < LEVEL)
    false = min(1.0, 0.02 * 5000 / robust)
    assert found.power == pytest.approx(stats.binom.sf(critical - 1, asked, 0.98 * false), abs=1e-9)
    assert verdict(asked=0).power == 0.0


def test_tiers_are_computed() -> None:
    digest = str(ABOUT["result_sha256"])
    strong, weak = verdict(asked=500), verdict(asked=50)
    blind = {"controls": tuple(again(number, robust=number < 20) for number in range(50))}
    assert weak.power < POWER < strong.power
    assert tier_of(BARE, digest, []) == "reported"
    assert tier_of(BARE, digest, [strong]) == "reported"
    assert tier_of(LOADED, digest, []) == "checked"
    assert tier_of(LOADED, digest, [weak]) == "checked"
    assert tier_of(LOADED, digest, [weak, strong]) == "spot-verified"
    assert tier_of(LOADED, digest, [strong, verdict(asked=2000)]) == "reproduced"
    assert tier_of(LOADED, digest, [strong, verdict(asked=500, fell=100)]) == "refuted"
    assert tier_of(BARE, digest, [verdict(asked=500, fell=100)]) == "refuted"
    assert tier_of(LOADED, sha("another"), [strong]) == "checked"
    assert tier_of(LOADED, digest, [verdict(asked=0)]) == "checked"
    assert tier_of(LOADED, digest, [verdict(robust=0, asked=0)]) == "checked"
    assert tier_of(LOADED, digest, [verdict(asked=2000, **blind)]) == "checked"
    assert tier_of(LOADED, digest, [verdict(asked=500, fell=100, **blind)]) == "checked"
    assert list(TIERS) == ["reported", "checked", "spot-verified", "reproduced", "refuted"]


@pytest.mark.parametrize(
    "changes",
    [
        {"fell": 301},
        {"asked": 2001},
        {"robust": 5001},
        {"flip_rate": math.nan},
        {"flip_rate": 0.5},
        {"tier": "checked"},
        {"flip_rate": 0.006},
        {"soft_margin": 0.002},
        {"merge_commit": "main"},
        {"asked": 3, "fell": 0, "examples": (again(0, robust=False),)},
        {"asked": 1, "fell": 0, "examples": (again(0, robust=False),)},
        {"asked": 1, "fell": 1, "examples": (again(0, robust=False, margin=0.001),)},
        {"asked": 1, "examples": (again(0, robust=True, margin=math.inf),)},
    ],
)
def test_a_verdict_that_cannot_be_is_refused(changes: dict[str, Any]) -> None:
    with pytest.raises(ValidationError):
        verdict(**changes)


def test_verdicts_are_read_from_their_folder(tmp_path: Path) -> None:
    assert read_verdicts([]) == []
    (tmp_path / "b.json").write_bytes(verdict(fell=1).to_bytes())
    (tmp_path / "a.json").write_text(verdict().model_dump_json(by_alias=True))
    assert read_verdicts(sorted(tmp_path.iterdir())) == [verdict(), verdict(fell=1)]
    (tmp_path / "c.json").write_text('{"tier": "reproduced"}')
    with pytest.raises(SubmissionError, match=r"c.json: `verdict` is malformed .*; expected a robench.verdict/1"):
        read_verdicts(sorted(tmp_path.iterdir()))


# --- which examples are asked about


def test_the_draw_is_that_of_the_seed() -> None:
    """SHA-256 written out by hand: anybody can repeat the draw."""
    seed = hashlib.sha256(b"aa\nbb\ncc").hexdigest()
    assert seed_of("aa", "bb", "cc") == seed
    ids = [f"toy-{number}" for number in range(50)]
    expected = sorted(ids, key=lambda each: hashlib.sha256(f"{seed}\n{each}".encode()).hexdigest())
    assert drawn(ids, seed, 7) == expected[:7]
    assert drawn(reversed(ids), seed, 99) == expected
    assert drawn(ids, seed_of("aa", "bb", "cd"), 7) != expected[:7]


def test_what_a_claim_calls_robust_is_what_its_headline_counts() -> None:
    outcomes = toy_outcomes(200)
    outcomes = edit_outcome(outcomes, 0, clean=outcomes[0].label, fooled_at=(7,), attacked=9)
    said = called(toy_rules(200).protocols[TOY], outcomes)
    right = [each for each in outcomes if each.clean == each.label]
    assert list(said.robust) == [each.id for each in right if not each.fooled_at]
    assert list(said.broken) == [each.id for each in right if each.fooled_at]
    assert said.of == 200


def test_where_no_example_stands_or_falls_none_is_called_robust() -> None:
    asked = toy_rules(attack__draws=20, score={"asks": 20}).protocols[TOY]
    message = "`protocol` is toy-pgd@2, which asks many times; expected one under which an example"
    with pytest.raises(SubmissionError, match=message):
        called(asked, [])


@pytest.mark.parametrize("kind", ["plain", "among", "reference", "textures"])
def test_without_an_attack_what_is_right_is_called_robust(kind: Kind) -> None:
    outcomes = shifted_outcomes(kind)
    (protocol,) = shifted_rules(kind).protocols.values()
    said = called(protocol, outcomes)
    asked = [each for each in outcomes if each.texture is None or each.texture != each.label]
    right = [each.id for each in asked if (each.clean if each.among is None else each.among) == each.label]
    assert list(said.robust) == right
    assert list(said.broken) == [each.id for each in asked if each.id not in right]
    assert said.of == len(asked) == (COUNT if kind != "textures" else COUNT - COUNT // 10)
    assert said.drawn_robust("seed", 20) == drawn(right, "seed", 20)
    assert example_of(protocol, "an id with spaces") == "an id with spaces"


@pytest.mark.parametrize("kind", ["cells", "cells without clean"])
def test_where_examples_are_seen_in_cells_these_are_drawn(kind: Kind) -> None:
    """Against the numbering written out; all of them are drawn once each before the draw ends."""
    outcomes = [replace(each, id=f"{each.id} b") for each in shifted_outcomes(kind)]
    outcomes[0], outcomes[1] = replace(outcomes[0], cells="00"), replace(outcomes[1], cells="3f")
    (protocol,) = shifted_rules(kind).protocols.values()
    cells = [f"{name}/{severity}" for name in ("fog", "frost", "gaussian_noise") for severity in (1, 2)]
    said = called(protocol, outcomes)
    places = [(each.id, place, int(each.cells or "0", 16) >> place & 1) for each in outcomes for place in range(6)]
    assert said.of == len(places) == 6 * COUNT
    names, others = ([f"{example} {cells[at]}" for example, at, right in places if right == each] for each in (1, 0))
    first, second = (int(hashlib.sha256(f"seed\n{n}".encode()).hexdigest(), 16) % len(names) for n in (0, 1))
    assert first != second
    assert said.drawn_robust("seed", 2) == [names[first], names[second]]
    assert said.drawn_robust("other", 2) != said.drawn_robust("seed", 2)
    everything = said.drawn_robust("seed", 9999)
    assert sorted(everything) == sorted(names)
    assert said.drawn_robust("seed", 30) == everything[:30]
    assert {example_of(protocol, name) for name in names} <= {each.id for each in outcomes}
    controls = said.controls("seed", 30)
    assert len(set(controls)) == 50
    assert set(controls) <= set(others)
    assert said.controls("seed", 0) == []
    assert said.count == sum(right for _, _, right in places)


def test_a_margin_that_is_not_known_excuses_nothing() -> None:
    examples = again(0, robust=True), {**again(1, robust=False), "margin": None}
    unknown = verdict(asked=2, examples=examples, fell=1)
    assert unknown.fell == 1


@pytest.mark.parametrize(("of", "robust"), [(512, 215), (512, 317), (5000, 300), (5000, 2100), (5000, 3100)])
def test_the_sample_is_as_large_as_the_power_needs(of: int, robust: int) -> None:
    size = sample_size(robust=robust, of=of)
    enough = verdict(robust=robust, of=of, asked=size, flip_rate=FLIP_RATE).power >= POWER
    assert enough or size == robust
    fewer = verdict(robust=robust, of=of, asked=size // 2, flip_rate=FLIP_RATE)
    assert fewer.power < POWER


# --- cheats, simulated


def _refuted(robust: list[str], false: set[str], *, of: int, public_value: str, soft: float, flips: float) -> bool:
    """One challenge: what is false falls, a share of it softly; what is not falls at the flip rate."""
    chance = random.Random(public_value)
    asked = drawn(robust, seed_of(sha("claim"), "0" * 40, public_value), sample_size(robust=len(robust), of=of))
    fell = sum(chance.random() >= soft if example in false else chance.random() < flips for example in asked)
    return bool(stats.binom.sf(fell - 1, len(asked), FLIP_RATE) < LEVEL)


@pytest.mark.parametrize(("of", "share", "least"), [(512, 0.4, 99), (512, 0.6, 99), (5000, 0.4, 97), (5000, 0.6, 97)])
def test_two_points_of_inflation_are_caught(of: int, share: float, least: int) -> None:
    """A hundred cheats; docs/measure/power.py simulates a hundred thousand."""
    false = round(0.02 * of)
    robust = [f"example-{number}" for number in range(round(share * of) + false)]
    cheated = set(robust[:false])
    about: Any = {"of": of, "soft": 0.02, "flips": 0.0001}
    caught = sum(_refuted(robust, cheated, public_value=f"cheat {number}", **about) for number in range(100))
    assert caught >= least


@pytest.mark.parametrize("rate", [0.0001, 0.001, FLIP_RATE])
@pytest.mark.parametrize(("of", "robust"), [(512, 205), (512, 307), (5000, 2000), (5000, 3000)])
def test_an_honest_claim_passes(of: int, robust: int, rate: float) -> None:
    """At least 999 of 1,000, from scipy."""
    size = sample_size(robust=robust, of=of)
    assert stats.binom.cdf(critical(size, FLIP_RATE) - 1, size, rate) >= 0.999


def test_the_table_of_the_decision_note_is_what_the_script_prints() -> None:
    script = ROOT / "docs" / "measure" / "power.py"
    done = subprocess.run([sys.executable, str(script)], capture_output=True, text=True, check=True)
    assert done.stdout in (ROOT / "docs" / "decisions" / "0016-verification.md").read_text(encoding="utf-8")


# --- best known


def test_only_confirmed_refutations_that_lie_there_lower_a_claim() -> None:
    digest, one, two = str(ABOUT["result_sha256"]), sha("one"), sha("two")
    first = verdict(confirmed=({"sha256": one, "ids": ("a", "b")}, {"sha256": two, "ids": ("c",)}))
    second = verdict(confirmed=({"sha256": one, "ids": ("b", "d")},))
    assert broken_since(digest, [first, second], [one, two]) == {"a", "b", "c", "d"}
    assert broken_since(digest, [first, second], [one]) == {"a", "b", "d"}
    assert broken_since(digest, [first], []) == set()
    assert broken_since(sha("another"), [first, second], [one, two]) == set()


@pytest.mark.parametrize("spread", ["all cells of a few", "a few cells of all"])
def test_two_points_of_inflation_in_cells_are_caught(spread: str) -> None:
    """However the false cells lie: 768 of 38,400 are called right and are not."""
    protocol, chance = load_protocol("mini-c"), random.Random(0)
    cells, caught = len(cell_names(protocol)), 0
    assert cells == 75
    for cheat in range(100):
        honest = [chance.getrandbits(cells) | chance.getrandbits(cells) for _ in range(512)]
        open_to_it = [(image, cell) for image in range(512) for cell in range(cells) if not honest[image] >> cell & 1]
        if spread == "a few cells of all":
            chance.shuffle(open_to_it)
        false = set(open_to_it[: round(0.02 * 512 * cells)])
        masks = list(honest)
        for image, cell in false:
            masks[image] |= 1 << cell
        outcomes = [Outcome(f"e{n}", 0, 0, 0, 1.0, 1.0, cells=f"{mask:019x}") for n, mask in enumerate(masks)]
        said = called(protocol, outcomes)
        asked = said.drawn_robust(f"cheat {cheat}", sample_size(robust=said.count, of=said.of))
        places = [(int(name.split(" ")[0][1:]), cell_names(protocol).index(name.split(" ")[1])) for name in asked]
        fell = sum(place in false for place in places)
        caught += bool(stats.binom.sf(fell - 1, len(asked), FLIP_RATE) < LEVEL)
    assert caught >= 97
