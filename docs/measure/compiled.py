"""Times the compiled loops beside what torch does in their place, on images of the mini suite's size.

    python docs/measure/compiled.py --threads 2

Between two calls other memory is touched, as a model's pass would. Medians over 40 calls, in milliseconds.
"""

import argparse
import statistics
import sys
import time
from collections.abc import Callable

import torch

from robench import compiled
from robench.budgets import LinfBall, PatchArea, advance, advance_with_momentum
from robench.randomness import Draws


def main() -> None:
    """Time both and print a line for each."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--threads", default=2, type=int)
    torch.set_num_threads(parser.parse_args().threads)
    ball, patches, sizes = LinfBall(4 / 255), PatchArea(0.1, 4), torch.full((128, 1, 1, 1), 0.01)
    clean = torch.rand(128, 3, 64, 64)
    images, origin, gradient = clean + 0.01, clean - 0.01, torch.randn_like(clean)
    draws = Draws.of(0, [f"{row}" for row in range(20)])
    cases: dict[str, Callable[[], object]] = {
        "step and projection": lambda: advance(ball, images, gradient, 1 / 255, clean),
        "step with momentum": lambda: advance_with_momentum(ball, images, origin, gradient, sizes, 75 * sizes, clean),
        "measuring a ball": lambda: ball.excess(images, clean),
        "measuring an area": lambda: patches.glance(images, clean),
        "20 x 150,528 words": lambda: draws.bits("words", 3 * 224 * 224),
    }
    ours = {name: _milliseconds(case) for name, case in cases.items()}
    compiled._compiled = lambda body: None  # type: ignore[assignment]  # leaves everything to torch
    for name, case in cases.items():
        theirs = _milliseconds(case)
        sys.stdout.write(f"{name}: {ours[name]:.2f} ms, by torch {theirs:.2f} ms, {theirs / ours[name]:.1f} times\n")


def _milliseconds(case: Callable[[], object]) -> float:
    case()
    found = []
    for _ in range(40):
        torch.rand(4_000_000)
        began = time.perf_counter()
        case()
        found.append(1000 * (time.perf_counter() - began))
    return statistics.median(found)


if __name__ == "__main__":
    main()
