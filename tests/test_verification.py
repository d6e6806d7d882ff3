import math
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import ValidationError
from scipy import stats

from robench.errors import SubmissionError
from robench.submission import Submission
from robench.verification import LEVEL, POWER, TIERS, Verdict, read_verdicts, tail, tier_of
from tests.claims import WORDS, loader, model_record, sha

ABOUT: dict[str, Any] = {
    "schema": "robench.verdict/1",
    "result_sha256": sha("result"),
    "robust": 2000,
    "of": 5000,
    "asked": 300,
    "fell": 0,
    "flip_rate": 0.01,
    "by": "A. Maintainer",
}
LOADED = Submission.model_validate({**WORDS, "loader": loader(model_record("alpha", 0))})
BARE = Submission.model_validate(WORDS)


def verdict(**changes: Any) -> Verdict:
    return Verdict.model_validate({**ABOUT, **changes})


@given(st.integers(0, 400), st.integers(0, 400), st.sampled_from([0.0, 1e-6, 0.01, 0.3, 0.99, 1.0]))
@settings(max_examples=200, deadline=None, derandomize=True)
def test_the_tail_is_scipys(least: int, trials: int, rate: float) -> None:
    expected = stats.binom.sf(least - 1, trials, rate) if trials else float(least <= 0)
    assert tail(least, trials, rate) == pytest.approx(expected, abs=1e-9)


def test_a_verdict_refutes_beyond_what_honest_machines_do() -> None:
    """The critical count of 300 examples at a flip rate of 1 percent, from scipy."""
    critical = next(k for k in range(301) if stats.binom.sf(k - 1, 300, 0.01) < LEVEL)
    assert not verdict(fell=critical - 1).refutes
    assert verdict(fell=critical).refutes


@pytest.mark.parametrize(("asked", "robust"), [(300, 2000), (100, 2000), (300, 3000), (200, 200)])
def test_the_power_is_that_of_a_simulated_cheat(asked: int, robust: int) -> None:
    found = verdict(asked=asked, robust=robust)
    critical = next(k for k in range(asked + 2) if stats.binom.sf(k - 1, asked, 0.01) < LEVEL)
    false = min(1.0, 0.02 * 5000 / robust)
    assert found.power == pytest.approx(stats.binom.sf(critical - 1, asked, false + (1 - false) * 0.01), abs=1e-9)
    assert verdict(asked=0).power == 0.0


def test_tiers_are_computed() -> None:
    digest = str(ABOUT["result_sha256"])
    strong, weak = verdict(asked=500), verdict(asked=50)
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
    ],
)
def test_a_verdict_that_cannot_be_is_refused(changes: dict[str, Any]) -> None:
    with pytest.raises(ValidationError):
        verdict(**changes)


def test_verdicts_are_read_from_their_folder(tmp_path: Path) -> None:
    assert read_verdicts(tmp_path / "none") == []
    (tmp_path / "b.json").write_text(verdict(fell=1).model_dump_json(by_alias=True))
    (tmp_path / "a.json").write_text(verdict().model_dump_json(by_alias=True))
    assert read_verdicts(tmp_path) == [verdict(), verdict(fell=1)]
    (tmp_path / "c.json").write_text('{"tier": "reproduced"}')
    with pytest.raises(SubmissionError, match=r"c.json: `verdict` is malformed .*; expected a robench.verdict/1"):
        read_verdicts(tmp_path)
