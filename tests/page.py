"""A page of documentation, followed from top to bottom as a reader would.

Its Python blocks share one session, its commands one working directory. A block whose first line names a
file (`# my_models.py`) is saved there as well. What a page shows as output must match in form: numbers
and digests may differ, `...` stands for anything.
"""

import contextlib
import io
import re
import shlex
import subprocess
import tomllib
from pathlib import Path
from typing import Any

from typer.testing import CliRunner

from robench.cli.main import app
from robench.door import build_attack
from robench.errors import RobenchError
from robench.protocol import read_protocol

FENCE = re.compile(r"^```(\w*)\n(.*?)^```$", flags=re.M | re.S)
FILE = re.compile(r"# ([\w-]+\.(?:py|toml))\n")


def blocks(page: Path) -> list[tuple[str, str]]:
    """Language and content of every fenced block, in order."""
    return FENCE.findall(page.read_text(encoding="utf-8"))


def form(text: str) -> str:
    """Text without what may differ from run to run: digests, numbers, and the widths of tables."""
    text = re.sub(r"\b(?=[0-9a-f]*\d)[0-9a-f]{8,}\b", "#", text)
    text = re.sub(r"[+-]?\d+(?:[.,]\d+)*(?:e[+-]?\d+)?", "#", text)
    text = re.sub(r"([━─])+", r"\1", text)
    return "\n".join(" ".join(line.split()) for line in text.strip().splitlines())


def matches(shown: str, found: str) -> bool:
    """Whether an output has the form of the one that a page shows."""
    lines = (".*" if line == "..." else re.escape(line).replace(r"\.\.\.", ".*") for line in form(shown).splitlines())
    return re.fullmatch("\n".join(lines), form(found), flags=re.S) is not None


class Reader:
    """Someone who does what a page says, in the working directory."""

    def __init__(self) -> None:
        self._names: dict[str, Any] = {"__name__": "example"}
        self._printed = ""
        self._status = 0

    def follow(self, language: str, content: str) -> None:
        """Do what one block says; AssertionError if something else comes of it."""
        named = FILE.match(content)
        if named is not None:
            Path(named[1]).write_text(content, encoding="utf-8")
        getattr(self, f"_{language}")(content)

    def _python(self, content: str) -> None:
        with contextlib.redirect_stdout(io.StringIO()) as printed:
            exec(compile(content, "example", "exec"), self._names)
        self._printed = printed.getvalue()

    def _text(self, content: str) -> None:
        """What the Python block before it printed."""
        assert matches(content, self._printed), self._printed
        self._printed = ""

    def _toml(self, content: str) -> None:
        if tomllib.loads(content).get("schema") == "robench.protocol/1":
            path = Path("block.toml")
            path.write_text(content, encoding="utf-8")
            build_attack(read_protocol(path))

    def _console(self, content: str) -> None:
        """Commands after `$`, each with its output below it; `echo $?` where one is meant to fail."""
        for part in re.split(r"^\$ ", content, flags=re.M)[1:]:
            command, _, shown = part.replace("\\\n", "").partition("\n")
            if command != "echo $?":
                assert not self._status, f"exit code {self._status} before `{command}`"
            found = self._run(command)
            assert matches(shown, found), f"$ {command}\n{found}"
        assert not self._status, f"exit code {self._status} at the end"

    def _run(self, command: str) -> str:
        if command == "echo $?":
            status, self._status = self._status, 0
            return str(status)
        if not command.startswith("robench "):
            done = subprocess.run(["bash", "-c", command], capture_output=True, text=True, timeout=60, check=False)
            self._status = done.returncode
            return done.stdout + done.stderr
        command, _, target = command.partition(" > ")
        result = CliRunner().invoke(app, shlex.split(command)[1:])
        self._status = result.exit_code
        if target:
            Path(target).write_text(result.stdout, encoding="utf-8")
        output = result.stderr if target else result.output
        if isinstance(result.exception, RobenchError):
            self._status = 2  # as `robench.cli.main` turns it
            return f"{output}error: {result.exception}\n"
        if result.exception is not None and not isinstance(result.exception, SystemExit):
            raise result.exception
        return output

    def _sh(self, content: str) -> None:
        """Shown and not run: needs what a test has not."""
