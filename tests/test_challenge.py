"""Challenges and refutations of small, real claims: an honest one stands, a cheat falls, a stronger attack lowers."""

import atexit
import itertools
import json
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import robench
from robench import refuting
from robench.adversarial import image_file
from robench.budgets import Ball, L2Ball, LinfBall, PatchArea
from robench.challenge import Chosen, Draw, Job, verify
from robench.container import Code, confined, foreign_model, shut_in
from robench.data import CATALOGUE
from robench.errors import ModelError, SubmissionError
from robench.outcome import Outcome
from robench.progress import Silent
from robench.protocol import Protocol, parse_protocol
from robench.refutation import LARGEST, MOST_VALUES, Change, Patched, read_refutation
from robench.refuting import LEVELS, change_of, image_of, patches_of, refute
from robench.registry import load_protocol
from robench.result import Result
from robench.submission import RepositoryLoader, Submission
from robench.validation import Claim, Place, Rules, examine, validate
from robench.verification import FLIP_RATE, called
from robench.zoo import bundled_weights, load_model
from tests.claims import WORDS, result_of, write
from tests.validation.test_changes import commit, git

SOURCE = CATALOGUE["mini"]()
MERGED = Draw("0" * 40, "round 7")


def _protocol(**changes: Any) -> Protocol:
    """mini-pgd-linf with two steps: a second for all of its images."""
    content = load_protocol("mini-pgd-linf").model_dump(mode="json", by_alias=True, exclude_none=True)
    content |= {"id": "mini-short", "score": {"scoring": "any iterate", "steps": [2]}}
    content["attack"] |= {"steps": 2, "step_size": "3/255"}
    return parse_protocol(content | changes, where="mini-short")


SHORT = _protocol()
LONG = _protocol(
    id="mini-long",
    attack={"kind": "pgd", "step_size": "1/255", "steps": 12},
    score={"scoring": "any iterate", "steps": [12]},
)
TWO_PATCHES = {"kind": "patches", "area": "2/25", "patches": 2}
GREY = _protocol(
    id="mini-grey", attack={"kind": "tpa-gray", "rounds": 1, "queries": 2, "patches": 2}, budget=TWO_PATCHES, score={}
)
ASCENT = _protocol(
    id="mini-ascent",
    attack={"kind": "tpa-whitebox", "patches": 2, "positions": 3, "rounds": 8, "step_size": "1/8"},
    budget=TWO_PATCHES,
    score={},
)
NAME = SHORT.exact_name
SHIPPED = Rules.shipped()
OWN = {each.exact_name: each for each in (SHORT, GREY)}
RULES = Rules(OWN, {name: each.digest for name, each in OWN.items()}, SHIPPED.labels)


@cache
def honest_run() -> Result:
    """What an honest author claims; made once for all who ask."""
    folder = tempfile.mkdtemp()
    atexit.register(shutil.rmtree, folder)
    return robench.evaluate("mini-resnet-adv", SHORT, run_dir=Path(folder) / "run")


@cache
def stronger_run() -> tuple[Path, Result]:
    """The images of more steps of the same attack, and their run."""
    folder = tempfile.mkdtemp()
    atexit.register(shutil.rmtree, folder)
    images = Path(folder) / "images"
    options = robench.evaluation.Options(save_adversarial=images)
    return images, robench.evaluate("mini-resnet-adv", LONG, run_dir=Path(folder) / "run", options=options)


@pytest.fixture
def honest() -> Result:
    return honest_run()


def _claim(
    repository: Path,
    result: Result,
    outcomes: Sequence[Outcome],
    loader: dict[str, str] | None = None,
    *,
    protocol: Protocol = SHORT,
) -> Place:
    """What `robench submit` writes, under a protocol that is official in these tests alone."""
    bundled = {"bundled": "mini-resnet-adv", "weights_sha256": str(result.model.weights_sha256)}
    place = Place(repository / "submissions", "mini-resnet-adv", protocol.exact_name)
    claimed = result_of(protocol, outcomes, result.model, caveats=result.caveats)
    write(place.folder, claimed, outcomes, {**WORDS, "loader": loader or bundled})
    return place


def _read(place: Place) -> Claim:
    claim, findings = examine(place, RULES)
    assert [each for each in findings if each.severity == "error"] == []
    assert claim is not None
    return claim


def _inflated(outcomes: Sequence[Outcome], count: int) -> list[Outcome]:
    """So many of the broken examples are called robust, as the attack writes robust ones."""
    inflated = list(outcomes)
    for index in [index for index, each in enumerate(outcomes) if each.fooled_at][:count]:
        each = outcomes[index]
        margin = float(f"{each.clean_margin / 2:.3g}")
        inflated[index] = replace(each, fooled_at=(), stage="", attacked=each.label, attacked_margin=margin)
    return inflated


def _put(place: Place, content: bytes, folder: str, name: str) -> Path:
    path = place.root.parent / folder / place.model / place.protocol / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content)
    return path


# --- challenges


def test_an_honest_claim_stands_and_a_cheat_of_two_points_falls(honest: Result, tmp_path: Path) -> None:
    """Both in one: every example called robust is asked again, and the ten that were flipped fall."""
    outcomes = honest.read_outcomes()
    robust = sum(each.clean == each.label and not each.fooled_at for each in outcomes)
    stood = verify(_read(_claim(tmp_path / "honest", honest, outcomes)), MERGED, by="me", run_dir=tmp_path / "runs")
    assert (stood.robust, stood.of, stood.asked, stood.fell) == (robust, 512, robust, 0)
    assert (stood.sound, stood.refutes, stood.stood, len(stood.controls)) == (True, False, 0, 50)
    place = _claim(tmp_path / "cheat", honest, _inflated(outcomes, 10))
    cheat = verify(_read(place), MERGED, by="me", run_dir=tmp_path / "runs")
    assert (cheat.robust, cheat.asked, cheat.sound) == (robust + 10, robust + 10, True)
    assert cheat.refutes
    assert cheat.fell == sum(not each.robust and (each.margin or 0) < -0.001 for each in cheat.examples) >= 9
    assert {each.id for each in cheat.examples if not each.robust} == {
        now.id for then, now in zip(outcomes, _inflated(outcomes, 10), strict=True) if then != now
    }
    _put(place, cheat.to_bytes(), "verifications", "me.json")
    assert validate([place.root], rules=RULES).valid


def test_some_examples_are_read_by_their_ids() -> None:
    small = Chosen(SOURCE, SOURCE.ids[3:6])
    assert (small.ids, small.labels) == (list(SOURCE.ids[3:6]), list(SOURCE.labels[3:6]))
    for found, expected in zip(small.images([2, 0]), SOURCE.images([5, 3]), strict=True):
        assert isinstance(found, torch.Tensor)
        assert isinstance(expected, torch.Tensor)
        assert torch.equal(found, expected)
    with pytest.raises(SubmissionError, match=r"`data` is without 1 of 2 examples, such as 'x'; expected all"):
        Chosen(SOURCE, [SOURCE.ids[0], "x"])


def test_a_challenge_that_is_done_is_not_done_again(honest: Result, tmp_path: Path) -> None:
    claim = _read(_claim(tmp_path, honest, honest.read_outcomes()))
    few = replace(claim, outcomes=[each for each in claim.outcomes if each.clean == each.label][:20])
    said: list[str] = []

    class Listener(Silent):
        def notice(self, text: str) -> None:
            said.append(text)

    first, second = (verify(few, MERGED, by="me", run_dir=tmp_path, watcher=Listener()) for _ in range(2))
    assert first == second
    assert [text.startswith("Reusing the finished run") for text in said].count(True) == 1
    other = verify(few, replace(MERGED, public_value="round 8"), by="me", run_dir=tmp_path)
    assert [each.id for each in other.examples] != [each.id for each in first.examples]


def test_another_model_behind_the_loader_is_found(honest: Result, tmp_path: Path) -> None:
    outcomes = honest.read_outcomes()
    place = _claim(tmp_path, honest, outcomes)
    claim = _read(place)
    words = {**WORDS, "loader": {"bundled": "mini-resnet", "weights_sha256": str(honest.model.weights_sha256)}}
    with pytest.raises(
        SubmissionError, match=r"mini-resnet: `weights` is [0-9a-f]{64}; expected .*, as the claim says"
    ):
        verify(replace(claim, submission=Submission.model_validate(words)), MERGED, by="me", run_dir=tmp_path)
    result = claim.result.model_copy(update={"model": claim.result.model.model_copy(update={"state_digest": "0" * 64})})
    few = replace(claim, result=result, outcomes=[each for each in outcomes if each.clean == each.label][:30])
    with pytest.raises(ModelError, match=r"mini-resnet-adv: `state` is .*; expected 0{64}, as the claim says. It is"):
        verify(few, MERGED, by="me", run_dir=tmp_path)


def test_a_claim_without_a_loader_stays_where_it_is(honest: Result, tmp_path: Path) -> None:
    claim = _read(_claim(tmp_path, honest, honest.read_outcomes()))
    bare = replace(claim, submission=Submission.model_validate(WORDS))
    with pytest.raises(SubmissionError, match=r"`loader` is none; expected a way to get the model. The claim stays"):
        verify(bare, MERGED, by="me", run_dir=tmp_path)


def test_a_job_goes_to_another_process_as_it_is(tmp_path: Path) -> None:
    job = Job(
        "a:b", SHORT, "native", ("x", "y"), (tmp_path / "r.json",), tmp_path, data=None, device="cpu", batch_size=3
    )
    assert Job.from_json(job.to_json()) == job


@pytest.mark.parametrize(
    ("by", "merged", "public_value", "message"),
    [
        ("", "0" * 40, "round 7", r"`verdict` is malformed \('/by' is '', expected have at least 1 character\)"),
        ("me", "main", "round 7", r"`verdict` is malformed \('/merge_commit' is 'main', expected text that matches"),
        ("me", "0" * 40, "a\nb", r"`verdict` is malformed \('/public_value' is 'a\\nb', expected one line of"),
    ],
)
def test_a_wrong_word_is_said_before_anything_runs(
    by: str, merged: str, public_value: str, message: str, honest: Result, tmp_path: Path
) -> None:
    claim = _read(_claim(tmp_path, honest, honest.read_outcomes()))
    with pytest.raises(SubmissionError, match=message):
        verify(claim, Draw(merged, public_value), by=by, run_dir=tmp_path / "runs")
    assert not (tmp_path / "runs").exists()


# --- refutations


@pytest.fixture
def stronger() -> tuple[Path, Result]:
    return stronger_run()


def test_a_stronger_attack_lowers_a_claim(honest: Result, stronger: tuple[Path, Result], tmp_path: Path) -> None:
    images, longer = stronger
    outcomes = honest.read_outcomes()
    claim = _read(_claim(tmp_path, honest, outcomes))
    robust = set(called(SHORT, outcomes).robust)
    broken = {each.id for each in longer.read_outcomes() if each.fooled_at}
    found = refute(claim, images, model="mini-resnet-adv", by="me", how="PGD, 12 steps")
    named = [each.id for each in found.refutation.images]
    assert set(named) <= robust & broken
    assert len(named) + found.harmless == len(robust & broken) >= 5
    assert len(named) > found.harmless
    assert (found.outside, found.left_out) == (0, 0)
    _hold_to_the_model(found.refutation.to_bytes())
    path = _put(claim.place, found.refutation.to_bytes(), "refutations", "me.json")
    assert path.stat().st_size < 4500 * len(named)
    assert validate([claim.place.root], rules=RULES).valid
    verdict = verify(claim, replace(MERGED, nothing=True), by="me", run_dir=tmp_path / "runs")
    assert (verdict.asked, verdict.controls, verdict.refutes) == (0, (), False)
    (confirmed,) = verdict.confirmed
    assert set(confirmed.ids) == set(named)
    _put(claim.place, verdict.to_bytes(), "verifications", "me.json")
    assert validate([claim.place.root], rules=RULES).valid


def _hold_to_the_model(content: bytes) -> None:
    """Rebuild each image by hand, and ask the model: inside the ball, inside [0, 1], and another class."""
    model = load_model("mini-resnet-adv")
    for change in read_refutation(content, where="").images:
        assert isinstance(change, Change)
        place = SOURCE.ids.index(change.id)
        (clean,) = SOURCE.images([place])
        assert isinstance(clean, torch.Tensor)
        steps = np.frombuffer(change.unpacked(), dtype=np.int8).reshape(change.shape).astype(np.float64)
        image = np.clip(clean.numpy() + change.unit * steps, 0, 1)
        assert np.abs(image - clean.numpy()).max() <= 4 / 255 + 1e-6
        with torch.no_grad():
            assert int(model(torch.from_numpy(image).float()[None]).argmax()) != SOURCE.labels[place]


@pytest.mark.parametrize(("ball", "epsilon"), [(LinfBall, 4 / 255), (L2Ball, 0.5), (L2Ball, 3.0)])
@pytest.mark.parametrize("levels", LEVELS)
def test_a_stored_change_is_never_longer_than_the_budget(
    ball: Callable[[float], Ball], epsilon: float, levels: int
) -> None:
    """In double precision; and the finest steps are near what they stand for."""
    chance = np.random.default_rng(levels)
    noise = chance.standard_normal((3, 16, 16))
    length = np.abs(noise).max() if ball is LinfBall else np.linalg.norm(noise)
    change = noise * epsilon / length
    stored = change_of("x", torch.from_numpy(change).float(), ball(epsilon), levels)
    assert stored is not None
    steps = np.frombuffer(stored.unpacked(), dtype=np.int8).astype(np.float64).reshape(3, 16, 16)
    found = stored.unit * steps
    assert (np.abs(found).max() if ball is LinfBall else np.linalg.norm(found)) <= epsilon + 1e-7
    if levels == max(LEVELS):
        assert np.abs(found - change).max() <= 0.02 * np.abs(change).max()


def test_images_outside_the_budget_or_without_effect_refute_nothing(honest: Result, tmp_path: Path) -> None:
    claim = _read(_claim(tmp_path, honest, honest.read_outcomes()))
    far, idle = list(called(SHORT, claim.outcomes).robust)[:2]
    for example, change in ((far, 0.1), (idle, 0.0)):
        (clean,) = SOURCE.images([SOURCE.ids.index(example)])
        assert isinstance(clean, torch.Tensor)
        np.save(tmp_path / image_file(example), (clean + change).clamp(0, 1).numpy())
    with pytest.raises(SubmissionError) as caught:
        refute(claim, tmp_path, model="mini-resnet-adv", by="me", how="none")
    found = "2 images of examples called robust: 1 outside the budget, 1 harmless"
    assert str(caught.value) == f"{tmp_path}: `images` is {found}; expected at least one that fools the model."


def test_a_refutation_that_the_model_denies_is_not_confirmed(
    honest: Result, stronger: tuple[Path, Result], tmp_path: Path
) -> None:
    """The steps of one example under the id of another: its form is right, and it fools nobody."""
    claim = _read(_claim(tmp_path, honest, honest.read_outcomes()))
    found = refute(claim, stronger[0], model="mini-resnet-adv", by="me", how="PGD, 12 steps")
    first, second = found.refutation.images[:2]
    blank = [each.model_copy(update={"unit": 1e-6}) for each in (first, second)]
    content = found.refutation.model_copy(update={"images": (blank[0], second)}).to_bytes()
    _put(claim.place, content, "refutations", "me.json")
    assert validate([claim.place.root], rules=RULES).valid
    verdict = verify(claim, replace(MERGED, nothing=True), by="me", run_dir=tmp_path / "runs")
    assert [each.ids for each in verdict.confirmed] == [(second.id,)]


@pytest.fixture(scope="module")
def patched(tmp_path_factory: pytest.TempPathFactory) -> tuple[Claim, Path, set[str]]:
    """A claim under grey patches, images of a better attack, and which of their examples it calls robust."""
    folder = tmp_path_factory.mktemp("patched")
    weak = robench.evaluate("mini-resnet-adv", GREY, run_dir=folder / "grey")
    options = robench.evaluation.Options(save_adversarial=folder / "images")
    strong = robench.evaluate("mini-resnet-adv", ASCENT, limit=48, run_dir=folder / "ascent", options=options)
    outcomes = weak.read_outcomes()
    claim = _read(_claim(folder, weak, outcomes, protocol=GREY))
    fooled = {each.id for each in strong.read_outcomes() if each.fooled_at}
    return claim, folder / "images", set(called(GREY, outcomes).robust) & fooled


def test_better_patches_lower_a_claim(patched: tuple[Claim, Path, set[str]], tmp_path: Path) -> None:
    claim, images, broken = patched
    found = refute(claim, images, model="mini-resnet-adv", by="me", how="gradient ascent")
    named = {each.id for each in found.refutation.images}
    assert named <= broken
    assert len(named) + found.harmless == len(broken) >= 5
    assert len(named) > found.harmless
    assert (found.outside, found.left_out) == (0, 0)
    path = _put(claim.place, found.refutation.to_bytes(), "refutations", "me.json")
    assert validate([claim.place.root], rules=RULES).valid
    verdict = verify(claim, replace(MERGED, nothing=True), by="me", run_dir=tmp_path)
    (confirmed,) = verdict.confirmed
    assert set(confirmed.ids) == named
    path.unlink()


def test_stored_patches_are_two_squares_without_a_clean_pixel(patched: tuple[Claim, Path, set[str]]) -> None:
    """Painted by hand over the clean image, in a few grey levels, they fool."""
    claim, images, _ = patched
    model = load_model("mini-resnet-adv")
    for stored in refute(claim, images, model="mini-resnet-adv", by="me", how="gradient ascent").refutation.images:
        assert isinstance(stored, Patched)
        assert len(stored.squares) <= 2
        place = SOURCE.ids.index(stored.id)
        (clean,) = SOURCE.images([place])
        assert isinstance(clean, torch.Tensor)
        painted, colours = clean.numpy().copy(), set()
        for square in stored.squares:
            assert square.side == 12
            content = np.frombuffer(square.unpacked(stored.id), dtype=np.uint8).reshape(12, 12, 4)
            for row, column, channel in np.ndindex(12, 12, 3):
                if content[row, column, 3] >> channel & 1:
                    colours.add(int(content[row, column, channel]))
                    painted[channel, square.row + row, square.column + column] = content[row, column, channel] / 255
                else:
                    assert content[row, column, channel] == 0
        assert 1 <= len(colours) <= 64
        with torch.no_grad():
            assert int(model(torch.from_numpy(painted)[None]).argmax()) != SOURCE.labels[place]


def test_what_patches_leave_as_it_was_is_not_stored() -> None:
    clean = torch.full((3, 20, 30), 0.5)
    attacked = clean.clone()
    attacked[:2, 17:20, 28:30] = torch.tensor([0.1, 0.2])[:, None, None]  # in a corner, without blue
    attacked[0, 0, 0] += 1 / 512  # less than a grey level
    ways = patches_of("x", clean, attacked, PatchArea(0.06, 2))
    assert ways is not None
    coarse, *_, fine = ways
    (square,) = fine.squares
    assert (square.row, square.column, square.side) == (16, 26, 4)
    content = np.frombuffer(square.unpacked("x"), dtype=np.uint8).reshape(4, 4, 4)
    assert content[1:, 2:].tolist() == [[[26, 51, 0, 3]] * 2] * 3
    assert content.sum() == (26 + 51 + 3) * 6
    expected = clean.clone()
    expected[:2, 17:20, 28:30] = torch.tensor([26, 51])[:, None, None] / 255
    assert torch.equal(image_of(fine, clean), expected)
    expected[:2, 17:20, 28:30] = torch.tensor([0, 85])[:, None, None] / 255  # thirds
    assert torch.equal(image_of(coarse, clean), expected)
    assert patches_of("x", clean, clean + 1 / 512, PatchArea(0.06, 2)) == []
    assert patches_of("x", clean, clean + 0.1, PatchArea(0.06, 2)) is None


def test_squares_at_the_upper_and_left_edge_are_moved_inside() -> None:
    clean = torch.full((3, 20, 30), 0.5)
    attacked = clean.clone()
    attacked[:, 0, 0] = attacked[:, 1, 20] = 0.0
    ways = patches_of("x", clean, attacked, PatchArea(0.06, 2))
    assert ways
    assert all(square.row >= 0 and square.column >= 0 for square in ways[-1].squares)
    assert torch.equal(image_of(ways[-1], clean), attacked)


def test_patches_of_models_that_round_are_stored(patched: tuple[Claim, Path, set[str]], tmp_path: Path) -> None:
    """A tool that normalises outside the model changes the rest of the image in the last bit."""
    claim, images, broken = patched
    shaken = 0
    for example in broken:
        attacked = torch.from_numpy(np.load(images / image_file(example)))
        rounded = (attacked - 0.485) / 0.229 * 0.229 + 0.485
        shaken += int((rounded != attacked).sum())
        np.save(tmp_path / image_file(example), rounded.numpy())
    assert shaken
    found = refute(claim, tmp_path, model="mini-resnet-adv", by="me", how="gradient ascent")
    assert found.outside == 0
    assert len(found.refutation.images) > found.harmless


@pytest.mark.parametrize(("name", "most"), [("MOST_VALUES", 4 * 144 * 2 * 2), ("LARGEST", 1000 + 2 * 900)])
def test_what_has_no_room_in_the_file_is_left_out(
    name: str, most: int, patched: tuple[Claim, Path, set[str]], monkeypatch: pytest.MonkeyPatch
) -> None:
    claim, images, _ = patched
    whole = refute(claim, images, model="mini-resnet-adv", by="me", how="gradient ascent")
    monkeypatch.setattr(refuting, name, most)
    found = refute(claim, images, model="mini-resnet-adv", by="me", how="gradient ascent")
    kept = len(found.refutation.images)
    assert 0 < kept < len(whole.refutation.images)
    assert found.left_out == len(whole.refutation.images) - kept
    limits = {"MOST_VALUES": MOST_VALUES, "LARGEST": LARGEST, name: most}
    assert sum(image.values for image in found.refutation.images) <= limits["MOST_VALUES"]
    assert len(found.refutation.to_bytes()) <= limits["LARGEST"]


def test_images_that_are_no_patches_refute_nothing(patched: tuple[Claim, Path, set[str]], tmp_path: Path) -> None:
    claim, _, broken = patched
    example = min(broken)
    (clean,) = SOURCE.images([SOURCE.ids.index(example)])
    assert isinstance(clean, torch.Tensor)
    np.save(tmp_path / image_file(example), (clean + 4 / 255).clamp(0, 1).numpy())
    with pytest.raises(SubmissionError, match="1 images of examples called robust: 1 outside the budget, 0 harmless"):
        refute(claim, tmp_path, model="mini-resnet-adv", by="me", how="none")


# --- anybody's code

NETS = """
import os, socket
import torch
from safetensors.torch import load_file
from robench.zoo import ARCHITECTURES, MODELS

def build():
    for way_out in (lambda: socket.create_connection(("127.0.0.1", {port}), timeout=2), lambda: open("{secret}")):
        try:
            way_out()
        except OSError:
            continue
        raise AssertionError("not shut in")
    model = ARCHITECTURES[MODELS["mini-resnet-adv"]]()
    model.load_state_dict(load_file(os.environ["ROBENCH_WEIGHTS"]))
    return model.eval()
"""


@pytest.fixture
def foreign(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[RepositoryLoader]:
    """A repository with code and weights, that git takes for one on the web."""
    import socket

    secret, repository = tmp_path / "secret.txt", tmp_path / "nets"
    secret.write_text("mine")
    repository.mkdir()
    with socket.create_server(("127.0.0.1", 0)) as server:
        code = NETS.replace("{port}", str(server.getsockname()[1])).replace("{secret}", str(secret))
        (repository / "my_nets.py").write_text(code)
        shutil.copy(bundled_weights("mini-resnet-adv"), repository / "weights.safetensors")
        git(repository, "init", "--quiet")
        commit(repository)
        for key, value in {
            "GIT_CONFIG_COUNT": "1",
            "GIT_CONFIG_KEY_0": f"url.{repository}.insteadOf",
            "GIT_CONFIG_VALUE_0": "https://example.org/nets",
        }.items():
            monkeypatch.setenv(key, value)
        yield RepositoryLoader(
            repository="https://example.org/nets",
            commit=git(repository, "rev-parse", "HEAD").strip(),
            entry_point="my_nets:build",
            weights_sha256=str(robench.zoo.resolve("mini-resnet-adv").weights_sha256),
        )


def _bubblewrap_works() -> bool:
    """Where users may not make namespaces it is of no use, though installed."""
    if shutil.which("bwrap") is None:
        return False
    return (
        subprocess.run(["bwrap", "--ro-bind", "/", "/", "--unshare-all", "true"], capture_output=True).returncode == 0
    )


@pytest.mark.skipif(not _bubblewrap_works(), reason="bubblewrap is not installed, or may not make namespaces")
def test_foreign_code_is_attacked_without_network_and_without_our_files(
    foreign: RepositoryLoader,
    honest: Result,
    stronger: tuple[Path, Result],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    claim = _read(_claim(tmp_path, honest, honest.read_outcomes()))
    found = refute(claim, stronger[0], model="mini-resnet-adv", by="me", how="PGD, 12 steps")
    _put(claim.place, found.refutation.to_bytes(), "refutations", "me.json")
    few = [each for each in claim.outcomes if each.clean == each.label][:30]
    own = Submission.model_validate({**WORDS, "loader": foreign.model_dump(exclude_none=True)})
    monkeypatch.chdir(tmp_path)
    verdict = verify(replace(claim, submission=own, outcomes=few), MERGED, by="me", run_dir=Path("runs"))
    robust = list(called(SHORT, few).robust)
    assert (verdict.asked, verdict.fell, verdict.stood) == (len(robust), 0, 0)
    broken = [each.id for each in found.refutation.images if each.id in robust]
    assert [sorted(each.ids) for each in verdict.confirmed] == [sorted(broken)]


def test_without_a_container_foreign_code_is_not_even_fetched(
    foreign: RepositoryLoader, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(SubmissionError) as caught:
        foreign_model(foreign, tmp_path / "code")
    assert str(caught.value) == (
        "verify: `loader` is anybody's code; expected `bwrap` or `podman`, which shut foreign code in. Install one of "
        "them; until then the tier stays where it is."
    )
    assert not (tmp_path / "code").exists()


def _programs(folder: Path, **scripts: str) -> Path:
    """A folder with programs of these names."""
    folder.mkdir()
    for name, script in scripts.items():
        (folder / name).write_text(f"#!/bin/sh\n{script}\n")
        (folder / name).chmod(0o755)
    return folder


def test_the_container_has_no_network_no_environment_and_one_folder_to_write_to(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    programs = _programs(tmp_path / "bin", bwrap="", podman="")
    monkeypatch.setenv("PATH", str(programs))
    work, data = tmp_path / "work", tmp_path / "images"
    command = confined([data], Code(work / "code", work / "weights"), work=work, device=None)
    assert command[0] == str(programs / "bwrap")
    assert {"--unshare-all", "--die-with-parent", "--new-session", "--clearenv"} <= set(command)
    assert "--share-net" not in command
    pairs = list(itertools.pairwise(command))
    assert [place for option, place in pairs if option == "--bind"] == [str(work)]
    read = [place for option, place in pairs if option in ("--ro-bind", "--ro-bind-try")]
    assert str(data) in read
    assert sys.base_prefix in read
    assert not {"/", "/home", "/root", "/etc", str(Path.home())} & set(read)
    assert command[-1] == "--"


FAKE_PODMAN = """
[ "$1" = run ] || exit 9
for each in "$@"; do echo "$each"; done > {log}
env > {log}.env
{then}
"""


def _podman(folder: Path, monkeypatch: pytest.MonkeyPatch, then: str) -> Path:
    """A podman that writes down how it is called, and no bubblewrap; where it writes."""
    log = folder / "podman.log"
    programs = _programs(folder / "bin", podman=FAKE_PODMAN.format(log=log, then=then))
    (programs / "env").symlink_to(str(shutil.which("env")))
    monkeypatch.setenv("PATH", str(programs))
    return log


def test_podman_shuts_in_where_bubblewrap_is_missing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """No network, nothing of the environment, a root of its own that is read-only, and one folder to write to."""
    log = _podman(tmp_path, monkeypatch, "exit 0")
    monkeypatch.setenv("SECRET", "mine")
    work, data = tmp_path / "work", tmp_path / "images"
    for folder in (work / "code", data):
        folder.mkdir(parents=True)
    (work / "weights").write_text("w")
    shut_in(Code(work / "code", work / "weights"), "{}", work=work, seen=[data], device=None)
    called = log.read_text().splitlines()
    root = tmp_path / "work.root"
    options, command = called[: called.index(str(root)) + 1], called[called.index(str(root)) + 1 :]
    assert command == [sys.executable, "-P", "-m", "robench", "reattack", str(work / "job.json")]
    assert options[:2] == ["run", "--rm"]
    assert options[-2:] == ["--rootfs", str(root)]
    assert {"--network=none", "--read-only", "--cap-drop=all", "--env-host=false", "--tmpfs=/tmp"} <= set(options)
    assert f"--workdir={work / 'code'}" in options
    assert not any(
        option.startswith(("--privileged", "--volume", "-v", "--device", "--env-file")) for option in options
    )
    mounts = [
        dict(part.partition("=")[::2] for part in option[8:].split(",")) for option in options if "type=bind" in option
    ]
    assert all(mount["source"] == mount["target"] for mount in mounts)
    assert [mount["source"] for mount in mounts if "readonly" not in mount] == [str(work)]
    read = {mount["source"] for mount in mounts if "readonly" in mount}
    assert {str(work / "code"), str(work / "weights"), str(data), sys.base_prefix} <= read
    assert not {"/", "/home", "/root", "/etc", "/dev", str(Path.home()), str(tmp_path)} & read
    variables = dict(option[6:].partition("=")[::2] for option in options if option.startswith("--env="))
    assert variables["ROBENCH_WEIGHTS"] == str(work / "weights")
    assert "SECRET" not in variables
    assert "SECRET=mine" in log.with_name("podman.log.env").read_text()  # podman had it, and was told to keep it
    for mount in mounts:  # every place to mount at is there, as a file or a folder
        assert (root / mount["target"].lstrip("/")).is_file() == Path(mount["source"]).is_file()


def test_what_fails_in_podman_is_said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    _podman(tmp_path, monkeypatch, "echo Error: no such kernel >&2; exit 125")
    work = tmp_path / "work"
    (work / "code").mkdir(parents=True)
    with pytest.raises(
        SubmissionError, match=r"failed in the container \(.*Error: no such kernel.*\); expected a model"
    ):
        shut_in(Code(work / "code", work / "weights"), "{}", work=work, seen=[], device=None)


def test_podman_may_use_gpus_only_where_they_are_asked_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("robench.container._GPU", ("null",))
    _podman(tmp_path, monkeypatch, "exit 0")
    code, work = Code(tmp_path / "work" / "code", tmp_path / "weights"), tmp_path / "work"
    devices = {
        device: [option for option in confined([], code, work=work, device=device) if option.startswith("--device")]
        for device in ("cpu", "cuda:0")
    }
    assert devices == {"cpu": [], "cuda:0": ["--device=/dev/null"]}


def test_wrong_weights_of_foreign_code_are_refused(foreign: RepositoryLoader, tmp_path: Path) -> None:
    if not _bubblewrap_works():
        pytest.skip("bubblewrap is not installed, or may not make namespaces")
    other = foreign.model_copy(update={"weights_sha256": "0" * 64})
    with pytest.raises(SubmissionError, match=r"`weights` is missing; expected a file with the digest 0{64}"):
        foreign_model(other, tmp_path / "code")
    gone = foreign.model_copy(update={"commit": "1" * 40})
    with pytest.raises(SubmissionError, match=r"fetch: `commit` is not to be had .*; expected the commit that the"):
        foreign_model(gone, tmp_path / "code2")


def test_flips_between_runs_are_below_the_tolerance(honest: Result, tmp_path: Path) -> None:
    """Other slots: the same verdicts, up to the rate that a challenge forgives."""
    again = robench.evaluate("mini-resnet-adv", SHORT, batch_size=16, run_dir=tmp_path / "run")
    assert json.loads((tmp_path / "run" / "plan.json").read_text())["protocol"]["id"] == "mini-short"
    pairs = list(zip(honest.read_outcomes(), again.read_outcomes(), strict=True))
    robust = [(then, now) for then, now in pairs if then.clean == then.label and not then.fooled_at]
    assert sum(bool(now.fooled_at) for _, now in robust) <= FLIP_RATE * len(robust)
