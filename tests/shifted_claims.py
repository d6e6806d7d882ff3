"""Claims under protocols without an attack, made without a model: random, seeded, and consistent."""

import random
from pathlib import Path
from typing import Any, Literal

from robench.outcome import Outcome
from robench.shift import mask_text
from robench.validation import Place, Rules
from tests.claims import CLASSES, claim, digest_of, ids, labels, model_record, sha, toy_rules
from tests.test_protocol import MISSING

Kind = Literal["plain", "among", "reference", "textures", "cells", "cells without clean"]
KINDS: tuple[Kind, ...] = ("plain", "among", "reference", "textures", "cells", "cells without clean")
COUNT = 120
FAMILIES = {"noise": ["gaussian_noise"], "weather": ["fog", "frost"]}
CELLS = 6
"""Three corruptions in two severities."""


def textures(count: int = COUNT) -> list[int]:
    """Every tenth is that of the shape."""
    return [
        label if place % 10 == 0 else (label + 1 + place % (CLASSES - 1)) % CLASSES
        for place, label in enumerate(labels(count))
    ]


def shifted_rules(kind: Kind, *, count: int = COUNT, name: str = "toy-shift") -> Rules:
    """One released toy protocol of a kind."""
    shift: dict[str, Any] = {"kind": "natural"}
    if kind == "among":
        shift |= {"among": "imagenet-r", "among_sha256": "0" * 64}
    elif kind == "reference":
        shift |= {"reference": "timm:resnet50", "reference_sha256": sha("weights 99")}
    elif kind == "textures":
        shift = {"kind": "textures", "textures_sha256": digest_of(textures(count))}
    elif kind.startswith("cells"):
        shift = {"kind": "corruptions", "severities": 2, "families": FAMILIES}
    without = {"attack": MISSING, "budget": MISSING, "score": MISSING}
    return toy_rules(count, **without, shift=shift, id=name, version=1, supersedes=MISSING)


def shifted_outcomes(kind: Kind, *, seed: int = 0, right: float = 0.6, count: int = COUNT) -> list[Outcome]:
    """Outcomes of a random model, right in such a share."""
    chance = random.Random(seed)

    def decided(label: int) -> int:
        return label if chance.random() < right else (label + 1 + chance.randrange(CLASSES - 1)) % CLASSES

    found = []
    for example, label, texture in zip(ids(count), labels(count), textures(count), strict=True):
        clean = -1 if kind == "cells without clean" else decided(label)
        size = float(f"{chance.uniform(0.1, 9):.3g}")
        margin = 0.0 if clean < 0 else size if clean == label else -size
        more: dict[str, Any] = {}
        if kind == "among":
            more["among"] = clean  # all classes are listed here, so both decisions are one
        elif kind == "reference":
            more["reference"] = label if random.Random(example).random() < 0.5 else (label + 1) % CLASSES
        elif kind == "textures":
            more["texture"] = texture
        elif kind.startswith("cells"):
            more["cells"] = mask_text([chance.random() < right for _ in range(CELLS)])
        found.append(Outcome(example, label, clean, clean, margin, margin, **more))
    return found


def shifted_claim(repository: Path, kind: Kind, model: str = "alpha", *, seed: int = 0, **about: Any) -> Place:
    """An honest claim under a protocol of this kind."""
    rules = shifted_rules(kind)
    (name,) = rules.protocols
    outcomes = about.pop("outcomes", None) or shifted_outcomes(kind, seed=seed, right=about.pop("right", 0.6))
    reference = {"reference": model_record("resnet50", 99)} if kind == "reference" else {}
    return claim(repository, model, rules=rules, seed=seed, name=name, outcomes=outcomes, **{**reference, **about})
