import multiprocessing
import os
import signal
import subprocess
import sys
import time
from collections.abc import Generator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from PIL import Image
from PIL import ImageFile as PillowFile
from torch import Tensor

from robench.data.decoding import FEW, Decoder, ImageFile, _Shared, default_workers, naming_dead_workers
from robench.data.images import read_image
from robench.data.source import Unreadable
from robench.errors import DataError

COUNT = 2 * FEW


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> list[ImageFile]:
    """Small pictures, each another; the sixth is cut, the ninth is gone."""
    folder = tmp_path_factory.mktemp("pictures")
    for number in range(COUNT):
        pixels = np.random.default_rng(number).integers(0, 256, (10, 12, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(folder / f"{number:03d}.png")
    (folder / "005.png").write_bytes((folder / "005.png").read_bytes()[:150])
    (folder / "008.png").unlink()
    return [ImageFile(f"{number:03d}.png", folder / f"{number:03d}.png") for number in range(COUNT)]


def _children() -> list[Any]:
    return multiprocessing.active_children()


def _gone(pids: list[int]) -> bool:
    def running(pid: int) -> bool:
        try:
            return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] not in "ZX"
        except (FileNotFoundError, ProcessLookupError):
            return False

    return not any(running(pid) for pid in pids)


@pytest.mark.parametrize("workers", [0, 1])
def test_half_an_image_is_none_whatever_the_caller_lets_pillow_accept(
    workers: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Much training code sets the flag when it is imported, and then the rest of a file is grey."""
    path = tmp_path / "cut.jpg"
    noise = np.random.default_rng(0).integers(0, 256, (64, 64, 3), dtype=np.uint8)
    Image.fromarray(noise).save(path)
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    monkeypatch.setattr(PillowFile, "LOAD_TRUNCATED_IMAGES", True)
    (found,) = Decoder(64, 64, workers).images([ImageFile("cut.jpg", path)])
    assert isinstance(found, Unreadable)
    assert PillowFile.LOAD_TRUNCATED_IMAGES is True


@pytest.mark.parametrize("workers", [0, 1, 3, None])
def test_images_come_in_order_whoever_decodes(files: list[ImageFile], workers: int | None) -> None:
    seen = 0
    for number, image in enumerate(Decoder(8, 8, workers).images(files)):
        if number in (5, 8):
            assert isinstance(image, Unreadable)
            assert image.reason.startswith(f"00{number}.png: `image` is unreadable (")
        else:
            assert isinstance(image, Tensor)
            assert torch.equal(image, read_image(files[number].path, resize=8, crop=8))
        seen += 1
    assert seen == COUNT
    assert _children() == []


def _same(one: NDArray[np.uint8] | Unreadable, other: NDArray[np.uint8] | Unreadable) -> bool:
    if isinstance(one, Unreadable) or isinstance(other, Unreadable):
        return one == other
    return np.array_equal(one, other)


def test_bytes_stay_as_they_are_while_more_are_decoded(files: list[ImageFile]) -> None:
    decoder, many = Decoder(8, 8, 1), files * 2  # far more than workers share memory for
    for file, found in zip(many, list(decoder.pixels(many)), strict=True):
        assert _same(found, decoder.decode(file))


def test_without_forks_bytes_come_through_the_pipe(files: list[ImageFile], monkeypatch: pytest.MonkeyPatch) -> None:
    decoder = Decoder(8, 8, 2)
    monkeypatch.setattr("robench.data.decoding._FORKS", False)
    assert isinstance(_Shared(decoder, 8)[0, files[0]], np.ndarray)
    monkeypatch.undo()
    assert _Shared(decoder, 8)[3, files[0]] == 3


def test_an_image_of_a_size_of_its_own_is_decoded_by_workers_too(files: list[ImageFile]) -> None:
    mixed = [replace(file, view=(None, 6)) if number % 3 else file for number, file in enumerate(files)]
    found = list(Decoder(8, 8, 2).pixels(mixed))
    shapes = {image.shape[1] for image in found if not isinstance(image, Unreadable)}
    assert shapes == {6, 8}
    assert all(_same(image, Decoder(8, 8).decode(file)) for file, image in zip(mixed, found, strict=True))


def test_the_default_is_at_most_four() -> None:
    assert 1 <= default_workers() <= 4


def test_few_images_start_no_process(files: list[ImageFile], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("robench.data.decoding.DataLoader", None)
    assert len(list(Decoder(None, 8, 4).images(files[: FEW - 1]))) == FEW - 1
    with pytest.raises(TypeError):
        list(Decoder(None, 8, 4).images(files[:FEW]))


def test_nothing_is_read_before_it_is_asked_for(files: list[ImageFile]) -> None:
    images = Decoder(None, 8, 2).images(files)
    assert _children() == []
    next(images)
    assert len(_children()) == 2


def test_closing_ends_the_workers_at_once(files: list[ImageFile]) -> None:
    images = Decoder(None, 8, 2).images(files)
    next(images)
    pids = [child.pid for child in _children()]
    assert isinstance(images, Generator)
    images.close()
    assert len(pids) == 2
    assert _children() == []
    assert _gone(pids)


def test_the_callers_random_numbers_and_ctrl_c_stay_as_they_were(files: list[ImageFile]) -> None:
    before, deaf = torch.random.get_rng_state(), signal.pthread_sigmask(signal.SIG_BLOCK, [])
    list(Decoder(None, 8, 2).images(files))
    assert torch.equal(torch.random.get_rng_state(), before)
    assert signal.pthread_sigmask(signal.SIG_BLOCK, []) == deaf


def _kill_and_go_on(victim: int, images: Any) -> None:
    """Where the signal arrives, in the loop or in the caller, torch raises its error."""
    with naming_dead_workers():
        os.kill(victim, signal.SIGKILL)
        for _ in images:
            time.sleep(0.001)


def test_a_worker_that_dies_is_an_error_that_says_so(files: list[ImageFile]) -> None:
    many = files[:4] * 200
    images = Decoder(None, 8, 2).images(many)
    next(images)
    victim = _children()[0].pid
    message = (
        r"^decoding: `workers` is dying \(DataLoader worker \(pid.*\); expected living processes\. "
        r"Is memory short\? Try fewer `workers`, or 0; what is finished is kept\.$"
    )
    with pytest.raises(DataError, match=message):
        _kill_and_go_on(victim, images)
    assert isinstance(images, Generator)
    images.close()
    assert _children() == []


def test_other_errors_pass() -> None:
    with pytest.raises(RuntimeError, match=r"^mine$"), naming_dead_workers():
        raise RuntimeError("mine")


SCRIPT = """
import sys, time
from pathlib import Path
from robench.data.decoding import Decoder, ImageFile

path = Path(sys.argv[1])
images = Decoder(None, 8, 2).images([ImageFile("a", path)] * 100000)
next(images)
import multiprocessing
print(*(child.pid for child in multiprocessing.active_children()), flush=True)
for image in images:
    time.sleep(0.001)
"""


def _script(files: list[ImageFile]) -> tuple["subprocess.Popen[str]", list[int]]:
    """A process of its own group that decodes without end, and its workers."""
    process = subprocess.Popen(
        [sys.executable, "-W", "always", "-c", SCRIPT, str(files[0].path)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    assert process.stdout is not None
    return process, [int(pid) for pid in process.stdout.readline().split()]


def test_ctrl_c_ends_everything_with_one_traceback(files: list[ImageFile]) -> None:
    process, pids = _script(files)
    assert len(pids) == 2
    time.sleep(0.3)
    os.killpg(process.pid, signal.SIGINT)  # as a terminal does: to all of the group
    _, stderr = process.communicate(timeout=30)
    assert process.returncode != 0
    assert stderr.count("Traceback") == 1
    assert stderr.rstrip().endswith("KeyboardInterrupt")
    assert "arning" not in stderr
    assert _gone(pids)


def test_workers_leave_with_a_parent_that_is_killed(files: list[ImageFile]) -> None:
    process, pids = _script(files)
    assert len(pids) == 2
    process.kill()
    process.communicate(timeout=30)
    deadline = time.monotonic() + 3  # torch's own watchdog would need five seconds, or forever with a full pipe
    while not _gone(pids) and time.monotonic() < deadline:
        time.sleep(0.02)
    assert _gone(pids)
