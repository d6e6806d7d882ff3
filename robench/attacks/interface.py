"""How attacks ask and are told: the contract between an attack and the driver.

An attack is a frozen dataclass of hyper-parameters. It never sees the model: it says at which images
the model is to be looked at (`ask`), and learns what came back (`tell`). Everything it remembers is in
a state whose tensors all have the slot as first axis, so that the driver can drop, refill, shrink and
park slots at will. What counts as success, and when to stop, is the driver's business.

Not here: any attack, and the loop (`drive.py`).
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Protocol, runtime_checkable

from torch import Tensor

from robench.randomness import RandomSource

Objective = Callable[[Tensor, Tensor], Tensor]
"""(logits of some rows, slots of these rows) -> one value per row, to be driven up."""


@dataclass(frozen=True)
class Examples:
    """Clean examples, one per slot.

    Attributes:
      images: float32 in [0, 1], shape (N, 3, H, W).
      labels: int64, shape (N,).
      logits: the model's answer to the clean images, shape (N, K).
    """

    images: Tensor
    labels: Tensor
    logits: Tensor


@dataclass(frozen=True)
class Query:
    """Images the model is to be shown, one or more for each slot.

    Attributes:
      rows: slot of each image, int64, shape (Q,).
      render: gives the images of a range of rows, float32, shape (q, 3, H, W): large queries are
        looked at chunk by chunk, and never exist as a whole.
      objective: whose gradient is wanted; None for answers without gradient.
      counts: which images may count as adversarial, bool, shape (Q,). They must lie in the budget.
      step: number of the step or query in each slot, int64, shape (Q,), as outcomes report it.
      targets: class that each image must be taken for, int64, shape (Q,); None: any but its label.
      patches: how many patches lie on each image, int64, shape (Q,), as outcomes report it; None: the
        attack pastes none.
    """

    rows: Tensor
    render: Callable[[slice], Tensor]
    objective: Objective | None
    counts: Tensor
    step: Tensor
    targets: Tensor | None = None
    patches: Tensor | None = None


@dataclass(frozen=True)
class Answer:
    """What the model said to a query, row by row.

    Attributes:
      logits: float32, shape (Q, K).
      value: objective at each image, shape (Q,), or None.
      gradient: of the objective with respect to each image, float32, shape (Q, 3, H, W), or None.
    """

    logits: Tensor
    value: Tensor | None
    gradient: Tensor | None


class State(Protocol):
    """What an attack remembers: a frozen dataclass of tensors with the slot as first axis.

    The tensors belong to the driver, which may write other examples into their rows: none is kept by the attack.
    """

    @property
    def done(self) -> Tensor:
        """Which slots have nothing more to ask, bool, shape (N,)."""
        ...


class Attack(Protocol):
    """An attack on a batch of slots, each at its own step.

    Every method is pure: the same arguments give the same result, and no argument is changed. A slot
    must not depend on any other slot. The type of the state is the attack's own.
    """

    @property
    def name(self) -> str:
        """Key of the attack's random streams and name of its stage in outcomes."""
        ...

    @property
    def gradients(self) -> bool:
        """Whether it ever asks for a gradient; else any callable can be attacked."""
        ...

    @property
    def works_in(self) -> tuple[type, ...]:
        """Kinds of budget that it can work in."""
        ...

    @property
    def most_passes(self) -> tuple[int, int]:
        """Passes with and without gradient of an example that survives."""
        ...

    def start(self, examples: Examples, budget: Any, draws: RandomSource) -> Any:
        """State of fresh slots that hold these examples; the budget is of a kind in `works_in`."""
        ...

    def ask(self, state: Any) -> Query:
        """The images to look at next."""
        ...

    def tell(self, state: Any, answer: Answer) -> Any:
        """State after the answer to the last `ask`."""
        ...


@runtime_checkable
class EndingAttack(Attack, Protocol):
    """An attack that is run to its end for one image of each slot (`attacks/asking.py`)."""

    def final(self, state: Any) -> Tensor:
        """That image of every slot, inside the budget, float32, shape (N, 3, H, W)."""
        ...


@runtime_checkable
class SearchingAttack(Attack, Protocol):
    """An attack that asks for many images of each slot at a time."""

    @property
    def images_a_slot(self) -> int:
        """How many."""
        ...
