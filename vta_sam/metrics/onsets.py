"""Onsets of a sound, and their agreement with true ones.

Three detectors: librosa's defaults at 22 050 Hz, which the published AV-Align and AA-Align count; this project's own;
and CondFoleyGen's (Du et al., 2023), whose scores are given as published, and in a form in which a miss costs and no
onset counts twice.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import mir_eval.onset
import mir_eval.util
import numpy as np
from scipy.optimize import linear_sum_assignment
from sklearn.metrics import average_precision_score

from ..mel import FIGURES, HOP_SAMPLES, SAMPLE_RATE_HZ, log_mel
from ..runtime.errors import InputError
from .signal import NATS_PER_DB, measure_level

PUBLISHED_RATE_HZ = 22_050  # librosa's default, which the published code leaves in place


def at_published_rate(waveform: np.ndarray, rate_hz: int = SAMPLE_RATE_HZ) -> np.ndarray:
    """Mono sound at a rate ⇒ the same at 22 050 Hz, by the resampler that librosa.load uses (soxr, high quality).

    InputError: NaN or infinity in it, or not mono.
    """
    if waveform.ndim != 1 or not np.isfinite(waveform).all():
        raise InputError(f"onsets need one finite mono sound, got shape {waveform.shape}"
                         f"{'' if np.isfinite(waveform).all() else ' with NaN or infinity'}")
    from ..runtime.librosa_import import librosa

    return librosa.resample(waveform.astype(np.float32), orig_sr=rate_hz, target_sr=PUBLISHED_RATE_HZ,
                            res_type="soxr_hq")


def onset_strength(at_22050_hz: np.ndarray) -> np.ndarray:
    """Sound at 22 050 Hz ⇒ librosa's onset strength (frames,), on which both published detectors rest."""
    from ..runtime.librosa_import import librosa

    return librosa.onset.onset_strength(y=at_22050_hz, sr=PUBLISHED_RATE_HZ)


def librosa_onsets_s(at_22050_hz: np.ndarray, strength: np.ndarray | None = None) -> np.ndarray:
    """Sound at 22 050 Hz ⇒ times of its onsets in seconds, by librosa's defaults.

    TempoTokens ``av_align.py`` and STA-V2A ``aa_align.py`` call it so. The threshold is 0.07 of an envelope that is
    scaled per clip: faint noise has onsets too. strength: its :func:`onset_strength`, where that is known.
    """
    from ..runtime.librosa_import import librosa

    strength = onset_strength(at_22050_hz) if strength is None else strength
    frames = librosa.onset.onset_detect(onset_envelope=strength, sr=PUBLISHED_RATE_HZ)
    return librosa.frames_to_time(frames, sr=PUBLISHED_RATE_HZ)


def ascending(times_s: np.ndarray) -> np.ndarray:
    """Times in order. InputError: NaN or infinity among them."""
    times_s = np.asarray(times_s, np.float64)
    if not np.isfinite(times_s).all():
        raise InputError(f"{int((~np.isfinite(times_s)).sum())} of {times_s.size} times are NaN or infinite")
    return np.sort(times_s)


def matched_pairs(reference_s: np.ndarray, estimated_s: np.ndarray, window_s: float) -> int:
    """⇒ the number of pairs in a maximum one-to-one matching of two sets of times within ±window_s.

    Raises:
        InputError: NaN or infinity is among the times.
    """
    reference, estimated = ascending(reference_s), ascending(estimated_s)
    return len(mir_eval.util.match_events(reference, estimated, window_s, distance=_distances_s))


def _distances_s(first: np.ndarray, second: np.ndarray) -> np.ndarray:
    return np.abs(np.subtract.outer(first, second))


def matched_iou(reference_s: np.ndarray, estimated_s: np.ndarray, window_s: float) -> float | None:
    """⇒ intersection over union of a one-to-one matching, in [0, 1]; None if neither side has a time."""
    if not len(reference_s) and not len(estimated_s):
        return None
    pairs = matched_pairs(reference_s, estimated_s, window_s)
    return pairs / (len(reference_s) + len(estimated_s) - pairs)


WINDOW_S = 0.1  # largest distance of an estimated onset from its reference onset

# Chosen on 60 scenes of the embedded world, on their true sounds and on 20 of them through mel and vocoder.
_RANGE_DB = 40.0  # mel bins further below the clip's loudest are set to that: faint decays have no onsets
_LAG_FRAMES = 4  # a rise is measured over 40 ms
_NEIGHBOURS = 3  # mel bins that the earlier frame is maximised over: vibrato is no onset (SuperFlux)
_LEAST_RISE_DB = 0.7  # mean over bins, above the average around. In decibels, so that a faint sound needs the same rise
_PEAK_FRAMES, _AVERAGE_FRAMES, _WAIT_FRAMES = 3, 10, 5  # at 100 Hz


def detect_onsets(waveform: np.ndarray, mel: np.ndarray | None = None) -> np.ndarray:
    """Mono 16 kHz sound (samples,) ⇒ times of its onsets in seconds, ascending, more than 50 ms apart.

    SuperFlux (Böck and Widmer, 2013) on the project's log-mel, peaks picked by librosa. The threshold is absolute, so
    silence and steady noise have (almost) no onsets; a clip with no 50 ms above -60 dBFS has none by definition.
    Against the event times of 100 other scenes of the embedded world: F1 0.97 (precision 0.99, recall 0.96),
    times 9 ms late in the median. mel: its log-mel by FIGURES, where that is known. InputError: NaN or infinity in the
    sound.
    """
    if not np.isfinite(waveform).all():
        raise InputError(f"a sound of {waveform.size} samples holds NaN or infinity; it has no onsets")
    if measure_level(waveform, SAMPLE_RATE_HZ).silent:
        return np.zeros(0)
    from ..runtime.librosa_import import librosa

    decibels = (log_mel(waveform, FIGURES) if mel is None else mel).T / NATS_PER_DB
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


LONGEST_ERROR_S = 0.25  # a generated onset further from a true one belongs to no true one
LEAD_S, LATENESS_S = 0.045, 0.125  # ITU-R BT.1359: sound may come so much before, or after, the picture, unnoticed


@dataclass(frozen=True)
class OnsetErrors:
    """Errors of matched onsets, generated − true: positive where the sound is late.

    Args:
        median_ms: median error.
        absolute_ms: median of the errors' sizes. Both are None where no onset is matched.
        in_itu_window: share of true onsets with a generated one of their own from 45 ms before to 125 ms after them;
            None where there is no true onset.
    """

    median_ms: float | None
    absolute_ms: float | None
    in_itu_window: float | None


def onset_errors(true_s: np.ndarray, generated_s: np.ndarray) -> OnsetErrors:
    """Onset times in seconds of a true and a generated sound ⇒ :class:`OnsetErrors`.

    Onsets are matched one to one within 250 ms so that their distances, each less 250 ms, have the least sum: near
    pairs count before many pairs. InputError: NaN or infinity among the times.
    """
    true_s, generated_s = ascending(true_s), ascending(generated_s)
    errors = np.subtract.outer(generated_s, true_s)
    rows, columns = linear_sum_assignment(np.minimum(np.abs(errors) - LONGEST_ERROR_S, 0.0))
    matched = errors[rows, columns]
    matched_ms = 1000 * matched[np.abs(matched) < LONGEST_ERROR_S]
    centre_s, half_s = (LATENESS_S - LEAD_S) / 2, (LATENESS_S + LEAD_S) / 2
    found = len(mir_eval.util.match_events(true_s + centre_s, generated_s, half_s + 1e-9, distance=_distances_s))
    return OnsetErrors(
        float(np.median(matched_ms)) if len(matched_ms) else None,
        float(np.median(np.abs(matched_ms))) if len(matched_ms) else None,
        found / len(true_s) if len(true_s) else None,
    )


_DELTA = 0.3  # of librosa's envelope, which is scaled per clip
_AROUND = int(0.05 * PUBLISHED_RATE_HZ)  # samples on either side of an onset that its confidence is the maximum of
_SUPPRESSED = 0.05 * PUBLISHED_RATE_HZ


@dataclass(frozen=True)
class FoleyOnsets:
    """The onsets of one sound at 22 050 Hz. samples (n,) int64, ascending; heights (n,): |waveform| there, scaled to
    [0, 1] over the clip; confidences (n,): the maximum of that within 50 ms. Of a silent sound n is 0; of one whose
    magnitude never changes both are NaN."""

    samples: np.ndarray
    heights: np.ndarray
    confidences: np.ndarray

    @property
    def times_s(self) -> np.ndarray:
        return self.samples / PUBLISHED_RATE_HZ

    @property
    def countable(self) -> bool:
        """Whether the published code gets through: it takes the maximum of an empty stretch, and stops, where an onset
        lies in the first 50 ms, and it stops at NaN."""
        return not np.any(self.samples < _AROUND) and not np.isnan(self.confidences).any()


@dataclass(frozen=True)
class FoleyScores:
    """accuracy: hits per true onset. average_precision. count_agrees: 1 if both sides have equally many. Each None
    where the published code has no value."""

    accuracy: float | None
    average_precision: float | None
    count_agrees: float | None


@dataclass(frozen=True)
class MatchedScores:
    """precision, recall, f1: of a maximum one-to-one matching within ±0.1 s. average_precision: area under precision
    over recall, missed onsets included. All None where neither side has an onset."""

    precision: float | None = None
    recall: float | None = None
    f1: float | None = None
    average_precision: float | None = None


def foley_onsets(at_22050_hz: np.ndarray, strength: np.ndarray | None = None) -> FoleyOnsets:
    """Sound at 22 050 Hz ⇒ its onsets as ``predict_onset.py`` detects and weighs them. strength: as above."""
    from ..runtime.librosa_import import librosa

    strength = onset_strength(at_22050_hz) if strength is None else strength
    found = librosa.onset.onset_detect(onset_envelope=strength, sr=PUBLISHED_RATE_HZ, units="samples", delta=_DELTA)
    return weighed(at_22050_hz, found)


def weighed(at_22050_hz: np.ndarray, samples: np.ndarray | Sequence[int]) -> FoleyOnsets:
    """Given onsets of a sound ⇒ the same with heights and confidences."""
    magnitude = np.abs(at_22050_hz.astype(np.float64))
    span = float(np.ptp(magnitude)) if magnitude.size else 0.0
    if not magnitude.any():
        return FoleyOnsets(np.zeros(0, np.int64), np.zeros(0), np.zeros(0))
    scaled = (magnitude - magnitude.min()) / span if span else np.full_like(magnitude, np.nan)
    places = np.minimum(np.asarray(samples, np.int64), len(scaled) - 1)
    confidences = [scaled[max(0, o - _AROUND):o + _AROUND].max() for o in places]
    return FoleyOnsets(places, scaled[places], np.array(confidences, np.float64))


def onset_scores_published(true: FoleyOnsets, generated: FoleyOnsets) -> FoleyScores:
    """``predict_onset.py``, without its cut to 2 s.

    Generated onsets closer than 50 ms to a more confident one are dropped. The published code drops them from the list
    that it iterates over, so that some neighbours stay. Each true onset, in order of time, is then matched with the
    loudest unmatched generated onset within 0.1 s. The loop ends when every generated onset is matched: later true
    onsets don't count. A miss is a positive of score 0, which hardly changes average precision: without a false alarm
    it is 1 whatever was missed, even for a sound with no onset at all.
    """
    if not generated.countable:
        return FoleyScores(None, None, None)
    kept = _suppressed(generated)
    left = list(kept)
    truths: list[int] = []
    scores: list[float] = []
    hits = 0
    for onset in true.samples:
        near = [i for i in left if abs(int(generated.samples[i]) - int(onset)) < WINDOW_S * PUBLISHED_RATE_HZ]
        truths.append(1)
        if not near:
            scores.append(0.0)
            continue
        chosen = near[int(np.argsort([generated.heights[i] for i in near])[-1])]
        hits += 1
        scores.append(float(generated.confidences[chosen]))
        left.remove(chosen)
        if not left:
            break
    truths += [0] * len(left)
    scores += [float(generated.confidences[i]) for i in left]
    accuracy = hits / len(true.samples) if len(true.samples) else 0.0
    precision: float | None = None
    if truths:  # without a positive sklearn warns and says 0
        precision = float(average_precision_score(truths, scores)) if any(truths) else 0.0
    agrees = float(len(true.samples) == len(generated.samples))
    return FoleyScores(accuracy if truths else None, precision, agrees)


def onset_scores_matched(true: FoleyOnsets, generated: FoleyOnsets) -> MatchedScores:
    """⇒ scores of the same onsets, matched one to one.

    Average precision: for each confidence, all generated onsets of at least that confidence are matched with the true
    ones. The precision of each such set is weighted by the recall that it adds, so that a miss costs.
    """
    if not len(true.samples) and not len(generated.samples):
        return MatchedScores()
    if not len(true.samples) or not len(generated.samples):
        return MatchedScores(0.0, 0.0, 0.0, 0.0)
    confidences = np.nan_to_num(generated.confidences)
    average, before, hits, count = 0.0, 0, 0, 0
    for least in np.unique(confidences)[::-1]:
        chosen = generated.times_s[confidences >= least]
        count, hits = len(chosen), matched_pairs(true.times_s, chosen, WINDOW_S)
        average += (hits - before) / len(true.samples) * hits / count
        before = hits
    precision, recall = hits / count, hits / len(true.samples)
    return MatchedScores(precision, recall, 2 * precision * recall / (precision + recall) if hits else 0.0, average)


def _suppressed(onsets: FoleyOnsets) -> list[int]:
    """Indices that the published suppression leaves, in order of time."""
    remaining = [int(o) for o in onsets.samples]
    kept = []
    for i in np.argsort(onsets.confidences)[::-1]:
        current = int(onsets.samples[i])
        if current not in remaining:
            continue
        kept.append(int(i))
        remaining.remove(current)
        for other in remaining:  # as published: after a removal the loop skips the next element
            if abs(current - other) < _SUPPRESSED:
                remaining.remove(other)
    return sorted(kept)
