"""What an evaluation would cost at most, from its attacks' own counts and a few timed batches.

Not here: the evaluation (`evaluation`), and what it did cost (`cost.json` of a run).
"""

import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from robench.classifier import naming_failures
from robench.data import Views, check_there
from robench.door import first_examples
from robench.fastpath import pass_rate, repeated
from robench.preparation import Options, Prepared, Request, check_numbers, needs_gradients, one_at_a_time, prepared
from robench.registry import resolve

CLEAN_EXAMPLES = 64
"""Examples on which clean accuracy is looked at."""
READ_EXAMPLES = 16
"""Examples whose views are read to see how long that takes."""


@dataclass(frozen=True)
class StageEstimate:
    """What a stage costs if every example that the model gets right survives it.

    Attributes:
      stage: name of the attack, or `clean`; `asking`, where the model is asked many times in the end.
      gradients, labels: passes with and without gradient, of all examples together.
      seconds: of wall time.
    """

    stage: str
    gradients: int
    labels: int
    seconds: float


@dataclass(frozen=True)
class Estimate:
    """What an evaluation would cost at most; fooled examples end early, so it mostly costs less.

    Attributes:
      model, protocol: their names.
      examples: how many would be evaluated.
      clean: share that the model got right of the first ones.
      slots: examples attacked at a time, as timed.
      gradient_rate, label_rate: images per second with and without gradient; the first is None if no attack asks.
      single_rate: the same for one image at a time, without gradient; None if no attack looks so.
      stages: the clean pass first.
    """

    model: str
    protocol: str
    examples: int
    clean: float
    slots: int
    gradient_rate: float | None
    label_rate: float
    stages: tuple[StageEstimate, ...]
    single_rate: float | None = None

    @property
    def seconds(self) -> float:
        """All stages together."""
        return sum(stage.seconds for stage in self.stages)


def estimate(
    model: Any,
    protocol: str | Path,
    *,
    data: Any = None,
    limit: int | None = None,
    device: str | torch.device | None = None,
    batch_size: int | None = None,
    options: Options | None = None,
) -> Estimate:
    """Time a few batches, and say what `robench.evaluate` with these arguments would cost at most.

    Nothing is attacked or written.

    Args:
      model, protocol, data, limit, device, batch_size, options: as in `robench.evaluate`.
    Raises:
      ProtocolError, ModelError, DataError, RunError: as there.
    """
    registered = resolve(protocol)
    if data is None:
        check_there(registered.protocol.data.source)
    request = Request(model, data, limit, device, batch_size, options or Options())
    check_numbers(request)
    with naming_failures(), prepared(request, registered) as scene:
        return _of(scene)


def _of(scene: Prepared) -> Estimate:
    faster, count = scene.fast.classifier, scene.plan.data.count
    rows = repeated(scene.batch, scene.slots).to(faster.device)
    gradient_rate = pass_rate(faster, rows) if needs_gradients(scene.stages) else None
    label_rate = pass_rate(faster, rows, gradients=False)
    single_rate = None
    if one_at_a_time(scene.stages):
        with faster.unpadded():
            single_rate = pass_rate(faster, rows[:1], gradients=False)
    clean = _clean_share(scene)
    asks, attack = scene.protocol.score.asks, scene.protocol.attack
    draws = (attack.draws if attack is not None else None) or 1
    attacked = round(clean * count) if asks is None else count
    views = len(scene.source.view_names) if isinstance(scene.source, Views) else 1
    looks = count * views if asks is None else count * draws
    stages = [StageEstimate("clean", 0, looks, looks / label_rate + _reading_seconds(scene))]
    for stage in scene.stages:
        with_gradient, without = (attacked * draws * passes for passes in stage.attack.most_passes)
        seconds = without / (single_rate or label_rate) + (with_gradient / gradient_rate if gradient_rate else 0)
        stages.append(StageEstimate(stage.attack.name, with_gradient, without, seconds))
    if asks is not None:
        answers = count * (draws * (1 + len(scene.stages)) + 2 * asks)
        stages.append(StageEstimate("asking", 0, answers, answers / label_rate))
    return Estimate(
        model=scene.classifier.name,
        protocol=scene.protocol.exact_name,
        examples=count,
        clean=clean,
        slots=scene.slots,
        gradient_rate=gradient_rate,
        label_rate=label_rate,
        stages=tuple(stages),
        single_rate=single_rate,
    )


def _reading_seconds(scene: Prepared) -> float:
    """How long it takes to read, or make, the views of all examples; nothing where each is seen once."""
    if not isinstance(scene.source, Views):
        return 0.0
    few = min(READ_EXAMPLES, scene.plan.data.count)
    began = time.perf_counter()
    for _ in scene.source.views(range(few)):
        pass
    return (time.perf_counter() - began) / few * scene.plan.data.count


def _clean_share(scene: Prepared) -> float:
    classifier = scene.classifier
    images, labels = first_examples(scene.source, min(CLEAN_EXAMPLES, scene.plan.data.count), classifier.device)
    logits = torch.cat([classifier.logits(part) for part in torch.split(images, 32)])
    return float((logits.argmax(dim=1) == labels).double().mean())
