"""Writes what came of a plan as Markdown: question, the paper's figures, ours, and a verdict for each claim.

The text is a pure function of plan and runs: the same runs give the same bytes.

Not here: which word a claim gets (`verdict`).
"""

import json
from collections.abc import Iterator, Sequence
from pathlib import Path

from robench.errors import RunError, complaint
from robench.reproduction.plan import Arm, Claim, Plan, Question
from robench.reproduction.scores import ArmScores, Scores
from robench.reproduction.verdict import MIN_SEEDS, Difference, Interval, difference, judge, mean_interval
from robench.runs import write_whole, writing

BEGIN, END = "<!-- robench reproduce {name}: begin -->", "<!-- robench reproduce {name}: end -->"
"""What encloses a report on a page."""


def report(plan: Plan, folder: Path) -> str:
    """The report of a plan whose models are all trained and scored in a folder.

    Raises:
      RunError: models are missing, or a run was changed.
    """
    scores = Scores(plan, folder)
    lines = [f"## {plan.title}", "", plan.about, "", _conditions(plan, folder), "", _reading(plan)]
    if plan.is_ladder:
        protocols = dict.fromkeys(protocol for arm in plan.arms for protocol in plan.protocols_of(arm))
        return _joined([*lines, "", *_table(plan, plan.arms, tuple(protocols), scores)])
    words = {claim: _judged(claim, plan, scores) for question in plan.questions for claim in question.claims}
    lines += ["", "| question | claim | verdict |", "|---|---|---|"]
    for question in plan.questions:
        lines += [f"| {question.title} | {claim.text} | **{words[claim][1]}** |" for claim in question.claims]
    for question in plan.questions:
        lines += ["", *_section(question, plan, scores, words)]
    return _joined(lines)


def place(text: str, page: Path, name: str) -> None:
    """Put a report on a page, in place of the one that is there, else at its end.

    Raises:
      RunError: the page cannot be read or written.
    """
    begin, end = BEGIN.format(name=name), END.format(name=name)
    try:
        content = page.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise RunError(complaint(str(page), "page", f"unreadable ({error})", "a page of Markdown")) from error
    before, found, rest = content.partition(begin)
    after = rest.partition(end)[2] if found else "\n"
    with writing(page):
        write_whole(page, f"{before.rstrip()}\n\n{begin}\n\n{text}\n{end}{after}".encode())


Judged = tuple[Difference, str]


def _judged(claim: Claim, plan: Plan, scores: Scores) -> Judged:
    arm, against = (
        scores.of(plan.arm(name), claim.protocol).shares(claim.score) for name in (claim.arm, claim.against)
    )
    found = difference(arm, against)
    return found, judge(found, claim.expected, claim.margin)


def _conditions(plan: Plan, folder: Path) -> str:
    """What everything below was made with."""
    headers = [
        json.loads((folder / "trained" / f"{job.name}.jsonl").read_text(encoding="utf-8").partition("\n")[0])
        for job in plan.jobs()
    ]
    made_in = [header["environment"] for header in headers]
    commits = {
        f"{each.get('git', 'unknown')[:12]}{' (changed)' * (each.get('git_dirty') == 'yes')}" for each in made_in
    }
    versions = {f"robench {each['robench']}, torch {each['torch']}" for each in made_in}
    seeds = ", ".join(map(str, plan.seeds))
    images = f" {plan.examples:,} training images in place of the recipes' own." if plan.examples else ""
    if plan.limit:
        images += f" Scored on the first {plan.limit} images of each set."
    made = f"{'; '.join(sorted(versions))}; commit {', '.join(sorted(commits))}"
    return f"Training seeds: {seeds}.{images} Made with {made}."


def _reading(plan: Plan) -> str:
    """How the tables are read."""
    if len(plan.seeds) == 1:
        text = "Accuracies in %, with 95 % intervals over images."
    else:
        text = "Accuracies in %: mean over seeds, with its 95 % interval (and each seed's)."
    if plan.is_ladder:
        count = len(plan.seeds)
        few = f", fewer than the {MIN_SEEDS} it takes to say that a rung differs from another"
        return f"{text} Trainings of each rung: {count}{few * (count < MIN_SEEDS)}."
    return (
        f"{text} A claim has two tests: over seeds (Welch) and over images (paired, all seeds together); beside them "
        "stand exact McNemar tests of each seed's two models. It *agrees*, or *does not*, where both say so; "
        f'with fewer than {MIN_SEEDS} seeds an arm the word is "cannot tell".'
    )


def _section(question: Question, plan: Plan, scores: Scores, words: dict[Claim, Judged]) -> Iterator[str]:
    yield from (f"### {question.title}", "", f"Paper: {question.paper}", "")
    if question.note:
        yield from (question.note, "")
    names = list(dict.fromkeys(name for claim in question.claims for name in (claim.arm, claim.against)))
    protocols = tuple(dict.fromkeys(claim.protocol for claim in question.claims))
    yield from _table(plan, [plan.arm(name) for name in names], protocols, scores)
    yield ""
    yield "| claim | difference, points | over seeds | p | over images | p of each seed | verdict |"
    yield "|---|---|---|---|---|---|---|"
    for claim in question.claims:
        found, word = words[claim]
        over_seeds, p_value = found.over_seeds if found.over_seeds is not None else (None, None)
        cells = [
            claim.text,
            f"{100 * found.value:+.1f}",
            _interval(over_seeds, "+"),
            "-" if p_value is None else _p(p_value),
            _interval(found.over_images, "+"),
            ", ".join(map(_p, found.pairs)) or "-",
            f"**{word}**",
        ]
        yield f"| {' | '.join(cells)} |"


def _table(plan: Plan, arms: Sequence[Arm], protocols: tuple[str, ...], scores: Scores) -> Iterator[str]:
    """Accuracies of arms under protocols: mean over seeds, each seed, and the interval."""
    yield f"| model | recipe | clean | {' | '.join(protocols)} |"
    yield f"|---|---|---|{'---|' * len(protocols)}"
    for arm in arms:
        own = plan.protocols_of(arm)
        seen = [protocol for protocol in own if scores.of(arm, protocol).has_clean]
        clean = _cell(scores.of(arm, seen[0]), "clean") if seen else "-"
        cells = [_cell(scores.of(arm, each), "headline") if each in own else "-" for each in protocols]
        yield f"| {' | '.join([arm.label, f'`{arm.recipe}`', clean, *cells])} |"


def _cell(found: ArmScores, score: str) -> str:
    values = found.means(score)
    middle = sum(values) / len(values)
    interval = mean_interval(values)
    if interval is None:
        metric = found.results[0].clean if score == "clean" else found.results[0].headline
        return f"{100 * middle:.1f} {_interval(metric.interval)}"
    each = ", ".join(f"{100 * value:.1f}" for value in values)
    return f"{100 * middle:.1f} {_interval(interval)} ({each})"


def _interval(interval: Interval | None, sign: str = "") -> str:
    if interval is None:
        return "-"
    low, high = (f"{100 * bound:{sign}.1f}" for bound in interval)
    return f"[{low}, {high}]"


def _p(value: float) -> str:
    return "<0.001" if value < 0.001 else f"{value:.3f}"


def _joined(lines: list[str]) -> str:
    return "\n".join(lines) + "\n"
