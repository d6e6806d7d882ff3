"""TPA beside a loop over images and pastes, as it was published: seconds, verdicts, and the share of the model's rate.

Ours lets go of an image at its first confirmed success; the published loop goes on for at least three rounds of
every patch. So the loop is timed a second time with an end at the first success, and what batching gives and what
stopping gives are seen apart. Both look at the faster copy of the model.
"""

import statistics
from dataclasses import dataclass

import torch
from torch import Tensor

from robench.attacks.drive import Stage, drive
from robench.attacks.tpa import TPA
from robench.bench.measurement import Measurement, Settings, Stopwatch
from robench.bench.patch_loop import LEAST_ROUNDS, attack_by_loop
from robench.bench.ruler import Pace, Ruler
from robench.bench.scene import examples_of, scene
from robench.budgets import PatchArea
from robench.classifier import Classifier, Passes
from robench.data.textures import mini_textures
from robench.errors import DataError, complaint
from robench.fastpath import cpu_slots, quicken, slots_for

BUDGET = PatchArea(1 / 25, patches=1)
ROUNDS, QUERIES = 25, 100
"""As in `mini-tpa`."""


def measure_tpa(settings: Settings) -> Measurement:
    """Time both, and compare verdicts."""
    if settings.epsilon is not None:
        raise DataError(complaint("robench bench tpa", "epsilon", settings.epsilon, "none: patches have no radius"))
    watch = Stopwatch()  # before our own work makes a load
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    model, images, labels = scene(settings)
    model, images, labels = model.to(device), images.to(device), labels.to(device)
    attack = TPA("mini", mini_textures().sha256, rounds=ROUNDS, queries=QUERIES, patches=BUDGET.patches)
    own = Classifier(model, name=settings.model)
    faster = quicken(own, images[: cpu_slots(images)], gradients=False)
    assert faster.classifier.module is not None, "a bench runs on modules"
    slots = slots_for(faster.classifier, images, gradients=False)
    ruler = Ruler(faster.classifier, own, images, gradients=False)
    peers = {"loop": LEAST_ROUNDS, "loop that stops at once": 1}
    robust: dict[str, list[Tensor]] = {"ours": [], **{name: [] for name in peers}}
    shares, rates, queries = [], [], []
    for seed in range(settings.repeats):
        run = _ours(attack, faster.classifier, own, images, labels, seed, slots, ruler)
        watch.time("ours", run.seconds)
        robust["ours"].append(run.robust)
        queries.append(run.queries)
        shares.append(run.pace.seconds(0, run.queries, run.confirmations) / run.seconds)
        rates.append(1 / run.pace.labels)
        for name, least in peers.items():
            network = faster.classifier.module
            loop = attack_by_loop(attack, network, images, labels, BUDGET, seed=seed, least=least)
            watch.time(name, loop.seconds)
            robust[name].append(loop.robust.cpu())
    differ = [int((one != other).sum()) for one, other in zip(robust["ours"], robust["loop"], strict=True)]
    return Measurement(
        name="tpa",
        model=settings.model,
        examples=len(images),
        ours_seconds=watch.median("ours"),
        theirs_seconds=watch.median("loop"),
        ours_robust=_mean(robust["ours"]),
        theirs_robust=_mean(robust["loop"]),
        verdicts_differ=statistics.mean(differ),
        overhead=1 / statistics.median(shares),
        details={
            "against": "loop",
            "repeats": settings.repeats,
            "queries": statistics.median(queries),
            "queries_per_second": statistics.median(queries) / watch.median("ours"),
            "forward_rate": statistics.median(rates),
            "share_of_forward_rate": statistics.median(shares),
            "seconds_of_a_loop_that_stops_at_once": watch.median("loop that stops at once"),
            "ratio_to_a_loop_that_stops_at_once": watch.median("loop that stops at once") / watch.median("ours"),
            "device": device.type,
            "slots": slots,
            "fast_path": list(faster.measures),
            "threads": torch.get_num_threads(),
        },
        doubts=watch.doubts(),
    )


@dataclass(frozen=True)
class _Ours:
    """Which examples are robust, how many images either model was shown, seconds, and what bare passes took."""

    robust: Tensor
    queries: int
    confirmations: int
    seconds: float
    pace: Pace


def _ours(
    attack: TPA,
    faster: Classifier,
    own: Classifier,
    images: Tensor,
    labels: Tensor,
    seed: int,
    slots: int,
    ruler: Ruler,
) -> _Ours:
    source = examples_of(images, labels)
    robust = torch.zeros(len(images), dtype=torch.bool)
    for each in (own, faster):
        each.passes = Passes()
    stages = [Stage(attack)]
    ruler.restart()
    for finished in drive(stages, faster, source, budget=BUDGET, seed=seed, slots=slots, confirm=own, on_left=ruler):
        robust[finished.index] = finished.clean_prediction == finished.label and not finished.fooled_at
    seconds, pace = ruler.stop()
    return _Ours(robust, faster.passes.forward, own.passes.forward, seconds, pace)


def _mean(verdicts: list[Tensor]) -> float:
    return float(torch.stack(verdicts).double().mean())
