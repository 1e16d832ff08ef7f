"""The figures of an evaluation: what each is called, which way is better, what it needs, and where it is defined."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import chain
from typing import Literal

from ..metrics.flow import FULL

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
