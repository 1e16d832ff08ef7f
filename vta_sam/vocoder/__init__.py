"""Log-mel to waveform: the contract of a vocoder, and the two that there are."""

from __future__ import annotations

from typing import Protocol

import torch

from ..clip import MelSpec
from .vocoders import GriffinLim, HiFiGAN

__all__ = ["GriffinLim", "HiFiGAN", "Vocoder"]


class Vocoder(Protocol):
    """Log-mel ⇒ waveform.

    A call takes log-mels (B, frames, n_mels) float, natural log, as :class:`vta_sam.mel.LogMel` makes them by ``mel``.
    It returns (B, samples) float32 at ``sample_rate_hz`` on the mel's device, where samples ≥ hop · frames. Beyond that
    the last frame rings, and callers cut it. Each waveform depends on its own mel alone, never on its neighbours in the
    batch, and the same mel gives the same waveform. Sounds may exceed [-1, 1] for a loud mel: clipping is the
    caller's.
    """

    mel: MelSpec
    sample_rate_hz: int

    def __call__(self, mel: torch.Tensor) -> torch.Tensor: ...
