"""`robench reproduce` and `robench evaluate --ladder`."""

import json
import re
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from typer.testing import CliRunner

from robench.cli.main import app
from robench.errors import RobenchError
from robench.reproduction import Job, read_plan
from robench.reproduction.work import Finished, weights_of
from robench.training.construction import build_model
from robench.training.export import export_weights
from tests.reproduction import tiny

LADDER = ("seeds = [1, 2, 3]", "seeds = [1]")


@pytest.fixture(autouse=True)
def _workplace(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def _said(*command: str) -> str:
    result = CliRunner().invoke(app, list(command))
    assert result.exit_code == 0, (result.output, result.exception)
    return result.stdout


def _refused(*command: str) -> str:
    result = CliRunner().invoke(app, list(command))
    assert isinstance(result.exception, RobenchError), (result.output, result.exception)
    assert result.stdout == ""
    return str(result.exception)


def test_plans_are_listed() -> None:
    assert re.findall(r"│ (\S+) +│", _said("reproduce")) == ["convnext-mini", "mini", "resnet-rs-mini"]
    assert _said("reproduce", "--list") == _said("reproduce")


def test_a_dry_run_foretells_and_trains_nothing() -> None:
    said = _said("reproduce", "mini", "--dry-run", "--processes", "2")
    assert "27 of 27 models are missing: about " in said
    assert " h with 2 at a time." in said
    quick = _said("reproduce", "mini", "--quick", "--dry-run", "--processes", "2")
    assert re.search(r"9 of 9 models are missing: about \d+ min with 2 at a time\.", quick)
    assert not Path("reproduced").exists()


def test_a_plan_is_carried_out_reported_and_put_on_a_page(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[tuple[list[str], Path, int]] = []

    def work(jobs: list[Job], folder: Path, *, processes: int, tell: Callable[[Finished], None]) -> None:
        asked.append(([job.name for job in jobs], folder, processes))
        folder.mkdir(parents=True)
        tell(Finished(jobs[0], 60.0, 1, 2, 7200.0))
        tell(Finished(jobs[1], 60.0, 2, 2, 0.0))

    monkeypatch.setattr("robench.reproduction.work.work", work)
    monkeypatch.setattr("robench.reproduction.report.report", lambda plan, folder: f"## {plan.title}\n")
    page = tmp_path / "page.md"
    page.write_text("# Page\n")
    command = ["reproduce", str(tiny.write(tmp_path)), "--quick", "--page", "page.md", "--processes", "3"]
    result = CliRunner().invoke(app, command)
    assert result.stdout == "## Tiny (quick trial)\n"
    assert result.stderr.splitlines() == [
        "1 of 2: plain-s1 in 60 s, about 2.0 h left",
        "2 of 2: taught-s1 in 60 s",
        "Report: reproduced/tiny-quick/report.md",
    ]
    assert asked == [(["plain-s1", "taught-s1"], Path("reproduced/tiny-quick"), 3)]
    assert Path("reproduced/tiny-quick/report.md").read_text() == result.stdout
    assert result.stdout in page.read_text()
    assert (
        "<!-- robench reproduce tiny-quick: begin -->" in page.read_text()
    )  # beside the whole report, if there is one


def test_a_ladder_is_evaluated_and_drawn(tmp_path: Path) -> None:
    path = tiny.write(tmp_path, LADDER, question="")
    out = tmp_path / "reproduced" / "tiny"
    command = ("evaluate", "--ladder", str(path), "mini-stylized", "--limit", "4")
    message = _refused(*command)
    assert message.startswith("reproduced/tiny: `--ladder` is without 2 of 2 rungs (plain-s1 first); expected trained")
    command_line = f"`robench reproduce {path} --out reproduced/tiny`"
    assert message.endswith(f"Train them: {command_line}; or say where they are: `--rungs DIR`.")
    for job in read_plan(path).jobs():  # untrained ones stand in
        weights_of(job, out).parent.mkdir(parents=True, exist_ok=True)
        with torch.random.fork_rng(devices=[]):
            export_weights(job.recipe, build_model(job.recipe), weights_of(job, out))
    said = _said(*command, "--figure", "ladder.svg")
    rows = re.findall(r"│ (Plain|Taught) +│ (-) +│ +(\S+ %) \[", said)
    assert [row[0] for row in rows] == ["Plain", "Taught"]
    assert "chart: ladder.svg" in said
    assert "<svg" in Path("ladder.svg").read_text()
    moved = out.rename(tmp_path / "moved")
    content = json.loads(_said(*command, "--json", "--rungs", str(moved)))
    assert [rung["rung"] for rung in content["rungs"]] == ["Plain", "Taught"]
    assert content["rungs"][0]["clean"] is None  # mini-stylized has no clean images
    score = content["rungs"][0]["scores"]["mini-stylized@1"]
    assert score["denominator"] == 4
    assert rows[0][2] == f"{100 * score['value']:.1f} %"


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--ladder", "convnext", "mini-c"], "evaluate: `--ladder` is `convnext`; expected a ladder. Did you mean"),
        (
            ["--ladder", "mini", "mini-c"],
            "evaluate: `--ladder` is `mini`; expected a ladder. Known: convnext-mini, resnet-rs-mini.",
        ),
        (
            ["--rungs", "x", "mini-c"],
            "evaluate: `--rungs` is `x` without a ladder; expected `--ladder NAME` beside it.",
        ),
        (
            ["--ladder", "convnext-mini", "mini-c", "--save-adversarial", "x"],
            "evaluate: `--save-adversarial` is beside `--ladder`; expected a ladder's own options: `--rungs`, ",
        ),
        (
            ["--ladder", "convnext-mini", "mini-c"],
            "reproduced/convnext-mini: `--ladder` is without 14 of 14 rungs (resnet-s1 first); expected trained rungs. "
            "Train them: `robench reproduce convnext-mini --out reproduced/convnext-mini`;",
        ),
    ],
)
def test_what_a_ladder_does_not_take_is_refused(options: list[str], message: str) -> None:
    assert _refused("evaluate", *options).startswith(message)


def test_an_evaluation_needs_a_protocol() -> None:
    result = CliRunner().invoke(app, ["evaluate", "mini-resnet"])
    assert result.exit_code == 2
    assert "PROTOCOL..." in result.stderr
