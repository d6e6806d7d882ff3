"""Reads what a stranger put into a submission: no link is followed, nothing outside is read, sizes are bounded.

Not here: what the content must add up to (`arithmetic`, `consistency`).
"""

import hashlib
import os
import stat
import tomllib
import zlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from robench.errors import RunError, SubmissionError, complaint
from robench.outcome import Outcome, from_csv
from robench.result import (
    Counts,
    DataRecord,
    Derived,
    Metric,
    ModelRecord,
    OutcomesRecord,
    ProtocolRecord,
    Result,
)
from robench.submission import (
    FILES,
    FOLDER,
    LOADERS,
    MODEL_NAME,
    OUTCOMES,
    PROTOCOL_NAME,
    RESULT,
    TOML,
    Submission,
    problems,
    shown,
)
from robench.validation.findings import Finding

LARGEST = {TOML: 16_384, RESULT: 262_144, OUTCOMES: 2_000_000}
"""Most bytes of each file."""
KEPT = (".gitkeep", "README.md")
"""Files that may lie among folders."""
LONGEST_LINE = 320
"""Most bytes of a line of outcomes, on average."""
LONGEST_CELLS = 2000
"""Most bytes of one line: more is not taken apart."""
LONGEST_TEXT = 1000
"""Most characters of a text in `result.json`."""

_RESULT_RECORDS = (Result, ProtocolRecord, ModelRecord, DataRecord, Metric, Derived, Counts, OutcomesRecord)


@dataclass(frozen=True, order=True)
class Place:
    """Where a claim lies: `<root>/<model>/<protocol>@<version>`."""

    root: Path
    model: str
    protocol: str

    @property
    def folder(self) -> Path:
        return self.root / self.model / self.protocol

    def beside(self, name: str) -> list[Path]:
        """What lies in the folder of its verdicts or refutations, sorted; nothing where a folder on the way is a link.

        Args:
          name: of the folder in the root of the repository.
        """
        folder = self.root.parent / name / self.model / self.protocol
        if any(each.is_symlink() for each in (folder, folder.parent, folder.parent.parent)):
            return []
        try:
            return sorted(folder.iterdir())
        except OSError:
            return []

    def records(self, name: str) -> list[Path]:
        """The verdicts or refutations among what lies there."""
        return [path for path in self.beside(name) if path.suffix == ".json"]

    def file(self, name: str = "") -> str:
        """A file of it as findings name it, from the root of the repository."""
        return "/".join(part for part in (FOLDER, self.model, self.protocol, name) if part)


@dataclass(frozen=True)
class Files:
    """The content of a claim that was read; None for what could not be."""

    submission: Submission | None
    result: Result | None
    result_sha256: str
    table: bytes | None
    """The outcomes, compressed."""


def root_of(path: Path) -> Path:
    """The folder `submissions` that a path lies in, or that lies in it.

    Raises:
      SubmissionError: there is none, or nothing at the path.
    """
    absolute = path.absolute()  # not resolved: a link is found where it stands
    if not os.path.lexists(absolute):
        raise SubmissionError(complaint(str(path), "path", "missing", "a claim, or a folder of claims"))
    inside = [folder for folder in (absolute, *absolute.parents) if folder.name == FOLDER]
    root = inside[0] if inside else absolute / FOLDER
    if root.is_symlink():
        raise SubmissionError(complaint(str(root), "path", "a link", "a folder", "Links are not followed."))
    if not root.is_dir():
        expected = f"a path in a folder `{FOLDER}`, or one that contains it"
        raise SubmissionError(complaint(str(path), "path", "elsewhere", expected))
    return root


def places(path: Path) -> tuple[list[Place], list[Finding]]:
    """The claims at a path, sorted, and what lies there that is no claim.

    Raises:
      SubmissionError: the path does not exist or is not in a folder of submissions.
    """
    root = root_of(path)
    absolute = path.absolute()
    parts = absolute.relative_to(root).parts[:2] if absolute.is_relative_to(root) else ()
    found: list[Place] = []
    findings: list[Finding] = []
    for model in _subfolders(root, FOLDER, parts[:1], findings):
        if not _named(MODEL_NAME.fullmatch(model), f"{FOLDER}/{model}", findings):
            continue
        for protocol in _subfolders(root / model, f"{FOLDER}/{model}", parts[1:], findings):
            if _named(PROTOCOL_NAME.fullmatch(protocol), f"{FOLDER}/{model}/{protocol}", findings):
                found.append(Place(root, model, protocol))
    return found, findings


def _subfolders(folder: Path, where: str, only: Sequence[str], findings: list[Finding]) -> Iterator[str]:
    """Names of the folders in a folder; what else is there goes to the findings."""
    entries = entries_of(folder, where, findings)
    seen: dict[str, str] = {}
    for entry in entries:
        other = seen.setdefault(entry.name.casefold(), entry.name)
        if other != entry.name and (not only or entry.name in only):
            findings.append(
                _of_path("RB106", where, entry.name, f"{shown(entry.name)} beside {shown(other)}", "one of the two")
            )
    for entry in entries:
        if only and entry.name not in only:
            continue
        if entry.is_dir(follow_symlinks=False):
            yield entry.name
        elif entry.is_symlink():
            findings.append(_of_path("RB104", where, entry.name, "a link", "a folder"))
        elif entry.name not in KEPT:
            findings.append(_of_path("RB101", where, entry.name, "a file", "a folder"))


def entries_of(folder: Path, where: str, findings: list[Finding]) -> list[os.DirEntry[str]]:
    """What lies in a folder, sorted by name; that it cannot be read goes to the findings."""
    try:
        with os.scandir(folder) as entries:
            return sorted(entries, key=lambda entry: entry.name)
    except OSError as error:
        findings.append(Finding("RB109", where, "", error.strerror or "unreadable", "a folder"))
        return []


def _of_path(code: str, where: str, name: str, found: str, expected: str) -> Finding:
    return Finding(code, f"{where}/{name}", "", found, expected)


def _named(matches: object, where: str, findings: list[Finding]) -> bool:
    if matches:
        return True
    expected = "<model>/<protocol>@<version>, a model named by letters, digits and `._-`"
    findings.append(Finding("RB101", where, "", shown(where.rpartition("/")[2]), expected))
    return False


def read_files(place: Place) -> tuple[Files, list[Finding]]:
    """Read a claim; what cannot be read is a finding."""
    findings: list[Finding] = []
    contents: dict[str, bytes] = {}
    for entry in entries_of(place.folder, place.file(), findings):
        where = place.file(entry.name)
        if entry.name not in FILES:
            findings.append(Finding("RB103", where, "", shown(entry.name), f"one of {', '.join(FILES)}"))
        elif not entry.is_file(follow_symlinks=False):
            findings.append(Finding("RB104", where, "", "a link" if entry.is_symlink() else "no file", "a file"))
        else:
            content = _read(place.folder / entry.name, LARGEST[entry.name], where, findings)
            contents |= {} if content is None else {entry.name: content}
    complained = {finding.file for finding in findings}
    for name in FILES:
        if name not in contents and place.file(name) not in complained and place.file() not in complained:
            findings.append(Finding("RB102", place.file(name), "", "missing", "a file"))
    submission = _submission(contents.get(TOML), place.file(TOML), findings)
    result = _result(contents.get(RESULT), place.file(RESULT), findings)
    digest = hashlib.sha256(contents.get(RESULT, b"")).hexdigest()
    return Files(submission, result, digest, contents.get(OUTCOMES)), findings


def _read(path: Path, most: int, where: str, findings: list[Finding]) -> bytes | None:
    try:
        content = read_plain(path, most)
    except OSError as error:
        findings.append(Finding("RB109", where, "", error.strerror or "unreadable", "a readable file"))
        return None
    if content is None or len(content) > most:
        code, found = ("RB104", "no plain file") if content is None else ("RB105", f"more than {most:,} bytes")
        findings.append(Finding(code, where, "", found, f"a file of at most {most:,} bytes"))
        return None
    return content


def read_plain(path: Path, most: int) -> bytes | None:
    """The first `most` + 1 bytes of a plain file; None for anything else: no link is followed, no pipe waited for."""
    if not stat.S_ISREG(os.lstat(path).st_mode):
        return None
    flags = os.O_RDONLY | getattr(os, "O_NOFOLLOW", 0) | getattr(os, "O_NONBLOCK", 0)
    with os.fdopen(os.open(path, flags), "rb") as file:
        return file.read(most + 1) if stat.S_ISREG(os.fstat(file.fileno()).st_mode) else None


def _submission(content: bytes | None, where: str, findings: list[Finding]) -> Submission | None:
    if content is None:
        return None
    try:
        return Submission.model_validate(tomllib.loads(content.decode()))
    except ValidationError as error:
        for pointer, found, expected, advice in problems(error, known=(Submission, *LOADERS.values())):
            findings.append(Finding("RB202", where, pointer, found, expected, advice))
    except RecursionError:
        findings.append(Finding("RB201", where, "", "tables within tables without end", "TOML"))
    except ValueError as error:  # of UTF-8, of TOML, and numbers that Python does not read
        findings.append(Finding("RB201", where, "", shown(str(error), 160), "TOML in UTF-8"))
    return None


def _result(content: bytes | None, where: str, findings: list[Finding]) -> Result | None:
    if content is None:
        return None
    try:
        result = Result.model_validate_json(content)
    except ValidationError as error:
        details = problems(error, known=_RESULT_RECORDS)
        malformed = any(detail["type"] == "json_invalid" for detail in error.errors(include_url=False))
        for pointer, found, expected, advice in details[:20]:
            what = "unreadable" if malformed else found
            findings.append(
                Finding("RB201" if malformed else "RB203", where, pointer, what, shown(expected, 160), advice)
            )
        return None
    unfit = [(pointer, text) for pointer, text in _texts(result.model_dump(mode="json"), "") if not _fit(text)]
    for pointer, text in unfit[:20]:
        expected = f"printable characters, at most {LONGEST_TEXT}"
        findings.append(Finding("RB203", where, pointer[:200], shown(text), expected))
    if unfit:
        return None
    try:
        again = result.to_bytes()
    except ValueError:  # a number that is none, or has thousands of digits
        again = b""
    if again != content:
        line = _first_difference(again, content)
        findings.append(
            Finding("RB204", where, f"line {line}", "other bytes", "the bytes that robench writes for this content")
        )
        return None
    return result


def _texts(content: Any, pointer: str) -> Iterator[tuple[str, str]]:
    """Every text, keys of tables included, with its pointer."""
    if isinstance(content, str):
        yield pointer, content
    elif isinstance(content, dict):
        for key, value in content.items():
            yield f"{pointer}/{key}", key
            yield from _texts(value, f"{pointer}/{key}")
    elif isinstance(content, list | tuple):
        for index, value in enumerate(content):
            yield from _texts(value, f"{pointer}/{index}")


def _fit(text: str) -> bool:
    return len(text) <= LONGEST_TEXT and text.isprintable()


def _first_difference(ours: bytes, theirs: bytes) -> int:
    pairs = enumerate(zip(ours.split(b"\n"), theirs.split(b"\n"), strict=False), start=1)
    return next((number for number, (a, b) in pairs if a != b), 1)


def read_table(place: Place, compressed: bytes, count: int) -> tuple[list[Outcome], str, list[Finding]]:
    """The outcomes, SHA-256 of their CSV, and what is wrong; `count` bounds what is unpacked."""
    where, most = place.file(OUTCOMES), (count + 2) * LONGEST_LINE
    content = unpack(compressed, most)
    if content is None or len(content) > most:
        found = "no gzip" if content is None else f"more than {most:,} bytes when unpacked"
        return [], "", [Finding("RB205", where, "", found, f"gzip of at most {most:,} bytes")]
    digest = hashlib.sha256(content).hexdigest()
    lines = content.count(b"\n") - 1
    if lines > count:  # not taken apart, for it might be a million empty lines
        return [], digest, [Finding("RB402", where, f"line {count + 2}", f"{lines} lines", f"{count} lines")]
    sizes = [len(line) for line in content.split(b"\n")]
    if max(sizes) >= LONGEST_CELLS:
        line = next(number for number, size in enumerate(sizes, start=1) if size >= LONGEST_CELLS)
        found, expected = f"more than {LONGEST_CELLS} bytes", "an outcome"
        return [], digest, [Finding("RB206", where, f"line {line}", found, expected)]
    try:
        return from_csv(content, where="outcomes"), digest, []
    except RunError as error:
        place_in_file, _, reason = str(error).removeprefix("outcomes: ").partition("` is ")
        return [], digest, [Finding("RB206", where, place_in_file.strip("`"), shown(reason, 160), "an outcome")]


def unpack(compressed: bytes, most: int) -> bytes | None:
    """At most `most` + 1 bytes of one gzip member and nothing after it; None for anything else."""
    machine = zlib.decompressobj(wbits=31)
    try:
        content = machine.decompress(compressed, most + 1)
    except zlib.error:
        return None
    if len(content) > most:
        return content
    return content if machine.eof and not machine.unused_data else None
