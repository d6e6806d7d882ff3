"""Submissions as an honest run would give them, made without a model: random, seeded, and consistent."""

import base64
import hashlib
import json
import random
import zlib
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from robench.outcome import Outcome, compress, read_outcomes, to_csv
from robench.protocol import Protocol
from robench.result import Counts, DataRecord, ModelRecord, OutcomesRecord, ProtocolRecord, Result, derive, score
from robench.submission import FOLDER, OUTCOMES, RESULT, TOML
from robench.validation import Place, Rules
from robench.verification import called, seed_of
from tests.test_protocol import protocol

CLASSES = 3
TOY = "toy-pgd@2"
WORDS = {
    "schema": "robench.submission/1",
    "author": "A. Person",
    "training_data": "Toys",
    "licence": "Apache-2.0",
    "family": "cnn",
}


def sha(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()


def ids(count: int) -> list[str]:
    return [f"toy-{index:05d}" for index in range(count)]


def labels(count: int) -> list[int]:
    return [random.Random(index).randrange(CLASSES) for index in range(count)]


def digest_of(lines: Sequence[object]) -> str:
    return sha("\n".join(map(str, lines)))


def toy_rules(count: int = 40, *more: Protocol, **changes: Any) -> Rules:
    """One released toy protocol over so many examples, and more protocols as they are."""
    toy = protocol(**{"status": "active", "data__count": count, "data__ids_sha256": digest_of(ids(count)), **changes})
    protocols = {each.exact_name: each for each in (toy, *more)}
    lock = {name: each.digest for name, each in protocols.items() if each.status != "draft"}
    return Rules(protocols, lock, {digest_of(ids(count)): digest_of(labels(count))})


def draw(
    examples: Sequence[str],
    truth: Sequence[int],
    *,
    seed: int,
    classes: int = CLASSES,
    clean: float = 0.9,
    robust: float = 0.6,
) -> list[Outcome]:
    """Outcomes of a random model under PGD."""
    chance = random.Random(seed)
    drawn = []
    for example, label in zip(examples, truth, strict=True):
        other = (label + 1 + chance.randrange(classes - 1)) % classes
        margin = float(f"{chance.uniform(0.1, 9):.3g}")
        if chance.random() >= clean:
            drawn.append(Outcome(example, label, other, other, -margin, -margin))
        elif chance.random() < robust:
            drawn.append(Outcome(example, label, label, label, margin, float(f"{margin / 3:.3g}")))
        else:
            drawn.append(Outcome(example, label, label, other, margin, -0.25, (chance.randint(0, 5),), "pgd"))
    return drawn


def toy_outcomes(count: int = 40, **about: Any) -> list[Outcome]:
    return draw(ids(count), labels(count), **{"seed": 0, **about})


def model_record(name: str, seed: int) -> ModelRecord:
    chance = random.Random(seed)
    fingerprint = tuple((chance.randrange(10), float(f"{chance.gauss(5, 2):.4g}")) for _ in range(64))
    return ModelRecord(
        name=name,
        reference=name.lower().replace("_", "-"),
        loader="robench.zoo:ToyNet",
        weights_sha256=sha(f"weights {seed}"),
        state_digest=sha(f"state {seed}"),
        configuration_sha256=sha("toy"),
        parameters=1000 * (seed + 1),
        fingerprint=fingerprint,
    )


def result_of(the_protocol: Protocol, outcomes: Sequence[Outcome], model: ModelRecord, **changes: Any) -> Result:
    about = {
        "attack_revision": 1,
        "status": "complete",
        "protocol": ProtocolRecord(
            id=the_protocol.id, version=the_protocol.version, digest=the_protocol.digest, official=True
        ),
        "model": model,
        "data": DataRecord(
            source=the_protocol.data.source,
            count=len(outcomes),
            of=the_protocol.data.count,
            ids_sha256=digest_of([outcome.id for outcome in outcomes]),
            pixels_sha256=sha("pixels"),
            official=True,
        ),
        "metrics": score(the_protocol, outcomes),
        "derived": derive(the_protocol, outcomes),
        "counts": Counts(
            evaluated=sum(not outcome.error for outcome in outcomes),
            errored=sum(bool(outcome.error) for outcome in outcomes),
            unconfirmed=sum(outcome.unconfirmed for outcome in outcomes),
        ),
        "outcomes": OutcomesRecord(sha256=hashlib.sha256(to_csv(outcomes)).hexdigest(), rows=len(outcomes)),
        "environment": {"python": "3.11", "robench": "0"},
    }
    return Result(**{**about, **changes})


def loader(model: ModelRecord) -> dict[str, str]:
    return {"bundled": str(model.reference), "weights_sha256": str(model.weights_sha256)}


def to_toml(words: dict[str, Any]) -> str:
    tables = {key: value for key, value in words.items() if isinstance(value, dict)}
    lines = [f"{key} = {json.dumps(value)}" for key, value in words.items() if key not in tables]
    for name, table in tables.items():
        lines += [f"[{name}]", *(f"{key} = {json.dumps(value)}" for key, value in table.items())]
    return "\n".join(lines) + "\n"


def write(folder: Path, result: Result, outcomes: Sequence[Outcome], words: dict[str, Any]) -> Path:
    """The three files of a claim."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / TOML).write_text(to_toml(words))
    (folder / RESULT).write_bytes(result.to_bytes())
    (folder / OUTCOMES).write_bytes(compress(to_csv(outcomes)))
    return folder


def claim(
    repository: Path,
    model: str = "alpha",
    *,
    rules: Rules,
    seed: int = 0,
    name: str = TOY,
    outcomes: Sequence[Outcome] | None = None,
    words: dict[str, Any] | None = None,
    record: ModelRecord | None = None,
    **changes: Any,
) -> Place:
    """An honest claim in a repository; `changes` go to its result."""
    the_protocol = rules.protocols[name]
    drawn = outcomes if outcomes is not None else toy_outcomes(the_protocol.data.count, seed=seed)
    about = record or model_record(model, seed)
    said = {**WORDS, "loader": loader(about), **(words or {})}
    said = {key: value for key, value in said.items() if value is not None}
    place = Place(repository / FOLDER, model, name)
    write(place.folder, result_of(the_protocol, drawn, about, **changes), drawn, said)
    return place


def edit_json(path: Path, change: Callable[[dict[str, Any]], object]) -> None:
    """Change `result.json`, and write it as robench does."""
    content = json.loads(path.read_bytes())
    change(content)
    path.write_text(json.dumps(content, sort_keys=True, indent=2) + "\n")


def edit_outcome(outcomes: Sequence[Outcome], index: int, **changes: Any) -> list[Outcome]:
    return [replace(each, **changes) if place == index else each for place, each in enumerate(outcomes)]


def put_verdict(place: Place, rules: Rules, *, fell: int = 0, asked: int | None = None, **changes: Any) -> Path:
    """A verdict beside a claim: so many of the examples called robust were attacked again, by default all."""
    sha256 = hashlib.sha256((place.folder / RESULT).read_bytes()).hexdigest()
    outcomes, merged, value = read_outcomes(place.folder / OUTCOMES), "0" * 40, "round 7"
    said, seed = called(rules.protocols[place.protocol], outcomes), seed_of(sha256, merged, value)
    chosen = said.drawn_robust(seed, said.count if asked is None else asked)
    controls = said.controls(seed, len(chosen))
    content = {
        "schema": "robench.verdict/1",
        "result_sha256": sha256,
        "robust": said.count,
        "of": said.of,
        "asked": len(chosen),
        "fell": fell,
        "flip_rate": 0.001,
        "soft_margin": 0.001,
        "merge_commit": merged,
        "public_value": value,
        "examples": [
            {"id": each, "robust": n >= fell, "margin": -0.5 if n < fell else 0.5} for n, each in enumerate(chosen)
        ],
        "controls": [{"id": each, "robust": False, "margin": -0.5} for each in controls],
        "by": "A. Maintainer",
    }
    return _beside(place, "verifications", "verdict.json", {**content, **changes})


def put_refutation(place: Place, ids: Sequence[str], **changes: Any) -> Path:
    """A refutation beside a claim, of images of 2 x 2 pixels that change by 4/255 everywhere."""
    steps = base64.b64encode(zlib.compress(bytes([1, 255] * 6))).decode()
    content = {
        "schema": "robench.refutation/1",
        "result_sha256": hashlib.sha256((place.folder / RESULT).read_bytes()).hexdigest(),
        "by": "A. Sceptic",
        "how": "PGD, 500 steps",
        "images": [{"id": each, "shape": [3, 2, 2], "unit": 4 / 255, "steps": steps} for each in ids],
    }
    return _beside(place, "refutations", "sceptic.json", {**content, **changes})


def _beside(place: Place, folder: str, name: str, content: dict[str, Any]) -> Path:
    path = place.root.parent / folder / place.model / place.protocol / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(content))
    return path
