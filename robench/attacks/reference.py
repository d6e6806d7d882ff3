"""AutoAttack by its reference implementation, `pyautoattack`, stage by stage: the yardstick of our own.

It owns its loop and its random numbers, so there is no resuming inside it, and outcomes depend on the
batch. Not here: our own stages (`autoattack.py`), and what is done with the outcomes.
"""

import warnings
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
from robench.attacks.whole import WholeAttack
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
      robust: which examples are still robust after it, bool, shape (N,); what is changed in it before the next
        stage is asked for holds there.
      images: the adversarial image of each example that fell in it, else the clean one, shape (N, 3, H, W).
    """

    stage: str
    robust: Tensor
    images: Tensor


class Watched(nn.Module):
    """The model as the reference is shown it: in its own dtype, with its passes counted, and answers watched.

    The reference does not look whether an answer is a number. Here the first logits and gradients that are none
    are noted, with the example they belong to: the one whose clean image is nearest.

    Args:
      classifier: around the module; its passes are counted there.
      module: the model itself.
    Attributes:
      found: what is no number, by number of the example.
      silent: whether some gradient was exactly zero.
    """

    def __init__(self, classifier: Classifier, module: nn.Module) -> None:
        super().__init__()
        self.module, self.found, self.silent = module, dict[int, str](), False
        self._classifier, self._rows, self._clean = classifier, torch.zeros(0), torch.zeros(0)
        self.train(module.training)

    def begin(self, rows: Tensor, clean: Tensor) -> None:
        """Say which examples the next images belong to: their numbers, shape (N,), and clean images."""
        self._rows, self._clean = rows, clean

    def forward(self, images: Tensor) -> Tensor:
        self._classifier.passes.forward += len(images)
        shown = self._classifier.in_its_range(images.view_as(images))
        if shown.requires_grad:

            def look(gradient: Tensor) -> None:
                self._classifier.passes.backward += len(gradient)
                self._note("gradient is", gradient, images)
                self.silent |= bool((gradient.flatten(1).abs().amax(dim=1) == 0).any())

            shown.register_hook(look)  # type: ignore[no-untyped-call]  # torch leaves it untyped
        logits: Tensor = self.module(shown).to(torch.float32, copy=True)  # Square writes into what it is handed
        self._note("logits are", logits, images)
        return logits

    def _note(self, what: str, values: Tensor, images: Tensor) -> None:
        """Note the examples whose row is not finite; the image of one that was noted before may be none any more."""
        broken = ~values.detach().flatten(1).isfinite().all(dim=1) & images.detach().flatten(1).isfinite().all(dim=1)
        for row in broken.nonzero()[:, 0].tolist():
            change = (self._clean - images[row].detach()).flatten(1)
            nearest = int(self._rows[change.abs().amax(dim=1).argmin()])
            self.found.setdefault(nearest, f"the {what} not finite")


def check_reference(stages: Sequence[Attack | WholeAttack]) -> None:
    """Check that the reference has these attacks, before anything runs.

    Raises:
      RunError: it has not, or pyautoattack is not installed.
    """
    for stage in stages:
        _peer(stage, {"norm": "Linf", "eps": 0.0, "seed": 0, "device": "cpu"})


def check_model(stages: Sequence[Attack], classifier: Classifier, classes: int) -> None:
    """Check that the reference can attack this model.

    Our own targeted stages aim at as many classes as there are; the reference's need one for each target, and the
    third or fourth logit for its losses.

    Args:
      stages: of `AutoAttack`.
      classifier: the model.
      classes: how many logits it gives.
    Raises:
      ModelError: the model is no module, or has too few classes.
    """
    if classifier.module is None:
        advice = "Hand in a `torch.nn.Module`, or use our own attacks."
        raise ModelError(complaint(classifier.name, "model", "a bare callable", "a module for the reference", advice))
    for stage in stages:
        least = _least_classes(stage)
        if classes < least:
            advice = "Ask for fewer targets in a protocol of your own, or use our own attacks (`native`)."
            expected = f"at least {least} for the reference's `{stage.name}`"
            raise ModelError(complaint(classifier.name, "classes", classes, expected, advice))


def _least_classes(stage: Attack) -> int:
    """How many classes the reference needs for a stage."""
    if isinstance(stage, APGD):
        return max(stage.targets + 1, 4) if stage.targets else {"ce": 2, "dlr": 3}[stage.loss]
    return stage.targets + 1 if isinstance(stage, FAB) else 2


def drive_by_reference(
    stages: Sequence[Attack],
    classifier: Classifier,
    source: Iterable[Example],
    *,
    budget: Budget,
    seed: int,
    batch_size: int,
    on_event: Callable[[str, dict[str, Any]], None] = lambda kind, details: None,
) -> Generator[Finished, None, None]:
    """Attack every example of a source by the reference implementation; all outcomes come at the end.

    The steps at which examples fell are not known: `fooled_at` is 0 for those that did. An image counts when
    it lies inside the budget and the classifier, asked again, is fooled; where it does not, the example goes on to
    the next stage. An example at which logits or a gradient are no numbers is errored, unless the same stage fooled
    it by an image that counts.

    Args:
      stages, budget, seed, batch_size: as in `attack_by_reference`.
      classifier: around a module.
      source: examples; all images are held in memory.
      on_event: told of `zero gradient`, once for each stage.
    Raises:
      ModelError: the model is no module, or has too few classes.
      RunError, BudgetError: as in `attack_by_reference`.
    """
    examples = list(source)
    if not examples:
        return
    device = classifier.device
    images = torch.stack([example.image for example in examples]).to(device)
    labels = torch.tensor([example.label for example in examples], device=device)
    logits = _logits(classifier, images, batch_size)
    check_model(stages, classifier, logits.shape[1])
    predictions, margins = logits.argmax(dim=1).tolist(), margin(logits, labels).tolist()
    finite = logits.isfinite().all(dim=1)
    records = [
        Record(example, logits[row], predictions[row], margins[row], predictions[row], margins[row])
        for row, example in enumerate(examples)
    ]
    for row in (~finite).nonzero()[:, 0].tolist():
        _err(records[row], "the logits of the clean image are not finite")
        records[row].clean_margin = 0.0
    before = (logits.argmax(dim=1) == labels) & finite
    assert classifier.module is not None, "as was just checked"
    watched = Watched(classifier, classifier.module)
    with classifier.frozen():
        found = attack_by_reference(stages, watched, images, labels, budget=budget, seed=seed, batch_size=batch_size)
        for verdict in found:
            fell = (before & ~verdict.robust).nonzero()[:, 0]
            _claim(classifier, [records[row] for row in fell.tolist()], verdict, fell, images, labels, budget)
            for row, error in watched.found.items():
                if not records[row].fooled_at and not records[row].error:
                    _err(records[row], f"{error} during {verdict.stage}")
            if watched.silent:
                on_event("zero gradient", {"attack": verdict.stage})
                watched.silent = False
            going_on = [not record.fooled_at and not record.error for record in records]
            verdict.robust.copy_(before & torch.tensor(going_on, device=device))
            before = verdict.robust.clone()
    yield from (record.finished() for record in records)


def _err(record: Record, reason: str) -> None:
    record.error, record.attacked_margin = reason, 0.0


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
    finite = logits.isfinite().all(dim=1)
    fooled = finite & (logits.argmax(dim=1) != labels[rows]) & inside
    margins = margin(logits, labels[rows])
    for row, record in enumerate(records):
        if bool(fooled[row]):
            record.stage, record.fooled_at, record.adversarial = verdict.stage, [0], images[row].clone()
            record.attacked_prediction, record.attacked_margin = int(logits[row].argmax()), float(margins[row])
        elif bool(finite[row]):
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
      model: in eval mode; gradients may be left in its parameters. One that is `Watched` is told what it is shown.
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
    if not isinstance(budget, LinfBall | L2Ball) or type(budget) not in NORMS:
        expected = " or ".join(kind.__name__ for kind in NORMS)
        raise BudgetError(complaint("reference", "budget", type(budget).__name__, expected))
    robust = torch.zeros_like(labels, dtype=torch.bool)
    for rows in torch.split(torch.arange(len(images), device=images.device), batch_size):
        _announce(model, rows, images)
        robust[rows] = _right(model, images[rows], labels[rows])
    settings = {"norm": NORMS[type(budget)], "eps": budget.epsilon, "seed": seed, "device": images.device}
    gpus = [images.device] if images.device.type == "cuda" else []
    for stage in stages:
        peer = _peer(stage, settings)
        attacked = images.clone()
        left = robust.nonzero()[:, 0]
        for rows in torch.split(left, batch_size) if len(left) else ():  # an empty tensor splits into one empty part
            _announce(model, rows, images)
            # It asks for gradients where it wants them. Elsewhere it copies images that have some, and so would keep
            # those of all steps until its last target: gigabytes.
            with torch.no_grad(), torch.random.fork_rng(devices=gpus), warnings.catch_warnings():
                warnings.filterwarnings("ignore", "there are .* points with zero gradient")  # see `Watched.silent`
                found = peer(model)(images[rows], labels[rows]).detach()
            held = _right(model, found, labels[rows])
            robust[rows] = held
            attacked[rows[~held]] = found[~held]
        yield Verdict(stage.name, robust, attacked)


def _announce(model: nn.Module, rows: Tensor, images: Tensor) -> None:
    """Tell a model that is watched which examples it is about to be shown."""
    if isinstance(model, Watched):
        model.begin(rows, images[rows])


def _right(model: nn.Module, images: Tensor, labels: Tensor) -> Tensor:
    """Which of these images the model gets right."""
    with torch.no_grad():
        right: Tensor = model(images).argmax(dim=1) == labels
    return right


def _peer(
    stage: Attack | WholeAttack, settings: dict[str, Any]
) -> Callable[[nn.Module], Callable[[Tensor, Tensor], Tensor]]:
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
