"""The table of metrics: one row each, which figures.json, evaluate.py, compare.py and docs/evaluation.md all follow.

A row of one's own is registered by :func:`register_metric`, in a module that ``$VTA_SAM_METRICS`` names
(docs/evaluation.md).

    python -m vta_sam.evaluation.metric_table              # writes the table into docs/evaluation.md
    python -m vta_sam.evaluation.metric_table --print      # prints it, with rows of your own
"""

from __future__ import annotations

import argparse
import importlib
import os
import sys
from collections.abc import Collection, Mapping, Sequence
from functools import partial
from operator import attrgetter
from pathlib import Path

import numpy as np

from ..metrics.alignment import (
    FULL, FlowTrajectory, aa_align_matched, aa_align_published, av_align_matched, av_align_published,
    av_align_sta_published, event_f1, event_scores, flow_peaks_s,
)
from ..metrics.kernel_audio_distance import kad_of_clips
from ..metrics.onsets import onset_errors, onset_f1, onset_scores_matched, onset_scores_published
from ..metrics.set_scores import (
    cosine, fad_infinity_of_clips, fad_infinity_published_of_clips, frechet_of_clips, inception_of_clips,
    kernel_of_clips, kl_divergence, kl_eps1e_6, kl_sigmoid, kl_sigmoid_eps1e_6,
)
from ..metrics.signal import MAX_LAG_S, Level, correlation, envelope_lag, log_spectral_distance_db
from ..metrics.sync_network import sync_answer
from ..runtime.errors import InputError
from ..runtime.files import write_text
from .metric import GROUPS, NEEDS, Metric

MODULES_VARIABLE = "VTA_SAM_METRICS"


def absolute_lag_s(generated: np.ndarray, true: np.ndarray, generated_level: Level, true_level: Level) -> float | None:
    """⇒ |lag| of two envelopes in seconds. A silent sound under a clip that isn't silent is late by the whole range of
    lags, so that silence wins nothing."""
    lag = envelope_lag(generated, true)
    if lag is not None:
        return abs(lag[0])
    return MAX_LAG_S if generated_level.silent and not true_level.silent else None


def signed_lag_s(generated: np.ndarray, true: np.ndarray) -> float | None:
    """⇒ the lag of two envelopes in seconds, positive where the generated sound is late."""
    lag = envelope_lag(generated, true)
    return None if lag is None else lag[0]


def flow_published(onsets_s: np.ndarray, flow: FlowTrajectory) -> float | None:
    """⇒ AV-Align of onsets and a video's flow, as published."""
    return av_align_published(onsets_s, flow_peaks_s(flow), flow.fps)


def flow_sta_published(onsets_s: np.ndarray, flow: FlowTrajectory) -> float | None:
    """⇒ AV-Align by STA-V2A's copy."""
    return av_align_sta_published(onsets_s, flow_peaks_s(flow), flow.fps)


def flow_matched(onsets_s: np.ndarray, flow: FlowTrajectory) -> float | None:
    """⇒ AV-Align, matched one to one."""
    return av_align_matched(onsets_s, flow_peaks_s(flow))


def class_agrees(logits: np.ndarray, label: str, classes: Sequence[str]) -> float | None:
    """⇒ 1 where the most probable class is the label, else 0; None for a label that is none of the classes."""
    return float(classes[int(logits.argmax())] == label) if label in classes else None


def mean_cosine(generated: np.ndarray, true: np.ndarray) -> float | None:
    """Embeddings (R, D) of two sounds ⇒ the cosine of their means; None where one has no row."""
    if not len(generated) or not len(true):
        return None
    return float(cosine(generated.mean(0, keepdims=True), true.mean(0, keepdims=True))[0])


def kl_of_clip(true: np.ndarray, generated: np.ndarray) -> float:
    """Logits (C,) ⇒ KL divergence of their softmax, in nats."""
    return float(kl_divergence(true[None], generated[None])[0])


def kl_eps1e_6_of_clip(true: np.ndarray, generated: np.ndarray) -> float:
    """The same as ``audioldm_eval`` has it."""
    return float(kl_eps1e_6(true[None], generated[None])[0])


def kl_sigmoid_of_clip(true: np.ndarray, generated: np.ndarray) -> float:
    """av-benchmark's "KL sigmoid"."""
    return float(kl_sigmoid(true[None], generated[None])[0])


def kl_sigmoid_eps1e_6_of_clip(true: np.ndarray, generated: np.ndarray) -> float:
    """``audioldm_eval``'s "KL sigmoid"."""
    return float(kl_sigmoid_eps1e_6(true[None], generated[None])[0])


_CONDFOLEY = "CondFoleyGen (Du et al., 2023), predict_onset.py"
_STA = "STA-V2A (Ren et al., 2024)"
_TEMPO = "TempoTokens (Yariv et al., 2023), av_align.py"
_AUDIOLDM = "audioldm_eval"
_OWN = "this project"
_AV_ALIGN = "Onsets that meet a peak of optical flow within a frame, over the union of both."
_KL = "KL divergence of generated sound's class probabilities from the true sound's"

_timing = partial(Metric, better="high", scope="clip", control=True, group="Timing", in_figures=False)
_flow = partial(_timing, needs=("generated.librosa_onsets_s", "true.flow"))
_events = partial(_timing, source=_OWN, backbone="tiny", function=event_scores,
                  needs=("true.objects", "generated.sound_events", "backbone.classes"))
_pair = partial(Metric, scope="clip", control=True, in_figures=False)
_set = partial(Metric, scope="set", in_figures=False)
_FOLEY = ("true.foley", "generated.foley")
# version 2: of the whole file at its own rate; 1 was of the sound as the loading policy reads it
_PUBLISHED_FOLEY = ("true.published_foley", "generated.published_foley")
_ONSETS = ("true.librosa_onsets_s", "generated.librosa_onsets_s")
_PUBLISHED_ONSETS = ("true.published_onsets_s", "generated.published_onsets_s")
_PUBLISHED_FLOW = ("generated.published_onsets_s", "true.flow")
_TRACKS = ("generated.track", "true.pictures", "generated.level")
_LOGITS = ("true.logits", "generated.logits")
_EMBEDDINGS = ("true.embeddings", "generated.embeddings")

METRICS: tuple[Metric, ...] = (
    _timing("envelope_correlation", "Envelope correlation", source=_OWN, in_figures=True,
            needs=("generated.envelope", "true.envelope"), function=correlation,
            definition="Pearson correlation of both energy envelopes; a constant envelope scores 0."),
    _timing("envelope_lag_s", "Envelope lag, absolute", better="low", unit="s", source=_OWN,
            needs=("generated.envelope", "true.envelope", "generated.level", "true.level"), function=absolute_lag_s,
            definition="The shift within a second at which the two envelopes agree best, without its sign; silence "
                       "under sound: 1 s."),
    _timing("onset_f1", "Onset F1", source="mir_eval.onset", in_figures=True,
            needs=("true.events_s", "generated.onsets_s"), function=onset_f1,
            definition="Onsets of the generated sound against true ones, matched one to one within 0.1 s. True ones: "
                       "events of an embedded scene, else onsets detected in the true sound."),
    _timing("envelope_lag_signed_s", "Envelope lag", better="none", unit="s", source=_OWN,
            needs=("generated.envelope", "true.envelope"), function=signed_lag_s,
            definition="The same with its sign: positive where the generated sound is late."),
    _timing("onset_error_ms", "Onset error", better="none", unit="ms", decimals=1, source=_OWN,
            needs=("true.events_s", "generated.onsets_s"), function=onset_errors, attribute="median_ms",
            definition="Median over a clip of generated − true onset time, positive where the sound is late; matched "
                       "one to one within 250 ms, near pairs first. The detector itself is 9 ms late."),
    _timing("onset_error_absolute_ms", "Onset error, absolute", better="low", unit="ms", decimals=1, source=_OWN,
            needs=("true.events_s", "generated.onsets_s"), function=onset_errors, attribute="absolute_ms",
            definition="Median of the same errors without their signs."),
    _timing("onset_in_itu_window", "Onsets within +45/−125 ms", source="ITU-R BT.1359; this project",
            needs=("true.events_s", "generated.onsets_s"), function=onset_errors, attribute="in_itu_window",
            definition="Share of true onsets with a generated one of their own from 45 ms before (sound leads) to "
                       "125 ms after them (sound lags), which viewers don't notice; false alarms are free."),
    _events("event_f1", "Event F1 (embedded detector)", attribute="f1",
            definition="What and when: detected events of the generated sound against the scene's, matched one to one "
                       "within each class and 0.1 s. Only where the events are known."),
    _events("event_f1_50ms", "Event F1 within 50 ms (embedded detector)", attribute="f1_50ms",
            definition="The same within 0.05 s."),
    _events("events_asked", "Asked events made (embedded detector)", attribute="asked",
            definition="Share of the events of named objects that are matched within 0.1 s."),
    _events("events_unasked", "Unasked events (embedded detector)", better="low", attribute="unasked",
            definition="Share of the generated events whose class the caption doesn't name."),
    _events("unnamed_sounds", "Unnamed object sounds (embedded detector)", better="low", attribute="unnamed",
            proportion=True, definition="Share of clips in which a thing sounds that is in view and not named; of "
                                        "clips with such a thing."),
    _timing("event_f1_{backbone}", "Event F1 ({title})", per_backbone="with events", source=_OWN, function=event_f1,
            needs=("true.sound_events", "generated.sound_events"),
            definition="The same of events that the network detects in both sounds."),
    _timing("sync_probability", "In step with the pictures, probability", source=_OWN, needs=_TRACKS,
            function=sync_answer, attribute="probability",
            definition="Of the sync network, that the sound fits the pictures within 40 ms; it looks at the clip's "
                       "features, not at the true sound. Silence: 0."),
    _timing("sync_offset_s", "Offset from the pictures, absolute", better="low", unit="s", source=_OWN, needs=_TRACKS,
            function=sync_answer, attribute="distance_s",
            definition="The sync network's likeliest shift of the sound within 0.6 s, without its sign; silence: 0.6 "
                       "s."),
    _timing("onset_accuracy_published", "Onset accuracy (published)", source=_CONDFOLEY,
            needs=_PUBLISHED_FOLEY, version=2, function=onset_scores_published, attribute="accuracy",
            definition="Share of true onsets that find a generated one within 0.1 s; false alarms are free. Without "
                       "the published cut to 2 s."),
    _timing("onset_ap_published", "Onset AP (published)", source=_CONDFOLEY,
            needs=_PUBLISHED_FOLEY, version=2, function=onset_scores_published, attribute="average_precision",
            definition="Average precision of generated onsets by loudness; misses hardly count."),
    _timing("onset_count_published", "Onset count agrees (published)", source=_CONDFOLEY,
            needs=_PUBLISHED_FOLEY, version=2, function=onset_scores_published, attribute="count_agrees",
            proportion=True,
            definition="Share of clips with as many generated as true onsets."),
    _timing("onset_f1_matched", "Onset F1 (CondFoleyGen's onsets, one to one)", source=_OWN,
            needs=_FOLEY, function=onset_scores_matched, attribute="f1",
            definition="F1 of the same onsets, matched one to one within 0.1 s."),
    _timing("onset_ap_matched", "Onset AP (misses count, one to one)", source=_OWN,
            needs=_FOLEY, function=onset_scores_matched, attribute="average_precision",
            definition="Average precision of the same onsets, with every missed one counted."),
    _timing("aa_align_published", "AA-Align (published)", source=f"{_STA}, EvalTools/aa_align.py",
            needs=_PUBLISHED_ONSETS, version=2, function=aa_align_published,
            definition="Generated onsets near some true one, over the union; several may share one: it can pass 1."),
    _timing("aa_align_matched", "AA-Align (one to one)", source=_OWN, needs=_ONSETS, function=aa_align_matched,
            definition="The same as intersection over union of a one-to-one matching within 0.1 s."),
    _flow("av_align_published", "AV-Align (published)", flow=FULL, source=_TEMPO, needs=_PUBLISHED_FLOW, version=2,
          function=flow_published, definition=_AV_ALIGN),
    _flow("av_align_matched", "AV-Align (one to one, ±100 ms)", flow=FULL, source=_OWN, function=flow_matched,
          definition="The same peaks, matched one to one within 0.1 s."),
    _flow("av_align_sta_published", "AV-Align (STA-V2A's copy)", flow=FULL, source=_STA, needs=_PUBLISHED_FLOW,
          version=2, function=flow_sta_published, standard=False,
          definition="A peak of flow meets any number of onsets: no intersection over union, it can pass 1."),
    _flow("av_align_fast", "AV-Align (fast flow)", flow="fast", source=_OWN, function=flow_published,
          definition=f"{_AV_ALIGN} Flow of smaller pictures: another figure."),
    _flow("av_align_fast_matched", "AV-Align (one to one, ±100 ms, fast flow)", flow="fast", source=_OWN,
          function=flow_matched, definition="The same peaks, matched one to one within 0.1 s."),
    _pair("log_spectral_distance_db", "Log-spectral distance", better="low", unit="dB", decimals=2, control=False,
          group="Sound", source=_OWN, needs=("true.waveform", "generated.waveform"), function=log_spectral_distance_db,
          definition="Root mean square difference of log spectra, each relative to its maximum; mean over frames. FFT "
                     "of 2048 samples every 512, floor 80 dB below the maximum."),
    _pair("sound_class", "Sound class (embedded tagger, top-1)", better="high", control=False, group="Sound",
          source=_OWN, backbone="tiny", needs=("generated.logits", "true.label", "backbone.classes"),
          function=class_agrees, in_figures=True, proportion=True,
          definition="Share of clips with one known class that the embedded tagger gives that class."),
    _set("frechet_{backbone}", "Fréchet distance ({title})", better="low", per_backbone="all", needs=_EMBEDDINGS,
         function=frechet_of_clips, source="Heusel et al., 2017; Kilgour et al., 2019",
         definition="Distance of two Gaussians fitted to the embeddings of generated and true sounds; float64, "
                    "unbiased covariances, nuclear norm (no sqrtm)."),
    _set("fad_infinity_{backbone}", "FAD-∞ ({title})", better="low", per_backbone="all", needs=_EMBEDDINGS,
         function=fad_infinity_of_clips, source="Gui et al., 2024", version=2,
         definition="The same, extrapolated over 1 / clips to endlessly many, without replacement; from 50 clips on; "
                    "no interval; 0 where the line ends below, as for a set against itself."),
    _set("fad_infinity_published_{backbone}", "FAD-∞ (published, {title})", better="low", per_backbone="all",
         needs=_EMBEDDINGS, function=fad_infinity_published_of_clips, source="fadtk, fad.py", standard=False,
         version=2,
         definition="Rows drawn with replacement, so that it is the distance of this very set, not of an endless one; "
                    "from 500 rows on."),
    _set("kad_{backbone}", "KAD ({title})", better="low", per_backbone="all", needs=_EMBEDDINGS, function=kad_of_clips,
         source="Chung et al., 2025; kadtk",
         definition="Kernel audio distance: 100 times the unbiased squared maximum mean discrepancy; Gaussian kernel, "
                    "σ the median distance of the true embeddings. Of equal distributions it is 0 in the mean, and as "
                    "often slightly below 0. Interval by a jackknife over clips, at that σ."),
    _set("kernel_distance_{backbone}", "Kernel distance ({title})", better="low", per_backbone="all", decimals=4,
         needs=_EMBEDDINGS, function=kernel_of_clips, source="Bińkowski et al., 2018; metrics/kid.py", standard=False,
         definition="Squared maximum mean discrepancy with a cubic kernel, over 100 subsets of 100 rows."),
    _pair("kl_{backbone}", "KL, exact ({title})", better="low", per_backbone="with classes",
          needs=_LOGITS, function=kl_of_clip, source="Iashin and Rahtu, 2021",
          definition=f"{_KL}, in nats; softmax, exact."),
    _pair("kl_eps1e_6_{backbone}", "KL (published with 1e-6, {title})", better="low", per_backbone="with classes",
          needs=_LOGITS, function=kl_eps1e_6_of_clip, source=_AUDIOLDM, standard=False,
          definition="The same with 1e-6 added to the generated softmax, which caps a term at 13.8 nats."),
    _pair("kl_sigmoid_{backbone}", "KL sigmoid (av-benchmark, {title})", better="low", per_backbone="with classes",
          needs=_LOGITS, function=kl_sigmoid_of_clip, source="av-benchmark", standard=False,
          definition="Of sigmoids, without the terms of 1 − s: no divergence, it can be negative."),
    _pair("kl_sigmoid_eps1e_6_{backbone}", "KL sigmoid (published with 1e-6, {title})", better="low",
          per_backbone="with classes", needs=_LOGITS, function=kl_sigmoid_eps1e_6_of_clip, source=_AUDIOLDM,
          standard=False, definition="The same with 1e-6 added to the generated sigmoid."),
    _set("inception_{backbone}", "Inception score ({title})", better="high", per_backbone="with classes",
         needs=("generated.logits",), function=inception_of_clips, source="Salimans et al., 2016",
         definition="How sure the classes of single sounds are, and how varied those of all; one split, so that order "
                    "doesn't count. Ten splits with seed 2020 stand in detail."),
    _pair("cosine_{backbone}", "Cosine to the true sound ({title})", better="high", per_backbone="without classes",
          needs=("generated.embeddings", "true.embeddings"), function=mean_cosine, source=_OWN,
          definition="Cosine of the mean embeddings of generated and true sound."),
    _pair("loudness_dbfs", "Loudness (RMS)", better="none", unit="dBFS", decimals=1, control=False, group="Level",
          source=_OWN, needs=("generated.level",), function=attrgetter("rms_dbfs"),
          definition="Root mean square level; a full-scale sine has -3 dBFS."),
    _pair("clipping_rate", "Clipped samples", better="low", decimals=5, control=False, group="Level", source=_OWN,
          needs=("generated.level",), function=attrgetter("clipping_rate"),
          definition="Share of samples at or beyond full scale."),
)

_REGISTERED: dict[str, Metric] = {}


def register_metric(metric: Metric) -> Metric:
    """Add a row to the table ⇒ the row.

    Raises:
        InputError: it has no function, or another row has its key.
    """
    if metric.function is None or not metric.needs:
        raise InputError(f"metric {metric.key!r}: say function= and needs=; there is {', '.join(NEEDS)}")
    known = next((m for m in (*METRICS, *_REGISTERED.values()) if m.key == metric.key), None)
    if known is not None and (known in METRICS or _origin(known) != _origin(metric)):
        raise InputError(f"metric {metric.key!r} is there already ({'.'.join(_origin(known))}); choose another key")
    _REGISTERED[metric.key] = metric
    return metric


def _origin(metric: Metric) -> tuple[str, str]:
    return (getattr(metric.function, "__module__", ""), getattr(metric.function, "__qualname__", ""))


def metric_table() -> list[Metric]:
    """⇒ every row: the standard ones, then those registered by the modules that ``$VTA_SAM_METRICS`` names.

    Raises:
        InputError: one of these modules can't be imported.
    """
    for name in filter(None, os.environ.get(MODULES_VARIABLE, "").replace(" ", "").split(",")):
        try:
            importlib.import_module(name)
        except ImportError as error:
            raise InputError(f"${MODULES_VARIABLE} names the module {name!r}, which can't be imported ({error}); is "
                             "its folder in $PYTHONPATH?") from error
    return [*METRICS, *_REGISTERED.values()]


def metrics_for(backbones: Mapping[str, tuple[str, bool]], flows: Sequence[str] = (), labelled: bool = True,
                everything: bool = False, detectors: Collection[str] = ()) -> list[Metric]:
    """⇒ the metrics of an evaluation, in the order to be shown.

    Args:
        backbones: {name: (title, has classes)}.
        flows: variants of optical flow.
        labelled: whether the class of some clip is known; without, metrics that need it are left out.
        everything: metrics that are not standard too.
        detectors: names of the backbones with sound events.
    """
    table = [row for row in metric_table() if row.standard or everything]
    found: list[Metric] = []
    for group in GROUPS:
        rows = [row for row in table if row.group == group and (labelled or not row.needs_label)]
        found += [row for row in rows if not row.per_backbone and not row.flow
                  and (not row.backbone or row.backbone in backbones)]
        found += [row for flow in flows for row in rows if row.flow == flow]
        for name, (title, classes) in backbones.items():
            wanted = {"all", "with classes" if classes else "without classes"}
            wanted |= {"with events"} if name in detectors else set()
            found += [row.of_backbone(name, title) for row in rows if row.per_backbone in wanted]
    return found


def figure_metrics() -> list[Metric]:
    """⇒ the metrics of training's figures stage, which detects no events."""
    everything = metrics_for({"tiny": ("embedded tagger", True)}, everything=True)
    return [metric for metric in everything if metric.in_figures and not metric.needs_events]


# ---------------------------------------------------------------------- the table in docs/evaluation.md

PAGE = Path(__file__).resolve().parents[2] / "docs" / "evaluation.md"
BEGIN = "<!-- metrics: written by python -m vta_sam.evaluation.metric_table -->"
END = "<!-- end of metrics -->"


def markdown_table(metrics: Sequence[Metric]) -> str:
    """⇒ a Markdown table, a line per row, in the order of an evaluation's table."""
    lines = ["| metric | better | definition | source |", "|---|---|---|---|"]
    ordered = sorted(metrics, key=lambda metric: GROUPS.index(metric.group))
    return "\n".join([*lines, *map(_line, ordered)])


def page_with_table(text: str, metrics: Sequence[Metric]) -> str:
    """A page's text ⇒ the same with the table between the two markers. Raises InputError as :func:`with_table`."""
    return with_table(text, BEGIN, markdown_table(metrics), END)


def with_table(text: str, begin: str, table: str, end: str) -> str:
    """The text of docs/evaluation.md ⇒ the same with a table between two lines of it.

    Raises:
        InputError: the page has not both lines.
    """
    before, found, rest = text.partition(begin)
    _, ended, after = rest.partition(end)
    if not found or not ended:
        raise InputError(f"{PAGE} has no lines {begin} and {end}, between which a table stands")
    return f"{before}{begin}\n{table}\n{end}{after}"


def _line(metric: Metric) -> str:
    name = f"`{metric.key.replace('{backbone}', '*')}`"
    better = " ".join(filter(None, (metric.arrow, metric.unit)))
    title = metric.title.replace(" ({title})", "").replace(", {title})", ")")
    more = " Only with `metrics=all`." if not metric.standard else ""
    figures = " Also in figures.json." if metric.in_figures else ""
    cells = (name, better, f"{title}: {metric.definition}{figures}{more}", metric.source)
    return f"| {' | '.join(cell.replace('|', chr(92) + '|') for cell in cells)} |"


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description="Write the table of metrics into docs/evaluation.md.")
    parser.add_argument("--print", action="store_true", dest="shown", help="print it, with registered rows, instead")
    if parser.parse_args(arguments).shown:
        print(markdown_table(metric_table()))
        return
    write_text(PAGE, page_with_table(PAGE.read_text(encoding="utf-8"), METRICS))


if __name__ == "__main__":
    try:
        main()
    except InputError as error:
        sys.exit(str(error))
