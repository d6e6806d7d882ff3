"""Makes the set `mini-a`: images of the mini suite that two reference models get wrong with confidence.

    robench train mini-ref-resnet --out trained --threads 1
    robench train mini-ref-deit --out trained --threads 1
    python docs/measure/hard.py trained/mini-ref-resnet.safetensors trained/mini-ref-deit.safetensors mini_a.json

Candidates come from a fixed seed; the file that is written names those that were taken, the digest of their pixels, how
many were looked at, how many each model got wrong, and the digests of both models. Floating-point noise decides about
few candidates, so another machine may choose slightly otherwise: the file is what counts. It prints the digest of the
ids for the protocol.
"""

import argparse
import sys
from pathlib import Path

from robench.data.mini.hard import HardSet, MiniHard, choose
from robench.data.source import ids_digest
from robench.zoo import resolve
from robench.zoo.state import sha256_of

JUDGES = {"mini-ref-resnet": "mini-resnet", "mini-ref-deit": "mini-deit"}
"""Architecture of each reference model."""


def make(weights: list[Path], target: Path, *, count: int, most: int) -> HardSet:
    """Choose the set and write its file."""
    files = dict(zip(JUDGES, weights, strict=True))
    models = {name: resolve(JUDGES[name], weights=path).model for name, path in files.items()}
    digests = {name: sha256_of(path) for name, path in files.items()}
    chosen = choose(models, digests, count=count, most=most)
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
    lines = [f"{len(source.ids)} of {chosen.looked_at} candidates; {rates}", f"ids_sha256 = {ids_digest(source.ids)}"]
    sys.stdout.write("\n".join(lines) + "\n")


if __name__ == "__main__":
    main()
