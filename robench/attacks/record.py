"""An example on its way through the attacks: as a source yields it, in flight, and finished.

Not here: slots (`pool.py`), and what is written to disk (`robench.outcome`).
"""

from collections.abc import Mapping
from dataclasses import dataclass, field

from torch import Tensor

from robench.classifier import rounded


@dataclass(frozen=True)
class Example:
    """One example as a source yields it: image float32 in [0, 1], shape (3, H, W)."""

    index: int
    id: str
    label: int
    image: Tensor
    survived: int = 0
    """Stages of a cascade that an earlier call has seen it survive; with them, what it left then:"""
    margin: float = float("inf")
    unconfirmed: int = 0


@dataclass(frozen=True)
class Finished:
    """What became of one example. Margins are logit differences, 3 significant digits.

    Attributes:
      index, id, label: of the example.
      clean_prediction, clean_margin: on the clean image.
      attacked_prediction, attacked_margin: on the confirmed adversarial image; where there is none, the
        label and the lowest margin met (under `read_off`: the margin at the last step read off).
      fooled_at: step of the confirmed success, or the steps read off at which the image fooled.
      stage: name of the attack that fooled it, else "".
      unconfirmed: claims that the user's own model denied.
      error: why the example has no outcome, else "".
      queries: images that the model was shown by attacks with patches; None under any other attack.
      patches, area: how many patches the confirmed adversarial image of such an attack has, and the share of
        its pixels that differ from the clean image; None where there is no such image.
      image: the last confirmed adversarial image, float32, shape (3, H, W); None where nothing fooled. Where
        the model was asked many times: its final image.
      finals: by attack, the final image of each that was run to its end.
      clean_right, attacked_right: how many of the answers about the clean and the final image were right;
        None where the model was not asked many times.
    """

    index: int
    id: str
    label: int
    clean_prediction: int
    clean_margin: float
    attacked_prediction: int
    attacked_margin: float
    fooled_at: tuple[int, ...] = ()
    stage: str = ""
    unconfirmed: int = 0
    error: str = ""
    queries: int | None = None
    patches: int | None = None
    area: float | None = None
    image: Tensor | None = field(default=None, repr=False, compare=False)
    finals: Mapping[str, Tensor] = field(default_factory=dict, repr=False, compare=False)
    clean_right: int | None = None
    attacked_right: int | None = None


@dataclass
class Record:
    """An example on its way through the stages."""

    example: Example
    logits: Tensor
    prediction: int
    clean_margin: float
    attacked_prediction: int
    attacked_margin: float = float("inf")
    fooled_at: list[int] = field(default_factory=list)
    stage: str = ""
    unconfirmed: int = 0
    open_claims: int = 0
    done: bool = False
    error: str = ""
    queries: int | None = None
    patches: int | None = None
    area: float | None = None
    adversarial: Tensor | None = None
    finals: dict[str, Tensor] = field(default_factory=dict)

    def finished(self) -> Finished:
        example = self.example
        return Finished(
            index=example.index,
            id=example.id,
            label=example.label,
            clean_prediction=self.prediction,
            clean_margin=rounded(self.clean_margin),
            attacked_prediction=self.attacked_prediction,
            attacked_margin=rounded(self.attacked_margin),
            fooled_at=tuple(sorted(self.fooled_at)),
            stage=self.stage,
            unconfirmed=self.unconfirmed,
            error=self.error,
            queries=self.queries,
            patches=self.patches,
            area=rounded(self.area) if self.area is not None else None,
            image=self.adversarial,
            finals=self.finals,
        )
