"""`make test` installs a browser and bubblewrap for its tests where it can, and never fails where it cannot."""

import shutil
import subprocess
from collections.abc import Sequence
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
MAKE = shutil.which("make")
pytestmark = pytest.mark.skipif(MAKE is None, reason="needs make")


class Machine:
    """A machine with a few programs, one of which may be an apt-get that writes down how it is called."""

    def __init__(self, folder: Path, *, user: int = 0, has: Sequence[str] = (), apt: str | None = "exit 0") -> None:
        self.venv, self.log, self._programs = folder / "venv", folder / "apt.log", folder / "bin"
        (self.venv / "bin").mkdir(parents=True)
        (self.venv / "bin" / "python").touch()
        self._programs.mkdir()
        for name in ("timeout", "touch"):
            (self._programs / name).symlink_to(str(shutil.which(name)))
        scripts = {"id": f"echo {user}"} | dict.fromkeys(has, "exit 0")
        if apt is not None:
            scripts["apt-get"] = f'echo "$DEBIAN_FRONTEND: $@" >> {self.log}; {apt}'
        for name, script in scripts.items():
            (self._programs / name).write_text(f"#!/bin/sh\n{script}\n")
            (self._programs / name).chmod(0o755)

    def make(self) -> str:
        """What `make` says about the browser."""
        command = [str(MAKE), "--no-print-directory", f"VENV={self.venv}", str(self.venv / ".browser")]
        environment = {"PATH": str(self._programs)}
        done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=False)
        assert (done.returncode, done.stderr) == (0, "")
        return done.stdout

    @property
    def asked(self) -> list[str]:
        return self.log.read_text().splitlines() if self.log.exists() else []


def test_both_are_installed_once_where_apt_can(tmp_path: Path) -> None:
    machine = Machine(tmp_path, apt="echo noise; echo noise >&2")
    assert (
        machine.make() == "Installing Chromium for the tests of the page, and bubblewrap for those of foreign code.\n"
    )
    assert machine.asked == [
        "noninteractive: --quiet=2 update",
        "noninteractive: --quiet=2 --yes --no-install-recommends install chromium bubblewrap",
    ]
    assert "is up to date" in machine.make()
    assert len(machine.asked) == 2


def test_apt_that_fails_fails_nothing(tmp_path: Path) -> None:
    """No network, another system's apt, a lock that somebody holds."""
    machine = Machine(tmp_path, apt="echo E: Unable to locate package >&2; exit 100")
    said = machine.make().splitlines()
    assert said[-1] == "They cannot be installed; those tests will be skipped."
    assert len(machine.asked) == 2


@pytest.mark.parametrize(
    "about",
    [{"user": 1000}, {"apt": None}, {"has": ["chromium", "bwrap"]}, {"has": ["chromium-browser", "bwrap"]}],
    ids=["no root", "no apt", "there already", "there already, by its other name"],
)
def test_apt_is_not_asked_in_vain(about: dict[str, object], tmp_path: Path) -> None:
    machine = Machine(tmp_path, **about)  # type: ignore[arg-type]  # rows of a table
    assert machine.make() == ""
    assert machine.asked == []


@pytest.mark.parametrize("there", ["chromium", "bwrap"])
def test_one_of_them_is_not_enough(there: str, tmp_path: Path) -> None:
    machine = Machine(tmp_path, has=[there])
    machine.make()
    assert machine.asked[-1].endswith(" install chromium bubblewrap")


def test_every_test_run_looks_for_the_browser() -> None:
    rule = next(line for line in (ROOT / "Makefile").read_text().splitlines() if line.startswith("test: $"))
    assert "$(VENV)/.browser" in rule
