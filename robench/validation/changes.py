"""What a branch changes, as git says it: new claims, and nothing else where there are new claims.

Not here: what is in the files.
"""

import os
import subprocess
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from robench import refutation, verification
from robench.errors import SubmissionError, complaint
from robench.submission import FOLDER, shown
from robench.validation.findings import Finding


@dataclass(frozen=True)
class Change:
    """One file that differs from where the branch began.

    Attributes:
      kind: git's letter: A added, M modified, D deleted, T changed into another kind.
      path: from the root of the repository.
    """

    kind: str
    path: str

    @property
    def claim(self) -> tuple[str, ...]:
        """Model and protocol, if the path lies in a claim."""
        parts = self.path.split("/")
        return tuple(parts[1:3]) if parts[0] == FOLDER and len(parts) > 3 else ()


def changes_since(base: str, root: Path) -> list[Change]:
    """What the commits of a branch change since it left `base`.

    Args:
      base: any name of a commit.
      root: a folder of the repository.
    Raises:
      SubmissionError: git is missing, or knows no such commit.
    """
    git = ["git", "-C", str(root)]
    try:
        commit = _output([*git, "rev-parse", "--verify", "--quiet", "--end-of-options", f"{base}^{{commit}}"]).decode()
        # No renames: a claim that moved was deleted. No drivers: nothing of the branch's is executed.
        options = ["--name-status", "-z", "--no-renames", "--no-ext-diff", "--no-textconv"]
        listed = _output([*git, "diff", *options, f"{commit.strip()}...HEAD", "--"])
    except (OSError, subprocess.CalledProcessError) as error:
        expected = "a commit that git knows here and that shares history with this branch"
        raise SubmissionError(complaint(shown(base), "--base", "unknown to git", expected)) from error
    fields = [os.fsdecode(field) for field in listed.split(b"\0")[:-1]]
    return [Change(kind[:1], path) for kind, path in zip(fields[::2], fields[1::2], strict=True)]


def _output(command: Sequence[str]) -> bytes:
    return subprocess.run(command, capture_output=True, check=True, timeout=60).stdout


def check_changes(changes: Sequence[Change]) -> list[Finding]:
    """Where anything under `submissions/` changes, it is new claims alone; what is merged beside them stays, too."""
    claims = any(change.path.startswith(f"{FOLDER}/") for change in changes)
    outside = [change.path for change in changes if claims and not change.path.startswith(f"{FOLDER}/")]
    findings = [Finding("RB107", path, "", "changed", f"changes under {FOLDER}/ alone") for path in outside[:20]]
    kept = (f"{FOLDER}/", f"{refutation.FOLDER}/", f"{verification.FOLDER}/")
    old = [change for change in changes if change.path.startswith(kept) and change.kind != "A"]
    for change in old[:20]:
        what = {"D": "deleted", "T": "another kind of file"}.get(change.kind, "changed")
        findings.append(Finding("RB108", change.path, "", what, "as it was merged"))
    return findings
