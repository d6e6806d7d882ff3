"""The conditions a figure was measured under: versions and the commit of the code.

Not here: what a run costs (`runs`), and devices (`evaluation`).
"""

import importlib.metadata
import platform
import subprocess
from functools import cache
from pathlib import Path

_PACKAGES = ("robench", "torch", "torchvision", "timm", "numpy", "pillow")
_WHERE_INSTALLED = ("foolbox", "pyautoattack")
"""Other people's attacks: their version is a condition of the runs that use them."""


@cache
def _versions() -> dict[str, str]:
    found = {"python": platform.python_version(), "platform": f"{platform.system()} {platform.machine()}"}
    for package in (*_PACKAGES, *_WHERE_INSTALLED):
        try:
            found[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            if package in _PACKAGES:
                found[package] = "not installed"
    return found


@cache
def _commit() -> dict[str, str]:
    """Commit of the checkout this code runs from, if it is one."""
    root = Path(__file__).parent.parent
    if not (root / ".git").exists():
        return {}

    def git(*arguments: str) -> str:
        command = ["git", "-C", str(root), *arguments]
        return subprocess.run(command, capture_output=True, text=True, check=True, timeout=10).stdout.strip()

    try:
        dirty = git("status", "--porcelain", "--untracked-files=no", "--", "robench", "benchmarks")
        return {"git": git("rev-parse", "HEAD"), "git_dirty": "yes" if dirty else "no"}
    except (OSError, subprocess.SubprocessError):
        return {}


def environment() -> dict[str, str]:
    """Versions of what computes, and the commit of a checkout, `git_dirty` when it was changed."""
    return {**_versions(), **_commit()}
