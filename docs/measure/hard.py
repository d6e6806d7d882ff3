"""Makes the set `mini-a`: images of the mini suite that two reference models get wrong with confidence.

    robench train mini-ref-resnet --out trained --threads 1
    robench train mini-ref-deit --out trained --threads 1
    python docs/measure/hard.py trained/mini-ref-resnet.safetensors trained/mini-ref-deit.safetensors mini_a.json

Candidates come from a fixed seed; the file that is written names those that were taken, the digest of their pixels, how
many were looked at, how many each model got wrong, and the digests of both models. Floating-point noise decides about
few candidates, so another machine may choose slightly otherwise: the file is what counts. It prints the digest of the
ids for the protocol, and the line of `labels.lock`.
"""

import argparse
import sys
import time
from pathlib import Path

from robench.data.mini.hard import HardSet, MiniHard, choose
from robench.data.source import ids_digest
from robench.zoo import resolve
from robench.zoo.state import sha256_of

JUDGES = {"mini-ref-resnet": "mini-resnet", "mini-ref-deit": "mini-deit"}
"""Architecture of each reference model."""
EVERY = 15
"""Seconds between two lines of progress."""


def make(weights: list[Path], target: Path, *, count: int, most: int) -> HardSet:
    """Choose the set and write its file; how many are found is said now and then."""
    began = last = time.monotonic()

    def say(found: int) -> None:
        nonlocal last
        if time.monotonic() > last + EVERY:
            last = time.monotonic()
            sys.stderr.write(f"{found} of {count} found after {last - began:.0f} s\n")

    files = dict(zip(JUDGES, weights, strict=True))
    models = {name: resolve(JUDGES[name], weights=path).model for name, path in files.items()}
    digests = {name: sha256_of(path) for name, path in files.items()}
    chosen = choose(models, digests, count=count, most=most, on_candidates=say)
    target.write_text(chosen.content(), encoding="utf-8")
    return chosen


def main() -> None:
    """Make the set, read it back, and print what the protocol needs."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("resnet", type=Path)
    parser.add_argument("deit", type=Path)
    parser.add_argument("target", type=Path)
    parser.add_argument("--count", default=500, type=int)
    parser.add_argument("--most", default=600_000, type=int, help="candidates to look at before giving up")
    arguments = parser.parse_args()
    chosen = make([arguments.resnet, arguments.deit], arguments.target, count=arguments.count, most=arguments.most)
    source = MiniHard(HardSet.read(arguments.target))
    rates = ", ".join(f"{name} wrong on {number / chosen.looked_at:.2%}" for name, number in chosen.wrong.items())
    ids, labels = ids_digest(source.ids), ids_digest(map(str, source.labels))
    lines = [f"{len(source.ids)} of {chosen.looked_at} candidates; {rates}", f'ids_sha256 = "{ids}"']
    sys.stdout.write("\n".join([*lines, f"mini-a {ids} {labels}"]) + "\n")


if __name__ == "__main__":
    main()
