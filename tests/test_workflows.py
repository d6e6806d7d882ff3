"""What runs on GitHub: a pull request is data there, and nothing of it reaches a shell or a secret."""

import os
import re
import shutil
import subprocess
import sys
import sysconfig
import tomllib
from pathlib import Path
from typing import Any

import pytest
import yaml

ROOT = Path(__file__).parent.parent
WORKFLOWS = sorted((ROOT / ".github" / "workflows").glob("*.yml"))
ALLOWED = {
    "submission.yml": {"contents": "read"},
    "comment.yml": {"actions": "read", "contents": "read", "pull-requests": "write"},
    "leaderboard.yml": {"contents": "write"},
    "tests.yml": {"contents": "read"},
}


def _read(path: Path) -> dict[Any, Any]:
    content: dict[Any, Any] = yaml.safe_load(path.read_text(encoding="utf-8"))
    return content


def _steps(path: Path) -> list[dict[str, Any]]:
    return [step for job in _read(path)["jobs"].values() for step in job["steps"]]


def test_there_are_exactly_these() -> None:
    assert {path.name for path in WORKFLOWS} == set(ALLOWED)


@pytest.mark.parametrize("path", WORKFLOWS, ids=lambda path: str(path.name))
def test_a_workflow_may_do_what_it_needs_and_no_more(path: Path) -> None:
    content, text = _read(path), path.read_text(encoding="utf-8")
    assert content["permissions"] == ALLOWED[path.name]
    assert all("permissions" not in job for job in content["jobs"].values())
    assert "pull_request_target" not in text
    assert "secrets." not in text


@pytest.mark.parametrize("path", WORKFLOWS, ids=lambda path: str(path.name))
def test_nothing_is_interpolated_into_a_shell(path: Path) -> None:
    assert [step["run"] for step in _steps(path) if "${{" in step.get("run", "")] == []


@pytest.mark.parametrize(
    ("schema", "where"),
    [
        ("github-workflows", "workflows/*.yml"),
        ("dependabot", "dependabot.yml"),
        ("github-issue-forms", "ISSUE_TEMPLATE/bug.yml"),
        ("github-issue-forms", "ISSUE_TEMPLATE/claim.yml"),
        ("github-issue-config", "ISSUE_TEMPLATE/config.yml"),
    ],
)
def test_what_github_reads_has_the_form_it_expects(schema: str, where: str) -> None:
    paths = sorted((ROOT / ".github").glob(where))
    assert paths
    command = [sys.executable, "-m", "check_jsonschema", "--builtin-schema", f"vendor.{schema}", *map(str, paths)]
    done = subprocess.run(command, check=False, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout


def _audit(folder: Path) -> subprocess.CompletedProcess[str]:
    zizmor = Path(sysconfig.get_path("scripts")) / "zizmor"
    return subprocess.run([zizmor, "--offline", "--quiet", folder], check=False, capture_output=True, text=True)


def test_an_auditor_of_workflows_finds_nothing() -> None:
    """Actions pinned to commits, no injection, no kept credentials; and the auditor finds what is wrong in a copy."""
    done = _audit(ROOT / ".github")
    assert done.returncode == 0, done.stdout


@pytest.mark.parametrize(
    ("old", "new", "finding"),
    [
        ("@de0fac2e4500dabe0009e67214ff5f5447ce83dd  # v6.0.2", "@v6", "unpinned-uses"),
        ("refs/pull/${NUMBER}/head", "${{ github.event.pull_request.head.ref }}", "template-injection"),
    ],
)
def test_the_auditor_would_find_something(old: str, new: str, finding: str, tmp_path: Path) -> None:
    folder = tmp_path / ".github" / "workflows"
    shutil.copytree(ROOT / ".github" / "workflows", folder)
    path = folder / "submission.yml"
    text = path.read_text(encoding="utf-8")
    assert old in text
    path.write_text(text.replace(old, new), encoding="utf-8")
    done = _audit(tmp_path / ".github")
    assert done.returncode != 0
    assert finding in done.stdout


def test_what_checks_a_pull_request_runs_the_base_branchs_code() -> None:
    path = ROOT / ".github" / "workflows" / "submission.yml"
    checkouts = [step["with"]["ref"] for step in _steps(path) if step.get("uses", "").startswith("actions/checkout")]
    assert checkouts == ["${{ github.event.pull_request.base.sha }}"]
    runs = [step["run"] for step in _steps(path) if "run" in step]
    installs = [run for run in runs if "pip install" in run]
    assert len(installs) == 1
    assert "./base" in installs[0]
    validate = next(step for step in _steps(path) if step.get("name") == "Validate")
    assert validate["working-directory"] == "${{ runner.temp }}"  # Python finds no module of the pull request there
    assert not any(re.search(r"head/(?!submissions)", run) for run in runs)


def test_claims_alone_do_not_run_the_tests_of_code() -> None:
    """A claim makes the leaderboard stale until the job after the merge, and the tests hold the two together."""
    events = _read(ROOT / ".github" / "workflows" / "tests.yml")[True]  # YAML 1.1 reads `on` so
    records = ["submissions/**", "verifications/**", "refutations/**"]
    assert events == {
        "pull_request": {"paths-ignore": records},
        "push": {"branches": ["main"], "paths-ignore": records},
    }


@pytest.mark.parametrize(
    ("path", "marked"),
    [("verifications/a/p@1/v.json", True), ("submissions/a/p@1/x", False), ("refutations/a/p@1/r.json", False)],
)
def test_a_pull_request_with_verdicts_is_marked(path: str, marked: bool, tmp_path: Path) -> None:
    steps = _steps(ROOT / ".github" / "workflows" / "submission.yml")
    step = next(step for step in steps if step.get("name") == "Mark verdicts")

    def git(*words: str, where: Path) -> str:
        quiet = ["-c", "user.name=a", "-c", "user.email=a@b", "-c", "init.defaultBranch=main"]
        return subprocess.run(
            ["git", *quiet, *words], cwd=where, check=True, capture_output=True, text=True
        ).stdout.strip()

    fork, base = tmp_path / "fork", tmp_path / "base"
    fork.mkdir()
    git("init", "--quiet", where=fork)
    git("commit", "--quiet", "--allow-empty", "--message", "begin", where=fork)
    git("clone", "--quiet", str(fork), str(base), where=tmp_path)
    (fork / path).parent.mkdir(parents=True)
    (fork / path).write_text("{}")
    git("add", ".", where=fork)
    git("commit", "--quiet", "--message", "send", where=fork)
    git("fetch", "--quiet", "origin", "main", where=base)
    environment = {**os.environ, "BASE": git("rev-parse", "HEAD", where=base)}
    done = subprocess.run(
        ["bash", "-e", "-c", step["run"]], cwd=tmp_path, env=environment, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    assert ("::warning::This changes verifications/" in done.stdout) is marked


def test_what_comments_takes_the_number_from_github() -> None:
    path = ROOT / ".github" / "workflows" / "comment.yml"
    (run,) = [step["run"] for step in _steps(path) if step.get("name") == "Comment"]
    assert "select(.head.sha == env.HEAD_SHA)" in run
    assert "robench comment" in run


def test_the_oldest_supported_python_is_tested() -> None:
    versions = _read(ROOT / ".github" / "workflows" / "tests.yml")["jobs"]["tests"]["strategy"]["matrix"]["python"]
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    assert f">={versions[0]}" == project["requires-python"]
    assert len(versions) == 2


@pytest.mark.skipif(os.name == "nt", reason="the script is for a shell")
@pytest.mark.parametrize(
    ("report", "old", "expected"),
    [
        ("{}", "", ["POST repos/o/r/issues/7/comments", "<!-- robench -->", "found"]),
        ("{}", "99", ["PATCH repos/o/r/issues/comments/99", "<!-- robench -->", "found"]),
        ("nothing", "", []),
        (
            "nothing",
            "99",
            ["PATCH repos/o/r/issues/comments/99", "<!-- robench -->", "This pull request has no submission"],
        ),
        ("", "", ["POST repos/o/r/issues/7/comments", "<!-- robench -->", "This pull request could not be checked"]),
        (
            "broken",
            "99",
            ["PATCH repos/o/r/issues/comments/99", "<!-- robench -->", "This pull request could not be ch"],
        ),
    ],
)
def test_the_comment_never_says_what_held_before(report: str, old: str, expected: list[str], tmp_path: Path) -> None:
    """Run as GitHub does, beside a `gh` that writes down what it sends, and a `robench` without its libraries."""
    steps = _steps(ROOT / ".github" / "workflows" / "comment.yml")
    script = next(step["run"] for step in steps if "robench comment" in step.get("run", ""))
    tools = {
        "robench": '! grep -q broken "$2" || exit 2; grep -q nothing "$2" || printf "<!-- robench -->\\nfound\\n"',
        "gh": f"""case "$*" in
  *pulls*) echo 7;;
  *--paginate*) echo {old};;
  *) echo "$4 $5"; cat "${{7#body=@}}";;
esac""",
    }
    for name, content in tools.items():
        (tmp_path / name).write_text(f"#!/bin/sh\n{content}\n")
        (tmp_path / name).chmod(0o755)
    (tmp_path / "report").mkdir()
    (tmp_path / "report" / "report.json").write_text(report)
    environment = {"PATH": f"{tmp_path}:{os.environ['PATH']}", "RUNNER_TEMP": str(tmp_path), "REPOSITORY": "o/r"}
    done = subprocess.run(
        ["bash", "-e", "-o", "pipefail", "-c", script], env=environment, capture_output=True, text=True, check=True
    )
    lines = done.stdout.splitlines()
    assert len(lines) == len(expected)
    assert all(line.startswith(start) for line, start in zip(lines, expected, strict=True))
