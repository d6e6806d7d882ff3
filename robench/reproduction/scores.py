"""What the models of a plan scored, read from their runs.

Not here: what follows from it (`verdict`).
"""

import math
from dataclasses import dataclass
from pathlib import Path

from robench.errors import RunError, complaint
from robench.reproduction.plan import Arm, Plan
from robench.reproduction.work import is_finished, run_dir
from robench.result import Result, read_result
from robench.result import shares as shares_of
from robench.runs import Run


@dataclass(frozen=True)
class ArmScores:
    """An arm under a protocol.

    Attributes:
      clean, headline: for each seed, for each image: its share of right answers on clean images, and where the protocol
        counts.
      results: one for each seed.
    """

    clean: tuple[tuple[float, ...], ...]
    headline: tuple[tuple[float, ...], ...]
    results: tuple[Result, ...]

    @property
    def has_clean(self) -> bool:
        """Whether clean images were seen."""
        return any(metric.name == "clean" for metric in self.results[0].metrics)

    def shares(self, score: str) -> tuple[tuple[float, ...], ...]:
        """`clean` or `headline` by name.

        Raises:
          RunError: no clean images were seen.
        """
        if score == "headline":
            return self.headline
        if not self.has_clean:
            where, found = self.results[0].protocol.exact_name, "not measured"
            raise RunError(complaint(where, "score", found, "clean images", "Take the score from another protocol."))
        return self.clean

    def means(self, score: str) -> list[float]:
        """Accuracy of each seed."""
        return [math.fsum(shares) / len(shares) for shares in self.shares(score)]


class Scores:
    """What all arms of a plan scored.

    Args:
      plan: whose.
      folder: where they were trained and scored.
    Raises:
      RunError: some are not there yet, or a run was changed.
    """

    def __init__(self, plan: Plan, folder: Path) -> None:
        jobs = plan.jobs()
        missing = [job.name for job in jobs if not is_finished(job, folder)]
        if missing:
            found = f"missing of {len(missing)} models ({missing[0]} first)"
            advice = f"Train and score them: `robench reproduce {plan.reference} --out {folder}`."
            raise RunError(complaint(str(folder), "scores", found, f"those of all {len(jobs)}", advice))
        self._jobs, self._folder = jobs, folder
        self._read: dict[tuple[str, str], ArmScores] = {}

    def of(self, arm: Arm, protocol: str) -> ArmScores:
        """Those of an arm under a protocol."""
        if (arm.name, protocol) not in self._read:
            folders = [run_dir(job, self._folder, protocol) for job in self._jobs if job.arm == arm.name]
            results = [read_result(folder) for folder in folders]
            parsed = Run.open(folders[0]).plan.parsed_protocol()
            pairs = [[shares_of(parsed, outcome) for outcome in result.read_outcomes()] for result in results]
            self._read[arm.name, protocol] = ArmScores(
                tuple(tuple(clean for clean, _ in each) for each in pairs),
                tuple(tuple(headline for _, headline in each) for each in pairs),
                tuple(results),
            )
        return self._read[arm.name, protocol]
