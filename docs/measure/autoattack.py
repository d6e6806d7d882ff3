"""Full AutoAttack by the reference implementation (pyautoattack) on the mini suite; prints one JSON line.

    python docs/measure/autoattack.py mini-resnet-gelu-adv --epsilon 4/255 --count 256

Until robench has AutoAttack of its own, this is how the difficulty of the suite is measured.
"""

import argparse
import json
import sys
import time
from fractions import Fraction

import torch
from pyautoattack import AutoAttack

import robench
from robench.data import open_source


def main() -> None:
    """Attack the first images of the suite, and print how many survive."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("model")
    parser.add_argument("--epsilon", default="4/255", type=Fraction)
    parser.add_argument("--count", default=256, type=int)
    parser.add_argument("--seed", default=0, type=int)
    arguments = parser.parse_args()
    model = robench.load_model(arguments.model)
    source = open_source("mini", None, resize=None, crop=64)
    images = torch.stack(list(source.images(range(arguments.count))))
    labels = torch.tensor(source.labels[: arguments.count])
    with torch.no_grad():
        clean = int((model(images).argmax(dim=1) == labels).sum())
    radius = float(arguments.epsilon)
    adversary = AutoAttack(model, norm="Linf", eps=radius, version="standard", device="cpu", seed=arguments.seed)
    adversary.verbose = False
    began = time.monotonic()
    attacked, _ = adversary.run_standard_evaluation(images, labels, batch_size=arguments.count)
    with torch.no_grad():
        robust = int((model(attacked).argmax(dim=1) == labels).sum())
    line = {
        "model": arguments.model,
        "epsilon": str(arguments.epsilon),
        "examples": arguments.count,
        "clean": clean,
        "robust": robust,
        "seconds": round(time.monotonic() - began),
        "threads": torch.get_num_threads(),
    }
    sys.stdout.write(json.dumps(line) + "\n")


main()
