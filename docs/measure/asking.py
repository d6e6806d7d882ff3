"""What a randomised model scores by three ways of asking, beside the truth; prints one JSON line for each noise.

The model is linear with two classes, and a normal draw is added to each logit, so that the chance of a right answer
at the worst corner of the ball is a closed form.

python docs/measure/asking.py 0.1 0.3 1.0
"""

import json
import math
import sys
from statistics import NormalDist

import torch
from torch import Tensor, nn

from robench.attacks.asking import Asking, drive_by_asking, stage_to_the_end
from robench.attacks.autoattack import AutoAttack
from robench.attacks.drive import Example, Stage, drive
from robench.averaging import seeded
from robench.budgets import LinfBall
from robench.classifier import Classifier

COUNT, SIZE, EPSILON, ASKS, DRAWS = 2000, 4, 0.02, 20, 20
ATTACKS = AutoAttack(version="rand", steps=10).stages()


class NoisyLinear(nn.Module):
    """Two classes with margin w . x + b, and noise of width sigma on both logits."""

    def __init__(self, sigma: float) -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(0)
        self.weight = torch.randn(3 * SIZE * SIZE, generator=generator)
        self.sigma = sigma

    def margins(self, images: Tensor) -> Tensor:
        return (images.flatten(1) - 0.5) @ self.weight

    def forward(self, images: Tensor) -> Tensor:
        half = self.margins(images)[:, None] / 2
        logits = torch.cat([half, -half], dim=1)
        return logits + self.sigma * torch.randn_like(logits)


def main() -> None:
    """Compare the ways of asking for every noise named."""
    images = 0.3 + 0.4 * torch.rand(COUNT, 3, SIZE, SIZE, generator=torch.Generator().manual_seed(1))
    for sigma in map(float, sys.argv[1:]):
        model = NoisyLinear(sigma).eval()
        margins = model.margins(images)
        labels = (margins < 0).long().tolist()
        worst = margins.abs() - EPSILON * model.weight.abs().sum()
        chances = [NormalDist().cdf(margin / (sigma * math.sqrt(2))) for margin in worst.tolist()]
        source = [Example(index, f"e{index}", labels[index], image) for index, image in enumerate(images)]
        line = {"noise": sigma, "truth": sum(chances) / COUNT, **naive(model, source), **asking(model, source)}
        spread, within = variance(chances)
        for asks in (1, ASKS, 100):
            line[f"half interval, {asks} asks, 512 examples"] = 1.96 * math.sqrt((spread + within / asks) / 512)
        sys.stdout.write(json.dumps({name: round(value, 4) for name, value in line.items()}) + "\n")


def naive(model: nn.Module, source: list[Example]) -> dict[str, float]:
    """The ordinary loop, which goes on until a success is confirmed; and what its first claim alone would say."""
    with seeded(0, torch.device("cpu")):
        stages = [Stage(attack) for attack in ATTACKS]
        found = list(drive(stages, Classifier(model), source, budget=LinfBall(EPSILON), slots=64))
    right = [outcome for outcome in found if outcome.clean_prediction == outcome.label]
    return {
        "stop at the first, ask once more": sum(not each.fooled_at or each.unconfirmed > 0 for each in right) / COUNT,
        "go on until confirmed": sum(not each.fooled_at for each in right) / COUNT,
    }


def asking(model: nn.Module, source: list[Example]) -> dict[str, float]:
    """One final image of each example, and many asks."""
    stages = [stage_to_the_end(attack) for attack in ATTACKS]
    settings = {"asking": Asking(ASKS, DRAWS, 64), "budget": LinfBall(EPSILON), "seed": 0, "slots": 64}
    found = list(drive_by_asking(stages, Classifier(model), source, **settings))
    return {"asked 20 times": sum(outcome.attacked_right for outcome in found) / (ASKS * COUNT)}


def variance(chances: list[float]) -> tuple[float, float]:
    """Of the chances over examples, and mean variance of an answer given its chance."""
    mean = sum(chances) / COUNT
    return sum((chance - mean) ** 2 for chance in chances) / COUNT, sum(each * (1 - each) for each in chances) / COUNT


main()
