"""Finds recipes by name, and resolves `extends`: a recipe may be written as what it changes in another one.

A file holds one recipe (`schema = "robench.recipe/1"`) or, as the bundled ones do for a family, several
(`schema = "robench.recipes/1"`, a `[[recipe]]` each). Two keys say how a recipe is made from another, and are gone
once it is:

    extends = "resnet50"              the recipe that it starts from: a bundled one, or a TOML file beside it
    without = ["mixing", "data.flip"] keys of that recipe which it leaves out

Tables are merged key by key, everything else replaces what was there.

Not here: what keys mean (`recipe`).
"""

import importlib.resources
import json
import tomllib
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

from robench.errors import RecipeError, complaint, did_you_mean
from robench.training.recipe import SCHEMA, TABLES, Recipe, parse_recipe

FAMILY_SCHEMA = "robench.recipes/1"


@dataclass(frozen=True)
class Written:
    """A recipe as it stands in its file.

    Attributes:
      path: the file.
      content: its keys, `extends` and `without` among them.
      where: what to call it in errors.
    """

    path: Path
    content: dict[str, Any]
    where: str

    @property
    def name(self) -> str:
        """As stated, else the file's."""
        return str(self.content.get("name", self.path.stem))


@dataclass(frozen=True)
class Resolved:
    """A recipe with nothing left open, and where its values come from.

    Attributes:
      recipe: the recipe.
      lineage: names of the recipes it extends, nearest first.
      origins: dotted key -> name of the recipe that states its value; keys at their default are missing.
    """

    recipe: Recipe
    lineage: tuple[str, ...]
    origins: dict[str, str]

    def as_toml(self) -> str:
        """The whole recipe as TOML, with the origin of every value as a comment."""
        lines = [f"# {self.recipe.name}, SHA-256 {self.recipe.digest}"]
        lines += [f"# extends {' -> '.join(self.lineage)}"] if self.lineage else []
        for place, table in TABLES.items():
            value: Any = self.recipe
            for part in place.split(".") if place else ():
                value = getattr(value, part, None)
            if value is None:
                continue
            lines += ["", f"[{place}]"] if place else []
            for key, field in table.model_fields.items():
                lines += self._line(place, field.alias or key, getattr(value, key))
        return "\n".join(lines)

    def _line(self, place: str, key: str, value: Any) -> Iterator[str]:
        dotted = f"{place}.{key}" if place else key
        if key == "arguments":
            for name, argument in value.items():
                yield from self._line("arguments", name, argument)
        elif value is not None and dotted not in TABLES:
            shown = dotted if place == "arguments" else key
            yield f"{shown} = {json.dumps(value)}  # {self.origins.get(dotted, 'default')}"


@cache
def _bundled() -> dict[str, Written]:
    return read_folder(Path(str(importlib.resources.files("robench.training") / "recipes")))


def read_folder(folder: Path) -> dict[str, Written]:
    """The recipes of every TOML file in a folder, by name.

    Raises:
      RecipeError: a file cannot be read, or two recipes have one name.
    """
    found: dict[str, Written] = {}
    for path in sorted(folder.glob("*.toml")):
        for written in _read(path):
            if written.name in found:
                other = found[written.name].path.name
                raise RecipeError(complaint(path.name, "name", f"`{written.name}`", f"another name than in {other}"))
            found[written.name] = written
    return found


def bundled_recipes() -> dict[str, Path]:
    """Files of the bundled recipes by name; several recipes may share one."""
    return {name: written.path for name, written in sorted(_bundled().items())}


def load_recipe(name: str | Path) -> Recipe:
    """A recipe by name or path of a TOML file.

    Raises:
      RecipeError: there is no such recipe, or a key is wrong; file and key are named.
    """
    return resolve_recipe(name).recipe


def resolve_recipe(name: str | Path) -> Resolved:
    """The same as `load_recipe`, with the origin of every value."""
    written = _find(str(name), where="robench train", key="recipe")
    content: dict[str, Any] = {}
    origins: dict[str, str] = {}
    lineage = _lineage(written)
    for each in reversed(lineage):
        for key in _leave_out(content, each):
            origins = {name: origin for name, origin in origins.items() if not f"{name}.".startswith(f"{key}.")}
        own = {key: value for key, value in each.content.items() if key not in ("extends", "without")}
        content = _merged({key: value for key, value in content.items() if key != "name"}, own)
        origins |= dict.fromkeys(_dotted(own), each.name)
    recipe = parse_recipe(content, where=written.where)
    if recipe.distillation is not None:
        _find(recipe.distillation.teacher, where=recipe.name, key="distillation.teacher")
    return Resolved(recipe, tuple(each.name for each in lineage[1:]), origins)


def _lineage(written: Written) -> list[Written]:
    """The recipe, the one it extends, the one that one extends, and so on."""
    lineage = [written]
    while "extends" in (content := lineage[-1].content):
        base = _find(content["extends"], where=lineage[-1].where, key="extends", beside=lineage[-1].path.parent)
        names = " -> ".join(each.name for each in [*lineage, base])
        if base in lineage:
            raise RecipeError(complaint(written.where, "extends", f"`{names}`", "a recipe that does not lead back"))
        lineage.append(base)
    return lineage


def _find(name: object, *, where: str, key: str, beside: Path = Path()) -> Written:
    if isinstance(name, str) and name.endswith(".toml"):
        found = _read(beside / name)
        if len(found) != 1:
            names = ", ".join(each.name for each in found)
            raise RecipeError(complaint(name, "file", f"of {len(found)} recipes ({names})", "one recipe"))
        return found[0]
    if not isinstance(name, str) or name not in _bundled():
        advice = did_you_mean(str(name), _bundled(), otherwise="`robench train --list` lists them.")
        raise RecipeError(complaint(where, key, f"`{name}`", "a recipe's name or a TOML file", advice))
    return _bundled()[name]


def _read(path: Path) -> list[Written]:
    """The recipes of a file."""
    try:
        content = tomllib.loads(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, tomllib.TOMLDecodeError) as error:
        raise RecipeError(complaint(str(path), "file", f"unreadable ({error})", "a recipe in TOML")) from error
    if content.get("schema") != FAMILY_SCHEMA:
        return [Written(path, content, path.name)]
    family = content.pop("recipe", None)
    if set(content) != {"schema"} or not isinstance(family, list) or not all(isinstance(each, dict) for each in family):
        raise RecipeError(complaint(path.name, "file", "malformed", "`schema` and `[[recipe]]` tables alone"))
    return [
        Written(path, {"schema": SCHEMA, **each}, f"{path.name}, {each.get('name', f'recipe {number}')}")
        for number, each in enumerate(family, start=1)
    ]


def _leave_out(content: dict[str, Any], written: Written) -> list[str]:
    """Take out of a base what the next recipe does without; returns those keys."""
    names = written.content.get("without", [])
    if not isinstance(names, list) or not all(isinstance(name, str) for name in names):
        raise RecipeError(complaint(written.where, "without", repr(names)[:80], "a list of keys"))
    for name in names:
        *places, key = name.split(".")
        table = content
        for place in places:
            table = table.get(place, {}) if isinstance(table, dict) else {}
        if not isinstance(table, dict) or key not in table:
            expected = "a key that the recipe it extends states"
            raise RecipeError(complaint(written.where, "without", f"`{name}`", expected))
        del table[key]
    return names


def _merged(base: Any, change: Any) -> Any:
    """`change` laid over `base`: tables key by key, anything else as a whole; a copy."""
    if not (isinstance(base, dict) and isinstance(change, dict)):
        return {key: _merged(None, value) for key, value in change.items()} if isinstance(change, dict) else change
    return {**base, **{key: _merged(base.get(key), value) for key, value in change.items()}}


def _dotted(table: dict[str, Any], place: str = "") -> Iterator[str]:
    """The keys of a table and the tables in it, as `schedule.epochs`."""
    for key, value in table.items():
        if isinstance(value, dict):
            yield from _dotted(value, f"{place}{key}.")
        else:
            yield f"{place}{key}"
