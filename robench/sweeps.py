"""Arithmetic of attacks in one sweep over memory, where torch takes one for every operation; the same bits.

When a model is small, its attack waits for memory more than for the model. Compiled by numba once for an
installation, for float32 tensors on a CPU; it uses one thread.

Not here: what the arithmetic is for (`budgets.py`), and how tensors elsewhere do it (there, by torch).
"""

from collections.abc import Callable
from functools import cache
from typing import Any

import numpy as np
import torch
from torch import Tensor

MOST_THREADS = 4
"""With more, torch's several sweeps are shared among so many threads that one in one thread gains nothing."""

_IMAGES = "f4[:,::1]"
_WHOLE = "f4[:,:,:,::1]"
_PLANES = "f4[:,:,::1]"
_ROWS = "f4[::1]"


def usable(*images: Tensor) -> bool:
    """Whether all are what is swept here: contiguous float32 on the CPU, of one shape, and few threads."""
    return (
        all(each.device.type == "cpu" and each.dtype == torch.float32 and each.is_contiguous() for each in images)
        and len({each.shape for each in images}) == 1
        and torch.get_num_threads() <= MOST_THREADS
        and _compiled() is not None
    )


def advance(images: Tensor, gradient: Tensor, size: float | Tensor, clean: Tensor, epsilon: float) -> Tensor:
    """The nearest images inside the L-inf ball after a step along the gradient's signs.

    Args:
      images, gradient, clean: shape (N, 3, H, W).
      size: of the step, one number or shape (N, 1, 1, 1).
      epsilon: radius of the ball around `clean`.
    """
    moved = torch.empty_like(images)
    _run("_advance", *_flat(images, gradient, clean), _each(size, len(images)), np.float32(epsilon), *_flat(moved))
    return moved


def advance_with_momentum(
    images: Tensor,
    origin: Tensor,
    gradient: Tensor,
    size: float | Tensor,
    weight: float | Tensor,
    clean: Tensor,
    epsilon: float,
) -> Tensor:
    """The same with momentum, see `Ball.advance_with_momentum`.

    Args:
      origin: where `images` came from, shape (N, 3, H, W).
      weight: of the new step against the last one, one number or shape (N, 1, 1, 1).
    """
    moved = torch.empty_like(images)
    rows = _each(size, len(images)), _each(weight, len(images))
    _run("_advance_with_momentum", *_flat(images, origin, gradient, clean), *rows, np.float32(epsilon), *_flat(moved))
    return moved


def choose(rows: Tensor, yes: Tensor, no: Tensor) -> Tensor:
    """`yes` in the rows that are true, shape (N,), `no` in the others, shape (N, 3, H, W)."""
    chosen = torch.empty_like(no)
    _run("_choose", rows.numpy(), *_flat(yes, no, chosen))
    return chosen


def push_squares(
    images: Tensor, clean: Tensor, corners: Tensor, sides: Tensor, signs: Tensor, epsilon: float
) -> Tensor:
    """The images with one square of each moved by two radii, then back into the L-inf ball.

    Args:
      images, clean: shape (N, 3, H, W).
      corners: row and column where each square begins, int64, shape (N, 2); it must fit.
      sides: of the squares, int64, shape (N,).
      signs: of each channel's push, 1 or -1, float32, shape (N, 3).
      epsilon: the radius.
    """
    pushed = torch.empty_like(images)
    places = torch.cat([corners, sides[:, None]], dim=1).numpy()
    whole = (each.detach().numpy() for each in (images, clean))
    _run("_push_squares", *whole, places, (2 * epsilon * signs).numpy(), np.float32(epsilon), pushed.numpy())
    return pushed


def extremes(images: Tensor, clean: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """The largest distance of each image's values from the clean ones, and the lowest and highest value, shape (N,).

    Args:
      images, clean: shape (N, 3, H, W).
    """
    found = torch.empty(3, len(images))
    _run("_extremes", *_flat(images, clean), found.numpy().view(np.int32))
    return found[0], found[1], found[2]


def changed(images: Tensor, clean: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """In how many pixels each image differs from the clean one, and its lowest and highest value, shape (N,).

    Args:
      images: shape (N, 3, H, W).
      clean: the same, or (1, 3, H, W): one for all.
    """
    pixels, found = torch.empty(len(images), dtype=torch.int32), torch.empty(2, len(images))
    assert len(clean) in (1, len(images))  # loops that are compiled check no bounds
    planes = (each.detach().flatten(2).numpy() for each in (images, clean))
    _run("_changed", *planes, pixels.numpy(), found.numpy().view(np.int32))
    return pixels, found[0], found[1]


def largest(values: Tensor) -> Tensor:
    """The largest absolute value in each row, NaN if there is one, shape (N,)."""
    found = torch.empty(len(values))
    _run("_largest", *_flat(values), found.numpy().view(np.int32))
    return found


def philox(keys: Tensor, steps: Tensor, names: Tensor, blocks: int) -> Tensor | None:
    """Words of `robench.randomness.philox` for the counters (block, step, name, name), block after block.

    Args:
      keys, names: two 32-bit words each, int64, shapes (N, 2) and (2,).
      steps: int64, shape (N,).
      blocks: how many, from 0.
    Returns:
      int64, shape (N, 4 blocks); None where it is not done here.
    """
    if keys.device.type != "cpu" or _compiled() is None:
        return None
    words = torch.empty(len(keys), 4 * blocks, dtype=torch.int64)
    _run("_philox", keys.contiguous().numpy(), steps.contiguous().numpy(), names.numpy(), words.numpy())
    return words


def _flat(*images: Tensor) -> list[Any]:
    return [each.detach().flatten(1).numpy() for each in images]


def _each(value: float | Tensor, rows: int) -> Any:
    return np.full(rows, value.flatten().numpy() if isinstance(value, Tensor) else value, np.float32)


def _run(name: str, *arguments: Any) -> None:
    kernels = _compiled()
    assert kernels is not None, "asked before it is used"
    kernels[name](*arguments)


@cache
def _compiled() -> dict[str, Callable[..., None]] | None:
    """The loops below, compiled; None where that is switched off or there is no place to keep it."""
    import numba  # takes a while, and only attacks need it

    if numba.config.DISABLE_JIT:
        return None
    signatures = {
        _advance: (_IMAGES, _IMAGES, _IMAGES, _ROWS, "f4", _IMAGES),
        _advance_with_momentum: (_IMAGES, _IMAGES, _IMAGES, _IMAGES, _ROWS, _ROWS, "f4", _IMAGES),
        _philox: ("i8[:,::1]", "i8[::1]", "i8[::1]", "i8[:,::1]"),
        _choose: ("b1[::1]", _IMAGES, _IMAGES, _IMAGES),
        _push_squares: (_WHOLE, _WHOLE, "i8[:,::1]", _IMAGES, "f4", _WHOLE),
        _extremes: (_IMAGES, _IMAGES, "i4[:,::1]"),
        _changed: (_PLANES, _PLANES, "i4[::1]", "i4[:,::1]"),
        _largest: (_IMAGES, "i4[::1]"),
    }
    try:
        return {
            loop.__name__: numba.njit(f"void({','.join(types)})", cache=True, nogil=True)(loop)
            for loop, types in signatures.items()
        }
    except (OSError, RuntimeError):  # compiled anew in each process it would cost more than it gains
        return None


def _advance(images: Any, gradient: Any, clean: Any, size: Any, epsilon: Any, moved: Any) -> None:
    for row in range(images.shape[0]):
        for at in range(images.shape[1]):
            slope, near = gradient[row, at], clean[row, at]
            value = images[row, at] + np.float32(np.float32(slope > 0) - np.float32(slope < 0)) * size[row]
            low, high = near - epsilon, near + epsilon
            value = low if value < low else value
            value = high if value > high else value
            value = np.float32(0) if value < 0 else value
            moved[row, at] = np.float32(1) if value > 1 else value


def _advance_with_momentum(
    images: Any, origin: Any, gradient: Any, clean: Any, size: Any, weight: Any, epsilon: Any, moved: Any
) -> None:
    for row in range(images.shape[0]):
        new, old = weight[row], np.float32(1) - weight[row]
        for at in range(images.shape[1]):
            slope, near, here = gradient[row, at], clean[row, at], images[row, at]
            value = here + np.float32(np.float32(slope > 0) - np.float32(slope < 0)) * size[row]
            low, high = near - epsilon, near + epsilon
            value = low if value < low else value
            value = high if value > high else value
            value = np.float32(0) if value < 0 else value
            value = np.float32(1) if value > 1 else value
            value = (value - here) * new + here + (here - origin[row, at]) * old
            value = low if value < low else value
            value = high if value > high else value
            value = np.float32(0) if value < 0 else value
            moved[row, at] = np.float32(1) if value > 1 else value


def _choose(rows: Any, yes: Any, no: Any, chosen: Any) -> None:
    for row in range(no.shape[0]):
        source = yes if rows[row] else no
        for at in range(no.shape[1]):
            chosen[row, at] = source[row, at]


def _push_squares(images: Any, clean: Any, places: Any, pushes: Any, epsilon: Any, pushed: Any) -> None:
    for image in range(images.shape[0]):
        pushed[image] = images[image]
        top, left, side = places[image]
        for channel in range(images.shape[1]):
            push = pushes[image, channel]
            for row in range(top, top + side):
                for column in range(left, left + side):
                    near = clean[image, channel, row, column]
                    value = images[image, channel, row, column] + push
                    low, high = near - epsilon, near + epsilon
                    value = low if value < low else value
                    value = high if value > high else value
                    value = np.float32(0) if value < 0 else value
                    pushed[image, channel, row, column] = np.float32(1) if value > 1 else value


# Bits of floats, as integers: those of positive ones rise with them, those of negative ones fall. Integers are
# compared many at a time, floats are not, for the sake of NaN; which here lies beyond infinity.


def _changed(images: Any, clean: Any, pixels: Any, found: Any) -> None:
    channels = images.shape[1]
    differs = np.empty(images.shape[2], np.bool_)
    for row in range(images.shape[0]):
        near = row if clean.shape[0] > 1 else 0
        lowest, highest = np.int32(0x7FFFFFFF), np.int32(-0x80000000)
        differs[:] = False
        for channel in range(channels):
            for at in range(images.shape[2]):
                value = np.float32(images[row, channel, at])
                differs[at] |= value != clean[near, channel, at]
                bits = value.view(np.int32)
                bits = np.int32(bits ^ (np.int32(bits >> 31) & np.int32(0x7FFFFFFF)))
                lowest, highest = min(lowest, bits), max(highest, bits)
        pixels[row] = differs.sum()
        found[0, row] = lowest ^ (np.int32(lowest >> 31) & np.int32(0x7FFFFFFF))
        found[1, row] = highest ^ (np.int32(highest >> 31) & np.int32(0x7FFFFFFF))


def _extremes(images: Any, clean: Any, found: Any) -> None:
    for row in range(images.shape[0]):
        furthest, lowest, highest = np.int32(0), np.int32(0x7FFFFFFF), np.int32(-0x80000000)
        for at in range(images.shape[1]):
            value = np.float32(images[row, at])
            change = np.float32(abs(value - clean[row, at]))
            bits = value.view(np.int32)
            bits = np.int32(bits ^ (np.int32(bits >> 31) & np.int32(0x7FFFFFFF)))
            furthest, lowest, highest = max(furthest, change.view(np.int32)), min(lowest, bits), max(highest, bits)
        found[0, row] = furthest
        found[1, row] = lowest ^ (np.int32(lowest >> 31) & np.int32(0x7FFFFFFF))
        found[2, row] = highest ^ (np.int32(highest >> 31) & np.int32(0x7FFFFFFF))


def _largest(values: Any, found: Any) -> None:
    for row in range(values.shape[0]):
        furthest = np.int32(0)
        for at in range(values.shape[1]):
            furthest = max(furthest, np.float32(abs(np.float32(values[row, at]))).view(np.int32))
        found[row] = furthest


def _philox(keys: Any, steps: Any, names: Any, words: Any) -> None:
    mask, shift = np.uint64(0xFFFFFFFF), np.uint64(32)
    for row in range(words.shape[0]):
        for block in range(words.shape[1] // 4):
            k0, k1 = np.uint64(keys[row, 0]), np.uint64(keys[row, 1])
            c0, c1, c2, c3 = np.uint64(block), np.uint64(steps[row]), np.uint64(names[0]), np.uint64(names[1])
            for _ in range(10):
                low, high = c0 * np.uint64(0xD2511F53), c2 * np.uint64(0xCD9E8D57)
                c0, c1, c2, c3 = (high >> shift) ^ c1 ^ k0, high & mask, (low >> shift) ^ c3 ^ k1, low & mask
                k0, k1 = (k0 + np.uint64(0x9E3779B9)) & mask, (k1 + np.uint64(0xBB67AE85)) & mask
            words[row, 4 * block] = c0
            words[row, 4 * block + 1] = c1
            words[row, 4 * block + 2] = c2
            words[row, 4 * block + 3] = c3
