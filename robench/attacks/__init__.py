"""Attacks by name. An attack is one file, one line here, and one row in the table of laws."""

from typing import Any

from robench.attacks.apgd import APGD
from robench.attacks.autoattack import AutoAttack
from robench.attacks.fab import FAB
from robench.attacks.foolbox_attacks import Boundary, HopSkipJump
from robench.attacks.patch_ascent import WhiteBoxPatches
from robench.attacks.patch_search import GreyPatches, RandomPatches
from robench.attacks.pgd import PGD
from robench.attacks.square import Square
from robench.attacks.tpa import TPA

CATALOGUE: dict[str, type[Any]] = {
    "apgd": APGD,
    "fab": FAB,
    "pgd": PGD,
    "square": Square,
    "tpa": TPA,
    "tpa-gray": GreyPatches,
    "tpa-random": RandomPatches,
    "tpa-whitebox": WhiteBoxPatches,
}
"""Attack class by `kind` in a protocol; its fields are the protocol's keys."""

CASCADES: dict[str, type[Any]] = {"autoattack": AutoAttack}
"""The same for lists of attacks: their `stages()` run one after the other."""

WHOLE: dict[str, dict[str, type[Any]]] = {"foolbox": {"boundary": Boundary, "hopskipjump": HopSkipJump}}
"""Attacks that own their loop (`whole.py`), by `kind` and then by `attack` in a protocol."""

REVISION = 1
"""Rises when a change of the attacks' code changes an answer; part of every run's key."""
