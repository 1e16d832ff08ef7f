"""Onsets heard in a sound, and how well they meet the events that should have made them."""

from __future__ import annotations

import mir_eval
import numpy as np

from ..compiled import librosa
from ..errors import InputError
from ..mel import HOP_SAMPLES, SAMPLE_RATE_HZ, log_mel
from .envelope import NATS_PER_DB
from .level import measure_level

WINDOW_S = 0.1  # an estimated onset this far from a reference onset still meets it

# Chosen on 60 scenes of the embedded world, on their true sounds and on 20 of them through mel and vocoder.
_RANGE_DB = 40.0  # mel bins further below the clip's loudest are levelled: faint decays have no onsets
_LAG_FRAMES = 4  # a rise is measured over 40 ms
_NEIGHBOURS = 3  # mel bins that the earlier frame is maximised over: vibrato is no onset (SuperFlux)
_LEAST_RISE_DB = 0.7  # mean over bins, above the average around. In decibels, so that a faint sound needs the same rise
_PEAK_FRAMES, _AVERAGE_FRAMES, _WAIT_FRAMES = 3, 10, 5  # at 100 Hz


def detect_onsets(waveform: np.ndarray) -> np.ndarray:
    """Mono 16 kHz sound (samples,) ⇒ times of its onsets in seconds, ascending, more than 50 ms apart.

    SuperFlux (Böck and Widmer, 2013) on the project's log-mel, peaks picked by librosa. The threshold is absolute, so
    silence and steady noise have (almost) no onsets; a clip with no 50 ms above -60 dBFS has none by definition.
    Against the event times of 100 other scenes of the embedded world: F1 0.97 (precision 0.99, recall 0.96),
    times 9 ms late in the median. InputError: NaN or infinity in the sound.
    """
    if not np.isfinite(waveform).all():
        raise InputError(f"a sound of {waveform.size} samples holds NaN or infinity; it has no onsets")
    if measure_level(waveform).silent:
        return np.zeros(0)
    decibels = log_mel(waveform).T / NATS_PER_DB
    strength = librosa.onset.onset_strength(
        S=np.maximum(decibels, decibels.max() - _RANGE_DB), sr=SAMPLE_RATE_HZ, hop_length=HOP_SAMPLES,
        lag=_LAG_FRAMES, max_size=_NEIGHBOURS, center=False,
    )
    return librosa.onset.onset_detect(
        onset_envelope=strength, sr=SAMPLE_RATE_HZ, hop_length=HOP_SAMPLES, units="time", normalize=False,
        delta=_LEAST_RISE_DB, pre_max=_PEAK_FRAMES, post_max=_PEAK_FRAMES, pre_avg=_AVERAGE_FRAMES,
        post_avg=_AVERAGE_FRAMES, wait=_WAIT_FRAMES,
    )


def onset_f1(reference_s: np.ndarray, estimated_s: np.ndarray, window_s: float = WINDOW_S) -> float | None:
    """F1 of estimated against reference onset times, matched one to one within ±window_s ⇒ [0, 1].

    None when neither side has an onset: there is nothing to be right or wrong about, and callers count such clips.
    0 when only one side has.
    """
    reference_s, estimated_s = np.sort(reference_s), np.sort(estimated_s)
    if not len(reference_s) and not len(estimated_s):
        return None
    if not len(reference_s) or not len(estimated_s):
        return 0.0
    return float(mir_eval.onset.f_measure(reference_s, estimated_s, window=window_s)[0])
