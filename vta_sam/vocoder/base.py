"""Log-mel to waveform: the contract of a vocoder."""

from __future__ import annotations

from typing import Protocol

import torch


class Vocoder(Protocol):
    """Log-mel ⇒ waveform.

    mel: (B, frames, 64) float, natural log, as :class:`vta_sam.mel.LogMel` makes it. Returns (B, samples) float32 at
    16 kHz on the mel's device, where samples ≥ 160 · frames; what is beyond 160 · frames is the ringing of the last
    frame, and callers cut it. Each waveform depends on its own mel alone, never on its neighbours in the batch, and the
    same mel gives the same waveform. Sounds may exceed [-1, 1] when the mel asks for it: clipping is the caller's.
    """

    sample_rate_hz: int

    def __call__(self, mel: torch.Tensor) -> torch.Tensor: ...
