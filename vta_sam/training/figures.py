"""The figures at the end of a run: timing, class and level of a finished model's sound, and what bounds them.

Held-out clips are generated here; they are scored by the rows of the table of metrics, as evaluate.py does.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from itertools import islice
from typing import Any

import numpy as np
import torch

from ..clip import ClipFeatures
from ..dataset.shards.batch import ClipBatch, collate, window_of
from ..dataset.shards.datamodule import consecutive
from ..dataset.shards.reader import ShardReader
from ..embedded.tiny_networks import TinyBackbone, load_tagger
from ..evaluation.aggregate import SetFigures, figure_of_scores
from ..evaluation.metric import ClipTruth, Metric, SoundMeasurements, clip_values, waveform_value
from ..evaluation.metric_table import figure_metrics
from ..evaluation.results import Figure
from ..evaluation.sounds import WaveformFeatures
from ..generation.pipeline import Pipeline
from ..media.audio import resample
from ..mel import SAMPLE_RATE_HZ
from ..metrics.intervals import Resampling, bootstrap_interval, derangement, interval_json
from ..metrics.signal import ErrorShare, mel_error_share
from ..runtime.cluster.preemption import Preemption
from ..runtime.randomness import seed_of
from ..vae.codec import MelCodec
from .callbacks import in_batches

Tick = Callable[[int], None]
TINY = "tiny"  # the backbone of this stage: the embedded tagger, which is shipped
_PARTS = ("score", "control", "score_minus_control", "ceiling")  # of a Figure


@dataclass
class HeldOut:
    """Clips of the test split, cut to the model's clip.

    Args:
        records: as stored.
        batch: the same, collated.
        onsets_s: the true onsets of each clip.
        train_mean_mel: (64,) per-bin mean of the training set's normalised log-mels, about which the VAE's error share
            is taken.
        classes: of the tagger.
    """

    records: list[ClipFeatures]
    batch: ClipBatch
    onsets_s: Sequence[np.ndarray]
    train_mean_mel: np.ndarray | None
    classes: Sequence[str] = field(default_factory=lambda: load_tagger().classes)

    @property
    def single(self) -> list[int]:
        """Rows with one object only, of one of the tagger's classes."""
        return [i for i, r in enumerate(self.records) if r.label in self.classes and len(r.objects) == 1]

    @property
    def labels(self) -> list[str]:
        """The classes of these rows."""
        return [self.records[i].label for i in self.single]


def held_out(reader: ShardReader, train: ShardReader, pipeline: Pipeline, clips: int,
             onsets_of: Callable[[ClipFeatures, np.ndarray], np.ndarray]) -> HeldOut:
    """⇒ the first ``clips`` of a split."""
    records = [reader.record(*place)[0] for place in islice(consecutive(reader.counts), clips)]
    batch = collate([window_of(r, pipeline.spec, seed_of(r.key)) for r in records], pipeline.spec)
    assert batch.waveform is not None
    onsets = [onsets_of(r, resample(w, pipeline.spec.sample_rate_hz, SAMPLE_RATE_HZ))
              for r, w in zip(records, batch.waveform.numpy())]
    if not isinstance(pipeline.codec, MelCodec):
        return HeldOut(records, batch, onsets, None)
    total, count = np.zeros(pipeline.spec.n_mels), 0
    for place in islice(consecutive(train.counts), 256):
        with torch.no_grad():
            mel = pipeline.codec.mel_of(torch.from_numpy(train.record(*place)[0].waveform)[None].to(pipeline.device))
        total += mel[0, 0].double().sum(dim=0).cpu().numpy()
        count += mel.shape[2]
    return HeldOut(records, batch, onsets, (total / count).astype(np.float32))


@dataclass
class Sounds:
    """What a model makes of held-out clips; in processes other than the first nothing.

    Args:
        generated: (n, samples).
        reconstructed: (n, samples), the true sound through codec and vocoder: the ceiling.
        error_share: share of the true mels' variance that the codec loses; None: it is none of mels.
        swapped: (single, samples), generated for :func:`swap_objects`' clips; None: these have fewer than two classes.
    """

    generated: np.ndarray
    reconstructed: np.ndarray
    error_share: float | None = None
    swapped: np.ndarray | None = None


@dataclass
class SoundMaker:
    """Makes the sounds that figures are measured on.

    Every process makes its share of the batches, and the first gets all. A batch is whole in one process, so that
    sounds are the same for any number of processes.

    Args:
        pipeline: the finished model.
        batch_size: clips of a batch.
        preemption: knows the processes of the job; a request to stop ends the work between batches.
        tick: called with the numbers of clips made, in the first process.
    """

    pipeline: Pipeline
    batch_size: int
    preemption: Preemption
    tick: Tick

    def make(self, clips: HeldOut, seed: int) -> Sounds:
        """All of them. Every process calls it."""
        assert clips.batch.waveform is not None
        return Sounds(self.generate(clips.batch, seed), self.through_codec(clips.batch.waveform),
                      self.codec_error_share(clips),
                      self.generate(swap_objects(clips, seed)[0], seed) if len(set(clips.labels)) >= 2 else None)

    def generate(self, batch: ClipBatch, seed: int) -> np.ndarray:
        """⇒ (B, samples), one sound per clip, seeded by (seed, key, sample 0) as ``generate.py shards=`` does."""
        def made(rows: range) -> np.ndarray:
            part = batch.select(rows)
            return self.pipeline.generate_batch(part, [seed_of(seed, key, 0) for key in part.keys]).numpy()

        return self._joined(len(batch), made)

    def through_codec(self, waveforms: torch.Tensor) -> np.ndarray:
        """True sound (B, samples) through codec and vocoder ⇒ sound (B, samples)."""
        def made(rows: range) -> np.ndarray:
            return self.pipeline.decode(self.pipeline.encode(waveforms[rows.start:rows.stop])).numpy()

        return self._joined(len(waveforms), made)

    def codec_error_share(self, clips: HeldOut) -> float | None:
        """The share of the true mels' variance that the codec loses; None: it is none of mels."""
        codec, waveforms, mean_mel = self.pipeline.codec, clips.batch.waveform, clips.train_mean_mel
        if not isinstance(codec, MelCodec) or mean_mel is None or waveforms is None:
            return None

        @torch.no_grad()
        def made(rows: range) -> list[ErrorShare]:
            mel = codec.mel_of(waveforms[rows.start:rows.stop].to(self.pipeline.device))
            with self.pipeline.computing(codec):
                decoded = codec.decode(codec.moments(mel).chunk(2, dim=1)[0])[:, 0].float().cpu().numpy()
            return [mel_error_share(t, d, mean_mel) for t, d in zip(mel[:, 0].cpu().numpy(), decoded)]

        rounds = self.preemption.parted(in_batches(len(waveforms), self.batch_size), made)
        total = sum((share for found in rounds for shares in found for share in shares), start=ErrorShare())
        return round(total.share, 4)

    def _joined(self, clips: int, made: Callable[[range], np.ndarray]) -> np.ndarray:
        parts: list[np.ndarray] = []
        for found in self.preemption.parted(in_batches(clips, self.batch_size), made):
            parts += found
            self.tick(sum(map(len, found)))
        return np.concatenate(parts) if parts else np.empty((0, 0), np.float32)


def swap_objects(clips: HeldOut, seed: int) -> tuple[ClipBatch, list[int], list[str]]:
    """Single-object clips with another class's word in place of their own, among the objects and in the caption: same
    pictures, same probabilities.

    ⇒ (batch, the rows of ``clips`` it was made from, the classes now named).
    """
    rows = clips.single
    embeddings = {clips.records[i].label: clips.batch.object_embedding[i, 0] for i in rows}
    names = sorted(embeddings)
    batch = clips.batch.select(rows)
    random = np.random.default_rng(seed)
    swapped = []
    embedding, caption = batch.object_embedding.clone(), batch.caption_tokens.clone()
    for row, i in enumerate(rows):
        others = [name for name in names if name != clips.records[i].label]
        swapped.append(str(random.choice(others)))
        own, embedding[row, 0] = embedding[row, 0].clone(), embeddings[swapped[-1]]
        if caption.shape[2] == len(own):  # the tiny encoder says a thing by one vector, in captions as among objects
            said = (caption[row] - own).abs().amax(dim=1) < 1e-3
            caption[row, said] = embedding[row, 0]
    return batch.replace(object_embedding=embedding, caption_tokens=caption), rows, swapped


class Scoring:
    """Scores sounds of held-out clips.

    Args:
        clips: at least two.
        seed: of the controls' derangement.
        metrics: rows of the table of metrics.
    """

    def __init__(self, clips: HeldOut, seed: int, metrics: Sequence[Metric] | None = None) -> None:
        assert clips.batch.waveform is not None
        self.clips, self.seed = clips, seed
        self.metrics = figure_metrics() if metrics is None else list(metrics)
        self.backbone = TinyBackbone()
        self.classes = {TINY: self.backbone.classes}
        single = set(clips.single)
        of_all = any(metric.backbone and not metric.needs_label for metric in self.metrics)
        self._embedded = set(range(len(clips.records))) if of_all else single
        self.rate_hz = clips.batch.spec.sample_rate_hz
        self._true = np.stack([self._at_figures_rate(wave) for wave in clips.batch.waveform.numpy()])
        labels = [record.label if i in single else "" for i, record in enumerate(clips.records)]
        self.truths = [ClipTruth(sound, onsets_s, label=label) for sound, onsets_s, label
                       in zip(self.measure(clips.batch.waveform.numpy()), clips.onsets_s, labels)]

    def _at_figures_rate(self, waveform: np.ndarray) -> np.ndarray:
        """At the one rate that figures are computed at, so that models of different rates can be compared."""
        return resample(waveform, self.rate_hz, SAMPLE_RATE_HZ)

    def measure(self, waveforms: np.ndarray, rows: Sequence[int] | None = None) -> list[SoundMeasurements]:
        """Waveforms (n, samples), at the model's rate, of these rows of the clips (default: of all) ⇒ what metrics need
        of them."""
        sounds = []
        for row, own in zip(range(len(waveforms)) if rows is None else rows, waveforms):
            wave = self._at_figures_rate(own)
            sound = SoundMeasurements(WaveformFeatures(wave))
            sound.pair_values = {metric.key: waveform_value(metric, self._true[row], wave)
                                 for metric in self.metrics if metric.needs_waveform}
            if row in self._embedded:
                [output] = self.backbone.embed([wave])
                assert output.logits is not None or not len(output.embeddings)
                sound.embeddings[TINY] = {"embeddings": output.embeddings}
                if output.logits is not None:
                    sound.embeddings[TINY]["logits"] = output.logits
            sounds.append(sound)
        return sounds

    def timing(self, sounds: Sequence[SoundMeasurements], rows: Sequence[int] | None = None) -> dict[str, Any]:
        """⇒ {metric of timing: its score, its control (a fixed derangement of the truth) and their paired
        difference}."""
        metrics = [metric for metric in self.metrics if metric.group == "Timing" and metric.scope == "clip"]
        figures = self._clip_figures(metrics, sounds, range(len(sounds)) if rows is None else rows)
        return {key: _json(figure) for key, figure in figures.items()}

    def sound_class(self, sounds: Sequence[SoundMeasurements], rows: Sequence[int],
                    labels: Sequence[str]) -> dict[str, Any]:
        """⇒ the share of these rows' sounds that the embedded tagger gives their label (top-1)."""
        [metric] = [metric for metric in self.metrics if metric.key == "sound_class"]
        truths = [dataclasses.replace(self.truths[row], label=label) for row, label in zip(rows, labels)]
        return interval_json(bootstrap_interval([
            clip_values([metric], sound, truth, self.classes)[metric.key] for sound, truth in zip(sounds, truths)
        ], proportion=metric.proportion))

    def others(self, generated: Sequence[SoundMeasurements], ceiling: Sequence[SoundMeasurements]) -> dict[str, Any]:
        """⇒ {metric: score, control, ceiling …} of the metrics that are not of timing; of one that needs labels, over
        the clips that have one, with the true sound's score."""
        figures: dict[str, Any] = {}
        for metric in (m for m in self.metrics if m.group != "Timing" or m.scope == "set"):
            rows = self.clips.single if metric.needs_label else list(range(len(self.truths)))
            if len(rows) < 2:
                continue
            if metric.scope == "set":
                figures[metric.key] = self._set_figure(metric, generated, ceiling)
                continue
            parts = {"ceiling": ceiling} | ({"true_sound": [truth.sound for truth in self.truths]}
                                            if metric.needs_label else {})
            figure = {name: _json(self._clip_figures([metric], [sounds[i] for i in rows], rows)[metric.key])
                      for name, sounds in {"generated": generated, **parts}.items()}
            figures[metric.key] = figure["generated"] | {name: figure[name]["score"] for name in parts}
        return figures

    def _clip_figures(self, metrics: Sequence[Metric], sounds: Sequence[SoundMeasurements],
                      rows: Sequence[int]) -> dict[str, Figure]:
        truths = [self.truths[row] for row in rows]
        partners = [truths[j] for j in derangement(len(truths), self.seed)]
        scores = [clip_values(metrics, sound, truth, self.classes) for sound, truth in zip(sounds, truths)]
        controls = [clip_values(metrics, sound, truth, self.classes, control=True)
                    for sound, truth in zip(sounds, partners)]
        return {metric.key: figure_of_scores([values[metric.key] for values in scores],
                                             [values[metric.key] for values in controls] if metric.control else None,
                                             proportion=metric.proportion)
                for metric in metrics}

    def _set_figure(self, metric: Metric, generated: Sequence[SoundMeasurements],
                    ceiling: Sequence[SoundMeasurements]) -> dict[str, Any]:
        keys = [record.key for record in self.clips.records]
        sets = SetFigures(dict(zip(keys, self.truths)), Resampling(self.seed))
        figure = sets.figure(metric, "generated", {key: [sound] for key, sound in zip(keys, generated)},
                             {key: [sound] for key, sound in zip(keys, ceiling)})
        return _json(figure) if figure.score is not None else {"score": None, "reason": figure.reason}


def levels(sounds: Sequence[SoundMeasurements]) -> dict[str, float]:
    """⇒ mean loudness, shares of silent clips and of clipped samples of a set."""
    found = [sound.features.level for sound in sounds]
    return {
        "mean_rms_dbfs": round(float(np.mean([x.rms_dbfs for x in found])), 2),
        "silent_clips": round(float(np.mean([x.silent for x in found])), 4),
        "clipping_rate": float(np.mean([x.clipping_rate for x in found])),
    }


def measure(clips: HeldOut, sounds: Sounds, seed: int) -> dict[str, Any]:
    """Every figure of a finished model. Needs at least two clips."""
    scoring = Scoring(clips, seed)
    generated, ceiling = scoring.measure(sounds.generated), scoring.measure(sounds.reconstructed)
    bounds = scoring.timing(ceiling)
    figures: dict[str, Any] = {
        "clips": len(clips.records),
        "timing": scoring.timing(generated),
        "ceiling": bounds,
        "level": {"generated": levels(generated), "true": levels([truth.sound for truth in scoring.truths])},
        "vae": {"mel_error_share": sounds.error_share, "onset_f1": bounds["onset_f1"]["score"]},
    }
    rows, labels = clips.single, clips.labels
    if rows:
        figures["vae"]["sound_class"] = scoring.sound_class([ceiling[i] for i in rows], rows, labels)
    figures |= scoring.others(generated, ceiling)
    if "sound_class" in figures:
        figures["sound_class"]["chance"] = 1 / len(clips.classes)
    if sounds.swapped is not None:
        other, (_, _, named) = scoring.measure(sounds.swapped, rows), swap_objects(clips, seed)
        figures["swap"] = {
            "follows_the_new_word": scoring.sound_class(other, rows, named),
            "stays_with_the_picture": scoring.sound_class(other, rows, labels),
            "timing": scoring.timing(other, rows),
        }
    if reasons := left_out(clips):
        figures["left_out"] = reasons
    figures["metrics"] = {metric.key: metric.reading for metric in scoring.metrics}
    return figures


def left_out(clips: HeldOut) -> dict[str, str]:
    """⇒ {figure: why it is not measured}, of those that the embedded tagger scores."""
    labels = clips.labels
    known = (f"of {len(clips.records)} clips {len(labels)} have one object alone, of a class that the embedded tagger "
             "knows")
    reasons = {"sound_class": f"{known}; two are needed"} if len(labels) < 2 else {}
    if len(set(labels)) < 2:
        reasons["swap"] = f"{known}, of {len(set(labels))} classes; two classes are needed"
    return reasons


def mean_scores(figures: dict[str, Any]) -> dict[str, float]:
    """figures.json ⇒ {metric: mean} by evaluate.py's names, of the defined metrics."""
    scores = {name: content["score"] for part in (figures["timing"], figures) for name, content in part.items()
              if isinstance(content, dict) and content.get("score")}
    return {name: score["mean"] for name, score in scores.items() if score["mean"] is not None}


def _json(figure: Figure) -> dict[str, Any]:
    return {name: interval_json(interval) for name in _PARTS if (interval := getattr(figure, name)) is not None}
