"""Where data sets lie on this machine, unless `data=` says it.

First the environment variable `ROBENCH_<NAME>`, then the configuration, `~/.config/robench/config.toml`:

    [data]
    imagenet = "/data/imagenet"

and last what `robench data fetch` put into the cache.

A data set on the Hub may take the place of a folder: `hf-hub:org/name@revision`.
"""

import os
import tomllib
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from robench.errors import DataError, complaint, did_you_mean
from robench.hub import SCHEME


@dataclass(frozen=True)
class Location:
    """A folder, and who named it."""

    path: Path
    origin: str


def variable(name: str) -> str:
    """The environment variable that says where a data set lies.

    Example:
      >>> variable("imagenet-c")
      'ROBENCH_IMAGENET_C'
    """
    return "ROBENCH_" + name.upper().replace("-", "_")


def way_to_name(name: str) -> str:
    """How to say where a data set lies."""
    return f"set {variable(name)}, or write `{name}` under `[data]` into {configuration_file()}"


def configuration_file() -> Path:
    """The user's configuration, which need not exist; `XDG_CONFIG_HOME` moves it."""
    home = Path(os.environ.get("XDG_CONFIG_HOME", ""))
    return (home if home.is_absolute() else _home() / ".config") / "robench" / "config.toml"


def cached(name: str) -> Path:
    """Where a fetched data set lies unless the user says otherwise; `XDG_CACHE_HOME` moves it."""
    home = Path(os.environ.get("XDG_CACHE_HOME", ""))
    return (home if home.is_absolute() else _home() / ".cache") / "robench" / name


def _home() -> Path:
    """The user's own folder.

    Raises:
      DataError: there is none, as in a container whose user has no name.
    """
    try:
        return Path.home()
    except RuntimeError as error:
        advice = "Set HOME, or XDG_CONFIG_HOME and XDG_CACHE_HOME."
        raise DataError(complaint("environment", "HOME", "not set", "the user's own folder", advice)) from error


def expanded(path: str) -> Path:
    """A path with `~` for the user's own folder; that of a user who is not known stays as it is."""
    return Path(os.path.expanduser(path))  # noqa: PTH111  # `Path.expanduser` raises


def locate(name: str, *, known: Iterable[str]) -> Location | None:
    """Where a data set lies, or None where nothing says it.

    Args:
      name: of the data set.
      known: names that the configuration may hold.
    Raises:
      DataError: the configuration is malformed.
    """
    named = os.environ.get(variable(name))
    if named:
        return Location(expanded(named), variable(name))
    file = configuration_file()
    path = _configured(file, known).get(name)
    if path is not None:
        return Location(path, str(file))
    return Location(cached(name), "`robench data fetch`") if cached(name).is_dir() else None


def _configured(file: Path, known: Iterable[str]) -> dict[str, Path]:
    try:
        content = tomllib.loads(file.read_text(encoding="utf-8"))
    except (FileNotFoundError, NotADirectoryError):
        return {}
    except (OSError, ValueError) as error:
        found = f"unreadable ({error})"
        raise DataError(complaint(str(file), "file", found, "a configuration in TOML")) from error
    _check_keys(file, "", content, ["data"])
    data = content.get("data", {})
    if not isinstance(data, dict):
        raise DataError(complaint(str(file), "data", repr(data), "a table of folders", "Write `[data]` above them."))
    _check_keys(file, "data.", data, known)
    return {name: _folder(file, name, path) for name, path in data.items()}


def _check_keys(file: Path, prefix: str, content: dict[str, Any], known: Iterable[str]) -> None:
    names = list(known)
    for key in content:
        if key not in names:
            raise DataError(complaint(str(file), f"{prefix}{key}", "unknown", "a known key", did_you_mean(key, names)))


def _folder(file: Path, name: str, path: Any) -> Path:
    if isinstance(path, str) and path.startswith(SCHEME):
        return Path(path)
    if not isinstance(path, str) or not expanded(path).is_absolute():
        raise DataError(complaint(str(file), f"data.{name}", repr(path), 'an absolute path, such as "/data/imagenet"'))
    return expanded(path)
