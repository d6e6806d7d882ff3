"""Scores along a ladder: every rung that was trained, under some protocols, as a table and a chart.

Not here: how rungs are trained (`work`).
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from robench.errors import RunError, complaint, did_you_mean
from robench.figures import Band, draw_ladder
from robench.registry import resolve
from robench.reproduction.plan import Job, Plan, bundled_plans, read_plan
from robench.reproduction.work import load, score, weights_of
from robench.result import Metric, Result


@dataclass(frozen=True)
class Rung:
    """A network of a ladder and what it scored.

    Attributes:
      label: what it is called.
      results: by protocol, in the order they were asked for.
    """

    label: str
    results: tuple[Result, ...]

    @property
    def clean(self) -> Metric | None:
        """Accuracy on clean images, if they were seen."""
        return next((each.clean for each in self.results if each.metrics[0].name == "clean"), None)


def read_ladder(name: str | Path) -> Plan:
    """A plan that is a ladder.

    Raises:
      RunError: there is no such plan, or it asks questions.
    """
    ladders = [each for each in bundled_plans() if read_plan(each).is_ladder]
    if str(name) not in ladders and Path(name).suffix != ".toml":
        raise RunError(complaint("evaluate", "--ladder", f"`{name}`", "a ladder", did_you_mean(str(name), ladders)))
    plan = read_plan(name)
    if not plan.is_ladder:
        raise RunError(complaint("evaluate", "--ladder", f"`{name}`, which asks questions", "a plan without questions"))
    return plan


def climb(
    plan: Plan,
    protocols: Sequence[str],
    folder: Path,
    *,
    limit: int | None = None,
    tell: Callable[[Job, Result], None] = lambda job, result: None,
) -> list[Rung]:
    """Evaluate every rung under some protocols; what `robench reproduce` evaluated already is only read.

    Args:
      plan: a ladder; the models of its first seed are taken.
      protocols: ids or files.
      folder: where its rungs were trained.
      limit: only the first so many examples.
      tell: is told of each result.
    Raises:
      RunError: rungs are not trained yet; the message says how they are.
      RobenchError: as in `robench.evaluate`.
    """
    for protocol in protocols:
        resolve(protocol)
    jobs = [replace(job, limit=limit) for job in plan.jobs() if job.seed == plan.seeds[0]]
    missing = [job.name for job in jobs if not weights_of(job, folder).exists()]
    if missing:
        found = f"without {len(missing)} of {len(jobs)} rungs ({missing[0]} first)"
        advice = (
            f"Train them: `robench reproduce {plan.reference} --out {folder}`; or say where they are: `--rungs DIR`."
        )
        raise RunError(complaint(str(folder), "--ladder", found, "trained rungs", advice))
    rungs = []
    for arm, job in zip(plan.arms, jobs, strict=True):
        model, results = load(job, folder), list[Result]()
        for protocol in protocols:
            results.append(score(job, model, protocol, folder))
            tell(job, results[-1])
        rungs.append(Rung(arm.label, tuple(results)))
    return rungs


def draw(path: Path, plan: Plan, rungs: Sequence[Rung]) -> None:
    """Chart a climbed ladder: clean accuracy, and the score under each protocol.

    Raises:
      FigureError: as in `robench.figures.draw_ladder`.
    """
    clean = [rung.clean for rung in rungs]
    curves = [("clean", [_band(metric) for metric in clean if metric is not None])] if None not in clean else []
    for number, result in enumerate(rungs[0].results):
        label = f"{result.protocol.exact_name}, {result.headline.name}"
        curves.append((label, [_band(rung.results[number].headline) for rung in rungs]))
    draw_ladder(path, f"{plan.title}: {rungs[0].results[0].data.count} images", [rung.label for rung in rungs], curves)


def _band(metric: Metric) -> Band:
    return (metric.value, *metric.interval)
