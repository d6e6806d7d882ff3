"""The re-run behind a verdict: attacks drawn examples of a claim again, and asks the model about refutations.

The model comes from the claim's `[loader]`. What robench builds itself runs here; anybody's code runs in a container
(`container`). Not here: which examples, and what follows from what became of them (`verification`).
"""

import dataclasses
import hashlib
import json
from collections.abc import Iterable, Iterator, Mapping, Sequence, Set
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from torch import Tensor

from robench.container import foreign_model, shut_in
from robench.data import Source, Views, is_on_hub, open_source
from robench.data.source import Unreadable
from robench.errors import ModelError, SubmissionError, complaint
from robench.evaluation import Options, differing_answers, evaluate
from robench.outcome import Outcome
from robench.progress import Silent, Watcher
from robench.protocol import Protocol
from robench.refutation import FOLDER as REFUTATIONS
from robench.refuting import confirm
from robench.result import ModelRecord, Result, holds, read_result
from robench.shift import right_mask
from robench.submission import BundledLoader, Loader, RepositoryLoader, TimmLoader
from robench.validation import Claim
from robench.verification import (
    FLIP_RATE,
    SOFT_MARGIN,
    Again,
    Confirmed,
    Verdict,
    build_verdict,
    called,
    cell_names,
    example_of,
    fallen,
    sample_size,
    seed_of,
)
from robench.zoo import resolve

CONFIRMED = "confirmed.json"
"""What became of refutations, in the folder of the re-run."""


@dataclass(frozen=True)
class Draw:
    """By what the examples of a challenge are drawn, and how many.

    Attributes:
      merge_commit: that brought the claim in.
      public_value: what nobody knew at that time.
      whole: ask about all examples that are called robust.
      nothing: ask about none, and look at refutations alone.
    """

    merge_commit: str
    public_value: str
    whole: bool = False
    nothing: bool = False


@dataclass(frozen=True)
class Job:
    """What a re-run does.

    Attributes:
      model: name of the model.
      protocol: what it is evaluated under.
      engine: the claim's.
      ids: examples to attack again.
      refutations: files whose images the model is asked about.
      run_dir: folder of the re-run; the same job goes on where it was interrupted.
      data: where the images lie, as in `evaluate`.
      reference_weights: of the protocol's reference model, as in `evaluate`.
      device, batch_size: as in `evaluate`.
    """

    model: str
    protocol: Protocol
    engine: str
    ids: tuple[str, ...]
    refutations: tuple[Path, ...]
    run_dir: Path
    data: Any = None
    reference_weights: str | None = None
    device: str | None = None
    batch_size: int | None = None

    def to_json(self) -> str:
        """For another process."""
        content = {field.name: getattr(self, field.name) for field in dataclasses.fields(self)}
        content["protocol"] = self.protocol.model_dump(mode="json", by_alias=True, exclude_none=True)
        return json.dumps(content, default=str)

    @classmethod
    def from_json(cls, text: str) -> "Job":
        """The reverse."""
        content = json.loads(text)
        content["protocol"] = Protocol.model_validate_json(json.dumps(content["protocol"]))
        content["run_dir"], content["ids"] = Path(content["run_dir"]), tuple(content["ids"])
        content["refutations"] = tuple(Path(each) for each in content["refutations"])
        return cls(**content)


class Chosen:
    """Some examples of a source, in the order in which they are named."""

    def __init__(self, source: Source, ids: Sequence[str]) -> None:
        places = {example: place for place, example in enumerate(source.ids)}
        missing = [example for example in ids if example not in places]
        if missing:
            found = f"without {len(missing)} of {len(ids)} examples, such as {missing[0]!r}"
            advice = "Give the folder of the protocol's images as `--data`."
            raise SubmissionError(complaint(source.name, "data", found, "all examples of the challenge", advice))
        self._source, self._positions = source, [places[example] for example in ids]
        self.name, self.classes = source.name, source.classes
        self.ids, self.labels = list(ids), [int(source.labels[position]) for position in self._positions]
        if hasattr(source, "textures"):
            self.textures = [int(source.textures[position]) for position in self._positions]

    def images(self, positions: Iterable[int]) -> Iterator[Tensor | Unreadable]:
        return self._source.images([self._positions[position] for position in positions])


class ChosenViews(Chosen):
    """Some examples of a source that shows each more than once."""

    def __init__(self, source: Views, ids: Sequence[str]) -> None:
        super().__init__(source, ids)
        self._viewed, self.view_names = source, source.view_names

    def views(self, positions: Iterable[int]) -> Iterator[Tensor | Unreadable]:
        return self._viewed.views([self._positions[position] for position in positions])


def carry_out(job: Job, watcher: Watcher | None = None) -> None:
    """Attack and ask; what came of it lies in the folder of the job."""
    data, shift = job.protocol.data, job.protocol.shift
    cells = shift.cells if shift is not None else ()
    source = open_source(data.source, job.data, resize=data.resize, crop=data.crop, cells=cells)
    job.run_dir.mkdir(parents=True, exist_ok=True)
    confirmed = confirm(job.model, job.protocol, source, job.refutations, device=job.device) if job.refutations else {}
    (job.run_dir / CONFIRMED).write_text(json.dumps(confirmed))
    if job.ids:
        options = Options(
            engine=job.engine,  # type: ignore[arg-type]  # the claim's own
            watcher=watcher or Silent(),
            reference_weights=job.reference_weights,
        )
        arguments: Any = {"device": job.device, "batch_size": job.batch_size, "options": options}
        chosen = ChosenViews(source, job.ids) if isinstance(source, Views) else Chosen(source, job.ids)
        evaluate(job.model, job.protocol, data=chosen, run_dir=_run(job), **arguments)


def _run(job: Job) -> Path:
    return job.run_dir / "run"


def verify(
    claim: Claim,
    draw: Draw,
    *,
    by: str,
    run_dir: Path,
    data: Any = None,
    reference_weights: Path | None = None,
    device: str | None = None,
    batch_size: int | None = None,
    watcher: Watcher | None = None,
) -> Verdict:
    """Run examples of a claim again, and say what came of it.

    Args:
      claim: a valid one.
      draw: which examples.
      by: who verifies.
      run_dir: folder of the re-run; the same call goes on where it was interrupted.
      data, reference_weights, device, batch_size: as in `evaluate`.
      watcher: is told of progress.
    Raises:
      SubmissionError: the claim has no loader, the loader gives another model, foreign code cannot be shut in, or an
        image cannot be read or has no finite answer.
    """
    loader = claim.submission.loader
    if loader is None:
        advice = "The claim stays `reported`."
        raise SubmissionError(complaint(claim.place.file(), "loader", "none", "a way to get the model", advice))
    protocol, sha256 = claim.protocol, claim.result_sha256
    seed = seed_of(sha256, draw.merge_commit, draw.public_value)
    said = called(protocol, claim.outcomes)
    about: dict[str, object] = {
        "result_sha256": sha256,
        "robust": said.count,
        "of": said.of,
        "flip_rate": FLIP_RATE,
        "soft_margin": SOFT_MARGIN,
        "merge_commit": draw.merge_commit,
        "public_value": draw.public_value,
        "by": by,
    }
    build_verdict(about | {"asked": 0, "fell": 0, "examples": (), "controls": ()})  # a wrong word costs no run
    if draw.whole and said.cells:
        found, expected = f"all of {said.count:,} cells", "a sample of them"
        raise SubmissionError(complaint("verify", "cells", found, expected, "Leave out `--all`."))
    size = sample_size(robust=said.count, of=said.of)
    asked = said.drawn_robust(seed, 0 if draw.nothing else said.count if draw.whole else size)
    controls = said.controls(seed, len(asked))
    job = Job(
        model="",
        protocol=protocol,
        engine=claim.result.engine,
        ids=tuple(dict.fromkeys(example_of(protocol, name) for name in (*asked, *controls))),
        refutations=tuple(claim.place.records(REFUTATIONS)),
        run_dir=run_dir.resolve() / f"{seed[:16]}-{len(asked)}",
        data=Path(data).resolve() if isinstance(data, str | Path) and not is_on_hub(data) else data,
        reference_weights=str(reference_weights.resolve()) if reference_weights is not None else None,
        device=device,
        batch_size=batch_size,
    )
    result = _carried_out(job, loader, claim.result.model, watcher)
    outcomes = {outcome.id: outcome for outcome in result.read_outcomes()} if result is not None else {}
    if (errored := next((each for each in outcomes.values() if each.error), None)) is not None:
        raise SubmissionError(complaint("verify", "re-run", f"{errored.id}: {errored.error}", "an outcome for each"))
    again = partial(_again, protocol, {each.id: each for each in claim.outcomes}, outcomes)
    examples = tuple(map(again, asked))
    return build_verdict(
        about
        | {
            "asked": len(asked),
            "fell": fallen(examples, SOFT_MARGIN),
            "examples": examples,
            "controls": tuple(map(again, controls)),
            "confirmed": _confirmed(job, called_robust=said.robust.keys()),
            "environment": result.environment if result is not None else {},
        }
    )


def _carried_out(job: Job, loader: Loader, claimed: ModelRecord, watcher: Watcher | None) -> Result | None:
    """The result of the re-run; None where nothing was attacked."""
    if isinstance(loader, RepositoryLoader):
        code = foreign_model(loader, job.run_dir / "code")
        own = dataclasses.replace(job, model=loader.entry_point)
        seen = [*job.refutations, *([job.data] if isinstance(job.data, Path) else [])]
        seen += [Path(job.reference_weights)] if job.reference_weights is not None else []
        shut_in(code, own.to_json(), work=job.run_dir, seen=seen, device=job.device)
    else:
        reference = reference_of(loader)
        found, wanted = resolve(reference).weights_sha256, loader.weights_sha256
        if wanted is not None and found != wanted:
            raise SubmissionError(complaint(reference, "weights", str(found), f"{wanted}, as the claim says"))
        carry_out(dataclasses.replace(job, model=reference), watcher)
    if not job.ids:
        return None
    result = read_result(_run(job))
    _check_same_model(claimed, result.model)
    return result


def reference_of(loader: Loader) -> str:
    """What names a model to robench; for foreign code it means something inside its folder alone."""
    if isinstance(loader, BundledLoader):
        return loader.bundled
    if isinstance(loader, TimmLoader):
        return f"timm:{loader.timm}@{loader.revision}"
    return loader.entry_point if isinstance(loader, RepositoryLoader) else f"hf-hub:{loader.hub}@{loader.revision}"


def _check_same_model(claimed: ModelRecord, found: ModelRecord) -> None:
    """The loader gives what was claimed: the same state, and the same answers up to what another machine may change."""
    if claimed.state_digest != found.state_digest:
        expected = f"{claimed.state_digest}, as the claim says"
        raise ModelError(complaint(found.name, "state", str(found.state_digest), expected, "It is another model."))
    count = len(claimed.fingerprint)
    differing = differing_answers(claimed, found) if len(found.fingerprint) == count else count
    if differing > count // 16:
        wrong = f"different on {differing} of {count} pinned images"
        expected = "the answers that the claim says"
        raise ModelError(complaint(found.name, "model", wrong, expected, "It is another model."))


def _again(protocol: Protocol, claimed: Mapping[str, Outcome], outcomes: Mapping[str, Outcome], name: str) -> Again:
    """What came of one that was drawn, by its name."""
    example = example_of(protocol, name)
    outcome = outcomes[example]
    if cells := cell_names(protocol):
        place = cells.index(name.rpartition(" ")[2])
        return Again(id=name, robust=bool(right_mask(protocol, outcome) >> place & 1), margin=None)
    if protocol.attack is None:  # nothing was searched for: rounding explains no more than the flip rate grants
        same_reference = outcome.reference == claimed[example].reference
        return Again(id=name, robust=holds(protocol, outcome) and same_reference, margin=None)
    margin = outcome.attacked_margin if outcome.clean_correct else outcome.clean_margin
    return Again(id=name, robust=holds(protocol, outcome), margin=margin)


def _confirmed(job: Job, *, called_robust: Set[str]) -> tuple[Confirmed, ...]:
    """What the model said about refutations, each known by its digest."""
    said: Mapping[str, Sequence[str]] = json.loads((job.run_dir / CONFIRMED).read_bytes())
    known = {hashlib.sha256(path.read_bytes()).hexdigest() for path in job.refutations}
    return tuple(
        Confirmed(sha256=digest, ids=tuple(example for example in ids if example in called_robust))
        for digest, ids in sorted(said.items())
        if digest in known
    )
