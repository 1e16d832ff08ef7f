"""How much of a mel's variance a reconstruction misses: the figure of the VAE and of the vocoder."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from ..errors import InputError
from ..mel import LOG_FLOOR
from .envelope import NATS_PER_DB

AUDIBLE_DB = 40.0


@dataclass(frozen=True)
class ErrorShare:
    """Sums over frames and bins, in nats²: squared error, and squared distance from the training mean. Add those of
    several clips to pool them; ``share`` is their quotient: 0 is perfect, 1 no better than the mean spectrum."""

    error: float = 0.0
    variance: float = 0.0

    def __add__(self, other: "ErrorShare") -> "ErrorShare":
        return ErrorShare(self.error + other.error, self.variance + other.variance)

    @property
    def share(self) -> float:
        """NaN if no frame was counted."""
        return self.error / self.variance if self.variance > 0 else float("nan")


def audible_frames(mel: np.ndarray) -> np.ndarray:
    """(frames,) bool: the mean over bins of the log-mel (frames, 64) is within 40 dB of its maximum over the clip.

    Frames at the mel's floor are never audible, so a silent clip has none.
    """
    envelope = mel.mean(axis=1)
    return (envelope >= envelope.max() - AUDIBLE_DB * NATS_PER_DB) & (envelope > LOG_FLOOR + 1e-3)


def mel_error_share(true_mel: np.ndarray, reconstructed_mel: np.ndarray, train_mean: np.ndarray) -> ErrorShare:
    """Error of a reconstructed log-mel over the audible frames of the true one ⇒ :class:`ErrorShare` of one clip.

    true_mel (frames, 64); reconstructed_mel (frames', 64), compared over the shorter; train_mean (64,) the mean of
    each bin over the training clips. InputError: shapes that don't fit.
    """
    if true_mel.ndim != 2 or reconstructed_mel.ndim != 2 or not (
        true_mel.shape[1] == reconstructed_mel.shape[1] == train_mean.shape[-1] == train_mean.size
    ):
        raise InputError(
            f"mel error: expected (frames, bins) twice and (bins,), got {true_mel.shape}, {reconstructed_mel.shape} "
            f"and {train_mean.shape}"
        )
    frames = min(len(true_mel), len(reconstructed_mel))
    heard = audible_frames(true_mel)[:frames]
    true = true_mel[:frames][heard].astype(np.float64)
    error = np.square(true - reconstructed_mel[:frames][heard]).sum()
    return ErrorShare(float(error), float(np.square(true - train_mean).sum()))
