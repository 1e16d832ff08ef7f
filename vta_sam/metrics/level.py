"""How loud a sound is, how much of it is silence, and how much of it clips."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from ..errors import InputError
from ..mel import SAMPLE_RATE_HZ

SILENCE_DBFS = -60.0
FRAME_S = 0.05
LOWEST_DBFS = -120.0  # stands for the level of digital silence, so that means and JSON stay finite
CLIPPED = 32767 / 32768  # the largest value of 16-bit sound


@dataclass(frozen=True)
class Level:
    """rms_dbfs: 20·log10 of the root mean square (a full-scale sine has -3 dBFS). peak: largest absolute sample, 1 is
    full scale. silent_share: share of 50 ms frames below -60 dBFS. silent: all of them are. clipping_rate: share of
    samples at or beyond full scale."""

    rms_dbfs: float
    peak: float
    silent_share: float
    silent: bool
    clipping_rate: float


def to_dbfs(magnitude: np.ndarray | float) -> np.ndarray:
    """Linear magnitude, 1 = full scale ⇒ dBFS, no lower than -120."""
    return 20 * np.log10(np.maximum(magnitude, 10 ** (LOWEST_DBFS / 20)))


def frame_levels_dbfs(waveform: np.ndarray, sample_rate_hz: int = SAMPLE_RATE_HZ) -> np.ndarray:
    """RMS level of consecutive 50 ms frames; the last may be shorter ⇒ (ceil(samples / frame),) dBFS."""
    starts = np.arange(0, len(waveform), round(FRAME_S * sample_rate_hz))
    energy = np.add.reduceat(np.square(waveform, dtype=np.float64), starts)
    return to_dbfs(np.sqrt(energy / np.diff(np.append(starts, len(waveform)))))


def measure_level(waveform: np.ndarray, sample_rate_hz: int = SAMPLE_RATE_HZ) -> Level:
    """Mono sound (samples,) ⇒ :class:`Level`. InputError: an empty sound, or one that is not mono."""
    if waveform.ndim != 1 or waveform.size == 0:
        raise InputError(f"a level needs one mono sound of shape (samples,), got {waveform.shape}")
    levels = frame_levels_dbfs(waveform, sample_rate_hz)
    magnitude = np.abs(waveform.astype(np.float64))
    return Level(
        rms_dbfs=float(to_dbfs(np.sqrt(np.mean(magnitude**2)))),
        peak=float(magnitude.max()),
        silent_share=float(np.mean(levels < SILENCE_DBFS)),
        silent=bool(levels.max() < SILENCE_DBFS),
        clipping_rate=float(np.mean(magnitude >= CLIPPED)),
    )
