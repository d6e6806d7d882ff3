"""Corruptions beside the reference package: all fifteen at one severity, one process for each core on both sides.

The reference is called image by image in a loop, as its users do. Images are in memory before and after: no
file is read or written. Its `elastic_transform` is another, cheaper corruption than the published one.
"""

import multiprocessing
import os
import time
from collections.abc import Callable, Sequence
from functools import cache
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from robench.bench.measurement import Measurement, Settings, Stopwatch
from robench.bench.photographs import photographs
from robench.data.corruptions import COMMON, corrupt
from robench.errors import DataError, complaint

SEVERITY = 3
TOGETHER = 10
"""Images that a process is handed at a time."""

Pixels = NDArray[np.uint8]
Job = tuple[str, Sequence[str], Pixels]


def measure_corruptions(settings: Settings) -> Measurement:
    """Time both sides, corruption by corruption."""
    watch = Stopwatch()
    _peer()
    images = _images(settings.images)
    processes = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    sides: dict[str, Callable[[Job], None]] = {"ours": _ours, "reference": _theirs}
    seconds = {side: dict.fromkeys(COMMON, 0.0) for side in sides}
    for _ in range(settings.repeats):
        for side, work in sides.items():
            took = _seconds(work, images, processes)
            watch.time(side, sum(took.values()))
            for name, more in took.items():
                seconds[side][name] += more / settings.repeats
    return Measurement(
        name="corruptions",
        model=settings.model,
        examples=len(images),
        ours_seconds=watch.median("ours"),
        theirs_seconds=watch.median("reference"),
        details={
            "against": "imagecorruptions",
            "severity": SEVERITY,
            "processes": processes,
            "repeats": settings.repeats,
            "ours_images_per_second": len(images) / watch.median("ours"),
            "theirs_images_per_second": len(images) / watch.median("reference"),
            "gpu_seconds": _gpu_seconds(images),
            "corruptions": [
                {
                    "corruption": name,
                    "ours_seconds": round(seconds["ours"][name], 3),
                    "theirs_seconds": round(seconds["reference"][name], 3),
                    "ratio": round(seconds["reference"][name] / seconds["ours"][name], 2),
                }
                for name in COMMON
            ],
        },
        doubts=watch.doubts(),
    )


def _images(count: int) -> Pixels:
    """The photographs, over and over, uint8, shape (count, 3, 224, 224)."""
    pixels = (photographs()[0] * 255).round().to(torch.uint8).numpy()
    return np.concatenate([pixels] * -(-count // len(pixels)))[:count]


def _seconds(work: Callable[[Job], None], images: Pixels, processes: int) -> dict[str, float]:
    """Wall time of each corruption over all images, once everything is compiled and loaded."""
    took = {}
    with multiprocessing.get_context("fork").Pool(processes, _one_thread) as pool:
        for name in COMMON:
            pool.map(work, _jobs(name, images[: 2 * processes], 1), chunksize=1)
            began = time.perf_counter()
            pool.map(work, _jobs(name, images, TOGETHER), chunksize=1)
            took[name] = time.perf_counter() - began
        pool.close()
        pool.join()  # from now on the time of its processes is known to be ours
    return took


def _jobs(name: str, images: Pixels, together: int) -> list[Job]:
    ids = [f"image-{number}" for number in range(len(images))]
    starts = range(0, len(images), together)
    return [(name, ids[at : at + together], images[at : at + together]) for at in starts]


def _one_thread() -> None:
    """Threads would wait for each other beside as many processes as there are cores."""
    import cv2

    torch.set_num_threads(1)
    cv2.setNumThreads(1)


def _ours(job: Job) -> None:
    name, ids, images = job
    corrupt(torch.from_numpy(images), ids, name, SEVERITY)


def _theirs(job: Job) -> None:
    name, _, images = job
    for image in images:
        _peer()(image.transpose(1, 2, 0), corruption_name=name, severity=SEVERITY)


@cache
def _peer() -> Any:
    """The reference's `corrupt`."""
    try:
        import imagecorruptions
    except ImportError as error:
        found, advice = f"not importable ({error})", "Install it: `pip install imagecorruptions-imaug`."
        where = "robench bench corruptions"
        raise DataError(complaint(where, "imagecorruptions", found, "the peer", advice)) from error
    return imagecorruptions.corrupt


def _gpu_seconds(images: Pixels) -> float | None:
    """All fifteen on a GPU, the images there before and after; None without one."""
    if not torch.cuda.is_available():
        return None
    there, ids = torch.from_numpy(images).cuda(), [f"image-{number}" for number in range(len(images))]
    for name in COMMON:
        corrupt(there[:2], ids[:2], name, SEVERITY)
    torch.cuda.synchronize()
    began = time.perf_counter()
    for name in COMMON:
        corrupt(there, ids, name, SEVERITY)
    torch.cuda.synchronize()
    return time.perf_counter() - began
