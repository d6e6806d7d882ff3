"""How often verdicts differ between honest runs of one model; prints one JSON line per model, and one for all.

    python docs/measure/flips.py mini-resnet-adv mini-resnet-gelu-adv mini-deit-adv --threads 1 2

The same model is attacked with several slot counts and thread counts. Every ordered pair of runs is read as a claim and
its re-run: of the examples that the first calls robust, how many fall in the second, and with which margin (`falls`);
of those that it calls broken, how many stand (`stands`). `soft` says which share of all broken examples has a margin
within so much of 0: what a tolerance of that size gives away.
"""

import argparse
import itertools
import json
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

import robench
from robench.outcome import Outcome
from robench.registry import load_protocol
from robench.result import holds

SOFT = (0.001, 0.01, 0.05, 0.1)


def _runs(model: str, options: argparse.Namespace, folder: Path) -> list[list[Outcome]]:
    """The outcomes of one model with every slot count, thread count and device."""
    runs = []
    for number, (slots, threads) in enumerate(itertools.product(options.slots, options.threads)):
        torch.set_num_threads(threads)
        result = robench.evaluate(
            model,
            options.protocol,
            batch_size=slots,
            device=options.device,
            limit=options.limit,
            run_dir=folder / str(number),
        )
        runs.append(result.read_outcomes())
    if options.beside is not None:  # the CPU's verdicts beside those of another device
        result = robench.evaluate(
            model, options.protocol, device=options.beside, limit=options.limit, run_dir=folder / "beside"
        )
        runs.append(result.read_outcomes())
    return runs


def _differences(runs: Sequence[Sequence[Outcome]], protocol: Any) -> dict[str, Any]:
    """What pairs of runs do not agree on."""
    held = [[holds(protocol, outcome) for outcome in run] for run in runs]
    falls: list[float] = []
    robust = broken = stands = most = 0
    for first, second in itertools.permutations(range(len(runs)), 2):
        fallen = [index for index, holds_ in enumerate(held[first]) if holds_ and not held[second][index]]
        falls += [runs[second][index].attacked_margin for index in fallen]
        robust, most = robust + sum(held[first]), max(most, len(fallen))
        attacked = [index for index, outcome in enumerate(runs[first]) if outcome.clean_correct]
        stands += sum(not held[first][index] and held[second][index] for index in attacked)
        broken += sum(not held[first][index] for index in attacked)
    margins = [abs(outcome.attacked_margin) for run in runs for outcome in run if outcome.fooled_at]
    return {
        "runs": len(runs),
        "robust": [sum(each) for each in held],
        "asked_again": robust,
        "falls": len(falls),
        "most_falls_in_a_pair": most,
        "margins_of_falls": dict(itertools.islice(_counted(falls), 12)),
        "broken": broken,
        "stands": stands,
        "soft": {str(limit): sum(each < limit for each in margins) / max(1, len(margins)) for limit in SOFT},
    }


def _counted(values: Sequence[float]) -> Any:
    return ((str(value), values.count(value)) for value in sorted(set(values)))


def main() -> None:
    """Run every model in every way, and compare."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("models", nargs="+")
    parser.add_argument("--protocol", default="mini-pgd-linf")
    parser.add_argument("--slots", type=int, nargs="+", default=[16, 64, 128, 256])
    parser.add_argument("--threads", type=int, nargs="+", default=[1, 2])
    parser.add_argument("--limit", type=int)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--beside", help="a second device, such as cpu beside --device cuda")
    options = parser.parse_args()
    protocol = load_protocol(options.protocol)
    asked = falls = 0
    for model in options.models:
        with tempfile.TemporaryDirectory() as folder:
            found = _differences(_runs(model, options, Path(folder)), protocol)
        asked, falls = asked + found["asked_again"], falls + found["falls"]
        sys.stdout.write(json.dumps({"model": model, **found}) + "\n")
        sys.stdout.flush()
    sys.stdout.write(json.dumps({"asked_again": asked, "falls": falls, "flip_rate": falls / max(1, asked)}) + "\n")


main()
