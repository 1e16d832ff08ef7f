"""The figures at the end of a run: how well a finished model's sound is timed, what it is, and what bounds both."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import islice
from typing import Any

import numpy as np
import torch

from ..clip import ClipFeatures
from ..dataset.shards.batch import ClipBatch, collate, window_of
from ..dataset.shards.datamodule import ShardReader, consecutive
from ..embedded.tagger import load_tagger
from ..generation.pipeline import Pipeline
from ..metrics.intervals import Interval, bootstrap_interval, derangement, paired_difference
from ..metrics.onsets import detect_onsets, onset_f1
from ..metrics.signal import ErrorShare, correlation, energy_envelope, measure_level, mel_error_share
from ..runtime.randomness import seed_of

Tick = Callable[[int], None]


@dataclass
class HeldOut:
    """Clips of the test split as the model will see them. onsets_s: the truth, per clip. train_mean_mel (64,): per-bin
    mean of the training set's normalised log-mels, about which the VAE's error share is taken."""

    records: list[ClipFeatures]
    batch: ClipBatch
    onsets_s: Sequence[np.ndarray]
    train_mean_mel: np.ndarray

    @property
    def single(self) -> list[int]:
        """Rows with one object only, whose class is known."""
        return [i for i, r in enumerate(self.records) if r.label and len(r.objects) == 1]


def held_out(reader: ShardReader, train: ShardReader, pipeline: Pipeline, clips: int,
             onsets_of: Callable[[ClipFeatures, np.ndarray], np.ndarray]) -> HeldOut:
    """The first ``clips`` of a split, cut to the model's clip."""
    records = [reader.record(*place)[0] for place in islice(consecutive(reader.counts), clips)]
    batch = collate([window_of(r, pipeline.spec, seed_of(r.key)) for r in records], pipeline.spec)
    assert batch.waveform is not None
    onsets = [onsets_of(r, w) for r, w in zip(records, batch.waveform.numpy())]
    total, count = np.zeros(pipeline.spec.n_mels), 0
    for place in islice(consecutive(train.counts), 256):
        with torch.no_grad():
            mel = pipeline.codec.mel(torch.from_numpy(train.record(*place)[0].waveform)[None].to(pipeline.device))
        total += mel[0, 0].double().sum(dim=0).cpu().numpy()
        count += mel.shape[2]
    return HeldOut(records, batch, onsets, (total / count).astype(np.float32))


def generate(pipeline: Pipeline, batch: ClipBatch, seed: int, batch_size: int, tick: Tick) -> np.ndarray:
    """One sound per clip, seeded by (seed, key, sample 0) as ``generate.py shards=`` does ⇒ (B, samples)."""
    parts = []
    for start in range(0, len(batch), batch_size):
        rows = range(start, min(start + batch_size, len(batch)))
        part = batch.select(rows)
        parts.append(pipeline.generate_batch(part, [seed_of(seed, key, 0) for key in part.keys]))
        tick(len(rows))
    return torch.cat(parts).numpy()


@torch.no_grad()
def through_codec(pipeline: Pipeline, waveforms: torch.Tensor, batch_size: int,
                  tick: Tick) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """True sound through VAE and vocoder, the ceiling ⇒ sound (B, samples), true and decoded mels (B, frames, 64)."""
    sounds, true, decoded = [], [], []
    for chunk in waveforms.split(batch_size):
        mel = pipeline.codec.mel(chunk.to(pipeline.device))
        mean, _ = pipeline.codec.moments(mel).chunk(2, dim=1)
        sounds.append(pipeline.decode(mean))
        true.append(mel[:, 0].cpu())
        decoded.append(pipeline.codec.decode(mean)[:, 0].float().cpu())
        tick(len(chunk))
    return torch.cat(sounds).numpy(), torch.cat(true).numpy(), torch.cat(decoded).numpy()


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
    return dataclasses.replace(batch, object_embedding=embedding, caption_tokens=caption), rows, swapped


def timing(generated: np.ndarray, true: np.ndarray, onsets_s: Sequence[np.ndarray], seed: int) -> dict[str, Any]:
    """Envelope correlation and onset F1, each with its control (a fixed derangement of the truth) and the paired
    difference of the two. generated, true (n, samples)."""
    order = derangement(len(true), seed)
    envelopes, truths = ([energy_envelope(w) for w in waves] for waves in (generated, true))
    found = [detect_onsets(w) for w in generated]
    scores: dict[str, tuple[list, list]] = {
        "envelope_correlation": (
            [correlation(a, b) for a, b in zip(envelopes, truths)],
            [correlation(a, truths[j]) for a, j in zip(envelopes, order)],
        ),
        "onset_f1": (
            [onset_f1(t, e) for t, e in zip(onsets_s, found)],
            [onset_f1(onsets_s[j], e) for e, j in zip(found, order)],
        ),
    }
    return {
        name: {
            "score": as_dict(bootstrap_interval(score)),
            "control": as_dict(bootstrap_interval(control)),
            "score_minus_control": as_dict(paired_difference(score, control)),
        }
        for name, (score, control) in scores.items()
    }


def sound_class(waveforms: np.ndarray, labels: Sequence[str]) -> dict[str, Any]:
    """Share of sounds that the embedded tagger gives their label (top-1)."""
    tagger = load_tagger()
    with torch.no_grad():
        guesses = torch.cat([tagger.logits(torch.from_numpy(w)[None]) for w in waveforms]).argmax(dim=1)
    return as_dict(bootstrap_interval([float(tagger.classes[g] == label) for g, label in zip(guesses, labels)]))


def levels(waveforms: np.ndarray) -> dict[str, float]:
    """Loudness, silent clips and clipped samples of a set."""
    found = [measure_level(w) for w in waveforms]
    return {
        "mean_rms_dbfs": round(float(np.mean([x.rms_dbfs for x in found])), 2),
        "silent_clips": round(float(np.mean([x.silent for x in found])), 4),
        "clipping_rate": float(np.mean([x.clipping_rate for x in found])),
    }


def vae_figures(clips: HeldOut, sounds: np.ndarray, true_mels: np.ndarray, decoded: np.ndarray) -> dict[str, Any]:
    """How much the codec loses: mel error share, and what the tagger and the onset detector make of its output."""
    shares = [mel_error_share(t, d, clips.train_mean_mel) for t, d in zip(true_mels, decoded)]
    rows = clips.single
    figures: dict[str, Any] = {
        "mel_error_share": round(sum(shares, start=ErrorShare(0.0, 0.0)).share, 4),
        "onset_f1": as_dict(bootstrap_interval(
            [onset_f1(t, detect_onsets(w)) for t, w in zip(clips.onsets_s, sounds)])),
    }
    if rows:
        figures["sound_class"] = sound_class(sounds[rows], [clips.records[i].label for i in rows])
    return figures


def measure(pipeline: Pipeline, clips: HeldOut, seed: int, batch_size: int,
            tick: Tick) -> tuple[dict[str, Any], np.ndarray]:
    """Every figure of a finished model ⇒ (figures, the generated sound (n, samples)). Needs at least two clips."""
    assert clips.batch.waveform is not None
    true = clips.batch.waveform.numpy()
    generated = generate(pipeline, clips.batch, seed, batch_size, tick)
    ceiling, true_mels, decoded = through_codec(pipeline, clips.batch.waveform, batch_size, tick)
    figures: dict[str, Any] = {
        "clips": len(clips.records),
        "timing": timing(generated, true, clips.onsets_s, seed),
        "ceiling": timing(ceiling, true, clips.onsets_s, seed),
        "level": {"generated": levels(generated), "true": levels(true)},
        "vae": vae_figures(clips, ceiling, true_mels, decoded),
    }
    rows = clips.single
    if len(rows) >= 2:
        labels = [clips.records[i].label for i in rows]
        figures["sound_class"] = {
            "score": sound_class(generated[rows], labels),
            "ceiling": sound_class(ceiling[rows], labels),
            "true_sound": sound_class(true[rows], labels),
            "chance": 1 / len(load_tagger().classes),
        }
        if len(set(labels)) >= 2:
            swapped, _, named = swap_objects(clips, seed)
            other = generate(pipeline, swapped, seed, batch_size, tick)
            figures["swap"] = {
                "follows_the_new_word": sound_class(other, named),
                "stays_with_the_picture": sound_class(other, labels),
                "timing": timing(other, true[rows], [clips.onsets_s[i] for i in rows], seed),
            }
    return figures, generated


def as_dict(interval: Interval) -> dict[str, float | int | None]:
    """An interval as json, rounded to four places; NaN becomes null."""
    values = dataclasses.asdict(interval)
    return {k: (None if isinstance(v, float) and np.isnan(v) else round(v, 4)) for k, v in values.items()}
