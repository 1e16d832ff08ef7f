"""Recipes of the three tiny networks: make the data, train, measure on held-out data, write weights and figures."""

from __future__ import annotations

import dataclasses
import logging
import warnings
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import lightning
import numpy as np
import torch
from torch.utils.data import DataLoader, IterableDataset

from ..runtime.distributed import choose_accelerator
from ..runtime.errors import InputError
from ..runtime.files import temporary_beside, writing_to
from ..runtime.work_plan import Deed, Item, Plan
from .event_detector import SHIPPED_DETECTOR, EventDetector, load_detector
from .sound_training import (
    DetectorTraining, EventBatches, SoundBatches, TaggerTraining, detector_figures, mels_of, noises, onset_frames,
    scene_sounds, solo_sounds, tagger_figures, vocoded,
)
from .timeline import WORDS
from .tiny_networks import SHIPPED_TAGGER, SHIPPED_TRUNK, Tagger, Trunk, fold, load_tagger, load_trunk, write_weights
from .trunk_training import PictureBatches, Pictures, TrunkTraining, read_pictures, trunk_figures
from .truth import SCENES_VERSION


@dataclass
class TrunkRecipe:
    """Trains the image trunk on embedded clips rendered for it.

    Args:
        scenes: folder of the clips; they are rendered when missing.
        train_clips: number of clips to train on.
        train_seed: of their world.
        test_clips: number of held-out clips.
        test_seed: of their world, another than ``train_seed``.
        fps: pictures a second taken from each clip.
        seed: of initial weights, order and augmentation.
        steps: optimiser steps.
        batch: pictures a step.
        rate: highest learning rate.
        loss_weights: weight per loss, see :class:`TrunkTraining`.
        version: of the weights, for their fingerprint.
        precision: of Lightning's Trainer.
        workers: rendering processes.
        sizes: arguments of :class:`Trunk` that differ from its defaults.
        out: the weights file to write; None: the shipped one.
    """

    scenes: str
    train_clips: int
    train_seed: int
    test_clips: int
    test_seed: int
    fps: float
    seed: int
    steps: int
    batch: int
    rate: float
    loss_weights: Mapping[str, float]
    version: int
    precision: Any = "32-true"
    workers: int = 2
    sizes: Mapping | None = None
    out: str | None = None

    def train(self) -> dict:
        """Train, write the weights, measure them ⇒ the held-out figures.

        Raises:
            InputError: held-out data are not of another world.
        """
        if self.train_seed == self.test_seed:
            raise InputError(f"trunk: train_seed and test_seed are both {self.train_seed}; held-out clips need another")
        lightning.seed_everything(self.seed, verbose=False)
        sizes = _plain(self.sizes or {})
        trunk = Trunk(len(WORDS), **sizes).to(memory_format=torch.channels_last)
        weights = _plain(self.loss_weights)
        training = TrunkTraining(trunk, len(WORDS), self.rate, self.steps, weights)
        pictures = self._pictures("train", self.train_clips, self.train_seed)
        _fit(training, PictureBatches(pictures, self.batch, self.steps, self.seed), self.steps, self.precision)
        about = _about(self, "trunk", {"words": len(WORDS), **sizes})
        return _write(self.path, fold(training.trunk.cpu()), about, self.measure)

    def measure(self, weights: Path | None = None) -> dict:
        """The held-out figures of the written weights, or of those in another file."""
        trunk, _ = load_trunk(weights or self.out)
        return trunk_figures(trunk, self._pictures("test", self.test_clips, self.test_seed))

    @property
    def path(self) -> Path:
        """The weights file to write."""
        return Path(self.out) if self.out else SHIPPED_TRUNK

    def planned(self, figures: bool = False) -> Plan:
        """What training writes, or measuring alone; nothing is written here."""
        from .world import plan_world

        worlds = [plan_world(Path(self.scenes) / f"{split}-{seed}", {split: clips}, seed) for split, clips, seed in (
            ("train", self.train_clips, self.train_seed), ("test", self.test_clips, self.test_seed))
            if split == "test" or not figures]
        return _plan("trunk", None if figures else self.path, [Item(
            str(world.out), Deed.MAKE if world.missing else Deed.KEEP,
            f"{len(world.missing)} of {len(world.clips)} clips are rendered", world.plan.size) for world in worlds])

    def _pictures(self, split: str, clips: int, seed: int) -> Pictures:
        from .world import write_world

        folder = Path(self.scenes) / f"{split}-{seed}"
        return read_pictures(write_world(folder, {split: clips}, seed, self.workers), self.fps, clips)


@dataclass
class TaggerRecipe:
    """Trains the audio tagger on sounds of single things, synthesised in memory.

    Args:
        train_sounds: sounds of each class to train on.
        train_seed: of their world.
        test_sounds: held-out sounds of each class.
        test_seed: of their world, another than ``train_seed``.
        vocoded: training sounds of each class that are also used after Griffin-Lim.
        test_vocoded: held-out sounds of each class that are also used after Griffin-Lim.
        seed: of initial weights, order and augmentation.
        steps: optimiser steps.
        batch: sounds a step.
        rate: highest learning rate.
        label_smoothing: share of the target probability spread over all classes.
        version: of the weights, for their fingerprint.
        sizes: arguments of :class:`Tagger` that differ from its defaults.
        out: the weights file to write; None: the shipped one.
    """

    train_sounds: int
    train_seed: int
    test_sounds: int
    test_seed: int
    vocoded: int
    test_vocoded: int
    seed: int
    steps: int
    batch: int
    rate: float
    label_smoothing: float
    version: int
    sizes: Mapping | None = None
    out: str | None = None

    def train(self) -> dict:
        """Train, write the weights, measure them ⇒ the held-out figures.

        Raises:
            InputError: held-out data are not of another world.
        """
        if self.train_seed == self.test_seed:
            raise InputError(f"tagger: test_seed is train_seed, {self.train_seed}; hold other sounds out")
        lightning.seed_everything(self.seed, verbose=False)
        sizes = _plain(self.sizes or {})
        training = TaggerTraining(Tagger(WORDS, **sizes), self.rate, self.steps, self.label_smoothing)
        waveforms, classes = solo_sounds(self.train_seed, "train", self.train_sounds)
        mels = mels_of(waveforms)
        # scenes come in random order, so the first sounds are of all classes
        count = self.vocoded * len(WORDS)
        vocoded_mels = [vocoded(mels[: count // 2], smear=False), vocoded(mels[count // 2 : count], smear=True)]
        mels, classes = torch.cat([mels, *vocoded_mels]), torch.cat([classes, classes[:count]])
        _fit(training, SoundBatches(mels, classes, self.batch, self.steps, self.seed), self.steps, "32-true")
        about = _about(self, "tagger", sizes)
        return _write(self.path, fold(training.tagger.cpu()), about, self.measure)

    @property
    def path(self) -> Path:
        """The weights file to write."""
        return Path(self.out) if self.out else SHIPPED_TAGGER

    def planned(self, figures: bool = False) -> Plan:
        """What training writes, or measuring alone; nothing is written here."""
        return _plan("tagger", None if figures else self.path, [])

    def measure(self, weights: Path | None = None) -> dict:
        """The held-out figures of the written weights, or of those in another file."""
        waveforms, classes = solo_sounds(self.test_seed, "test", self.test_sounds)
        return tagger_figures(load_tagger(weights or self.out), waveforms, classes, self.test_vocoded * len(WORDS))


@dataclass
class DetectorRecipe:
    """Trains the sound event detector on sounds of whole scenes, synthesised in memory.

    Args:
        train_scenes: scenes to train on.
        train_seed: of their world, another than that of the clips whose generated sounds are judged.
        test_scenes: held-out scenes.
        test_seed: of their world, another than ``train_seed``.
        exchanged: share of training scenes whose things sound as other things, so that a rhythm tells no class.
        noises: sounds of noise alone, in which nothing begins.
        vocoded: training scenes that are also used after Griffin-Lim.
        test_vocoded: held-out scenes that are also used after Griffin-Lim.
        seed: of initial weights, order and augmentation.
        steps: optimiser steps.
        batch: crops a step.
        rate: highest learning rate.
        onset_weight: of a frame with an onset against one without.
        sounding_weight: of the loss of sounding against that of onsets.
        version: of the weights, for their fingerprint.
        sizes: arguments of :class:`EventDetector` that differ from its defaults.
        out: the weights file to write; None: the shipped one.
    """

    train_scenes: int
    train_seed: int
    test_scenes: int
    test_seed: int
    exchanged: float
    noises: int
    vocoded: int
    test_vocoded: int
    seed: int
    steps: int
    batch: int
    rate: float
    onset_weight: float
    sounding_weight: float
    version: int
    sizes: Mapping | None = None
    out: str | None = None

    def train(self) -> dict:
        """Train, write the weights, measure them ⇒ the held-out figures.

        Raises:
            InputError: held-out data are not of another world.
        """
        if self.train_seed == self.test_seed:
            raise InputError(f"detector: test_seed is train_seed, {self.train_seed}; hold other scenes out")
        lightning.seed_everything(self.seed, verbose=False)
        sizes = _plain(self.sizes or {})
        training = DetectorTraining(EventDetector(WORDS, **sizes), self.rate, self.steps, self.onset_weight,
                                    self.sounding_weight)
        waveforms, events, sounding = scene_sounds(self.train_seed, "train", self.train_scenes, self.exchanged)
        mels = mels_of(waveforms)
        count = min(self.vocoded, len(mels))
        vocoded_mels = [vocoded(mels[: count // 2], smear=False), vocoded(mels[count // 2 : count], smear=True)]
        noise_mels = mels_of(noises(self.train_seed, self.noises))
        mels = torch.cat([mels, *vocoded_mels, noise_mels])
        silence = [np.zeros((0, 2))] * len(noise_mels)
        onsets = onset_frames([*events, *events[:count], *silence], mels.shape[1])
        sounding = torch.cat([sounding, sounding[:count], sounding.new_zeros(len(noise_mels), *sounding.shape[1:])])
        _fit(training, EventBatches(mels, onsets, sounding, self.batch, self.steps, self.seed), self.steps, "32-true")
        about = _about(self, "detector", sizes)
        return _write(self.path, fold(training.detector.cpu()), about, self.measure)

    @property
    def path(self) -> Path:
        """The weights file to write."""
        return Path(self.out) if self.out else SHIPPED_DETECTOR

    def planned(self, figures: bool = False) -> Plan:
        """What training writes, or measuring alone; nothing is written here."""
        return _plan("detector", None if figures else self.path, [])

    def measure(self, weights: Path | None = None) -> dict:
        """The held-out figures of the written weights, or of those in another file."""
        waveforms, events, _ = scene_sounds(self.test_seed, "test", self.test_scenes)
        return detector_figures(load_detector(weights or self.out), waveforms, events, self.test_vocoded)


def _plan(model: str, path: Path | None, worlds: list[Item]) -> Plan:
    files = [] if path is None else [path, path.with_suffix(".yaml")]
    items = [Item(file.name, Deed.MAKE_AGAIN if file.exists() else Deed.MAKE) for file in files]
    return Plan(f"the tiny {model}{'' if files else ', measured'}", [*worlds, *items], path.parent if path else Path())


def _write(path: Path, network: torch.nn.Module, about: dict, measure: Callable[[Path], dict]) -> dict:
    """Measure a network as it is written, rounded to fp16, and write it with its figures ⇒ these. A former file stays
    until then."""
    new = temporary_beside(path)
    with writing_to(path.parent):
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            write_weights(new, network, about)
            about["figures"] = measure(new)
        finally:
            for file in (new, new.with_suffix(".yaml")):
                file.unlink(missing_ok=True)
        write_weights(path, network, about)
    return about["figures"]


def _fit(training: lightning.LightningModule, batches: IterableDataset, steps: int, precision: Any) -> None:
    logging.getLogger("lightning.pytorch").setLevel(logging.WARNING)  # its start-up lines say nothing about the run
    trainer = lightning.Trainer(
        accelerator=choose_accelerator("auto"), devices=1, max_steps=steps, max_epochs=1, precision=precision,
        gradient_clip_val=1.0, logger=False, enable_checkpointing=False, enable_model_summary=False,
    )
    with warnings.catch_warnings():
        # batches are drawn in this process: with so small a network workers would cost more than they bring
        warnings.filterwarnings("ignore", message=".*does not have many workers.*")
        trainer.fit(training, DataLoader(batches, batch_size=None))


def _about(recipe: TrunkRecipe | TaggerRecipe | DetectorRecipe, kind: str, sizes: dict) -> dict:
    """Content of a weights file's header, still without figures."""
    execution = ("out", "scenes", "workers")  # they change no weight
    settings = {f.name: _plain(getattr(recipe, f.name)) for f in dataclasses.fields(recipe) if f.name not in execution}
    return {
        "kind": kind,
        "version": recipe.version,
        "classes": list(WORDS),
        "sizes": sizes,
        "scenes_version": SCENES_VERSION,
        "recipe": settings,
        "figures": {},
    }


def _plain(value):
    """Mappings and sequences of any kind, Hydra's included ⇒ dicts and lists, for YAML and networks."""
    if isinstance(value, Mapping):
        return {str(k): _plain(v) for k, v in value.items()}
    if isinstance(value, (list, tuple)) or type(value).__name__ == "ListConfig":
        return [_plain(v) for v in value]
    return value
