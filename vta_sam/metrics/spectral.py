"""Log-spectral distance: how far two spectra are apart, in decibels."""

from __future__ import annotations

import numpy as np

from ..compiled import librosa
from ..errors import InputError
from .level import measure_level

FFT_SAMPLES = 2048
HOP_SAMPLES = 512
FLOOR_DB = -80.0  # below the clip's own maximum; what lies deeper is inaudible and would decide the distance


def log_spectral_distance_db(true: np.ndarray, generated: np.ndarray) -> float | None:
    """Two mono sounds of one rate ⇒ mean over frames of the root mean square over bins of their difference in dB.

    Periodic Hann windows of 2048 samples every 512, centred; power in dB, each sound relative to its own maximum, cut
    off 80 dB below it, so that level doesn't count; compared over the shorter. The usual definition (Gray and Markel,
    1976) leaves these constants open, so that values of different programs don't compare. None where one of the two is
    silent: it has no spectrum. InputError: NaN or infinity, or not mono.
    """
    length = min(len(true), len(generated))
    sounds = [np.asarray(sound[:length], np.float32) for sound in (true, generated)]
    for sound in sounds:
        if sound.ndim != 1 or not np.isfinite(sound).all():
            raise InputError(f"a log-spectral distance needs two finite mono sounds, got shape {sound.shape}"
                             f"{'' if np.isfinite(sound).all() else ' with NaN or infinity'}")
    if not length or any(measure_level(sound).silent for sound in sounds):
        return None
    first, second = (_decibels(sound) for sound in sounds)
    return float(np.mean(np.sqrt(np.mean(np.square(first - second), axis=0))))


def _decibels(sound: np.ndarray) -> np.ndarray:
    """(samples,) ⇒ (bins, frames) dB below the maximum, not below the floor."""
    padded = np.pad(sound, (0, max(0, FFT_SAMPLES - len(sound))))
    power = np.abs(librosa.stft(padded, n_fft=FFT_SAMPLES, hop_length=HOP_SAMPLES)) ** 2
    return np.maximum(10 * np.log10(np.maximum(power / power.max(), 1e-30)), FLOOR_DB)
