"""The record of a training: its log as JSON lines and as a table, its curves, and what TensorBoard reads.

Not here: what is measured (`watching`).
"""

import csv
import importlib.util
import io
import json
import time
from pathlib import Path
from typing import Any

from robench.errors import RecipeError, complaint
from robench.training.checkpoint import write_whole, writing


class Record:
    """A log, `<name>.jsonl`, and what is drawn from it: `<name>.csv`, `<name>.png`, a folder for TensorBoard.

    Attributes:
      header: first line of the log.
      lines: one for each epoch.
    """

    def __init__(self, folder: Path, name: str, header: dict[str, Any], *, tensorboard: bool = False) -> None:
        self._path = folder / name
        self.header, self.lines = header, list[dict[str, Any]]()
        self._drawn = time.monotonic()
        self._told = 0
        self._board: Any = None
        if tensorboard:
            self._board = _board(folder / f"{name}.tensorboard")

    @property
    def text(self) -> str:
        """The log."""
        return "".join(json.dumps(line) + "\n" for line in (self.header, *self.lines))

    def restore(self, text: str) -> None:
        """Take over the log of a checkpoint, its header too."""
        self.header, *self.lines = (json.loads(line) for line in text.splitlines())
        self._told = len(self.lines)

    def write(self, *, last: bool = False) -> None:
        """Write all of it; curves are drawn once a minute at most, and when the `last` epoch is done.

        Raises:
          RecipeError: a file cannot be written.
        """
        write_whole(self._file("jsonl"), self.text.encode())
        if not self.lines:
            return
        write_whole(self._file("csv"), table(self.lines).encode())
        if (last or time.monotonic() - self._drawn > 60) and importlib.util.find_spec("matplotlib") is not None:
            self._drawn = time.monotonic()
            write_whole(self._file("png"), curves(self._path.name, self.lines))
        if self._board is not None and len(self.lines) > self._told:
            self._told = len(self.lines)
            with writing(self._path):
                for key, value in self.lines[-1].items():
                    if key != "epoch":
                        self._board.add_scalar(key, float(value), self.lines[-1]["epoch"])
                self._board.flush()

    def _file(self, suffix: str) -> Path:
        return self._path.with_name(f"{self._path.name}.{suffix}")


def table(lines: list[dict[str, Any]]) -> str:
    """The epochs as CSV."""
    columns = list(dict.fromkeys(key for line in lines for key in line))
    text = io.StringIO()
    writer = csv.DictWriter(text, columns, lineterminator="\n")
    writer.writeheader()
    writer.writerows(lines)
    return text.getvalue()


def curves(name: str, lines: list[dict[str, Any]]) -> bytes:
    """Loss and accuracies over the epochs, as PNG."""
    from matplotlib.figure import Figure  # optional

    figure = Figure(figsize=(7, 3), layout="constrained")
    left, right = figure.subplots(1, 2)
    epochs = [line["epoch"] + 1 for line in lines]
    left.plot(epochs, [line["loss"] for line in lines], marker=".")
    left.set(xlabel="epoch", ylabel="loss", title=name)
    for key in lines[0]:
        if key not in ("epoch", "loss", "lr", "seconds", "catastrophic_overfitting"):
            right.plot(epochs, [100 * line[key] for line in lines], marker=".", label=key)
    for line in lines:
        if line.get("catastrophic_overfitting"):
            right.axvline(line["epoch"] + 1, linestyle=":", color="grey")
    right.set(xlabel="epoch", ylabel="accuracy, %", ylim=(0, 100), title="validation")
    right.legend()
    content = io.BytesIO()
    figure.savefig(content, format="png", dpi=150, metadata={"Software": None})
    return content.getvalue()


def _board(folder: Path) -> Any:
    try:
        from torch.utils.tensorboard import SummaryWriter
    except ImportError as error:
        advice = "Install it: `pip install tensorboard`."
        raise RecipeError(complaint("robench train", "tensorboard", "not installed", "it", advice)) from error
    with writing(folder):
        return SummaryWriter(str(folder))
