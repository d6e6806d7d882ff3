"""Workers of a run on a Ray cluster: Ray places them and starts them again, the run folder does the rest.

Not here: how workers share a run (`share`), and sweeps over many runs (`sweep`).
"""

import importlib
import os
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

from robench.errors import RobenchError, RunError, complaint, did_you_mean
from robench.progress import Silent
from robench.runs import Run
from robench.share import Rank

EXECUTORS = ("local", "ray")
RETRIES = 3
"""So often Ray starts a task again whose worker was lost."""
KEPT = "What is finished is kept: the same command goes on."


@contextmanager
def cluster(address: str | None = None, *, cpus: int | None = None) -> Iterator[Any]:
    """The `ray` module, connected; what was started here is ended again.

    Args:
      address: of a cluster; None starts one on this machine.
      cpus: tasks that fit beside one another on a cluster started here.
    Raises:
      RunError: Ray is not installed, or there is no cluster at the address.
    """
    try:
        ray: Any = importlib.import_module("ray")
    except ImportError as error:
        advice = "Install it: `pip install 'robench[ray]'`."
        raise RunError(complaint("robench", "ray", "not installed", "the package", advice)) from error
    if ray.is_initialized():
        yield ray
        return
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    paths = os.pathsep.join(path or str(Path.cwd()) for path in sys.path)  # workers import what this process can
    try:
        if address is not None:
            ray.init(address=address, log_to_driver=False, runtime_env={"env_vars": {"PYTHONPATH": paths}})
        else:
            # Workers that Ray starts beforehand have its own environment, and would not fit another.
            with _python_path(paths), _importing():
                ray.init(num_cpus=cpus, include_dashboard=False, log_to_driver=False)
    except (ConnectionError, RuntimeError, ValueError) as error:
        found = f"`{address}` ({' '.join(str(error).split())[:200]})"
        raise RunError(complaint("ray", "address", found, "a cluster that can be reached")) from error
    try:
        yield ray
    finally:
        ray.shutdown()


@contextmanager
def _python_path(paths: str) -> Iterator[None]:
    """What processes that are started meanwhile inherit."""
    before = os.environ.get("PYTHONPATH")
    os.environ["PYTHONPATH"] = paths
    try:
        yield
    finally:
        del os.environ["PYTHONPATH"]
        if before is not None:
            os.environ["PYTHONPATH"] = before


@contextmanager
def _importing() -> Iterator[None]:
    """Import what an evaluation needs, which takes seconds, beside what is mostly waiting."""
    thread = threading.Thread(target=_arrive, daemon=True)
    thread.start()
    try:
        yield
    finally:
        thread.join()


_PATHS = ("weights", "textures", "clean", "reference_weights")
"""Options that may be paths."""


def whole_path(value: Any) -> Any:
    """A path of this host as any folder calls it, for tasks run where Ray was started; all else as it is."""
    if isinstance(value, str | Path):
        with suppress(OSError):  # a place that may not be looked at is refused where it is read
            if Path(value).exists():
                return type(value)(Path(value).resolve())
    return value


class RayCrew:
    """Ray tasks that make the shards of a run; each is one worker on its folder, which all hosts must see.

    Args:
      ray: the module, connected.
      processes: tasks.
      gpus: of each task; a fraction lets several share one.
    """

    def __init__(self, ray: Any, processes: int, *, gpus: float = 0.0) -> None:
        self._ray, self._processes, self._gpus = ray, processes, gpus
        self._work: tuple[Any, dict[str, Any]] | None = None
        self._tasks: list[Any] = []
        if not gpus:  # Ray ends a worker after a task with a GPU
            for _ in range(processes):
                ray.remote(num_cpus=1)(_arrive).remote()

    def take_on(self, model: Any, **arguments: Any) -> None:
        """Say what `robench.evaluate` is called with: a name, or what Ray can pickle, and the rest."""
        given = {name: value for name, value in arguments.items() if name != "run_dir"}
        options = given["options"]
        paths = {name: whole_path(getattr(options, name)) for name in _PATHS}
        self._work = model, {**given, "data": whole_path(given.get("data")), "options": replace(options, **paths)}

    def start(self, run: Run, *, save_adversarial: Path | None) -> None:
        assert self._work is not None, "a crew takes on its work first"
        model, arguments = self._work
        protocol = run.plan.parsed_protocol()
        task = self._ray.remote(num_cpus=1, num_gpus=self._gpus, max_retries=RETRIES)(_attack)
        for index in range(self._processes):
            rank = Rank(index + 1, self._processes)  # rank 0 is here, and does not attack
            # Not `fresh`: who planned the run has started over already.
            settings: dict[str, Any] = {"crew": None, "watcher": Silent(), "showcase": None, "fresh": False}
            options = replace(arguments["options"], rank=rank, save_adversarial=save_adversarial, **settings)
            chosen = {**arguments, "options": options, "run_dir": str(run.folder.resolve())}
            self._tasks.append(task.remote(model, protocol.exact_name if run.plan.official else protocol, chosen))

    def check(self) -> None:
        done, going = self._ray.wait(self._tasks, num_returns=len(self._tasks), timeout=0)
        if going:
            return
        for each in done:
            try:
                self._ray.get(each)
            except self._ray.exceptions.RayTaskError as error:
                cause = error.cause
                raise (cause if isinstance(cause, RobenchError) else error) from None
            except self._ray.exceptions.RayError as error:
                reason = " ".join(str(error).split())[:200]
                found = f"lost, {RETRIES + 1} times ({reason})"
                raise RunError(complaint("ray", "workers", found, "living workers", KEPT)) from error


def _arrive() -> None:
    """A task that only prepares: who carries it out is ready when there is a run."""
    with suppress(Exception):  # whoever needs it will say what is wrong
        importlib.import_module("robench.evaluation")


def _attack(model: Any, protocol: Any, arguments: dict[str, Any]) -> None:
    """A task: work on a run until none of its shards is missing."""
    from robench.evaluation import evaluate

    evaluate(model, protocol, **arguments)


def check_executor(command: str, executor: str) -> None:
    """Check the name of an executor.

    Raises:
      RunError: there is no such executor.
    """
    if executor not in EXECUTORS:
        advice = did_you_mean(executor, EXECUTORS)
        raise RunError(complaint(command, "executor", f"`{executor}`", "`local` or `ray`", advice))


@contextmanager
def crew_of(executor: str, processes: int, address: str | None, *, device: str | None) -> Iterator[RayCrew | None]:
    """The processes that attack instead of this one; None if it attacks itself.

    Raises:
      RunError: there is no such executor, or Ray cannot be reached.
    """
    check_executor("evaluate", executor)
    if executor == "local":
        if processes != 1 or address is not None:
            option, value = ("processes", processes) if processes != 1 else ("address", f"`{address}`")
            advice = "Add `--executor ray`; or use torchrun, see docs/scale.md."
            raise RunError(complaint("evaluate", option, value, "none without Ray", advice))
        yield None
        return
    with cluster(address, cpus=processes) as ray:
        yield RayCrew(ray, processes, gpus=float(str(device or "").startswith("cuda")))
