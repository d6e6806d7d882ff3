"""An attack around another: it asks and is told as the inner one, for wrappers that add something to that.

Not here: what is added (`asking.py`, `robench.showcase`).
"""

from dataclasses import dataclass
from typing import Any

from torch import Tensor

from robench.attacks.interface import Attack, Examples, Query


@dataclass(frozen=True)
class WrappedState:
    """The state of the inner attack; what a wrapper remembers goes beside it."""

    inner: Any

    @property
    def examples(self) -> Examples:
        """Those of the inner attack."""
        examples: Examples = self.inner.examples
        return examples

    @property
    def done(self) -> Tensor:
        """Which slots have nothing more to ask, bool, shape (N,)."""
        done: Tensor = self.inner.done
        return done


@dataclass(frozen=True)
class Wrapped:
    """What a wrapper takes over from the inner attack as it is."""

    inner: Attack

    @property
    def name(self) -> str:
        """Of the inner attack."""
        return self.inner.name

    @property
    def gradients(self) -> bool:
        """Of the inner attack."""
        return self.inner.gradients

    @property
    def works_in(self) -> tuple[type, ...]:
        """Of the inner attack."""
        return self.inner.works_in

    @property
    def most_passes(self) -> tuple[int, int]:
        """Of the inner attack."""
        return self.inner.most_passes

    def ask(self, state: Any) -> Query:
        """What the inner attack asks."""
        return self.inner.ask(state.inner)
