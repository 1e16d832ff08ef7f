"""From measured sounds to an evaluation: figures with intervals, controls and ceilings, differences, and the best."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace

import numpy as np

from ..metrics.intervals import (
    Interval, Resampling, SetValue, bootstrap_interval, derangement, paired_difference, standard_error
)
from .metric import ClipTruth, Measurements, Metric, SoundMeasurements, Values, clip_input, clip_values
from .results import ClipScores, Evaluation, Figure, SystemResult

Sounds = Mapping[str, Sequence[SoundMeasurements]]  # {clip: samples}
_NORMAL = 1.96  # of a 95 % interval


def figure_of_scores(scores: Sequence[float | None], control: Sequence[float | None] | None = None,
                     ceiling: Sequence[float | None] = (), seed: int = 0, resamples: int = 2000) -> Figure:
    """⇒ a figure with its intervals, of values per clip.

    Args:
        scores: one per clip; None: not defined.
        control: the same sounds against other clips' truth, in the same order; None: there is none.
        ceiling: the true sound through VAE and vocoder.
        seed: of the bootstrap.
        resamples: of the bootstrap.
    """
    return Figure(
        bootstrap_interval(scores, seed, resamples),
        bootstrap_interval(control, seed, resamples) if control else None,
        paired_difference(scores, control, seed, resamples) if control else None,
        bootstrap_interval(ceiling, seed, resamples) if any(value is not None for value in ceiling) else None,
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
        return Figure(_not_negative(value, len(clips)), detail=value.detail,
                      ceiling=None if isinstance(bound, str) else _not_negative(bound, len(bound_clips)))

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
            self._computed[known] = metric.function(*inputs, self.resampling), tuple(clips)
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


def _not_negative(value: SetValue, clips: int) -> Interval:
    """⇒ the interval of a figure that is never negative."""
    interval = _interval(value.value, value.resampled, clips)
    return replace(interval, low=max(0.0, interval.low)) if interval.low < 0 <= interval.mean else interval


def _interval(value: float, resampled: np.ndarray | None, clips: int) -> Interval:
    if resampled is None:
        return Interval(value, np.nan, np.nan, clips)
    half = _NORMAL * standard_error(resampled)
    return Interval(value, value - half, value + half, clips)


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
        self.ceiling = self._scores({clip: [sound] for clip, sound in self.measurements.ceiling.items()})

    def evaluation(self) -> Evaluation:
        """⇒ the evaluation, without its provenance."""
        systems = {name: self._system(name) for name in self.measurements.sounds}
        differences = self._differences()
        missing = dict(self.missing)
        for metric in self.metrics:  # a reason that holds for all systems is given once
            reasons = {system.figures[metric.key].reason for system in systems.values()}
            if len(reasons) == 1 and reasons != {""}:
                missing[metric.key] = reasons.pop()
        return Evaluation(list(self.metrics), systems, self.clips, differences, self._best(systems, differences),
                          self.reference, missing)

    def _scores(self, sounds: dict[str, list[SoundMeasurements]]) -> dict[str, tuple[Values, Values]]:
        """⇒ {clip: (values, values of the control)}, each the mean over the clip's samples."""
        truths, scored = self.measurements.truths, {}
        for clip, samples in sounds.items():
            control = [clip_values(self.metrics, sound, truths[self.partner[clip]], self.classes, control=True)
                       for sound in samples] if self.partner else []
            own = [clip_values(self.metrics, sound, truths[clip], self.classes) for sound in samples]
            scored[clip] = mean_values(own), mean_values(control)
        return scored

    def _shared(self, *scores: dict[str, tuple[Values, Values]]) -> list[str]:
        """⇒ the clips that all of them have, in order."""
        return [clip for clip in self.clips if all(clip in scored for scored in scores)]

    def _system(self, name: str) -> SystemResult:
        sounds, scores = self.measurements.sounds[name], self.scores[name]
        figures = {metric.key: self._figure(name, metric) for metric in self.metrics}
        clips = {}
        for clip, samples in sounds.items():
            notes = sorted({note for sound in samples for note in sound.notes})
            shown = {metric.key: scores[clip][0].get(metric.key) for metric in self.metrics if metric.scope == "clip"}
            clips[clip] = ClipScores(shown, [round(float(t), 4) for t in samples[0].features.onsets_s],
                                     all(sound.features.level.silent for sound in samples), notes)
        # a sound under a silent clip may well be silent
        silent = [float(sound.features.level.silent) for clip, samples in sounds.items() for sound in samples
                  if not self.measurements.truths[clip].sound.features.level.silent]
        padded = sum(sound.padded for samples in sounds.values() for sound in samples)
        plan = self.measurements.plan
        return SystemResult(name, figures, clips, sum(map(len, sounds.values())), self._interval(silent), padded,
                            self.measurements.bad[name], plan.unmatched.get(name, []), plan.absent.get(name, []))

    def _figure(self, name: str, metric: Metric) -> Figure:
        if metric.key in self.missing:
            return Figure(None, reason=self.missing[metric.key])
        if metric.scope == "set":
            ceiling = {clip: [sound] for clip, sound in self.measurements.ceiling.items()}
            return self.sets.figure(metric, name, self.measurements.sounds[name], ceiling)
        scored, clips = self.scores[name], self._shared(self.scores[name])
        scores = [scored[clip][0].get(metric.key) for clip in clips]
        if all(value is None for value in scores):
            return Figure(None, reason="not defined on any of these clips")
        control = [scored[clip][1].get(metric.key) for clip in clips] if metric.control and self.partner else None
        bounds = [self.ceiling[clip][0].get(metric.key) for clip in self._shared(self.ceiling)]
        return figure_of_scores(scores, control, bounds, self.seed, self.resamples)

    def _interval(self, scores: Sequence[float | None]) -> Interval:
        return bootstrap_interval(scores, self.seed, self.resamples)

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
        one, other = ([self.scores[name][clip][0].get(metric.key) for clip in clips] for name in (first, second))
        return paired_difference(one, other, self.seed, self.resamples)

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
