"""What is checked before anything runs: the attack a protocol asks for, the first batch, and who the model is.

Not here: the run itself (`evaluation`), and what a model must be like (`classifier`).
"""

import dataclasses
import typing
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from robench.attacks import CASCADES, CATALOGUE, WHOLE
from robench.attacks.asking import stage_to_the_end
from robench.attacks.drive import Stage
from robench.attacks.interface import Attack, Examples
from robench.attacks.whole import AnyStage, WholeAttack, WholeStage
from robench.audits import FEW_TARGETS
from robench.averaging import randomness_of
from robench.budgets import BUDGETS, Ball, Budget, LinfBall, PatchArea
from robench.classifier import DOOR_ROWS, FIX_THE_DRAWS, Classifier
from robench.data import Source
from robench.data.mini import pinned_images
from robench.data.source import Unreadable, check_image
from robench.data.textures import read_folder
from robench.errors import BudgetError, DataError, ProtocolError, RunError, complaint, did_you_mean
from robench.protocol import (
    FRACTION_FORM,
    AttackSpec,
    BallSpec,
    PatchSpec,
    Protocol,
    ScoreSpec,
    fraction,
    parse_protocol,
)
from robench.randomness import Draws
from robench.registry import Registered
from robench.result import ModelRecord
from robench.zoo import Loaded

MOST = 10_000_000
"""No whole number of an attack is larger: tables of steps are held in memory."""
FOR_RANDOMISED = "`autoattack-linf-rand`, or on the mini suite `mini-autoattack-linf-rand`"
"""The protocols that ask a model many times."""
NOT_RANDOMISED = (
    "The model gave the same answers twice: it does not look randomised, and this protocol is for models that are. Its "
    "attacks are fewer than those of the ordinary one: use that."
)
UNSEEDED = (
    "The model draws its random numbers where no seed reaches them: another run will differ from this one within its "
    "interval, and so does what is resumed."
)


def with_textures(registered: Registered, folder: str | Path) -> Registered:
    """The same protocol with the textures in a folder; where these are others, it is another protocol, and unofficial.

    Raises:
      RunError: the attack pastes no textures.
      DataError: the folder holds no dictionary.
    """
    protocol = registered.protocol
    pinned = protocol.attack.settings.get("textures_sha256") if protocol.attack is not None else None
    if pinned is None:
        expected = f"none with {protocol.exact_name}, which pastes no textures"
        raise RunError(complaint("evaluate", "textures", f"`{folder}`", expected))
    found = read_folder(Path(folder)).sha256
    if found == pinned:
        return registered
    content = protocol.model_dump(mode="json", by_alias=True, exclude_none=True)
    content["attack"] |= {"textures": "own", "textures_sha256": found}
    return Registered(parse_protocol(content, where=protocol.id), official=False)


def build_attack(protocol: Protocol, *, textures: str | Path | None = None) -> tuple[Sequence[AnyStage], Budget]:
    """The stages and the budget of a protocol; its keys are checked against the attack's fields.

    Args:
      protocol: says which.
      textures: folder in which its textures lie; None: where the protocol and this machine say.
    Raises:
      ProtocolError: the attack is unknown, not for this budget, or a key is unknown, missing or of the wrong type.
      RunError: what the attack needs is not installed.
    """
    where, spec = f"{protocol.id}.toml", protocol.attack
    if spec is None or protocol.budget is None:
        return [], LinfBall(0.0)
    kind, given = _kind(where, spec)
    fields = {field.name: field for field in dataclasses.fields(kind)}
    types = typing.get_type_hints(kind)
    settings = {}
    for key, value in given.items():
        if key not in fields:
            raise ProtocolError(complaint(where, f"attack.{key}", "unknown", "a field", did_you_mean(key, fields)))
        settings[key] = _setting(where, key, value, types[key])
    if textures is not None:
        settings["textures"] = str(textures)
    for key, field in fields.items():
        if key not in settings and field.default is dataclasses.MISSING:
            raise ProtocolError(complaint(where, f"attack.{key}", "missing", "a value", "Add the key."))
    try:
        attack = kind(**settings)
    except ProtocolError as error:
        raise ProtocolError(f"{where}: {error}") from error
    budget = build_budget(where, protocol.budget)
    if spec.kind in WHOLE:
        return [_whole_stage(where, protocol.score, attack, budget)], budget
    attacks = attack.stages() if spec.kind in CASCADES else (attack,)
    _check_score(where, protocol.score, attacks)
    _check_budget(where, protocol.score, attacks, budget)
    if protocol.score.asks is not None:
        return [stage_to_the_end(each) for each in attacks], budget
    read_off = frozenset(protocol.score.steps) if protocol.score.scoring == "last iterate" else None
    return [Stage(each, read_off) for each in attacks], budget


def _kind(where: str, spec: AttackSpec) -> tuple[type[Any], dict[str, bool | int | str]]:
    """The class of an attack, and the settings that are its fields."""
    known = CATALOGUE | CASCADES
    if spec.kind not in {*known, *WHOLE}:
        advice = did_you_mean(spec.kind, {*known, *WHOLE})
        raise ProtocolError(complaint(where, "attack.kind", f"`{spec.kind}`", "the name of an attack", advice))
    if spec.kind not in WHOLE:
        return known[spec.kind], spec.settings
    attacks, settings = WHOLE[spec.kind], spec.settings
    name = settings.pop("attack", None)
    if not isinstance(name, str) or name not in attacks:
        found = "missing" if name is None else f"`{name}`"
        advice = did_you_mean(str(name or ""), attacks)
        raise ProtocolError(complaint(where, "attack.attack", found, f"an attack of {spec.kind}", advice))
    return attacks[name], settings


def _whole_stage(where: str, score: ScoreSpec, attack: WholeAttack, budget: Budget) -> WholeStage:
    """The stage of an attack that owns its loop: it has one outcome, and no steps or stages to read off."""
    for key, value in (("steps", score.steps or None), ("stages", score.stages), ("asks", score.asks)):
        if value is not None:
            expected = f"none with {attack.name}, which is scored at its end alone"
            found = list(value) if isinstance(value, tuple) else value
            raise ProtocolError(complaint(where, f"score.{key}", found, expected, "Leave the key out."))
    try:
        attack.check(budget)
    except BudgetError as error:
        raise ProtocolError(f"{where}: {error}") from error
    except RunError as error:
        raise RunError(f"{where}: {error}") from error
    return WholeStage(attack)


def build_budget(where: str, spec: BallSpec | PatchSpec) -> Ball | PatchArea:
    """The budget that a protocol names."""
    if isinstance(spec, BallSpec):
        if spec.norm not in BUDGETS:
            advice = did_you_mean(spec.norm, BUDGETS)
            raise ProtocolError(complaint(where, "budget.norm", f"`{spec.norm}`", "a known norm", advice))
        return BUDGETS[spec.norm](float(fraction(spec.epsilon)))
    try:
        return PatchArea(float(fraction(spec.area)), spec.patches)
    except BudgetError as error:
        raise ProtocolError(f"{where}: {error}") from error


def rehearse(stages: Sequence[AnyStage], budget: Budget, *, size: tuple[int, int], classes: int) -> None:
    """Start every attack once on an empty image of this size, so that what does not fit is found before any work.

    Attacks that own their loop have no start of their own: `build_attack` checks them.

    Raises:
      BudgetError: the attack does not fit the budget, or its patches not the image.
      DataError: what the attack needs beside the model is missing, damaged or too small.
    """
    blank = Examples(torch.zeros(1, 3, *size), torch.zeros(1, dtype=torch.int64), torch.zeros(1, classes))
    for stage in stages:
        if isinstance(stage, Stage):
            stage.attack.start(blank, budget, Draws.of(0, ["rehearsal"]))


def _check_budget(where: str, score: ScoreSpec, attacks: Sequence[Attack], budget: Budget) -> None:
    """Every attack works in the budget, and images with patches are not asked about many times."""
    for each in attacks:
        if not isinstance(budget, each.works_in):
            expected = " or ".join(one.__name__ for one in each.works_in)
            raise ProtocolError(complaint(where, "budget", type(budget).__name__, f"{expected} for `{each.name}`"))
    if score.asks is not None and isinstance(budget, PatchArea):
        expected = "none with patches, which are counted up to the first image that fools"
        raise ProtocolError(complaint(where, "score.asks", score.asks, expected, "Leave it and `attack.draws` out."))


def _check_score(where: str, score: ScoreSpec, attacks: Sequence[Attack]) -> None:
    """Steps are read off one attack, stages are those of the cascade."""
    if score.steps and (len(attacks) > 1 or not hasattr(attacks[0], "steps")):
        raise ProtocolError(complaint(where, "score.steps", list(score.steps), "none with more than one attack"))
    if score.steps and score.steps[-1] > attacks[0].steps:  # type: ignore[attr-defined]  # as was just seen
        expected = f"at most {attacks[0].steps}, the steps of the attack"  # type: ignore[attr-defined]
        raise ProtocolError(complaint(where, "score.steps", score.steps[-1], expected))
    names = [attack.name for attack in attacks]
    if score.stages is not None and list(score.stages) != names:
        raise ProtocolError(complaint(where, "score.stages", list(score.stages), f"{names}, as they run"))


def _setting(where: str, key: str, value: bool | int | str, wanted: type) -> Any:
    """A value of a protocol as its attack wants it; lengths and chances are fractions."""
    if wanted is float:
        try:
            return float(fraction(str(value) if not isinstance(value, bool) else ""))
        except ValueError as error:
            raise ProtocolError(complaint(where, f"attack.{key}", repr(value), FRACTION_FORM)) from error
    if type(value) is not wanted:
        raise ProtocolError(complaint(where, f"attack.{key}", repr(value), f"a value of type {wanted.__name__}"))
    if wanted is int and abs(int(value)) > MOST:
        raise ProtocolError(complaint(where, f"attack.{key}", value, f"at most {MOST:,}"))
    return value


def look_at_model(
    classifier: Classifier,
    source: Source,
    *,
    gradients: bool,
    single: bool = False,
    randomised: bool = False,
    least: int = 0,
) -> tuple[list[str], Tensor]:
    """Show the model its first batch; returns caveats and that batch, shape (N, 3, H, W).

    Args:
      classifier: the model.
      source: the examples.
      gradients: whether attacks ask for gradients.
      single: whether an attack looks at one image at a time.
      randomised: whether the protocol is for randomised models, which are refused otherwise.
      least: how many logits the protocol needs, whatever the labels are.
    """
    images: list[Tensor] = []
    unreadable: list[Unreadable] = []
    count = min(DOOR_ROWS, len(source.ids))
    for position, image in zip(range(count), source.images(range(count)), strict=True):
        if isinstance(image, Unreadable):
            unreadable.append(image)
        else:
            check_image(image, source.ids[position])
            images.append(image)
    if not images:
        raise DataError(unreadable[0].reason)
    shapes = {tuple(image.shape) for image in images}
    if len(shapes) > 1:
        raise DataError(complaint(source.name, "images", f"of shapes {sorted(shapes)}", "one shape"))
    batch = torch.stack(images)
    least = max(*source.labels, least - 1, 1) + 1  # one logit alone leaves nothing to be taken for
    advice = None if randomised else f"{FIX_THE_DRAWS[:-1]}, or use a protocol for such models: {FOR_RANDOMISED}."
    caveats = classifier.check(batch, classes=source.classes, least=least, gradients=gradients, randomised=advice)
    if single:
        classifier.check_single(batch[:1])
    return caveats, batch


def randomness_caveats(classifier: Classifier, batch: Tensor) -> list[str]:
    """What is remarkable about the random numbers of a model under a protocol for randomised ones."""
    found = {"none": [NOT_RANDOMISED], "seeded": [], "unseeded": [UNSEEDED]}
    return found[randomness_of(classifier, batch)]


def target_caveats(stages: Sequence[AnyStage], classifier: Classifier, batch: Tensor, classes: int) -> list[str]:
    """What is said where a model tells fewer wrong classes apart than targeted stages aim at.

    Args:
      stages: of the attack.
      classifier, batch: the model, and its first images.
      classes: how many the data have; only where these are too few is the model asked.
    """
    targets = max((getattr(stage.attack, "targets", 0) for stage in stages), default=0)
    if targets < classes:
        return []
    told = classifier.logits(batch[:1].to(classifier.device)).shape[1]
    return [FEW_TARGETS.format(targets=targets, classes=told)] if targets >= told else []


def first_examples(source: Source, count: int, device: torch.device) -> tuple[Tensor, Tensor]:
    """The first readable examples: images, shape (N, 3, H, W), and labels, shape (N,)."""
    positions = range(min(count, len(source.ids)))
    found = [
        (image, source.labels[position])
        for position, image in zip(positions, source.images(positions), strict=True)
        if isinstance(image, Tensor)
    ]
    found = [(image, label) for image, label in found if image.shape == found[0][0].shape]  # others are refused later
    images = torch.stack([image for image, _ in found]).to(device)
    return images, torch.tensor([label for _, label in found], device=device)


def model_record(
    classifier: Classifier, loaded: Loaded | None, shape: Sequence[int], *, fingerprint: bool = True
) -> ModelRecord:
    """Who the model is: where it came from, its state, and what it says to pinned images of this height and width.

    Args:
      classifier, loaded: the model, and where it came from if it was named.
      shape: height and width of the images.
      fingerprint: whether to ask about the pinned images; of no use where the answers come by chance.
    """
    pinned = torch.from_numpy(pinned_images(max(shape))).float() / 255
    module = classifier.module
    own = f"{type(module).__module__}.{type(module).__qualname__}" if module is not None else "callable"
    return ModelRecord(
        name=classifier.name,
        reference=loaded.reference if loaded else None,
        revision=loaded.revision if loaded else None,
        loader=loaded.loader if loaded else own,
        weights_sha256=loaded.weights_sha256 if loaded else None,
        state_digest=classifier.state_digest(),
        configuration_sha256=classifier.configuration_digest(),
        parameters=classifier.parameter_count(),
        fingerprint=tuple(classifier.fingerprint(pinned[:, :, : shape[0], : shape[1]])) if fingerprint else (),
    )
