"""What changes over the epochs: learning rate, strength of RandAugment, Mixup and CutMix.

Not here: strength of the adversary, which grows with every step (`loop`).
"""

from collections.abc import Sequence
from typing import Any, TypeVar

from timm.data import Mixup
from timm.scheduler import CosineLRScheduler, MultiStepLRScheduler
from timm.scheduler.scheduler import Scheduler
from torch.optim import Optimizer

from robench.training.recipe import Recipe, ScheduleRecipe

Value = TypeVar("Value")


class LearningRate:
    """The learning rate of a training, set on its optimizer before each update.

    Args:
      schedule: the recipe's.
      optimizer: its groups get the learning rate.
      updates: of the optimizer in an epoch.
    """

    def __init__(self, schedule: ScheduleRecipe, optimizer: Optimizer, *, updates: int) -> None:
        self._schedule, self._updates = schedule, updates
        self._scheduler = _scheduler(schedule, optimizer, 1 if schedule.each == "epoch" else updates)

    def set(self, update: int) -> None:
        """Set the learning rate of an update, counted from 0 at the start of the training."""
        time = update
        if self._schedule.each == "epoch":
            time = max(0, update // self._updates - self._schedule.lag)
        self._scheduler.step_update(time)


def _scheduler(schedule: ScheduleRecipe, optimizer: Optimizer, ticks: int) -> Scheduler:
    """timm's scheduler, with `ticks` units of time an epoch."""
    lr = optimizer.param_groups[0]["lr"]
    warmup = schedule.warmup_epochs * ticks
    common: dict[str, Any] = {
        "warmup_t": warmup,
        "warmup_lr_init": lr / 100 if schedule.warmup_lr is None else schedule.warmup_lr,
        "warmup_prefix": schedule.after_warmup,
        "t_in_epochs": False,
    }
    if schedule.kind == "cosine":
        length = schedule.epochs * ticks - (warmup if schedule.after_warmup else 0)
        return CosineLRScheduler(optimizer, t_initial=length, lr_min=schedule.min_lr, **common)
    times = [epoch * ticks + 1 for epoch in schedule.milestones]  # timm's milestones act one unit early
    return MultiStepLRScheduler(optimizer, decay_t=times, decay_rate=schedule.factor, **common)


def at_epoch(values: Sequence[Value], epoch: int) -> Value:
    """The value of an epoch, counted from 0; after the listed ones the last stays.

    Example:
      >>> [at_epoch((1, 1, 2), epoch) for epoch in range(5)]
      [1, 1, 2, 2, 2]
    """
    return values[min(epoch, len(values) - 1)]


def randaugment_policy(recipe: Recipe, epoch: int) -> str | None:
    """What timm's `create_transform` takes as `auto_augment` in an epoch; None for no RandAugment."""
    randaugment = recipe.augmentation.randaugment if recipe.augmentation is not None else None
    if randaugment is None:
        return None
    magnitude = at_epoch(randaugment.magnitude, epoch)
    policy = f"rand-m{magnitude}-n{randaugment.layers}-mstd{randaugment.deviation:g}"
    if randaugment.increasing:
        policy += "-inc1"  # and no "-inc0", which some releases of timm take for a yes
    return f"{policy}-mmax{magnitude}" if magnitude > 10 else policy  # else timm stops at 10


def mixup_of(recipe: Recipe, epoch: int, *, classes: int) -> Mixup | None:
    """timm's Mixup and CutMix of an epoch, which also smooths the labels; None where nothing is mixed."""
    mixing = recipe.mixing
    if mixing is None:
        return None
    return Mixup(
        mixup_alpha=mixing.mixup,
        cutmix_alpha=mixing.cutmix,
        prob=at_epoch(mixing.probability, epoch),
        switch_prob=at_epoch(mixing.switch, epoch),
        label_smoothing=recipe.label_smoothing,
        num_classes=classes,
    )
