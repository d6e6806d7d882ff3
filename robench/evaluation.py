"""Evaluates a model under a protocol: the one room that knows records and computation.

What was prepared is attacked shard by shard into a run folder, and the shards are merged into a result.

Not here: what is checked before (`preparation`), how attacks work (`attacks`), and what is on disk (`runs`).
"""

import dataclasses
import math
import re
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, overload

import torch

from robench.adversarial import AdversarialImages
from robench.claims import working
from robench.classifier import naming_failures
from robench.data import check_there
from robench.door import build_attack, rehearse, with_textures
from robench.environment import environment
from robench.errors import RunError, complaint
from robench.execution import Execution
from robench.preparation import Options, Prepared, Request, check_numbers, prepared, same_random_state
from robench.progress import Silent, Watcher
from robench.protocol import Protocol
from robench.registry import Registered, resolve
from robench.result import ModelRecord, Result, read_result
from robench.runs import Plan, Run, in_use
from robench.share import Rank, Share
from robench.zoo import resolve as resolve_model

__all__ = ["Options", "evaluate", "resume"]

PLAN_SECONDS = 600.0
"""So long other ranks wait for the plan of rank 0, which checks the model and audits it first."""
MERGE_SECONDS = 60.0
"""So long they wait for its result, once every shard is there."""


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
      model: a name (`mini-resnet`, `hf-hub:org/name`, `module.path:function`), an `nn.Module` in eval mode, or any
        callable on float32 RGB images in [0, 1], shape (N, 3, H, W), that returns logits, shape (N, K).
      protocol: id (`mini-pgd-linf`), exact name (`mini-pgd-linf@1`), path of a TOML file, a
        `robench.protocol.Protocol`, or a list.
      data: None for the protocol's own data; a folder, of the protocol's images or with one sub-folder
        per class; `hf-hub:org/name[@revision]`; a pair (images, labels); or a `robench.data.Source`. Other
        data than the protocol's makes the result unofficial.
      limit: only the first so many examples, a random sample; makes the result partial.
      run_dir: folder of the run; by default `runs/<model>/<protocol>-<run key>`.
      device: by default where a handed-in module lies, else the CPU.
      batch_size: examples attacked at a time; by default 128 on a CPU, 64 of images above 64 x 64
        pixels; on a GPU the most that fit and pay.
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
    chosen = options or Options()
    registered = [resolve(name) for name in names]
    if chosen.textures is not None:
        registered = [with_textures(entry, chosen.textures) for entry in registered]
    for entry in registered:  # a mistake in the last protocol must not cost the runs before it
        stages, budget = build_attack(entry.protocol, textures=chosen.textures)
        side = entry.protocol.data.crop
        rehearse(stages, budget, size=(side, side), classes=entry.protocol.data.classes)
        if data is None:
            check_there(entry.protocol.data.source)
    request = Request(model, data, limit, device, batch_size, chosen)
    check_numbers(request)
    if isinstance(model, str):
        with same_random_state(device):
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
    own = plan.protocol["data"]["source"]
    if plan.model.reference is None or plan.data.source not in ("folder", "hub", own, f"{own}-generated"):
        what = "a model" if plan.model.reference is None else "data"
        advice = f'Call `robench.evaluate` again with the same arguments and `run_dir="{folder}"`.'
        raise RunError(complaint(str(folder), "plan.json", f"of {what} handed in from Python", "names to load", advice))
    options = Options(
        name=plan.model.name,
        weights=plan.weights,
        textures=plan.textures,
        shard_size=plan.shard_size,
        engine=plan.engine,
        workers=workers,
        clean=plan.data.clean,
        reference_weights=plan.reference_weights,
        watcher=watcher or Silent(),
        save_adversarial=save_adversarial or _kept_in(run),
    )
    # A run without limit may have begun with all that was there of an incomplete set: more than that must do again.
    limit = plan.data.limit or max(plan.data.count, plan.data.of)
    pin = f"@{plan.model.revision}" if plan.model.revision is not None else ""
    data = plan.data.reference or plan.data.path
    request = Request(plan.model.reference + pin, data, limit, device, batch_size, options)
    check_numbers(request)
    return _evaluate(request, Registered(plan.parsed_protocol(), plan.official), folder)


def _evaluate(request: Request, registered: Registered, run_dir: str | Path | None) -> Result:
    options = request.options
    with naming_failures(), prepared(request, registered) as scene:
        folder = Path(run_dir) if run_dir is not None else default_folder(scene.plan, scene.protocol)
        adversarial = None
        if options.save_adversarial is not None:
            adversarial = AdversarialImages(Path(options.save_adversarial), folder, scene.plan.key)
            adversarial.claim()
        if options.fresh and folder.exists():
            _clear(folder, scene.plan)
        if adversarial is not None and options.fresh:
            adversarial.clear()
        if options.rank is not None and options.rank.index:
            _await_plan(folder)
        begun = (folder / "plan.json").exists()
        run = Run.create(folder, scene.plan if begun else scene.audited())
        if scene.protocol.score.asks is None:  # what a randomised model says differs from device to device
            _check_same_function(run, scene.plan.model)
        if run.plan.fast_path != scene.fast.measures:
            scene = scene.with_measures(run.plan.fast_path)
        if run.finished:
            options.watcher.notice(f"Reusing the finished run {folder} (`--fresh` starts over).")
            result = read_result(folder)
            if adversarial is not None:
                adversarial.check(result.read_outcomes())
        else:
            result = _carry_out(run, scene, options, adversarial)
        if options.showcase is not None:
            options.watcher.notice("Attacking a few examples again, to show them.")
            models, outcomes = (scene.fast.classifier, scene.classifier), result.read_outcomes()
            options.showcase.fill(
                outcomes, scene.protocol, scene.source, stages=scene.stages, budget=scene.budget, models=models
            )
    return result


def _carry_out(run: Run, scene: Prepared, options: Options, adversarial: AdversarialImages | None) -> Result:
    """Attack what the run still misses, beside others who do, and fold it into the result."""
    rank = options.rank or Rank(0, 1)
    kept = adversarial.folder.resolve() if adversarial is not None else None
    with working(run, first=rank.index == 0, attacks=options.crew is None) as worker:
        run.record("fast path", {"measures": scene.fast.measures, "notes": scene.fast.notes})
        for note in scene.fast.notes:
            options.watcher.notice(note)
        others = worker.living() - 1
        if others and options.crew is None:
            options.watcher.notice(f"Sharing {run.folder} with {others} other process{'es' if others > 1 else ''}.")
        work = Execution(
            run,
            Share(run, worker, expected=rank.size, crew=options.crew, save_adversarial=kept),
            classifier=scene.classifier,
            faster=scene.fast.classifier,
            source=scene.source,
            slots=scene.slots,
            watcher=options.watcher,
            reference=scene.reference,
        )
        work.attack(scene.stages, scene.budget, adversarial=adversarial)
        if rank.index:
            _wait_until(lambda: run.finished, MERGE_SECONDS)
        result = read_result(run.folder) if run.finished else run.merge(environment())
    options.watcher.end(result)
    return result


def _await_plan(folder: Path) -> None:
    """Wait until rank 0 has planned the run.

    Raises:
      RunError: it has not, for a long time.
    """
    if not _wait_until((folder / "plan.json").exists, PLAN_SECONDS):
        advice = "Did rank 0 fail? Do all hosts see this folder? Name one that they share with `--run-dir`."
        found = f"not there after {PLAN_SECONDS:.0f} s"
        raise RunError(complaint(str(folder), "plan.json", found, "the plan that rank 0 writes", advice))


def _wait_until(condition: Callable[[], bool], seconds: float) -> bool:
    """Wait for something that another process does; False if it did not in this time."""
    end = time.monotonic() + seconds
    while not condition():
        if time.monotonic() > end:
            return False
        time.sleep(0.2)
    return True


def default_folder(plan: Plan, protocol: Protocol) -> Path:
    """`runs/<model>/<protocol>-<first 8 digits of the run key>`."""
    model = re.sub(r"[^A-Za-z0-9._-]+", "-", plan.model.name).strip("-.") or "model"
    return Path("runs") / model / f"{protocol.id}-{plan.key[:8]}"


def _check_same_function(run: Run, model: ModelRecord) -> None:
    """A model that is resumed must say what it said, up to what another machine may change."""
    differing, count = differing_answers(run.plan.model, model), len(model.fingerprint)
    if differing > count // 16:
        found = f"different on {differing} of {count} pinned images"
        advice = "Its code changed since the run began: use `--fresh` to start over."
        raise RunError(complaint(str(run.folder), "model", found, "the same answers as when the run began", advice))


def differing_answers(then: ModelRecord, now: ModelRecord) -> int:
    """Pinned images about which two records say more different things than another machine explains."""
    pairs = zip(then.fingerprint, now.fingerprint, strict=True)
    return sum(a[0] != b[0] or not math.isclose(a[1], b[1], rel_tol=0.02, abs_tol=0.02) for a, b in pairs)


def _kept_in(run: Run) -> str | None:
    """Where the run kept its adversarial images when it was last started."""
    starts = [event for event in run.events() if event["event"] == "start"]
    last = max(starts, key=lambda event: int(event["segment"], 16), default={})
    kept: str | None = last.get("save_adversarial")
    return kept


def _clear(folder: Path, plan: Plan) -> None:
    """Delete a run, and nothing that is none; its own plan is not read, as it may be what is damaged."""
    try:
        empty = not any(folder.iterdir())
    except OSError as error:
        found = f"no folder ({error.strerror or type(error).__name__})"
        raise RunError(complaint(str(folder), "run_dir", found, "the folder of a run, or a new one")) from error
    if empty:
        return
    if not (folder / "plan.json").exists():
        raise RunError(complaint(str(folder), "run_dir", "not a run", "a run to start over, or a new folder"))
    run = Run(folder, plan)
    with working(run) as worker:  # on other hosts, the lock that `clear` takes may mean nothing
        if worker.living() > 1:
            raise RunError(in_use(folder))
    run.clear()
