"""The tagger's training: its data, its LightningModule and its held-out figures."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterator

import lightning
import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils.data import IterableDataset

from ..mel import FIGURES, LogMel
from ..vocoder import GriffinLim
from .scene_sounds import render_sound
from .timeline import WORDS, make_scene
from .tiny_networks import PEAK, Tagger
from .trunk_training import one_cycle

SHORTEST_FRAMES = 96  # of a crop; the longest is a whole clip


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
                sound = render_sound(dataclasses.replace(scene, things=[thing]))
                sound = sound - sound.mean()
                sounds.append(sound * (PEAK / max(float(np.abs(sound).max()), 1e-5)))
                classes.append(WORDS.index(thing.word))
    return torch.from_numpy(np.stack(sounds).astype(np.float32)), torch.tensor(classes)


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


def _share(right: Tensor) -> float:
    return round(float(right.float().mean()), 4)
