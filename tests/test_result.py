import json
import math
import re
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import ValidationError
from scipy import stats

from robench.errors import ProtocolError, RunError
from robench.intervals import clustered, student_quantile, wilson
from robench.outcome import Outcome, compress, to_csv
from robench.result import Metric, percent, read_result, score, shares
from tests.test_protocol import MISSING, protocol
from tests.test_runs import OUTCOMES, finished_run, plan

# --- Wilson's interval


@given(st.integers(1, 60_000), st.floats(0, 1), st.sampled_from([0.5, 0.9, 0.95, 0.999]))
@settings(max_examples=80, deadline=None, derandomize=True)
def test_wilson_is_scipys(total: int, share: float, confidence: float) -> None:
    successes = round(share * total)
    reference = stats.binomtest(successes, total).proportion_ci(confidence, method="wilson")
    assert wilson(successes, total, confidence) == pytest.approx((reference.low, reference.high), abs=1e-12)


@given(st.integers(1, 5000), st.floats(0, 1))
@settings(max_examples=40, deadline=None, derandomize=True)
def test_wilson_holds_the_share_and_mirrors(total: int, share: float) -> None:
    successes = round(share * total)
    low, high = wilson(successes, total)
    assert 0 <= low <= successes / total <= high <= 1
    mirrored = wilson(total - successes, total)
    assert mirrored == pytest.approx((1 - high, 1 - low), abs=1e-12)


@pytest.mark.parametrize("total", [1, 2, 512, 5000, 50_000])
def test_wilson_ends_exactly_at_nothing_and_at_all(total: int) -> None:
    assert wilson(0, total)[0] == 0.0
    assert wilson(total, total)[1] == 1.0
    assert wilson(0, total)[1] > 0
    assert wilson(total, total)[0] < 1


@pytest.mark.parametrize(("successes", "total"), [(-1, 5), (6, 5), (0, 0)])
def test_wilson_refuses_what_is_no_proportion(successes: int, total: int) -> None:
    with pytest.raises(ValueError, match=rf"^wilson: {successes} of {total} is no proportion$"):
        wilson(successes, total)


# --- the interval over examples that were asked about many times


@given(st.integers(1, 400), st.floats(0, 1), st.sampled_from([1, 20]))
@settings(max_examples=60, deadline=None, derandomize=True)
def test_answers_that_never_differ_are_worth_one_per_example(total: int, share: float, asks: int) -> None:
    right = round(share * total)
    reference = stats.binomtest(right, total).proportion_ci(method="wilson")
    found = clustered([asks] * right + [0] * (total - right), asks)
    assert found == pytest.approx((reference.low, reference.high), abs=1e-12)


def test_with_many_examples_it_is_the_mean_and_its_standard_error() -> None:
    chance = np.random.default_rng(0)
    rights = chance.binomial(20, chance.beta(2, 1, 20_000))
    half = 1.959964 * (rights / 20).std(ddof=1) / math.sqrt(len(rights))
    middle = rights.mean() / 20
    assert clustered(rights.tolist(), 20) == pytest.approx((middle - half, middle + half), abs=2e-5)


@pytest.mark.parametrize(("examples", "shape"), [(30, (2.0, 1.0)), (512, (0.3, 0.2)), (512, (20.0, 20.0))])
def test_it_holds_the_truth_as_often_as_it_says(examples: int, shape: tuple[float, float]) -> None:
    """Chances of a right answer from a beta distribution, whose mean is known: 95 of 100 intervals hold it."""
    chance, truth = np.random.default_rng(1), shape[0] / sum(shape)
    held, asks_alone = 0, 0
    for _ in range(1000):
        rights = chance.binomial(20, chance.beta(*shape, examples)).tolist()
        low, high = clustered(rights, 20)
        held += low <= truth <= high
        low, high = wilson(sum(rights), 20 * examples)
        asks_alone += low <= truth <= high
    assert 930 <= held <= 975  # within 3.6 standard errors of 950
    assert asks_alone < held - 50 or shape == (20.0, 20.0)  # answers taken for independent promise too much


@pytest.mark.parametrize("degrees", [2, 3, 5, 10, 30, 1000])
@pytest.mark.parametrize("quantile", [0.9, 0.975])
def test_students_quantile_is_scipys(degrees: int, quantile: float) -> None:
    assert student_quantile(quantile, degrees) == pytest.approx(stats.t.ppf(quantile, degrees), rel=0.01)


def test_a_few_equal_shares_promise_nothing() -> None:
    """Two examples with equal shares say nothing about how examples differ."""
    assert clustered([10, 10], 20) == pytest.approx(clustered([20, 0], 20))
    assert clustered([7], 20)[1] - clustered([7], 20)[0] > 0.7


@pytest.mark.parametrize(("rights", "asks"), [([], 20), ([21], 20), ([-1], 20), ([0], 0)])
def test_what_are_no_shares_is_refused(rights: list[int], asks: int) -> None:
    with pytest.raises(ValueError, match=r"^clustered: .* each are no shares$"):
        clustered(rights, asks)


# --- metrics


def test_a_metric_keeps_its_counts() -> None:
    metric = Metric.of("clean", 1, 3)
    assert (metric.numerator, metric.denominator, metric.value) == (1, 3, 0.333333)
    reference = stats.binomtest(1, 3).proportion_ci(method="wilson")
    assert metric.interval == pytest.approx((reference.low, reference.high), abs=1e-6)
    assert percent(metric) == "33.3 %"


def test_a_cascade_is_scored_after_each_of_its_stages() -> None:
    stages = ["apgd-ce", "apgd-t", "square"]
    cascade = protocol(attack={"kind": "autoattack"}, score={"stages": stages})
    fell = ["apgd-ce", "apgd-ce", "square", "", ""]
    outcomes = [replace(OUTCOMES[0], label=1, clean=1, stage=stage, fooled_at=(3,) if stage else ()) for stage in fell]
    outcomes.append(replace(OUTCOMES[0], label=1, clean=2, stage="", fooled_at=()))
    found = {metric.name: metric.numerator for metric in score(cascade, outcomes)}
    assert found == {"clean": 5, "robust@apgd-ce": 3, "robust@apgd-t": 3, "robust@square": 2}


def test_scores_come_from_outcomes_alone() -> None:
    names = [(metric.name, metric.numerator) for metric in score(protocol(), OUTCOMES)]
    assert names == [("clean", 6), ("robust@5", 5), ("robust@10", 3)]
    # e2 is fooled at 7 and e1 at 3, which the iterates at 5 and 10 are not; e6 is fooled at 10.
    last = score(protocol(score__scoring="last iterate"), OUTCOMES)
    assert [metric.numerator for metric in last] == [6, 6, 5]
    without = protocol(attack=MISSING, budget=MISSING, score=MISSING)
    assert [(metric.name, metric.numerator) for metric in score(without, OUTCOMES)] == [("clean", 6)]


def test_an_errored_example_is_a_failure_and_is_counted() -> None:
    errored = [replace(OUTCOMES[0], error="no image"), *OUTCOMES[1:]]
    assert [(metric.numerator, metric.denominator) for metric in score(protocol(), errored)] == [(5, 7), (4, 7), (2, 7)]


ASKED = {"attack__draws": 20, "score": {"asks": 20}}
RIGHTS = [(20, 20), (20, 0), (19, 7), (3, 0), (20, 20), (20, 11), (20, 1)]


def _asked() -> list[Outcome]:
    return [
        replace(outcome, fooled_at=(), clean_right=clean, attacked_right=attacked)
        for outcome, (clean, attacked) in zip(OUTCOMES, RIGHTS, strict=True)
    ]


def test_many_asks_are_scored_by_right_answers_of_all() -> None:
    clean, robust = score(protocol(**ASKED), _asked())
    assert (clean.name, clean.numerator, clean.denominator, clean.value) == ("clean", 122, 140, 0.871429)
    assert (robust.name, robust.numerator, robust.denominator, robust.value) == ("robust", 59, 140, 0.421429)
    assert robust.interval == pytest.approx(clustered([right for _, right in RIGHTS], 20), abs=1e-6)
    assert shares(protocol(**ASKED), _asked()[2]) == (0.95, 0.35)
    assert shares(protocol(), OUTCOMES[1]) == (1.0, 0.0)
    errored = [replace(_asked()[0], error="no image"), *_asked()[1:]]
    assert [metric.numerator for metric in score(protocol(**ASKED), errored)] == [102, 39]


@pytest.mark.parametrize("right", [None, -1, 21])
def test_counts_that_cannot_be_are_found(right: int | None) -> None:
    edited = [replace(_asked()[0], attacked_right=right), *_asked()[1:]]
    message = rf"^e0: `attacked_right` is {right}; expected a count from 0 to 20, the asks of the protocol\.$"
    with pytest.raises(RunError, match=message):
        score(protocol(**ASKED), edited)


def test_a_result_of_many_asks_says_so_and_is_held_to_its_outcomes(tmp_path: Path) -> None:
    content = protocol(**ASKED).model_dump(mode="json", by_alias=True, exclude_none=True)
    result = finished_run(tmp_path, _asked(), plan(_asked()).model_copy(update={"protocol": content}))
    assert result.asks == 20
    low, high = clustered([right for _, right in RIGHTS], 20)
    robust = f"robust 42.1 % [{100 * low:.1f}, {100 * high:.1f}]"
    assert str(result) == f"clean 87.1 %, {robust}, 7 images, 20 answers each, 0 s"
    assert read_result(tmp_path).read_outcomes() == _asked()
    _edit(tmp_path, lambda content: content["metrics"][1].update(numerator=60))
    with pytest.raises(
        RunError, match=r"`metrics` is robust 60/140 = .+; expected robust 59/140 = .+, as the outcomes"
    ):
        read_result(tmp_path)


def test_no_outcomes_are_no_score() -> None:
    with pytest.raises(RunError, match=r"^toy-pgd@2: `outcomes` is empty; expected at least one example\.$"):
        score(protocol(), [])


# --- the record


def test_a_result_prints_as_one_line(tmp_path: Path) -> None:
    result = finished_run(tmp_path / "a")
    bounds = stats.binomtest(3, 7).proportion_ci(method="wilson")
    robust = f"robust 42.9 % [{100 * bounds.low:.1f}, {100 * bounds.high:.1f}]"
    assert str(result) == f"clean 85.7 %, {robust}, 7 images, 0 s"
    assert (result.clean.name, result.headline.name) == ("clean", "robust@10")
    partial = finished_run(tmp_path / "b", OUTCOMES[:4], plan(OUTCOMES[:4], limit=4))
    assert str(partial).endswith("4 images, 0 s, partial")


def test_a_result_without_attack_prints_one_number(tmp_path: Path) -> None:
    without = protocol(attack=MISSING, budget=MISSING, score=MISSING)
    content = without.model_dump(mode="json", by_alias=True, exclude_none=True)
    result = finished_run(tmp_path, the_plan=plan().model_copy(update={"protocol": content}))
    assert str(result) == "clean 85.7 %, 7 images, 0 s"


def test_the_bytes_are_sorted_finite_and_read_back(tmp_path: Path) -> None:
    result = finished_run(tmp_path)
    content = (tmp_path / "result.json").read_bytes()
    assert content == result.to_bytes() == read_result(tmp_path).to_bytes()
    assert content.endswith(b"}\n")

    def refuse(name: str) -> None:
        pytest.fail(f"{name} in result.json")

    def sorted_keys(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        assert [name for name, _ in pairs] == sorted(name for name, _ in pairs)
        return dict(pairs)

    parsed = json.loads(content, parse_constant=refuse, object_pairs_hook=sorted_keys)
    assert parsed["schema"] == "robench.result/1"
    assert not {"time", "date", "wall_seconds", "device"} & set(parsed)


def test_a_result_does_not_change(tmp_path: Path) -> None:
    with pytest.raises(ValidationError, match="frozen"):
        finished_run(tmp_path).status = "complete"


def test_a_result_without_cost_is_read_all_the_same(tmp_path: Path) -> None:
    finished_run(tmp_path)
    for content in (None, b"{torn"):
        (tmp_path / "cost.json").unlink()
        if content is not None:
            (tmp_path / "cost.json").write_bytes(content)
        else:
            assert read_result(tmp_path).cost == {}
            (tmp_path / "cost.json").touch()
        assert read_result(tmp_path).cost == {}
        assert str(read_result(tmp_path)).endswith("7 images")


# --- nobody's number is trusted


def _edit(folder: Path, change: Callable[[dict[str, Any]], Any]) -> None:
    path = folder / "result.json"
    content = json.loads(path.read_bytes())
    change(content)
    path.write_text(json.dumps(content), encoding="utf-8")


def test_a_missing_result_says_how_to_finish(tmp_path: Path) -> None:
    with pytest.raises(RunError) as caught:
        read_result(tmp_path)
    assert str(caught.value).endswith("expected a finished run. It holds no run.")
    (tmp_path / "plan.json").touch()
    with pytest.raises(RunError) as caught:
        read_result(tmp_path)
    expected = f"a finished run. Finish the run first: `robench resume {tmp_path}`."
    assert str(caught.value) == f"{tmp_path}: `result.json` is missing; expected {expected}"


@pytest.mark.parametrize(
    ("change", "key"),
    [
        (lambda content: content.update(surprise=1), "surprise"),
        (lambda content: content.pop("model"), "model"),
        (lambda content: content["data"].update(ids_sha256="x"), "data.ids_sha256"),
        (lambda content: content["metrics"][0].update(denominator=0), "metrics.0.denominator"),
        (lambda content: content.update(schema="robench.result/2"), "schema"),
    ],
)
def test_a_malformed_result_names_its_key(tmp_path: Path, change: Callable[[dict[str, Any]], Any], key: str) -> None:
    finished_run(tmp_path)
    _edit(tmp_path, change)
    with pytest.raises(RunError, match=rf"result\.json: `{re.escape(key)}` is .+; expected .+\.$"):
        read_result(tmp_path)


@pytest.mark.parametrize("metric", [0, 1, 2])
@pytest.mark.parametrize(
    ("field", "value"), [("numerator", 7), ("denominator", 6), ("value", 0.99), ("interval", [0, 1])]
)
def test_an_edited_number_is_found(tmp_path: Path, metric: int, field: str, value: Any) -> None:
    finished_run(tmp_path)
    _edit(tmp_path, lambda content: content["metrics"][metric].update({field: value}))
    with pytest.raises(RunError) as caught:
        read_result(tmp_path)
    name, counts = [("clean", "6/7"), ("robust@5", "5/7"), ("robust@10", "3/7")][metric]
    found, _, expected = str(caught.value).partition("; expected ")
    assert found.startswith(f"{tmp_path / 'result.json'}: `metrics` is {name} ")
    assert expected.startswith(f"{name} {counts} = 0.")
    assert expected.endswith("], as the outcomes say. One of the two files was changed; run again with `--fresh`.")


def test_metrics_that_are_left_out_or_added_are_found(tmp_path: Path) -> None:
    finished_run(tmp_path)
    _edit(tmp_path, lambda content: content["metrics"].pop())
    with pytest.raises(
        RunError, match=r"`metrics` is missing; expected robust@10 3/7 = 0\.428571 \[.+\], as the outcomes"
    ):
        read_result(tmp_path)
    _edit(tmp_path, lambda content: content["metrics"].extend([content["metrics"][1]] * 2))
    with pytest.raises(RunError, match=r"`metrics` is robust@5 5/7 = .+; expected robust@10 3/7 = "):
        read_result(tmp_path)


def test_another_table_of_outcomes_is_found(tmp_path: Path) -> None:
    result = finished_run(tmp_path)
    other = finished_run(tmp_path / "other", [replace(OUTCOMES[0], clean=1), *OUTCOMES[1:]])
    (tmp_path / "outcomes.csv.gz").write_bytes((tmp_path / "other" / "outcomes.csv.gz").read_bytes())
    for reading in (lambda: read_result(tmp_path), result.read_outcomes):
        with pytest.raises(RunError) as caught:
            reading()
        assert str(caught.value) == (
            f"{tmp_path / 'outcomes.csv.gz'}: `sha256` is {other.outcomes.sha256}; expected {result.outcomes.sha256}, "
            "as result.json says. One of the two files was changed; run again with `--fresh`."
        )


def test_a_table_that_only_reads_the_same_is_found(tmp_path: Path) -> None:
    finished_run(tmp_path)
    respelt = to_csv(OUTCOMES).replace(b",2.5,1.25,", b",2.50,1.25,")
    assert respelt != to_csv(OUTCOMES)
    (tmp_path / "outcomes.csv.gz").write_bytes(compress(respelt))
    with pytest.raises(
        RunError, match=r"^outcomes\.csv\.gz: `line 2` is .+, which reads as .+; expected an outcome\.$"
    ):
        read_result(tmp_path)


def test_an_edited_protocol_in_the_plan_is_found(tmp_path: Path) -> None:
    finished_run(tmp_path)
    path = tmp_path / "plan.json"
    content = json.loads(path.read_bytes())
    content["protocol"]["score"]["scoring"] = "last iterate"
    path.write_text(json.dumps(content), encoding="utf-8")
    with pytest.raises(RunError) as caught:
        read_result(tmp_path)
    found, expected = protocol(score__scoring="last iterate").digest, protocol().digest
    assert str(caught.value).startswith(f"{path}: `protocol` is {found}; expected {expected}, as result.json says. ")
    content["protocol"]["score"]["scoring"] = "best"
    path.write_text(json.dumps(content), encoding="utf-8")
    with pytest.raises(
        ProtocolError, match=r"plan\.json: `score\.scoring` is 'best'; expected 'any iterate' or 'last it"
    ):
        read_result(tmp_path)
    for broken in ("{", "[]", "{}"):
        path.write_text(broken, encoding="utf-8")
        with pytest.raises(RunError, match=r"plan\.json: `protocol` is unreadable; expected the protocol of the run\."):
            read_result(tmp_path)


def test_a_result_without_a_folder_has_no_outcomes(tmp_path: Path) -> None:
    result = finished_run(tmp_path)
    assert result.read_outcomes() == OUTCOMES
    loose = type(result).model_validate_json(result.to_bytes())
    assert loose.run_dir is None
    with pytest.raises(RunError) as caught:
        loose.read_outcomes()
    assert str(caught.value) == "result: `run_dir` is none; expected a result that was read from a run folder."
