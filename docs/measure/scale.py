"""What several processes gain and cost: each figure that docs/scale.md states a limit for; prints a table and JSON.

    python docs/measure/scale.py --folder /tmp/scale

One evaluation, alone, on 2 and 4 ranks by torchrun, and with 2 and 4 workers on Ray, every process with one thread;
then `shards.py`. Measure on a machine with nothing else to do. It may be interrupted: runs that are finished are kept
in the folder, and the same command goes on; `--steps 2` does two more of them and stops. Figures are medians over
`--repeats`. With `--files` the images of the mini suite are written as files first, and every process decodes its own;
what is kept then lies apart. Another model, protocol or limit needs a folder of its own.

`start` is what passes from the command until the first process attacks, `attack` from there until the last shard is
written, `idle` the largest share of that in which a process had nothing to do or had not begun. Processes in excess of
the machine's cores are measured for their idle time alone.
"""

import argparse
import hashlib
import json
import os
import shutil
import statistics
import subprocess
import sys
import time
from collections import defaultdict
from dataclasses import asdict, dataclass
from pathlib import Path

from PIL import Image
from shards import EXECUTORS, growths, span_of

from robench.data.mini import attack_set
from robench.runs import Run

TORCHRUN = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node"]
RANKS, WORKERS = (2, 4), (2, 4)


@dataclass(frozen=True)
class Timing:
    """One finished run: seconds, a share, and the digest of its outcomes."""

    wall: float
    start: float
    attack: float
    cpu: float
    idle: float
    outcomes: str


@dataclass(frozen=True)
class Limit:
    """A figure beside what it must not exceed."""

    what: str
    found: float
    limit: float

    @property
    def line(self) -> str:
        """Of the table."""
        return f"| {self.what} | {self.limit:g} | {self.found:.3f} | {'yes' if self.found <= self.limit else 'no'} |"


def ways(model: str, protocol: str, *options: str) -> dict[str, list[str]]:
    """Commands by what they are called here."""
    command = ["-m", "robench", "evaluate", model, protocol, *options]
    ranks = {f"{count} ranks": [*TORCHRUN, str(count), *command] for count in RANKS}
    ray = {f"Ray, {count}": [*command, "--executor", "ray", "--processes", str(count)] for count in WORKERS}
    return {"one process": command, **ranks, **ray}


def timed(command: list[str], kept: Path, *, workers: int) -> Timing:
    """Run a command and keep what its run says; a worker that got no shard was idle all the time."""
    folder = kept.with_suffix("")
    shutil.rmtree(folder, ignore_errors=True)
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    began, clock = time.time(), time.perf_counter()
    subprocess.run([sys.executable, *command, "--run-dir", str(folder)], env=environment, check=True, stdout=sys.stderr)
    wall = time.perf_counter() - clock
    span = span_of(Run.open(folder))
    outcomes = hashlib.sha256((folder / "outcomes.csv.gz").read_bytes()).hexdigest()
    idle = span.idle if span.workers == workers else 1.0
    timing = Timing(wall, span.began - began, span.wall, span.cpu, idle, outcomes)
    kept.write_text(json.dumps(asdict(timing)) + "\n")
    shutil.rmtree(folder)
    return timing


def files_in(folder: Path) -> Path:
    """The images that are attacked, as files in a sub-folder for each class."""
    for number, (pixels, label) in enumerate(zip(*attack_set(), strict=True)):
        path = folder / f"{label:02d}" / f"{number:04d}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(pixels.transpose(1, 2, 0)).save(path)
    return folder


def medians(timings: list[Timing]) -> Timing:
    """Of each figure; all outcomes must be the same."""
    digests = {timing.outcomes for timing in timings}
    found = [statistics.median(getattr(each, name) for each in timings) for name in ("wall", "start", "attack")]
    more = [statistics.median(getattr(each, name) for each in timings) for name in ("cpu", "idle")]
    return Timing(*found, *more, outcomes=" ".join(sorted(digests)))


def limits(found: dict[str, Timing]) -> list[Limit]:
    """What is promised, as far as it was measured."""
    one, ranks, ray = found["one process"], found["2 ranks"], found["Ray, 2"]
    different = sum(timing.outcomes != one.outcomes for timing in found.values())
    return [
        Limit("wall time of 2 ranks, of one process", ranks.wall / one.wall, 0.55),
        Limit("start of Ray with 2 workers, seconds over one process", ray.start - one.start, 5.0),
        Limit("attack of 2 workers on Ray, of 2 ranks", ray.attack / ranks.attack, 1.03),
        *(Limit(f"idle time of the last, {name}", found[name].idle, 0.1) for name in found if name != "one process"),
        Limit("ways of running with other bytes", float(different), 0.0),
    ]


def collected(commands: dict[str, list[str]], folder: Path, *, repeats: int, steps: int | None) -> dict[str, Timing]:
    """Medians of every way; leaves with what is kept when so many runs were made."""
    made, found = 0, defaultdict[str, list[Timing]](list)
    for repeat in range(repeats):
        for name, command in commands.items():
            kept = folder / f"{name.replace(', ', '-').replace(' ', '-')}-{repeat}.json"
            if kept.exists():
                found[name].append(Timing(**json.loads(kept.read_text())))
            elif made == steps:
                sys.exit(f"{made} runs made; the same command goes on.")
            else:
                workers = next((int(word) for word in name.split() if word.isdigit()), 1)
                found[name].append(timed(command, kept, workers=workers))
                made += 1
    return {name: medians(timings) for name, timings in found.items()}


def shard_limits(folder: Path, few: int = 1_000, many: int = 10_000) -> list[Limit]:
    """What a shard costs among many, of what it costs among few."""
    rows = []
    for name, costs in growths(list(EXECUTORS), (few, many), folder).items():
        for what in ("cpu", "merge"):
            one, other = (getattr(cost, what) for cost in costs)
            rows.append(Limit(f"{what} of a shard of {many:,}, of one of {few:,}, {name}", other / one, 1.5))
    return rows


def main() -> None:
    """Measure what is not kept yet, and print all."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--folder", type=Path, required=True, help="where runs are made and figures kept")
    parser.add_argument("--model", default="mini-resnet-adv")
    parser.add_argument("--protocol", default="mini-autoattack-linf")
    parser.add_argument("--limit", type=int)
    parser.add_argument("--files", action="store_true", help="read the images from files")
    parser.add_argument("--repeats", type=int, default=1)
    parser.add_argument("--steps", type=int, help="how many runs to make before stopping")
    parser.add_argument("--without-shards", action="store_true", help="leave out 1,000 and 10,000 shards")
    arguments = parser.parse_args()
    folder = arguments.folder / "files" if arguments.files else arguments.folder
    folder.mkdir(parents=True, exist_ok=True)
    options = ["--limit", str(arguments.limit)] if arguments.limit else []
    if arguments.files:
        options += ["--data", str(files_in(folder / "images"))]
    commands = ways(arguments.model, arguments.protocol, *options)
    found = collected(commands, folder, repeats=arguments.repeats, steps=arguments.steps)
    rows = limits(found)
    if not arguments.without_shards:
        rows += shard_limits(folder / "shards")
    lines = ["| way | wall | start | attack | CPU | idle |", "|---|---|---|---|---|---|"]
    for name, timing in found.items():
        seconds = " | ".join(f"{getattr(timing, each):.1f} s" for each in ("wall", "start", "attack", "cpu"))
        lines.append(f"| {name} | {seconds} | {100 * timing.idle:.1f} % |")
    lines += ["", "| what | limit | found | holds |", "|---|---|---|---|", *(row.line for row in rows), ""]
    content = {
        "runs": {name: asdict(timing) for name, timing in found.items()},
        "limits": [asdict(row) for row in rows],
    }
    sys.stdout.write("\n".join([*lines, json.dumps(content)]) + "\n")


if __name__ == "__main__":
    main()
