"""A vocoder on a log-mel of any length: chunk by chunk, joined where it is quietest."""

from __future__ import annotations

import torch
from torch import Tensor

from ..diffusion.windows import Windows
from ..mel import HOP_SAMPLES
from ..vocoder import Vocoder

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
