"""Arithmetic in one sweep over memory, where torch takes one for every operation; the same bits.

When a model is small, its attack waits for memory more than for the model. The loops are compiled by numba, once for an
installation, and work on contiguous float32 tensors on the CPU, in one thread. Every function returns None where that
is not what it was given, or nothing can be compiled: then the caller does it by torch.

Not here: what the arithmetic is for (`budgets.py`, `arrays.py`, `randomness.py`).
"""

from collections.abc import Callable, Sequence
from functools import cache
from typing import Any

import numpy as np
import torch
from torch import Tensor

MOST_THREADS = 4
"""With more, torch's several sweeps are shared among so many threads that one in one thread gains nothing."""


def prepare() -> None:
    """Compile or load every loop now, before anything is timed."""
    for body in _LOOPS:
        _compiled(body)


def advance(images: Tensor, gradient: Tensor, size: float | Tensor, clean: Tensor, epsilon: float) -> Tensor | None:
    """`budgets.advance` in an L-inf ball.

    Args:
      images, gradient, clean: shape (N, 3, H, W).
      size: of the step, one number or shape (N, 1, 1, 1).
      epsilon: radius of the ball around `clean`.
    """
    loop = _loop(_advance, images, gradient, clean)
    if loop is None:
        return None
    moved = torch.empty_like(images)
    loop(*_flat(images, gradient, clean), _each(size, len(images)), np.float32(epsilon), *_flat(moved))
    return moved


def advance_with_momentum(
    images: Tensor, origin: Tensor, gradient: Tensor, size: Tensor, weight: Tensor, clean: Tensor, epsilon: float
) -> Tensor | None:
    """`budgets.advance_with_momentum` in an L-inf ball.

    Args:
      images, origin, gradient, clean: shape (N, 3, H, W).
      size, weight: shape (N, 1, 1, 1).
      epsilon: radius of the ball around `clean`.
    """
    loop = _loop(_advance_with_momentum, images, origin, gradient, clean)
    if loop is None:
        return None
    moved, rows = torch.empty_like(images), (_each(size, len(images)), _each(weight, len(images)))
    loop(*_flat(images, origin, gradient, clean), *rows, np.float32(epsilon), *_flat(moved))
    return moved


def choose(rows: Tensor, yes: Tensor, no: Tensor) -> Tensor | None:
    """`arrays.choose` for tensors of at least two axes."""
    loop = _loop(_choose, yes, no)
    if loop is None or rows.dtype != torch.bool or rows.shape != no.shape[:1]:
        return None
    chosen = no.clone()  # torch copies with all its threads
    loop(rows.contiguous().numpy(), *_flat(yes, chosen))
    return chosen


def push_squares(
    images: Tensor, clean: Tensor, places: Tensor, signs: Tensor, sides: Tensor, epsilon: float
) -> Tensor | None:
    """The images with one square of each moved by two radii, then back into the L-inf ball.

    Args:
      images, clean: shape (N, C, H, W).
      places: how far down and to the right each square begins, of the room there is, float32 in [0, 1), shape (N, 2).
      signs: of each channel's push, down where below 0.5 and else up, float32, shape (N, C).
      sides: of the squares in pixels, at most H and W, int64, shape (N,).
      epsilon: the radius.
    """
    loop = _loop(_push_squares, images, clean)
    if loop is None:
        return None
    assert len(places) == len(sides) == len(images)  # compiled loops check no bounds
    assert signs.shape == images.shape[:2]
    pushed = images.clone()  # torch copies with all its threads
    loop(
        *(each.detach().numpy() for each in (places, signs, sides)), np.float32(epsilon), clean.numpy(), pushed.numpy()
    )
    return pushed


def extremes(images: Tensor, clean: Tensor) -> tuple[Tensor, Tensor, Tensor] | None:
    """The largest distance of each image's values from the clean ones, and the lowest and highest value, shape (N,).

    Args:
      images, clean: shape (N, 3, H, W).
    """
    loop = _loop(_extremes, images, clean)
    if loop is None:
        return None
    found = images.new_empty((3, len(images)))
    loop(*_flat(images, clean), found.numpy().view(np.int32))
    return found[0], found[1], found[2]


def changed(images: Tensor, clean: Tensor) -> tuple[Tensor, Tensor, Tensor] | None:
    """In how many pixels each image differs from the clean one, and its lowest and highest value, shape (N,).

    Args:
      images: shape (N, 3, H, W).
      clean: the same, or (1, 3, H, W): one for all.
    """
    loop = _loop(_changed, images) if _fit([clean]) else None
    if loop is None or clean.shape[1:] != images.shape[1:] or len(clean) not in (1, len(images)):
        return None
    pixels, found = torch.empty(len(images), dtype=torch.int32, device="cpu"), images.new_empty((2, len(images)))
    planes = (each.detach().flatten(2).numpy() for each in (images, clean))
    loop(*planes, pixels.numpy(), found.numpy().view(np.int32))
    return pixels, found[0], found[1]


def largest(values: Tensor) -> Tensor | None:
    """The largest absolute value in each row of a tensor of at least two axes, NaN if there is one, shape (N,)."""
    loop = _loop(_largest, values)
    if loop is None:
        return None
    found = values.new_empty(len(values))
    loop(*_flat(values), found.numpy().view(np.int32))
    return found


def philox(keys: Tensor, steps: Tensor, names: Tensor, blocks: int) -> Tensor | None:
    """Words of `randomness.philox` for the counters (block, step, name, name), block after block; on any threads.

    Args:
      keys, names: two 32-bit words each, int64, shapes (N, 2) and (2,).
      steps: int64, shape (N,).
      blocks: how many, from 0.
    Returns:
      int64, shape (N, 4 blocks).
    """
    loop = _compiled(_philox) if keys.device.type == "cpu" else None
    if loop is None:
        return None
    assert (keys.shape, steps.shape, names.shape) == ((len(steps), 2), (len(keys),), (2,))
    words = keys.new_empty((len(keys), 4 * blocks))
    loop(keys.contiguous().numpy(), steps.contiguous().numpy(), names.numpy(), words.numpy())
    return words


def _loop(body: Callable[..., None], *images: Tensor) -> Callable[..., None] | None:
    """A loop compiled, if these are what it works on."""
    return _compiled(body) if _fit(images) else None


def _fit(images: Sequence[Tensor]) -> bool:
    """Whether all are contiguous float32 on the CPU, of one shape, without gradient, and threads are few."""
    first = images[0]
    return torch.get_num_threads() <= MOST_THREADS and all(
        each.device.type == "cpu"
        and each.dtype == torch.float32
        and each.dim() > 1
        and each.shape == first.shape
        and each.is_contiguous()
        and not (each.requires_grad and torch.is_grad_enabled())
        for each in images
    )


def _flat(*images: Tensor) -> list[Any]:
    return [each.detach().flatten(1).numpy() for each in images]


def _each(value: float | Tensor, rows: int) -> Any:
    return np.full(rows, value.detach().flatten().numpy() if isinstance(value, Tensor) else value, np.float32)


@cache
def _compiled(body: Callable[..., None]) -> Callable[..., None] | None:
    """A loop compiled; None where that is switched off or fails, or gives other bits than the loop as it stands."""
    signature, sample = _LOOPS[body]
    try:
        import numba  # takes a while, and only attacks need it

        if numba.config.DISABLE_JIT:
            return None
        loop: Callable[..., None] = numba.njit(f"void({signature})", cache=True, nogil=True)(body)
        own, other = sample(), sample()  # what numba kept may be damaged, or of another version
        loop(*own)
        body(*other)
    except Exception:  # whatever is wrong with numba or its files: torch does the same, more slowly
        return None
    return loop if all(np.array_equal(one, two) for one, two in zip(own, other, strict=True)) else None


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


def _choose(rows: Any, yes: Any, chosen: Any) -> None:
    for row in range(yes.shape[0]):
        if rows[row]:
            for at in range(yes.shape[1]):  # a slice would take numba ten times as long to compile
                chosen[row, at] = yes[row, at]


def _push_squares(places: Any, signs: Any, sides: Any, epsilon: Any, clean: Any, images: Any) -> None:
    for image in range(images.shape[0]):
        side = sides[image]
        top = int(np.float32(places[image, 0] * np.float32(images.shape[2] - side)))
        left = int(np.float32(places[image, 1] * np.float32(images.shape[3] - side)))
        for channel in range(images.shape[1]):
            push = 2 * epsilon if signs[image, channel] >= 0.5 else -2 * epsilon
            for row in range(top, top + side):
                for column in range(left, left + side):
                    near = clean[image, channel, row, column]
                    value = np.float32(images[image, channel, row, column] + push)
                    low, high = np.float32(near - epsilon), np.float32(near + epsilon)
                    value = low if value < low else value
                    value = high if value > high else value
                    value = np.float32(0) if value < 0 else value
                    images[image, channel, row, column] = np.float32(1) if value > 1 else value


# Bits of floats, as integers: those of positive ones rise with them, those of negative ones fall. Integers are
# compared many at a time, floats are not, for the sake of NaN; which here lies beyond infinity.


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


def _changed(images: Any, clean: Any, pixels: Any, found: Any) -> None:
    differs = np.empty(images.shape[2], np.bool_)
    for row in range(images.shape[0]):
        near = row if clean.shape[0] > 1 else 0
        lowest, highest = np.int32(0x7FFFFFFF), np.int32(-0x80000000)
        differs[:] = False
        for channel in range(images.shape[1]):
            for at in range(images.shape[2]):
                value = np.float32(images[row, channel, at])
                differs[at] |= value != clean[near, channel, at]
                bits = value.view(np.int32)
                bits = np.int32(bits ^ (np.int32(bits >> 31) & np.int32(0x7FFFFFFF)))
                lowest, highest = min(lowest, bits), max(highest, bits)
        pixels[row] = differs.sum()
        found[0, row] = lowest ^ (np.int32(lowest >> 31) & np.int32(0x7FFFFFFF))
        found[1, row] = highest ^ (np.int32(highest >> 31) & np.int32(0x7FFFFFFF))


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


def _values(low: float, high: float, *shape: int) -> Any:
    return np.linspace(low, high, int(np.prod(shape)), dtype=np.float32).reshape(shape)


def _integers(kind: type, *shape: int) -> Any:
    return np.zeros(shape, kind)


_PAIR = (2, 27)
_IMAGES, _ROWS = "f4[:,::1]", "f4[::1]"
_LOOPS: dict[Callable[..., None], tuple[str, Callable[[], tuple[Any, ...]]]] = {
    _advance: (
        f"{_IMAGES},{_IMAGES},{_IMAGES},{_ROWS},f4,{_IMAGES}",
        lambda: (
            _values(-0.2, 1.2, *_PAIR),
            _values(-1, 1, *_PAIR),
            _values(0, 1, *_PAIR),
            _values(0.01, 0.1, 2),
            np.float32(0.05),
            _values(0, 0, *_PAIR),
        ),
    ),
    _advance_with_momentum: (
        f"{_IMAGES},{_IMAGES},{_IMAGES},{_IMAGES},{_ROWS},{_ROWS},f4,{_IMAGES}",
        lambda: (
            _values(-0.2, 1.2, *_PAIR),
            _values(1, 0, *_PAIR),
            _values(-1, 1, *_PAIR),
            _values(0, 1, *_PAIR),
            _values(0.01, 0.1, 2),
            _values(0.75, 1, 2),
            np.float32(0.05),
            _values(0, 0, *_PAIR),
        ),
    ),
    _choose: (
        f"b1[::1],{_IMAGES},{_IMAGES}",
        lambda: (np.array([False, True]), _values(0, 1, *_PAIR), _values(1, 2, *_PAIR)),
    ),
    _push_squares: (
        "f4[:,:],f4[:,:],i8[::1],f4,f4[:,:,:,::1],f4[:,:,:,::1]",
        lambda: (
            _values(0, 0.9, 2, 2),
            _values(0, 1, 2, 3),
            np.array([2, 1]),
            np.float32(0.05),
            _values(0, 1, 2, 3, 3, 3),
            _values(0, 1, 2, 3, 3, 3),
        ),
    ),
    _extremes: (
        f"{_IMAGES},{_IMAGES},i4[:,::1]",
        lambda: (_values(-0.2, 1.2, *_PAIR), _values(0, 1, *_PAIR), _integers(np.int32, 3, 2)),
    ),
    _changed: (
        "f4[:,:,::1],f4[:,:,::1],i4[::1],i4[:,::1]",
        lambda: (
            np.round(_values(-0.2, 1.2, 2, 3, 9), 1),
            np.round(_values(0, 1, 2, 3, 9), 1),
            _integers(np.int32, 2),
            _integers(np.int32, 2, 2),
        ),
    ),
    _largest: (f"{_IMAGES},i4[::1]", lambda: (_values(-3, 2, *_PAIR), _integers(np.int32, 2))),
    _philox: (
        "i8[:,::1],i8[::1],i8[::1],i8[:,::1]",
        lambda: (
            np.array([[1, 2], [2**32 - 1, 5]]),
            np.array([0, 7]),
            np.array([3, 2**31]),
            _integers(np.int64, 2, 8),
        ),
    ),
}
"""Types of each loop's arguments, and a small case by which what was compiled is held to the loop as it stands."""
