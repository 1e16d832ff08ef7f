"""Latents longer than the model's clip: windows with an overlap, blended at every step of the sampler."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from ..mel import HOP_SAMPLES
from ..runtime.errors import InputError
from ..runtime.randomness import generator
from ..vocoder import Vocoder
from .sampler import Denoiser

# MERGED-DOC """A vocoder on a log-mel of any length: chunk by chunk, joined where it is quietest."""


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


_FADE_SAMPLES = HOP_SAMPLES  # 10 ms: two vocodings of the same mel differ in phase, and a long fade would dip
_CONTEXT_FRAMES = 8  # what a seam keeps away from a chunk's edges, where a vocoder guesses


def vocode(vocoder: Vocoder, mel: Tensor, chunk_frames: int) -> Tensor:
    """Log-mel (1, frames, 64) ⇒ waveform (frames · 160,) float32 on the CPU.

    Chunks of ``chunk_frames`` overlap by a quarter; each pair is joined by a cross-fade of 10 ms at the quietest frame
    of the overlap. Memory beyond the result is that of one chunk. A mel of up to ``chunk_frames`` is vocoded at once.
    """
    frames = mel.shape[1]
    size = min(chunk_frames, frames)
    chunks = Windows(frames, size, size // 4)
    waveform = torch.zeros(frames * HOP_SAMPLES)
    seam = None
    for index, start in enumerate(chunks.starts):
        part = vocoder(mel[:, start:start + size])[0, :size * HOP_SAMPLES].float().cpu()
        if seam is not None:
            part *= _rise(size, seam - start)
        seam = None
        if index < len(chunks.starts) - 1:
            end = start + size
            seam = _quietest(mel[0], end - chunks.overlap, end)
            part *= 1 - _rise(size, seam - start)
        waveform[start * HOP_SAMPLES:(start + size) * HOP_SAMPLES] += part
    return waveform


def _quietest(mel: Tensor, first: int, end: int) -> int:
    """The frame of least magnitude in [first, end), away from both by the context where there is room."""
    margin = min(_CONTEXT_FRAMES, (end - first - 1) // 2)
    magnitude = mel[first + margin:end - margin].exp().sum(dim=1)
    return first + margin + int(magnitude.argmin())


def _rise(frames: int, seam: int) -> Tensor:
    """Gain of the later of two chunks: 0, then a line of 10 ms centred on the start of frame ``seam``, then 1."""
    distance = torch.arange(frames * HOP_SAMPLES) + 0.5 - seam * HOP_SAMPLES
    return (distance / _FADE_SAMPLES + 0.5).clamp(0.0, 1.0)
