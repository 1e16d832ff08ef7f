"""Measurements and metadata of clips: sounds, truth, words, and the times at which objects are in the picture."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from ..dataset.shards.records import read_shard
from ..dataset.shards.schema import read_dataset
from ..embedded.truth import read_truth, truth_paths
from ..metrics.alignment import FlowTrajectory
from ..runtime.errors import InputError
from ..runtime.files import printable, reason_of
from .pairing import Plan, Words
from .sounds import Arrays, SoundFeatures, WaveformFeatures


@dataclass
class SoundMeasurements:
    """Inputs of the metrics from one sound.

    digest: of its file and of how it was read. notes: what reading did to it, in words. embeddings: {backbone: its
    arrays ``embeddings`` (R, D) and, with classes, ``logits`` (C,)}. waveform (samples,): only as long as something has
    to be computed from it. pair_values: {metric key: value} of the metrics that need waveforms. padded: whether silence
    was appended.
    """

    features: SoundFeatures | WaveformFeatures
    digest: str = ""
    notes: list[str] = field(default_factory=list)
    embeddings: dict[str, Arrays] = field(default_factory=dict)
    waveform: np.ndarray | None = None
    pair_values: dict[str, float | None] = field(default_factory=dict)
    padded: bool = False


@dataclass
class ClipMeasurements:
    """A clip's true sound, its sounds by (system, sample), and its flow by variant. A str in place of any says why it
    could not be measured."""

    id: str
    reference: SoundMeasurements | str
    sounds: dict[tuple[str, int], SoundMeasurements | str] = field(default_factory=dict)
    flows: dict[str, FlowTrajectory | str] = field(default_factory=dict)


@dataclass
class ClipTruth:
    """The truth of a clip, against which sounds are scored. onsets_s: of its events where known (``exact``), else
    detected in the true sound. label: its class, empty where it is not known. flows: {variant: of its pictures}."""

    sound: SoundMeasurements
    onsets_s: np.ndarray
    exact: bool = False
    label: str = ""
    flows: dict[str, FlowTrajectory] = field(default_factory=dict)


@dataclass(frozen=True)
class Timeline:
    """Probabilities (T, K) of K objects over a clip of ``duration_s``."""

    objects: list[str]
    probs: np.ndarray
    duration_s: float


def true_events(reference: Path) -> tuple[np.ndarray, Words] | None:
    """⇒ an embedded clip's true onsets in seconds and its words, from the files beside it; None for any other clip. The
    label is the one object's word, empty where there are several.

    Raises:
        InputError: the truth is there, but damaged.
    """
    if not truth_paths(reference)[0].is_file():
        return None
    truth = read_truth(reference)
    label = truth.words[0] if len(truth.words) == 1 else ""
    return truth.onsets_s(), Words(label, truth.caption, tuple(truth.words))


def timelines(shards: Path, clips: Collection[str]) -> dict[str, Timeline]:
    """⇒ {id: Timeline} of these clips, as far as a dataset has them. One shard is in memory at a time.

    Raises:
        InputError: the dataset has none of them.
    """
    info, wanted = read_dataset(shards), set(clips)
    found: dict[str, Timeline] = {}
    for split in info.splits:
        for shard in info.shards(split):
            if len(found) == len(wanted):
                return found
            for record in read_shard(shards / shard.name):
                if record.key in wanted:
                    found[record.key] = Timeline(list(record.objects), np.asarray(record.probs, np.float32),
                                                 float(record.duration_s))
    if not found:
        raise InputError(f"shards={shards} has none of the {len(wanted)} clips; is it the dataset of these sounds?")
    return found


@dataclass
class Measurements:
    """Everything that has been measured so far, in memory: small arrays per sound, and what could not be used.

    truths: {id: ClipTruth} of the clips that can be scored, in order; sounds: {system: {id: samples}}; ceiling: {id:
    the true sound through VAE and vocoder}; bad: {system: {file: sentence}}; bad_clips: {file: sentence} of true
    sounds and pictures.
    """

    plan: Plan
    skip_bad: bool
    truths: dict[str, ClipTruth] = field(default_factory=dict)
    sounds: dict[str, dict[str, list[SoundMeasurements]]] = field(init=False)
    ceiling: dict[str, SoundMeasurements] = field(default_factory=dict)
    bad: dict[str, dict[str, str]] = field(init=False)
    bad_clips: dict[str, str] = field(default_factory=dict)

    def __post_init__(self):
        self.sounds = {name: {} for name in self.plan.sounds}
        self.bad = {name: {} for name in self.plan.sounds}

    @property
    def failed(self) -> int:
        """Files that could not be used."""
        return len(self.bad_clips) + sum(map(len, self.bad.values()))

    def add(self, clip: ClipMeasurements, words: Words) -> None:
        """Add a clip.

        Raises:
            InputError: one of its files could not be used, and bad files are not skipped.
        """
        reference = self.plan.references[clip.id].path
        if isinstance(clip.reference, str):
            self._refuse(self.bad_clips, reference, clip.reference)
            return
        try:
            exact = true_events(reference)
        except (InputError, OSError, UnicodeError) as error:
            self._refuse(self.bad_clips, reference, reason_of(error, reference))
            return
        if exact is not None and not words.label:
            words = exact[1]
        flows = {name: flow for name, flow in clip.flows.items() if not isinstance(flow, str)}
        for flow in clip.flows.values():
            if isinstance(flow, str):
                self._refuse(self.bad_clips, self.plan.videos[clip.id], flow)
        onsets_s = clip.reference.features.onsets_s if exact is None else exact[0]
        self.truths[clip.id] = ClipTruth(clip.reference, onsets_s, exact is not None, words.label, flows)
        files = {(name, file.sample): file.path for name, found in self.plan.sounds.items()
                 for file in found.get(clip.id, ())}
        for (name, sample), measured in clip.sounds.items():
            if isinstance(measured, str):
                self._refuse(self.bad[name], files[name, sample], measured)
            else:
                self.sounds[name].setdefault(clip.id, []).append(measured)

    def _refuse(self, into: dict[str, str], path: Path, sentence: str) -> None:
        if not self.skip_bad:
            end = "" if sentence.endswith((".", "?", "!")) else "."
            raise InputError(f"{sentence}{end} Mend it, or evaluate the rest with skip_bad=true")
        into[printable(path.name)] = sentence
