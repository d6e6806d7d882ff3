"""verify and refute as maintainers and sceptics run them, from a claim to its row on the leaderboard."""

import json
import re
import subprocess
import sys
from pathlib import Path

import pytest
from typer.testing import CliRunner

from robench.cli.main import app
from robench.errors import RobenchError
from robench.refutation import Change, Refutation
from robench.result import Result
from robench.validation import Place, Rules
from robench.verification import Again, Confirmed, Verdict
from tests.test_challenge import NAME, RULES, _claim, _inflated, honest_run, stronger_run
from tests.validation.test_changes import commit, git

CLAIM = f"submissions/mini-resnet-adv/{NAME}"
VERIFY = ("verify", CLAIM, "--public-value", "round 7", "--by", "A. Maintainer")


def _invoke(*arguments: str) -> tuple[int, str]:
    result = CliRunner().invoke(app, list(arguments))
    if result.exception is not None and not isinstance(result.exception, SystemExit):
        raise result.exception
    return result.exit_code, result.stdout


@pytest.fixture
def honest() -> Result:
    return honest_run()


@pytest.fixture
def repository(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A benchmark whose one protocol is the short one."""
    git(tmp_path, "init", "--quiet")
    (tmp_path / "benchmarks").mkdir()
    (tmp_path / "benchmarks" / "protocols.lock").write_text("")
    (tmp_path / ".gitignore").write_text("runs/\n")
    commit(tmp_path)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(Rules, "shipped", classmethod(lambda cls: RULES))
    return tmp_path


def _merged(repository: Path, place: Place) -> str:
    """Bring a claim in through a branch, as a pull request does; returns the merge commit."""
    git(repository, "switch", "--quiet", "--create", "claim")
    assert place.folder.is_dir()
    commit(repository, "claim")
    git(repository, "switch", "--quiet", "-")
    git(repository, "merge", "--quiet", "--no-ff", "--message", "merge", "claim")
    merge = git(repository, "rev-parse", "HEAD").strip()
    (repository / "later.md").write_text("later\n")
    commit(repository, "later")
    return merge


def test_from_a_claim_to_its_row(honest: Result, repository: Path) -> None:
    """Claim, merge, verify, validate, leaderboard; then a stronger attack, its confirmation, and the same row."""
    outcomes = honest.read_outcomes()
    robust = sum(each.clean == each.label and not each.fooled_at for each in outcomes)
    merge = _merged(repository, _claim(repository, honest, outcomes))
    code, stdout = _invoke(*VERIFY)
    assert code == 0
    assert stdout.startswith(f"mini-resnet-adv under {NAME}: 0 of {robust} fell\ntier by this verdict: reproduced\n")
    (path,) = (repository / "verifications" / "mini-resnet-adv" / NAME).glob("*.json")
    written = json.loads(path.read_text())
    assert (written["merge_commit"], written["public_value"], written["by"]) == (merge, "round 7", "A. Maintainer")
    assert path.name.startswith("a-maintainer-")
    assert (_invoke("validate")[0], _invoke("leaderboard")[0]) == (0, 0)
    assert "| reproduced |" in (repository / "leaderboard.md").read_text()
    commit(repository, "verified")
    refute = ("refute", CLAIM, "--images", str(stronger_run()[0]), "--by", "A. Sceptic", "--how", "PGD, 12 steps")
    code, stdout = _invoke(*refute)
    assert code == 0
    broken = int(stdout.partition(": ")[2].partition(" ")[0])
    assert broken >= 5
    best = f"best known, once a verifier confirms it: {100 * (robust - broken) / 512:.1f} %"
    assert best in stdout
    assert (_invoke("validate", "--base", "HEAD")[0], _invoke("leaderboard")[0]) == (0, 0)
    assert "best known" not in (repository / "leaderboard.md").read_text()
    code, stdout = _invoke(*VERIFY, "--only-refutations")
    assert code == 0
    assert len(list(path.parent.glob("a-maintainer-*.json"))) == 2  # the first verdict stays
    assert "tier" not in stdout
    assert f"best known: {100 * (robust - broken) / 512:.1f} %" in stdout
    assert (_invoke("validate")[0], _invoke("leaderboard")[0]) == (0, 0)
    row = next(line for line in (repository / "leaderboard.md").read_text().splitlines() if "| [mini-resnet" in line)
    assert f", best known {100 * (robust - broken) / 512:.1f} % |" in row
    assert "| reproduced |" in row


def test_a_cheat_ends_with_1_and_without_a_rank(honest: Result, repository: Path) -> None:
    _merged(repository, _claim(repository, honest, _inflated(honest.read_outcomes(), 10)))
    code, stdout = _invoke(*VERIFY)
    assert code == 1
    assert "tier by this verdict: refuted\n" in stdout
    assert (_invoke("validate")[0], _invoke("leaderboard")[0]) == (0, 0)
    assert "| none | [mini-resnet-adv]" in (repository / "leaderboard.md").read_text()


def test_a_claim_that_is_not_merged_is_not_verified(honest: Result, repository: Path) -> None:
    _claim(repository, honest, honest.read_outcomes())
    with pytest.raises(RobenchError, match=r"`merge commit` is unknown to git; expected a claim that was merged"):
        _invoke(*VERIFY)


@pytest.mark.parametrize("named", ["0" * 40, "HEAD~1", "--all"])
def test_a_commit_that_does_not_have_the_claim_is_no_merge(named: str, honest: Result, repository: Path) -> None:
    """Unknown, from before the merge, or no commit at all; the draw would follow from what an author chooses."""
    merge = _merged(repository, _claim(repository, honest, honest.read_outcomes()))
    commits = git(repository, "rev-list", "--first-parent", "HEAD").split()
    chosen = commits[commits.index(merge) + 1] if named == "HEAD~1" else named
    with pytest.raises(
        RobenchError, match=r"`merge commit` is .*; expected a commit of the branch that is checked out"
    ):
        _invoke(*VERIFY, f"--merge-commit={chosen}")


def test_without_refutations_there_is_nothing_to_look_at(honest: Result, repository: Path) -> None:
    _merged(repository, _claim(repository, honest, honest.read_outcomes()))
    with pytest.raises(RobenchError, match=r"`refutations` is none; expected some to ask the model about"):
        _invoke(*VERIFY, "--only-refutations")
    assert not (repository / "verifications").exists()


def test_verify_and_refute_take_one_valid_claim(honest: Result, repository: Path) -> None:
    place = _claim(repository, honest, honest.read_outcomes())
    other = place.root / "other" / NAME
    other.parent.mkdir()
    place.folder.rename(other)
    for command in (VERIFY, ("refute", CLAIM, "--images", ".", "--by", "me", "--how", "none")):
        with pytest.raises(RobenchError, match=r"`path` is missing; expected a claim, or a folder of claims"):
            _invoke(*command)
    with pytest.raises(RobenchError, match=r"`path` is 0 claims; expected one claim, submissions/<model>/<protocol>@"):
        _invoke("verify", str(place.folder.parent), *VERIFY[2:])
    (other / "result.json").write_text("{}")
    with pytest.raises(RobenchError, match=r"^RB203 error: submissions/other/mini-short@1/result.json"):
        _invoke("verify", str(other), *VERIFY[2:])


def test_without_a_loader_of_robenchs_a_sceptic_brings_the_model(honest: Result, repository: Path) -> None:
    own = {
        "repository": "https://example.org/nets",
        "commit": "1" * 40,
        "entry_point": "nets:build",
        "weights_sha256": str(honest.model.weights_sha256),
    }
    model = honest.model.model_copy(update={"reference": None, "loader": "module:function"})
    result = honest.model_copy(update={"model": model})
    _claim(repository, result, honest.read_outcomes(), loader=own)
    refute = ("refute", CLAIM, "--images", ".", "--by", "me", "--how", "none")
    with pytest.raises(RobenchError, match=r"refute: `--model` is not given, .*; expected a model"):
        _invoke(*refute)
    with pytest.raises(RobenchError, match=r"`images` is 0 images of examples called robust: .*; expected at"):
        _invoke(*refute, "--model", "mini-resnet-adv")


def test_the_guide_explains_every_key_of_verdicts_and_refutations() -> None:
    text = (Path(__file__).parent.parent.parent / "docs" / "submitting.md").read_text(encoding="utf-8")
    guide = text[text.index("## How a claim is verified") :]
    keys = {*Verdict.model_fields, *Again.model_fields, *Confirmed.model_fields}
    keys |= {*Refutation.model_fields, *Change.model_fields}
    assert {key for key in keys - {"schema_name"} if f"`{key}`" not in guide} == set()


# --- all of it, with nothing drawn or placed by hand


def test_a_real_run_goes_all_the_way_through_a_bare_clone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Evaluate, submit, push past the hook that validates, merge, rebuild, verify, and the tier on the leaderboard."""
    origin, author, maintainer = (tmp_path / name for name in ("origin.git", "author", "maintainer"))
    author.mkdir()
    git(author, "init", "--quiet", "--initial-branch", "main")
    (author / "benchmarks").mkdir()
    (author / "benchmarks" / "protocols.lock").write_text("")
    (author / "submissions").mkdir()
    (author / "submissions" / "README.md").write_text("Claims.\n")
    (author / ".gitignore").write_text("runs/\n")
    commit(author)
    git(tmp_path, "clone", "--quiet", "--bare", str(author), str(origin))
    tree = 'rm -rf tree && mkdir tree && git archive "$new" | tar -x -C tree'
    check = f"{sys.executable} -m robench validate tree/submissions >&2"
    hook = origin / "hooks" / "pre-receive"
    hook.write_text(f"#!/bin/sh\nset -e\nwhile read old new ref; do {tree}; {check}; done\n")
    hook.chmod(0o755)
    git(author, "remote", "add", "origin", str(origin))
    git(tmp_path, "clone", "--quiet", str(origin), str(maintainer))
    for clone in (author, maintainer):
        git(clone, "config", "user.name", "A. Person")
        git(clone, "config", "user.email", "a@example.org")

    monkeypatch.chdir(author)
    assert _invoke("evaluate", "mini-resnet", "mini-a", "--run-dir", "runs/mine")[0] == 0
    words = ("--author", "A. Person", "--training-data", "mini", "--licence", "Apache-2.0", "--family", "cnn")
    assert _invoke("submit", "runs/mine", *words)[0] == 0
    git(author, "push", "--quiet", "origin", "submit/mini-resnet/mini-a-1")

    monkeypatch.chdir(maintainer)
    git(maintainer, "fetch", "--quiet")
    branch = "origin/submit/mini-resnet/mini-a-1"
    git(maintainer, "merge", "--quiet", "--no-ff", "--message", "merge", branch)
    assert _invoke("validate", "--base", "HEAD~1")[0] == 0
    assert _invoke("leaderboard")[0] == 0
    assert "| checked |" in (maintainer / "leaderboard.md").read_text()
    commit(maintainer, "leaderboard")
    claim = "submissions/mini-resnet/mini-a@1"
    code, stdout = _invoke("verify", claim, "--public-value", "round 7", "--by", "A. Maintainer")
    assert code == 0
    assert re.search(r": 0 of \d+ fell\ntier by this verdict: (spot-verified|reproduced)\n", stdout)
    tier = stdout.partition("verdict: ")[2].split()[0]
    assert _invoke("leaderboard")[0] == 0
    assert f"| {tier} |" in (maintainer / "leaderboard.md").read_text()
    commit(maintainer, "verified")
    git(maintainer, "push", "--quiet", "origin", "main")
    assert git(origin, "rev-parse", "main") == git(maintainer, "rev-parse", "HEAD")

    path = maintainer / claim / "result.json"  # what the hook is for
    path.write_text(path.read_text().replace('"numerator": ', '"numerator": 1'))
    commit(maintainer, "cheat")
    with pytest.raises(subprocess.CalledProcessError):
        git(maintainer, "push", "--quiet", "origin", "main")
    assert git(origin, "rev-parse", "main") != git(maintainer, "rev-parse", "HEAD")
