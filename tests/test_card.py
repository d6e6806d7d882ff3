"""A result as the Hub shows it: read back with the Hub's own parsers, proposed to a Hub on this machine."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import huggingface_hub
import pytest
import yaml
from huggingface_hub import ModelCard, parse_eval_result_entries
from typer.testing import CliRunner

import robench
from robench.card import card_files, open_pull_request
from robench.cli.main import app
from robench.errors import ModelError, SubmissionError
from robench.hub import Hub
from robench.result import Metric, Result
from tests.hub_server import TOKEN, FakeHub, serving

URL = "https://example.org/submissions/mini-resnet/mini-pgd-linf@1"
NAME = "someone/small"


@pytest.fixture(scope="module")
def result(tmp_path_factory: pytest.TempPathFactory) -> Result:
    folder = tmp_path_factory.mktemp("run") / "run"
    found = robench.evaluate("mini-resnet-adv", "mini-pgd-linf", limit=4, run_dir=folder)
    assert isinstance(found, Result)
    return found


def _read(card: bytes) -> Any:
    return ModelCard(card.decode())


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[FakeHub]:
    monkeypatch.setenv("HF_TOKEN", TOKEN)
    with serving() as hub:
        hub.add(NAME, {"README.md": b"---\nlicense: mit\n---\n\n# Small\n"})
        yield hub


@pytest.fixture
def place(server: FakeHub, tmp_path: Path) -> Hub:
    return Hub(server.endpoint, tmp_path / "cache", seconds=2.0)


def _percent(metric: Metric) -> float:
    return round(100 * metric.numerator / metric.denominator, 2)


def test_the_model_card_has_every_metric(result: Result) -> None:
    card = _read(card_files(result, source=URL)["README.md"])
    found = {entry.metric_name: (entry.metric_value, entry.dataset_name) for entry in card.data.eval_results or []}
    assert found == {metric.name: (_percent(metric), "mini-pgd-linf@1") for metric in result.metrics}
    assert card.data.model_name == "mini-resnet-adv"
    assert {entry.source_url for entry in card.data.eval_results or []} == {URL}


def test_the_number_that_ranks_has_an_entry_where_its_data_are_on_the_hub(result: Result) -> None:
    assert list(card_files(result)) == ["README.md"]
    files = card_files(result, source=URL, dataset="someone/mini")
    (entry,) = parse_eval_result_entries(yaml.safe_load(files[".eval_results/robench-mini-pgd-linf-v1.yaml"]))
    assert (entry.dataset_id, entry.task_id, entry.value) == (
        "someone/mini",
        "mini-pgd-linf",
        _percent(result.headline),
    )
    assert (entry.source_url, entry.source_name) == (URL, "robench")
    notes = entry.notes or ""
    assert notes.startswith(f"mini-pgd-linf@1, protocol sha256 {result.protocol.digest}, 95 % interval [")
    assert "4 images, partial, not ranked" in notes


def test_imagenet_has_its_data_set_and_a_complete_result_its_tier(result: Result) -> None:
    data = result.data.model_copy(update={"source": "imagenet"})
    whole = result.model_copy(update={"data": data, "status": "complete"})
    (entry,) = parse_eval_result_entries(
        yaml.safe_load(card_files(whole)[".eval_results/robench-mini-pgd-linf-v1.yaml"])
    )
    assert entry.dataset_id == "ILSVRC/imagenet-1k"
    assert "tier reported" in (entry.notes or "")


def test_a_card_keeps_what_it_says_and_an_older_figure_of_the_same_protocol_goes(result: Result) -> None:
    first = card_files(result, readme="---\nlicense: mit\n---\n\n# Mine\n\nWords.\n")["README.md"].decode()
    other = result.model_copy(update={"protocol": result.protocol.model_copy(update={"id": "mini-other"})})
    second = card_files(other, readme=first)["README.md"].decode()
    third = card_files(result, readme=second)["README.md"].decode()
    card = _read(third.encode())
    assert (card.data.license, card.text) == ("mit", "\n# Mine\n\nWords.\n")
    names = [(entry.dataset_name, entry.metric_name) for entry in card.data.eval_results or []]
    assert len(names) == len(set(names)) == 2 * len(result.metrics)


@pytest.mark.parametrize("readme", ["---\n- a\n- b\n---\n", "---\na: [\n---\n", "---\nmodel-index: 3\n---\n"])
def test_a_card_that_cannot_be_read_is_named(result: Result, readme: str) -> None:
    with pytest.raises(
        SubmissionError, match=r"^README\.md: `metadata` is unreadable \(.*\); expected YAML between two"
    ):
        card_files(result, readme=readme)


def test_a_pull_request_is_one_commit_with_the_card_as_it_was(
    result: Result, server: FakeHub, place: Hub, tmp_path: Path
) -> None:
    (tmp_path / "submission.toml").write_text("claim")
    more = {"robench/submission.toml": tmp_path / "submission.toml"}
    address = open_pull_request(result, NAME, source=URL, dataset="someone/mini", more=more, hub=place)
    assert address == f"{server.endpoint}/{NAME}/discussions/1"
    (proposal,) = server.proposals
    assert (proposal["repository"], proposal["query"]) == (NAME, "create_pr=1")
    assert proposal["summary"] == f"mini-pgd-linf@1: robust@50 {_percent(result.headline)} %"
    assert set(proposal["files"]) == {
        "README.md",
        ".eval_results/robench-mini-pgd-linf-v1.yaml",
        "robench/submission.toml",
    }
    card = _read(proposal["files"]["README.md"])
    assert (card.data.license, card.text) == ("mit", "\n# Small\n")
    assert proposal["files"]["robench/submission.toml"] == b"claim"
    writes = [request for request in server.log if request.method == "POST"]
    assert {request.token for request in writes if "validate-yaml" not in request.path} == {TOKEN}
    assert {request.origin for request in server.log} == {"hub"}


def test_a_repository_without_a_card_gets_one(result: Result, server: FakeHub, place: Hub) -> None:
    server.add("someone/bare", {"config.json": b"{}"})
    open_pull_request(result, "hf-hub:someone/bare", hub=place)
    card = _read(server.proposals[0]["files"]["README.md"])
    assert "# mini-resnet-adv" in card.text


def test_whoever_is_not_logged_in_is_told_so(
    result: Result, server: FakeHub, place: Hub, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.delenv("HF_TOKEN")
    monkeypatch.setattr(huggingface_hub.constants, "HF_TOKEN_PATH", str(tmp_path / "no-token"))
    with pytest.raises(
        SubmissionError, match=r"`token` is none; .* First log in with `hf auth login`, or set HF_TOKEN; "
    ):
        open_pull_request(result, NAME, hub=place)
    assert server.log == []


def test_what_the_hub_refuses_is_named(
    result: Result, server: FakeHub, place: Hub, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(ModelError, match=r"^hf-hub:someone/else: `repository` is missing, or private"):
        open_pull_request(result, "someone/else", hub=place)
    monkeypatch.setenv("HF_TOKEN", "hf_without_rights")
    with pytest.raises(SubmissionError, match=r"`pull request` is refused \(HfHubHTTPError: .*no right to write"):
        open_pull_request(result, NAME, hub=place)
    assert server.proposals == []


def test_export_writes_the_files_and_says_where(result: Result, tmp_path: Path) -> None:
    run = str(result.run_dir)
    shown = CliRunner().invoke(app, ["export", "hub", run, "--out", str(tmp_path)], catch_exceptions=False).stdout
    assert shown.splitlines() == [
        f"written: {tmp_path / 'README.md'}",
        "No `.eval_results`: the images of `mini` are no data set on the Hub that robench knows "
        "(name one: `--dataset`).",
        "The result is partial: its notes say so, and it is not ranked.",
    ]
    again = ["export", "hub", run, "--dataset", "someone/mini", "--source", URL]
    shown = CliRunner().invoke(app, again, catch_exceptions=False).stdout
    path = Path(run) / "hub" / ".eval_results" / "robench-mini-pgd-linf-v1.yaml"
    assert f"written: {path}" in shown
    assert path.read_bytes() == card_files(result, source=URL, dataset="someone/mini")[f".eval_results/{path.name}"]
