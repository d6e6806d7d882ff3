"""What a report shows; figures are counted by hand."""

import json
from pathlib import Path

import pytest

from robench.errors import RunError
from robench.reproduction import Plan
from robench.reproduction.report import place, report
from robench.reproduction.scores import ArmScores, Scores
from robench.result import Metric
from tests.reproduction import tiny


class _Result:
    """As much of a result as a report of one seed asks for."""

    def __init__(self, right: int) -> None:
        self.metrics = (Metric.of("clean", right, 100),)
        self.clean = self.headline = self.metrics[0]


def _scores(*rights: int) -> ArmScores:
    """Models that are right on the first so many of 100 images."""
    shares = tuple(tuple(float(image < right) for image in range(100)) for right in rights)
    return ArmScores(shares, shares, tuple(_Result(right) for right in rights))  # type: ignore[misc]  # a stand-in


@pytest.fixture
def made_up(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """A folder whose models scored what `_Scores` says."""
    (tmp_path / "trained").mkdir()
    for arm in ("plain", "taught"):
        for seed in (1, 2, 3):
            environment = {"robench": "0.1.0", "torch": "2.0", "git": "0123456789abcdef", "git_dirty": "no"}
            header = json.dumps({"environment": environment})
            (tmp_path / "trained" / f"{arm}-s{seed}.jsonl").write_text(header + "\n")
    rights = {"plain": (40, 42, 41), "taught": (60, 62, 61)}

    class _Scores(Scores):
        def __init__(self, plan: Plan, folder: Path) -> None:
            self._read = {(arm, "mini-stylized"): _scores(*values[: len(plan.seeds)]) for arm, values in rights.items()}

    monkeypatch.setattr("robench.reproduction.report.Scores", _Scores)
    return tmp_path


def test_a_report_has_question_papers_figures_ours_and_a_verdict(made_up: Path) -> None:
    text = report(tiny.plan(made_up), made_up)
    lines = text.splitlines()
    assert lines[:3] == ["## Tiny", "", "About it."]
    conditions = "Training seeds: 1, 2, 3. Scored on the first 32 images of each set."
    assert f"{conditions} Made with robench 0.1.0, torch 2.0; commit 0123456789ab." in lines
    assert "| Does it help? | taught above plain | **agrees** |" in lines
    assert "Paper: it does: 2 against 1 (README)." in lines
    assert "Smaller here." in lines
    # Student's with two degrees of freedom: 4.303 x 1 / sqrt(3) = 2.48
    mean = "61.0 [58.5, 63.5] (60.0, 62.0, 61.0)"
    assert f"| Taught | `{made_up}/taught.toml` | {mean} | {mean} |" in lines
    # Welch with four: 2.776 x sqrt(2/3) = 2.27; the first 20 images of 100 that differ, each by 1 or by thirds
    (row,) = [line for line in lines if line.startswith("| taught above plain |")]
    cells = row.strip("| ").split(" | ")
    assert cells[:4] == ["taught above plain", "+20.0", "[+17.7, +22.3]", "<0.001"]
    assert cells[5:] == ["<0.001, <0.001, <0.001", "**agrees**"]


def test_with_one_seed_nothing_is_said(made_up: Path) -> None:
    text = report(tiny.plan(made_up).shortened(), made_up)
    assert text.startswith("## Tiny (quick trial)\n")
    assert "32 training images in place of the recipes' own." in text
    assert "| Does it help? | taught above plain | **cannot tell** |" in text
    assert "| Plain | `" in text
    assert " | 40.0 [30.9, 49.8] |" in text  # Wilson's interval of 40 of 100
    assert "| taught above plain | +20.0 | - | - | " in text


def test_a_ladder_is_a_table_of_its_rungs(made_up: Path) -> None:
    plan = tiny.plan(made_up, ("seeds = [1, 2, 3]", "seeds = [1]"), question="")
    lines = report(plan, made_up).splitlines()
    assert "| model | recipe | clean | mini-stylized |" in lines
    assert [line.split(" | ")[0] for line in lines if line.startswith("| ")][1:] == ["| Plain", "| Taught"]
    assert any("Trainings of each rung: 1, fewer than the 3 it takes to say" in line for line in lines)


def test_a_report_takes_its_place_on_a_page(tmp_path: Path) -> None:
    page = tmp_path / "page.md"
    page.write_text("# Page\n\nBefore.\n")
    place("First.\n", page, "mini")
    once = page.read_text()
    begin, end = "<!-- robench reproduce mini: begin -->", "<!-- robench reproduce mini: end -->"
    assert once == f"# Page\n\nBefore.\n\n{begin}\n\nFirst.\n\n{end}\n"
    page.write_text(once + "\nAfter.\n")
    place("Second.\n", page, "mini")
    assert page.read_text() == once.replace("First", "Second") + "\nAfter.\n"
    with pytest.raises(RunError, match=r"`page` is unreadable \(.*\); expected a page of Markdown\.$"):
        place("Third.\n", tmp_path / "none.md", "mini")
