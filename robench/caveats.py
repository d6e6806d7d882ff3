"""Caveats that outcomes alone show: what makes a robust accuracy doubtful, as sentences.

`docs/caveats.md` explains them. Not here: what is seen at the model itself (`audits`).
"""

from collections.abc import Sequence

from robench.outcome import Outcome
from robench.protocol import Protocol

BLACK_BOX_GAIN = 0.002
"""Share of all examples that Square may break beyond the gradient attacks before it is remarkable."""


def caveats_of(protocol: Protocol, outcomes: Sequence[Outcome]) -> list[str]:
    """What outcomes under a protocol show.

    Square after gradient attacks that breaks more than 0.2 points of the examples they left means that their
    gradients mislead.

    References:
      Croce & Hein 2020, the flags of the published AutoAttack.
    """
    broken = sum(outcome.stage == "square" for outcome in outcomes)
    cascade = protocol.attack is not None and protocol.attack.kind == "autoattack"
    if not cascade or broken <= BLACK_BOX_GAIN * len(outcomes):
        return []
    return [
        f"Square, which sees no gradients, broke {broken} of {len(outcomes)} examples that the gradient attacks had "
        "left, more than 0.2 points: their gradients mislead (gradient masking). Attack the model with an adaptive "
        "attack of your own, too."
    ]
