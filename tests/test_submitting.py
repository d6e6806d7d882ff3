"""A run becomes a branch, or nothing at all happens: in real repositories."""

import os
import shutil
import stat
import subprocess
from pathlib import Path
from typing import Any

import pytest

from robench import submitting
from robench.errors import SubmissionError
from robench.outcome import compress, to_csv
from robench.result import Result
from robench.submission import OUTCOMES, RESULT, TOML, loader_of
from robench.submitting import Submitted, build_submission, submit
from robench.validation import Rules, validate
from tests.claims import TOY, WORDS, claim, loader, model_record, result_of, toy_outcomes, toy_rules
from tests.validation.test_changes import commit, git

RULES = toy_rules()
FILES = [f"submissions/alpha/{TOY}/{name}" for name in (OUTCOMES, RESULT, TOML)]
BRANCH = "submit/alpha/toy-pgd-2"


@pytest.fixture
def run(tmp_path: Path) -> Result:
    """What a finished run holds of a submission."""
    folder, outcomes = tmp_path / "run", toy_outcomes()
    folder.mkdir()
    result = result_of(RULES.protocols[TOY], outcomes, model_record("alpha", 0))
    (folder / RESULT).write_bytes(result.to_bytes())
    (folder / OUTCOMES).write_bytes(compress(to_csv(outcomes)))
    return result.in_folder(folder, {})


@pytest.fixture
def repository(tmp_path: Path) -> Path:
    """A clone with uncommitted work in it, and a bare repository that it was cloned from."""
    origin, clone = tmp_path / "origin.git", tmp_path / "clone"
    git(tmp_path, "init", "--quiet", "--bare", str(origin))
    git(tmp_path, "clone", "--quiet", str(origin), str(clone))
    git(clone, "config", "user.name", "A. Person")
    git(clone, "config", "user.email", "a@example.org")
    git(clone, "switch", "--quiet", "--create", "main")
    (clone / "benchmarks").mkdir()
    (clone / "benchmarks" / "protocols.lock").write_text("")
    (clone / "notes.md").write_text("mine\n")
    commit(clone, "begin")
    git(clone, "push", "--quiet", "origin", "main")
    (clone / "notes.md").write_text("mine, not yet committed\n")
    (clone / "staged.md").write_text("staged\n")
    git(clone, "add", "staged.md")
    return clone


def _words() -> dict[str, object]:
    return {**WORDS, "loader": loader(model_record("alpha", 0))}


def _submit(run: Result, repository: Path, *, rules: Rules = RULES, **options: Any) -> Submitted:
    return submit(run, build_submission(_words()), model="alpha", repository=repository, rules=rules, **options)


def _state(repository: Path) -> dict[str, object]:
    """All that a failed submission might leave behind."""
    origin = repository.parent / "origin.git"
    return {
        "head": git(repository, "symbolic-ref", "HEAD"),
        "refs": git(repository, "for-each-ref"),
        "status": git(repository, "status", "--porcelain=v2", "--untracked-files=all"),
        "index": git(repository, "ls-files", "--stage"),
        "worktrees": git(repository, "worktree", "list"),
        "config": git(repository, "config", "--list", "--local"),
        "origin": git(origin, "for-each-ref"),
        "notes": (repository / "notes.md").read_text(),
    }


@pytest.fixture
def trees(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Where the worktrees of a submission are made."""
    folder = tmp_path / "temporary"
    folder.mkdir()
    monkeypatch.setattr("tempfile.tempdir", str(folder))
    return folder


def test_a_run_becomes_a_commit_on_a_branch_and_nothing_else_changes(
    run: Result, repository: Path, trees: Path
) -> None:
    before = _state(repository)
    done = _submit(run, repository)
    assert (done.branch, done.files, done.findings) == (BRANCH, FILES, ())
    after = _state(repository)
    assert {key for key in before if before[key] != after[key]} == {"refs"}
    assert git(repository, "diff", "--name-status", "main", BRANCH).split() == [
        "A",
        FILES[0],
        "A",
        FILES[1],
        "A",
        FILES[2],
    ]
    assert git(repository, "log", "-1", "--format=%s", BRANCH) == f"Submit alpha under {TOY}\n"
    assert list(trees.iterdir()) == []
    git(repository, "stash", "--quiet", "--include-untracked")
    git(repository, "switch", "--quiet", BRANCH)
    assert validate([repository / "submissions"], base="main", rules=RULES).valid


def test_the_commands_that_are_shown_are_those_that_send_it(run: Result, repository: Path) -> None:
    push, create = _submit(run, repository).commands
    assert push == ["git", "push", "--set-upstream", "origin", BRANCH]
    assert create[:5] == ["gh", "pr", "create", "--head", BRANCH]
    subprocess.run(push, cwd=repository, check=True, capture_output=True)
    assert BRANCH in git(repository.parent / "origin.git", "branch", "--list", BRANCH)


# --- failures


STEPS = [
    "git worktree add",
    "git add",
    "git commit",
    "git push",
    "gh pr create",
]


@pytest.fixture
def gh(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A `gh` that writes down how it is called."""
    folder = tmp_path / "bin"
    folder.mkdir()
    program = folder / "gh"
    program.write_text(f'#!/bin/sh\necho "$@" >> {tmp_path / "gh.log"}\n')
    program.chmod(program.stat().st_mode | stat.S_IXUSR)
    monkeypatch.setenv("PATH", f"{folder}:{os.environ['PATH']}")
    return tmp_path / "gh.log"


def test_a_pull_request_is_opened(run: Result, repository: Path, gh: Path) -> None:
    _submit(run, repository, pull_request=True)
    assert BRANCH in git(repository.parent / "origin.git", "branch", "--list", BRANCH)
    assert gh.read_text().startswith(f"pr create --head {BRANCH} --title Submit alpha under {TOY} --body ")


@pytest.mark.parametrize("late", [False, True], ids=["before it is done", "after it is done"])
@pytest.mark.parametrize("step", STEPS)
def test_every_step_that_fails_leaves_nothing(
    step: str, late: bool, run: Result, repository: Path, trees: Path, gh: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real, before = submitting._run, _state(repository)
    failed: list[str] = []

    def fail(folder: Path, command: Any) -> str:
        if " ".join(command).startswith(step) and not failed:
            if late:
                real(folder, command)
            failed.append(step)
            raise SubmissionError("the disk is full")
        return real(folder, command)

    monkeypatch.setattr(submitting, "_run", fail)
    with pytest.raises(SubmissionError, match=r"^the disk is full$"):
        _submit(run, repository, pull_request=True)
    assert failed == [step]
    assert _state(repository) | {"config": ""} == before | {"config": ""}
    assert "submit/" not in str(_state(repository)["config"])
    assert list(trees.iterdir()) == []


def test_ctrl_c_leaves_nothing(run: Result, repository: Path, trees: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    before = _state(repository)

    def interrupted(*arguments: Any, **options: Any) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(submitting, "validate", interrupted)
    with pytest.raises(KeyboardInterrupt):
        _submit(run, repository)
    assert (_state(repository), list(trees.iterdir())) == (before, [])


def test_a_full_disk_leaves_nothing(
    run: Result, repository: Path, trees: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    before, real = _state(repository), Path.write_bytes

    def full(path: Path, content: bytes) -> int:
        if path.name == OUTCOMES:
            raise OSError(28, "No space left on device")
        return real(path, content)

    monkeypatch.setattr(Path, "write_bytes", full)
    with pytest.raises(SubmissionError, match=r"`submission` is not writable \(No space left on device\)"):
        _submit(run, repository)
    monkeypatch.undo()
    assert (_state(repository), list(trees.iterdir())) == (before, [])


def test_a_hook_that_refuses_the_commit_leaves_nothing(run: Result, repository: Path) -> None:
    hook = repository / ".git" / "hooks" / "pre-commit"
    hook.write_text("#!/bin/sh\necho not today >&2\nexit 1\n")
    hook.chmod(0o755)
    before = _state(repository)
    with pytest.raises(
        SubmissionError, match=r"`git commit .*` is failed \(not today\); expected a command that succeeds"
    ):
        _submit(run, repository)
    assert _state(repository) == before


def test_a_branch_of_somebody_else_is_kept(run: Result, repository: Path, gh: Path) -> None:
    git(repository, "push", "--quiet", "origin", f"main:refs/heads/{BRANCH}")
    before = _state(repository)
    with pytest.raises(SubmissionError, match=f"`branch` is `{BRANCH}`, there already"):
        _submit(run, repository, pull_request=True)
    assert _state(repository) == before


def test_a_remote_that_refuses_the_branch_leaves_nothing(run: Result, repository: Path, gh: Path) -> None:
    hook = repository.parent / "origin.git" / "hooks" / "pre-receive"
    hook.write_text("#!/bin/sh\necho closed\nexit 1\n")
    hook.chmod(0o755)
    before = _state(repository)
    with pytest.raises(SubmissionError, match="git push --set-upstream origin"):
        _submit(run, repository, pull_request=True)
    assert _state(repository) == before
    assert not gh.exists()


# --- what is refused


def test_what_is_not_valid_is_not_submitted(run: Result, repository: Path) -> None:
    before = _state(repository)
    with pytest.raises(SubmissionError) as caught:
        _submit(run, repository, rules=toy_rules(status="draft"))
    assert str(caught.value).startswith(
        f"RB303 error: submissions/alpha/{TOY}/{RESULT}: `/protocol/id` is toy-pgd@2, draft"
    )
    assert _state(repository) == before


def test_a_copy_of_what_is_merged_is_not_submitted(run: Result, repository: Path) -> None:
    claim(repository, "beta", rules=RULES, seed=0)
    git(repository, "add", "submissions")
    git(repository, "commit", "--quiet", "--message", "beta", "--", "submissions")
    with pytest.raises(SubmissionError, match="RB801 error"):
        _submit(run, repository)


def test_a_claim_that_is_there_is_not_replaced(run: Result, repository: Path) -> None:
    claim(repository, "alpha", rules=RULES, seed=0)
    git(repository, "add", "submissions")
    git(repository, "commit", "--quiet", "--message", "alpha", "--", "submissions")
    with pytest.raises(SubmissionError) as caught:
        _submit(run, repository)
    assert str(caught.value) == (
        f"submissions/alpha/{TOY}: `folder` is there already; expected a claim that is not there yet. "
        "Merged claims stay as they are. Choose another name with `--model`."
    )


def test_a_branch_that_is_there_is_kept(run: Result, repository: Path) -> None:
    git(repository, "branch", BRANCH)
    before = _state(repository)
    with pytest.raises(SubmissionError) as caught:
        _submit(run, repository)
    assert str(caught.value) == (
        f"{repository}: `branch` is `{BRANCH}`, there already; expected a branch that is not there yet. "
        f"`git branch -D {BRANCH}` deletes it."
    )
    assert _state(repository) == before


@pytest.mark.parametrize("name", ["", "-rf", "a/b", "..", "a b", "a" * 101, "é"])
def test_a_name_that_is_no_folder_is_refused(name: str, run: Result, repository: Path) -> None:
    with pytest.raises(SubmissionError, match=r"^submit: `model` is .*; expected letters, digits and `._-`"):
        submit(run, build_submission(_words()), model=name, repository=repository, rules=RULES)


def test_another_repository_is_refused(run: Result, repository: Path, tmp_path: Path) -> None:
    (repository / "benchmarks" / "protocols.lock").unlink()
    with pytest.raises(
        SubmissionError, match=r"`repository` is another one; expected one with benchmarks/protocols.lock"
    ):
        _submit(run, repository)
    with pytest.raises(SubmissionError, match=r"`repository` is no git checkout; expected a clone of the benchmark"):
        _submit(run, tmp_path)


def test_without_gh_there_is_no_pull_request(run: Result, repository: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shutil, "which", lambda name: None)
    before = _state(repository)
    with pytest.raises(SubmissionError) as caught:
        _submit(run, repository, pull_request=True)
    assert str(caught.value) == (
        "submit: `--pr` is asked for, without `gh`; expected GitHub's command line. "
        "Leave out `--pr`, and run the commands that are printed."
    )
    assert _state(repository) == before


def test_a_result_that_was_not_read_from_a_run_is_refused(run: Result, repository: Path) -> None:
    with pytest.raises(SubmissionError, match=r"^submit: `run` is without a folder; expected a finished run"):
        _submit(Result.model_validate_json(run.to_bytes()), repository)


def test_what_an_author_says_wrongly_is_said() -> None:
    with pytest.raises(SubmissionError) as caught:
        build_submission({**WORDS, "family": "vit", "paper": "http://x.org", "tier": "checked"})
    lines = [line.partition(" Known: ")[0] for line in str(caught.value).splitlines()]
    assert lines == [
        r"submission.toml: `paper` is 'http://x.org'; expected text that matches "
        r"'^https://[A-Za-z0-9][\w.-]*(/[\w.~/%?=&+-]*)?$'.",
        "submission.toml: `family` is 'vit'; expected 'cnn', 'transformer', 'hybrid', 'mlp' or 'other'.",
        "submission.toml: `tier` is an unknown key; expected a key of the schema.",
    ]


@pytest.mark.parametrize(
    ("reference", "built_by", "expected"),
    [
        ("mini-resnet", "robench.zoo:MiniResNet", {"bundled": "mini-resnet"}),
        ("mini-resnet", "local weights in robench.zoo:MiniResNet", {}),
        ("timm:resnet50.a1_in1k", "timm:resnet50.a1_in1k", {}),
        ("hf-hub:a/b@" + "c" * 40, "hub", {"hub": "a/b", "revision": "c" * 40}),
        ("my.models:build", "module:function", {"entry_point": "my.models:build"}),
        ("models/mine", "timm folder", {}),
        (None, "callable", {}),
    ],
)
def test_a_run_says_what_it_knows_of_its_loader(reference: str | None, built_by: str, expected: dict[str, str]) -> None:
    record = model_record("alpha", 0).model_copy(update={"reference": reference, "loader": built_by})
    assert loader_of(record) == {**expected, "weights_sha256": record.weights_sha256}
    bare = record.model_copy(update={"weights_sha256": None})
    assert loader_of(bare) == expected


@pytest.mark.parametrize(("reference", "key"), [("timm:resnet50.a1_in1k", "timm"), ("hf-hub:a/b", "hub")])
def test_the_commit_that_a_run_resolved_goes_into_its_loader(reference: str, key: str) -> None:
    about = {"reference": reference, "loader": reference, "revision": "d" * 40}
    record = model_record("alpha", 0).model_copy(update=about)
    expected = {key: reference.partition(":")[2], "revision": "d" * 40, "weights_sha256": record.weights_sha256}
    assert loader_of(record) == expected
    submission = build_submission({**WORDS, "loader": loader_of(record)})
    assert submission.loader is not None
    assert submission.loader.model_dump() == expected
