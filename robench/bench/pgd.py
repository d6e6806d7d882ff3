"""PGD beside foolbox's `LinfPGD`: the same model, images, radius, step size and steps, in one process.

foolbox runs every image through every step and scores the last iterate; the driver lets go of an image
once it is fooled and confirmed. Both get their best batch size. foolbox is timed a second time on our
faster copy of the model, so that what batching gives and what the copy gives are seen apart.
"""

import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass
from fractions import Fraction
from typing import Any

import torch
from torch import Tensor, nn

from robench.attacks.drive import Stage, drive
from robench.attacks.pgd import PGD
from robench.bench.measurement import Measurement, Settings, Stopwatch
from robench.bench.ruler import Pace, Ruler, best_size
from robench.bench.scene import examples_of, scene
from robench.budgets import LinfBall
from robench.classifier import Classifier, Passes
from robench.errors import DataError, complaint
from robench.fastpath import cpu_slots, quicken
from robench.protocol import fraction

STEPS = 40
"""foolbox's default."""
SURVIVORS = (0.60, 0.75)
"""Share of the images that should survive, so that neither early ends nor full lengths decide alone."""


def measure_pgd(settings: Settings) -> Measurement:
    """Time both, and compare verdicts."""
    watch = Stopwatch()  # before our own work makes a load
    model, images, labels = scene(settings)
    classifier = Classifier(model, name=settings.model)
    quick = quicken(classifier, images[: cpu_slots(images)])
    ruler = Ruler(quick.classifier, classifier, images)
    epsilon = _radius(settings, model, images, labels, ruler)
    assert quick.classifier.module is not None, "a bench runs on modules"
    sizes = [best_size(each, images) for each in (classifier, quick.classifier)]
    peers = {"foolbox": (model, sizes[0]), "foolbox on the fast path": (quick.classifier.module, sizes[1])}
    robust: dict[str, list[Tensor]] = {"ours": [], **{name: [] for name in peers}}
    overheads = []
    for seed in range(settings.repeats):
        run = _ours(model, images, labels, epsilon, seed, ruler)
        watch.time("ours", run.copying + run.driving)
        robust["ours"].append(run.robust)
        overheads.append(run.driving / run.pace.seconds(run.faster.backward, 0, run.own.forward))
        for name, (network, size) in peers.items():
            began = time.perf_counter()
            verdict = _foolbox(network, images, labels, epsilon, seed, size)
            watch.time(name, time.perf_counter() - began)
            robust[name].append(verdict)
    differ = [int((one != other).sum()) for one, other in zip(robust["ours"], robust["foolbox"], strict=True)]
    return Measurement(
        name="pgd",
        model=settings.model,
        examples=len(images),
        ours_seconds=watch.median("ours"),
        theirs_seconds=watch.median("foolbox"),
        ours_robust=_mean(robust["ours"]),
        theirs_robust=_mean(robust["foolbox"]),
        verdicts_differ=statistics.mean(differ),
        overhead=statistics.median(overheads),
        details={
            "against": "foolbox",
            "epsilon": str(epsilon),
            "step_size": str(_step_size(epsilon)),
            "steps": STEPS,
            "repeats": settings.repeats,
            "theirs_seconds_on_fast_path": watch.median("foolbox on the fast path"),
            "theirs_robust_on_fast_path": _mean(robust["foolbox on the fast path"]),
            "ratio_on_fast_path": watch.median("foolbox on the fast path") / watch.median("ours"),
            "their_batch_sizes": sizes,
            "fast_path": list(quick.measures),
            "threads": torch.get_num_threads(),
        },
        doubts=watch.doubts(),
    )


def _radius(settings: Settings, model: nn.Module, images: Tensor, labels: Tensor, ruler: Ruler) -> Fraction:
    """The radius asked for, or one found by halving, in steps of 1/1020, under which enough survive."""
    if settings.epsilon is not None:
        return fraction(settings.epsilon)
    low, high = 0, 64
    while high - low > 1:
        middle = (low + high) // 2
        run = _ours(model, images, labels, Fraction(middle, 1020), 0, ruler)
        share = float(run.robust.float().mean())
        if SURVIVORS[0] <= share <= SURVIVORS[1]:
            return Fraction(middle, 1020)
        low, high = (middle, high) if share > SURVIVORS[1] else (low, middle)
    expected = f"a radius under which {SURVIVORS[0]:.0%} to {SURVIVORS[1]:.0%} survive"
    raise DataError(complaint("robench bench pgd", "epsilon", "none", expected, "Give `--epsilon`."))


def _step_size(epsilon: Fraction) -> Fraction:
    """A quarter of the radius, as in `mini-pgd-linf`."""
    return epsilon / 4


@dataclass(frozen=True)
class _Ours:
    """One run of ours: which examples are robust, passes of either model, seconds, and what bare passes took."""

    robust: Tensor
    own: Passes
    faster: Passes
    copying: float
    driving: float
    pace: Pace


def _ours(model: nn.Module, images: Tensor, labels: Tensor, epsilon: Fraction, seed: int, ruler: Ruler) -> _Ours:
    source = examples_of(images, labels)
    robust = torch.zeros(len(images), dtype=torch.bool)
    began = time.perf_counter()
    own = Classifier(model)
    faster = quicken(own, images[: cpu_slots(images)]).classifier
    copying = time.perf_counter() - began
    for each in (own, faster):
        each.passes = Passes()
    stage = Stage(PGD(step_size=float(_step_size(epsilon)), steps=STEPS))
    budget, slots = LinfBall(float(epsilon)), cpu_slots(images)
    ruler.restart()
    for finished in drive([stage], faster, source, budget=budget, seed=seed, slots=slots, confirm=own, on_left=ruler):
        robust[finished.index] = finished.clean_prediction == finished.label and not finished.fooled_at
    driving, pace = ruler.stop()
    return _Ours(robust, own.passes, faster.passes, copying, driving, pace)


def _foolbox(model: nn.Module, images: Tensor, labels: Tensor, epsilon: Fraction, seed: int, size: int) -> Tensor:
    """Which examples are robust against foolbox's attack."""
    attack, wrap = _peer()
    network = wrap(model)
    verdicts = []
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        for part, targets in zip(torch.split(images, size), torch.split(labels, size), strict=True):
            _, _, fooled = attack(float(_step_size(epsilon)))(network, part, targets, epsilons=float(epsilon))
            verdicts.append(~fooled)
    model.zero_grad()  # foolbox leaves gradients in the parameters
    return torch.cat(verdicts)


def _peer() -> tuple[Callable[[float], Any], Callable[[nn.Module], Any]]:
    """foolbox's attack by its step size, and its model around a module."""
    try:
        import foolbox
    except ImportError as error:
        advice = "Install it: `pip install foolbox`."
        raise DataError(complaint("robench bench pgd", "foolbox", "not installed", "the peer", advice)) from error

    def attack(step_size: float) -> Any:
        return foolbox.attacks.LinfPGD(abs_stepsize=step_size, steps=STEPS, random_start=True)

    def wrap(model: nn.Module) -> Any:
        return foolbox.PyTorchModel(model, bounds=(0, 1), device="cpu")

    return attack, wrap


def _mean(verdicts: list[Tensor]) -> float:
    return float(torch.stack(verdicts).double().mean())
