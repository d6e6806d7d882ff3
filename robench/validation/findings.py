"""What a check found, and how it is shown: as text, as annotations of GitHub, as JSON.

Everything a finding says may come from a stranger's file, so all of it becomes printable ASCII here. Not here: what the
codes mean (`codes`).
"""

from collections.abc import Sequence
from dataclasses import asdict, dataclass, fields
from typing import Any, Literal

from robench.errors import complaint
from robench.validation.codes import CODES

Severity = Literal["error", "warning"]


@dataclass(frozen=True)
class Finding:
    """One thing that is wrong, or remarkable.

    Attributes:
      code: stable, such as `RB405`; see `robench.validation.codes`.
      file: path from the root of the repository.
      pointer: where in the file: a JSON pointer (for TOML, too), or `line 12`.
      found, expected: what stands there, and what should.
      fix: what to do.
    """

    code: str
    file: str
    pointer: str
    found: str
    expected: str
    fix: str = ""

    def __post_init__(self) -> None:
        for field in fields(self):
            object.__setattr__(self, field.name, _ascii(getattr(self, field.name)))

    @property
    def severity(self) -> Severity:
        return CODES[self.code].severity

    def __str__(self) -> str:
        advice = self.fix or CODES[self.code].fix
        sentence = complaint(self.file, self.pointer or "file", self.found, self.expected, advice)
        return f"{self.code} {self.severity}: {sentence}"

    def annotation(self) -> str:
        """The line that makes GitHub mark the file."""
        where, title = _property(self.file), _property(f"{self.code} {CODES[self.code].title}")
        return f"::{self.severity} file={where},title={title}::{_message(str(self))}"

    def content(self) -> dict[str, Any]:
        """For JSON."""
        code = CODES[self.code]
        return asdict(self) | {"severity": code.severity, "level": code.level, "fix": self.fix or code.fix}


def errors(findings: Sequence[Finding]) -> list[Finding]:
    """Those that make a submission invalid."""
    return [finding for finding in findings if finding.severity == "error"]


def _ascii(text: str) -> str:
    return text if text.isascii() and text.isprintable() else ascii(text)[1:-1]


def _message(text: str) -> str:
    return text.replace("%", "%25")


def _property(text: str) -> str:
    return _message(text).replace(":", "%3A").replace(",", "%2C")
