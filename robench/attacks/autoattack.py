"""AutoAttack: a list of stages, each of which attacks what the ones before it left.

No algorithm stands here (`apgd.py`, `fab.py`, `square.py`), and none of the chaining (`drive.py`).
"""

from dataclasses import dataclass

from robench.attacks.apgd import APGD
from robench.attacks.fab import FAB
from robench.attacks.interface import Attack
from robench.attacks.square import Square
from robench.errors import ProtocolError, complaint

VERSIONS = ("standard", "lite", "rand")


@dataclass(frozen=True)
class AutoAttack:
    """An ensemble that needs no tuning: APGD-CE, targeted APGD, targeted FAB, Square.

    `lite` is the first two stages, in which nearly all examples fall that fall at all; `rand` is untargeted APGD
    on both losses, for randomised models (`asking.py`).

    References:
      Croce & Hein 2020, arXiv:2003.01690. Deviates: as its stages do, and each example keeps the first
      adversarial image that any stage found.
    """

    version: str = "standard"
    """`standard`, `lite` or `rand`."""
    steps: int = 100
    """Steps of APGD and FAB, for each target."""
    targets: int = 9
    """Classes that the targeted stages aim at; all wrong ones where there are not so many."""
    queries: int = 5000
    """Queries of Square."""

    def __post_init__(self) -> None:
        if self.version not in VERSIONS:
            expected = ", ".join(f"`{version}`" for version in VERSIONS)
            raise ProtocolError(complaint("AutoAttack", "version", f"`{self.version}`", expected))
        self.stages()  # whose own settings are checked

    def stages(self) -> tuple[Attack, ...]:
        """The attacks in their order."""
        if self.version == "rand":
            return APGD(steps=self.steps), APGD(steps=self.steps, loss="dlr")
        first = APGD(steps=self.steps), APGD(steps=self.steps, targets=self.targets)
        if self.version == "lite":
            return first
        return (*first, FAB(steps=self.steps, targets=self.targets), Square(queries=self.queries))
