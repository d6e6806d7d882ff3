"""Claims without an attack, looked at again: honest ones stand, inflated ones fall."""

import hashlib
import json
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from torch import Tensor

from robench.challenge import Chosen, ChosenViews, Draw, verify
from robench.data.source import Unreadable
from robench.errors import SubmissionError
from robench.evaluation import evaluate
from robench.outcome import Outcome
from robench.protocol import Protocol
from robench.registry import load_protocol
from robench.result import Result
from robench.submission import Submission, loader_of
from robench.validation import Claim, Place
from robench.verification import Verdict, cell_names, example_of, sample_size
from robench.zoo import bundled_weights
from tests.claims import WORDS, sha

MERGED = Draw("0" * 40, "round 7")
PROTOCOLS = {"mini-a": 500, "mini-stylized": 512, "mini-c": 16}
"""How many images of each are looked at; `mini-c` shows each 76 times."""


@pytest.fixture(scope="module", params=PROTOCOLS)
def run(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Result:
    folder = tmp_path_factory.mktemp("honest")
    name: str = request.param
    return evaluate("mini-resnet", name, limit=PROTOCOLS[name], run_dir=folder / "run")


def _verified(
    result: Result,
    outcomes: Sequence[Outcome],
    folder: Path,
    draw: Draw = MERGED,
    *,
    protocol: Protocol | None = None,
) -> Verdict:
    protocol = protocol or load_protocol(result.protocol.id)
    submission = Submission.model_validate({**WORDS, "loader": loader_of(result.model)})
    place = Place(folder / "submissions", "mini-resnet", protocol.exact_name)
    claim = Claim(place, submission, result, sha(repr(outcomes)), protocol, list(outcomes))
    return verify(claim, draw, by="me", run_dir=folder / "runs")


def _inflated(protocol: Protocol, outcome: Outcome) -> Outcome:
    """An example called right though it is wrong: in all cells, where it is seen in cells."""
    if cells := cell_names(protocol):
        return replace(outcome, cells=f"{(1 << len(cells)) - 1:0{-(-len(cells) // 4)}x}")
    margin = abs(outcome.clean_margin)
    return replace(outcome, clean=outcome.label, attacked=outcome.label, clean_margin=margin, attacked_margin=margin)


def test_an_honest_claim_stands(run: Result, tmp_path: Path) -> None:
    verdict = _verified(run, run.read_outcomes(), tmp_path)
    assert verdict.asked == sample_size(robust=verdict.robust, of=verdict.of) > 10
    assert (verdict.fell, verdict.stood, verdict.sound, verdict.refutes) == (0, 0, True, False)
    assert 0 < len(verdict.controls) <= 50
    assert {each.margin for each in verdict.examples} == {None}
    assert all("/" in each.id for each in verdict.examples) == (run.protocol.id == "mini-c")


def test_an_inflated_claim_falls(run: Result, tmp_path: Path) -> None:
    """What is called right though it is wrong falls; of cells, where the seed asks about one of those."""
    protocol, honest = load_protocol(run.protocol.id), run.read_outcomes()
    wrong = [each for each in honest if each.clean != each.label or each.cells is not None][:10]
    cheated = [_inflated(protocol, each) if each in wrong else each for each in honest]
    verdict = _verified(run, cheated, tmp_path)
    assert verdict.refutes
    fell = {example_of(protocol, each.id) for each in verdict.examples if not each.robust}
    asked = {example_of(protocol, each.id) for each in verdict.examples} & {each.id for each in wrong}
    assert fell <= asked if protocol.id == "mini-c" else fell == asked
    assert verdict.sound


def test_all_examples_may_be_asked_about_but_not_all_cells(run: Result, tmp_path: Path) -> None:
    whole = replace(MERGED, whole=True)
    if run.protocol.id != "mini-c":
        verdict = _verified(run, run.read_outcomes(), tmp_path, whole)
        assert (verdict.asked, verdict.fell) == (verdict.robust, 0)
    else:
        with pytest.raises(SubmissionError, match=r"`cells` is all of \d+ cells; expected a sample of them. Leave out"):
            _verified(run, run.read_outcomes(), tmp_path, whole)


def test_what_cannot_be_looked_at_again_gives_no_verdict(
    run: Result, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An image that cannot be read would else count as a fall, or as rounding."""

    def without_the_first(read: Callable[..., Iterator[Tensor | Unreadable]]) -> Callable[..., Iterator[Any]]:
        def reading(self: Chosen, positions: Iterable[int]) -> Iterator[Tensor | Unreadable]:
            found = read(self, positions)
            next(found)
            yield Unreadable("the file is broken.")
            yield from found

        return reading

    outcomes = run.read_outcomes()
    monkeypatch.setattr(Chosen, "images", without_the_first(Chosen.images))
    monkeypatch.setattr(ChosenViews, "views", without_the_first(ChosenViews.views))
    with pytest.raises(SubmissionError, match=r"^verify: `re-run` is .*: the file is broken\.; expected an outcome"):
        _verified(run, outcomes, tmp_path)


def test_a_claim_that_says_otherwise_of_the_reference_model_falls(tmp_path: Path) -> None:
    weights = hashlib.sha256(bundled_weights("mini-deit").read_bytes()).hexdigest()
    natural = {"kind": "natural", "reference": "mini-deit", "reference_sha256": weights}
    content = load_protocol("mini-stylized").model_dump(mode="json", by_alias=True, exclude_none=True)
    protocol = Protocol.model_validate_json(json.dumps({**content, "id": "toy-reference", "shift": natural}))
    honest = evaluate("mini-resnet", protocol, limit=100, run_dir=tmp_path / "run")
    outcomes = honest.read_outcomes()
    stood = _verified(honest, outcomes, tmp_path / "honest", protocol=protocol)
    assert (stood.fell, stood.refutes) == (0, False)
    cheated = [replace(each, reference=(each.label + 1) % 10) for each in outcomes]
    wrong = sum(a.reference != b.reference for a, b in zip(outcomes, cheated, strict=True) if a.clean == a.label)
    verdict = _verified(honest, cheated, tmp_path / "cheat", replace(MERGED, whole=True), protocol=protocol)
    assert verdict.fell == wrong > 10
    assert verdict.refutes
