"""`robench validate`: is everything in a submission as it must be."""

import os
from dataclasses import asdict
from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer

from robench.cli.screen import err, out, print_json
from robench.submission import FOLDER
from robench.validation import Report, Rules
from robench.validation import validate as check
from robench.validation.codes import page


class Form(StrEnum):
    """How findings are written."""

    text = "text"
    github = "github"
    json = "json"


def validate(
    paths: Annotated[
        list[Path] | None,
        typer.Argument(metavar="PATH...", help="Claims, or folders of claims; default `submissions`."),
    ] = None,
    base: Annotated[
        str | None,
        typer.Option(
            help="A commit: check only the claims that the branch adds since, and that it changes nothing else."
        ),
    ] = None,
    form: Annotated[Form, typer.Option("--format", help="How findings are written.")] = Form.text,
    neighbours: Annotated[
        bool, typer.Option("--neighbours", help="With JSON: the rows beside each claim, with paired tests.")
    ] = False,
    processes: Annotated[
        int | None, typer.Option(min=1, help="How many may share many claims; default one for each processor.")
    ] = None,
    codes: Annotated[bool, typer.Option("--codes", help="Explain every code, as Markdown, and stop.")] = False,
) -> None:
    """Check submissions: files, schemas, and every number from its outcomes. Exit code 1 if one is invalid."""
    if codes:
        typer.echo(page(), nl=False)
        return
    report = check(paths or [Path(FOLDER)], base=base, processes=processes or os.cpu_count() or 1)
    if form is Form.json:
        print_json({**content(report), "rows": _rows(report) if neighbours else []})
    else:
        for finding in report.findings:
            out.print(str(finding) if form is Form.text else finding.annotation(), markup=False)
        err.print(summary(report), markup=False)
    if not report.valid:
        raise typer.Exit(1)


def _rows(report: Report) -> list[dict[str, object]]:
    from robench.leaderboard.neighbours import rows_beside

    return [asdict(row) for row in rows_beside(report.checked, Rules.shipped())]


def content(report: Report) -> dict[str, object]:
    """A report for JSON."""
    findings = [finding.content() for finding in report.findings]
    return {"schema": "robench.report/1", "claims": report.claims, "valid": report.valid, "findings": findings}


def summary(report: Report) -> str:
    """One line about a report."""
    wrong = sum(finding.severity == "error" for finding in report.findings)
    others = len(report.findings) - wrong
    claims = "1 claim" if report.claims == 1 else f"{report.claims} claims"
    return f"{claims}, {'valid' if report.valid else 'invalid'}: {wrong} errors, {others} warnings"
