"""What happens before anything runs: options, and model, data and plan made from a request.

Not here: the checks themselves (`door`), and the run (`evaluation`).
"""

import dataclasses
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor

from robench.attacks import REVISION
from robench.attacks.drive import Stage
from robench.attacks.reference import check_model, check_reference
from robench.attacks.whole import AnyStage, WholeStage
from robench.audits import SWEEP_EXAMPLES, calls_autograd, radius_sweep
from robench.averaging import AveragingClassifier, seeded
from robench.budgets import BALLS, Budget
from robench.classifier import Classifier, check_device
from robench.data import MADE_IN_CELLS, Source, is_on_hub, open_source
from robench.data.source import ids_digest
from robench.door import (
    UNSEEDED,
    build_attack,
    first_examples,
    look_at_model,
    model_record,
    randomness_caveats,
    rehearse,
    target_caveats,
    with_textures,
)
from robench.errors import DataError, ModelError, RobenchError, RunError, complaint
from robench.fastpath import COMPILED, MEASURES, FastPath, quicken, slots_for
from robench.progress import Silent, Watcher
from robench.protocol import Protocol
from robench.registry import Registered
from robench.runs import Plan, PlannedData, run_key
from robench.share import Crew, Rank
from robench.showcase import Showcase
from robench.unattacked import Reading, check_textures
from robench.zoo import Loaded
from robench.zoo import resolve as resolve_model

GENERATED = "The images were made by robench, as {manifest} says{rest}."
SHARD_SIZE = 16
"""Examples written to disk together where they are attacked: the smallest batch that keeps its bits on a CPU."""
QUICK_SHARD_SIZE = 64
"""The same where nothing is attacked, or where a randomised model is asked, whose seeds go by shard."""


@dataclasses.dataclass(frozen=True)
class Options:
    """What is rarely needed.

    Attributes:
      name: what to call a model that was handed in; by default its class or function.
      weights: safetensors file for a named model.
      textures: folder with the textures that the protocol pastes; others than its own make the result unofficial.
      fresh: start over instead of resuming or reusing the run in this folder.
      shard_size: examples written to disk together, and the least that a process takes of a shared run; by default
        16, and 64 where nothing is attacked or the model is randomised.
      engine: `native`, or `reference` for AutoAttack and its stages by pyautoattack: no resuming inside a
        run, all images in memory, steps unknown.
      fast_path: let attacks look at a faster copy of a module, once it is seen to give the same answers.
      compile: compile that copy, too: minutes that pay on a GPU in long runs.
      workers: processes that decode image files; 0: none beside this one; None: up to four.
      watcher: is told of progress.
      clean: where the clean images lie that belong to a set with cells; None: they are not seen.
      reference_weights: safetensors file for the protocol's reference model; None: from the Hub.
      save_adversarial: folder for the confirmed adversarial images, one `.npy` for each fooled example
        (`robench.adversarial`); several protocols get a sub-folder each.
      showcase: is filled with a few examples to look at.
      rank: which of several processes this is that were started together and share the run; rank 0 plans it, and
        the others wait for that. Processes that were started apart share a run without being told.
      crew: who attacks instead of this process, which then plans, watches and merges (`robench.cluster`).
    """

    name: str | None = None
    weights: str | Path | None = None
    textures: str | Path | None = None
    fresh: bool = False
    shard_size: int | None = None
    engine: Literal["native", "reference"] = "native"
    fast_path: bool = True
    compile: bool = False
    workers: int | None = None
    watcher: Watcher = dataclasses.field(default_factory=Silent)
    clean: str | Path | None = None
    reference_weights: str | Path | None = None
    save_adversarial: str | Path | None = None
    showcase: Showcase | None = None
    rank: Rank | None = None
    crew: Crew | None = None


@dataclasses.dataclass(frozen=True)
class Request:
    """The arguments of `evaluate` that hold for every protocol."""

    model: Any
    data: Any
    limit: int | None
    device: str | torch.device | None
    batch_size: int | None
    options: Options


@dataclasses.dataclass(frozen=True)
class Prepared:
    """All that a run needs.

    Attributes:
      protocol, stages, budget: what is done.
      classifier: the user's own model.
      fast: the copy that attacks look at.
      source: the examples.
      batch: the first of them, float32 in [0, 1], shape (N, 3, H, W).
      plan: what the run is about.
      slots: examples attacked at a time.
      reference: the protocol's reference model; None: it has none.
    """

    protocol: Protocol
    stages: Sequence[AnyStage]
    budget: Budget
    classifier: Classifier
    fast: FastPath
    source: Source
    batch: Tensor
    plan: Plan
    slots: int
    reference: Classifier | None = None

    def with_measures(self, measures: Sequence[str]) -> "Prepared":
        """The same with another fast path, as a run that began elsewhere has it."""
        fast = quicken(self.classifier, self.batch, measures=measures, gradients=needs_gradients(self.stages))
        return dataclasses.replace(self, fast=fast)

    def audited(self) -> Plan:
        """The plan with what the audits find; they cost some passes, so they are for runs that begin."""
        if not needs_gradients(self.stages) or not isinstance(self.budget, BALLS):
            return self.plan
        device, draws = self.classifier.device, _draws(self.protocol)
        images, labels = first_examples(self.source, min(SWEEP_EXAMPLES, self.plan.data.count), device)
        found = calls_autograd(self.classifier, self.batch.to(device))
        looked = AveragingClassifier(self.classifier, draws) if draws is not None else self.fast.classifier
        with seeded(self.protocol.seed, device) if draws is not None else nullcontext():
            found += radius_sweep(looked, images, labels, self.budget)
        return self.plan.model_copy(update={"caveats": (*self.plan.caveats, *found)})


@contextmanager
def prepared(request: Request, registered: Registered) -> Iterator[Prepared]:
    """Load and check model and data, and plan the run; while it lasts, random state and arithmetic are ours.

    Raises:
      ProtocolError, ModelError, DataError, RunError: see `robench.errors`.
    """
    options = request.options
    if options.textures is not None:
        registered = with_textures(registered, options.textures)
    protocol = registered.protocol
    stages, budget = build_attack(protocol, textures=options.textures)
    if protocol.attack is None:
        _check_nothing_attacks(protocol, options)
    if options.engine == "reference":
        _check_asked_once(protocol, "engine", "`reference`", RunError)
        check_reference([stage.attack for stage in stages])
    if options.showcase is not None:
        _check_asked_once(protocol, "showcase", "asked for", RunError)
    least = _check_shift(protocol, options)
    with same_random_state(request.device), _exact_arithmetic():
        classifier, loaded = _load(request)
        source = open_source(
            protocol.data.source,
            request.data,
            resize=protocol.data.resize,
            crop=protocol.data.crop,
            limit=request.limit,
            workers=options.workers,
            cells=protocol.shift.cells if protocol.shift is not None else (),
            clean=options.clean,
        )
        check_textures(source, protocol)
        _check_classes(protocol, source, least)
        reference, referred = _reference(protocol, request)
        data = _planned_data(protocol, source, request)
        gradients, asked = needs_gradients(stages), protocol.score.asks is not None
        caveats, batch = look_at_model(
            classifier, source, gradients=gradients, single=one_at_a_time(stages), randomised=asked, least=least
        )
        caveats += randomness_caveats(classifier, batch) if asked else []
        classes = source.classes or max(*source.labels, 1) + 1
        rehearse(stages, budget, size=(batch.shape[2], batch.shape[3]), classes=classes)
        if options.engine == "native":
            caveats += target_caveats(stages, classifier, batch, classes)
        else:
            classes = classifier.logits(batch[:1].to(classifier.device)).shape[1]
            check_model([stage.attack for stage in stages if isinstance(stage, Stage)], classifier, classes)
        with seeded(protocol.seed, classifier.device) if asked else nullcontext():
            model = model_record(classifier, loaded, batch.shape[2:], fingerprint=UNSEEDED not in caveats)
        stated = model_record(reference, referred, batch.shape[2:]) if reference is not None else None
        caveats += getattr(source, "caveats", [])
        if getattr(source, "generated", None) is not None:
            rest = "; they are not the published set" if protocol.has_canon else ""
            caveats.append(GENERATED.format(manifest=source.generated, rest=rest))  # type: ignore[attr-defined]
        fast = quicken(classifier, batch, measures=_measures(options, protocol), gradients=gradients)
        key = run_key(
            protocol_digest=protocol.digest,
            official=registered.official,
            model=model,
            data=data,
            attack_revision=REVISION,
            engine=options.engine,
            reference=stated,
        )
        plan = Plan(
            key=key,
            protocol=protocol.model_dump(mode="json", by_alias=True, exclude_none=True),
            official=registered.official,
            model=model,
            weights=_resolved(options.weights),
            textures=_resolved(options.textures),
            reference=stated,
            reference_weights=_resolved(options.reference_weights),
            data=data,
            shard_size=options.shard_size or default_shard_size(protocol),
            attack_revision=REVISION,
            engine=options.engine,
            fast_path=fast.measures,
            caveats=tuple(caveats),
        )
        slots = request.batch_size or slots_for(fast.classifier, batch, gradients=needs_gradients(stages))
        yield Prepared(protocol, stages, budget, classifier, fast, source, batch, plan, slots, reference)


def needs_gradients(stages: Sequence[AnyStage]) -> bool:
    """Whether any stage asks for a gradient."""
    return any(stage.attack.gradients for stage in stages)


def one_at_a_time(stages: Sequence[AnyStage]) -> bool:
    """Whether an attack looks at one image at a time."""
    return any(isinstance(stage, WholeStage) for stage in stages)


def _measures(options: Options, protocol: Protocol) -> tuple[str, ...]:
    """What the options allow to make the model faster.

    The reference gets the model as it is; and so do attacks on randomised models, whose copy cannot be held to them:
    two of their answers differ anyway.
    """
    asked = protocol.score.asks is not None
    if protocol.attack is None or asked or not options.fast_path or options.engine == "reference":
        return ()
    return (*MEASURES, COMPILED) if options.compile else MEASURES


def default_shard_size(protocol: Protocol) -> int:
    """Examples written together where the caller does not say."""
    return SHARD_SIZE if protocol.attack is not None and protocol.score.asks is None else QUICK_SHARD_SIZE


def _draws(protocol: Protocol) -> int | None:
    """Answers that attacks average; None where they look once."""
    return protocol.attack.draws if protocol.attack is not None else None


def _check_asked_once(protocol: Protocol, argument: str, found: str, error: type[RobenchError]) -> None:
    """Refuse what has no meaning where an example is neither broken nor robust, but right in a share of its answers."""
    if protocol.score.asks is not None:
        expected = f"nothing of it under {protocol.exact_name}, which asks the model {protocol.score.asks} times"
        raise error(complaint("evaluate", argument, found, expected))


def _check_nothing_attacks(protocol: Protocol, options: Options) -> None:
    """Refuse what has no meaning where nothing attacks."""
    if options.engine != "native":
        found, expected = f"`{options.engine}`", f"nothing of it under {protocol.exact_name}, which has no attack"
        raise RunError(complaint("evaluate", "engine", found, expected))
    if options.save_adversarial is not None:
        expected = f"nothing of it under {protocol.exact_name}, which has no attack"
        raise RunError(complaint("evaluate", "save_adversarial", "asked for", expected))


def check_numbers(request: Request) -> None:
    """Check the arguments that are numbers or names, before anything is loaded.

    Raises:
      DataError, RunError: one makes no sense.
    """
    numbers = {"limit": request.limit, "batch_size": request.batch_size, "shard_size": request.options.shard_size}
    for name, value in numbers.items():
        if value is not None and (isinstance(value, bool) or not isinstance(value, int) or value < 1):
            error = DataError if name == "limit" else RunError
            raise error(complaint("evaluate", name, repr(value), "a whole number of at least 1"))
    if request.options.engine not in ("native", "reference"):
        found = f"`{request.options.engine}`"
        raise RunError(complaint("evaluate", "engine", found, "`native` or `reference`"))
    if request.options.compile and not request.options.fast_path:
        expected = "the fast path, as it is the faster copy of the model that is compiled"
        raise RunError(complaint("evaluate", "compile", "asked for without it", expected))
    workers = request.options.workers
    if workers is not None and (isinstance(workers, bool) or not isinstance(workers, int) or workers < 0):
        raise RunError(complaint("evaluate", "workers", repr(workers), "a whole number of at least 0"))
    if request.device is not None:
        check_device(request.device, "evaluate", RunError)


@contextmanager
def same_random_state(device: str | torch.device | None) -> Iterator[None]:
    """Leave the caller's generators as they are, whatever the model draws."""
    on_gpu = device is not None and torch.device(device).type == "cuda"
    with torch.random.fork_rng(devices=list(range(torch.cuda.device_count())) if on_gpu else []):
        yield


@contextmanager
def _exact_arithmetic() -> Iterator[None]:
    """Switch TF32 off on GPUs, and back to what it was."""
    matmul, convolution = torch.get_float32_matmul_precision(), torch.backends.cudnn.allow_tf32
    try:
        torch.set_float32_matmul_precision("highest")
        torch.backends.cudnn.allow_tf32 = False
        yield
    finally:
        torch.set_float32_matmul_precision(matmul)
        torch.backends.cudnn.allow_tf32 = convolution


def _load(request: Request) -> tuple[Classifier, Loaded | None]:
    options = request.options
    loaded = resolve_model(request.model, weights=options.weights) if isinstance(request.model, str) else request.model
    if not isinstance(loaded, Loaded):
        return Classifier(loaded, name=options.name, device=request.device), None
    model = loaded.model
    if isinstance(model, torch.nn.Module) and request.device is not None:
        model = model.to(request.device)
    return Classifier(model, name=options.name or loaded.name, device=request.device), loaded


def _check_shift(protocol: Protocol, options: Options) -> int:
    """Refuse what a protocol without cells or without a reference model has no use for; check its list of classes.

    Returns:
      How many logits the protocol needs at least, whatever the labels are.
    """
    shift = protocol.shift
    least = Reading.of(shift, f"{protocol.id}.toml").least_logits if shift is not None else 0
    if options.clean is not None and (shift is None or shift.kind != "corruptions"):
        found = f"given under {protocol.exact_name}, which has no cells"
        raise DataError(complaint("evaluate", "clean", found, "none", "Evaluate clean images apart."))
    if options.clean is not None and protocol.data.source in MADE_IN_CELLS:
        found = f"given under {protocol.exact_name}, which sees clean images of its own"
        raise DataError(complaint("evaluate", "clean", found, "none"))
    if options.reference_weights is not None and (shift is None or shift.reference is None):
        found = f"given under {protocol.exact_name}, which has no reference model"
        raise RunError(complaint("evaluate", "reference_weights", found, "none"))
    return least


def _check_classes(protocol: Protocol, source: Source, least: int) -> None:
    """Refuse data with fewer classes than those among which the protocol decides."""
    if source.classes is not None and source.classes < least:
        found = f"{source.name}, with {source.classes} classes"
        raise DataError(complaint("robench", "data", found, f"at least {least}, as {protocol.exact_name} reads them"))


def _reference(protocol: Protocol, request: Request) -> tuple[Classifier | None, Loaded | None]:
    """The reference model of a protocol, and where it came from.

    Raises:
      ModelError: its weights cannot be had, or are not those that were pinned.
    """
    shift = protocol.shift
    if shift is None or shift.reference is None:
        return None, None
    loaded = resolve_model(shift.reference, weights=request.options.reference_weights)
    if shift.reference_sha256 not in (None, loaded.weights_sha256):
        advice = "Give the published file as `reference_weights`."
        message = complaint(shift.reference, "weights", str(loaded.weights_sha256), str(shift.reference_sha256), advice)
        raise ModelError(message)
    model = loaded.model
    if isinstance(model, torch.nn.Module) and request.device is not None:
        model = model.to(request.device)
    return Classifier(model, name=loaded.name, device=request.device), loaded


def _resolved(path: str | Path | None) -> str | None:
    return str(Path(path).resolve()) if path is not None else None


def _planned_data(protocol: Protocol, source: Source, request: Request) -> PlannedData:
    total = len(source.ids)
    limit = request.limit if request.limit is not None and request.limit < total else None
    is_folder = isinstance(request.data, str | Path) and not is_on_hub(request.data)
    path = str(Path(request.data).resolve()) if is_folder else None
    return PlannedData(
        source=source.name,
        path=path,
        reference=getattr(source, "reference", None),
        count=limit or total,
        of=protocol.data.count,
        limit=limit,
        ids_sha256=ids_digest(source.ids[:limit]),
        labels_sha256=ids_digest(str(label) for label in source.labels[:limit]),
        content_sha256=getattr(source, "content_sha256", None),
        clean=_resolved(request.options.clean),
        official=total == protocol.data.count
        and ids_digest(source.ids) == protocol.data.ids_sha256
        and (getattr(source, "generated", None) is None or not protocol.has_canon),
    )
