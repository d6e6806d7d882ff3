"""AutoAttack beside its reference: survivors, seconds and passes of every stage, in one process.

Each stage of either side attacks what that side's stages before it left, from the same clean images.
"""

import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from robench.attacks.autoattack import AutoAttack
from robench.attacks.drive import Stage, drive
from robench.attacks.interface import Attack
from robench.attacks.reference import attack_by_reference
from robench.bench.measurement import Measurement, Settings, Stopwatch
from robench.bench.ruler import Ruler, best_size
from robench.bench.scene import RADIUS, examples_of, scene
from robench.budgets import Ball, LinfBall
from robench.classifier import Classifier, Passes
from robench.fastpath import cpu_slots, quicken
from robench.protocol import fraction


@dataclass(frozen=True)
class _StageRun:
    """A stage of either side: what it left, what it cost, and what ours would cost bare.

    Passes without gradient are all there are, those of clean images and of confirmations included.
    """

    name: str
    robust: Tensor
    seconds: float
    gradients: int
    labels: int
    bare: float = 0.0


class _Counted(nn.Module):
    """A model whose passes are counted: rows of images that it is shown, and those with a gradient."""

    def __init__(self, module: nn.Module) -> None:
        super().__init__()
        self.module, self.passes = module, Passes()
        self.eval()

    def forward(self, images: Tensor) -> Tensor:
        self.passes.forward += len(images)
        shown = images.view_as(images)
        if shown.requires_grad:
            shown.register_hook(self._count)  # type: ignore[no-untyped-call]  # torch leaves it untyped
        logits: Tensor = self.module(shown)
        return logits

    def _count(self, gradient: Tensor) -> None:
        self.passes.backward += len(gradient)

    def taken(self) -> tuple[int, int]:
        """Passes with gradient and without since the last time."""
        passes, self.passes = self.passes, Passes()
        return passes.backward, passes.forward - passes.backward


def measure_autoattack(settings: Settings) -> Measurement:
    """Time both, and compare verdicts."""
    watch = Stopwatch()  # before our own work makes a load
    model, images, labels = scene(settings)
    budget = LinfBall(float(fraction(settings.epsilon or RADIUS)))
    stages = AutoAttack().stages()
    classifier = Classifier(model)
    size = best_size(classifier, images)
    ruler = Ruler(quicken(classifier, images[: cpu_slots(images)]).classifier, classifier, images)
    ours: list[list[_StageRun]] = []
    theirs: list[list[_StageRun]] = []
    overheads = []
    for seed in range(settings.repeats):
        began = time.perf_counter()
        faster = quicken(Classifier(model), images[: cpu_slots(images)])
        copying = time.perf_counter() - began
        runs = _ours(stages, model, faster.classifier, images, labels, budget, seed, ruler)
        ours.append(runs)
        driving = sum(run.seconds for run in runs)
        watch.time("ours", copying + driving)
        overheads.append(driving / sum(run.bare for run in runs))
        theirs.append(_theirs(stages, model, images, labels, budget, seed, size))
        watch.time("reference", sum(run.seconds for run in theirs[-1]))
    robust = [[runs[-1].robust for runs in each] for each in (ours, theirs)]
    shares = [float(torch.stack(each).double().mean()) for each in robust]
    differ = [int((one != other).sum()) for one, other in zip(*robust, strict=True)]
    return Measurement(
        name="autoattack",
        model=settings.model,
        examples=len(images),
        ours_seconds=watch.median("ours"),
        theirs_seconds=watch.median("reference"),
        ours_robust=shares[0],
        theirs_robust=shares[1],
        verdicts_differ=sum(differ) / len(differ),
        overhead=sorted(overheads)[len(overheads) // 2],
        details={
            "against": "reference",
            "epsilon": settings.epsilon or RADIUS,
            "repeats": settings.repeats,
            "their_batch_size": size,
            "fast_path": list(faster.measures),
            "threads": torch.get_num_threads(),
            "stages": _table(ours, theirs),
        },
        doubts=watch.doubts(),
    )


def _ours(
    stages: tuple[Attack, ...],
    model: nn.Module,
    faster: Classifier,
    images: Tensor,
    labels: Tensor,
    budget: Ball,
    seed: int,
    ruler: Ruler,
) -> list[_StageRun]:
    robust = torch.ones(len(images), dtype=torch.bool)
    runs = []
    everything, own = examples_of(images, labels), Classifier(model)
    slots = cpu_slots(images)
    for stage in stages:
        own.passes, faster.passes = Passes(), Passes()
        source = [example for example in everything if robust[example.index]]
        settings: Any = {"budget": budget, "seed": seed, "slots": slots, "confirm": own, "on_left": ruler}
        ruler.restart()
        for finished in drive([Stage(stage)], faster, source, **settings):
            robust[finished.index] = finished.clean_prediction == finished.label and not finished.fooled_at
        seconds, pace = ruler.stop()
        gradients, confirmations = faster.passes.backward, own.passes.forward
        lookups = faster.passes.forward - gradients
        bare = pace.seconds(gradients, lookups, confirmations)
        runs.append(_StageRun(stage.name, robust.clone(), seconds, gradients, lookups + confirmations, bare))
    return runs


def _theirs(
    stages: tuple[Attack, ...],
    model: nn.Module,
    images: Tensor,
    labels: Tensor,
    budget: Ball,
    seed: int,
    size: int,
) -> list[_StageRun]:
    found, counted = [], _Counted(model)
    began = time.perf_counter()
    for verdict in attack_by_reference(stages, counted, images, labels, budget=budget, seed=seed, batch_size=size):
        now = time.perf_counter()
        found.append(_StageRun(verdict.stage, verdict.robust.clone(), now - began, *counted.taken()))
        began = time.perf_counter()
    model.zero_grad()  # FAB's reference leaves gradients in the parameters
    return found


def _table(ours: list[list[_StageRun]], theirs: list[list[_StageRun]]) -> list[dict[str, Any]]:
    """Means over the repeats, stage by stage."""
    table = []
    for mine, other in zip(zip(*ours, strict=True), zip(*theirs, strict=True), strict=True):
        line: dict[str, Any] = {"stage": mine[0].name}
        line["ours_survivors"] = _mean([int(run.robust.sum()) for run in mine])
        line["theirs_survivors"] = _mean([int(run.robust.sum()) for run in other])
        pairs = zip(mine, other, strict=True)
        line["verdicts_differ"] = _mean([int((run.robust != peer.robust).sum()) for run, peer in pairs])
        line["ours_seconds"] = _mean([run.seconds for run in mine])
        line["theirs_seconds"] = _mean([run.seconds for run in other])
        bare = sum(run.bare for run in mine)
        line["ratio"] = line["theirs_seconds"] / line["ours_seconds"] if bare else None  # None: nothing came so far
        line["overhead"] = sum(run.seconds for run in mine) / bare if bare else None
        for side, runs in (("ours", mine), ("theirs", other)):
            line[f"{side}_gradient_passes"] = _mean([run.gradients for run in runs])
            line[f"{side}_label_passes"] = _mean([run.labels for run in runs])
        table.append(line)
    return table


def _mean(values: Sequence[float]) -> float:
    return sum(values) / len(values)
