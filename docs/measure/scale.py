"""What several processes on one run gain and cost; prints one JSON line for each way of running.

    python docs/measure/scale.py mini-resnet-adv --protocol mini-autoattack-linf --processes 2 4 --ray

`share` is the wall time over that of one process, `idle` the largest share of the attack in which a process had
nothing to do, `same` whether outcomes.csv.gz has the same bytes. Every process has one thread. `attack` leaves out the
time until the first process begins.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from robench.runs import Run


def main() -> None:
    """Evaluate once alone, then in each other way."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("model")
    parser.add_argument("--protocol", default="mini-autoattack-linf")
    parser.add_argument("--limit", type=int)
    parser.add_argument("--processes", type=int, nargs="+", default=[2, 4])
    parser.add_argument("--ray", action="store_true")
    arguments = parser.parse_args()
    command = ["-m", "robench", "evaluate", arguments.model, arguments.protocol]
    command += ["--limit", str(arguments.limit)] if arguments.limit else []
    torchrun = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node"]
    ways = {"one": command}
    for count in arguments.processes:
        ways[f"{count} ranks"] = [*torchrun, str(count), *command]
        if arguments.ray:
            ways[f"ray, {count}"] = [*command, "--executor", "ray", "--processes", str(count)]
    with tempfile.TemporaryDirectory() as base:
        alone: dict[str, float] = {}
        for way, begin in ways.items():
            folder = Path(base) / way.replace(", ", "-").replace(" ", "-")
            found = _timed([*begin, "--run-dir", str(folder)], folder)
            alone = alone or found
            ratios = {f"{name}_share": round(found[name] / alone[name], 3) for name in ("seconds", "attack")}
            whole = Path(base) / "one" / "outcomes.csv.gz"
            same = (folder / "outcomes.csv.gz").read_bytes() == whole.read_bytes()
            sys.stdout.write(json.dumps({"way": way, **found, **ratios, "same": same}) + "\n")
            sys.stdout.flush()


def _timed(command: list[str], folder: Path) -> dict[str, float]:
    """Wall seconds of a command, of its attack, and the idle share of the process that waited longest."""
    began = time.time()
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    subprocess.run([sys.executable, *command], env=environment, check=True, capture_output=True)
    seconds = time.time() - began
    events = Run.open(folder).events()
    works = {event["segment"] for event in events if "shard" in event}
    ends = [event for event in events if event["event"] == "end" and event["segment"] in works]
    starts = [int(event["segment"], 16) / 1e9 for event in events if event["event"] == "start"]
    last = max(int(end["segment"], 16) / 1e9 + end["wall_seconds"] for end in ends)
    idle = max(end["waited_seconds"] for end in ends) / (last - min(starts))
    return {"seconds": round(seconds, 2), "attack": round(last - min(starts), 2), "idle": round(idle, 3)}


if __name__ == "__main__":
    main()
