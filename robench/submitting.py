"""Makes a submission from a finished run: a commit on a branch of its own, in a worktree of its own.

The caller's branch, index and files are never touched, and whatever fails takes back what was done before it. Not here:
asking for what is missing (`cli.submit`).
"""

import shlex
import shutil
import subprocess
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

from pydantic import ValidationError

from robench.errors import SubmissionError, complaint
from robench.result import Result
from robench.submission import FOLDER, LOADERS, MODEL_NAME, OUTCOMES, RESULT, TOML, Submission, problems
from robench.validation import Finding, Rules, errors, validate


@dataclass(frozen=True)
class Submitted:
    """A submission on its branch.

    Attributes:
      branch: name of the branch.
      files: what was added, from the root of the repository.
      findings: what validation says beside errors, of which there are none.
      commands: what makes a pull request of it.
    """

    branch: str
    files: Sequence[str]
    findings: Sequence[Finding]
    commands: Sequence[Sequence[str]]


def build_submission(content: dict[str, object]) -> Submission:
    """A submission from its keys.

    Raises:
      SubmissionError: a key is missing, unknown or malformed.
    """
    try:
        return Submission.model_validate(content)
    except ValidationError as error:
        known = (Submission, *LOADERS.values())
        lines = [
            complaint(TOML, pointer.strip("/").replace("/", ".") or "schema", *rest)
            for pointer, *rest in problems(error, known=known)
        ]
        raise SubmissionError("\n".join(lines)) from error


def submit(
    result: Result,
    submission: Submission,
    *,
    model: str,
    repository: Path,
    pull_request: bool = False,
    rules: Rules | None = None,
) -> Submitted:
    """Commit a submission on a new branch that begins at the current commit.

    Args:
      result: of a finished run, with its folder.
      submission: what its author says.
      model: what the model is to be called.
      repository: a checkout of the benchmark.
      pull_request: whether to push the branch and open the pull request through `gh`.
      rules: as in `validate`.
    Raises:
      SubmissionError: something fails; nothing is left of what was done before it.
    """
    root = _checkout(repository)
    if pull_request and shutil.which("gh") is None:
        advice = "Leave out `--pr`, and run the commands that are printed."
        raise SubmissionError(complaint("submit", "--pr", "asked for, without `gh`", "GitHub's command line", advice))
    place, contents = _contents(result, submission, model)
    protocol = result.protocol.exact_name
    branch = f"submit/{model}/{protocol.replace('@', '-')}"
    with ExitStack() as taken_back:
        tree = _worktree(root, branch, taken_back)
        target = tree / place
        if target.exists():
            advice = "Merged claims stay as they are. Choose another name with `--model`."
            raise SubmissionError(complaint(place, "folder", "there already", "a claim that is not there yet", advice))
        findings = _written(target, contents, rules)
        _git(tree, "add", "--", place)
        _git(tree, "commit", "--quiet", "--message", f"Submit {model} under {protocol}")
        commands = _commands(branch, model, protocol)
        if pull_request:
            _open_pull_request(tree, branch, commands, taken_back)
        taken_back.pop_all()
    with suppress(SubmissionError):  # the branch holds everything; a folder in /tmp may stay
        _remove_worktree(root, tree)
    return Submitted(branch, [f"{place}/{name}" for name in sorted(contents)], findings, commands)


@contextmanager
def checked(
    result: Result, submission: Submission, *, model: str, rules: Rules | None = None
) -> Iterator[tuple[Mapping[str, Path], Sequence[Finding]]]:
    """The files of a submission, validated and in no repository, as long as the context lasts.

    Args:
      result, submission, model, rules: as in `submit`.
    Yields:
      The files by their path from the root of a repository, and what validation says beside errors.
    Raises:
      SubmissionError: the submission is not valid, or cannot be written.
    """
    place, contents = _contents(result, submission, model)
    with tempfile.TemporaryDirectory(prefix="robench-submit-") as root:
        findings = _written(Path(root) / place, contents, rules)
        yield {f"{place}/{name}": Path(root) / place / name for name in sorted(contents)}, findings


def _contents(result: Result, submission: Submission, model: str) -> tuple[str, dict[str, bytes]]:
    """The folder of a submission, from the root of a repository, and its files."""
    if result.run_dir is None:
        raise SubmissionError(complaint("submit", "run", "without a folder", "a finished run"))
    if not MODEL_NAME.fullmatch(model):
        expected = "letters, digits and `._-`, at most 100, a letter or digit at both ends, no `..`, `.lock` or `con`"
        raise SubmissionError(complaint("submit", "model", repr(model), expected, "Choose a name with `--model`."))
    contents = {name: (result.run_dir / name).read_bytes() for name in (RESULT, OUTCOMES)}
    return f"{FOLDER}/{model}/{result.protocol.exact_name}", contents | {TOML: submission.to_toml().encode()}


def _written(target: Path, contents: Mapping[str, bytes], rules: Rules | None) -> Sequence[Finding]:
    """Write a submission and validate it."""
    _write(target, contents)
    report = validate([target], rules=rules)
    if not report.valid:
        raise SubmissionError("\n".join(map(str, errors(report.findings))))
    return report.findings


def _checkout(repository: Path) -> Path:
    """The root of a checkout of the benchmark."""
    try:
        root = Path(_git(repository, "rev-parse", "--show-toplevel").strip())
    except (SubmissionError, OSError) as error:
        advice = "Clone the benchmark, and name the folder with `--repository`."
        raise SubmissionError(
            complaint(str(repository), "repository", "no git checkout", "a clone of the benchmark", advice)
        ) from error
    if not (root / "benchmarks" / "protocols.lock").is_file():
        advice = "Name the clone of the benchmark with `--repository`."
        raise SubmissionError(
            complaint(str(root), "repository", "another one", "one with benchmarks/protocols.lock", advice)
        )
    return root


def _open_pull_request(tree: Path, branch: str, commands: Sequence[Sequence[str]], taken_back: ExitStack) -> None:
    if _git(tree, "ls-remote", "origin", f"refs/heads/{branch}").strip():
        advice = f"`git push origin --delete {branch}` deletes it."
        found = f"`{branch}`, there already"
        raise SubmissionError(complaint("origin", "branch", found, "a branch that is not there yet", advice))
    taken_back.callback(_quietly, tree, "push", "--quiet", "origin", "--delete", branch)
    for command in commands:
        _run(tree, command)


def _write(target: Path, contents: Mapping[str, bytes]) -> None:
    try:
        target.mkdir(parents=True)
        for name, content in contents.items():
            (target / name).write_bytes(content)
    except OSError as error:
        found = f"not writable ({error.strerror or type(error).__name__})"
        raise SubmissionError(complaint(str(target), "submission", found, "room to write")) from error


def _worktree(root: Path, branch: str, taken_back: ExitStack) -> Path:
    """A folder with the branch checked out; `taken_back` removes both."""
    if _git(root, "branch", "--list", branch).strip():
        advice = f"`git branch -D {branch}` deletes it."
        raise SubmissionError(
            complaint(str(root), "branch", f"`{branch}`, there already", "a branch that is not there yet", advice)
        )
    tree = Path(tempfile.mkdtemp(prefix="robench-submit-"))
    taken_back.callback(shutil.rmtree, tree, ignore_errors=True)
    taken_back.callback(_quietly, root, "branch", "--quiet", "-D", branch)  # after its worktree is gone
    taken_back.callback(_quietly, root, "worktree", "remove", "--force", str(tree))
    _git(root, "worktree", "add", "--quiet", "-b", branch, str(tree), "HEAD")
    return tree


def _remove_worktree(root: Path, tree: Path) -> None:
    _git(root, "worktree", "remove", "--force", str(tree))


def _commands(branch: str, model: str, protocol: str) -> list[list[str]]:
    title = f"Submit {model} under {protocol}"
    body = "Made with `robench submit`; docs/submitting.md says what is checked."
    return [
        ["git", "push", "--set-upstream", "origin", branch],
        ["gh", "pr", "create", "--head", branch, "--title", title, "--body", body],
    ]


def _git(folder: Path, *arguments: str) -> str:
    return _run(folder, ["git", *arguments])


def _run(folder: Path, command: Sequence[str]) -> str:
    """What a command prints.

    Raises:
      SubmissionError: it fails; the last line it wrote is named.
    """
    try:
        done = subprocess.run(command, cwd=folder, capture_output=True, text=True, check=True)
    except (OSError, subprocess.CalledProcessError) as error:
        said = str(getattr(error, "stderr", None) or error).strip().splitlines() or ["nothing"]
        expected = "a command that succeeds"
        raise SubmissionError(complaint(str(folder), shlex.join(command), f"failed ({said[-1]})", expected)) from error
    return done.stdout


def _quietly(root: Path, *arguments: str) -> None:
    with suppress(SubmissionError):
        _git(root, *arguments)
