"""Alignment scores: AA-Align between generated and true onsets, AV-Align between onsets and peaks of optical flow.

Each is given as published, and with a one-to-one matching within a window that doesn't depend on the frame rate.
"""

from __future__ import annotations

import numpy as np

from .flow import FlowTrajectory
from .onsets import WINDOW_S, ascending, matched_iou


def aa_align_published(true_s: np.ndarray, generated_s: np.ndarray) -> float | None:
    """STA-V2A ``EvalTools/aa_align.py``: I / (G + R − I), where I counts generated onsets that have *some* true onset
    within 0.1 s (strictly), G true and R generated ones.

    Not one to one: five generated onsets around one true one score 5.0, one around five 0.2, so stuttering is rewarded
    and the two sides differ. None where neither side has an onset: the published code divides by zero. InputError: NaN
    or infinity among the times.
    """
    true, generated = ascending(true_s)[None], ascending(generated_s)[:, None]
    if not true.size and not generated.size:
        return None
    near = (true - WINDOW_S < generated) & (generated < true + WINDOW_S)  # as published, to the last bit
    hits = int(near.any(axis=1).sum())
    # not zero: a hit needs a true onset, and there are no more hits than generated ones
    return hits / (true.size + generated.size - hits)


def aa_align_matched(true_s: np.ndarray, generated_s: np.ndarray) -> float | None:
    """The same with a one-to-one matching within ±0.1 s: an intersection over union in [0, 1], equal both ways. None
    where neither side has an onset: there is nothing to be right or wrong about."""
    return matched_iou(true_s, generated_s, WINDOW_S)


LEAST_PX = 0.1  # a peak of motion has at least so many pixels a frame


def flow_peaks_s(flow: FlowTrajectory) -> np.ndarray:
    """Strict local maxima of at least 0.1 px of a flow trajectory ⇒ their times i / fps in seconds.

    TempoTokens ``av_align.py``. The first value repeats the second frame's, so that neither can be a peak.
    """
    m = flow.magnitudes
    inner = np.arange(1, len(m) - 1)
    peaks = (m[inner] > m[inner - 1]) & (m[inner] > m[inner + 1]) & (m[inner] >= LEAST_PX)
    return inner[peaks] / flow.fps


def av_align_published(audio_s: np.ndarray, video_s: np.ndarray, fps: float) -> float | None:
    """TempoTokens ``av_align.py``: I / (A + V − I), I counting audio peaks that find a video peak within ±1/fps
    (strictly) that no earlier one took. None where there is no peak at all (the published code divides by zero).

    The window follows the frame rate: ±250 ms at 4 fps, ±40 ms at 25 fps; scores at different rates don't compare.
    """
    if not len(audio_s) and not len(video_s):
        return None
    left = list(ascending(video_s))
    hits = 0
    for peak in ascending(audio_s):
        for place, other in enumerate(left):
            if other - 1 / fps < peak < other + 1 / fps:
                hits += 1
                del left[place]
                break
    return hits / (len(audio_s) + len(video_s) - hits)


def av_align_sta_published(audio_s: np.ndarray, video_s: np.ndarray, fps: float) -> float | None:
    """STA-V2A's copy of AV-Align, in which a video peak may match any number of audio peaks. It is no intersection
    over union, and can exceed 1. None where there is no peak at all."""
    audio, video = ascending(audio_s)[:, None], ascending(video_s)[None]
    if not audio.size and not video.size:
        return None
    hits = int(((video - 1 / fps < audio) & (audio < video + 1 / fps)).any(axis=1).sum())
    return hits / (audio.size + video.size - hits)


def av_align_matched(audio_s: np.ndarray, video_s: np.ndarray) -> float | None:
    """Maximum one-to-one matching within ±0.1 s, whatever the frame rate: intersection over union in [0, 1]; None where
    there is no peak at all."""
    return matched_iou(audio_s, video_s, WINDOW_S)
