"""What the agent of `mini-tpa` learns where it fails: a line of Markdown for every fifth round.

    python docs/measure/agent.py mini-resnet --limit 24

Means over the images that survive all rounds. A reward is log(1 - p) of the true class; a patch counts as new once, in
the round in which it is looked at first.
"""

import argparse
import sys
from typing import Any

import torch
from torch import Tensor

import robench
from robench.attacks.interface import Answer, Examples
from robench.attacks.patches import rewards
from robench.attacks.tpa import TPA
from robench.bench.measurement import Settings
from robench.bench.scene import scene
from robench.budgets import PatchArea
from robench.door import build_attack
from robench.randomness import Draws


def main() -> None:
    """Ask and tell the attack round by round, and say what it looked at."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("model")
    parser.add_argument("--limit", type=int, default=24)
    arguments = parser.parse_args()
    model, images, labels = scene(Settings(arguments.model, images=arguments.limit))
    (stage,), budget = build_attack(robench.load_protocol("mini-tpa"))
    attack: Any = stage.attack
    assert isinstance(attack, TPA), "the protocol of the agent"
    assert isinstance(budget, PatchArea), "and of patches"
    with torch.no_grad():
        logits = model(images)
    draws = Draws.of(0, [f"{index}" for index in range(len(images))])
    state = attack.start(Examples(images, labels, logits), budget, draws)
    lines, stands = [], logits.argmax(dim=1) == labels
    seen: list[set[tuple[int, ...]]] = [set() for _ in labels]
    for turn in range(attack.rounds):
        query = attack.ask(state)
        answer = _looked(model, query.render, len(query.rows), attack.queries)
        reward = rewards(state, answer, targeted=False)
        new = torch.tensor([_new(each, actions) for each, actions in zip(seen, state.actions, strict=True)])
        lines.append(torch.stack([reward.mean(dim=1), reward.std(dim=1), new / attack.queries], dim=1))
        stands &= (answer.logits.argmax(dim=1).reshape(reward.shape) == labels[:, None]).all(dim=1)
        state = attack.tell(state, answer)
        if turn + 1 < attack.rounds:
            stands &= ~state.done
    sys.stdout.write(f"{int(stands.sum())} of {len(images)} images survive all rounds.\n\n")
    sys.stdout.write("| round | mean reward | spread | new patches |\n|---|---|---|---|\n")
    for turn, line in enumerate(lines, start=1):
        if turn == 1 or turn % 5 == 0:
            mean, spread, new = line[stands].mean(dim=0).tolist()
            sys.stdout.write(f"| {turn} | {mean:.2f} | {spread:.2f} | {100 * new:.0f} % |\n")


def _looked(model: Any, render: Any, rows: int, size: int) -> Answer:
    """The model's answer to a round."""
    with torch.no_grad():
        return Answer(torch.cat([model(render(slice(at, at + size))) for at in range(0, rows, size)]), None, None)


def _new(seen: set[tuple[int, ...]], actions: Tensor) -> int:
    """How many patches of a round were not looked at before; notes them."""
    before = len(seen)
    seen.update(tuple(action) for action in actions.tolist())
    return len(seen) - before


if __name__ == "__main__":
    main()
