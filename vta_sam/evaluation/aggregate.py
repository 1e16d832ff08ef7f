"""From measured sounds to an evaluation: figures with intervals, controls and ceilings, differences, and the best."""

from __future__ import annotations

import hashlib
import math
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace

import numpy as np

from ..metrics.intervals import (
    NORMAL, Interval, Resampling, SetValue, Table, bootstrap_interval, derangement, paired_difference, standard_error
)
from ..runtime.files import printable
from .metric import ClipTruth, Measurements, Metric, SoundMeasurements, Values, clip_input, clip_values
from .results import ClipScores, Evaluation, Figure, SystemResult
from .sounds import PADDED_S

Sounds = Mapping[str, Sequence[SoundMeasurements]]  # {clip: samples}


def figure_of_scores(scores: Table, control: Table | None = None, ceiling: Sequence[float | None] = (), seed: int = 0,
                     resamples: int = 2000, proportion: bool = False) -> Figure:
    """⇒ a figure with its intervals, of values per clip.

    Args:
        scores: one per clip, or (samples, clips); None and NaN: not defined.
        control: the same sounds against other clips' truth, in the same order; None: there is none.
        ceiling: the true sound through VAE and vocoder.
        seed: of the bootstrap.
        resamples: of the bootstrap.
        proportion: see :func:`~vta_sam.metrics.intervals.bootstrap_interval`.
    """
    return Figure(
        bootstrap_interval(scores, seed, resamples, proportion),
        bootstrap_interval(control, seed, resamples, proportion) if control is not None else None,
        paired_difference(scores, control, seed, resamples, proportion) if control is not None else None,
        bootstrap_interval(ceiling, seed, resamples, proportion) if any(v is not None for v in ceiling) else None,
    )


@dataclass
class SetFigures:
    """Figures of whole sets. A pair of systems with the same clips is resampled by the same draws, so that their
    difference is paired.

    Args:
        truths: {clip: truth}.
        resampling: of clips.
    """

    truths: Mapping[str, ClipTruth]
    resampling: Resampling = Resampling()
    _computed: dict[tuple, tuple[SetValue | str, tuple[str, ...]]] = field(default_factory=dict)

    def figure(self, metric: Metric, name: str, sounds: Sounds, ceiling: Sounds) -> Figure:
        """⇒ the figure of the system called ``name``. Its interval is value ± 1.96 bootstrap standard errors: drawn
        clips repeat, which raises a Fréchet distance, so that percentiles would lie beside it."""
        value, clips = self._value(metric, name, sounds)
        if isinstance(value, str):
            return Figure(None, reason=value)
        bound, bound_clips = self._value(metric, "ceiling of the model", ceiling) if ceiling else ("", ())
        return Figure(_interval_of(value, len(clips)), detail=value.detail, note=value.note,
                      ceiling=None if isinstance(bound, str) else _interval_of(bound, len(bound_clips)))

    def difference(self, metric: Metric, first: tuple[str, Sounds], second: tuple[str, Sounds]) -> Interval | None:
        """⇒ first − second over the clips that both have; None where a side has no value, or no interval."""
        common = [clip for clip in first[1] if clip in second[1]]
        (one, one_clips), (other, other_clips) = (
            self._value(metric, name, {clip: sounds[clip] for clip in common}) for name, sounds in (first, second))
        if isinstance(one, str) or isinstance(other, str) or one.resampled is None or other.resampled is None \
                or one_clips != other_clips:
            return None
        return _interval(one.value - other.value, one.resampled - other.resampled, len(one_clips))

    def _value(self, metric: Metric, name: str, sounds: Sounds) -> tuple[SetValue | str, tuple[str, ...]]:
        """⇒ a value, or why there is none; and the clips that it is of."""
        known = (metric.key, name, tuple(sounds))
        if known not in self._computed:
            assert metric.function is not None
            clips, inputs = self._inputs(metric, sounds)
            value = metric.function(*inputs, self.resampling)
            if not isinstance(value, str) and not math.isfinite(value.value):
                value = f"is not finite ({value.value}) on these {len(clips)} clips"
            self._computed[known] = value, tuple(clips)
        return self._computed[known]

    def _inputs(self, metric: Metric, sounds: Sounds) -> tuple[list[str], list[list[np.ndarray]]]:
        """⇒ the clips that have every input, and for each need the rows of these clips, of all their samples."""
        clips: list[str] = []
        inputs: list[list[np.ndarray]] = [[] for _ in metric.needs]
        for clip, samples in sounds.items():
            rows: list[np.ndarray] = []
            for need in metric.needs:
                of = samples if need.startswith("generated.") else samples[:1]
                parts = [clip_input(need, metric, sample, self.truths[clip], {}) for sample in of]
                # classes are (C,), one row a sound; embeddings are (R, D), without a row where the sound is too short
                parts = [np.atleast_2d(part) for part in parts if part is not None and len(part)]
                rows += [np.concatenate(parts)] if parts else []
            if len(rows) == len(metric.needs):
                clips.append(clip)
                for column, part in zip(inputs, rows):
                    column.append(part)
        return clips, inputs


def _interval_of(value: SetValue, clips: int) -> Interval:
    """⇒ the interval of a figure; it ends at 0 where the figure can't be negative."""
    interval = _interval(value.value, value.resampled, clips)
    cut = not value.signed and interval.low < 0 <= interval.mean
    return replace(interval, low=0.0) if cut else interval


def _interval(value: float, resampled: np.ndarray | None, clips: int) -> Interval:
    if resampled is None:
        return Interval(value, np.nan, np.nan, clips)
    half = NORMAL * standard_error(resampled)
    return Interval(value, value - half, value + half, clips)


Scored = tuple[list[Values], list[Values]]  # a clip's values and its control's, of each sample


@dataclass
class Aggregate:
    """Turns measurements into an evaluation.

    Args:
        measurements: of all clips.
        metrics: in the order to be shown.
        missing: {metric key: why it can't be computed}.
        sets: figures of whole sets.
        seed: of bootstrap and control.
        resamples: of the bootstrap.
        reference: the system whose sounds are the true ones.
        classes: {backbone: names of its classes}.
    """

    measurements: Measurements
    metrics: Sequence[Metric]
    missing: dict[str, str]
    sets: SetFigures
    seed: int = 0
    resamples: int = 2000
    reference: str | None = None
    classes: Mapping[str, Sequence[str]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.clips = list(self.measurements.truths)
        order: list[int] = derangement(len(self.clips), self.seed).tolist() if len(self.clips) > 1 else []
        self.partner = {clip: self.clips[i] for clip, i in zip(self.clips, order)}
        self.scores = {name: self._scores(sounds) for name, sounds in self.measurements.sounds.items()}
        self.ceiling = self._scores({clip: [sound] for clip, sound in self.measurements.ceiling.items()}, False)

    def evaluation(self) -> Evaluation:
        """⇒ the evaluation, without its provenance."""
        systems = {name: self._system(name) for name in self.measurements.sounds}
        differences = self._differences()
        missing = dict(self.missing)
        for metric in self.metrics:  # a reason that holds for all systems is given once
            reasons = {system.figures[metric.key].reason for system in systems.values()}
            if len(reasons) == 1 and reasons != {""}:
                missing[metric.key] = reasons.pop()
        notes = [*notes_on(self.measurements, self.reference), *_notes_on_figures(self.metrics, systems)]
        return Evaluation(list(self.metrics), systems, self.clips, differences, self._best(systems, differences),
                          self.reference, missing, notes=notes)

    def _scores(self, sounds: dict[str, list[SoundMeasurements]], controls: bool = True) -> dict[str, Scored]:
        """⇒ {clip: (values, values of the control)}, each of every sample of the clip."""
        truths, scored = self.measurements.truths, {}
        for clip, samples in sounds.items():
            control = [clip_values(self.metrics, sound, truths[self.partner[clip]], self.classes, control=True)
                       for sound in samples] if self.partner and controls else []
            scored[clip] = [clip_values(self.metrics, sound, truths[clip], self.classes) for sound in samples], control
        return scored

    def _shared(self, *scores: dict[str, Scored]) -> list[str]:
        """⇒ the clips that all of them have, in order."""
        return [clip for clip in self.clips if all(clip in scored for scored in scores)]

    def _system(self, name: str) -> SystemResult:
        sounds, scores = self.measurements.sounds[name], self.scores[name]
        figures = {metric.key: self._figure(name, metric) for metric in self.metrics}
        clips = {}
        for clip, samples in sounds.items():
            notes = sorted({note for sound in samples for note in sound.notes})
            means = mean_values(scores[clip][0])
            shown = {metric.key: means.get(metric.key) for metric in self.metrics if metric.scope == "clip"}
            clips[clip] = ClipScores(shown, [round(float(t), 4) for t in samples[0].features.onsets_s],
                                     all(sound.features.level.silent for sound in samples), notes)
        # a sound under a silent clip may well be silent
        silent = [[float(sound.features.level.silent) for sound in samples] for clip, samples in sounds.items()
                  if not self.measurements.truths[clip].sound.features.level.silent]
        padded = sum(sound.padded for samples in sounds.values() for sound in samples)
        plan = self.measurements.plan
        return SystemResult(name, figures, clips, sum(map(len, sounds.values())),
                            bootstrap_interval(_table(silent), self.seed, self.resamples, proportion=True), padded,
                            self.measurements.bad[name], plan.unmatched.get(name, []), plan.absent.get(name, []))

    def _figure(self, name: str, metric: Metric) -> Figure:
        if metric.key in self.missing:
            return Figure(None, reason=self.missing[metric.key])
        if metric.scope == "set":
            ceiling = {clip: [sound] for clip, sound in self.measurements.ceiling.items()}
            return self.sets.figure(metric, name, self.measurements.sounds[name], ceiling)
        scored, clips = self.scores[name], self._shared(self.scores[name])
        scores = _table([[values.get(metric.key) for values in scored[clip][0]] for clip in clips])
        if np.isnan(scores).all():
            return Figure(None, reason="not defined on any of these clips")
        control = _table([[values.get(metric.key) for values in scored[clip][1]] for clip in clips]) \
            if metric.control and self.partner else None
        bounds = [self.ceiling[clip][0][0].get(metric.key) for clip in self._shared(self.ceiling)]
        return figure_of_scores(scores, control, bounds, self.seed, self.resamples, metric.proportion)

    def _differences(self) -> dict[str, dict[str, Interval]]:
        """⇒ {"A − B": {metric key: paired difference}} for each two systems but the reference."""
        names = [name for name in self.measurements.sounds if name != self.reference]
        found: dict[str, dict[str, Interval]] = {}
        for i, first in enumerate(names):
            for second in names[i + 1:]:
                found[pair_name(first, second)] = rows = {}
                for metric in self.metrics:
                    if metric.key in self.missing:
                        continue
                    difference = self._difference(metric, first, second)
                    if difference is not None and difference.n:
                        rows[metric.key] = difference
        return found

    def _difference(self, metric: Metric, first: str, second: str) -> Interval | None:
        if metric.scope == "set":
            sounds = self.measurements.sounds
            return self.sets.difference(metric, (first, sounds[first]), (second, sounds[second]))
        clips = self._shared(self.scores[first], self.scores[second])
        one, other = (_table([[values.get(metric.key) for values in self.scores[name][clip][0]] for clip in clips])
                      for name in (first, second))
        return paired_difference(one, other, self.seed, self.resamples, metric.proportion)

    def _best(self, systems: dict[str, SystemResult], differences: dict[str, dict[str, Interval]]) -> dict[str, str]:
        """⇒ {metric key: the system whose paired difference to every other ranked one excludes 0}."""
        best = {}
        for metric in self.metrics:
            sign = {"high": 1.0, "low": -1.0}.get(metric.better)
            rivals = [name for name, system in systems.items()
                      if name != self.reference and system.ranked and system.figures[metric.key].score is not None]
            if sign is None or len(rivals) < 2:
                continue
            for name in rivals:
                if all(_ahead(differences, name, other, metric.key, sign) for other in rivals if other != name):
                    best[metric.key] = name
        return best


def pair_name(first: str, second: str) -> str:
    """⇒ the name of a paired difference."""
    return f"{first} − {second}"


def _ahead(differences: dict[str, dict[str, Interval]], name: str, other: str, key: str, sign: float) -> bool:
    for pair, turn in ((pair_name(name, other), sign), (pair_name(other, name), -sign)):
        interval = differences.get(pair, {}).get(key)
        if interval is not None and interval.n > 1:
            return min(turn * interval.low, turn * interval.high) > 0
    return False


def mean_values(samples: Sequence[Values]) -> Values:
    """⇒ the mean over a clip's samples, of those where it is defined."""
    keys = dict.fromkeys(key for sample in samples for key in sample)
    found: Values = {}
    for key in keys:
        defined = [value for sample in samples if (value := sample.get(key)) is not None]
        found[key] = float(np.mean(defined)) if defined else None
    return found


def _table(samples: Sequence[Sequence[float | None]]) -> np.ndarray:
    """Values of each clip's samples ⇒ (samples, clips), NaN where not defined, or where a clip has fewer samples."""
    table = np.full((max(map(len, samples), default=1), len(samples)), np.nan)
    for column, values in enumerate(samples):
        table[:len(values), column] = [np.nan if value is None else value for value in values]
    return table


# ---------------------------------------------------------------------- what the figures don't say of themselves

_NAMED = 3  # clips that a note names


def notes_on(measured: Measurements, reference: str | None) -> list[str]:
    """⇒ sentences on sounds whose figures say something else than they seem to: the true sounds themselves, one sound
    under many names, silence, and sounds that were cut or padded.

    Args:
        measured: of all clips.
        reference: the system whose sounds are the true ones.
    """
    truths = {clip: [truth.sound] for clip, truth in measured.truths.items()}
    notes = []
    if len(truths) == 1:
        notes.append("there is one clip: its figures have no interval and no control")
    if reference is not None and len(measured.sounds) == 1:
        notes.append(f"{reference} is the folder of the true sounds itself: these are the figures of the truth against "
                     "itself, and say nothing of a system")
    notes += _alike("the true sounds", truths)
    silent = [clip for clip, [sound] in truths.items() if sound.features.level.silent]
    if silent:
        notes.append(f"the true sound of {_clips(silent)} is silent (below -60 dBFS throughout)")
    for name, sounds in measured.sounds.items():
        if name != reference:
            notes += _notes_on_system(name, sounds, measured)
    notes += _length_notes({name: sounds for name, sounds in measured.sounds.items() if name != reference})
    names = [name for name in measured.sounds if name != reference]
    for i, first in enumerate(names):
        for second in names[i + 1:]:
            same = _same(measured.sounds[first], measured.sounds[second])
            if same:
                notes.append(f"{first} and {second} have the same sound in {_clips(same)}")
    return [printable(note) for note in notes]


def _notes_on_system(name: str, sounds: Sounds, measured: Measurements) -> list[str]:
    if not sounds:
        first = next(iter(measured.bad[name].values()), "no file of it could be used")
        return [f"{name} has no sound that could be scored; the first: {first}"]
    truths = {clip: [measured.truths[clip].sound] for clip in sounds}
    notes = []
    if same := _same(sounds, truths):
        notes.append(f"{name} has the true sound itself in {_clips(same)}: copies of the truth, not generated sound")
    notes += _alike(name, sounds)
    silent = [clip for clip, samples in sounds.items() if not truths[clip][0].features.level.silent
              and any(sound.features.level.silent for sound in samples)]
    if silent:
        notes.append(f"{name} is silent (below -60 dBFS throughout) in {_clips(silent)}, whose true sound is not")
    return notes


def _length_notes(systems: Mapping[str, Sounds]) -> list[str]:
    """⇒ a sentence for the systems whose sounds were cut or padded alike."""
    alike = defaultdict(list)
    for name, sounds in systems.items():
        every = [sound.fitted_s for samples in sounds.values() for sound in samples]
        changed = {"cut": [-by_s for by_s in every if -by_s > PADDED_S],
                   "padded with silence": [by_s for by_s in every if by_s > PADDED_S]}
        said = [f"{len(by_s)} were {what}, by up to {max(by_s):.2f} s" for what, by_s in changed.items() if by_s]
        if said:
            alike[f"of {len(every)} sounds {' and '.join(said)}, to the length of the true sound"].append(name)
    return [f"{', '.join(names)}: {said}" for said, names in alike.items()]


def _same(first: Sounds, second: Sounds) -> list[str]:
    """⇒ the clips in which some sound of both is the same, and not silent."""
    return [clip for clip in first if clip in second
            and not {*_contents(first[clip])}.isdisjoint(_contents(second[clip]))]


def _alike(name: str, sounds: Sounds) -> list[str]:
    """⇒ a sentence for the sounds that stand under several names."""
    found = defaultdict(list)
    for clip, samples in sounds.items():
        for content in _contents(samples):
            found[content].append(clip)
    groups = [clips for clips in found.values() if len(clips) > 1]
    if not groups:
        return []
    most = max(groups, key=len)
    more = f", and {len(groups) - 1} more such groups" if len(groups) > 1 else ""
    return [f"{name}: {len(most)} sounds are one and the same, of {_clips(list(dict.fromkeys(most)))}{more}"]


def _contents(samples: Iterable[SoundMeasurements]) -> list[tuple[object, ...]]:
    """⇒ of each sound that is not silent what is equal for equal sounds, in whatever file or format they come."""
    found = [sound.features for sound in samples if not sound.features.level.silent]
    return [(of.samples, of.level.rms_dbfs, of.level.peak, hashlib.sha256(of.envelope.tobytes()).digest())
            for of in found]


def _clips(clips: Sequence[str]) -> str:
    more = f" and {len(clips) - _NAMED} more" if len(clips) > _NAMED else ""
    return f"clip{'s' if len(clips) > 1 else ''} {', '.join(clips[:_NAMED])}{more}"


def _notes_on_figures(metrics: Sequence[Metric], systems: Mapping[str, SystemResult]) -> list[str]:
    """⇒ what the functions of whole sets say of their values, each sentence once for all metrics and systems."""
    said: dict[str, tuple[dict[str, None], dict[str, None]]] = {}
    for metric in metrics:
        for name, system in systems.items():
            if note := system.figures[metric.key].note:
                titles, names = said.setdefault(note, ({}, {}))
                titles[metric.title], names[name] = None, None
    return [printable(f"{', '.join(titles)} of {', '.join(names)}: {note}") for note, (titles, names) in said.items()]
