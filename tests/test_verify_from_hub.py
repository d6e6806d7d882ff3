"""Claims whose model lies on the Hub are attacked again at the commit they name, whatever its branch says by then."""

import json
from collections.abc import Iterator
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
from safetensors.torch import load_file
from timm.models import build_model_with_cfg, generate_default_cfgs, register_model
from torch import nn

import robench
from robench.challenge import verify
from robench.errors import ModelError, SubmissionError
from robench.hub import Hub
from robench.outcome import Outcome
from robench.result import Result
from robench.submission import Submission, loader_of
from robench.validation import Claim
from robench.verification import called
from robench.zoo import ARCHITECTURES, bundled_weights
from tests.claims import WORDS
from tests.hub_server import TOKEN, FakeHub, serving
from tests.test_challenge import MERGED, SHORT, _claim, _read

NAME = "robench_test_net"
TAGGED = f"{NAME}.mini"
SETTINGS = {"num_classes": 10, "input_size": (3, 64, 64), "mean": (0.5, 0.5, 0.5), "std": (0.25, 0.25, 0.25)}
default_cfgs = generate_default_cfgs({TAGGED: {**SETTINGS, "hf_hub_id": "timm/"}})
"""Where timm looks for what it is to know of the model registered here."""
REFERENCES = {"hf-hub": "hf-hub:someone/mini", "timm": f"timm:{TAGGED}"}
REPOSITORIES = {"hf-hub": "someone/mini", "timm": f"timm/{TAGGED}"}


def _network(**arguments: Any) -> nn.Module:
    """The network of the bundled models, without its normalisation, which timm's configuration describes."""
    assert arguments.get("num_classes", 10) == 10
    return ARCHITECTURES["mini-resnet"]().network


def _entry(pretrained: bool = False, **arguments: Any) -> Any:
    return build_model_with_cfg(_network, NAME, pretrained, **arguments)


_entry.__name__ = NAME  # what timm registers it under
register_model(_entry)


def _files(bundled: str) -> dict[str, bytes]:
    """A repository with the weights of a bundled model, as timm lays it out."""
    state = {key.removeprefix("network."): value for key, value in load_file(bundled_weights(bundled)).items()}
    config = {"architecture": NAME, "num_classes": 10, "pretrained_cfg": {**SETTINGS, "num_classes": 10}}
    return {"config.json": json.dumps(config).encode(), "model.safetensors": safetensors.torch.save(state)}


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[FakeHub]:
    """Both repositories, each first with another model: its main branch is at the second commit."""
    with serving() as hub, pytest.MonkeyPatch.context() as patch:
        patch.setenv("HF_TOKEN", TOKEN)  # whoever is logged in must not be seen
        patch.setattr("robench.zoo.Hub", partial(Hub, hub.endpoint, tmp_path_factory.mktemp("cache"), 2.0))
        for repository in REPOSITORIES.values():
            hub.add(repository, _files("mini-resnet"))
            hub.add(repository, _files("mini-resnet-adv"))
        yield hub


@pytest.fixture(scope="module")
def outcomes(tmp_path_factory: pytest.TempPathFactory) -> list[Outcome]:
    """Of the bundled model that is at the second commit of both repositories."""
    return robench.evaluate("mini-resnet-adv", SHORT, run_dir=tmp_path_factory.mktemp("run")).read_outcomes()


@pytest.fixture(scope="module", params=REFERENCES)
def honest(request: pytest.FixtureRequest, server: FakeHub, tmp_path_factory: pytest.TempPathFactory) -> Result:
    """What an evaluation says of the model, after a few examples."""
    reference = REFERENCES[str(request.param)]
    return robench.evaluate(reference, SHORT, limit=4, run_dir=tmp_path_factory.mktemp("run"))


def _kind(result: Result) -> str:
    return str(result.model.reference).partition(":")[0]


def _few(repository: Path, result: Result, outcomes: list[Outcome], **loader: str | None) -> Claim:
    """A valid claim of the model, cut to a few examples to be quick; keys of its loader may be changed then."""
    claim = _read(_claim(repository, result, outcomes, loader=loader_of(result.model)))
    keys = {key: value for key, value in {**loader_of(result.model), **loader}.items() if value is not None}
    right = [each for each in claim.outcomes if each.clean == each.label][:30]
    return replace(claim, submission=Submission.model_validate({**WORDS, "loader": keys}), outcomes=right)


def test_the_commit_is_verified_though_its_branch_went_on(
    honest: Result, outcomes: list[Outcome], server: FakeHub, tmp_path: Path
) -> None:
    kind = _kind(honest)
    repository = server.repositories[REPOSITORIES[kind]]
    commit = repository.branches["main"]
    assert loader_of(honest.model)["revision"] == commit
    repository.commit(_files("mini-resnet") | {"README.md": b"other weights now"})
    try:
        claim = _few(tmp_path, honest, outcomes)
        verdict = verify(claim, MERGED, by="me", run_dir=tmp_path / "runs")
    finally:
        repository.branches["main"] = commit
    said = called(SHORT, claim.outcomes)
    assert len(said.robust) > 5
    assert (verdict.asked, verdict.fell, len(verdict.controls)) == (len(said.robust), 0, len(said.broken))
    assert verdict.sound
    assert {request.token for request in server.log} == {None}


def test_another_model_at_the_named_commit_is_found(
    honest: Result, outcomes: list[Outcome], server: FakeHub, tmp_path: Path
) -> None:
    """By the digest of its weights before anything runs; where the claim names none, by its state."""
    first = next(iter(server.repositories[REPOSITORIES[_kind(honest)]].commits))
    claim = _few(tmp_path, honest, outcomes, revision=first)
    with pytest.raises(
        SubmissionError, match=rf"@{first}: `weights` is [0-9a-f]{{64}}; expected .*, as the claim says"
    ):
        verify(claim, MERGED, by="me", run_dir=tmp_path / "runs")
    assert not (tmp_path / "runs").exists()
    bare = _few(tmp_path, honest, outcomes, revision=first, weights_sha256=None)
    with pytest.raises(ModelError, match=r"`state` is .*; expected .*, as the claim says. It is another model"):
        verify(bare, MERGED, by="me", run_dir=tmp_path / "runs")


def test_a_commit_that_is_not_there_is_named(
    honest: Result, outcomes: list[Outcome], server: FakeHub, tmp_path: Path
) -> None:
    claim = _few(tmp_path, honest, outcomes, revision="1" * 40)
    with pytest.raises(ModelError, match=r"`revision` is `1{40}`; expected a branch, tag or commit of it"):
        verify(claim, MERGED, by="me", run_dir=tmp_path / "runs")
