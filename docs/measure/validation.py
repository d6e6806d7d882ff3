"""Measures `robench validate`: one claim among many, and all of them, drawn without a model.

    PYTHONPATH=. python docs/measure/validation.py --count 1000 --protocol mini-pgd-linf

Claims are written into a temporary folder, with the ids and labels of the protocol's own data set.
Each command runs in a process of its own; seconds of the clock and of all its processors, and the peak memory of the
process that reports, are printed.
"""

import argparse
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from robench.data import CATALOGUE
from robench.data.imagenet.listing import listed
from robench.registry import load_protocol
from robench.validation import Rules
from tests.claims import claim, draw

COMMAND = """
import atexit, sys
from robench.cli import main
def peak():
    lines = open("/proc/self/status").readlines()
    print(next(int(line.split()[1]) // 1024 for line in lines if line.startswith("VmHWM:")), "MB", file=sys.stderr)
atexit.register(peak)
sys.argv[0] = "robench"
main()
"""
"""The command line; says at its end the most memory it ever held."""


def _timed(name: str, *arguments: str) -> None:
    before, began = resource.getrusage(resource.RUSAGE_CHILDREN), time.perf_counter()
    done = subprocess.run([sys.executable, "-c", COMMAND, *arguments], capture_output=True, text=True, check=False)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    spent = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    *said, peak = done.stderr.strip().splitlines()
    text = f"{name}: {time.perf_counter() - began:.1f} s ({spent:.1f} s of processor), {peak}"
    sys.stdout.write("; ".join([text, *said]) + "\n")


def main() -> None:
    """Write the claims and run the commands."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--count", type=int, default=1000)
    parser.add_argument("--protocol", default="mini-pgd-linf")
    options = parser.parse_args()
    protocol, rules = load_protocol(options.protocol), Rules.shipped()
    if protocol.data.source == "imagenet":
        ids, labels = list(listed()), list(listed().values())
    else:
        source = CATALOGUE[protocol.data.source]()
        ids, labels = list(source.ids), [int(label) for label in source.labels]
    with tempfile.TemporaryDirectory() as folder:
        for seed in range(options.count):
            outcomes = draw(ids, labels, seed=seed, classes=protocol.data.classes)
            name, model = protocol.exact_name, f"model-{seed:04d}"
            place = claim(Path(folder), model, rules=rules, name=name, seed=seed, outcomes=outcomes)
        _timed("one claim among all", "validate", str(place.folder))
        _timed(f"{options.count} claims, one process", "validate", str(place.root), "--processes", "1")
        _timed(f"{options.count} claims, one for each processor", "validate", str(place.root))
        (Path(folder) / "benchmarks").mkdir()
        (Path(folder) / "benchmarks" / "protocols.lock").write_text("")
        _timed("leaderboard", "leaderboard", "--repository", folder)


if __name__ == "__main__":
    main()
