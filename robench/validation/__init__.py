"""Checks submissions: what lies there is data, whatever it says, and every number is computed again.

`examine` looks at one claim, `validate` at many, at what a branch changes, and at what is there twice. Not here: the
re-run of an attack (`verification`).
"""

import multiprocessing
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from robench.errors import SubmissionError, complaint
from robench.outcome import Outcome
from robench.protocol import Protocol
from robench.result import Result
from robench.submission import OUTCOMES, Submission
from robench.validation.arithmetic import check_arithmetic
from robench.validation.beside import check_beside, check_orphans, parts_of
from robench.validation.changes import changes_since, check_changes
from robench.validation.consistency import check_consistency
from robench.validation.duplicates import check_duplicates, identities
from robench.validation.findings import Finding, errors
from robench.validation.reading import Place, places, read_files, read_table, root_of
from robench.validation.rules import Rules
from robench.validation.standing import check_loader, check_plausibility, check_protocol, protocol_of

__all__ = ["Claim", "Finding", "Place", "Report", "Rules", "errors", "examine", "places", "validate"]

WORTH = 50
"""Claims for which another process is worth its start."""


@dataclass(frozen=True)
class Claim:
    """A submission that was read whole.

    Attributes:
      place: where it lies.
      submission, result, outcomes: its files.
      result_sha256: of `result.json`.
      protocol: what it was measured under.
    """

    place: Place
    submission: Submission
    result: Result
    result_sha256: str
    protocol: Protocol
    outcomes: Sequence[Outcome]


@dataclass(frozen=True)
class Report:
    """What `validate` found.

    Attributes:
      checked: the claims it looked at.
      findings: by file and code.
    """

    checked: Sequence[Place]
    findings: Sequence[Finding]

    @property
    def claims(self) -> int:
        return len(self.checked)

    @property
    def valid(self) -> bool:
        return not errors(self.findings)


def examine(place: Place, rules: Rules) -> tuple[Claim | None, list[Finding]]:
    """Check one claim and what lies beside it; the claim is None where a file cannot be read."""
    files, findings = read_files(place)
    submission, result = files.submission, files.result
    if result is None:
        return None, findings
    findings += check_protocol(place, result, rules)
    if submission is not None:
        findings += check_loader(place, submission, result)
    protocol = protocol_of(place, rules)
    if protocol is None or files.table is None or result.protocol.digest != protocol.digest:
        return None, findings  # under another protocol the outcomes mean something else
    outcomes, digest, wrong = read_table(place, files.table, protocol.data.count)
    findings += wrong
    if not wrong and not outcomes:
        findings.append(Finding("RB402", place.file(OUTCOMES), "", "no outcomes", f"{protocol.data.count}"))
    if not outcomes:
        return None, findings
    labels = rules.labels.get(protocol.data.ids_sha256 or "")
    if labels is None:
        findings.append(Finding("RB606", place.file(), "", "no line in labels.lock", f"one for {protocol.data.source}"))
    findings += check_arithmetic(place, result, protocol, outcomes=outcomes, digest=digest, labels=labels)
    findings += check_consistency(place, result, protocol, outcomes)
    findings += check_plausibility(place, result, protocol, outcomes)
    findings += check_beside(place, files.result_sha256, protocol, outcomes)
    if submission is None:
        return None, findings
    return Claim(place, submission, result, files.result_sha256, protocol, outcomes), findings


def validate(
    paths: Iterable[Path], *, base: str | None = None, rules: Rules | None = None, processes: int = 1
) -> Report:
    """Check the claims at some paths, each by itself and against all others in the same folder of submissions.

    Args:
      paths: claims, or folders that hold some.
      base: a commit; then only claims are checked that the branch changes since it left there, or beside which it puts
        a verdict or a refutation; where it changes claims, it must change nothing else.
      rules: what claims are held to; by default what ships with robench.
      processes: how many may share the claims, where there are many; the report is the same.
    Raises:
      SubmissionError: a path is not in a folder of submissions, git does not know the base, or a process is killed.
    """
    held, findings = rules or Rules.shipped(), []
    named: list[Place] = []
    roots = {root_of(path) for path in paths}
    if len(roots) > 1:
        raise SubmissionError(
            "validate: `paths` are in different folders of submissions; expected one folder. Run it for each."
        )
    for path in paths:
        found, misplaced = places(path)
        named += found
        findings += misplaced
    chosen = list(dict.fromkeys(named))
    if base is not None:
        changes = changes_since(base, root_of(next(iter(paths))))
        findings += check_changes(changes)
        changed = {change.claim for change in changes} | {parts_of(change.path) for change in changes}
        chosen = [place for place in chosen if (place.model, place.protocol) in changed]
    for found_there in _examined(chosen, held, processes):
        findings += found_there
    for root in roots:
        everywhere = places(root)[0]
        findings += check_orphans(root.parent, everywhere)
        findings += check_duplicates(identities(everywhere), set(chosen))
    ordered = sorted(dict.fromkeys(findings), key=lambda each: (each.file, each.code, each.pointer))
    return Report(tuple(chosen), tuple(ordered))


def _examined(chosen: Sequence[Place], rules: Rules, processes: int) -> Iterator[list[Finding]]:
    """What is found about each claim, in their order."""
    look = partial(_look, rules)
    workers = min(processes, len(chosen) // WORTH)
    if workers < 2:
        yield from map(look, chosen)
        return
    fresh = multiprocessing.get_context("spawn")  # a fork would copy locks that other threads hold
    try:
        with ProcessPoolExecutor(workers, mp_context=fresh) as pool:
            yield from pool.map(look, chosen, chunksize=WORTH // 2)
    except BrokenProcessPool as error:
        advice = "Check fewer claims at a time, or use `--processes 1`."
        raise SubmissionError(complaint("validate", "process", "killed", "one that ends by itself", advice)) from error


def _look(rules: Rules, place: Place) -> list[Finding]:
    return examine(place, rules)[1]
