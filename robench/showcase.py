"""A few examples of a run to look at: clean, attacked, and what the model said.

They are attacked again, with the same seed and through the same driver, because a run keeps no images.
Not here: drawing (`figures`), and keeping every adversarial image (`adversarial`).
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from torch import Tensor

from robench.attacks.drive import Example, Finished, Stage, drive
from robench.attacks.interface import Answer, Examples
from robench.attacks.whole import AnyStage, WholeStage, drive_whole
from robench.attacks.wrapped import Wrapped, WrappedState
from robench.budgets import Budget
from robench.classifier import Classifier
from robench.data import Source
from robench.data.mini import CLASS_NAMES
from robench.data.source import Unreadable
from robench.outcome import Outcome
from robench.protocol import Protocol
from robench.randomness import Draws, RandomSource
from robench.result import holds


@dataclass(frozen=True)
class Exhibit:
    """One example to look at.

    Attributes:
      id: of the example.
      truth, clean, attacked: names of the true class, and of what the model said.
      broken: whether the attack succeeded where the protocol counts.
      image, adversarial: float32 in [0, 1], shape (3, H, W); of a survivor the last image the attack tried.
    """

    id: str
    truth: str
    clean: str
    attacked: str
    broken: bool
    image: Tensor = field(repr=False, compare=False)
    adversarial: Tensor = field(repr=False, compare=False)


@dataclass
class Showcase:
    """Collects exhibits of the run it is handed to as `Options.showcase`; of several runs, of the last.

    Attributes:
      broken, surviving: at most so many of each; the first in protocol order, which is a random sample.
      exhibits: what was collected, broken ones first.
    """

    broken: int = 4
    surviving: int = 4
    exhibits: list[Exhibit] = field(default_factory=list)

    def fill(
        self,
        outcomes: Sequence[Outcome],
        protocol: Protocol,
        source: Source,
        *,
        stages: Sequence[AnyStage],
        budget: Budget,
        models: tuple[Classifier, Classifier],
    ) -> None:
        """Attack some examples of a finished run again, and keep what was seen.

        Args:
          outcomes: of the run, in the order of the source.
          protocol: of the run.
          source: the examples.
          stages, budget: the attack.
          models: the one that attacks look at, and the user's own.
        """
        attacked = [(at, holds(protocol, outcome)) for at, outcome in enumerate(outcomes) if outcome.clean_correct]
        chosen = [at for at, held in attacked if not held][: self.broken]
        chosen += [at for at, held in attacked if held][: self.surviving]
        images = zip(chosen, source.images(chosen), strict=True)
        examples = [
            Example(at, source.ids[at], source.labels[at], image)
            for at, image in images
            if not isinstance(image, Unreadable)
        ]
        names = CLASS_NAMES if source.name == "mini" else ()
        shown = {}
        for each, image in _attacked_again(examples, stages, budget=budget, seed=protocol.seed, models=models):
            example = next(example for example in examples if example.index == each.index)
            shown[each.index] = _exhibit(each, example, protocol, names, image)
        exhibits = [shown[at] for at in chosen if at in shown]
        self.exhibits = sorted(exhibits, key=lambda exhibit: not exhibit.broken)


def _attacked_again(
    examples: Sequence[Example],
    stages: Sequence[AnyStage],
    *,
    budget: Budget,
    seed: int,
    models: tuple[Classifier, Classifier],
) -> Iterator[tuple[Finished, Tensor | None]]:
    """Outcomes of examples, and of survivors the last image that an attack looked at."""
    faster, own = models
    settings: dict[str, Any] = {"budget": budget, "seed": seed, "confirm": own}
    settings["slots"] = max(len(examples), faster.minimum_rows)
    for stage in stages:
        if isinstance(stage, WholeStage):
            held: dict[int, Tensor] = {}
            for each in drive_whole(stage.attack, faster, examples, on_survivor=held.__setitem__, **settings):
                yield each, held.get(each.index)
            return
    last: dict[tuple[int, ...], Tensor] = {}
    looked = [replace(stage, attack=_LastLook(stage.attack, last)) for stage in stages if isinstance(stage, Stage)]
    for each in drive(looked, faster, examples, **settings):
        yield each, last.get(_key(Draws.of(seed, [each.id])))


def _exhibit(
    finished: Finished, example: Example, protocol: Protocol, names: Sequence[str], last: Tensor | None
) -> Exhibit:
    steps, scoring = protocol.score.steps, protocol.score.scoring
    at_end = steps[-1] in finished.fooled_at if scoring == "last iterate" else bool(finished.fooled_at)
    broken = at_end and finished.image is not None
    image = finished.image if broken else last
    return Exhibit(
        id=finished.id,
        truth=_name(finished.label, names),
        clean=_name(finished.clean_prediction, names),
        attacked=_name(finished.attacked_prediction, names),
        broken=broken,
        image=example.image.cpu(),
        adversarial=(image if image is not None else example.image).cpu(),
    )


def _name(label: int, names: Sequence[str]) -> str:
    return names[label] if label < len(names) else f"class {label}"


def _key(draws: RandomSource) -> tuple[int, ...]:
    """What tells examples apart inside an attack: the key of their random numbers."""
    assert isinstance(draws, Draws), "the driver draws for each example"
    return tuple(draws.keys[0].tolist())


@dataclass(frozen=True)
class _Looking(WrappedState):
    """The state of an attack, and whose slot it is."""

    keys: Tensor


@dataclass(frozen=True)
class _LastLook(Wrapped):
    """An attack that does what another does, and notes the last image it looked at of each example."""

    last: dict[tuple[int, ...], Tensor]

    def start(self, examples: Examples, budget: Budget, draws: RandomSource) -> _Looking:
        assert isinstance(draws, Draws), "the driver draws for each example"
        return _Looking(self.inner.start(examples, budget, draws), draws.keys)

    def tell(self, state: _Looking, answer: Answer) -> _Looking:
        query = self.inner.ask(state.inner)
        counting = {int(query.rows[row]): row for row in query.counts.nonzero()[:, 0].tolist()}
        for slot, row in counting.items():  # the last of each slot; what lies outside the budget is no image to show
            if not state.done[slot]:
                self.last[tuple(state.keys[slot].tolist())] = query.render(slice(row, row + 1))[0].clone()
        return _Looking(self.inner.tell(state.inner, answer), state.keys)
