"""What a shard costs beside its attack, at 1,000 shards and at 10,000, through each executor; prints a table.

    python docs/measure/shards.py --folder /tmp/shards

Every shard is one image of 8x8 pixels, shown to a linear model for one step of PGD, so that nearly all the time goes
into what a run does for a shard: claim, driver, journal, file, and looks at what others do. If anything read the whole
folder for each of them, ten times as many would take ten times as long each; `growth` is how many times as long
they take. `CPU` is the time of the processes that attack, which other programs disturb less than `wall`; merging is
timed apart. What is finished is kept in the folder, and the same command goes on.
"""

import argparse
import json
import os
import shutil
import subprocess
import sys
import time
import tomllib
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import torch
from torch import nn

from robench.cli.ranks import rank_of
from robench.cluster import RayCrew, cluster
from robench.data import ArraySource
from robench.environment import environment
from robench.evaluation import Options, evaluate
from robench.progress import Silent
from robench.protocol import parse_protocol
from robench.runs import Run

PROTOCOL = """
schema = "robench.protocol/1"
id = "trivial"
version = 1
status = "draft"
title = "Trivial work"
summary = "One step of PGD on images of 8 pixels."
seed = 0
[data]
source = "own"
count = 1
classes = 4
ids_sha256 = "{digest}"
crop = 8
[attack]
kind = "pgd"
step_size = "1/255"
steps = 1
[budget]
norm = "linf"
epsilon = "1/255"
[score]
scoring = "any iterate"
steps = [1]
"""
PROCESSES = 2
TORCHRUN = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(PROCESSES)]
EXECUTORS: dict[str, tuple[list[str], list[str]]] = {
    "one process": ([], []),
    f"{PROCESSES} ranks": (TORCHRUN, []),
    f"Ray, {PROCESSES} workers": ([], ["--ray"]),
}
"""Words before and after the name of this script."""


@dataclass(frozen=True)
class Span:
    """What the events of a finished run say about the processes that attacked.

    Attributes:
      began: when the first of them began, in seconds since 1970.
      wall: seconds until the last shard was written.
      cpu: processor seconds of all of them.
      idle: largest share of `wall` in which one of them had nothing to do, or had not begun.
      workers: how many wrote a shard.
    """

    began: float
    wall: float
    cpu: float
    idle: float
    workers: int


def span_of(run: Run) -> Span:
    """Of all segments that wrote a shard, each until its last; of a run in which none was killed."""
    began, busy, cpu, ended = dict[str, float](), dict[str, float](), dict[str, float](), 0.0
    for event in run.events():
        if "shard" in event:
            segment = event["segment"]
            began[segment] = int(segment, 16) / 1e9
            busy[segment] = event["wall_seconds"] - event["waited_seconds"]
            cpu[segment] = event["cpu_seconds"]
            ended = max(ended, began[segment] + event["wall_seconds"])
    first = min(began.values())
    wall = ended - first
    return Span(first, wall, sum(cpu.values()), max(0.0, 1 - min(busy.values()) / wall), len(began))


@dataclass(frozen=True)
class Costs:
    """Seconds for one shard."""

    wall: float
    cpu: float
    merge: float


class Watching(Silent):
    """Is told of progress, so that the run looks at what others do, as it does for the command line."""


def work(count: int, folder: Path, *, on_ray: bool) -> None:
    """Make so many shards in this process, beside the other ranks, or on Ray."""
    torch.set_num_threads(1)
    torch.manual_seed(0)
    model = nn.Sequential(nn.Flatten(), nn.Linear(192, 4)).eval()
    images = torch.rand(count, 3, 8, 8)
    with torch.no_grad():
        data = ArraySource(images, model(images).argmax(dim=1), classes=4)
    protocol = parse_protocol(tomllib.loads(PROTOCOL.format(digest="0" * 64)), where="shards.py")
    options = Options(name="linear", shard_size=1, rank=rank_of(os.environ), watcher=Watching())
    if not on_ray:
        evaluate(model, protocol, data=data, run_dir=folder, options=options)
    else:
        with cluster(cpus=PROCESSES) as ray:
            crew = RayCrew(ray, PROCESSES)
            options = replace(options, crew=crew)
            crew.take_on(model, data=data, options=options)
            evaluate(model, protocol, data=data, run_dir=folder, options=options)


def measured(executor: str, count: int, folder: Path) -> Costs:
    """Costs of a shard through an executor; kept in a file, so that they are measured once."""
    kept = folder / f"{executor.replace(', ', '-').replace(' ', '-')}-{count}.json"
    if kept.exists():
        return Costs(**json.loads(kept.read_text()))
    run_dir = kept.with_suffix("")
    shutil.rmtree(run_dir, ignore_errors=True)
    before, after = EXECUTORS[executor]
    command = [sys.executable, *before, __file__, "--work", str(count), "--folder", str(run_dir), *after]
    subprocess.run(command, env={**os.environ, "OMP_NUM_THREADS": "1"}, check=True, stdout=subprocess.DEVNULL)
    run = Run.open(run_dir)
    span = span_of(run)
    began = time.process_time()
    run.merge(environment())
    costs = Costs(span.wall / count, span.cpu / count, (time.process_time() - began) / count)
    kept.write_text(json.dumps(asdict(costs)) + "\n")
    shutil.rmtree(run_dir)
    return costs


def growths(executors: list[str], counts: tuple[int, int], folder: Path) -> dict[str, tuple[Costs, Costs]]:
    """Costs of each executor at few shards and at many."""
    folder.mkdir(parents=True, exist_ok=True)
    return {name: (measured(name, counts[0], folder), measured(name, counts[1], folder)) for name in executors}


def main() -> None:
    """Measure each executor, and print one line for each."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--folder", type=Path, required=True, help="where runs are made and figures kept")
    parser.add_argument("--counts", type=int, nargs=2, default=(1_000, 10_000))
    parser.add_argument("--executors", nargs="+", choices=EXECUTORS, default=list(EXECUTORS))
    parser.add_argument("--work", type=int, help=argparse.SUPPRESS)
    parser.add_argument("--ray", action="store_true", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.work:
        work(arguments.work, arguments.folder, on_ray=arguments.ray)
        return
    few, many = arguments.counts
    lines = [f"| executor | what | {few:,} shards | {many:,} shards | growth |", "|---|---|---|---|---|"]
    for name, (first, second) in growths(arguments.executors, (few, many), arguments.folder).items():
        for what in ("wall", "cpu", "merge"):
            one, other = getattr(first, what), getattr(second, what)
            lines.append(f"| {name} | {what} | {1e3 * one:.2f} ms | {1e3 * other:.2f} ms | {other / one:.2f} |")
    sys.stdout.write("\n".join(lines) + "\n")


if __name__ == "__main__":
    main()
