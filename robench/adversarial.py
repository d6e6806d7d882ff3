"""The adversarial images of a run on disk: one `.npy` for each fooled example, without loss.

An image is written when its outcome is final and before the shard that holds the outcome, so every
finished shard has its images, whatever happens. A marker file says which run they belong to. Not here:
outcomes and shards (`runs`), and when an image counts (`attacks.drive`).
"""

import hashlib
import io
import json
from collections.abc import Iterable
from pathlib import Path
from urllib.parse import quote

import numpy as np
import torch
from torch import Tensor

from robench.attacks.drive import Finished
from robench.errors import RunError, complaint
from robench.outcome import Outcome
from robench.runs import MARKER, write_whole, writing

SCHEMA = "robench.adversarial/1"
_LONGEST = 255
"""Bytes that a file name may have on the usual file systems."""


def image_file(example: str) -> str:
    """File name of an example's image: its id, percent-encoded.

    An id too long for a file name keeps its beginning, followed by `%sha256-` and its digest; no encoded
    id contains that.

    Example:
      >>> image_file("n01440764/ILSVRC2012_val_00000293")
      'n01440764%2FILSVRC2012_val_00000293.npy'
    """
    name = quote(example, safe="")
    if len(name) + len(".npy") > _LONGEST:
        name = f"{name[:150]}%sha256-{hashlib.sha256(example.encode()).hexdigest()}"
    return f"{name}.npy"


def read_adversarial(folder: str | Path, example: str) -> Tensor:
    """The adversarial image of an example, float32 in [0, 1], shape (3, H, W).

    Args:
      folder: what was given as `save_adversarial`; for several protocols the sub-folder of one.
      example: its id, as in the outcomes.
    Raises:
      RunError: there is none: the example was not fooled, or is not of this run.
    """
    path = Path(folder) / image_file(example)
    try:
        return torch.from_numpy(np.load(path, allow_pickle=False))
    except (OSError, ValueError) as error:
        advice = "Only examples with `fooled_at` have one."
        raise RunError(
            complaint(str(path), "image", f"unreadable ({error})", "the image of a fooled example", advice)
        ) from error


class AdversarialImages:
    """A folder of adversarial images.

    Args:
      folder: where the images go.
      run_folder: of the run, for messages that say how to go on.
      key: of the run.
    """

    def __init__(self, folder: Path, run_folder: Path, key: str) -> None:
        self.folder, self._run_folder, self._key = folder, run_folder, key

    def claim(self) -> None:
        """Make the folder this run's own.

        Raises:
          RunError: it holds images of another run or of unknown origin, or cannot be written.
        """
        marker = self.folder / MARKER
        advice = "Choose a new folder."
        holds_images = self.folder.is_dir() and any(self.folder.glob("*.npy"))
        if holds_images and not marker.exists():
            found, expected = "a folder of .npy files that robench did not write", "a new or empty folder"
            raise RunError(complaint(str(self.folder), "save_adversarial", found, expected, advice))
        owner = self._owner() if marker.exists() else None
        if owner == self._key:
            return
        if holds_images:
            found, expected = f"holding images of run {owner}", f"images of run {self._key}"
            raise RunError(complaint(str(self.folder), "save_adversarial", found, expected, advice))
        content = json.dumps({"schema": SCHEMA, "run": self._key}, sort_keys=True).encode() + b"\n"
        with writing(self._run_folder, where=self.folder, argument="save_adversarial"):
            self.folder.mkdir(parents=True, exist_ok=True)
            write_whole(marker, content)

    def clear(self) -> None:
        """Delete the images of this run."""
        with writing(self._run_folder, where=self.folder, argument="save_adversarial"):
            for path in self.folder.glob("*.npy"):
                path.unlink()

    def check(self, outcomes: Iterable[Outcome]) -> None:
        """Check that every fooled example among finished ones has its image.

        Raises:
          RunError: images are missing.
        """
        attacked = [outcome.id for outcome in outcomes if outcome.has_image]
        missing = sum(not (self.folder / image_file(example)).exists() for example in attacked)
        if missing:
            found = f"without {missing} of the {len(attacked)} images of finished examples"
            advice = "They were attacked without saving, or moved: put them back, or start over with `--fresh`."
            raise RunError(
                complaint(str(self.folder), "save_adversarial", found, "one for every fooled example", advice)
            )

    def keep(self, finished: Finished) -> None:
        """Write the image of a fooled example, whole or not at all; a survivor has none.

        Raises:
          RunError: the disk is full or the folder cannot be written; the run can be resumed.
        """
        path = self.folder / image_file(finished.id)
        with writing(self._run_folder, where=self.folder, argument="save_adversarial"):
            if finished.image is None:
                path.unlink(missing_ok=True)  # of an attempt on another machine, before the shard was written
                return
            content = io.BytesIO()
            np.lib.format.write_array(content, finished.image.cpu().contiguous().numpy(), allow_pickle=False)
            write_whole(path, content.getvalue())

    def _owner(self) -> str:
        marker = self.folder / MARKER
        try:
            return str(json.loads(marker.read_bytes())["run"])
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise RunError(complaint(str(marker), "file", "unreadable", "the marker of a run's images")) from error
