"""Random draws that belong to a sample, not to the batch, process or moment in which they are made."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence

import torch
from torch import Tensor


def seed_of(*parts: int | str) -> int:
    """Any words and numbers ⇒ a 63-bit seed, the same on every machine (Python's own hash() is salted)."""
    text = "\x1f".join(str(part) for part in parts)
    return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=8).digest(), "big") >> 1


def generator(*parts: int | str) -> torch.Generator:
    """A CPU generator seeded by :func:`seed_of`."""
    return torch.Generator().manual_seed(seed_of(*parts))


class SampleDraws:
    """Draws for a batch in which row i uses its own generator, seeded by ``seeds[i]``.

    So a row's noise, timestep and dropout stay the same whatever else is in the batch, on how many processes it is
    split, and whether the run was interrupted. Drawn on the CPU: CUDA's generators give other numbers.
    """

    def __init__(self, seeds: Sequence[int] | Tensor, purpose: str = ""):
        self._generators = [generator(int(seed), purpose) for seed in seeds]

    def normal(self, *shape: int) -> Tensor:
        """⇒ (B, *shape), N(0, 1)."""
        return torch.stack([torch.randn(shape, generator=g) for g in self._generators])

    def uniform(self, *shape: int) -> Tensor:
        """⇒ (B, *shape), U[0, 1)."""
        return torch.stack([torch.rand(shape, generator=g) for g in self._generators])

    def integer(self, high: int | Sequence[int]) -> Tensor:
        """⇒ (B,) int64 in [0, high), where each row may have its own bound."""
        bounds = [high] * len(self._generators) if isinstance(high, int) else high
        return torch.stack([torch.randint(bound, (), generator=g) for g, bound in zip(self._generators, bounds)])
