"""How far examples of a cascade have come that have no outcome yet, in files beside the shards.

A stage may take hours, and only final outcomes are in shards. So every example that survives a stage leaves a line, and
a run that goes on takes it up where the next stage begins. Each process writes a file of its own and reads those of
all. Not here: what a stage is (`attacks.drive`).
"""

from dataclasses import dataclass

from robench.runs import Run, writing

FOLDER = "halfway"
"""In the folder of the run; gone once the result is there."""


@dataclass(frozen=True)
class Survived:
    """What is known of an example between two stages.

    Attributes:
      stages: how many it has survived.
      margin: the lowest met.
      unconfirmed: claims that the user's own model denied.
    """

    stages: int
    margin: float
    unconfirmed: int


class Halfway:
    """The lines of one run.

    Args:
      run: the run.
      segment: names the file of this process.
    """

    def __init__(self, run: Run, segment: str) -> None:
        self._folder = run.folder / FOLDER
        self._run, self._path = run, self._folder / f"{segment}.csv"

    def note(self, index: int, survived: Survived) -> None:
        """An example, by its place in the run, has survived a stage.

        Raises:
          RunError: the disk is full or the folder cannot be written.
        """
        line = f"{index},{survived.stages},{survived.margin!r},{survived.unconfirmed}\n"
        with writing(self._run.folder):
            self._folder.mkdir(exist_ok=True)
            with self._path.open("a") as file:
                file.write(line)

    def read(self) -> dict[int, Survived]:
        """Examples by their place in the run; of several lines about one, what came last counts."""
        found: dict[int, Survived] = {}
        for path in self._folder.glob("*.csv"):
            for line in path.read_bytes().splitlines(keepends=True):
                parsed = _parsed(line)
                if parsed is not None and parsed[1].stages > found.get(parsed[0], _NOTHING).stages:
                    found[parsed[0]] = parsed[1]
        return found


_NOTHING = Survived(0, 0.0, 0)


def _parsed(line: bytes) -> tuple[int, Survived] | None:
    """A line; None where a kill or a full disk has cut it."""
    try:
        index, stages, margin, unconfirmed = line.decode("ascii").split(",")
        if not line.endswith(b"\n"):
            return None
        return int(index), Survived(int(stages), float(margin), int(unconfirmed))
    except ValueError:
        return None
