"""Finds protocols: the shipped ones, their lock, versions, and a user's own files.

Shipped protocols are the TOML files of the package `robench_benchmarks` (the folder `benchmarks/`):
`<id>.toml` is the newest version, `<id>@<n>.toml` an older one. `protocols.lock` pins the digest of
every released version, `labels.lock` the labels of the examples. Not here: what a protocol says (`protocol`).
"""

import importlib.resources
import re
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path

from robench.errors import ProtocolError, complaint, did_you_mean
from robench.protocol import Protocol, read_protocol

LOCK = "protocols.lock"
LABELS = "labels.lock"


@dataclass(frozen=True)
class Registered:
    """A protocol and whether it is an official one: shipped, released and unchanged."""

    protocol: Protocol
    official: bool


def shipped_folder() -> Path:
    """The folder of the shipped protocols."""
    return Path(str(importlib.resources.files("robench_benchmarks")))


@cache
def shipped() -> Mapping[str, Protocol]:
    """All shipped protocols by exact name, `id@version`."""
    return read_folder(shipped_folder())


def read_folder(folder: Path) -> dict[str, Protocol]:
    """All protocols of a folder by exact name; its lock is held against them.

    Raises:
      ProtocolError: a file is malformed, misnamed, or differs from its locked digest.
    """
    protocols: dict[str, Protocol] = {}
    for path in sorted(folder.glob("*.toml")):
        protocol = read_protocol(path)
        if path.stem not in (protocol.id, protocol.exact_name):
            raise ProtocolError(complaint(path.name, "id", repr(protocol.id), f"the file's stem, {path.stem!r}"))
        if protocol.exact_name in protocols:
            raise ProtocolError(complaint(path.name, "version", protocol.version, "a version that no other file has"))
        protocols[protocol.exact_name] = protocol
    _hold_to_lock(protocols, read_lock(folder / LOCK))
    return protocols


def read_lock(path: Path) -> dict[str, str]:
    """Digest by exact name, from lines `id@version sha256`."""
    if not path.exists():
        return {}
    lines = [
        line.split() for line in path.read_text(encoding="utf-8").splitlines() if line and not line.startswith("#")
    ]
    wrong = next((line for line in lines if len(line) != 2 or not re.fullmatch(r"[0-9a-f]{64}", line[1])), None)
    if wrong is not None:
        raise ProtocolError(complaint(path.name, "line", repr(" ".join(wrong)), "`id@version sha256`"))
    return dict(lines)


def read_labels(path: Path) -> dict[str, str]:
    """Digest of the labels by digest of the ids, from lines `source ids_sha256 labels_sha256`."""
    lines = [line.split() for line in path.read_text(encoding="utf-8").splitlines() if line and line[0] != "#"]
    for line in lines:
        if len(line) != 3 or not all(re.fullmatch(r"[0-9a-f]{64}", digest) for digest in line[1:]):
            expected = "`source ids_sha256 labels_sha256`"
            raise ProtocolError(complaint(path.name, "line", repr(" ".join(line)), expected))
    return {ids: labels for _, ids, labels in lines}


def _hold_to_lock(protocols: Mapping[str, Protocol], lock: Mapping[str, str]) -> None:
    for name, protocol in protocols.items():
        locked = lock.get(name)
        if locked is not None and locked != protocol.digest:
            advice = "A released version never changes: publish the change as a new version."
            raise ProtocolError(
                complaint(f"{protocol.id}.toml", "digest", protocol.digest, f"{locked} (locked)", advice)
            )
        if locked is None and protocol.status != "draft":
            advice = f"Add the line `{name} {protocol.digest}` to {LOCK}."
            raise ProtocolError(
                complaint(f"{protocol.id}.toml", "status", repr(protocol.status), "a locked digest", advice)
            )
    lost = sorted(set(lock) - set(protocols))
    if lost:
        raise ProtocolError(complaint(LOCK, "line", repr(lost[0]), "a protocol file for every locked version"))


def list_protocols() -> list[Protocol]:
    """The newest version of every shipped protocol, active ones before drafts, by id."""
    newest = [_newest(protocol_id) for protocol_id in sorted({protocol.id for protocol in shipped().values()})]
    return sorted(newest, key=lambda protocol: (protocol.status != "active", protocol.id))


def load_protocol(name: str | Path | Protocol) -> Protocol:
    """A protocol by id (`pgd-linf`: the newest), exact name (`pgd-linf@1`), path of a TOML file, or as it is.

    Raises:
      ProtocolError: there is no such protocol or version, or the file is malformed.
    """
    return resolve(name).protocol


def resolve(name: str | Path | Protocol) -> Registered:
    """The same as `load_protocol`, with its standing. A user's own file or object is never official."""
    if isinstance(name, Protocol):
        return Registered(name, official=False)
    text = str(name)
    if isinstance(name, Path) or text.endswith(".toml") or "/" in text:
        return Registered(read_protocol(Path(name)), official=False)
    known = shipped()
    protocol_id, at, _ = text.partition("@")
    ids = {protocol.id for protocol in known.values()}
    if protocol_id not in ids:
        advice = did_you_mean(protocol_id, ids)
        raise ProtocolError(
            complaint("robench", "protocol", f"`{text}`", "the id of a protocol or a path to a TOML file", advice)
        )
    if not at:
        protocol = _newest(protocol_id)
    elif text in known:
        protocol = known[text]
    else:
        versions = sorted(name for name in known if name.startswith(f"{protocol_id}@"))
        advice = f"`{protocol_id}` alone is the newest."
        raise ProtocolError(complaint("robench", "protocol", f"`{text}`", f"one of {', '.join(versions)}", advice))
    return Registered(protocol, official=protocol.status in ("active", "superseded"))


def _newest(protocol_id: str) -> Protocol:
    """The newest active version; without one, the newest of all."""
    versions = [protocol for protocol in shipped().values() if protocol.id == protocol_id]
    return max(versions, key=lambda protocol: (protocol.status == "active", protocol.version))
