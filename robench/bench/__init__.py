"""The figures this project claims about itself, each measured beside a peer in one process.

A bench is one file and one line here. Not here: figures about models (`robench.evaluation`).
"""

from collections.abc import Callable
from dataclasses import dataclass

from robench.bench.autoattack import measure_autoattack
from robench.bench.corruptions import measure_corruptions
from robench.bench.equivalence import measure_equivalence
from robench.bench.measurement import Measurement, Settings
from robench.bench.parity import measure_parity
from robench.bench.pgd import measure_pgd
from robench.bench.tpa import measure_tpa
from robench.bench.training import measure_training

__all__ = ["CATALOGUE", "Bench", "Measurement", "Settings"]


@dataclass(frozen=True)
class Bench:
    """A figure that can be measured again.

    Attributes:
      claim: what is measured, one line.
      against: the peer.
      models: what it is usually measured on.
      images: on how many images at most, unless said otherwise.
      run: measures it.
    """

    claim: str
    against: str
    models: tuple[str, ...]
    images: int
    run: Callable[[Settings], Measurement]


CATALOGUE = {
    "autoattack": Bench(
        claim="Seconds and survivors of AutoAttack, stage by stage, beside its reference implementation",
        against="reference",
        models=("mini-resnet-gelu-adv", "mini-resnet-adv", "mini-deit-adv"),
        images=128,
        run=measure_autoattack,
    ),
    "corruptions": Bench(
        claim="Seconds of the fifteen corruptions at severity 3, one process per core, beside imagecorruptions",
        against="imagecorruptions",
        models=("photographs",),
        images=200,
        run=measure_corruptions,
    ),
    "equivalence": Bench(
        claim="Whether AutoAttack differs from its reference more than that from itself, over seeds (hours)",
        against="reference",
        models=("mini-resnet-gelu-adv", "mini-resnet-adv", "mini-deit-adv"),
        images=256,
        run=measure_equivalence,
    ),
    "parity": Bench(
        claim="Verdicts of APGD that differ from the reference's under its own noise, at three radii",
        against="reference",
        models=("mini-resnet-gelu-adv", "mini-resnet-adv", "mini-deit-adv"),
        images=256,
        run=measure_parity,
    ),
    "pgd": Bench(
        claim="Seconds of PGD with steps read off from one run, beside foolbox's LinfPGD",
        against="foolbox",
        models=("mini-resnet-adv", "mini-resnet-gelu-adv", "mini-deit-adv", "photographs:resnet50"),
        images=512,
        run=measure_pgd,
    ),
    "tpa": Bench(
        claim="Seconds of TPA beside a loop over images and pastes, and its queries beside the model's bare rate",
        against="loop",
        models=("mini-resnet", "linear", "mini-deit", "photographs:resnet50"),
        images=64,
        run=measure_tpa,
    ),
    "training": Bench(
        claim="Images a second of training, clean and against one step, beside a bare loop without a framework",
        against="bare",
        models=("mini-resnet", "photographs:resnet50"),
        images=3200,
        run=measure_training,
    ),
}
"""Benches by name."""
