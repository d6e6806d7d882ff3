"""What clearing pages costs: a training step in a process that keeps freed memory, and in one that does not.

    python docs/measure/heap.py mini-resnet mini-deit --threads 1

One line for each model and each of the two: processor seconds, pages cleared, peak memory. Not here: what is done about
it (`robench.heap`).
"""

import argparse
import resource
import statistics
import subprocess
import sys
import time

import torch
import torch.nn.functional as F

from robench import load_model
from robench.heap import keep_freed_memory
from robench.zoo.baselines import BUNDLED_SIZE

STEPS, WARM_UP = 15, 3


def measure(name: str, batch_size: int, threads: int, keep: bool) -> str:
    """Medians over the steps after the first."""
    if keep and not keep_freed_memory():
        return "cannot be kept here"
    torch.set_num_threads(threads)
    model = load_model(name).train().requires_grad_(True)
    optimizer = torch.optim.AdamW(model.parameters())
    images = torch.rand(batch_size, 3, BUNDLED_SIZE, BUNDLED_SIZE)
    labels = torch.zeros(batch_size, dtype=torch.int64)
    seconds, pages = [], []
    for _ in range(STEPS):
        before, began = resource.getrusage(resource.RUSAGE_SELF).ru_minflt, time.process_time()
        optimizer.zero_grad()
        F.cross_entropy(model(images), labels).backward()
        optimizer.step()
        seconds.append(time.process_time() - began)
        pages.append(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024
    pace, cleared = (statistics.median(values[WARM_UP:]) for values in (seconds, pages))
    return f"{pace:.4f} processor seconds, {cleared:.0f} pages, {peak} MiB at most"


def main() -> None:
    """Measure each model twice, each time in a process of its own."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("models", nargs="+", metavar="MODEL")
    parser.add_argument("--batch-size", type=int, default=64)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--keep", choices=("yes", "no"), help=argparse.SUPPRESS)
    asked = parser.parse_args()
    if asked.keep:
        sys.stdout.write(measure(asked.models[0], asked.batch_size, asked.threads, asked.keep == "yes"))
        return
    for model in asked.models:
        for keep, what in (("no", "handed back"), ("yes", "kept")):
            size = ["--batch-size", str(asked.batch_size), "--threads", str(asked.threads)]
            command = [sys.executable, __file__, model, *size, "--keep", keep]
            found = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout.strip()
            sys.stdout.write(f"{model}, batches of {asked.batch_size}, freed memory {what}: {found}\n")


if __name__ == "__main__":
    main()
