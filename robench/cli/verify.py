"""`robench verify`: runs examples of a claim again, and writes the verdict."""

import hashlib
import re
import subprocess
from contextlib import ExitStack
from pathlib import Path
from typing import Annotated

import typer

from robench.cli.evaluate import Screen
from robench.cli.screen import err, interruptible, out
from robench.errors import SubmissionError, complaint
from robench.refutation import FOLDER as REFUTATIONS
from robench.validation import Claim, Rules, errors, examine, places
from robench.verification import FOLDER, Verdict, broken_since, cell_names, tier_of


def verify(
    path: Annotated[Path, typer.Argument(metavar="PATH", help="A claim: submissions/<model>/<protocol>@<version>.")],
    public_value: Annotated[
        str, typer.Option(help="What nobody knew when the claim was merged, such as a later draw of a public lottery.")
    ],
    by: Annotated[str, typer.Option(help="Who verifies.")],
    merge_commit: Annotated[
        str | None, typer.Option(help="The commit that brought the claim in; default what git says.")
    ] = None,
    whole: Annotated[bool, typer.Option("--all", help="Ask about all examples called robust, not a sample.")] = False,
    only_refutations: Annotated[
        bool, typer.Option("--only-refutations", help="Run nothing again; ask the model about refutations alone.")
    ] = False,
    data: Annotated[Path | None, typer.Option(help="Folder of the protocol's images.")] = None,
    reference_weights: Annotated[
        Path | None, typer.Option(help="Safetensors file of the protocol's reference model; default from the Hub.")
    ] = None,
    device: Annotated[str | None, typer.Option(help="Such as `cuda`; default the CPU.")] = None,
    batch_size: Annotated[int | None, typer.Option(help="Examples attacked at a time.")] = None,
    run_dir: Annotated[Path | None, typer.Option(help="Folder of the re-run; default under `runs/verify`.")] = None,
) -> None:
    """Run drawn examples of a claim again, and ask about its refutations. Exit code 1: the claim is refuted."""
    from robench.challenge import Draw
    from robench.challenge import verify as challenge

    claim = read_claim(path)
    place, screen = claim.place, Screen()
    merged = merge_commit or _merged(path)
    _check_merged(path, merged, claim.result_sha256)
    draw = Draw(merged, public_value, whole=whole, nothing=only_refutations)
    folder = run_dir or Path("runs") / "verify" / place.model / place.protocol
    if only_refutations and not place.records(REFUTATIONS):
        raise SubmissionError(complaint(str(path), "refutations", "none", "some to ask the model about"))
    with interruptible("what is finished is kept: the same command goes on."), ExitStack() as after:
        after.callback(screen.stop)
        verdict = challenge(
            claim,
            draw,
            by=by,
            run_dir=folder,
            data=data,
            reference_weights=reference_weights,
            device=device,
            batch_size=batch_size,
            watcher=screen,
        )
    target = write_beside(claim, FOLDER, by, verdict.to_bytes())
    _show(claim, verdict)
    out.print(f"written: {target}", markup=False)
    if verdict.sound and verdict.refutes:
        raise typer.Exit(1)


def reattack(job: Annotated[Path, typer.Argument(help="What `robench verify` wrote.")]) -> None:
    """Carry out a re-run inside a container."""
    from robench.challenge import Job, carry_out

    carry_out(Job.from_json(job.read_text()))


def read_claim(path: Path) -> Claim:
    """The valid claim at a path.

    Raises:
      SubmissionError: there is not exactly one, or it is not valid.
    """
    found, findings = places(path)
    if len(found) != 1:
        expected = "one claim, submissions/<model>/<protocol>@<version>"
        raise SubmissionError(complaint(str(path), "path", f"{len(found)} claims", expected))
    claim, wrong = examine(found[0], Rules.shipped())
    if claim is None or errors([*findings, *wrong]):
        raise SubmissionError("\n".join(map(str, errors([*findings, *wrong]))))
    return claim


def _merged(path: Path) -> str:
    """The commit with which the claim came to the branch that is checked out."""
    command = ["git", "log", "--first-parent", "-m", "--diff-filter=A", "--format=%H", "--", "result.json"]
    try:
        done = subprocess.run(command, cwd=path, capture_output=True, text=True, check=True)
    except (OSError, subprocess.CalledProcessError):
        commits = []
    else:
        commits = done.stdout.split()
    if not commits:
        expected, advice = "a claim that was merged", "Merge it first, or give the commit as `--merge-commit`."
        raise SubmissionError(complaint(str(path), "merge commit", "unknown to git", expected, advice))
    return commits[0]


def _check_merged(path: Path, commit: str, result_sha256: str) -> None:
    """Check that a commit of the branch that is checked out has this claim.

    Raises:
      SubmissionError: it does not, or git does not know it.
    """
    known = subprocess.run(["git", "merge-base", "--is-ancestor", commit, "HEAD"], cwd=path, capture_output=True)
    there = subprocess.run(["git", "show", f"{commit}:./result.json"], cwd=path, capture_output=True)
    if known.returncode or there.returncode or hashlib.sha256(there.stdout).hexdigest() != result_sha256:
        expected = "a commit of the branch that is checked out, in which this claim lies"
        advice = "The draw follows from it, so that nobody could know it beforehand."
        raise SubmissionError(complaint(str(path), "merge commit", commit, expected, advice))


def write_beside(claim: Claim, folder: str, by: str, content: bytes) -> Path:
    """Write a file about a claim, named by its author and its digest, so that none takes the place of another."""
    place, stem = claim.place, re.sub(r"[^a-z0-9]+", "-", by.lower()).strip("-")[:60] or "anonymous"
    target = place.root.parent / folder / place.model / place.protocol
    target.mkdir(parents=True, exist_ok=True)
    path = target / f"{stem}-{hashlib.sha256(content).hexdigest()[:12]}.json"
    path.write_bytes(content)
    return path


def _show(claim: Claim, verdict: Verdict) -> None:
    place = claim.place
    if not verdict.sound:
        err.print(
            f"The re-run did not break {verdict.stood} of {len(verdict.controls)} examples called broken: it was "
            "another attack or another model, and the verdict says nothing.",
            markup=False,
        )
    if verdict.asked:
        what = " cells" if cell_names(claim.protocol) else ""
        out.print(f"{place.model} under {place.protocol}: {verdict.fell} of {verdict.asked}{what} fell", markup=False)
    for each in verdict.confirmed:
        out.print(f"refutation {each.sha256[:12]}: {len(each.ids)} examples broken", markup=False)
    digests = [each.sha256 for each in verdict.confirmed]
    broken = len(broken_since(claim.result_sha256, [verdict], digests))
    if broken:
        headline = claim.result.headline
        best = 100 * (headline.numerator - broken) / headline.denominator
        out.print(f"best known: {best:.1f} %", markup=False)
    if verdict.asked:
        out.print(f"tier by this verdict: {tier_of(claim.submission, claim.result_sha256, [verdict])}", markup=False)
