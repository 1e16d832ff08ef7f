"""From measured sounds to figures: means over clips with intervals, controls, ceilings, differences, who is best."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from ..metrics.statistics import Interval, bootstrap_interval, derangement, paired_difference
from .bank import Bank
from .columns import Column
from .measure import Measured
from .results import ClipScores, Evaluation, Figure, SystemResult
from .scores import Values, control_values, values
from .sets import SetFigures


@dataclass
class Judge:
    """bank: everything measured. columns: what is to be judged, in order. missing: {column key: why}. sets: figures of
    whole sets. seed, resamples: of bootstrap and control. reference: the system whose sounds are the true ones."""

    bank: Bank
    columns: Sequence[Column]
    missing: dict[str, str]
    sets: SetFigures
    seed: int = 0
    resamples: int = 2000
    reference: str | None = None
    classes: tuple[str, ...] = ()  # of the embedded tagger

    def __post_init__(self) -> None:
        self.clips = list(self.bank.truths)
        order: list[int] = derangement(len(self.clips), self.seed).tolist() if len(self.clips) > 1 else []
        self.partner = {clip: self.clips[i] for clip, i in zip(self.clips, order)}
        self.scores = {name: self._scores(sounds) for name, sounds in self.bank.sounds.items()}
        self.ceiling = self._scores({clip: [sound] for clip, sound in self.bank.ceiling.items()})

    def evaluation(self) -> Evaluation:
        """Everything that can be said ⇒ Evaluation (without provenance)."""
        systems = {name: self._system(name) for name in self.bank.sounds}
        differences = self._differences()
        missing = dict(self.missing)
        for column in self.columns:  # a reason that holds for all is told once
            reasons = {system.figures[column.key].reason for system in systems.values()}
            if len(reasons) == 1 and reasons != {""}:
                missing[column.key] = reasons.pop()
        return Evaluation(list(self.columns), systems, self.clips, differences, self._best(systems, differences),
                          self.reference, missing)

    def _scores(self, sounds: dict[str, list[Measured]]) -> dict[str, tuple[Values, Values]]:
        """{clip: (values, values of the control)}, each meaned over the clip's samples."""
        truths, scored = self.bank.truths, {}
        for clip, samples in sounds.items():
            control = [control_values(sound, truths[self.partner[clip]]) for sound in samples] if self.partner else []
            scored[clip] = _meaned([values(sound, truths[clip], self.classes) for sound in samples]), _meaned(control)
        return scored

    def _shared(self, *scores: dict[str, tuple[Values, Values]]) -> list[str]:
        """Clips that all of them have, in order."""
        return [clip for clip in self.clips if all(clip in scored for scored in scores)]

    def _system(self, name: str) -> SystemResult:
        sounds, scores = self.bank.sounds[name], self.scores[name]
        figures = {column.key: self._figure(name, column) for column in self.columns}
        clips = {}
        for clip, samples in sounds.items():
            notes = sorted({note for sound in samples for note in sound.notes})
            shown = {column.key: scores[clip][0].get(column.key) for column in self.columns if column.scope == "clip"}
            clips[clip] = ClipScores(shown, [round(float(t), 4) for t in samples[0].features.onsets_s],
                                     all(sound.features.level.silent for sound in samples), notes)
        # a sound under a silent clip may well be silent
        silent = [float(sound.features.level.silent) for clip, samples in sounds.items() for sound in samples
                  if not self.bank.truths[clip].sound.features.level.silent]
        padded = sum(sound.padded for samples in sounds.values() for sound in samples)
        plan = self.bank.plan
        return SystemResult(name, figures, clips, sum(map(len, sounds.values())), self._interval(silent), padded,
                            self.bank.bad[name], plan.unmatched.get(name, []), plan.absent.get(name, []))

    def _figure(self, name: str, column: Column) -> Figure:
        if column.key in self.missing:
            return Figure(None, reason=self.missing[column.key])
        if column.scope == "set":
            ceiling = {clip: [sound] for clip, sound in self.bank.ceiling.items()}
            return self.sets.figure(column.key, name, self.bank.sounds[name], ceiling)
        scored, clips = self.scores[name], self._shared(self.scores[name])
        scores = [scored[clip][0].get(column.key) for clip in clips]
        if all(value is None for value in scores):
            return Figure(None, reason="not defined on any of these clips")
        control = [scored[clip][1].get(column.key) for clip in clips] if column.control and self.partner else None
        bound = [self.ceiling[clip][0].get(column.key) for clip in self._shared(self.ceiling)]
        return Figure(
            self._interval(scores),
            self._interval(control) if control else None,
            paired_difference(scores, control, self.seed, self.resamples) if control else None,
            self._interval(bound) if any(value is not None for value in bound) else None,
        )

    def _interval(self, scores: Sequence[float | None]) -> Interval:
        return bootstrap_interval(scores, self.seed, self.resamples)

    def _differences(self) -> dict[str, dict[str, Interval]]:
        """{"A − B": {column key: paired difference}} for each two systems, the reference left out."""
        names = [name for name in self.bank.sounds if name != self.reference]
        found: dict[str, dict[str, Interval]] = {}
        for i, first in enumerate(names):
            for second in names[i + 1:]:
                found[pair_name(first, second)] = rows = {}
                for column in self.columns:
                    if column.key in self.missing:
                        continue
                    difference = self._difference(column, first, second)
                    if difference is not None and difference.n:
                        rows[column.key] = difference
        return found

    def _difference(self, column: Column, first: str, second: str) -> Interval | None:
        if column.scope == "set":
            sounds = self.bank.sounds
            return self.sets.difference(column.key, (first, sounds[first]), (second, sounds[second]))
        clips = self._shared(self.scores[first], self.scores[second])
        one, other = ([self.scores[name][clip][0].get(column.key) for clip in clips] for name in (first, second))
        return paired_difference(one, other, self.seed, self.resamples)

    def _best(self, systems: dict[str, SystemResult], differences: dict[str, dict[str, Interval]]) -> dict[str, str]:
        """Per column the system that is ahead of every other ranked one: the paired differences exclude 0."""
        best = {}
        for column in self.columns:
            sign = {"high": 1.0, "low": -1.0}.get(column.better)
            rivals = [name for name, system in systems.items()
                      if name != self.reference and system.ranked and system.figures[column.key].score is not None]
            if sign is None or len(rivals) < 2:
                continue
            for name in rivals:
                if all(_ahead(differences, name, other, column.key, sign) for other in rivals if other != name):
                    best[column.key] = name
        return best


def pair_name(first: str, second: str) -> str:
    """How a paired difference is called."""
    return f"{first} − {second}"


def _ahead(differences: dict[str, dict[str, Interval]], name: str, other: str, key: str, sign: float) -> bool:
    for pair, turn in ((pair_name(name, other), sign), (pair_name(other, name), -sign)):
        interval = differences.get(pair, {}).get(key)
        if interval is not None and interval.n > 1:
            return min(turn * interval.low, turn * interval.high) > 0
    return False


def _meaned(samples: Sequence[Values]) -> Values:
    """Mean over a clip's samples, of those where it is defined."""
    keys = dict.fromkeys(key for sample in samples for key in sample)
    found: Values = {}
    for key in keys:
        defined = [value for sample in samples if (value := sample.get(key)) is not None]
        found[key] = float(np.mean(defined)) if defined else None
    return found
