"""Many models under many protocols: a plan in TOML, each run in a Ray task, results the moment they are ready.

Tasks are workers on run folders (`share`), so a task that is lost loses nothing that was finished, a restart skips
what is done, and processes with nothing left of their own help with the runs that are still going. Not here:
what one evaluation does (`evaluation`), Ray itself (`cluster`), and tables (`cli`).
"""

import json
import tomllib
from collections import Counter, deque
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from robench.attacks import REVISION
from robench.cluster import RETRIES, whole_path
from robench.errors import RobenchError, RunError, complaint
from robench.estimate import estimate
from robench.evaluation import Options, evaluate
from robench.forecast import Work
from robench.hub import SCHEME
from robench.preparation import default_shard_size
from robench.registry import resolve
from robench.result import read_result
from robench.runs import Run, write_whole, writing
from robench.zoo import MODELS

POLL_SECONDS = 0.5
"""Between two looks at tasks."""
ROOM = 1.25
"""A task gets so much more of a GPU than the most memory its model was seen to hold."""
PARTS = 8
"""GPUs are shared in eighths."""


class _Table(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class SweptModel(_Table):
    """A model of a sweep."""

    model: str
    weights: Path | None = None
    name: str | None = None
    survivors: float = Field(default=1.0, ge=0, le=1)
    """Share of the attacked examples that survive, for `robench estimate`."""


class SweepPlan(_Table):
    """Models, protocols, and what holds for all of them."""

    schema_name: Literal["robench.sweep/1"] = Field(alias="schema")
    protocols: tuple[str, ...] = Field(min_length=1)
    models: tuple[SweptModel, ...] = Field(min_length=1)
    run_dir: Path = Path("runs/sweep")
    data: Path | None = None
    limit: int | None = Field(default=None, gt=0)
    device: str | None = None
    batch_size: int | None = Field(default=None, gt=0)

    def jobs(self) -> list["Job"]:
        """Every model under every protocol."""
        return [Job(self, model, protocol) for model in self.models for protocol in self.protocols]


@dataclass(frozen=True)
class Job:
    """One run of a sweep."""

    plan: SweepPlan
    model: SweptModel
    protocol: str

    @property
    def name(self) -> str:
        """Of model and protocol."""
        return f"{self.model.name or self.model.model} under {self.protocol}"

    @property
    def folder(self) -> Path:
        """Of its run."""
        safe = [
            "".join(sign if sign.isalnum() or sign in "._-@" else "-" for sign in part)
            for part in (self.model.name or self.model.model, self.protocol)
        ]
        return self.plan.run_dir.resolve() / safe[0] / safe[1]

    def arguments(self) -> dict[str, Any]:
        """Of `robench.evaluate`, or of `robench.estimate.estimate` without the folder."""
        options = Options(name=self.model.name, weights=self.model.weights)
        plan = self.plan
        shared = {"data": plan.data, "limit": plan.limit, "device": plan.device, "batch_size": plan.batch_size}
        return {**shared, "options": options}


@dataclass(frozen=True)
class Row:
    """What became of a job: a result in one line, or an error."""

    job: str
    folder: str
    result: str = ""
    error: str = ""


def read_sweep(path: Path) -> SweepPlan:
    """Read a plan and check that its protocols are there.

    Raises:
      RunError: it cannot be read, or a key is unknown, missing or wrong.
      ProtocolError: there is no such protocol.
    """
    try:
        plan = SweepPlan.model_validate(tomllib.loads(path.read_text()))
    except (OSError, UnicodeDecodeError) as error:
        raise RunError(complaint(str(path), "file", f"unreadable ({error})", "the plan of a sweep")) from error
    except tomllib.TOMLDecodeError as error:
        raise RunError(complaint(str(path), "file", f"no TOML ({error})", "the plan of a sweep")) from error
    except ValidationError as error:
        first = error.errors()[0]
        key = ".".join(map(str, first["loc"])) or "plan"
        advice = "docs/scale.md explains every key."
        raise RunError(
            complaint(str(path), key, repr(first["input"])[:80], first["msg"].removeprefix("Input should be "), advice)
        ) from error
    for protocol in plan.protocols:
        resolve(protocol)
    models = tuple(each.model_copy(update={"weights": whole_path(each.weights)}) for each in plan.models)
    places = {"run_dir": plan.run_dir.resolve(), "data": whole_path(plan.data), "models": models}
    plan = plan.model_copy(update=places)
    folders = [job.folder for job in plan.jobs()]
    twice = next((job.name for job in plan.jobs() if folders.count(job.folder) > 1), None)
    if twice is not None:
        raise RunError(complaint(str(path), "models", f"naming `{twice}` twice", "a `name` of its own for each"))
    return plan


def sweep(plan: SweepPlan, ray: Any, *, processes: int, on_row: Callable[[Row], None]) -> list[Row]:
    """Evaluate every model of a plan under every protocol; what is finished already is only read.

    Args:
      plan: what to do.
      ray: the module, connected; None evaluates one after the other in this process.
      processes: tasks at a time; on GPUs those that fit.
      on_row: told of each job as it ends.
    Returns:
      A row for each job, in order of the plan; they are in `summary.json` of the plan's folder, too, as they come.
    Raises:
      RunError: the folder cannot be written.
    """
    rows: dict[str, Row] = {}

    def end(job: Job, row: Row) -> None:
        rows[job.name] = row
        ordered = [rows[each.name] for each in plan.jobs() if each.name in rows]
        content = json.dumps([row.__dict__ for row in ordered], indent=2) + "\n"
        with writing(plan.run_dir):
            plan.run_dir.mkdir(parents=True, exist_ok=True)
            write_whole(plan.run_dir / "summary.json", content.encode())
        on_row(row)

    missing = []
    for job in plan.jobs():
        row = row_without_its_model(job)
        if row is not None:
            end(job, row)
        else:
            missing.append(job)
    on_gpu = str(plan.device or "").startswith("cuda")
    ended = _here(missing) if ray is None else _Tasks(ray, missing, processes, on_gpu=on_gpu).ended()
    for job, row in ended:
        end(job, row)
    return [rows[job.name] for job in plan.jobs()]


def shards_done(plan: SweepPlan) -> tuple[int, int]:
    """Finished shards of the runs that have begun, and how many all these have."""
    done = total = 0
    for job in plan.jobs():
        if (job.folder / "plan.json").exists():
            with suppress(RobenchError):
                run = Run.open(job.folder)
                done, total = done + len(run.finished_shards()), total + run.plan.shards
    return done, total


def carry_out(job: Job) -> Row:
    """Evaluate one model under one protocol; a failure is a row, too."""
    try:
        result = evaluate(job.model.model, job.protocol, run_dir=job.folder, **job.arguments())
    except RobenchError as error:
        return Row(job.name, str(job.folder), error=str(error))
    except Exception as error:  # a model's own code may raise anything, and the other runs go on
        return Row(job.name, str(job.folder), error=f"{type(error).__name__}: {error}")
    return Row(job.name, str(job.folder), result=str(result))


def row_without_its_model(job: Job) -> Row | None:
    """The row of a run that is finished, without loading its model; None where `evaluate` must look.

    It must where something else may be meant by now: another model, protocol, data or attack, or what a name does not
    pin: a file of weights, a folder, a function. Whatever is damaged is its affair, too.
    """
    try:
        result = read_result(job.folder)
        plan = Run.open(job.folder).plan
    except RobenchError:
        return None
    own, _, revision = job.model.model.partition("@")
    registered, data, limit = resolve(job.protocol), plan.data, job.plan.limit
    reference = plan.model.reference or ""
    same = (
        (reference in MODELS or reference.startswith(("timm:", SCHEME)))
        and reference in (own, f"timm:{own}")
        and revision in ("", plan.model.revision)
        and plan.model.name == (job.model.name or plan.model.name)
        and (plan.weights, job.model.weights) == (None, None)
        and (plan.parsed_protocol(), plan.official) == (registered.protocol, registered.official)
        and plan.attack_revision == REVISION
        and plan.engine == "native"
        and data.path == (str(job.plan.data) if job.plan.data is not None else None)
        and (data.limit == limit or (data.limit is None and limit is not None and limit >= data.count))
    )
    return Row(job.name, str(job.folder), result=str(result)) if same else None


def _here(jobs: list[Job]) -> Iterator[tuple[Job, Row]]:
    for job in jobs:
        yield job, carry_out(job)


class _Tasks:
    """The tasks of a sweep on Ray."""

    def __init__(self, ray: Any, jobs: list[Job], processes: int, *, on_gpu: bool) -> None:
        self._ray, self._processes, self._on_gpu = ray, processes, on_gpu
        self._waiting = deque(jobs)
        self._going: dict[Any, Job] = {}
        self._ended: set[str] = set()

    def ended(self) -> Iterator[tuple[Job, Row]]:
        """Jobs as they end."""
        while self._waiting or self._going:
            self._fill()
            done, _ = self._ray.wait(list(self._going), timeout=POLL_SECONDS)
            for task in done:
                job = self._going.pop(task)
                row = self._row(task, job)
                if job.name in self._ended or (row.error and job in self._going.values()):
                    continue  # a helper of a run that another has ended, or may still end
                self._ended.add(job.name)
                yield job, row

    def _fill(self) -> None:
        """Start what fits; processes without a run of their own help where fewest are at work."""
        while self._waiting and len(self._going) < self._processes:
            self._start(self._waiting.popleft())
        free = self._processes - len(self._going)
        crews = Counter(self._going.values() if free else ())
        missing = {job: self._missing(job) for job in crews}
        for _ in range(free if missing else 0):
            job = max(missing, key=lambda job: missing[job] / (crews[job] + 1))
            if missing[job] <= 2 * crews[job]:
                return
            self._start(job)
            crews[job] += 1

    def _start(self, job: Job) -> None:
        share = gpu_share(job) if self._on_gpu else 0.0
        task = self._ray.remote(num_cpus=1, num_gpus=share, max_retries=RETRIES)(carry_out)
        self._going[task.remote(job)] = job

    def _row(self, task: Any, job: Job) -> Row:
        try:
            row: Row = self._ray.get(task)
        except self._ray.exceptions.RayError as error:
            reason = " ".join(str(error).split())[:200]
            return Row(job.name, str(job.folder), error=f"the worker was lost {RETRIES + 1} times: {reason}")
        return row

    @staticmethod
    def _missing(job: Job) -> int:
        """Shards that a run misses; none while it has no plan."""
        if not (job.folder / "plan.json").exists() or (job.folder / "result.json").exists():
            return 0
        try:
            return len(Run.open(job.folder).missing_shards())
        except RobenchError:  # a damaged run is the row of its own task, not the end of the others
            return 0


def gpu_share(job: Job) -> float:
    """The part of a GPU that a run of a model gets: all of it, until some run of that model has measured its memory."""
    import torch

    peaks: list[int] = []
    for path in job.folder.parent.glob("*/cost.json"):
        with suppress(OSError, ValueError, KeyError, TypeError):  # of a run that was killed while it was merged
            peaks.append(int(json.loads(path.read_bytes())["peak_memory_bytes"]))
    if not peaks or not torch.cuda.is_available():
        return 1.0
    total = torch.cuda.get_device_properties(0).total_memory
    return min(1.0, max(1, -(-int(PARTS * ROOM * max(peaks)) // total)) / PARTS)


def works_of(plan: SweepPlan) -> Iterator[Work]:
    """What each run of a plan takes one worker, from a few batches timed on this machine's device.

    Raises:
      ProtocolError, ModelError, DataError, RunError: as in `robench.evaluate`; nothing is attacked or written.
    """
    for job in plan.jobs():
        found = estimate(job.model.model, job.protocol, **job.arguments())
        protocol = resolve(job.protocol).protocol
        attacked = max(round(found.clean * found.examples), 1) if protocol.score.asks is None else found.examples
        yield Work(
            name=job.name,
            examples=attacked,
            surviving_seconds=found.seconds / attacked,
            survivors=job.model.survivors if protocol.attack is not None and protocol.score.asks is None else 1.0,
            shard_size=default_shard_size(protocol),
            slots=found.slots,
        )
