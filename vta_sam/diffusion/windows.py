"""Sounds longer than the model's clip: latents in overlapping windows, blended at every step of the sampler; log-mels
of any length, vocoded in chunks that are joined where it is quietest."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from ..clip import ClipSpec, MelSpec
from ..runtime.errors import InputError
from ..runtime.randomness import generator
from ..vocoder import Vocoder
from .sampler import Predictor


@dataclass(frozen=True)
class Windows:
    """Positions of equal windows on a time axis, and the weights that blend them.

    Args:
        total: steps (columns, or mel frames) of the axis; at least ``size``.
        size: steps of a window.
        overlap: steps that neighbours share. The last window ends at the end of the axis, so that it may share more.
    """

    total: int
    size: int
    overlap: int

    def __post_init__(self):
        if not 0 <= self.overlap < self.size or self.total < self.size:
            raise InputError(f"windows need 0 ≤ overlap < size ≤ total, got overlap {self.overlap}, size {self.size}, "
                             f"total {self.total}")

    @classmethod
    def of_clips(cls, spec: ClipSpec, columns: int, overlap: float) -> "Windows":
        """Windows of one clip each, over a latent of at least ``columns`` columns.

        Every window begins at a multiple of ``spec.start_step_columns``, so that its frames and columns are in step.
        The latent reaches beyond ``columns`` by less than that step, or to the length of a clip.

        Args:
            spec: time base of a clip.
            columns: least length of the latent.
            overlap: of neighbours, as a share of a window. It is larger where that brings starts onto their grid.
        """
        step, beyond = spec.start_step_columns, max(0, columns - spec.columns)
        hop = max(step, (spec.columns - int(spec.columns * overlap)) // step * step)
        return cls(spec.columns + math.ceil(beyond / step) * step, spec.columns, spec.columns - hop)

    @property
    def starts(self) -> list[int]:
        """First step of every window, ascending; together the windows cover every step."""
        last = self.total - self.size
        return [*range(0, last, self.size - self.overlap), last]

    def ramp(self, index: int) -> Tensor:
        """Unnormalised weight of window ``index``, (size,): 1 inside, linear to 0 over the overlap at inner edges."""
        weight = torch.ones(self.size)
        if self.overlap:
            rise = (torch.arange(self.overlap) + 0.5) / self.overlap
            if index > 0:
                weight[:self.overlap] = torch.minimum(weight[:self.overlap], rise)
            if index < len(self.starts) - 1:
                weight[-self.overlap:] = torch.minimum(weight[-self.overlap:], rise.flip(0))
        return weight

    def weights(self) -> list[Tensor]:
        """One (size,) per window: the ramps, scaled so that the weights of all windows at a step sum to 1."""
        ramps = [self.ramp(i) for i in range(len(self.starts))]
        total = torch.zeros(self.total)
        for start, ramp in zip(self.starts, ramps):
            total[start:start + self.size] += ramp
        return [ramp / total[start:start + self.size] for start, ramp in zip(self.starts, ramps)]

    def groups(self, at_once: int) -> list[range]:
        """Consecutive indices of windows, in groups of up to ``at_once``."""
        count = len(self.starts)
        return [range(i, min(i + at_once, count)) for i in range(0, count, at_once)]

    def blend(self, parts: Iterable[Tensor], dim: int, scale: int = 1) -> Tensor:
        """The weighted sum of all windows on one axis, (1, …, total · scale, …).

        Args:
            parts: consecutive groups of windows, (windows in group, …, size · scale, …). Of a generator only one is
                held at a time.
            dim: the time axis.
            scale: steps of the parts per step of this layout, such as the VAE's stride from columns to mel frames.
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


def windowed(predictors: Sequence[Predictor], windows: Windows, at_once: int) -> Predictor:
    """One Predictor of a long latent (1, C, total columns, freq), made of the Predictors of its windows.

    At each step the windows are cut out of the one noisy latent, predicted ``at_once`` at a time, and their
    predictions blended; the sampler steps the long latent. (MultiDiffusion, Bar-Tal et al., 2023, along time.)

    Args:
        predictors: one for each of ``windows.groups(at_once)``, holding the conditions of its windows.
        windows: where they lie on the long latent.
        at_once: windows in one call of the network.
    """
    groups = windows.groups(at_once)
    if len(groups) != len(predictors):
        raise ValueError(f"{len(groups)} groups of windows need as many predictors, got {len(predictors)}")
    starts, size = windows.starts, windows.size

    def predict_long(latent: Tensor, times: Tensor) -> Tensor:
        def predictions():
            for group, predict in zip(groups, predictors):
                cut = torch.cat([latent[:, :, starts[i]:starts[i] + size] for i in group])
                yield predict(cut, times[:1].expand(len(cut))).float()

        return windows.blend(predictions(), dim=2)

    return predict_long


def noise_of(seed: int, shape: tuple[int, int, int], block_columns: int) -> Tensor:
    """Initial noise N(0, 1) of one sample.

    It is drawn in blocks, each from a generator of its own. The first columns are therefore the same however long the
    latent is, and a sample of the model's own length starts from the first block.

    Args:
        seed: of the sample.
        shape: (C, columns, freq).
        block_columns: columns of the model's clip.
    """
    channels, columns, freq = shape
    blocks = []
    for block, first in enumerate(range(0, columns, block_columns)):
        draws = generator(int(seed), "sample") if block == 0 else generator(int(seed), "sample", block)
        blocks.append(torch.randn((channels, block_columns, freq), generator=draws))
    return torch.cat(blocks, dim=1)[:, :columns]


Decode = Callable[[Tensor], Tensor]


def decode_windowed(decode: Decode, latent: Tensor, windows: Windows, at_once: int, stride: int) -> Tensor:
    """A long latent, decoded in windows that are cross-faded ⇒ (1, 1, total · stride, …).

    Args:
        decode: (n, C, size, freq) ⇒ (n, 1, size · stride, …).
        latent: (1, C, total columns, freq).
        windows: where they lie on the latent.
        at_once: windows in one call of the decoder.
        stride: steps of the decoder's result per column.
    """
    starts = windows.starts
    parts = (decode(torch.cat([latent[:, :, starts[i]:starts[i] + windows.size] for i in group]))
             for group in windows.groups(at_once))
    return windows.blend(parts, dim=2, scale=stride)


_FADE_S = 0.01  # two vocodings of the same mel differ in phase, and a long fade would dip
_CONTEXT_FRAMES = 8  # a seam's distance from a chunk's edges, where the vocoder lacks context


def vocode(vocoder: Vocoder, mel: Tensor, chunk_frames: int, front: MelSpec) -> Tensor:
    """Log-mel (1, frames, n_mels) ⇒ waveform (frames · hop,) float32 on the CPU.

    Chunks of ``chunk_frames`` overlap by a quarter; each pair is joined by a cross-fade of 10 ms at the quietest frame
    of the overlap. Memory beyond the result is one chunk's. A mel of up to ``chunk_frames`` is vocoded at once.

    Args:
        vocoder: log-mel (B, frames, n_mels) ⇒ waveform.
        mel: of any length.
        chunk_frames: most frames in one call of the vocoder.
        front: the front end that made the mel.
    """
    frames, hop = mel.shape[1], front.hop_samples
    size = min(chunk_frames, frames)
    chunks = Windows(frames, size, size // 4)
    waveform = torch.zeros(frames * hop)
    seam = None
    for index, start in enumerate(chunks.starts):
        part = vocoder(mel[:, start:start + size])[0, :size * hop].float().cpu()
        if seam is not None:
            part *= _rise(size, seam - start, front)
        seam = None
        if index < len(chunks.starts) - 1:
            end = start + size
            seam = _quietest(mel[0], end - chunks.overlap, end)
            part *= 1 - _rise(size, seam - start, front)
        waveform[start * hop:(start + size) * hop] += part
    return waveform


def _quietest(mel: Tensor, first: int, end: int) -> int:
    """The frame of least magnitude in [first, end), away from both by the context where there is room."""
    margin = min(_CONTEXT_FRAMES, (end - first - 1) // 2)
    magnitude = mel[first + margin:end - margin].exp().sum(dim=1)
    return first + margin + int(magnitude.argmin())


def _rise(frames: int, seam: int, front: MelSpec) -> Tensor:
    """Gain of the later of two chunks: 0, then a line of 10 ms centred on the start of frame ``seam``, then 1."""
    distance = torch.arange(frames * front.hop_samples) + 0.5 - seam * front.hop_samples
    return (distance / round(_FADE_S * front.sample_rate_hz) + 0.5).clamp(0.0, 1.0)
