"""Onsets as librosa's defaults find them: what the published AV-Align and AA-Align count, at 22 050 Hz."""

from __future__ import annotations

import numpy as np

from ..compiled import librosa
from ..errors import InputError
from ..mel import SAMPLE_RATE_HZ

PUBLISHED_RATE_HZ = 22_050  # librosa's default, which the published code leaves in place


def at_published_rate(waveform: np.ndarray) -> np.ndarray:
    """Mono 16 kHz sound ⇒ the same at 22 050 Hz, by the resampler that librosa.load uses (soxr, high quality).

    InputError: NaN or infinity in it, or not mono.
    """
    if waveform.ndim != 1 or not np.isfinite(waveform).all():
        raise InputError(f"onsets need one finite mono sound, got shape {waveform.shape}"
                         f"{'' if np.isfinite(waveform).all() else ' with NaN or infinity'}")
    return librosa.resample(waveform.astype(np.float32), orig_sr=SAMPLE_RATE_HZ, target_sr=PUBLISHED_RATE_HZ,
                            res_type="soxr_hq")


def librosa_onsets_s(at_22050_hz: np.ndarray) -> np.ndarray:
    """Sound at 22 050 Hz ⇒ times of its onsets in seconds, by librosa's defaults (delta 0.07 of an envelope scaled per
    clip: faint noise has onsets too). As TempoTokens ``av_align.py`` and STA-V2A ``aa_align.py`` call it."""
    strength = librosa.onset.onset_strength(y=at_22050_hz, sr=PUBLISHED_RATE_HZ)
    frames = librosa.onset.onset_detect(onset_envelope=strength, sr=PUBLISHED_RATE_HZ)
    return librosa.frames_to_time(frames, sr=PUBLISHED_RATE_HZ)


def ascending(times_s: np.ndarray) -> np.ndarray:
    """Times in order. InputError: NaN or infinity among them."""
    times_s = np.asarray(times_s, np.float64)
    if not np.isfinite(times_s).all():
        raise InputError(f"{int((~np.isfinite(times_s)).sum())} of {times_s.size} times are NaN or infinite")
    return np.sort(times_s)


def matched_pairs(reference_s: np.ndarray, estimated_s: np.ndarray, window_s: float) -> int:
    """The most pairs that a one-to-one matching of two sets of times within ±window_s can have.

    In time order a greedy matching is as good as any: whoever is earliest takes the earliest that is left. InputError:
    NaN or infinity among the times.
    """
    reference, estimated = ascending(reference_s), ascending(estimated_s)
    i = j = pairs = 0
    while i < len(reference) and j < len(estimated):
        if abs(reference[i] - estimated[j]) <= window_s:
            pairs, i, j = pairs + 1, i + 1, j + 1
        elif reference[i] < estimated[j]:
            i += 1
        else:
            j += 1
    return pairs


def matched_iou(reference_s: np.ndarray, estimated_s: np.ndarray, window_s: float) -> float | None:
    """Pairs of a one-to-one matching over all that is on either side ⇒ [0, 1]; None if there is nothing on either."""
    if not len(reference_s) and not len(estimated_s):
        return None
    pairs = matched_pairs(reference_s, estimated_s, window_s)
    return pairs / (len(reference_s) + len(estimated_s) - pairs)
