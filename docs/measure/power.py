"""How many examples a challenge asks about, and what it catches: the power table, with simulated cheats beside it.

    python docs/measure/power.py --trials 100000

A cheat calls so many more examples robust as `--inflation` of all; those fall when they are attacked again, but for a
share `--soft` whose margin is too near 0 to count. Examples that are called robust with right fall at `--flips`. The
last columns are shares of simulated challenges: cheats that are caught, and honest claims that pass at each flip rate.
"""

import argparse
import sys

import numpy as np

from robench.verification import FLIP_RATE, INFLATION, critical, power, sample_size

CASES = ((512, 0.4), (512, 0.6), (512, 0.8), (1000, 0.4), (5000, 0.2), (5000, 0.4), (5000, 0.6), (5000, 0.8))
"""Examples of a protocol, and the share that a model holds in truth."""


def caught(of: int, robust: int, *, false: int, flips: float, soft: float, trials: int, seed: int = 0) -> float:
    """Share of simulated challenges that refute a claim.

    Args:
      of, robust: examples of the claim, and how many of them it calls robust.
      false: how many of the latter are not.
      flips: rate at which the others fall.
      soft: share of what falls with a margin that does not count.
      trials: simulated challenges.
      seed: of the simulation.
    """
    chance = np.random.default_rng(seed)
    asked = sample_size(robust=robust, of=of)
    wrong = chance.hypergeometric(false, robust - false, asked, size=trials)
    fell = chance.binomial(wrong, 1 - soft) + chance.binomial(asked - wrong, flips)
    return float(np.mean(fell >= critical(asked, FLIP_RATE)))


def main() -> None:
    """Print the table as Markdown."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--trials", type=int, default=100_000)
    parser.add_argument("--inflation", type=float, default=INFLATION)
    parser.add_argument("--soft", type=float, default=0.02)
    parser.add_argument("--flips", type=float, nargs="+", default=[0.0001, 0.001, 0.0025, FLIP_RATE])
    options = parser.parse_args()
    passes = [f"honest passes at {rate:g}" for rate in options.flips]
    heads = ["examples", "robust", "called robust", "asked", "refuted from", "power", "caught", *passes]
    lines = [heads, ["---"] * len(heads)]
    for of, share in CASES:
        false = round(options.inflation * of)
        robust = round(share * of) + false
        asked = sample_size(robust=robust, of=of)
        settings = {"soft": options.soft, "trials": options.trials}
        cheats = caught(of, robust, false=false, flips=options.flips[0], **settings)
        honest = [1 - caught(of, robust, false=0, flips=rate, **settings) for rate in options.flips]
        numbers = [of, f"{share:.0%}", robust, asked, critical(asked, FLIP_RATE)]
        shares = [f"{each:.4f}" for each in (power(asked, robust=robust, of=of), cheats, *honest)]
        lines.append([*map(str, numbers), *shares])
    sys.stdout.write("".join(f"| {' | '.join(cells)} |\n" for cells in lines))


if __name__ == "__main__":
    main()
