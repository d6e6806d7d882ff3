"""AutoAttack by its reference implementation, `pyautoattack`, stage by stage: the yardstick of our own.

It owns its loop and its random numbers, so there is no resuming inside it, and outcomes depend on the
batch. Not here: our own stages (`autoattack.py`), and what is done with the outcomes.
"""

from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from robench.attacks.apgd import APGD
from robench.attacks.fab import FAB
from robench.attacks.interface import Attack
from robench.attacks.record import Example, Finished, Record
from robench.attacks.square import Square
from robench.budgets import TOLERANCE, Budget, L2Ball, LinfBall
from robench.classifier import Classifier
from robench.errors import BudgetError, ModelError, RunError, complaint
from robench.losses import margin

NORMS: dict[type, str] = {LinfBall: "Linf", L2Ball: "L2"}


@dataclass(frozen=True)
class Verdict:
    """What a stage of the reference left.

    Attributes:
      stage: its name.
      robust: which examples are still robust after it, bool, shape (N,).
      images: the adversarial image of each example that fell in it, else the clean one, shape (N, 3, H, W).
    """

    stage: str
    robust: Tensor
    images: Tensor


def check_reference(stages: Sequence[Attack]) -> None:
    """Check that the reference has these attacks, before anything runs.

    Raises:
      RunError: it has not, or pyautoattack is not installed.
    """
    for stage in stages:
        _peer(stage, {"norm": "Linf", "eps": 0.0, "seed": 0, "device": "cpu"})


def drive_by_reference(
    stages: Sequence[Attack],
    classifier: Classifier,
    source: Iterable[Example],
    *,
    budget: Budget,
    seed: int,
    batch_size: int,
) -> Generator[Finished, None, None]:
    """Attack every example of a source by the reference implementation; all outcomes come at the end.

    The steps at which examples fell are not known: `fooled_at` is 0 for those that did. An image counts when
    it lies inside the budget and the classifier, asked again, is fooled.

    Args:
      stages, budget, seed, batch_size: as in `attack_by_reference`.
      classifier: around a module.
      source: examples; all images are held in memory.
    Raises:
      ModelError: the model is no module.
      RunError, BudgetError: as in `attack_by_reference`.
    """
    if classifier.module is None:
        advice = "Hand in a `torch.nn.Module`, or use our own attacks."
        raise ModelError(complaint(classifier.name, "model", "a bare callable", "a module for the reference", advice))
    examples = list(source)
    if not examples:
        return
    device = classifier.device
    images = torch.stack([example.image for example in examples]).to(device)
    labels = torch.tensor([example.label for example in examples], device=device)
    logits = _logits(classifier, images, batch_size)
    predictions, margins = logits.argmax(dim=1).tolist(), margin(logits, labels).tolist()
    records = [
        Record(example, logits[row], predictions[row], margins[row], predictions[row], margins[row])
        for row, example in enumerate(examples)
    ]
    before = logits.argmax(dim=1) == labels
    with classifier.frozen():
        found = attack_by_reference(
            stages, classifier.module, images, labels, budget=budget, seed=seed, batch_size=batch_size
        )
        for verdict in found:
            fell = (before & ~verdict.robust).nonzero()[:, 0]
            _claim(classifier, [records[row] for row in fell.tolist()], verdict, fell, images, labels, budget)
            before = verdict.robust
    yield from (record.finished() for record in records)


def _logits(classifier: Classifier, images: Tensor, batch_size: int) -> Tensor:
    return torch.cat([classifier.logits(part) for part in torch.split(images, batch_size)])


def _claim(
    classifier: Classifier,
    records: list[Record],
    verdict: Verdict,
    rows: Tensor,
    clean: Tensor,
    labels: Tensor,
    budget: Budget,
) -> None:
    """Note what fell in a stage, if it lies inside the budget and fools the classifier."""
    if not records:
        return
    images = verdict.images[rows]
    logits = _logits(classifier, images, 64)
    inside = budget.excess(images, clean[rows]) <= TOLERANCE
    fooled = (logits.argmax(dim=1) != labels[rows]) & inside
    margins = margin(logits, labels[rows])
    for row, record in enumerate(records):
        if bool(fooled[row]):
            record.stage, record.fooled_at, record.adversarial = verdict.stage, [0], images[row].clone()
            record.attacked_prediction, record.attacked_margin = int(logits[row].argmax()), float(margins[row])
        else:
            record.unconfirmed += 1


def attack_by_reference(
    stages: Sequence[Attack],
    model: nn.Module,
    images: Tensor,
    labels: Tensor,
    *,
    budget: Budget,
    seed: int,
    batch_size: int,
) -> Iterator[Verdict]:
    """Run the reference's implementation of these stages, each on what the ones before it left.

    Args:
      stages: of `AutoAttack`; their settings are handed on.
      model: in eval mode; gradients may be left in its parameters.
      images: float32 in [0, 1], shape (N, 3, H, W), on the model's device.
      labels: int64, shape (N,).
      budget: an L-inf or L2 ball.
      seed: of torch's global generator, before every batch of every stage, as the reference does.
      batch_size: images attacked at a time.
    Yields:
      What is left after each stage.
    Raises:
      RunError: pyautoattack is not installed, or has no such attack.
      BudgetError: it has no such budget.
    """
    if type(budget) not in NORMS:
        expected = " or ".join(kind.__name__ for kind in NORMS)
        raise BudgetError(complaint("reference", "budget", type(budget).__name__, expected))
    with torch.no_grad():
        robust = torch.cat([model(part).argmax(dim=1) for part in torch.split(images, batch_size)]) == labels
    settings = {"norm": NORMS[type(budget)], "eps": budget.epsilon, "seed": seed, "device": images.device}
    for stage in stages:
        peer = _peer(stage, settings)
        attacked = images.clone()
        left = robust.nonzero()[:, 0]
        for rows in torch.split(left, batch_size) if len(left) else ():  # an empty tensor splits into one empty part
            with torch.random.fork_rng(devices=[images.device] if images.device.type == "cuda" else []):
                found = peer(model)(images[rows], labels[rows])
            with torch.no_grad():
                held = model(found).argmax(dim=1) == labels[rows]
            robust[rows] = held
            attacked[rows[~held]] = found[~held]
        yield Verdict(stage.name, robust.clone(), attacked)


def _peer(stage: Attack, settings: dict[str, Any]) -> Callable[[nn.Module], Callable[[Tensor, Tensor], Tensor]]:
    """The reference's attack for a stage, once the model is known."""
    try:
        from pyautoattack.autopgd_base import APGDAttack, APGDAttack_targeted
        from pyautoattack.fab_pt import FABAttack_PT
        from pyautoattack.square import SquareAttack
    except ImportError as error:
        advice = "Install it: `pip install pyautoattack`."
        raise RunError(complaint("reference", "pyautoattack", "not installed", "the reference", advice)) from error
    own: dict[str, Any]
    if isinstance(stage, APGD) and stage.targets:
        own = {"n_iter": stage.steps, "n_target_classes": stage.targets, "rho": stage.rho}
        return lambda model: APGDAttack_targeted(model, **own, **settings).perturb
    if isinstance(stage, APGD):
        own = {"n_iter": stage.steps, "loss": stage.loss, "rho": stage.rho}
        return lambda model: APGDAttack(model, **own, **settings).perturb
    if isinstance(stage, FAB):
        own = {"n_iter": stage.steps, "n_target_classes": stage.targets, "n_restarts": 1, "targeted": True}
        own |= {"alpha_max": stage.alpha_max, "eta": stage.eta, "beta": stage.beta}
        return lambda model: FABAttack_PT(model, **own, **settings).perturb
    if isinstance(stage, Square):
        own = {"n_queries": stage.queries, "p_init": stage.p_init, "n_restarts": 1, "resc_schedule": False}
        return lambda model: SquareAttack(model, **own, **settings).perturb
    raise RunError(complaint("reference", "attack", stage.name, "a stage of AutoAttack"))
