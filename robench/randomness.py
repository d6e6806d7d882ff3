"""Random numbers that belong to an example, not to a process, a batch or a device.

`Draws` is counter-based and stateless: what it returns depends on (seed, example id, stream, step)
and on nothing else, so outcomes do not depend on order, sharding, resume or batch size. The caller's
own generators are never touched. Uniforms are the same bits on CPU and GPU, because they are made
with integer arithmetic only; normals are computed on the host.

Not here: which draws an attack needs (the attack says so), and random numbers for training.

References:
  Salmon, Moraes, Dror & Shaw 2011, "Parallel random numbers: as easy as 1, 2, 3" (Philox4x32-10).
  Deviates: none; the three published known-answer vectors are a test.
"""

import hashlib
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from robench import compiled

_MASK = 0xFFFFFFFF
_MULTIPLIERS = (0xD2511F53, 0xCD9E8D57)
_WEYL = (0x9E3779B9, 0xBB67AE85)


def philox(counter: Sequence[Tensor], key: Sequence[Tensor]) -> list[Tensor]:
    """Philox4x32-10: four 32-bit words for each (counter, key).

    Args:
      counter: four int64 tensors that hold 32-bit words and broadcast with each other and the key.
      key: two int64 tensors that hold 32-bit words.
    Returns:
      Four int64 tensors that hold 32-bit words.
    """
    c0, c1, c2, c3 = counter
    k0, k1 = key
    for _ in range(10):
        # int64 products wrap around, and the mask after the shift drops the sign: exact on any device.
        low, high = c0 * _MULTIPLIERS[0], c2 * _MULTIPLIERS[1]
        c0, c1, c2, c3 = (
            (high >> 32 & _MASK) ^ c1 ^ k0,
            high & _MASK,
            (low >> 32 & _MASK) ^ c3 ^ k1,
            low & _MASK,
        )
        k0, k1 = k0 + _WEYL[0] & _MASK, k1 + _WEYL[1] & _MASK
    return [c0, c1, c2, c3]


def _words(text: str) -> tuple[int, int]:
    """The first two 32-bit words of the SHA-256 of `text`."""
    digest = hashlib.sha256(text.encode()).digest()
    return int.from_bytes(digest[:4], "big"), int.from_bytes(digest[4:8], "big")


class RandomSource(Protocol):
    """What budgets and attacks draw from: `Draws` in evaluation, a generator in training."""

    def uniform(self, stream: str, shape: Sequence[int], *, step: int | Tensor = 0) -> Tensor:
        """Uniforms in [0, 1), float32, shape (N, *shape)."""
        ...

    def normal(self, stream: str, shape: Sequence[int], *, step: int | Tensor = 0) -> Tensor:
        """Standard normals, float32, shape (N, *shape)."""
        ...


@dataclass(frozen=True)
class Draws:
    """Random numbers for some examples: one 64-bit key each, first axis = example.

    Args:
      keys: int64 tensor of 32-bit words, shape (N, 2); see `Draws.of`.
    """

    keys: Tensor

    @classmethod
    def of(cls, seed: int, ids: Sequence[str], device: torch.device | str = "cpu") -> "Draws":
        """The draws of the examples with these ids under this seed."""
        keys = [_words(f"robench.draws/1|{seed}|{example}") for example in ids]
        return cls(torch.tensor(keys, dtype=torch.int64, device=device).reshape(len(keys), 2))

    def bits(self, stream: str, count: int, *, step: int | Tensor = 0) -> Tensor:
        """`count` 32-bit words for each example.

        Args:
          stream: what the words are for, by convention `<attack name>/<restart>`.
          count: words per example.
          step: which draw of the stream, one number or one for each example, shape (N,).
        Returns:
          int64 tensor of 32-bit words, shape (N, count).
        """
        device, blocks = self.keys.device, (count + 3) // 4
        steps = torch.as_tensor(step, dtype=torch.int64, device=device).reshape(-1, 1)
        names = torch.tensor(_words(f"robench.stream/1|{stream}"), device=device)
        swept = compiled.philox(self.keys, steps[:, 0].expand(len(self.keys)), names, blocks)
        if swept is not None:
            return swept[:, :count]
        block = torch.arange(blocks, dtype=torch.int64, device=device)[None]
        words = philox([block, steps, *names.reshape(2, 1, 1)], [self.keys[:, :1], self.keys[:, 1:]])
        words = [word.expand(len(self.keys), block.shape[1]) for word in words]
        return torch.stack(words, dim=2).reshape(len(self.keys), -1)[:, :count]

    def uniform(self, stream: str, shape: Sequence[int], *, step: int | Tensor = 0) -> Tensor:
        """Uniforms in [0, 1), multiples of 2**-24, float32, shape (N, *shape)."""
        words = self.bits(stream, math.prod(shape), step=step)
        return ((words >> 8).to(torch.float32) * 2.0**-24).reshape(-1, *shape)

    def normal(self, stream: str, shape: Sequence[int], *, step: int | Tensor = 0) -> Tensor:
        """Standard normals, float32, shape (N, *shape), computed on the host in float64 (Box-Muller)."""
        count = math.prod(shape)
        words = self.bits(stream, count + count % 2, step=step).cpu()
        pairs = (words.to(torch.float64) + 0.5) * 2.0**-32  # inside (0, 1): the logarithm stays finite
        radius, angle = (-2.0 * pairs[:, 0::2].log()).sqrt(), 2.0 * math.pi * pairs[:, 1::2]
        normals = torch.cat([radius * angle.cos(), radius * angle.sin()], dim=1)[:, :count]
        return normals.to(torch.float32).reshape(-1, *shape).to(self.keys.device)
