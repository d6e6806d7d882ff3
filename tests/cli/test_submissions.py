"""validate, submit, leaderboard and comment as users and continuous integration run them."""

import hashlib
import json
import re
import resource
import shlex
import subprocess
import sys
from collections import Counter
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from robench.card import open_pull_request
from robench.cli.main import app
from robench.data import CATALOGUE
from robench.data.categories import categories
from robench.data.imagenet.listing import cue_conflict, listed, validation
from robench.errors import RobenchError, SubmissionError
from robench.hub import Hub
from robench.outcome import Outcome, compress, to_csv
from robench.protocol import Protocol
from robench.registry import load_protocol, read_labels, shipped_folder
from robench.result import Result
from robench.submission import OUTCOMES, RESULT, TOML
from robench.validation import Rules
from tests.claims import WORDS as WORDS_OF_TOYS
from tests.claims import claim, digest_of, draw, edit_json, model_record, result_of, to_toml
from tests.hub_server import TOKEN, serving
from tests.validation.test_changes import commit, git

ROOT = Path(__file__).parent.parent.parent
MINI = load_protocol("mini-pgd-linf")
RULES = Rules.shipped()
SOURCE = CATALOGUE["mini"]()


def _drawn(seed: int, **about: Any) -> list[Outcome]:
    return draw(list(SOURCE.ids), [int(label) for label in SOURCE.labels], seed=seed, classes=10, **about)


def _claim(repository: Path, model: str, seed: int = 0, **about: Any) -> Path:
    outcomes = _drawn(seed, **about)
    return claim(repository, model, rules=RULES, name=MINI.exact_name, seed=seed, outcomes=outcomes).folder


def _run(folder: Path, seed: int = 0) -> Path:
    """A finished run."""
    outcomes, record = _drawn(seed), model_record("toy-net", seed)
    result: Result = result_of(MINI, outcomes, record)
    folder.mkdir()
    (folder / RESULT).write_bytes(result.to_bytes())
    (folder / OUTCOMES).write_bytes(compress(to_csv(outcomes)))
    plan = {"protocol": MINI.model_dump(mode="json", by_alias=True, exclude_none=True)}
    (folder / "plan.json").write_text(json.dumps(plan))
    return folder


def _invoke(*arguments: str) -> tuple[int, str, str]:
    result = CliRunner().invoke(app, list(arguments))
    if result.exception is not None and not isinstance(result.exception, SystemExit):
        raise result.exception
    return result.exit_code, result.stdout, result.stderr


@pytest.fixture
def repository(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A repository that looks like the benchmark's, as working directory."""
    git(tmp_path, "init", "--quiet")
    git(tmp_path, "config", "user.name", "A. Person")
    git(tmp_path, "config", "user.email", "a@example.org")
    (tmp_path / "benchmarks").mkdir()
    (tmp_path / "benchmarks" / "protocols.lock").write_text("")
    (tmp_path / "submissions").mkdir()
    (tmp_path / "submissions" / "README.md").write_text("Claims.\n")
    monkeypatch.chdir(tmp_path)
    return tmp_path


# --- validate


def test_validate_says_what_is_wrong_in_three_forms_and_by_its_exit_code(repository: Path) -> None:
    folder = _claim(repository, "alpha")
    assert _invoke("validate") == (0, "", "1 claim, valid: 0 errors, 0 warnings\n")
    edit_json(folder / RESULT, lambda content: content["metrics"][-1].update(numerator=512))
    code, stdout, stderr = _invoke("validate", str(folder))
    assert (code, stderr) == (1, "1 claim, invalid: 1 errors, 0 warnings\n")
    assert stdout.startswith(
        f"RB405 error: submissions/alpha/{MINI.exact_name}/{RESULT}: `/metrics/4` is 'robust@50 512/512'; "
    )
    code, stdout, _ = _invoke("validate", "--format", "github")
    assert (code, stdout.partition("::RB405 error")[0]) == (
        1,
        f"::error file=submissions/alpha/{MINI.exact_name}/{RESULT},title=RB405 a metric that the outcomes do not give",
    )
    code, stdout, _ = _invoke("validate", "--format", "json")
    report = json.loads(stdout)
    assert (code, report["schema"], report["claims"], report["valid"]) == (1, "robench.report/1", 1, False)
    (finding,) = report["findings"]
    assert set(finding) == {"code", "severity", "level", "file", "pointer", "found", "expected", "fix"}
    assert (finding["code"], finding["level"], finding["pointer"]) == ("RB405", "arithmetic", "/metrics/4")


def test_what_cannot_be_checked_ends_with_2(repository: Path) -> None:
    command = [sys.executable, "-m", "robench", "validate", "nowhere"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 2
    assert done.stderr.startswith("error: ")
    assert "`path` is missing; expected a claim, or a folder of claims." in done.stderr
    with pytest.raises(RobenchError, match="`--base` is unknown to git"):
        _invoke("validate", "--base", "nothing")


def test_a_real_run_is_valid(repository: Path) -> None:
    """Everything but the number of images, which is small so that this is quick."""
    code, stdout, _ = _invoke(
        "evaluate", "mini-resnet-gelu-adv", "mini-pgd-linf", "--limit", "16", "--run-dir", "run", "--json"
    )
    assert code == 0
    target = repository / "submissions" / "mini-resnet-gelu-adv" / MINI.exact_name
    target.mkdir(parents=True)
    for name in (RESULT, OUTCOMES):
        (target / name).write_bytes((repository / "run" / name).read_bytes())
    weights = json.loads(stdout)["model"]["weights_sha256"]
    words = {**WORDS_OF_TOYS, "loader": {"bundled": "mini-resnet-gelu-adv", "weights_sha256": weights}}
    (target / TOML).write_text(to_toml(words))
    _, stdout, _ = _invoke("validate", "--format", "json")
    codes = {finding["code"] for finding in json.loads(stdout)["findings"]}
    assert codes - {"RB604"} == {"RB306", "RB402", "RB403"}  # a partial run: all that a prefix is, and nothing else


@pytest.mark.slow
@pytest.mark.parametrize("model", ["mini-resnet-gelu-adv", "mini-resnet"])
def test_a_whole_real_run_is_valid(model: str, repository: Path) -> None:
    assert _invoke("evaluate", model, "mini-pgd-linf", "--run-dir", "run")[0] == 0
    commit(repository)
    words = ["--author", "me", "--training-data", "mini", "--licence", "Apache-2.0", "--family", "cnn"]
    code, stdout, stderr = _invoke("submit", "run", *words)
    assert code == 0, stderr
    assert f"branch: submit/{model}/mini-pgd-linf-1" in stdout


def test_the_labels_that_are_pinned_are_those_of_the_data() -> None:
    pinned = read_labels(shipped_folder() / "labels.lock")
    mini = digest_of(list(SOURCE.ids)), digest_of([int(label) for label in SOURCE.labels])
    few, all_of_it = ((digest_of(list(each)), digest_of(list(each.values()))) for each in (listed(), validation()))
    assert dict([mini, few, all_of_it]).items() <= pinned.items()


def test_the_published_cue_conflict_images_are_what_is_pinned() -> None:
    kinds, protocol = list(categories("sixteen")), RULES.protocols["cue-conflict@1"]
    pairs = {Path(name).name: re.findall(r"([a-z]+)[0-9]+", Path(name).name) for name in cue_conflict()}
    ids = sorted(pairs, key=lambda name: hashlib.sha256(name.encode()).digest())
    shapes, textures = ([kinds.index(pairs[name][cue]) for name in ids] for cue in (0, 1))
    assert (len(ids), sum(shape == texture for shape, texture in zip(shapes, textures, strict=True))) == (1280, 80)
    assert read_labels(shipped_folder() / "labels.lock")[digest_of(ids)] == digest_of(shapes)
    assert protocol.data.ids_sha256 == digest_of(ids)
    assert protocol.shift is not None
    assert protocol.shift.textures_sha256 == digest_of(textures)
    assert set(Counter(zip(shapes, textures, strict=True)).values()) == {5}  # so the paper's authors paired them


def _ranked() -> list[Protocol]:
    return [protocol for protocol in RULES.protocols.values() if protocol.ranked and protocol.status == "active"]


@pytest.mark.parametrize("protocol", _ranked(), ids=lambda protocol: str(protocol.exact_name))
def test_every_protocol_that_takes_claims_has_pinned_labels(protocol: Protocol) -> None:
    assert protocol.data.ids_sha256 in RULES.labels


# --- no torch


BLOCKED = """
import sys
for name in ("torch", "torchvision", "timm", "numpy", "scipy", "safetensors", "PIL", "huggingface_hub", "matplotlib"):
    sys.modules[name] = None
from robench.cli import main
sys.argv[0] = "robench"
main()
"""


@pytest.mark.parametrize(
    "arguments",
    [["validate"], ["validate", "--format", "json", "--neighbours"], ["leaderboard"], ["list"], ["--help"]],
    ids=" ".join,
)
def test_the_records_wing_needs_no_torch(arguments: list[str], repository: Path) -> None:
    _claim(repository, "alpha")
    command = [sys.executable, "-c", BLOCKED, *arguments]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert (done.returncode, "Traceback" in done.stderr) == (0, False), done.stderr


def test_submitting_needs_no_torch(repository: Path) -> None:
    _run(repository / "run")
    commit(repository)
    words = ["--author", "me", "--training-data", "Toys", "--licence", "MIT", "--family", "cnn"]
    command = [sys.executable, "-c", BLOCKED, "submit", "run", *words]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (0, ""), done.stderr


# --- submit


WORDS = ["--author", "A. Person", "--training-data", "Toys", "--licence", "MIT", "--family", "cnn"]


def test_submit_says_how_to_send_what_it_committed(repository: Path) -> None:
    _run(repository / "run")
    commit(repository)
    code, stdout, stderr = _invoke("submit", "run", *WORDS, "--paper", "https://example.org/paper", "--notes", "small")
    assert (code, stderr) == (0, "")
    place = f"submissions/toy-net/{MINI.exact_name}"
    assert stdout.splitlines() == [
        "branch: submit/toy-net/mini-pgd-linf-1",
        *(f"added: {place}/{name}" for name in sorted([TOML, RESULT, OUTCOMES])),
        "next:",
        "  git push --set-upstream origin submit/toy-net/mini-pgd-linf-1",
        "  gh pr create --head submit/toy-net/mini-pgd-linf-1 --title 'Submit toy-net under mini-pgd-linf@1' "
        "--body 'Made with `robench submit`; docs/submitting.md says what is checked.'",
    ]
    committed = git(repository, "show", f"submit/toy-net/mini-pgd-linf-1:{place}/{TOML}")
    assert 'paper = "https://example.org/paper"' in committed
    assert '[loader]\nbundled = "toy-net"\nweights_sha256 = "' in committed


def test_submit_proposes_the_claim_to_the_hub_and_leaves_the_clone_alone(
    repository: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    _run(repository / "run")
    commit(repository)
    monkeypatch.setenv("HF_TOKEN", TOKEN)
    with serving() as server:
        server.add("someone/toy", {"README.md": b"# Toy\n"})
        here = partial(open_pull_request, hub=Hub(server.endpoint, repository / "cache"))
        monkeypatch.setattr("robench.card.open_pull_request", here)
        code, stdout, stderr = _invoke("submit", "run", *WORDS, "--hub", "someone/toy")
        (proposal,) = server.proposals
    assert (code, stderr) == (0, "")
    place = f"submissions/toy-net/{MINI.exact_name}"
    files = [f"{place}/{name}" for name in sorted([TOML, RESULT, OUTCOMES])]
    assert stdout.splitlines() == [
        *(f"added: {file}" for file in files),
        f"pull request: {server.endpoint}/someone/toy/discussions/1",
    ]
    assert set(proposal["files"]) == {"README.md", *files}
    assert proposal["files"][f"{place}/{OUTCOMES}"] == (repository / "run" / OUTCOMES).read_bytes()
    assert "submit/" not in git(repository, "branch", "--list")


def test_an_invalid_claim_is_not_proposed_to_the_hub(repository: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    edit_json(_run(repository / "run") / RESULT, lambda result: result["outcomes"].update(rows=3))
    monkeypatch.setenv("HF_TOKEN", TOKEN)
    with serving() as server:
        monkeypatch.setattr("robench.card.open_pull_request", partial(open_pull_request, hub=Hub(server.endpoint)))
        with pytest.raises(SubmissionError, match="RB408"):
            _invoke("submit", "run", *WORDS, "--hub", "someone/toy")
        assert server.log == []


def test_submit_goes_to_one_place(repository: Path) -> None:
    _run(repository / "run")
    with pytest.raises(SubmissionError, match=r"^submit: `--pr` is together with `--hub`; expected one place"):
        _invoke("submit", "run", *WORDS, "--hub", "someone/toy", "--pr")


def test_submit_asks_for_nothing_where_nobody_can_answer(repository: Path) -> None:
    _run(repository / "run")
    commit(repository)
    with pytest.raises(RobenchError) as caught:
        _invoke("submit", "run", "--author", "me", "--family", "cnn")
    assert str(caught.value) == (
        "submit: `--training-data, --licence` is missing; expected a value for each. Give them as options."
    )


@pytest.mark.parametrize("paper", ["", "https://example.org/paper"])
def test_submit_asks_for_what_is_missing_on_a_terminal(
    paper: str, repository: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    _run(repository / "run")
    commit(repository)
    monkeypatch.setattr("robench.cli.submit._can_answer", lambda: True)
    answers = f"Me\nToys\nMIT\ncnn\n{paper}\n"
    result = CliRunner().invoke(app, ["submit", "run"], input=answers)
    assert result.exit_code == 0, result.output
    assert "Training data (all of it, such as ImageNet-1k): " in result.output
    assert "Paper (https address; empty: none): " in result.output
    written = git(repository, "show", f"submit/toy-net/mini-pgd-linf-1:submissions/toy-net/{MINI.exact_name}/{TOML}")
    assert 'author = "Me"' in written
    assert (f'paper = "{paper}"' in written) is bool(paper)
    assert ("paper" in written) is bool(paper)


def test_submit_takes_a_loader_by_its_keys(repository: Path) -> None:
    local = "local weights in robench.zoo:ToyNet"
    edit_json(_run(repository / "run") / RESULT, lambda result: result["model"].update(loader=local))
    commit(repository)
    with pytest.raises(RobenchError, match=r"`--loader` is 'revision'; expected KEY=VALUE"):
        _invoke("submit", "run", *WORDS, "--loader", "revision")
    with pytest.raises(RobenchError, match=r"submission.toml: `loader.entry_point` is missing; expected a value"):
        _invoke(
            "submit", "run", *WORDS, "--loader", "repository=https://example.org/a", "--loader", f"commit={'c' * 40}"
        )
    own = {"repository": "https://example.org/a", "commit": "c" * 40, "entry_point": "my.models:build"}
    given = [part for key, value in own.items() for part in ("--loader", f"{key}={value}")]
    assert _invoke("submit", "run", *WORDS, *given)[0] == 0
    git(repository, "switch", "--quiet", "submit/toy-net/mini-pgd-linf-1")
    written = (repository / "submissions" / "toy-net" / MINI.exact_name / TOML).read_text()
    assert 'entry_point = "my.models:build"' in written
    assert "bundled" not in written


# --- leaderboard


def test_the_leaderboard_of_this_repository_is_fresh() -> None:
    assert _invoke("leaderboard", "--check", "--repository", str(ROOT)) == (0, "", "")


def test_every_submission_of_this_repository_is_valid() -> None:
    if not (ROOT / "submissions").is_dir():
        pytest.skip("this repository has no submissions yet")
    assert _invoke("validate", str(ROOT / "submissions"))[0] == 0


def test_a_stale_leaderboard_is_found_and_made_again(repository: Path) -> None:
    _claim(repository, "alpha")
    code, stdout, _ = _invoke("leaderboard", "--check")
    assert (code, stdout) == (1, "stale: leaderboard.md\nstale: site/index.html\nnext: robench leaderboard\n")
    assert not (repository / "leaderboard.md").exists()
    assert _invoke("leaderboard") == (0, "written: leaderboard.md\nwritten: site/index.html\n", "")
    assert _invoke("leaderboard", "--check")[0] == 0
    assert _invoke("leaderboard") == (0, "unchanged: leaderboard.md\nunchanged: site/index.html\n", "")
    with (repository / "site" / "index.html").open("a") as file:
        file.write(" ")
    assert _invoke("leaderboard", "--check")[:2] == (1, "stale: site/index.html\nnext: robench leaderboard\n")


def test_an_invalid_claim_makes_no_leaderboard(repository: Path) -> None:
    folder = _claim(repository, "alpha")
    (folder / TOML).unlink()
    with pytest.raises(RobenchError, match=r"^RB102 error: submissions/alpha/mini-pgd-linf@1/submission.toml"):
        _invoke("leaderboard")
    assert not (repository / "leaderboard.md").exists()


def test_a_folder_that_is_no_clone_makes_no_leaderboard(tmp_path: Path) -> None:
    with pytest.raises(RobenchError, match="`repository` is another folder; expected a clone of the benchmark"):
        _invoke("leaderboard", "--repository", str(tmp_path))


# --- from a run to a row


def test_a_run_is_submitted_validated_merged_and_shown(repository: Path) -> None:
    """Evaluate (here: drawn outcomes), submit, validate against main, merge through a bare clone, rebuild."""
    origin = repository.parent / f"{repository.name}-origin.git"
    _claim(repository, "older", seed=5)
    (repository / ".gitignore").write_text("run/\n")
    git(repository, "switch", "--quiet", "--create", "main")
    assert _invoke("leaderboard")[0] == 0
    commit(repository)
    git(repository.parent, "clone", "--quiet", "--bare", str(repository), str(origin))
    hook = origin / "hooks" / "pre-receive"
    check = f"{sys.executable} -m robench validate tree/submissions >&2"
    tree = 'rm -rf tree && mkdir tree && git archive "$new" | tar -x -C tree'
    hook.write_text(f"#!/bin/sh\nset -e\nwhile read old new ref; do {tree}; {check}; done\n")
    hook.chmod(0o755)
    git(repository, "remote", "add", "origin", str(origin))
    _run(repository / "run", seed=1)
    assert _invoke("submit", "run", *WORDS)[0] == 0
    branch = "submit/toy-net/mini-pgd-linf-1"
    git(repository, "push", "--quiet", "origin", branch)
    git(repository, "merge", "--quiet", "--no-edit", branch)
    assert _invoke("leaderboard", "--check")[0] == 1
    assert _invoke("leaderboard")[0] == 0
    board = (repository / "leaderboard.md").read_text()
    assert f"[toy-net](submissions/toy-net/{MINI.exact_name})" in board
    assert f"[older](submissions/older/{MINI.exact_name})" in board
    git(repository, "switch", "--quiet", "--create", "cheat", branch)
    edit_json(
        repository / "submissions" / "toy-net" / MINI.exact_name / RESULT,
        lambda content: content["metrics"][-1].update(numerator=500),
    )
    git(repository, "commit", "--quiet", "--all", "--message", "better")
    with pytest.raises(subprocess.CalledProcessError) as refused:
        git(repository, "push", "--quiet", "origin", "cheat")
    assert "RB405" in refused.value.stderr


# --- the comment of a pull request


def test_the_comment_shows_findings_and_neighbours(repository: Path) -> None:
    for seed, (model, robust) in enumerate(
        [("alpha", 0.7), ("beta", 0.5), ("gamma", 0.3), ("delta", 0.1), ("omega", 0.05)]
    ):
        _claim(repository, model, seed, robust=robust)
    _, stdout, _ = _invoke("validate", "submissions/delta", "--format", "json", "--neighbours")
    (row,) = json.loads(stdout)["rows"]
    assert (row["model"], row["protocol"], row["rank"]) == ("delta", MINI.exact_name, "4")
    assert [each["model"] for each in row["neighbours"]] == ["beta", "gamma", "omega"]
    Path("report.json").write_text(stdout)
    code, text, _ = _invoke("comment", "report.json")
    assert code == 0
    assert text.startswith("<!-- robench -->\n**1 claim, valid.**\n")
    assert "delta under mini-pgd-linf@1, rank 4" in text
    assert "\n| beta | " in text
    command = f'robench verify submissions/delta/{MINI.exact_name} --public-value "VALUE" --by "NAME"'
    assert f"\n```sh\n{command}\n```\n" in text
    assert _invoke(*shlex.split(command)[1:], "--help")[0] == 0


def test_a_comment_of_nothing_is_empty(repository: Path) -> None:
    Path("report.json").write_text(_invoke("validate", "--format", "json")[1])
    assert _invoke("comment", "report.json") == (0, "", "")


@pytest.mark.parametrize(
    "content", ["", "[]", '{"schema": "robench.report/2"}', '{"schema": "robench.report/1", "claims": "9"}', "[" * 9999]
)
def test_what_is_no_report_makes_no_comment(content: str, repository: Path) -> None:
    Path("report.json").write_text(content)
    with pytest.raises(RobenchError, match=r"^report: `content` is .*; expected a robench.report/1"):
        _invoke("comment", "report.json")


def test_a_report_that_is_missing_or_huge_makes_no_comment(repository: Path) -> None:
    with pytest.raises(RobenchError, match=r"`report` is unreadable \(No such file or directory\); expected a file"):
        _invoke("comment", "report.json")
    Path("report.json").write_text(" " * 2_000_001)
    with pytest.raises(RobenchError, match=r"`report` is too large; expected at most 2,000,000 bytes"):
        _invoke("comment", "report.json")


# --- speed


def test_one_claim_among_others_takes_less_than_two_seconds(repository: Path) -> None:
    """Of processor time, which says the same on a busy machine; `docs/measure/validation.py` measures a thousand."""
    for seed in range(20):
        folder = _claim(repository, f"model-{seed}", seed)
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    done = subprocess.run([sys.executable, "-m", "robench", "validate", str(folder)], capture_output=True, check=False)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    spent = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    assert (done.returncode, spent < 2) == (0, True), spent
