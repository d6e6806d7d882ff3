"""What is trained, scored and compared: a plan in TOML, with arms (a recipe and its seeds) and questions.

A plan without questions is a ladder: its arms are rungs, in order.

Not here: how arms are trained (`work`), and when a claim agrees (`verdict`).
"""

import importlib.resources
import tomllib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field, PrivateAttr, ValidationError

from robench.errors import RunError, complaint, did_you_mean
from robench.registry import resolve
from robench.training import Recipe, load_recipe

PAINTING = 1.5
"""Milliseconds in which a training image is painted, on one thread."""
SECONDS = 60.0
"""What an evaluation is taken to last where a plan does not foretell it."""

_Name = Annotated[str, Field(pattern=r"^[a-z0-9]+(-[a-z0-9]+)*$")]
_Seeds = Annotated[tuple[Annotated[int, Field(ge=0, lt=2**32)], ...], Field(min_length=1)]


class _Table(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)


class Arm(_Table):
    """Models that differ in their seed alone."""

    name: _Name
    label: str
    """What tables and charts call it."""
    recipe: str
    """Name of a bundled recipe for the mini suite."""
    protocols: tuple[str, ...] = ()
    """What its models are scored under; none: the plan's."""
    milliseconds: float = Field(gt=0)
    """Training takes so long for an image, on one thread; only foretells how long all takes."""


class Claim(_Table):
    """What a paper says of two arms under a protocol."""

    text: str
    arm: str
    against: str
    """The arm that it is compared with."""
    protocol: str
    score: Literal["headline", "clean"] = "headline"
    expected: Literal["higher", "the same"] = "higher"
    """What the paper says of the first arm's accuracy beside the second's."""
    margin: float = Field(default=3.0, gt=0)
    """Points of 100 within which accuracies are the same."""


class Question(_Table):
    """Something a paper asked, what it found, and the claims that stand for it."""

    title: str
    paper: str
    """Its figures, with where they were read."""
    note: str = ""
    """In what the miniature differs."""
    claims: tuple[Claim, ...] = Field(min_length=1)


class Quick(_Table):
    """What a quick trial changes."""

    seeds: _Seeds
    examples: int = Field(gt=0)
    """Training images of every arm."""
    limit: int | None = Field(default=None, gt=0)
    """Images that models are scored on."""


class Plan(_Table):
    """Arms and questions."""

    schema_name: Literal["robench.reproduction/1"] = Field(alias="schema")
    name: _Name
    title: str
    about: str
    seeds: _Seeds
    examples: int | None = Field(default=None, gt=0)
    """Training images of every arm; none: as many as its recipe says."""
    limit: int | None = Field(default=None, gt=0)
    """Images that models are scored on; none: all of a protocol's."""
    quick: Quick
    protocols: tuple[str, ...] = ()
    """What arms without protocols of their own are scored under."""
    seconds: dict[str, float] = {}
    """A model's evaluation takes so long under a protocol, on one thread; only foretells how long all takes."""
    arms: tuple[Arm, ...] = Field(min_length=1)
    questions: tuple[Question, ...] = ()

    _reference: str = PrivateAttr(default="")

    @property
    def reference(self) -> str:
        """What names it to `read_plan` again: its name, or its file."""
        return self._reference

    @property
    def is_ladder(self) -> bool:
        """Whether its arms are rungs of a ladder."""
        return not self.questions

    def arm(self, name: str) -> Arm:
        """An arm by its name."""
        return next(arm for arm in self.arms if arm.name == name)

    def protocols_of(self, arm: Arm) -> tuple[str, ...]:
        """What an arm is scored under."""
        return arm.protocols or self.protocols

    def shortened(self) -> "Plan":
        """The quick trial: its seeds and images."""
        return self.model_copy(update={"title": f"{self.title} (quick trial)", **dict(self.quick)})

    def jobs(self) -> list["Job"]:
        """Every model: arm by arm, seed by seed."""
        return [Job.of(self, arm, seed) for arm in self.arms for seed in self.seeds]


@dataclass(frozen=True)
class Job:
    """One model: trained from a recipe with one seed, then scored.

    Attributes:
      recipe: with this seed; its name is the job's.
      protocols: what the model is scored under.
      limit: images it is scored on; None: all.
      teacher: name of the job whose model it learns from, if any.
      seconds: how long all of it should take on one thread.
    """

    arm: str
    seed: int
    recipe: Recipe
    protocols: tuple[str, ...]
    limit: int | None
    teacher: str | None
    seconds: float

    @classmethod
    def of(cls, plan: Plan, arm: Arm, seed: int) -> "Job":
        """The job of an arm and a seed."""
        recipe = load_recipe(arm.recipe)
        data = recipe.data.model_copy(update={"examples": plan.examples or recipe.data.examples})
        recipe = recipe.model_copy(update={"name": job_name(arm.name, seed), "seed": seed, "data": data})
        teacher = None
        if recipe.distillation is not None:
            teaching = next(each for each in plan.arms if each.recipe == recipe.distillation.teacher)
            teacher = job_name(teaching.name, seed)
        protocols = plan.protocols_of(arm)
        training = data.examples * (recipe.schedule.epochs * arm.milliseconds + PAINTING) / 1000
        scoring = sum(plan.seconds.get(protocol, SECONDS) for protocol in protocols)
        return cls(arm.name, seed, recipe, protocols, plan.limit, teacher, training + scoring)

    @property
    def name(self) -> str:
        """Of the arm and the seed."""
        return self.recipe.name


def job_name(arm: str, seed: int) -> str:
    """What the model of an arm with a seed is called."""
    return f"{arm}-s{seed}"


def bundled_plans() -> dict[str, Path]:
    """Files of the bundled plans by name."""
    folder = Path(str(importlib.resources.files("robench.reproduction") / "plans"))
    return {path.stem: path for path in sorted(folder.glob("*.toml"))}


def read_plan(name: str | Path) -> Plan:
    """A plan by name, or from a TOML file.

    Raises:
      RunError: there is no such plan, a key is unknown, missing or wrong, or parts do not fit together.
      RecipeError, ProtocolError: there is no such recipe or protocol.
    """
    known = bundled_plans()
    path = known.get(str(name)) or Path(name)
    if path.suffix != ".toml":
        advice = did_you_mean(str(name), known)
        raise RunError(complaint("reproduce", "plan", f"`{name}`", "the name of a plan or a TOML file", advice))
    try:
        plan = Plan.model_validate(tomllib.loads(path.read_text(encoding="utf-8")))
    except (OSError, UnicodeDecodeError, tomllib.TOMLDecodeError) as error:
        raise RunError(complaint(str(path), "file", f"unreadable ({error})", "a plan in TOML")) from error
    except ValidationError as error:
        first = error.errors()[0]
        key = ".".join(map(str, first["loc"])) or "plan"
        advice = "docs/reproduction.md explains every key."
        raise RunError(complaint(path.name, key, repr(first["input"])[:80], first["msg"], advice)) from error
    for key, found, expected in _misfits(plan):
        raise RunError(complaint(path.name, key, found, expected))
    plan._reference = str(name)
    return plan


Misfits = Iterator[tuple[str, str, str]]
"""Key, what it is, and what was expected."""


def _misfits(plan: Plan) -> Misfits:
    """Everything that does not fit together."""
    for key, seeds in (("seeds", plan.seeds), ("quick.seeds", plan.quick.seeds)):
        if len(set(seeds)) < len(seeds):
            yield key, str(list(seeds)), "seeds without repetition: the same one again is no other training"
    for arm in plan.arms:
        yield from _misfits_of_arm(plan, arm)
    for question in plan.questions:
        for claim in question.claims:
            yield from _misfits_of_claim(plan, claim)


def _misfits_of_arm(plan: Plan, arm: Arm) -> Misfits:
    names = [each.name for each in plan.arms]
    if names.count(arm.name) > 1:
        yield "arms", f"naming `{arm.name}` twice", "a name of its own for each"
    recipe = load_recipe(arm.recipe)
    if recipe.data.source != "mini":
        yield f"arms.{arm.name}.recipe", f"`{arm.recipe}`, for photographs", "a recipe for the mini suite"
    if recipe.distillation is not None and recipe.distillation.teacher not in {each.recipe for each in plan.arms}:
        expected = f"an arm of `{recipe.distillation.teacher}`, which teaches `{arm.name}`"
        yield "arms", ", ".join(names), expected
    if not plan.protocols_of(arm):
        yield f"arms.{arm.name}.protocols", "missing", "protocols, here or for all arms"
    for protocol in plan.protocols_of(arm):
        resolve(protocol)


def _misfits_of_claim(plan: Plan, claim: Claim) -> Misfits:
    names = [arm.name for arm in plan.arms]
    for name in (claim.arm, claim.against):
        if name not in names:
            yield "questions.claims", f"of `{name}`", f"one of the arms {', '.join(names)}"
        elif claim.protocol not in plan.protocols_of(plan.arm(name)):
            yield "questions.claims", f"of `{name}` under {claim.protocol}", "a protocol that the arm is scored under"
