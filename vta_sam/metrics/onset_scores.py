"""Onset accuracy, average precision and count of CondFoleyGen (Du et al., 2023), as published, and in a form in which a
miss costs and no onset counts twice."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from sklearn.metrics import average_precision_score

from ..compiled import librosa
from .onsets import WINDOW_S
from .peaks import PUBLISHED_RATE_HZ, matched_pairs

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


def foley_onsets(at_22050_hz: np.ndarray) -> FoleyOnsets:
    """Sound at 22 050 Hz ⇒ its onsets as ``predict_onset.py`` detects and weighs them."""
    found = librosa.onset.onset_detect(y=at_22050_hz, sr=PUBLISHED_RATE_HZ, units="samples", delta=_DELTA)
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

    Generated onsets closer than 50 ms to a more confident one are dropped (from a list while it is walked through, so
    that neighbours slip past); true onsets in order of time each take, within 0.1 s, the loudest that is left; when
    none is left the rest of the truth is forgotten. A miss is a positive of score 0, which average precision hardly
    sees: with no false alarm it is 1 whatever was missed, even for a sound with no onset at all.
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
    """The same onsets, matched one to one.

    Average precision: for each confidence, all generated onsets at least that confident are matched with the true ones;
    the precision of each such set is weighted by the recall that it adds, so that what is never found costs.
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
        for other in remaining:  # as published: what is removed makes the walk skip the next
            if abs(current - other) < _SUPPRESSED:
                remaining.remove(other)
    return sorted(kept)
