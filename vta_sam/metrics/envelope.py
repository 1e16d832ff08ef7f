"""The energy envelope of a sound, and how well two of them agree: the project's measure of timing."""

from __future__ import annotations

import numpy as np
from scipy.ndimage import uniform_filter1d

from ..errors import InputError
from ..mel import FRAME_RATE_HZ, log_mel

RANGE_DB = 60.0  # what is further below the clip's maximum counts as silence
SMOOTHING_S = 0.05
NATS_PER_DB = float(np.log(10) / 20)  # of a magnitude
MAX_LAG_S = 1.0
_LEAST_OVERLAP = 0.5  # of the shorter envelope; correlations over less are luck
_CONSTANT_NATS = 1e-4  # an envelope that varies less is constant: rounding of a steady sound


def energy_envelope(waveform: np.ndarray) -> np.ndarray:
    """Mono 16 kHz sound (samples,) ⇒ its envelope (samples // 160 + 1,) at 100 Hz, in nats.

    The mean over the 64 log-mel bins, clipped at 60 dB below the clip's own maximum of that mean, then smoothed by a
    boxcar of 50 ms whose edges repeat the outermost value. InputError: NaN or infinity in the sound, or too short.
    """
    if not np.isfinite(waveform).all():
        raise InputError(f"a sound of {waveform.size} samples holds NaN or infinity; it has no envelope")
    envelope = log_mel(waveform).mean(axis=1, dtype=np.float64)
    envelope = np.maximum(envelope, envelope.max() - RANGE_DB * NATS_PER_DB)
    return uniform_filter1d(envelope, size=round(SMOOTHING_S * FRAME_RATE_HZ), mode="nearest")


def correlation(first: np.ndarray, second: np.ndarray) -> float:
    """Pearson correlation of two envelopes, cut to the shorter; 0 if either is constant over that stretch."""
    length = min(len(first), len(second))
    first, second = first[:length], second[:length]
    if np.ptp(first) < _CONSTANT_NATS or np.ptp(second) < _CONSTANT_NATS:
        return 0.0
    return float(np.corrcoef(first, second)[0, 1])


def envelope_correlation(generated: np.ndarray, true: np.ndarray) -> float:
    """Envelope correlation of two mono 16 kHz sounds ⇒ [-1, 1].

    Both are read from their start, and sounds of different length are compared over the shorter. A sound whose
    envelope is constant (silence, a steady hum) has no timing and scores 0.
    """
    return correlation(energy_envelope(generated), energy_envelope(true))


def envelope_lag(generated: np.ndarray, true: np.ndarray) -> tuple[float, float] | None:
    """Two envelopes at 100 Hz ⇒ (lag in seconds, correlation at that lag): the shift within ±1 s at which they agree
    best. Positive: the generated sound is late. Of equal correlations the smallest shift counts.

    Each shift is judged over its own overlap, which is at least half of the shorter envelope. None where no overlap has
    two envelopes that vary: there is no lag to speak of. InputError: NaN or infinity in one.
    """
    for envelope in (generated, true):
        if not np.isfinite(envelope).all():
            raise InputError(f"an envelope of {len(envelope)} values holds NaN or infinity; it has no lag")
    best: tuple[float, int] | None = None
    most = round(MAX_LAG_S * FRAME_RATE_HZ)
    least = max(2, round(_LEAST_OVERLAP * min(len(generated), len(true))))
    for shift in sorted(range(-most, most + 1), key=abs):
        late = generated[max(shift, 0):][:max(0, len(true) - max(-shift, 0))]
        early = true[max(-shift, 0):][:len(late)]
        late = late[:len(early)]
        if len(late) < least or np.ptp(late) < _CONSTANT_NATS or np.ptp(early) < _CONSTANT_NATS:
            continue
        value = float(np.corrcoef(late, early)[0, 1])
        if best is None or value > best[0] + 1e-9:
            best = value, shift
    return None if best is None else (best[1] / FRAME_RATE_HZ, best[0])
