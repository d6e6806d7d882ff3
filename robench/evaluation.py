"""Evaluates a model under a protocol: the one room that knows records and computation.

Protocol, model and data are checked at the door; then the driver attacks what the run folder still
misses, shard by shard, and the shards are merged into a result.

Not here: how attacks work (`attacks`), and what is on disk (`runs`).
"""

import dataclasses
import math
import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, overload

import torch
from torch import Tensor

from robench.adversarial import AdversarialImages
from robench.attacks import REVISION
from robench.classifier import Classifier
from robench.data import Source, check_there, open_source
from robench.data.source import ids_digest
from robench.door import build_attack, look_at_model, model_record
from robench.environment import environment
from robench.errors import DataError, RunError, complaint
from robench.execution import Execution
from robench.fastpath import COMPILED, MEASURES, best_batch_size, pass_rate, quicken
from robench.progress import Silent, Watcher
from robench.protocol import Protocol
from robench.registry import Registered, resolve
from robench.result import ModelRecord, Result, read_result
from robench.runs import Plan, PlannedData, Run, run_key
from robench.showcase import Showcase
from robench.zoo import Loaded
from robench.zoo import resolve as resolve_model

SHARD_SIZE = 64
"""Examples that are written to disk together."""
CPU_SLOTS = 32
"""Examples attacked at a time on a CPU: more waste padding in the tail, fewer lose speed."""


@dataclasses.dataclass(frozen=True)
class Options:
    """What is rarely needed.

    Attributes:
      name: what to call a model that was handed in; by default its class or function.
      weights: safetensors file for a named model.
      fresh: start over instead of resuming or reusing the run in this folder.
      shard_size: examples written to disk together.
      fast_path: let attacks look at a faster copy of a module, once it is seen to give the same answers.
      compile: compile that copy, too: minutes that pay on a GPU in long runs.
      workers: processes that decode image files; 0: none beside this one; None: up to four.
      watcher: is told of progress.
      save_adversarial: folder for the confirmed adversarial images, one `.npy` for each fooled example
        (`robench.adversarial`); several protocols get a sub-folder each.
      showcase: is filled with a few examples to look at.
    """

    name: str | None = None
    weights: str | Path | None = None
    fresh: bool = False
    shard_size: int = SHARD_SIZE
    fast_path: bool = True
    compile: bool = False
    workers: int | None = None
    watcher: Watcher = dataclasses.field(default_factory=Silent)
    save_adversarial: str | Path | None = None
    showcase: Showcase | None = None


@overload
def evaluate(
    model: Any,
    protocol: str | Path | Protocol,
    *,
    data: Any = None,
    limit: int | None = None,
    run_dir: str | Path | None = None,
    device: str | torch.device | None = None,
    batch_size: int | None = None,
    options: Options | None = None,
) -> Result: ...


@overload
def evaluate(
    model: Any,
    protocol: Sequence[str | Path | Protocol],
    *,
    data: Any = None,
    limit: int | None = None,
    run_dir: str | Path | None = None,
    device: str | torch.device | None = None,
    batch_size: int | None = None,
    options: Options | None = None,
) -> list[Result]: ...


def evaluate(
    model: Any,
    protocol: str | Path | Protocol | Sequence[str | Path | Protocol],
    *,
    data: Any = None,
    limit: int | None = None,
    run_dir: str | Path | None = None,
    device: str | torch.device | None = None,
    batch_size: int | None = None,
    options: Options | None = None,
) -> Result | list[Result]:
    """Evaluate a model under a protocol, or under several.

    The same call again resumes an unfinished run and reuses a finished one. The model, its mode and
    the caller's random numbers are left as they were.

    Args:
      model: a name (`mini-resnet`, `module.path:function`), an `nn.Module` in eval mode, or any callable
        on float32 RGB images in [0, 1], shape (N, 3, H, W), that returns logits, shape (N, K).
      protocol: id (`mini-pgd-linf`), exact name (`mini-pgd-linf@1`), path of a TOML file, a
        `robench.protocol.Protocol`, or a list.
      data: None for the protocol's own data; a folder, of the protocol's images or with one sub-folder
        per class; a pair (images, labels); or a `robench.data.Source`. Other data than the protocol's
        makes the result unofficial.
      limit: only the first so many examples, a random sample; makes the result partial.
      run_dir: folder of the run; by default `runs/<model>/<protocol>-<run key>`.
      device: by default where a handed-in module lies, else the CPU.
      batch_size: examples attacked at a time; by default 32 on a CPU; on a GPU the most that fit and pay.
      options: what is rarer.
    Returns:
      The result, or one for each protocol.
    Raises:
      ProtocolError, ModelError, DataError, RunError: see `robench.errors`; before any attack.
    Example:
      >>> import tempfile
      >>> with tempfile.TemporaryDirectory() as folder:
      ...     result = evaluate("mini-resnet", "mini-pgd-linf", limit=8, run_dir=folder)
      >>> result.data.count, result.status
      (8, 'partial')
    """
    several = not isinstance(protocol, str | Path | Protocol)
    names = [protocol] if isinstance(protocol, str | Path | Protocol) else list(protocol)
    registered = [resolve(name) for name in names]
    for entry in registered:  # a mistake in the last protocol must not cost the runs before it
        build_attack(entry.protocol)
        if data is None:
            check_there(entry.protocol.data.source)
    chosen = options or Options()
    request = _Request(model, data, limit, device, batch_size, chosen)
    _check_numbers(request)
    if isinstance(model, str):
        with _same_random_state(device):
            request = dataclasses.replace(request, model=resolve_model(model, weights=chosen.weights))
    for name, entry in zip(names, registered, strict=True):
        if str(name) == entry.protocol.id:
            chosen.watcher.notice(f"{name} is {entry.protocol.exact_name} ({entry.protocol.status}).")
    if not several:
        return _evaluate(request, registered[0], run_dir)
    results = []
    for entry in registered:
        saved, own = chosen.save_adversarial, entry.protocol.exact_name
        options = dataclasses.replace(chosen, save_adversarial=Path(saved) / own if saved is not None else None)
        folder = Path(run_dir) / own if run_dir is not None else None
        results.append(_evaluate(dataclasses.replace(request, options=options), entry, folder))
    return results


def resume(
    run_dir: str | Path,
    *,
    device: str | None = None,
    batch_size: int | None = None,
    workers: int | None = None,
    watcher: Watcher | None = None,
    save_adversarial: str | Path | None = None,
) -> Result:
    """Finish a run of a named model, on this machine or another.

    Args:
      run_dir: folder of the run.
      device, batch_size: as in `evaluate`.
      workers: as in `Options`.
      watcher: is told of progress.
      save_adversarial: where the adversarial images lie now; by default where the run last kept them, if it did.
    Raises:
      RunError: the folder is no run, or its model or data were handed in from Python.
    """
    folder = Path(run_dir)
    run = Run.open(folder)
    plan = run.plan
    if plan.model.reference is None or plan.data.source not in ("folder", plan.protocol["data"]["source"]):
        what = "a model" if plan.model.reference is None else "data"
        advice = f'Call `robench.evaluate` again with the same arguments and `run_dir="{folder}"`.'
        raise RunError(complaint(str(folder), "plan.json", f"of {what} handed in from Python", "names to load", advice))
    options = Options(
        name=plan.model.name,
        weights=plan.weights,
        shard_size=plan.shard_size,
        workers=workers,
        watcher=watcher or Silent(),
        save_adversarial=save_adversarial or _kept_in(run),
    )
    # A run without limit may have begun with all that was there of an incomplete set: more than that must do again.
    limit = plan.data.limit or max(plan.data.count, plan.data.of)
    request = _Request(plan.model.reference, plan.data.path, limit, device, batch_size, options)
    _check_numbers(request)
    return _evaluate(request, Registered(plan.parsed_protocol(), plan.official), folder)


@dataclasses.dataclass(frozen=True)
class _Request:
    """The arguments of `evaluate` that hold for every protocol."""

    model: Any
    data: Any
    limit: int | None
    device: str | torch.device | None
    batch_size: int | None
    options: Options


def _evaluate(request: _Request, registered: Registered, run_dir: str | Path | None) -> Result:
    protocol, options = registered.protocol, request.options
    stages, budget = build_attack(protocol)
    with _same_random_state(request.device), _exact_arithmetic():
        classifier, loaded = _load(request)
        source = open_source(
            protocol.data.source,
            request.data,
            resize=protocol.data.resize,
            crop=protocol.data.crop,
            limit=request.limit,
            workers=options.workers,
        )
        planned = _planned_data(protocol, source, request)
        gradients = any(stage.attack.gradients for stage in stages)
        caveats, batch = look_at_model(classifier, source, gradients=gradients)
        model = model_record(classifier, loaded, batch.shape[2:])
        fast = quicken(classifier, batch, measures=_measures(options) if stages else (), gradients=gradients)
        plan = Plan(
            key=run_key(
                protocol_digest=protocol.digest,
                official=registered.official,
                model=model,
                data=planned,
                attack_revision=REVISION,
            ),
            protocol=protocol.model_dump(mode="json", by_alias=True, exclude_none=True),
            official=registered.official,
            model=model,
            weights=str(Path(options.weights).resolve()) if options.weights is not None else None,
            data=planned,
            shard_size=options.shard_size,
            attack_revision=REVISION,
            fast_path=fast.measures,
            caveats=tuple(caveats),
        )
        folder = Path(run_dir) if run_dir is not None else default_folder(plan, protocol)
        adversarial = None
        if options.save_adversarial is not None:
            adversarial = AdversarialImages(Path(options.save_adversarial), folder, plan.key)
            adversarial.claim()
        if options.fresh and folder.exists():
            _clear(folder)
        run = Run.create(folder, plan)
        _check_same_function(run, model)
        with run.locked():
            if adversarial is not None and options.fresh:
                adversarial.clear()
            if run.plan.fast_path != fast.measures:
                fast = quicken(classifier, batch, measures=run.plan.fast_path, gradients=gradients)
            if run.finished:
                options.watcher.notice(f"Reusing the finished run {folder} (`--fresh` starts over).")
                result = read_result(folder)
                if adversarial is not None:
                    adversarial.check(result.read_outcomes())
            else:
                run.record("fast path", {"measures": fast.measures, "notes": fast.notes})
                for note in fast.notes:
                    options.watcher.notice(note)
                work = Execution(
                    run,
                    classifier=classifier,
                    faster=fast.classifier,
                    source=source,
                    slots=request.batch_size or _slots(fast.classifier, batch),
                    watcher=options.watcher,
                )
                work.attack(stages, budget, adversarial=adversarial)
                result = run.merge(environment())
                options.watcher.end(result)
        if options.showcase is not None:
            options.watcher.notice("Attacking a few examples again, to show them.")
            models, outcomes = (fast.classifier, classifier), result.read_outcomes()
            options.showcase.fill(outcomes, protocol, source, stages=stages, budget=budget, models=models)
    return result


def _measures(options: Options) -> tuple[str, ...]:
    """What the options allow to make the model faster."""
    return (*MEASURES, COMPILED)[: len(MEASURES) + options.compile] if options.fast_path else ()


def _slots(classifier: Classifier, batch: Tensor) -> int:
    """Examples attacked at a time where the caller does not say."""
    if classifier.device.type == "cpu":
        return CPU_SLOTS
    rows = batch.to(classifier.device)
    return best_batch_size(lambda size: pass_rate(classifier, rows[torch.arange(size) % len(rows)]))


def default_folder(plan: Plan, protocol: Protocol) -> Path:
    """`runs/<model>/<protocol>-<first 8 digits of the run key>`."""
    model = re.sub(r"[^A-Za-z0-9._-]+", "-", plan.model.name).strip("-.") or "model"
    return Path("runs") / model / f"{protocol.id}-{plan.key[:8]}"


def _check_numbers(request: _Request) -> None:
    numbers = {"limit": request.limit, "batch_size": request.batch_size, "shard_size": request.options.shard_size}
    for name, value in numbers.items():
        if value is not None and (isinstance(value, bool) or not isinstance(value, int) or value < 1):
            error = DataError if name == "limit" else RunError
            raise error(complaint("evaluate", name, repr(value), "a whole number of at least 1"))
    workers = request.options.workers
    if workers is not None and (isinstance(workers, bool) or not isinstance(workers, int) or workers < 0):
        raise RunError(complaint("evaluate", "workers", repr(workers), "a whole number of at least 0"))
    if request.device is not None:
        try:
            torch.empty(0, device=request.device)
        except (RuntimeError, AssertionError) as failure:
            found, advice = f"`{request.device}`", "`robench doctor` shows what is there."
            raise RunError(complaint("evaluate", "device", found, "a device of this machine", advice)) from failure


@contextmanager
def _same_random_state(device: str | torch.device | None) -> Iterator[None]:
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


def _load(request: _Request) -> tuple[Classifier, Loaded | None]:
    options = request.options
    loaded = resolve_model(request.model, weights=options.weights) if isinstance(request.model, str) else request.model
    if not isinstance(loaded, Loaded):
        return Classifier(loaded, name=options.name, device=request.device), None
    model = loaded.model
    if isinstance(model, torch.nn.Module) and request.device is not None:
        model = model.to(request.device)
    return Classifier(model, name=options.name or loaded.name, device=request.device), loaded


def _planned_data(protocol: Protocol, source: Source, request: _Request) -> PlannedData:
    total = len(source.ids)
    limit = request.limit if request.limit is not None and request.limit < total else None
    path = str(Path(request.data).resolve()) if isinstance(request.data, str | Path) else None
    return PlannedData(
        source=source.name,
        path=path,
        count=limit or total,
        of=protocol.data.count,
        limit=limit,
        ids_sha256=ids_digest(source.ids[:limit]),
        labels_sha256=ids_digest(str(label) for label in source.labels[:limit]),
        content_sha256=getattr(source, "content_sha256", None),
        official=total == protocol.data.count and ids_digest(source.ids) == protocol.data.ids_sha256,
    )


def _check_same_function(run: Run, model: ModelRecord) -> None:
    """A model that is resumed must say what it said, up to what another machine may change."""
    planned = run.plan.model.fingerprint
    differing = sum(
        then[0] != now[0] or not math.isclose(then[1], now[1], rel_tol=0.02, abs_tol=0.02)
        for then, now in zip(planned, model.fingerprint, strict=True)
    )
    if differing > len(planned) // 16:
        found = f"different on {differing} of {len(planned)} pinned images"
        advice = "Its code changed since the run began: use `--fresh` to start over."
        raise RunError(complaint(str(run.folder), "model", found, "the same answers as when the run began", advice))


def _kept_in(run: Run) -> str | None:
    """Where the run kept its adversarial images when it was last started."""
    starts = [event for event in run.events() if event["event"] == "start"]
    kept: str | None = starts[-1].get("save_adversarial") if starts else None
    return kept


def _clear(folder: Path) -> None:
    """Delete a run, and nothing that is none."""
    try:
        empty = not any(folder.iterdir())
    except OSError as error:
        found = f"no folder ({error.strerror or type(error).__name__})"
        raise RunError(complaint(str(folder), "run_dir", found, "the folder of a run, or a new one")) from error
    if empty:
        return
    if not (folder / "plan.json").exists():
        raise RunError(complaint(str(folder), "run_dir", "not a run", "a run to start over, or a new folder"))
    Run.open(folder).clear()
