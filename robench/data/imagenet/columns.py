"""Classes of ImageNet from the columns in which data sets on the Hub say them.

They say them as wnids, as numbers of the 1,000 classes, as ranks among the classes of a set, or by names. A name can
stand for two classes ("crane", "maillot"), and numbered folders, sorted as text, put 10 before 2: so nothing is taken
for granted that the values themselves do not settle. Not here: how the columns are read (`robench.data.hub`).
"""

import importlib.resources
import re
from collections.abc import Iterable, Sequence
from functools import cache

from robench.data.imagenet.listing import classes_by_wnid, is_wnid, wnids
from robench.errors import DataError, complaint, first_few


def classes_of(values: Sequence[int | str], names: Sequence[str], allowed: Sequence[int], *, where: str) -> list[int]:
    """The class of each image of a set, from 0 to 999.

    Args:
      values: what a column says of each: a wnid, a class number, or the place of a name.
      names: what the places are called; none: the values are what they are.
      allowed: the classes of the set, rising.
      where: name of the data set, for messages.
    Raises:
      DataError: they cannot be told, or are no classes of the set.
    """
    if names:
        by_place = _named(names, allowed, where)
        found = [by_place[int(value)] for value in values]
    elif values and isinstance(values[0], str):
        found = [classes_by_wnid().get(str(value), -1) for value in values]
    else:
        numbers = [int(value) for value in values]
        # A set of 200 classes has ranks up to 199; as class numbers, these would be another set.
        ranks = len(allowed) < len(wnids()) and set(numbers) == set(range(len(allowed)))
        found = [allowed[number] for number in numbers] if ranks else numbers
    known = set(allowed)
    foreign = sorted({str(value) for value, label in zip(values, found, strict=True) if label not in known})
    if foreign:
        unknown = f"{len(foreign)} unknown ({first_few(foreign)})"
        raise DataError(complaint(where, "labels", unknown, _expected(allowed), "Is it another set, or a part of it?"))
    return found


def _named(names: Sequence[str], allowed: Sequence[int], where: str) -> list[int]:
    """The class of each name."""
    if all(map(is_wnid, names)):
        return [classes_by_wnid().get(name, -1) for name in names]
    if all(name.isascii() and name.isdigit() for name in names):
        return [int(name) for name in names]
    found = [[label for label in allowed if _plain(name) & _lemmas()[label]] for name in names]
    if len(names) == len(wnids()) == len(allowed):  # the names of ImageNet-1k come in the order of its classes
        wrong = [name for place, name in enumerate(names) if found[place] and place not in found[place]]
        if not wrong:
            return list(allowed)
        raise DataError(complaint(where, "class names", f"in another order ({first_few(wrong)})", _expected(allowed)))
    unclear = [name for name, labels in zip(names, found, strict=True) if len(labels) != 1]
    if unclear or len({labels[0] for labels in found}) != len(names):
        what = f"{len(unclear)} that name no class or two ({first_few(unclear)})" if unclear else "two of one class"
        raise DataError(complaint(where, "class names", what, _expected(allowed), "Take a copy that has wnids."))
    return [labels[0] for labels in found]


def _expected(allowed: Sequence[int]) -> str:
    return f"wnids, numbers or unmistakable names of its {len(allowed)} classes"


def _plain(name: str) -> set[str]:
    """The synonyms of a name, without case and marks."""
    return {re.sub(r"[^a-z0-9]+", " ", part.lower()).strip() for part in name.split(",")} - {""}


@cache
def _lemmas() -> Sequence[set[str]]:
    """Names of each class in WordNet, from timm's package data."""
    path = importlib.resources.files("timm") / "data" / "_info" / "imagenet_synset_to_lemma.txt"
    lines = (line.split("\t") for line in path.read_text(encoding="utf-8").splitlines() if "\t" in line)
    lemmas = {wnid: _plain(names) for wnid, names in lines}
    return [lemmas[wnid] for wnid in wnids()]


def missing_from(found: Iterable[int], allowed: Sequence[int]) -> list[str]:
    """Wnids of the classes of a set that do not occur."""
    there = set(found)
    return [wnids()[label] for label in allowed if label not in there]
