"""What claims are held to: protocols, their locked digests, and the official labels.

Not here: the checks.
"""

from collections.abc import Mapping
from dataclasses import dataclass

from robench import registry
from robench.protocol import Protocol


@dataclass(frozen=True)
class Rules:
    """What claims are held to.

    Attributes:
      protocols: by exact name.
      lock: digest of each released version.
      labels: SHA-256 of the labels in protocol order, joined by newlines, by the digest of the ids.
    """

    protocols: Mapping[str, Protocol]
    lock: Mapping[str, str]
    labels: Mapping[str, str]

    @classmethod
    def shipped(cls) -> "Rules":
        """Those of this version of robench."""
        folder = registry.shipped_folder()
        labels = registry.read_labels(folder / registry.LABELS)
        return cls(registry.shipped(), registry.read_lock(folder / registry.LOCK), labels)
