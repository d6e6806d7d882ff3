"""The formula behind `robench estimate` beside the simulation of the workers; prints the table of docs/scale.md.

python docs/measure/forecast.py
"""

import statistics
import sys

from robench.bench.simulation import simulate
from robench.forecast import Assumptions, Work, forecast

SURVIVORS = [0.5, 0.6, 0.3, 0.65] * 5
WORKS = [Work(f"run {number}", 3700, 2.0, survivors, slots=256) for number, survivors in enumerate(SURVIVORS)]


def main() -> None:
    """One line for each number of workers; means over forty simulations."""
    for workers in (1, 4, 16, 64, 256, 1024):
        found = [simulate(WORKS, workers, Assumptions(), seed) for seed in range(40)]
        wall, idle = (statistics.mean(getattr(each, name) for each in found) for name in ("wall_seconds", "idle"))
        expected = forecast(WORKS, workers)
        cells = [f"{workers:,}", f"{expected.wall_seconds:,.0f} s", f"{wall:,.0f} s"]
        cells += [f"{expected.worker_hours:.1f}", f"{100 * idle:.1f} %"]
        sys.stdout.write(f"| {' | '.join(cells)} |\n")


if __name__ == "__main__":
    main()
