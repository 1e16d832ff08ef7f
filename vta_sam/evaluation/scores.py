"""One sound against one truth ⇒ a value per column: the metrics of vta_sam.metrics, put together."""

from __future__ import annotations

import numpy as np

from ..metrics.aa_align import aa_align_matched, aa_align_published
from ..metrics.av_align import av_align_matched, av_align_published, flow_peaks_s
from ..metrics.backbones import TITLES
from ..metrics.classes import kl_divergence
from ..metrics.envelope import MAX_LAG_S, correlation, envelope_lag
from ..metrics.flow import FULL
from ..metrics.onset_scores import onset_scores_matched, onset_scores_published
from ..metrics.onsets import onset_f1
from ..metrics.similarity import cosine
from .bank import Truth
from .measure import Measured

Values = dict[str, float | None]


def values(sound: Measured, truth: Truth, classes: tuple[str, ...]) -> Values:
    """Every figure of a sound that is its clip's own. classes: of the embedded tagger."""
    level = sound.features.level
    found = control_values(sound, truth)
    found |= {"log_spectral_distance_db": sound.log_spectral_distance_db, "loudness_dbfs": level.rms_dbfs,
              "clipping_rate": level.clipping_rate}
    if truth.label in classes and "logits" in sound.rows.get("tiny", {}):
        found["sound_class"] = float(classes[int(sound.rows["tiny"]["logits"].argmax())] == truth.label)
    return found


def control_values(sound: Measured, truth: Truth) -> Values:
    """The figures that can also be taken against another clip's truth."""
    return {**_timing(sound, truth), **_motion(sound, truth), **_heard(sound, truth)}


def _timing(sound: Measured, truth: Truth) -> Values:
    """A silent sound under a clip that isn't silent is late by the whole range of lags, so that silence wins nothing.
    Where a published implementation has no value, neither is one given here."""
    heard, true = sound.features, truth.sound.features
    lag = envelope_lag(heard.envelope, true.envelope)
    lag_s = None if lag is None else abs(lag[0])
    if lag is None and heard.level.silent and not true.level.silent:
        lag_s = MAX_LAG_S
    published = onset_scores_published(true.foley, heard.foley)
    matched = onset_scores_matched(true.foley, heard.foley)
    return {
        "envelope_correlation": correlation(heard.envelope, true.envelope),
        "envelope_lag_s": lag_s,
        "onset_f1": onset_f1(truth.onsets_s, heard.onsets_s),
        "onset_accuracy_published": published.accuracy,
        "onset_ap_published": published.average_precision,
        "onset_count_published": published.count_agrees,
        "onset_f1_matched": matched.f1,
        "onset_ap_matched": matched.average_precision,
        "aa_align_published": aa_align_published(true.librosa_onsets_s, heard.librosa_onsets_s),
        "aa_align_matched": aa_align_matched(true.librosa_onsets_s, heard.librosa_onsets_s),
    }


def _motion(sound: Measured, truth: Truth) -> Values:
    found: Values = {}
    for variant, flow in truth.flows.items():
        peaks_s, onsets_s = flow_peaks_s(flow), sound.features.librosa_onsets_s
        as_published = "av_align_published" if variant == FULL else f"av_align_{variant}"
        matched = "av_align_matched" if variant == FULL else f"av_align_{variant}_matched"
        found[as_published] = av_align_published(onsets_s, peaks_s, flow.fps)
        found[matched] = av_align_matched(onsets_s, peaks_s)
    return found


def _heard(sound: Measured, truth: Truth) -> Values:
    """KL of classes where a backbone has them, else the cosine of mean vectors."""
    found: Values = {}
    for name in sound.rows:
        mine, true = sound.rows[name], truth.sound.rows.get(name, {})
        if TITLES[name][1]:
            both = "logits" in mine and "logits" in true
            found[f"kl_{name}"] = float(kl_divergence(true["logits"][None], mine["logits"][None])[0]) if both else None
        else:
            vectors = [rows["embeddings"] for rows in (mine, true) if len(rows.get("embeddings", ()))]
            value = float(cosine(*(rows.mean(0, keepdims=True) for rows in vectors))[0]) if len(vectors) == 2 else None
            found[f"cosine_{name}"] = None if value is None or np.isnan(value) else value
    return found
