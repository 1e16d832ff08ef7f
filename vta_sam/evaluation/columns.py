"""The figures of an evaluation: what each is called, which way is better, what it needs, and where it is defined."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import chain
from typing import Literal

import numpy as np

from ..metrics.alignment import aa_align_matched, aa_align_published, av_align_matched, av_align_published, flow_peaks_s
from ..metrics.classes import cosine, kl_divergence
from ..metrics.flow import FULL
from ..metrics.onsets import onset_f1, onset_scores_matched, onset_scores_published
from ..metrics.signal import MAX_LAG_S, correlation, envelope_lag
from .backbones import TITLES
from .clip_measurements import Truth
from .measure import Measured

# MERGED-DOC """One sound against one truth ⇒ a value per column: the metrics of vta_sam.metrics, put together."""


Better = Literal["high", "low", "none"]
Scope = Literal["clip", "set"]


@dataclass(frozen=True)
class Column:
    """One figure. scope clip: a value per clip, meaned; set: one value of all clips together. better: "none" where
    neither way is better (a level). decimals: how many are shown. control: whether a score against other clips' truth
    has a meaning. source: whose definition. definition: what it is, in a sentence."""

    key: str
    title: str
    better: Better
    scope: Scope
    unit: str = ""
    decimals: int = 3
    control: bool = False
    source: str = ""
    definition: str = ""

    @property
    def arrow(self) -> str:
        return {"high": "↑", "low": "↓", "none": ""}[self.better]


_CONDFOLEY = "CondFoleyGen (Du et al., 2023)"
_STA = "STA-V2A (Ren et al., 2024)"
_TEMPO = "TempoTokens (Yariv et al., 2023)"
_AV_ALIGN = "Onsets that meet a peak of optical flow within a frame, over the union of both."
_OWN = "this project, docs/evaluation.md"

TIMING = (
    Column("envelope_correlation", "Envelope correlation", "high", "clip", control=True, source=_OWN,
           definition="Pearson correlation of both energy envelopes; a constant envelope scores 0."),
    Column("envelope_lag_s", "Envelope lag, absolute", "low", "clip", "s", control=True, source=_OWN,
           definition="The shift within a second at which the two envelopes agree best, without its sign."),
    Column("onset_f1", "Onset F1", "high", "clip", control=True, source="mir_eval.onset",
           definition="Onsets of the generated sound against true ones, matched one to one within 0.1 s."),
    Column("onset_accuracy_published", "Onset accuracy (published)", "high", "clip", control=True, source=_CONDFOLEY,
           definition="Share of true onsets that find a generated one within 0.1 s; false alarms are free."),
    Column("onset_ap_published", "Onset AP (published)", "high", "clip", control=True, source=_CONDFOLEY,
           definition="Average precision of generated onsets by loudness; misses hardly count."),
    Column("onset_count_published", "Onset count agrees (published)", "high", "clip", control=True, source=_CONDFOLEY,
           definition="Share of clips with as many generated as true onsets."),
    Column("onset_f1_matched", "Onset F1 (CondFoleyGen's onsets, one to one)", "high", "clip", control=True,
           source=_OWN,
           definition="F1 of the same onsets, matched one to one within 0.1 s."),
    Column("onset_ap_matched", "Onset AP (misses count, one to one)", "high", "clip", control=True, source=_OWN,
           definition="Average precision of the same onsets, with every missed one counted."),
    Column("aa_align_published", "AA-Align (published)", "high", "clip", control=True, source=_STA,
           definition="Generated onsets near some true one, over the union; several may share one: it can pass 1."),
    Column("aa_align_matched", "AA-Align (one to one)", "high", "clip", control=True, source=_OWN,
           definition="The same as intersection over union of a one-to-one matching within 0.1 s."),
)
SOUND = (
    Column("log_spectral_distance_db", "Log-spectral distance", "low", "clip", "dB", 2, source=_OWN,
           definition="Root mean square difference of log spectra, each relative to its maximum; mean over frames."),
    Column("sound_class", "Sound class (embedded tagger, top-1)", "high", "clip", source=_OWN,
           definition="Share of clips with one known class that the embedded tagger gives that class."),
)
LEVEL = (
    Column("loudness_dbfs", "Loudness (RMS)", "none", "clip", "dBFS", 1, source=_OWN,
           definition="Root mean square level; a full-scale sine has -3 dBFS."),
    Column("clipping_rate", "Clipped samples", "low", "clip", "", 5, source=_OWN,
           definition="Share of samples at or beyond full scale."),
)


def flow_columns(variants: Sequence[str]) -> tuple[Column, ...]:
    """AV-Align by each variant of optical flow. Only that at full size is the published score; what a faster one gives
    has a name of its own and shares no column with it."""
    found: list[Column] = []
    for variant in variants:
        if variant == FULL:
            found.append(Column("av_align_published", "AV-Align (published)", "high", "clip", control=True,
                                source=_TEMPO, definition=_AV_ALIGN))
        suffix, words = ("", "") if variant == FULL else (f"_{variant}", f", {variant} flow")
        if variant != FULL:
            found.append(Column(f"av_align{suffix}", f"AV-Align ({variant} flow)", "high", "clip", control=True,
                                source=_OWN, definition=f"{_AV_ALIGN} Flow of smaller pictures: another figure."))
        found.append(Column(f"av_align{suffix}_matched", f"AV-Align (one to one, ±100 ms{words})", "high", "clip",
                            control=True, source=_OWN, definition="The same peaks, matched one to one within 0.1 s."))
    return tuple(found)


def all_columns(backbones: Mapping[str, tuple[str, bool]], flows: Sequence[str], labelled: bool) -> list[Column]:
    """Every column of an evaluation, in the order to be shown. backbones: {name: (title, has classes)}; labelled: the
    class of some clips is known."""
    sound = [column for column in SOUND if labelled or column.key != "sound_class"]
    heard = [backbone_columns(name, title, classes) for name, (title, classes) in backbones.items()]
    return [*TIMING, *flow_columns(flows), *sound, *chain.from_iterable(heard), *LEVEL]


def backbone_columns(name: str, title: str, has_classes: bool) -> tuple[Column, ...]:
    """The figures that a backbone called ``name`` allows, ``title`` as a reader knows it."""
    columns = [
        Column(f"frechet_{name}", f"Fréchet distance ({title})", "low", "set",
               source="Heusel et al., 2017; Kilgour et al., 2019",
               definition="Distance of two Gaussians fitted to what the network hears in generated and true sounds."),
        Column(f"fad_infinity_{name}", f"FAD-∞ ({title})", "low", "set", source="Gui et al., 2024",
               definition="The same, extrapolated to endlessly many clips."),
    ]
    if has_classes:
        columns += [
            Column(f"kl_{name}", f"KL, exact ({title})", "low", "clip", control=True,
                   source="Iashin and Rahtu, 2021",
                   definition="KL divergence of generated sound's class probabilities from the true sound's, in nats."),
            Column(f"inception_{name}", f"Inception score ({title})", "high", "set",
                   source="Salimans et al., 2016",
                   definition="How sure the classes of single sounds are, and how varied those of all; one split."),
        ]
    else:
        columns.append(Column(f"cosine_{name}", f"Cosine to the true sound ({title})", "high", "clip", control=True,
                              source=_OWN, definition="Cosine of what the network hears in generated and true sound."))
    return tuple(columns)


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
