"""A metric: its name, the better direction, its inputs, and the function that computes it. Beside it what the inputs
come from: measurements of sounds, the truth of clips, and the times at which objects are in the picture."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, fields, replace
from pathlib import Path
from typing import Any, Literal

import numpy as np

from ..embedded.timeline import class_of
from ..embedded.truth import SceneTruth, read_truth, truth_paths
from ..metrics.alignment import FlowTrajectory, ObjectOnsets
from ..runtime.errors import InputError
from ..runtime.files import printable, reason_of
from .pairing import Plan, Words
from .sounds import Arrays, SoundFeatures, WaveformFeatures

Better = Literal["high", "low", "none"]
Scope = Literal["clip", "set"]
Group = Literal["Timing", "Sound", "Likeness", "Level"]
PerBackbone = Literal["", "all", "with classes", "without classes", "with events"]
Values = dict[str, float | None]

GROUPS: tuple[Group, ...] = ("Timing", "Sound", "Likeness", "Level")  # in the order to be shown

# Names of a metric's inputs, and the values passed for them. generated.… is of the scored sound, true.… of the true one
_OF_A_SOUND = {
    "waveform": "(samples,) float32, mono 16 kHz", "envelope": "energy envelope at 100 Hz, nats",
    "onsets_s": "onset times of this project's detector", "librosa_onsets_s": "onset times of librosa's defaults",
    "foley": "FoleyOnsets of CondFoleyGen's detector",
    "published_onsets_s": "librosa_onsets_s of the whole file at its own rate, as librosa.load reads it",
    "published_foley": "foley, likewise", "level": "Level: loudness, peak, silence, clipping",
    "embeddings": "(R, D) of the row's backbone", "logits": "(C,) class logits of the row's backbone",
    "sound_events": "(E, 2) of the row's backbone: onsets in seconds, numbers of its classes",
    "track": "(steps, dim) of the sync network, at 100 Hz",
}
NEEDS = {
    **{f"{side}.{name}": words for side in ("generated", "true") for name, words in _OF_A_SOUND.items()},
    "true.events_s": "times of the clip's events where they are known, else onsets detected in the true sound",
    "true.objects": "ObjectOnsets of each object, where the clip's events are known",
    "true.label": "the clip's class, a word", "true.flow": "FlowTrajectory of the clip's pictures",
    "true.pictures": "(steps, dim) of the sync network, of the clip's pictures",
    "backbone.classes": "names of the row's backbone's classes",
}
SYNC = "sync"  # a sound's track stands among its embeddings, under this name
_OF_A_BACKBONE = ("embeddings", "logits", "sound_events", "classes")


@dataclass(frozen=True)
class Metric:
    """One row.

    Args:
        key: its name in json files. With ``per_backbone`` it holds ``{backbone}``.
        title: its name for readers. With ``per_backbone`` it holds ``{title}``.
        better: the better direction; "none" where neither is (a level).
        scope: "clip": a value per clip, averaged over clips; "set": one value of all clips together.
        unit: of the value.
        decimals: shown.
        control: whether a score against other clips' truth is computed too.
        source: of the definition.
        definition: in a sentence or two.
        version: to be raised when the function gives other values, so that no cached value is used.
        group: its part of a table.
        needs: names of :data:`NEEDS`; the function gets them in this order.
        function: of a clip: the inputs ⇒ the value, or None where it is not defined. Of a set: for each need a list
            with the rows of each clip, and a :class:`~vta_sam.metrics.intervals.Resampling` ⇒ a SetValue, or why there
            is none. One that needs a waveform runs in worker processes: it has to be a function of a module.
        attribute: of the function's result, where that has several values.
        per_backbone: one row for each backbone, or for those with classes, without, or with sound events.
        backbone: the backbone that it needs, where it needs one.
        flow: the variant of optical flow that it needs, where it needs one.
        standard: False: only with ``metrics=all``.
        proportion: the values of single clips are 0 or 1, and their mean is a share: its interval is Wilson's.
        in_figures: whether the figures stage of training computes it. There the only backbone is the embedded tagger,
            and there are neither optical flow nor events.
    """

    key: str
    title: str
    better: Better
    scope: Scope
    unit: str = ""
    decimals: int = 3
    control: bool = False
    source: str = ""
    definition: str = ""
    version: int = 1
    group: Group = "Likeness"
    needs: tuple[str, ...] = ()
    function: Callable[..., Any] | None = field(default=None, compare=False, repr=False)
    attribute: str = ""
    per_backbone: PerBackbone = ""
    backbone: str = ""
    flow: str = ""
    standard: bool = True
    proportion: bool = False
    in_figures: bool = True

    def __post_init__(self) -> None:
        faults = [f"needs {need!r}, but there is {', '.join(NEEDS)}" for need in self.needs if need not in NEEDS]
        for name, allowed in (("better", ("high", "low", "none")), ("scope", ("clip", "set")), ("group", GROUPS)):
            if getattr(self, name) not in allowed:
                faults.append(f"{name} is {getattr(self, name)!r}, expected one of {', '.join(allowed)}")
        if self.function is not None and self.needs:
            of_backbone = any(need.rpartition(".")[2] in _OF_A_BACKBONE for need in self.needs)
            if of_backbone and not (self.backbone or self.per_backbone):
                faults.append("needs a backbone's output; say per_backbone= or backbone=")
            if self.needs_waveform and (self.control or self.scope == "set"):
                faults.append("needs a waveform, which is kept for no control and for no set; leave control and scope")
            if "true.flow" in self.needs and not self.flow:
                faults.append("needs optical flow; say flow=\"full\" or flow=\"fast\"")
        if self.proportion and self.scope == "set":
            faults.append("is of a set, which is no share of clips; leave proportion")
        if self.per_backbone and "{backbone}" not in self.key:
            faults.append("has per_backbone=, so that its key must hold {backbone}")
        if faults:
            raise InputError(f"metric {self.key!r}: {'; '.join(faults)}")

    @property
    def arrow(self) -> str:
        return {"high": "↑", "low": "↓", "none": ""}[self.better]

    @property
    def heading(self) -> str:
        """Its name for readers, the better direction and the unit."""
        return " ".join((self.title, *filter(None, (self.arrow, self.unit and f"({self.unit})"))))

    @property
    def needs_waveform(self) -> bool:
        return any(need.endswith(".waveform") for need in self.needs)

    @property
    def needs_objects(self) -> bool:
        return "true.objects" in self.needs

    @property
    def needs_events(self) -> bool:
        return self.needs_objects or any(need.endswith(".sound_events") for need in self.needs)

    @property
    def needs_label(self) -> bool:
        return "true.label" in self.needs

    def described(self) -> dict[str, Any]:
        """⇒ the metric's entry in evaluation.json."""
        return {f.name: getattr(self, f.name) for f in fields(self) if f.name in _DESCRIPTIVE}

    @property
    def reading(self) -> dict[str, Any]:
        """What a number of it can't be read without."""
        return {"unit": self.unit, "better": self.better, "version": self.version}

    def of_backbone(self, name: str, title: str) -> "Metric":
        """⇒ the row of one backbone."""
        return replace(self, key=self.key.replace("{backbone}", name), title=self.title.replace("{title}", title),
                       per_backbone="", backbone=name)


_DESCRIPTIVE = ("key", "title", "better", "scope", "unit", "decimals", "control", "source", "definition", "version",
                "group", "proportion")


def clip_values(metrics: Iterable[Metric], sound: SoundMeasurements, truth: ClipTruth,
                classes: Mapping[str, Sequence[str]], control: bool = False) -> Values:
    """⇒ {key: value} of one sound against one truth, None where a metric is not defined.

    Args:
        metrics: rows; metrics of whole sets are passed over.
        sound: the scored sound.
        truth: the clip that it is scored against.
        classes: {backbone: names of its classes}.
        control: the truth is another clip's; only the metrics with a control.
    """
    results: dict[Any, Any] = {}
    values: Values = {}
    for metric in metrics:
        if metric.scope == "set" or control and not metric.control:
            continue
        if metric.needs_waveform:
            values[metric.key] = sound.pair_values.get(metric.key)
            continue
        call = metric.function, metric.needs, metric.backbone, metric.flow
        if call not in results:  # several rows may show one function's attributes
            inputs = [clip_input(need, metric, sound, truth, classes) for need in metric.needs]
            assert metric.function is not None
            results[call] = None if any(value is None for value in inputs) else metric.function(*inputs)
        values[metric.key] = _number(metric, results[call])
    return values


def clip_input(need: str, metric: Metric, sound: SoundMeasurements, truth: ClipTruth,
               classes: Mapping[str, Sequence[str]]) -> Any:
    """⇒ the value of one input of a metric's function; None: this clip has none."""
    if need == "true.events_s":
        return truth.onsets_s
    if need == "true.objects":
        return truth.objects
    if need == "true.label":
        return truth.label or None
    if need == "true.flow":
        return truth.flows.get(metric.flow)
    if need == "true.pictures":
        return truth.pictures
    if need == "backbone.classes":
        return classes.get(metric.backbone) or None
    side, _, name = need.partition(".")
    of = sound if side == "generated" else truth.sound
    if name == "track":
        return of.embeddings.get(SYNC, {}).get("embeddings")
    if name in _OF_A_BACKBONE:
        return of.embeddings.get(metric.backbone, {}).get(name)
    return getattr(of.features, name)


def waveform_value(metric: Metric, true: np.ndarray, generated: np.ndarray) -> float | None:
    """⇒ the value of a metric that needs waveforms.

    Raises:
        InputError: it also needs something else.
    """
    waveforms = {"true.waveform": true, "generated.waveform": generated}
    if not set(metric.needs) <= set(waveforms):
        raise InputError(f"metric {metric.key!r} needs {', '.join(metric.needs)}; one that needs a waveform may need "
                         f"nothing but {' and '.join(waveforms)}")
    assert metric.function is not None
    return _number(metric, metric.function(*(waveforms[need] for need in metric.needs)))


def _number(metric: Metric, result: Any) -> float | None:
    if result is not None and metric.attribute:
        result = getattr(result, metric.attribute)
    return None if result is None or np.isnan(result) else float(result)


# ---------------------------------------------------------------------- what the inputs come from

@dataclass
class SoundMeasurements:
    """Inputs of the metrics from one sound.

    digest: of its file and of how it was read. notes: what reading did to it, in words. embeddings: {backbone: its
    arrays ``embeddings`` (R, D) and, where it has them, ``logits`` (C,) and ``sound_events`` (E, 2)}. waveform
    (samples,): only as long as something has to be computed from it. pair_values: {metric key: value} of the metrics
    that need waveforms. padded: whether silence was appended. fitted_s: seconds of silence appended to reach the true
    sound's length; below 0: seconds cut off.
    """

    features: SoundFeatures | WaveformFeatures
    digest: str = ""
    notes: list[str] = field(default_factory=list)
    embeddings: dict[str, Arrays] = field(default_factory=dict)
    waveform: np.ndarray | None = None
    pair_values: dict[str, float | None] = field(default_factory=dict)
    padded: bool = False
    fitted_s: float = 0.0


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
    detected in the true sound. label: its class, empty where it is not known. flows: {variant: of its pictures}.
    objects: with their events; None where these are not known. pictures (steps, dim): their track by the sync network,
    where there is one."""

    sound: SoundMeasurements
    onsets_s: np.ndarray
    exact: bool = False
    label: str = ""
    flows: dict[str, FlowTrajectory] = field(default_factory=dict)
    objects: Sequence[ObjectOnsets] | None = None
    pictures: np.ndarray | None = None


def true_events(reference: Path) -> tuple[np.ndarray, Words, list[ObjectOnsets]] | None:
    """⇒ an embedded clip's true onsets in seconds, its words and its objects, from the files beside it; None for any
    other clip. The label is the one object's word, empty where there are several.

    Raises:
        InputError: the truth is there, but damaged.
    """
    if not truth_paths(reference)[0].is_file():
        return None
    truth = read_truth(reference)
    label = truth.words[0] if len(truth.words) == 1 else ""
    return truth.onsets_s(), Words(label, truth.caption, tuple(truth.words)), objects_of(truth)


def objects_of(truth: SceneTruth) -> list[ObjectOnsets]:
    """⇒ an embedded clip's objects. A look-alike has no sound of its own; it counts as the thing that it resembles."""
    return [ObjectOnsets(class_of(thing.word).word, thing.named, np.array([event.onset_s for event in thing.events]))
            for thing in truth.objects]


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
        objects = None if exact is None else exact[2]
        self.truths[clip.id] = ClipTruth(clip.reference, onsets_s, exact is not None, words.label, flows, objects)
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
