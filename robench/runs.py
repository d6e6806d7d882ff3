"""A run on disk: a plan, finished shards, events; nothing is ever lost.

A run is a folder: `plan.json` (written first), `shards/000123.csv` (outcomes of neighbouring examples,
written whole or not at all), `events.jsonl`. It may be killed at any moment and resumed. When all
shards are there, `merge` writes `outcomes.csv.gz`, `result.json` and `cost.json` from them. Several processes
may write to one run (`claims`): every file is written whole, or by one process alone.

Not here: how outcomes come about (`evaluation`), and who makes which shard (`claims`).
"""

import hashlib
import json
import os
import secrets
import shutil
import signal
import threading
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from shlex import quote
from types import FrameType
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from robench.caveats import caveats_of
from robench.errors import RunError, complaint, missing_or_unreadable
from robench.outcome import Outcome, compress, from_csv, to_csv
from robench.protocol import Protocol, Sha256, parse_protocol
from robench.result import (
    Counts,
    DataRecord,
    ModelRecord,
    OutcomesRecord,
    ProtocolRecord,
    Result,
    derive,
    read_result,
    score,
)

try:
    import fcntl
except ImportError:  # Windows has no flock; there, two processes on one run are not told apart
    fcntl = None  # type: ignore[assignment]

SHARD_SCHEMA = "robench.shard/1"
MARKER = "robench-run.json"
"""Says which run the adversarial images of a folder belong to; that folder may lie in the run's."""
_BEGINNING = {"shards", "lock", "claims", "workers", "halfway", "events.jsonl", "plan.json", "lost+found"}
"""What may lie in the folder of a run whose plan is just being written."""


class _Record(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class PlannedData(_Record):
    """The examples of a run."""

    source: str
    path: str | None = None
    """Where they were read, for `robench resume`."""
    reference: str | None = None
    """What names them on the Hub, with their commit."""
    count: int = Field(gt=0)
    of: int
    limit: int | None = None
    ids_sha256: Sha256
    labels_sha256: Sha256
    content_sha256: Sha256 | None = None
    """Of what tells other images under the same ids apart, where the source knows it without reading them."""
    clean: str | None = None
    """Where clean images were read beside corrupted ones, for `robench resume`."""
    official: bool


class Plan(_Record):
    """What a run is about; everything that is needed to finish it."""

    schema_name: Literal["robench.run/1"] = Field(default="robench.run/1", alias="schema")
    key: Sha256
    """Of all that changes the answer; see `run_key`."""
    protocol: dict[str, Any]
    official: bool
    model: ModelRecord
    weights: str | None = None
    """Path of the weights file that was named, for `robench resume`."""
    textures: str | None = None
    """Path of the texture dictionary that was named, for `robench resume`."""
    reference: ModelRecord | None = None
    """The protocol's reference model; none where it has none."""
    reference_weights: str | None = None
    """Path of its weights file, if one was named."""
    data: PlannedData
    shard_size: int = Field(gt=0)
    attack_revision: int
    engine: Literal["native", "reference"] = "native"
    """Whose attacks: ours, or those of their reference implementation."""
    fast_path: tuple[str, ...] = ()
    """What makes the copy of the model that attacks look at faster; see `robench.fastpath`."""
    caveats: tuple[str, ...] = ()

    @property
    def about(self) -> str:
        """Model, protocol and number of examples, for messages."""
        named = f"{self.protocol.get('id')}@{self.protocol.get('version')}"
        return f"{self.model.name} under {named} on {self.data.count} examples"

    @property
    def shards(self) -> int:
        """Number of shards."""
        return -(-self.data.count // self.shard_size)

    def examples_of(self, shard: int) -> range:
        """Positions of the examples of a shard."""
        return range(shard * self.shard_size, min((shard + 1) * self.shard_size, self.data.count))

    def parsed_protocol(self) -> Protocol:
        """The protocol as it was when the run began."""
        return parse_protocol(self.protocol, where="plan.json")


def run_key(
    *,
    protocol_digest: str,
    official: bool,
    model: ModelRecord,
    data: PlannedData,
    attack_revision: int,
    engine: str = "native",
    reference: ModelRecord | None = None,
) -> str:
    """SHA-256 of what changes the answer; device, batch size and workers do not.

    A model with parameters is known by their digest and its configuration; a bare callable by its name
    and the classes it gives the pinned images.
    """
    identity: dict[str, Any] = {"loader": model.loader, "reference": model.reference, "state": model.state_digest}
    identity["configuration"] = model.configuration_sha256
    if model.state_digest is None:
        identity |= {"name": model.name, "classes": [best for best, _ in model.fingerprint]}
    content = {
        "protocol": protocol_digest,
        "official": official,
        "model": identity,
        "ids": data.ids_sha256,
        "labels": data.labels_sha256,
        "content": data.content_sha256,
        "limit": data.limit,
        "attack_revision": attack_revision,
    }
    if engine != "native":
        content["engine"] = engine
    if reference is not None:
        content["reference"] = reference.state_digest
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()


@dataclass(frozen=True)
class Shard:
    """Outcomes of neighbouring examples, and the sum of their pixel digests modulo 2**256."""

    index: int
    outcomes: Sequence[Outcome]
    pixels: int


class Run:
    """A run folder that this process may write to; get one with `create` or `open`.

    Attributes:
      journal: where this process records events.
    """

    def __init__(self, folder: Path, plan: Plan) -> None:
        self.folder, self.plan = folder, plan
        self.journal = folder / "events.jsonl"

    @classmethod
    def create(cls, folder: Path, plan: Plan) -> "Run":
        """Write the plan into a new folder, or find the same run already there.

        Raises:
          RunError: the folder holds another run or something else, or cannot be written.
        """
        if not (folder / "plan.json").exists():
            _check_nothing_else(folder)
            content = plan.model_dump_json(by_alias=True, indent=2).encode() + b"\n"
            with writing(folder):
                (folder / "shards").mkdir(parents=True, exist_ok=True)
                write_whole(folder / "plan.json", content, first=True)
        run = cls.open(folder)  # another process may have been quicker
        if run.plan.key != plan.key:
            held = f"It holds {run.plan.about}; this call is about {plan.about}."
            advice = f"{held} Choose another `run_dir`, or use `--fresh` to start over here."
            raise RunError(complaint(str(folder), "run key", run.plan.key, f"{plan.key} for this call", advice))
        return run

    @classmethod
    def open(cls, folder: Path) -> "Run":
        """Find a run in its folder.

        Raises:
          RunError: there is no plan, or it cannot be read.
        """
        path = folder / "plan.json"
        try:
            return cls(folder, Plan.model_validate_json(path.read_bytes()))
        except OSError as error:
            advice = "`robench evaluate` starts a run and prints its folder."
            found = missing_or_unreadable(error)
            raise RunError(complaint(str(folder), "plan.json", found, "the folder of a run", advice)) from error
        except ValidationError as error:
            first = error.errors()[0]
            key = ".".join(map(str, first["loc"])) or "plan"
            advice = "Start over: `robench evaluate` with `--fresh`."
            raise RunError(complaint(str(path), key, repr(first["input"])[:80], first["msg"], advice)) from error

    @contextmanager
    def locked(self) -> Iterator[None]:
        """Keep other processes out of the folder; the lock goes with the process, however it ends.

        Raises:
          RunError: another process is working on this run.
        """
        with self._lock(shared=False):
            yield

    @contextmanager
    def shared(self) -> Iterator[None]:
        """Work on the run beside others who do; nobody can start over meanwhile.

        Raises:
          RunError: another process is starting over.
        """
        with self._lock(shared=True):
            if not (self.folder / "plan.json").exists():
                raise RunError(in_use(self.folder))
            yield

    @contextmanager
    def _lock(self, *, shared: bool) -> Iterator[None]:
        with writing(self.folder):
            file = (self.folder / "lock").open("w")
        with file:
            if fcntl is not None:
                try:
                    fcntl.flock(file, (fcntl.LOCK_SH if shared else fcntl.LOCK_EX) | fcntl.LOCK_NB)
                except OSError as error:
                    if isinstance(error, BlockingIOError | PermissionError):
                        raise RunError(in_use(self.folder)) from error
                    found = f"on a file system without locks ({error.strerror})"
                    advice = "Mount it with `flock`, or choose another `--run-dir`."
                    raise RunError(complaint(str(self.folder), "run", found, "one that has them", advice)) from error
            yield

    def clear(self) -> None:
        """Delete what this run wrote, and nothing else.

        Raises:
          RunError: another process is working on the run, or the folder cannot be written.
        """
        with self.locked(), writing(self.folder):
            for path in (self.folder / "shards").glob("*.csv"):
                path.unlink()
            for folder in ("claims", "workers", "halfway"):
                shutil.rmtree(self.folder / folder, ignore_errors=True)
            for name in ("result.json", "cost.json", "outcomes.csv.gz", "events.jsonl", "plan.json"):
                (self.folder / name).unlink(missing_ok=True)

    @property
    def finished(self) -> bool:
        """Whether the result is written."""
        return (self.folder / "result.json").exists()

    def shard_path(self, index: int) -> Path:
        """File of a shard."""
        return self.folder / "shards" / f"{index:06d}.csv"

    def finished_shards(self) -> set[int]:
        """Shards that have a file."""
        files = (self.folder / "shards").glob("[0-9]*.csv")
        return {int(path.stem) for path in files if path.stem.isdecimal()} & set(range(self.plan.shards))

    def missing_shards(self) -> list[int]:
        """Shards that have no file yet."""
        return sorted(set(range(self.plan.shards)) - self.finished_shards())

    def write_shard(self, shard: Shard) -> None:
        """Write a shard, whole or not at all.

        Raises:
          RunError: the disk is full or the folder cannot be written.
        """
        body = to_csv(shard.outcomes)
        header = {
            "schema": SHARD_SCHEMA,
            "run": self.plan.key,
            "index": shard.index,
            "rows": len(shard.outcomes),
            "pixels": f"{shard.pixels:064x}",
        }
        header["sha256"] = _shard_digest(header, body)
        with writing(self.folder):
            write_whole(
                self.shard_path(shard.index), b"# " + json.dumps(header, sort_keys=True).encode() + b"\n" + body
            )

    def read_shard(self, index: int) -> Shard:
        """Read a shard and check that it is whole, unedited and of this run.

        Raises:
          RunError: it is not; digests found and expected are named.
        """
        path = self.shard_path(index)
        advice = f"Delete the file and resume: its {len(self.plan.examples_of(index))} examples are attacked again."
        try:
            first, _, body = path.read_bytes().partition(b"\n")
        except OSError as error:
            reason = error.strerror or type(error).__name__
            raise RunError(complaint(str(path), "file", f"unreadable ({reason})", "a shard", advice)) from error
        try:
            header = json.loads(first.removeprefix(b"# "))
            stated, run, place = str(header.pop("sha256")), str(header["run"]), header["index"]
            pixels = int(header["pixels"], 16)
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            found = hashlib.sha256(first).hexdigest()
            message = complaint(
                str(path), "header", f"unreadable (sha256 {found})", f"a shard of run {self.plan.key}", advice
            )
            raise RunError(message) from error
        if run != self.plan.key:
            raise RunError(complaint(str(path), "run", run, f"{self.plan.key} (a shard of this run)", advice))
        found = _shard_digest(header, body)
        if found != stated:
            raise RunError(complaint(str(path), "sha256", found, f"{stated}, as its header says", advice))
        outcomes = from_csv(body, where=str(path))
        if place != index or len(outcomes) != len(self.plan.examples_of(index)):
            what = f"{place} with {len(outcomes)} rows (sha256 {found})"
            expected = f"{index} with {len(self.plan.examples_of(index))} rows"
            raise RunError(complaint(str(path), "index", what, expected, advice))
        return Shard(index, outcomes, pixels)

    def record(self, event: str, details: Mapping[str, Any]) -> None:
        """Append a line to the journal of this process.

        Raises:
          RunError: the disk is full or the folder cannot be written.
        """
        path = self.journal
        with writing(self.folder), path.open("ab+") as file:
            # A line that was cut by a kill must not swallow this one.
            torn = file.tell() > 0 and not _ends_line(path)
            file.write((b"\n" if torn else b"") + json.dumps({"event": event, **details}).encode() + b"\n")

    def events(self) -> list[dict[str, Any]]:
        """The lines of `events.jsonl`, then those of other workers; one that was cut by a kill is left out."""
        events: list[dict[str, Any]] = []
        for path in (self.folder / "events.jsonl", *sorted((self.folder / "workers").glob("*.jsonl"))):
            with suppress(FileNotFoundError):  # a worker that leaves takes an empty journal with it
                for line in path.read_bytes().splitlines():
                    with suppress(ValueError):
                        events.append(json.loads(line))
        return events

    def merge(self, environment: dict[str, str]) -> Result:
        """Fold all shards into the result; may be done again at any time.

        Raises:
          RunError: a shard is missing, foreign or edited, or the folder cannot be written.
        """
        missing = self.missing_shards()
        if missing:
            advice = f"`robench resume {quote(str(self.folder))}` makes them."
            raise RunError(
                complaint(str(self.folder), "shards", f"{len(missing)} missing", f"{self.plan.shards}", advice)
            )
        shards = [self.read_shard(index) for index in range(self.plan.shards)]
        outcomes = [outcome for shard in shards for outcome in shard.outcomes]
        ids = hashlib.sha256("\n".join(outcome.id for outcome in outcomes).encode()).hexdigest()
        if ids != self.plan.data.ids_sha256:
            raise RunError(complaint(str(self.folder), "ids", ids, f"{self.plan.data.ids_sha256}, as planned"))
        table = to_csv(outcomes)
        result = self._result(outcomes, table, sum(shard.pixels for shard in shards), environment)
        cost = self._cost()
        with writing(self.folder):
            write_whole(self.folder / "outcomes.csv.gz", compress(table))
            write_whole(self.folder / "cost.json", (json.dumps(cost, sort_keys=True, indent=2) + "\n").encode())
            write_whole(self.folder / "result.json", result.to_bytes())
        return read_result(self.folder)

    def _result(self, outcomes: Sequence[Outcome], table: bytes, pixels: int, environment: dict[str, str]) -> Result:
        plan, protocol = self.plan, self.plan.parsed_protocol()
        errored = sum(bool(outcome.error) for outcome in outcomes)
        if not (plan.official and plan.data.official):
            status: Literal["complete", "partial", "unofficial"] = "unofficial"
        else:
            status = "complete" if plan.data.limit is None and not errored else "partial"
        return Result(
            engine=plan.engine,
            status=status,
            attack_revision=plan.attack_revision,
            protocol=ProtocolRecord(
                id=protocol.id, version=protocol.version, digest=protocol.digest, official=plan.official
            ),
            model=plan.model,
            reference=plan.reference,
            data=DataRecord(
                source=plan.data.source,
                reference=plan.data.reference,
                count=plan.data.count,
                of=plan.data.of,
                ids_sha256=plan.data.ids_sha256,
                pixels_sha256=f"{pixels % 2**256:064x}",
                official=plan.data.official,
            ),
            metrics=score(protocol, outcomes),
            derived=derive(protocol, outcomes),
            counts=Counts(
                evaluated=len(outcomes) - errored,
                errored=errored,
                unconfirmed=sum(outcome.unconfirmed for outcome in outcomes),
            ),
            caveats=tuple(dict.fromkeys([*plan.caveats, *self._seen(), *caveats_of(protocol, outcomes)])),
            outcomes=OutcomesRecord(sha256=hashlib.sha256(table).hexdigest(), rows=len(outcomes)),
            environment=environment,
        )

    def _seen(self) -> list[str]:
        """Caveats that came up while the run went on."""
        return sorted({event["text"] for event in self.events() if event["event"] == "caveat"})

    def _cost(self) -> dict[str, Any]:
        """Sums over the segments between interruptions; peak memory is their maximum."""
        segments: dict[str, dict[str, Any]] = {}
        for event in self.events():
            if event["event"] == "progress":
                segments[event["segment"]] = event
        total: dict[str, Any] = {"segments": len(segments), "devices": [], "slots": []}
        for name in ("wall_seconds", "forward", "backward"):
            total[name] = round(sum(segment[name] for segment in segments.values()), 3)
        total["peak_memory_bytes"] = max((segment["peak_memory_bytes"] for segment in segments.values()), default=0)
        for segment in segments.values():
            for name, value in (("devices", segment["device"]), ("slots", segment["slots"])):
                if value not in total[name]:
                    total[name].append(value)
        return total


def _shard_digest(header: Mapping[str, Any], body: bytes) -> str:
    """SHA-256 over the header, without the digest itself, and the body."""
    return hashlib.sha256(json.dumps(header, sort_keys=True).encode() + b"\n" + body).hexdigest()


def _ends_line(path: Path) -> bool:
    with path.open("rb") as file:
        file.seek(-1, os.SEEK_END)
        return file.read(1) == b"\n"


def in_use(folder: Path) -> str:
    """What is said to who wants a run for himself while others work on it."""
    return complaint(str(folder), "run", "in use", "no other process on this run", "Wait for it, or stop it.")


def _check_nothing_else(folder: Path) -> None:
    """Check that a folder without a plan is empty but for what a run that is just beginning puts there.

    Raises:
      RunError: it holds other files, among which a run would be lost.
    """
    try:
        names = sorted(path.name for path in folder.iterdir() if not path.name.startswith("."))
    except OSError:
        return  # it is new, or cannot be read; whoever writes finds out
    strange = [name for name in names if name not in _BEGINNING and not (folder / name / MARKER).exists()]
    if strange:
        found = f"a folder with other files, such as {strange[0]!r}"
        raise RunError(complaint(str(folder), "run_dir", found, "a new folder, an empty one, or that of a run"))


def write_whole(path: Path, content: bytes, *, first: bool = False) -> None:
    """Write next to `path`, flush to the disk, and rename: the file is there whole or not at all.

    Args:
      path: of the file.
      content: what it will hold.
      first: leave a file that is already there as it is.
    """
    # A file name has at most 255 bytes; process numbers repeat on another host.
    temporary = path.with_name(f".{path.name[:200]}.{os.getpid()}-{secrets.token_hex(4)}.tmp")
    try:
        with temporary.open("wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        if first:
            _place_first(temporary, path)
        else:
            temporary.replace(path)
    except BaseException:
        with suppress(OSError):
            temporary.unlink()
        raise


def _place_first(temporary: Path, path: Path) -> None:
    """Rename unless the name is taken, as far as the file system can."""
    try:
        path.hardlink_to(temporary)
    except FileExistsError:
        pass
    except OSError:  # a file system without hard links: the last of several that come at once wins
        if not path.exists():
            temporary.replace(path)
            return
    temporary.unlink()


@contextmanager
def _whole_write() -> Iterator[None]:
    """Hold Ctrl-C back until the write is done, and then let whoever listened before have it."""
    previous = signal.getsignal(signal.SIGINT)
    if threading.current_thread() is not threading.main_thread() or not callable(previous):
        yield
        return
    held: list[tuple[int, FrameType | None]] = []
    signal.signal(signal.SIGINT, lambda number, frame: held.append((number, frame)))
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, previous)
    if held:
        previous(*held[0])


@contextmanager
def writing(folder: Path, *, where: Path | None = None, argument: str = "run_dir") -> Iterator[None]:
    """Finish a write before Ctrl-C is heard, and turn a failed one into an error that says how to go on.

    Args:
      folder: of the run.
      where: what is written to, if not the run's own folder.
      argument: what the caller names it by.
    """
    try:
        with _whole_write():
            yield
    except OSError as error:
        if (folder / "plan.json").exists():
            advice = f"What is finished is kept: make room, then `robench resume {quote(str(folder))}`."
        else:
            advice = f"Nothing was computed yet: make room, or choose another `{argument}`."
        reason = error.strerror or type(error).__name__
        raise RunError(
            complaint(str(where or folder), argument, f"not writable ({reason})", "room to write", advice)
        ) from error
