"""The training of the two networks of sound, tagger and event detector: data, LightningModules and held-out figures."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterator, Sequence

import lightning
import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils.data import IterableDataset

from ..mel import FIGURES, FRAME_RATE_HZ, HOP_SAMPLES, SAMPLE_RATE_HZ, LogMel
from ..metrics.alignment import FINE_WINDOW_S, event_f1, matched_events
from ..metrics.intervals import bootstrap_interval
from ..metrics.onsets import WINDOW_S, onset_errors
from ..vocoder import GriffinLim
from .event_detector import EventDetector, picked_events
from .scene_sounds import SAMPLES, render_sound
from .timeline import WORDS, make_scene
from .tiny_networks import PEAK, Tagger
from .trunk_training import one_cycle

SHORTEST_FRAMES = 96  # of a crop for the tagger; the longest is a whole clip
CROP_FRAMES = 192  # for the detector, several times the stretch that a frame depends on


def solo_sounds(seed: int, split: str, per_class: int) -> tuple[Tensor, Tensor]:
    """Sounds of single things ⇒ waveforms (N, samples) float32 with mean 0 and peak 0.5, classes (N,) int64.

    Args:
        seed: of the world whose scenes give the things.
        split: of that world.
        per_class: sounds of each of the ten classes; the classes count in the order of WORDS.
    """
    missing = dict.fromkeys(WORDS, per_class)
    sounds, classes = [], []
    index = 0
    while any(missing.values()):
        scene = make_scene(seed, split, index)
        index += 1
        for thing in scene.things:
            if thing.named and missing[thing.word]:
                missing[thing.word] -= 1
                sounds.append(_levelled(render_sound(dataclasses.replace(scene, things=[thing]))))
                classes.append(WORDS.index(thing.word))
    return torch.from_numpy(np.stack(sounds).astype(np.float32)), torch.tensor(classes)


def _levelled(sound: np.ndarray) -> np.ndarray:
    """A sound (samples,) ⇒ the same with mean 0 and peak 0.5."""
    sound = sound - sound.mean()
    return sound * (PEAK / max(float(np.abs(sound).max()), 1e-5))


def mels_of(waveforms: Tensor) -> Tensor:
    """Waveforms (N, samples) ⇒ log-mels (N, samples // 160, 64), without the frame centred on the clip's end."""
    log_mel = LogMel(FIGURES)
    with torch.inference_mode():
        return torch.cat([log_mel(part)[:, :-1] for part in waveforms.split(64)]).clone()


def vocoded(mels: Tensor, smear: bool) -> Tensor:
    """Log-mels after a round trip through Griffin-Lim ⇒ (N, frames, 64).

    Args:
        mels: (N, frames, 64).
        smear: blur them first, as a strongly compressing autoencoder does.
    """
    vocoder = GriffinLim(iterations=16)
    with torch.inference_mode():
        waveforms = vocoder(coarse(mels) if smear else mels)
        waveforms = waveforms - waveforms.mean(1, keepdim=True)
        waveforms *= PEAK / waveforms.abs().amax(1, keepdim=True).clamp_min(1e-5)
    return mels_of(waveforms)


def coarse(mels: Tensor) -> Tensor:
    """Log-mels (N, frames, 64) averaged over 4 frames × 2 bins and interpolated back."""
    small = F.avg_pool2d(mels[:, None], (4, 2))
    return F.interpolate(small, size=mels.shape[1:], mode="bilinear", align_corners=False)[:, 0]


class SoundBatches(IterableDataset):
    """``steps`` random batches (log-mels (B, frames, 64), classes (B,)) of augmented crops, a function of the seed."""

    def __init__(self, mels: Tensor, classes: Tensor, size: int, steps: int, seed: int) -> None:
        self.mels, self.classes, self.size, self.steps, self.seed = mels, classes, size, steps, seed
        self._energy = mels.exp().mean(2)  # (N, frames)

    def __iter__(self) -> Iterator[tuple[Tensor, Tensor]]:
        generator = torch.Generator().manual_seed(self.seed)
        for _ in range(self.steps):
            chosen = torch.randint(len(self.mels), (self.size,), generator=generator)
            yield augment(self._crop(chosen, generator), generator), self.classes[chosen]

    def _crop(self, chosen: Tensor, generator: torch.Generator) -> Tensor:
        """Crops (B, frames, 64) of one random length, each around a moment drawn in proportion to the energy."""
        total = self.mels.shape[1]
        length = int(torch.randint(SHORTEST_FRAMES, total + 1, (), generator=generator))
        centres = torch.multinomial(self._energy[chosen], 1, generator=generator)[:, 0]
        before = torch.randint(length, (len(chosen),), generator=generator)
        starts = (centres - before).clamp(0, total - length)
        return self.mels[chosen[:, None], starts[:, None] + torch.arange(length)]


def augment(mels: Tensor, generator: torch.Generator) -> Tensor:
    """Log-mels (B, frames, 64) with random hiss, tilted or bent spectrum, grain and blur ⇒ the same shape.

    Generators, codecs and rooms do the same to a sound.
    """
    count = len(mels)

    def uniform(low: float, high: float) -> Tensor:
        return low + (high - low) * torch.rand(count, 1, 1, generator=generator)

    blur = torch.rand((), generator=generator)
    if blur < 0.25:
        mels = coarse(mels)
    elif blur < 0.5:
        mels = F.avg_pool2d(mels[:, None], 3, 1, 1, count_include_pad=False)[:, 0]
    peak = mels.amax((1, 2), keepdim=True)
    grain = torch.randn(mels.shape, generator=generator)
    mels = mels + uniform(0, 0.5) * grain
    hiss = peak - uniform(3.5, 11.0) + 0.5 * torch.randn(mels.shape, generator=generator)
    mels = torch.logaddexp(mels, hiss)
    across = torch.linspace(0, math.pi, mels.shape[2])
    return mels + uniform(-0.7, 0.7) * across.cos() + uniform(-0.5, 0.5) * (2 * across).cos()


class TaggerTraining(lightning.LightningModule):
    """Trains a tagger with cross-entropy. Label smoothing keeps the vectors of the classes bounded.

    Args:
        tagger: the network.
        lr: highest learning rate.
        steps: optimiser steps of the whole run.
        label_smoothing: share of the target probability spread over all classes.
    """

    def __init__(self, tagger: Tagger, lr: float, steps: int, label_smoothing: float) -> None:
        super().__init__()
        self.tagger, self.lr, self.steps, self.label_smoothing = tagger, lr, steps, label_smoothing

    def training_step(self, batch: tuple[Tensor, Tensor], index: int) -> Tensor:
        mels, classes = batch
        logits = self.tagger.classify(F.relu(self.tagger.embed_mel(mels)))
        loss = F.cross_entropy(logits, classes, label_smoothing=self.label_smoothing)
        self.log("train/loss", loss)
        return loss

    def configure_optimizers(self):
        return one_cycle(self.parameters(), self.lr, self.steps)


@torch.inference_mode()
def tagger_figures(tagger: Tagger, waveforms: Tensor, classes: Tensor, vocode: int) -> dict:
    """Held-out figures by name.

    top1 is the share of right classes on the sounds themselves. top1_vocoded is the same after Griffin-Lim, and
    top1_smeared after a blur by 4 frames × 2 bins and Griffin-Lim. confused counts each "truth → answer" that differs.

    Args:
        tagger: the network.
        waveforms: (N, samples) of single things.
        classes: (N,) their classes.
        vocode: number of the first sounds that top1_vocoded and top1_smeared are measured on.
    """
    answers = torch.cat([tagger.logits(part) for part in waveforms.split(32)]).argmax(1)
    mels = mels_of(waveforms[:vocode])
    figures: dict = {"sounds": len(waveforms), "top1": _share(answers == classes), "vocoded_sounds": len(mels)}
    for name, smear in (("top1_vocoded", False), ("top1_smeared", True)):
        vectors = tagger.embed_mel(vocoded(mels, smear))
        figures[name] = _share(tagger.classify(F.relu(vectors)).argmax(1) == classes[:vocode])
    figures["top1_by_word"] = {
        word: _share(answers[classes == row] == row)
        for row, word in enumerate(tagger.classes) if (classes == row).any()
    }
    confused: dict[str, int] = {}
    for truth, answer in zip(classes.tolist(), answers.tolist()):
        if truth != answer:
            pair = f"{tagger.classes[truth]} → {tagger.classes[answer]}"
            confused[pair] = confused.get(pair, 0) + 1
    return figures | {"confused": confused}


Events = np.ndarray  # (E, 2) onsets in seconds, numbers of classes in WORDS


def scene_sounds(seed: int, split: str, count: int, exchanged: float = 0.0) -> tuple[Tensor, list[Events], Tensor]:
    """Sounds of whole scenes ⇒ waveforms (N, samples) float32 with mean 0 and peak 0.5, their events, and whether each
    class sounds in each log-mel frame (N, frames, classes) bool.

    Args:
        seed: of the world.
        split: of that world.
        count: of scenes.
        exchanged: share of scenes whose things sound as things of other classes, at their own times, so that a rhythm
            tells no class.
    """
    random = np.random.default_rng([seed, count])
    sounds, events = [], []
    sounding = torch.zeros(count, SAMPLES // HOP_SAMPLES, len(WORDS), dtype=torch.bool)
    for index in range(count):
        scene = make_scene(seed, split, index)
        things = [thing for thing in scene.things if thing.named]
        if random.random() < exchanged:
            words = random.permutation(WORDS)
            things = [dataclasses.replace(thing, word=str(word)) for thing, word in zip(things, words)]
        sounds.append(_levelled(render_sound(dataclasses.replace(scene, things=things))))
        events.append(np.array(sorted((event.onset_s, WORDS.index(thing.word)) for thing in things
                                      for event in thing.events)).reshape(-1, 2))
        for thing in things:
            for event in thing.events:
                frames = slice(round(event.onset_s * FRAME_RATE_HZ), round(event.end_s * FRAME_RATE_HZ) + 1)
                sounding[index, frames, WORDS.index(thing.word)] = True
    return torch.from_numpy(np.stack(sounds).astype(np.float32)), events, sounding


def noises(seed: int, count: int) -> Tensor:
    """Noise of random colour whose level drifts, in which no class sounds ⇒ waveforms (N, samples) float32 with mean 0
    and peak 0.5."""
    random = np.random.default_rng([seed, count])
    time_s, frequencies_hz = np.arange(SAMPLES) / SAMPLE_RATE_HZ, np.fft.rfftfreq(SAMPLES, 1 / SAMPLE_RATE_HZ)
    sounds = []
    for _ in range(count):
        gain = (frequencies_hz + 100.0) ** random.uniform(-1.2, 0.6)
        gain *= 1 / (1 + (frequencies_hz / random.uniform(500, 16_000)) ** 4)
        noise = np.fft.irfft(np.fft.rfft(random.standard_normal(SAMPLES)) * gain, SAMPLES)
        drift = random.uniform(0, 0.9) * np.sin(2 * np.pi * (random.uniform(0.1, 3.0) * time_s + random.random()))
        sounds.append(_levelled(noise * (1 + drift)))
    return torch.from_numpy(np.stack(sounds).astype(np.float32))


def onset_frames(events: Sequence[Events], frames: int) -> Tensor:
    """Events of N sounds ⇒ (N, frames, classes) bool, true in the frame of an onset and the two beside it."""
    found = torch.zeros(len(events), frames, len(WORDS), dtype=torch.bool)
    for row, of_sound in zip(found, events):
        for onset_s, number in of_sound:
            frame = round(onset_s * FRAME_RATE_HZ)
            row[max(frame - 1, 0):frame + 2, int(number)] = True
    return found


class EventBatches(IterableDataset):
    """``steps`` random batches (log-mels (B, frames, 64), onsets and sounding (B, frames, classes) bool) of augmented
    crops, a function of the seed."""

    def __init__(self, mels: Tensor, onsets: Tensor, sounding: Tensor, size: int, steps: int, seed: int) -> None:
        self.mels, self.onsets, self.sounding = mels, onsets, sounding
        self.size, self.steps, self.seed = size, steps, seed

    def __iter__(self) -> Iterator[tuple[Tensor, Tensor, Tensor]]:
        generator = torch.Generator().manual_seed(self.seed)
        total = self.mels.shape[1]
        for _ in range(self.steps):
            rows = torch.randint(len(self.mels), (self.size, 1), generator=generator)
            starts = torch.randint(total - CROP_FRAMES + 1, (self.size, 1), generator=generator)
            frames = starts + torch.arange(CROP_FRAMES)
            yield augment(self.mels[rows, frames], generator), self.onsets[rows, frames], self.sounding[rows, frames]


class DetectorTraining(lightning.LightningModule):
    """Trains an event detector with a cross-entropy per frame and class.

    Args:
        detector: the network.
        lr: highest learning rate.
        steps: optimiser steps of the whole run.
        onset_weight: of a frame with an onset against one without; onsets are rare.
        sounding_weight: of the loss of sounding against that of onsets.
    """

    onset_weight: Tensor

    def __init__(self, detector: EventDetector, lr: float, steps: int, onset_weight: float,
                 sounding_weight: float) -> None:
        super().__init__()
        self.detector, self.lr, self.steps = detector, lr, steps
        self.sounding_weight = sounding_weight
        self.register_buffer("onset_weight", torch.tensor(onset_weight), persistent=False)

    def training_step(self, batch: tuple[Tensor, Tensor, Tensor], index: int) -> Tensor:
        mels, onsets, sounding = batch
        onset_logits, sounding_logits = self.detector(mels)
        loss = F.binary_cross_entropy_with_logits(onset_logits, onsets.float(), pos_weight=self.onset_weight)
        loss = loss + self.sounding_weight * F.binary_cross_entropy_with_logits(sounding_logits, sounding.float())
        self.log("train/loss", loss)
        return loss

    def configure_optimizers(self):
        return one_cycle(self.parameters(), self.lr, self.steps)


@torch.inference_mode()
def detector_figures(detector: EventDetector, waveforms: Tensor, events: Sequence[Events], vocode: int) -> dict:
    """Held-out figures: mean event F1 per sound within 100 and 50 ms, with its 95 % interval over sounds, of the sounds
    themselves, after Griffin-Lim ("vocoded"), and after a blur by 4 frames × 2 bins and Griffin-Lim ("smeared"); event
    F1 of each class, over the events of all sounds, and the median error of onsets.

    Args:
        detector: the network.
        waveforms: (N, samples) of scenes.
        events: of each.
        vocode: number of the first sounds that are also measured after Griffin-Lim.
    """
    mels = mels_of(waveforms)
    figures: dict = {"sounds": len(waveforms), "vocoded_sounds": vocode}
    for name, heard in (("clean", mels), ("vocoded", vocoded(mels[:vocode], False)),
                        ("smeared", vocoded(mels[:vocode], True))):
        found = [picked_events(p) for part in heard.split(16) for p in detector(part)[0].sigmoid().numpy()]
        for window_s, suffix in ((WINDOW_S, ""), (FINE_WINDOW_S, "_50ms")):
            scores = bootstrap_interval([event_f1(true, made, window_s) for true, made in zip(events, found)])
            figures[f"event_f1{suffix}_{name}"] = [round(v, 4) for v in (scores.mean, scores.low, scores.high)]
        if name != "vocoded":
            figures[f"event_f1_{name}_by_word"] = _f1_by_word(events, found)
        errors_ms = [error for true, made in zip(events, found)
                     if (error := onset_errors(true[:, 0], made[:, 0]).median_ms) is not None]
        figures[f"onset_error_ms_{name}"] = round(float(np.median(errors_ms)), 1) if errors_ms else None
    return figures


def _f1_by_word(events: Sequence[Events], found: Sequence[Events]) -> dict[str, float]:
    """⇒ {class: F1 within 100 ms, over the events of all sounds}."""
    scores = {}
    for number, word in enumerate(WORDS):
        pairs = [(true[true[:, 1] == number], made[made[:, 1] == number]) for true, made in zip(events, found)]
        total = sum(len(true) + len(made) for true, made in pairs)
        scores[word] = round(2 * sum(matched_events(true, made, WINDOW_S) for true, made in pairs) / max(total, 1), 4)
    return scores


def _share(right: Tensor) -> float:
    return round(float(right.float().mean()), 4)
