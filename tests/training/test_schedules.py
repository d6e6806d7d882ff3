"""What changes over the epochs, beside tables written by hand from the sources of the recipes."""

import math
from typing import Any

import pytest
import torch
from timm.data.auto_augment import rand_augment_transform
from torch import nn

from robench.training import Recipe, load_recipe
from robench.training.construction import build_optimizer
from robench.training.schedules import LearningRate, mixup_of, randaugment_policy
from robench.zoo.normalised import Normalised

UPDATES = 5
"""Of the optimizer in an epoch, here."""


def _learning_rates(recipe: Recipe) -> list[float]:
    """The learning rate of every update of the training."""
    optimizer = torch.optim.SGD([nn.Parameter(torch.zeros(1))], lr=recipe.optimizer.lr)
    learning_rate = LearningRate(recipe.schedule, optimizer, updates=UPDATES)
    found = []
    for update in range(recipe.schedule.epochs * UPDATES):
        learning_rate.set(update)
        found.append(float(optimizer.param_groups[0]["lr"]))
    return found


def _each_epoch(recipe: Recipe) -> list[float]:
    """The learning rate of every epoch, where all its updates have the same."""
    rates = _learning_rates(recipe)
    epochs = [rates[start : start + UPDATES] for start in range(0, len(rates), UPDATES)]
    assert all(len(set(epoch)) == 1 for epoch in epochs)
    return [epoch[0] for epoch in epochs]


def _weight_decay(recipe: Recipe) -> float:
    network = Normalised(nn.Linear(3, 3), (0.5,), (0.5,))
    return float(max(group["weight_decay"] for group in build_optimizer(recipe, network).param_groups))


def _mixing(recipe: Recipe, epoch: int) -> tuple[float, float, float, float]:
    mixup = mixup_of(recipe, epoch, classes=10)
    assert mixup is not None
    return mixup.mixup_alpha, mixup.mix_prob, mixup.cutmix_alpha, mixup.switch_prob


# Epoch, learning rate, RandAugment, chance of mixing, chance of CutMix. The published schedule trails an epoch behind:
# epochs 0 and 1 have the first learning rate, epoch 11 the last of the warm-up to 4e-3.
DEIT_S_ADV = [
    (0, 1e-6, "rand-m1-n2-mstd0.5-inc1", 0.5, 0.0),
    (1, 1e-6, "rand-m1-n2-mstd0.5-inc1", 0.6, 0.0),
    (2, 0.0004009, "rand-m2-n2-mstd0.5-inc1", 0.7, 0.0),
    (3, 0.0008008, "rand-m3-n2-mstd0.5-inc1", 0.8, 0.0),
    (4, 0.0012007, "rand-m4-n2-mstd0.5-inc1", 0.9, 0.0),
    (5, 0.0016006, "rand-m5-n2-mstd0.5-inc1", 1.0, 0.0),
    (6, 0.0020005, "rand-m6-n2-mstd0.5-inc1", 1.0, 0.1),
    (7, 0.0024004, "rand-m7-n2-mstd0.5-inc1", 1.0, 0.2),
    (8, 0.0028003, "rand-m8-n2-mstd0.5-inc1", 0.9, 0.3),
    (9, 0.0032002, "rand-m9-n2-mstd0.5-inc1", 0.95, 0.4),
    (10, 0.0036001, "rand-m9-n2-mstd0.5-inc1", 1.0, 0.5),
    (11, 0.00390235775, "rand-m9-n2-mstd0.5-inc1", 1.0, 0.5),
    (51, 0.002005, "rand-m9-n2-mstd0.5-inc1", 1.0, 0.5),
    (76, 0.000594321972, "rand-m9-n2-mstd0.5-inc1", 1.0, 0.5),
    (99, 1.3936676786e-05, "rand-m9-n2-mstd0.5-inc1", 1.0, 0.5),
]


def test_the_augmentation_warm_up_of_deit_s() -> None:
    recipe = load_recipe("deit-s-adv")
    rates = _each_epoch(recipe)
    assert len(rates) == 100
    for epoch, rate, policy, mixed, cutmix in DEIT_S_ADV:
        assert rates[epoch] == pytest.approx(rate, rel=1e-6)
        assert randaugment_policy(recipe, epoch) == policy
        assert _mixing(recipe, epoch) == (0.8, mixed, 1.0, cutmix)
    assert _weight_decay(recipe) == 0.05


# Warm-up from 0.1 to 1.6, an epoch behind; then a tenth from epochs 31, 61 and 91 on.
RESNET_ADV = [
    *[(0, 0.1), (1, 0.1), (2, 0.4), (3, 0.7), (4, 1.0), (5, 1.3), (6, 1.6), (30, 1.6), (31, 0.16), (60, 0.16)],
    *[(61, 0.016), (90, 0.016), (91, 0.0016), (99, 0.0016)],
]


def test_the_steps_of_the_adversarial_resnet() -> None:
    recipe = load_recipe("resnet50-gelu-adv")
    rates = _each_epoch(recipe)
    for epoch, rate in RESNET_ADV:
        assert rates[epoch] == pytest.approx(rate, rel=1e-6)
        assert randaugment_policy(recipe, epoch) is None
        assert mixup_of(recipe, epoch, classes=10) is None
    assert _weight_decay(recipe) == 1e-4


# Learning rate at the first update of an epoch: from 0 in 20 epochs, then a cosine over the other 280.
CONVNEXT = [(0, 0.0), (5, 1e-3), (10, 2e-3), (19, 3.8e-3), (20, 4e-3), (90, 0.003414360009), (160, 0.0020005)]
CONVNEXT += [(230, 0.000586639991), (299, 1.125855019e-06)]


def test_the_cosine_of_convnext() -> None:
    recipe = load_recipe("convnext-t")
    rates = _learning_rates(recipe)
    assert len(set(rates)) == len(rates)
    for epoch, rate in CONVNEXT:
        assert rates[epoch * UPDATES] == pytest.approx(rate, rel=1e-6)
        assert randaugment_policy(recipe, epoch) == "rand-m9-n2-mstd0.5-inc1"
        assert _mixing(recipe, epoch) == (0.8, 1.0, 1.0, 0.5)
    assert _weight_decay(recipe) == 0.05


def test_the_steps_of_the_ladders_first_recipe() -> None:
    rates = _learning_rates(load_recipe("rs-ladder-00-resnet200"))
    expected = {
        0: 0.0,
        1: 0.064,
        24: 1.536,
        25: 1.6,
        149: 1.6,
        150: 0.16,
        299: 0.16,
        300: 0.016,
        400: 0.0016,
        449: 0.0016,
    }
    assert {update: pytest.approx(rates[update]) for update in expected} == expected


def test_the_cosine_lies_over_the_warm_up_where_it_does_not_wait() -> None:
    rates = _learning_rates(load_recipe("rs-ladder-01-cosine"))
    assert rates[25] == pytest.approx(0.8 * (1 + math.cos(math.pi * 5 / 90)))
    assert rates[449] == pytest.approx(0.8 * (1 + math.cos(math.pi * 449 / 450)))


def test_labels_are_smoothed_where_they_are_mixed() -> None:
    mixup = mixup_of(load_recipe("deit-s"), 0, classes=10)
    assert mixup is not None
    assert (mixup.label_smoothing, mixup.num_classes) == (0.1, 10)


def test_the_policy_of_resnet_rs_has_no_spread() -> None:
    assert randaugment_policy(load_recipe("resnet-rs-200-256"), 7) == "rand-m15-n2-mstd0-mmax15"


@pytest.mark.parametrize(("name", "magnitude"), [("deit-s", 9), ("resnet-rs-200-256", 15)])
def test_operations_receive_the_magnitude_of_the_recipe(name: str, magnitude: int) -> None:
    """timm cuts magnitudes at 10 unless it is told otherwise."""
    policy = randaugment_policy(load_recipe(name), 7)
    assert policy is not None
    received: list[float] = []

    def argument(level: float, hparams: Any) -> tuple[()]:
        received.append(level)
        return ()

    for operation in rand_augment_transform(policy.replace("mstd0.5", "mstd0"), {}).ops:
        operation.prob = 1.0
        operation.level_fn = argument
        operation.aug_fn = lambda image, **options: image
        operation(None)
    assert len(received) > 10
    assert set(received) == {magnitude}
