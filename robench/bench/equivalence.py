"""AutoAttack and its reference under several seeds: do they differ more than the reference from itself?

Both draw random numbers, each its own, so that verdicts near the boundary change from seed to seed on
either side. What counts is whether a change of implementation changes more of them than a change of seed.
Every run is kept in a folder if one is given, and not done again: the whole takes hours. Not here: times.
"""

import hashlib
import itertools
import json
import math
import time
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path

import torch
from torch import Tensor, nn

from robench.arrays import state_digest
from robench.attacks import REVISION
from robench.attacks.autoattack import AutoAttack
from robench.attacks.drive import Stage, drive
from robench.attacks.interface import Attack
from robench.attacks.reference import attack_by_reference
from robench.bench.measurement import Measurement, Settings
from robench.bench.scene import RADIUS, examples_of, scene
from robench.budgets import Ball, LinfBall
from robench.classifier import Classifier
from robench.errors import DataError, complaint
from robench.fastpath import cpu_slots, quicken
from robench.protocol import fraction

MARGIN = 0.01
"""Share of the examples by which ours may differ from the reference more often than the reference from itself."""
ABOVE = 0.004
"""By how much the share that ours leaves robust may lie above the reference's, in the mean over seeds."""
RESAMPLES = 10_000
LEVEL = 0.95


def measure_equivalence(settings: Settings) -> Measurement:
    """Run both under as many seeds as there are repeats, at least two, and compare all pairs of runs."""
    if settings.repeats < 2:
        found = f"{settings.repeats}"
        raise DataError(complaint("robench bench equivalence", "repeats", found, "at least 2 seeds to compare"))
    model, images, labels = scene(settings)
    epsilon = settings.epsilon or RADIUS
    budget, stages = LinfBall(float(fraction(epsilon))), AutoAttack().stages()
    sides: dict[str, Callable[[int], Tensor]] = {
        "ours": lambda seed: _ours(stages, model, images, labels, budget, seed),
        "reference": lambda seed: _theirs(stages, model, images, labels, budget, seed),
    }
    # The reference's verdicts depend on its batch: one size for all runs, whatever is fastest today.
    size = cpu_slots(images)
    about = f"{settings.model}|{state_digest(model.state_dict())}|{size}|{len(images)}|{epsilon}|{stages!r}|{REVISION}"
    runs: dict[str, list[list[bool]]] = {side: [] for side in sides}
    for seed, (side, verdicts) in itertools.product(range(settings.repeats), sides.items()):
        runs[side].append(_kept(settings.folder, f"{about}|{side}|{seed}", partial(verdicts, seed)))
    ours, theirs = (torch.tensor(runs[side]) for side in sides)
    between, within = disagreement(ours, theirs), disagreement(theirs, theirs)
    bound = upper_bound(between - within)
    accuracy = [float(each.double().mean()) for each in (ours, theirs)]
    return Measurement(
        name="equivalence",
        model=settings.model,
        examples=len(images),
        ours_seconds=math.nan,  # runs are kept from any time, idle or not
        theirs_seconds=math.nan,
        ours_robust=accuracy[0],
        theirs_robust=accuracy[1],
        verdicts_differ=float(between.sum()),
        overhead=None,
        details={
            "against": "reference",
            "epsilon": epsilon,
            "seeds": settings.repeats,
            "their_verdicts_differ": float(within.sum()),
            "our_verdicts_differ": float(disagreement(ours, ours).sum()),
            "robust_above_theirs": accuracy[0] - accuracy[1],
            "differ_more": float((between - within).mean()),
            "differ_more_at_most": bound,
            "equivalent": bound <= MARGIN and accuracy[0] - accuracy[1] <= ABOVE,
            "ours_robust_by_seed": ours.sum(dim=1).tolist(),
            "theirs_robust_by_seed": theirs.sum(dim=1).tolist(),
            "pairs_between": _pairs(ours, theirs),
            "pairs_within": _pairs(theirs, theirs),
        },
    )


def disagreement(one: Tensor, other: Tensor) -> Tensor:
    """Share of the pairs of runs that differ, example by example, shape (N,).

    Args:
      one, other: verdicts, bool, shape (runs, N). Where both are the same runs, none is paired with itself.
    """
    differ = (one[:, None] != other[None]).double()
    pairs = len(one) * len(other) - (len(one) if one is other else 0)
    return differ.sum(dim=(0, 1)) / pairs


def upper_bound(values: Tensor) -> float:
    """One-sided 95 % bound of the mean of what was found on each example, by bootstrap over examples.

    References:
      Efron 1979, Annals of Statistics 7(1): the percentile bootstrap. Deviates: none.
    """
    generator = torch.Generator().manual_seed(0)
    rows = torch.randint(len(values), (RESAMPLES, len(values)), generator=generator)
    return float(values[rows].mean(dim=1).quantile(LEVEL))


def _pairs(one: Tensor, other: Tensor) -> list[list[int]]:
    """Number of verdicts that differ between each run of one side and each of the other."""
    counts: list[list[int]] = (one[:, None] != other[None]).sum(dim=2).tolist()
    return counts


def _ours(
    stages: Sequence[Attack], model: nn.Module, images: Tensor, labels: Tensor, budget: Ball, seed: int
) -> Tensor:
    own = Classifier(model)
    faster = quicken(own, images[: cpu_slots(images)]).classifier
    source = examples_of(images, labels)
    robust = torch.zeros(len(images), dtype=torch.bool)
    cascade = [Stage(stage) for stage in stages]
    for finished in drive(cascade, faster, source, budget=budget, seed=seed, slots=cpu_slots(images), confirm=own):
        robust[finished.index] = finished.clean_prediction == finished.label and not finished.fooled_at
    return robust


def _theirs(
    stages: Sequence[Attack], model: nn.Module, images: Tensor, labels: Tensor, budget: Ball, seed: int
) -> Tensor:
    *_, last = attack_by_reference(
        stages, model, images, labels, budget=budget, seed=seed, batch_size=cpu_slots(images)
    )
    model.zero_grad()  # FAB's reference leaves gradients in the parameters
    return last.robust


def _kept(folder: Path | None, key: str, run: Callable[[], Tensor]) -> list[bool]:
    """Which examples a run left robust: read from the folder if it was done before, else done and written there."""
    path = folder / f"{hashlib.sha256(key.encode()).hexdigest()[:16]}.json" if folder is not None else None
    if path is not None and path.exists():
        content = json.loads(path.read_text(encoding="utf-8"))
        return [bool(robust) for robust in content["robust"]]
    began = time.perf_counter()
    robust = run()
    seconds = time.perf_counter() - began
    if path is not None:
        path.parent.mkdir(parents=True, exist_ok=True)
        partial = path.with_suffix(".partial")
        partial.write_text(json.dumps({"run": key, "seconds": seconds, "robust": robust.int().tolist()}))
        partial.replace(path)
    found: list[bool] = robust.tolist()
    return found
