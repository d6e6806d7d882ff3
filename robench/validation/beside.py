"""What lies beside a claim: verdicts and refutations, held to the claim they are about.

Not here: what follows from them (`verification`), and whether an image fools, which takes the model.
"""

import hashlib
import math
import re
from collections.abc import Generator, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from robench import refutation, verification
from robench.errors import RunError, SubmissionError
from robench.outcome import Outcome
from robench.protocol import Protocol
from robench.refutation import Change, Refutation, read_refutation
from robench.submission import MODEL_NAME, PROTOCOL_NAME, shown
from robench.validation.findings import Finding
from robench.validation.reading import KEPT, Place, entries_of, read_plain
from robench.verification import Called, Verdict, called, read_verdict

LARGEST = {verification.FOLDER: 2_000_000, refutation.FOLDER: refutation.LARGEST}
"""Most bytes of a file, by the folder it lies in."""
MOST_VALUES = 20 * refutation.MOST_VALUES
"""Values in all refutations of a claim, which take some 20 seconds."""
_FILE = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,98}\.json")


def check_beside(
    place: Place, result_sha256: str, protocol: Protocol, outcomes: Sequence[Outcome]
) -> Iterator[Finding]:
    """Verdicts and refutations of a claim."""
    folders = {name: [path.name for path in place.beside(name)] for name in LARGEST}  # links: see `check_orphans`
    if not any(folders.values()):
        return
    findings: list[Finding] = []
    contents = {name: dict(_readable(place, name, files, findings)) for name, files in folders.items()}
    yield from findings
    if not any(contents.values()):
        return
    first = f"{next(name for name in contents if contents[name])}/{place.model}/{place.protocol}"
    try:
        said = called(protocol, outcomes)
    except (SubmissionError, RunError) as error:
        yield Finding("RB902", first, "", shown(str(error), 160), "nothing beside this claim")
        return
    claim = _About(result_sha256, protocol, said)
    known: dict[str, Refutation] = {}
    left = MOST_VALUES
    for file, content in contents[refutation.FOLDER].items():
        left -= yield from _refutation(file, content, claim, known, left)
    for file, content in contents[verification.FOLDER].items():
        yield from _verdict(file, content, claim, known)


@dataclass(frozen=True)
class _About:
    """What verdicts and refutations are held to: the digest of `result.json`, and which examples are called what."""

    result_sha256: str
    protocol: Protocol
    called: Called


def _refutation(
    file: str, content: bytes, claim: _About, known: dict[str, Refutation], left: int
) -> Generator[Finding, None, int]:
    """It is about this claim, about examples that are called robust, and inside the budget.

    Returns:
      How many values it has, of those that are `left` for all of them.
    """
    try:
        read = read_refutation(content, where=file)
    except SubmissionError as error:
        yield Finding("RB901", file, "", shown(str(error), 160), "a robench.refutation/1")
        return 0
    if read.result_sha256 != claim.result_sha256:
        yield Finding("RB902", file, "/result_sha256", read.result_sha256, claim.result_sha256)
        return 0
    known[hashlib.sha256(content).hexdigest()] = read
    values = sum(image.values for image in read.images)
    if values > left:
        expected = f"at most {MOST_VALUES:,} in all refutations of a claim"
        yield Finding("RB105", file, "/images", f"{MOST_VALUES - left + values:,} values", expected)
        return 0
    open_to_it, side = set(claim.called.robust), claim.protocol.data.crop
    for index, image in enumerate(read.images):
        if math.prod(image.shape) > 3 * side**2:
            expected = f"an image of {side}x{side} pixels, as the protocol has them"
            yield Finding("RB907", file, f"/images/{index}/shape", shown(str(image.shape)), expected)
            continue
        if image.id not in open_to_it:
            expected = "an example that the claim calls robust, once"
            yield Finding("RB906", file, f"/images/{index}/id", shown(image.id), expected)
        open_to_it.discard(image.id)
        expected = "none, where nothing is attacked"
        try:
            budget = refutation.budget_of(claim.protocol)
            expected = refutation.room(budget, *image.shape[1:])
            found = refutation.outside(image, budget)
        except SubmissionError as error:
            found = shown(str(error), 160)
        if found is not None:
            key = "steps" if isinstance(image, Change) else "squares"
            yield Finding("RB907", file, f"/images/{index}/{key}", found, expected)
    return values


def _verdict(file: str, content: bytes, claim: _About, known: Mapping[str, Refutation]) -> Iterator[Finding]:
    """It is about this claim, about the examples that its seed draws, and about refutations that lie here."""
    try:
        verdict = read_verdict(content, where=file)
    except SubmissionError as error:
        yield Finding("RB901", file, "", shown(str(error), 160), "a robench.verdict/1")
        return
    if verdict.result_sha256 != claim.result_sha256:
        yield Finding("RB902", file, "/result_sha256", verdict.result_sha256, claim.result_sha256)
        return
    for key, stated, found in (
        ("robust", verdict.robust, claim.called.count),
        ("of", verdict.of, claim.called.of),
    ):
        if stated != found:
            yield Finding("RB903", file, f"/{key}", str(stated), f"{found}, as the claim says")
    yield from _check_draw(file, verdict, claim)
    yield from _check_confirmed(file, verdict, known)


def check_orphans(repository: Path, claims: Iterable[Place]) -> Iterator[Finding]:
    """Folders of verdicts and refutations beside which there is no claim, and what lies where only folders may."""
    known = {(place.model, place.protocol) for place in claims}
    for name in LARGEST:
        for model in (yield from _folders(repository, name)):
            for protocol in (yield from _folders(repository, f"{name}/{model}")):
                if (model, protocol) not in known:
                    yield Finding("RB902", f"{name}/{model}/{protocol}", "", "no claim of this name", "a merged claim")


def _folders(repository: Path, where: str) -> Generator[Finding, None, list[str]]:
    """Names of the folders in a folder, which is no link; what else lies there is found, and not followed."""
    folder, names = repository / where, []
    if folder.is_symlink():
        yield Finding("RB104", where, "", "a link", "a folder")
        return []
    findings: list[Finding] = []
    for entry in entries_of(folder, where, findings) if folder.exists() else ():
        if entry.is_dir(follow_symlinks=False):
            names.append(entry.name)
        elif entry.is_symlink():
            yield Finding("RB104", f"{where}/{entry.name}", "", "a link", "a folder")
        elif entry.name not in KEPT:
            yield Finding("RB103", f"{where}/{entry.name}", "", "a file", "a folder")
    yield from findings
    return names


def _readable(place: Place, name: str, files: Sequence[str], findings: list[Finding]) -> Iterator[tuple[str, bytes]]:
    """Path from the root of the repository, and content, of the files that are plain and of a sane size."""
    most = LARGEST[name]
    for file in files:
        where = f"{name}/{place.model}/{place.protocol}/{file}"
        if not _FILE.fullmatch(file):
            findings.append(Finding("RB103", where, "", shown(file), "<name>.json"))
            continue
        try:
            content = read_plain(place.root.parent / where, most)
        except OSError as error:
            findings.append(Finding("RB109", where, "", error.strerror or "unreadable", "a readable file"))
            continue
        if content is None or len(content) > most:
            code, found = ("RB104", "no plain file") if content is None else ("RB105", f"more than {most:,} bytes")
            findings.append(Finding(code, where, "", found, f"a file of at most {most:,} bytes"))
            continue
        yield where, content


def _check_draw(file: str, verdict: Verdict, claim: _About) -> Iterator[Finding]:
    """Which examples were attacked again is the seed's choice."""
    asked = claim.called.drawn_robust(verdict.seed, len(verdict.examples))
    controls = claim.called.controls(verdict.seed, len(verdict.examples))
    for key, expected, again in (("examples", asked, verdict.examples), ("controls", controls, verdict.controls)):
        for index, each in enumerate(again):
            if index >= len(expected) or each.id != expected[index]:
                right = shown(expected[index]) if index < len(expected) else "no more"
                yield Finding("RB904", file, f"/{key}/{index}/id", shown(each.id), f"{right}, as the seed draws")
                break
    if len(verdict.controls) < len(controls):
        yield Finding("RB904", file, "/controls", f"{len(verdict.controls)}", f"{len(controls)} called broken")


def _check_confirmed(file: str, verdict: Verdict, known: Mapping[str, Refutation]) -> Iterator[Finding]:
    """What a verdict confirms is said by a refutation that lies beside it."""
    for index, each in enumerate(verdict.confirmed):
        if each.sha256 not in known:
            yield Finding(
                "RB905", file, f"/confirmed/{index}/sha256", each.sha256, "that of a refutation of this claim"
            )
            continue
        strange = set(each.ids) - {image.id for image in known[each.sha256].images}
        if strange:
            found = shown(min(strange))
            yield Finding("RB905", file, f"/confirmed/{index}/ids", found, "examples of the refutation")


def parts_of(path: str) -> tuple[str, str] | None:
    """Model and protocol of the claim that a file of verdicts or refutations is about."""
    parts = path.split("/")
    if len(parts) != 4 or parts[0] not in LARGEST:
        return None
    model, protocol = parts[1:3]
    return (model, protocol) if MODEL_NAME.fullmatch(model) and PROTOCOL_NAME.fullmatch(protocol) else None
