"""What a branch changes, in real repositories."""

import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

from robench.errors import SubmissionError
from robench.submission import TOML
from robench.validation import Place, validate
from robench.validation.changes import changes_since
from tests.claims import TOY, claim, put_refutation, put_verdict, toy_outcomes, toy_rules

RULES = toy_rules()


def git(folder: Path, *arguments: str) -> str:
    who = ["-c", "user.name=A. Person", "-c", "user.email=a@example.org", "-c", "init.defaultBranch=main"]
    done = subprocess.run(["git", "-C", str(folder), *who, *arguments], capture_output=True, text=True, check=True)
    return done.stdout


def commit(folder: Path, message: str = "change") -> None:
    git(folder, "add", "--all")
    git(folder, "commit", "--quiet", "--message", message)


@pytest.fixture
def repository(tmp_path: Path) -> Path:
    """One merged claim on main, and a branch that begins there."""
    git(tmp_path, "init", "--quiet")
    claim(tmp_path, "alpha", rules=RULES)
    (tmp_path / "README.md").write_text("a benchmark\n")
    commit(tmp_path)
    git(tmp_path, "switch", "--quiet", "--create", "branch")
    return tmp_path


def codes(repository: Path, base: str = "main") -> list[tuple[str, str]]:
    report = validate([repository / "submissions"], base=base, rules=RULES)
    return [(finding.code, finding.file) for finding in report.findings if not finding.code.startswith("RB6")]


def test_only_new_claims_are_checked(repository: Path) -> None:
    claim(repository, "beta", rules=RULES, seed=1)
    commit(repository)
    report = validate([repository / "submissions"], base="main", rules=RULES)
    assert (report.claims, report.valid) == (1, True)


def test_what_main_did_meanwhile_is_not_the_branchs(repository: Path) -> None:
    claim(repository, "beta", rules=RULES, seed=1)
    commit(repository)
    git(repository, "switch", "--quiet", "main")
    (repository / "README.md").write_text("changed on main\n")
    claim(repository, "gamma", rules=RULES, seed=2)
    commit(repository)
    git(repository, "switch", "--quiet", "branch")
    assert codes(repository) == []


def _link(merged: Path) -> None:
    (merged / TOML).unlink()
    (merged / TOML).symlink_to("/etc/passwd")


EDITS: dict[str, tuple[Callable[[Path], object], str, str]] = {
    "edited": (lambda merged: (merged / TOML).write_text("x = 1\n"), "RB108", TOML),
    "deleted": (lambda merged: (merged / TOML).unlink(), "RB108", TOML),
    "replaced by a link": (_link, "RB108", TOML),
    "moved": (lambda merged: merged.parent.rename(merged.parent.parent / "omega"), "RB108", TOML),
}


@pytest.mark.parametrize("name", EDITS)
def test_a_merged_claim_stays_as_it_is(name: str, repository: Path) -> None:
    change, code, file = EDITS[name]
    change(repository / "submissions" / "alpha" / TOY)
    commit(repository)
    assert (code, f"submissions/alpha/{TOY}/{file}") in codes(repository)


def test_claims_come_alone(repository: Path) -> None:
    claim(repository, "beta", rules=RULES, seed=1)
    (repository / "README.md").write_text("better\n")
    verdict = repository / "verifications" / "beta" / TOY / "me.json"
    verdict.parent.mkdir(parents=True)
    verdict.write_text("{}")
    commit(repository)
    file = f"verifications/beta/{TOY}/me.json"
    assert codes(repository) == [("RB107", "README.md"), ("RB107", file), ("RB901", file)]


def test_a_branch_that_only_refutes_is_held_to_the_claim(repository: Path) -> None:
    robust = [each.id for each in toy_outcomes() if each.clean == each.label and not each.fooled_at]
    place = Place(repository / "submissions", "alpha", TOY)
    put_refutation(place, robust[:2])
    commit(repository)
    report = validate([repository / "submissions"], base="main", rules=RULES)
    assert (report.claims, report.valid) == (1, True)
    put_refutation(place, [*robust[:2], "toy-99999"])
    commit(repository)
    assert codes(repository) == [("RB906", f"refutations/alpha/{TOY}/sceptic.json")]


@pytest.mark.parametrize("change", ["edited", "deleted"])
def test_merged_refutations_and_verdicts_stay_as_they_are(change: str, repository: Path) -> None:
    robust = [each.id for each in toy_outcomes() if each.clean == each.label and not each.fooled_at]
    place = Place(repository / "submissions", "alpha", TOY)
    paths = [put_refutation(place, robust[:2]), put_verdict(place, RULES)]
    commit(repository)
    git(repository, "branch", "--force", "main")
    for path in paths:
        path.write_text(path.read_text() + " ") if change == "edited" else path.unlink()
    commit(repository)
    files = [f"refutations/alpha/{TOY}/sceptic.json", f"verifications/alpha/{TOY}/verdict.json"]
    assert codes(repository) == [("RB108", file) for file in files]


def test_a_branch_without_claims_may_change_anything_else(repository: Path) -> None:
    (repository / "README.md").write_text("better\n")
    commit(repository)
    assert validate([repository / "submissions"], base="main", rules=RULES).claims == 0
    assert codes(repository) == []


def test_a_copy_of_a_merged_claim_is_found(repository: Path) -> None:
    claim(repository, "beta", rules=RULES, seed=0)
    commit(repository)
    assert {code for code, _ in codes(repository)} == {"RB801", "RB802"}


@pytest.mark.parametrize("base", ["no-such-branch", "--output=/tmp/x", "HEAD~99"])
def test_an_unknown_base_is_said(base: str, repository: Path) -> None:
    with pytest.raises(SubmissionError) as caught:
        changes_since(base, repository)
    expected = "expected a commit that git knows here and that shares history with this branch."
    assert str(caught.value) == f"{base!r}: `--base` is unknown to git; {expected}"


def test_a_file_whose_name_is_no_text_is_named_in_ascii(repository: Path) -> None:
    claim(repository, "beta", rules=RULES, seed=1)
    (repository / "a\x1b[31m\n.md").write_text("x")
    commit(repository)
    assert codes(repository) == [("RB107", r"a\x1b[31m\n.md")]
