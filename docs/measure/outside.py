"""What AutoAttack costs beside the model's passes, stage by stage, with any network; prints a table.

    python docs/measure/outside.py mini-resnet-adv mini-resnet-gelu-adv mini-deit-adv --images 128
    python docs/measure/outside.py photographs:resnet18 --images 16 --steps 10

Every stage attacks all images by itself, for so many steps and ten times as many queries. Seconds are spent inside
the model or outside, in one run, so that a machine that is not at rest slows both. That is less than the overhead of
`robench bench autoattack`, which holds a run against passes that are timed alone. `photographs:NAME` is a network of
timm with random weights, fitted to the photographs that come with foolbox, at 224 pixels. Under the default radius
next to nothing falls.
"""

import argparse
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import torch

from robench.attacks.autoattack import AutoAttack
from robench.attacks.drive import Stage, drive
from robench.bench.measurement import Settings
from robench.bench.scene import examples_of, scene
from robench.budgets import LinfBall
from robench.classifier import Classifier
from robench.fastpath import MEASURES, cpu_slots, quicken

SETTINGS: dict[str, Callable[[int], dict[str, int]]] = {
    "apgd-ce": lambda steps: {"steps": steps},
    "apgd-t": lambda steps: {"steps": steps, "targets": 1},
    "fab-t": lambda steps: {"steps": steps, "targets": 1},
    "square": lambda steps: {"queries": 10 * steps},
}


@dataclass
class Inside:
    """Seconds spent in the methods of a model."""

    seconds: float = 0.0

    def timing(self, method: Callable[..., Any]) -> Callable[..., Any]:
        """The method, timed."""

        def timed(*arguments: Any) -> Any:
            began = time.perf_counter()
            answer = method(*arguments)
            self.seconds += time.perf_counter() - began
            return answer

        return timed


def main() -> None:
    """Attack with each stage, and print where the time went."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("models", nargs="+")
    parser.add_argument("--images", type=int, default=128)
    parser.add_argument("--steps", type=int, default=20)
    parser.add_argument("--epsilon", type=float, default=0.01 / 255)
    arguments = parser.parse_args()
    lines = [
        f"{arguments.images} images, {arguments.steps} steps, {torch.get_num_threads()} threads",
        "| model | stage | fell | seconds inside the model | outside | run / inside |",
        "|---|---|---|---|---|---|",
    ]
    for name in arguments.models:
        model, images, labels = scene(Settings(name, images=arguments.images, repeats=1))
        own = Classifier(model)
        fast = quicken(own, images[:16], measures=MEASURES, gradients=True).classifier
        inside = Inside()
        for classifier in {id(each): each for each in (own, fast)}.values():
            for method in ("logits", "gradient"):
                setattr(classifier, method, inside.timing(getattr(classifier, method)))
        for attack in AutoAttack().stages():
            inside.seconds = 0.0
            stage = Stage(replace(attack, **SETTINGS[attack.name](arguments.steps)))
            began = time.perf_counter()
            outcomes = drive(
                [stage],
                fast,
                examples_of(images, labels),
                budget=LinfBall(arguments.epsilon),
                slots=cpu_slots(images),
                confirm=own,
            )
            fell = sum(bool(outcome.fooled_at) for outcome in outcomes)
            seconds = time.perf_counter() - began
            cells = f"{inside.seconds:.2f} | {seconds - inside.seconds:.2f} | {seconds / inside.seconds:.3f}"
            lines.append(f"| {name} | {attack.name} | {fell} | {cells} |")
    sys.stdout.write("\n".join(lines) + "\n")


main()
