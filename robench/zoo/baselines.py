"""Models to compare with: what is bundled, on the Hub, on the Hub as a pickle only, or not published.

The list is `baselines.toml`. Not here: how they are loaded (`zoo`) and converted (`conversion`).
"""

import importlib.resources
import shlex
import tomllib
from dataclasses import dataclass
from functools import cache
from typing import Literal

from robench.zoo.mini import ARCHITECTURES, MODELS

BUNDLED_SIZE = 64
LICENCE = "apache-2.0"
"""Of what is bundled: robench's own."""


@dataclass(frozen=True)
class Baseline:
    """A model to compare with.

    Attributes:
      title: what people call it.
      name: what robench loads, what `robench convert` converts, or the recipe of what nobody has published.
      status: where it is.
      parameters: how many.
      input_size: side of its images, in pixels.
      licence: of the weights; None: there are none.
      architecture: timm's name, where a conversion needs it.
      sha256: of the pickle, where it is pinned.
    """

    title: str
    name: str
    status: Literal["bundled", "published", "pickled", "unpublished"]
    parameters: int
    input_size: int
    licence: str | None = None
    architecture: str | None = None
    sha256: str | None = None

    @property
    def commands(self) -> tuple[str, ...]:
        """What to type to get it, for a shell; of what is trained, with the command that puts it on the Hub."""
        if self.status == "pickled":
            folder = self.name.rpartition("/")[2].rpartition(".")[0]
            return (shlex.join(["robench", "convert", self.name, folder]),)
        if self.status == "unpublished":
            return (shlex.join(["robench", "train", self.name, "--data", "IMAGENET", "--push", f"YOU/{self.name}"]),)
        return (shlex.join(["robench", "evaluate", self.name, "PROTOCOL"]),)


def bundled() -> tuple[Baseline, ...]:
    """The models that ship with robench."""
    counts = {name: sum(each.numel() for each in build().parameters()) for name, build in ARCHITECTURES.items()}
    return tuple(
        Baseline(name, name, "bundled", counts[architecture], BUNDLED_SIZE, LICENCE)
        for name, architecture in MODELS.items()
    )


@cache
def listed() -> tuple[Baseline, ...]:
    """The baselines of the list, in its order."""
    text = (importlib.resources.files("robench.zoo") / "baselines.toml").read_text(encoding="utf-8")
    tables = tomllib.loads(text)
    return tuple(Baseline(status=status, **row) for status, rows in tables.items() for row in rows)  # type: ignore[arg-type]


def pickled(source: str) -> Baseline | None:
    """The baseline that a pickle on the Hub is, whatever its revision; None: it is not listed."""
    name = source.partition("@")[0]
    return next((each for each in listed() if each.status == "pickled" and each.name == name), None)
