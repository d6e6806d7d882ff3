"""APGD under the reference's own noise: the same verdicts, example by example, at three radii.

Not here: how the noise is replayed (`replay`), and what seeds do (`equivalence`).
"""

import itertools
import time
from typing import Any

import torch

from robench.attacks.apgd import APGD
from robench.attacks.reference import attack_by_reference
from robench.bench.measurement import Measurement, Settings
from robench.bench.replay import replay
from robench.bench.scene import RADIUS, scene
from robench.budgets import LinfBall
from robench.losses import margin
from robench.protocol import fraction

CLOSE = 1e-5
"""Margins below this, in logits, are decided by rounding: verdicts that differ there are counted apart."""


def measure_parity(settings: Settings) -> Measurement:
    """Replay APGD-CE and APGD-T beside the reference; neither sees the faster copy of the model."""
    model, images, labels = scene(settings)
    middle = fraction(settings.epsilon or RADIUS)
    seconds = {"ours": 0.0, "reference": 0.0}
    robust = {"ours": 0, "reference": 0}
    lines: list[dict[str, Any]] = []
    attacks = (APGD(), APGD(targets=9))
    cases = list(itertools.product((middle / 2, middle, 2 * middle), attacks, range(settings.repeats)))
    for epsilon, attack, seed in cases:
        budget = LinfBall(float(epsilon))
        began = time.perf_counter()
        ours = replay(attack, model, images, labels, budget, seed)
        replayed = time.perf_counter()
        (theirs,) = attack_by_reference(
            [attack], model, images, labels, budget=budget, seed=seed, batch_size=len(images)
        )
        seconds["ours"] += replayed - began
        seconds["reference"] += time.perf_counter() - replayed
        robust["ours"] += int(ours.robust.sum())
        robust["reference"] += int(theirs.robust.sum())
        with torch.no_grad():
            found = margin(model(theirs.images), labels)  # of the image that fooled, else of the clean one
        differ = ours.robust != theirs.robust
        close = torch.minimum(ours.lowest.abs(), found.abs()) < CLOSE
        lines.append(
            {
                "epsilon": str(epsilon),
                "stage": attack.name,
                "seed": seed,
                "ours_robust": int(ours.robust.sum()),
                "theirs_robust": int(theirs.robust.sum()),
                "differ": int((differ & ~close).sum()),
                "differ_within_rounding": int((differ & close).sum()),
            }
        )
    looks = len(cases) * len(images)
    return Measurement(
        name="parity",
        model=settings.model,
        examples=len(images),
        ours_seconds=seconds["ours"],
        theirs_seconds=seconds["reference"],
        ours_robust=robust["ours"] / looks,
        theirs_robust=robust["reference"] / looks,
        verdicts_differ=float(sum(line["differ"] for line in lines)),
        overhead=None,
        details={"against": "reference", "repeats": settings.repeats, "close": CLOSE, "runs": lines},
    )
