"""Many claims are shared by processes, and the report is the one that a single process writes."""

from concurrent.futures.process import BrokenProcessPool
from pathlib import Path
from typing import Any

import pytest

from robench import validation
from robench.errors import SubmissionError
from robench.submission import OUTCOMES, RESULT
from robench.validation import WORTH, validate
from tests.claims import claim, edit_json, toy_rules

RULES = toy_rules()


class _NoPool:
    def __init__(self, *arguments: Any, **options: Any) -> None:
        raise AssertionError("a process was started")


class _Killed:
    """A pool whose processes are killed."""

    def __init__(self, *arguments: Any, **options: Any) -> None: ...

    def __enter__(self) -> "_Killed":
        return self

    def __exit__(self, *arguments: object) -> None: ...

    def map(self, *arguments: Any, **options: Any) -> Any:
        raise BrokenProcessPool("a child process terminated abruptly")


@pytest.fixture(scope="module")
def many(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Claims for two processes, some of them wrong in different ways."""
    folder = tmp_path_factory.mktemp("many")
    for seed in range(2 * WORTH):
        place = claim(folder, f"model-{seed:03d}", rules=RULES, seed=seed)
        if seed % 30 == 7:
            edit_json(place.folder / RESULT, lambda content: content["counts"].update(evaluated=1))
        elif seed % 30 == 8:
            (place.folder / OUTCOMES).write_bytes(b"no gzip")
    return folder


def test_two_processes_report_what_one_reports(many: Path) -> None:
    alone, shared = (validate([many], rules=RULES, processes=count) for count in (1, 2))
    assert shared == alone
    assert [str(finding) for finding in shared.findings] == [str(finding) for finding in alone.findings]
    assert {"RB407", "RB205"} <= {finding.code for finding in alone.findings}
    assert alone.claims == 2 * WORTH


def test_few_claims_start_no_process(many: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(validation, "ProcessPoolExecutor", _NoPool)
    one = next((many / "submissions" / "model-000").iterdir())
    assert validate([one], rules=RULES, processes=8).claims == 1
    assert validate([many], rules=RULES, processes=1).claims == 2 * WORTH
    with pytest.raises(AssertionError, match="a process was started"):
        validate([many], rules=RULES, processes=2)


def test_a_process_that_is_killed_is_said(many: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(validation, "ProcessPoolExecutor", _Killed)
    with pytest.raises(SubmissionError) as caught:
        validate([many], rules=RULES, processes=2)
    assert str(caught.value) == (
        "validate: `process` is killed; expected one that ends by itself. "
        "Check fewer claims at a time, or use `--processes 1`."
    )


def test_a_claim_that_is_named_twice_is_checked_once(many: Path) -> None:
    one = next((many / "submissions" / "model-000").iterdir())
    assert validate([one, one.parent, one], rules=RULES).claims == 1
