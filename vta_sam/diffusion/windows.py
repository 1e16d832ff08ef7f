"""Latents longer than the model's clip: windows with an overlap, blended at every step of the sampler."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from ..errors import InputError
from ..randomness import generator
from .sampler import Denoiser


@dataclass(frozen=True)
class Windows:
    """Where windows of ``size`` lie on ``total`` steps (columns, or mel frames) of a time axis, and how they blend.

    Neighbours overlap by ``overlap`` steps; the last window is aligned to the end, so its overlap may be larger.
    ``total`` is at least ``size``.
    """

    total: int
    size: int
    overlap: int

    def __post_init__(self):
        if not 0 <= self.overlap < self.size or self.total < self.size:
            raise InputError(f"windows need 0 ≤ overlap < size ≤ total, got overlap {self.overlap}, size {self.size}, "
                             f"total {self.total}")

    @property
    def starts(self) -> list[int]:
        """First step of every window, ascending; consecutive ones cover every step."""
        last = self.total - self.size
        return [*range(0, last, self.size - self.overlap), last]

    def ramp(self, index: int) -> Tensor:
        """Unnormalised weight of window ``index`` ⇒ (size,): 1 inside, linear to 0 over the overlap at inner edges."""
        weight = torch.ones(self.size)
        if self.overlap:
            rise = (torch.arange(self.overlap) + 0.5) / self.overlap
            if index > 0:
                weight[:self.overlap] = torch.minimum(weight[:self.overlap], rise)
            if index < len(self.starts) - 1:
                weight[-self.overlap:] = torch.minimum(weight[-self.overlap:], rise.flip(0))
        return weight

    def weights(self) -> list[Tensor]:
        """The ramps, scaled so that the weights of all windows that cover a step sum to 1 ⇒ one (size,) per window."""
        ramps = [self.ramp(i) for i in range(len(self.starts))]
        total = torch.zeros(self.total)
        for start, ramp in zip(self.starts, ramps):
            total[start:start + self.size] += ramp
        return [ramp / total[start:start + self.size] for start, ramp in zip(self.starts, ramps)]

    def groups(self, at_once: int) -> list[range]:
        """Indices of windows, ``at_once`` at a time."""
        count = len(self.starts)
        return [range(i, min(i + at_once, count)) for i in range(0, count, at_once)]

    def blend(self, parts: Iterable[Tensor], dim: int, scale: int = 1) -> Tensor:
        """Consecutive groups of windows, (windows in group, …, size · scale, …) ⇒ (1, …, total · scale, …).

        dim: the time axis. scale: steps of the parts per step of this layout (the VAE's stride, from columns to mel
        frames). Parts may come from a generator: only one is held at a time.
        """
        fine = self if scale == 1 else Windows(self.total * scale, self.size * scale, self.overlap * scale)
        weights, blended, index = fine.weights(), None, 0
        for part in parts:
            for row in part:
                if blended is None:
                    shape = list(row.shape)
                    shape[dim - 1] = fine.total
                    blended = row.new_zeros(shape)
                weight = weights[index].to(row).reshape([-1 if d == dim - 1 else 1 for d in range(row.ndim)])
                blended.narrow(dim - 1, fine.starts[index], fine.size).add_(row * weight)
                index += 1
        if blended is None or index != len(weights):
            raise ValueError(f"expected {len(weights)} windows, got {index}")
        return blended[None]


def windowed(denoisers: Sequence[Denoiser], windows: Windows, at_once: int) -> Denoiser:
    """One Denoiser of a long latent (1, C, total columns, freq) made of those of its windows.

    At each step the windows are cut out of the one noisy latent, predicted ``at_once`` at a time, and their v
    predictions blended; the sampler steps the long latent. (MultiDiffusion, Bar-Tal et al., 2023, along time.)
    denoisers: one for each of ``windows.groups(at_once)``, holding the conditions of its windows.
    """
    groups = windows.groups(at_once)
    if len(groups) != len(denoisers):
        raise ValueError(f"{len(groups)} groups of windows need as many denoisers, got {len(denoisers)}")
    starts, size = windows.starts, windows.size

    def denoise(latent: Tensor, timestep: Tensor) -> Tensor:
        def predictions():
            for group, predict in zip(groups, denoisers):
                cut = torch.cat([latent[:, :, starts[i]:starts[i] + size] for i in group])
                yield predict(cut, timestep[:1].expand(len(cut))).float()

        return windows.blend(predictions(), dim=2)

    return denoise


def noise_of(seed: int, shape: tuple[int, int, int], block_columns: int) -> Tensor:
    """Initial noise of one sample ⇒ shape (C, columns, freq), N(0, 1).

    Drawn in blocks of ``block_columns`` (the model's clip), each from a generator of its own: the first columns are the
    same however long the latent is, and one block is what a sample of the model's own length starts from.
    """
    channels, columns, freq = shape
    blocks = []
    for block, first in enumerate(range(0, columns, block_columns)):
        draws = generator(int(seed), "sample") if block == 0 else generator(int(seed), "sample", block)
        blocks.append(torch.randn((channels, block_columns, freq), generator=draws))
    return torch.cat(blocks, dim=1)[:, :columns]


Decode = Callable[[Tensor], Tensor]


def decode_windowed(decode: Decode, latent: Tensor, windows: Windows, at_once: int, stride: int) -> Tensor:
    """A long latent (1, C, total columns, freq) through a decoder ((n, C, size, freq) ⇒ (n, 1, size · stride, 64)),
    ``at_once`` windows at a time, cross-faded ⇒ (1, 1, total · stride, 64)."""
    starts = windows.starts
    parts = (decode(torch.cat([latent[:, :, starts[i]:starts[i] + windows.size] for i in group]))
             for group in windows.groups(at_once))
    return windows.blend(parts, dim=2, scale=stride)
