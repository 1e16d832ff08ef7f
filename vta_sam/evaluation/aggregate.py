"""Figures about whole sets of sounds, over the vectors and classes that backbones hear in them."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace

import numpy as np

from ..metrics.classes import inception_score
from ..metrics.frechet import FEWEST_CLIPS, clip_draws, fad_infinity, frechet_distance, resampled_distances
from ..metrics.intervals import Interval, bootstrap_interval, derangement, paired_difference
from .clip_measurements import Bank, Truth
from .columns import Column, Values, control_values, values
from .measure import Measured
from .results import ClipScores, Evaluation, Figure, SystemResult

# MERGED-DOC """From measured sounds to figures: means over clips with intervals, controls, ceilings, differences, who
# is best."""


Sounds = Mapping[str, Sequence[Measured]]  # {clip: samples}
_NORMAL = 1.96  # of a 95 % interval
_SPLITS = 10  # of the Inception score as published


@dataclass
class _Value:
    """A figure of one set: the value, and its bootstrap distribution over ``clips``."""

    value: float
    drawn: np.ndarray | None
    clips: tuple[str, ...]
    detail: dict[str, float] = field(default_factory=dict)


@dataclass
class SetFigures:
    """truths: what sets are held against. resamples: draws of clips behind each interval. Draws depend on the seed and
    on which clips there are alone, so that two systems with the same clips are compared pair by pair."""

    truths: Mapping[str, Truth]
    seed: int = 0
    resamples: int = 200
    _known: dict[tuple, _Value | str] = field(default_factory=dict)

    def figure(self, key: str, name: str, sounds: Sounds, ceiling: Sounds) -> Figure:
        """The column ``key`` of the system called ``name``. Its interval is value ± 1.96 bootstrap standard errors:
        drawn clips repeat, which raises a Fréchet distance, so that percentiles would lie beside it."""
        found = self._value(key, name, sounds)
        if isinstance(found, str):
            return Figure(None, reason=found)
        bound = self._value(key, "ceiling of the model", ceiling) if ceiling else ""
        return Figure(_level(found), detail=found.detail, ceiling=None if isinstance(bound, str) else _level(bound))

    def difference(self, key: str, first: tuple[str, Sounds], second: tuple[str, Sounds]) -> Interval | None:
        """First − second over the clips that both have; None where a side has no value, or no interval."""
        common = [clip for clip in first[1] if clip in second[1]]
        sides = [self._value(key, name, {clip: sounds[clip] for clip in common}) for name, sounds in (first, second)]
        one, other = sides
        if isinstance(one, str) or isinstance(other, str) or one.drawn is None or other.drawn is None \
                or one.clips != other.clips:
            return None
        return _interval(one.value - other.value, one.drawn - other.drawn, len(one.clips))

    def _value(self, key: str, name: str, sounds: Sounds) -> _Value | str:
        """A value, or why there is none."""
        known = (key, name, tuple(sounds))
        if known not in self._known:
            kinds: dict[str, Callable[[str, Sounds], _Value | str]] = {
                "frechet_": self._frechet, "fad_infinity_": self._fad_infinity, "inception_": self._inception}
            prefix = next(prefix for prefix in kinds if key.startswith(prefix))
            self._known[known] = kinds[prefix](key.removeprefix(prefix), sounds)
        return self._known[known]

    def _rows(self, backbone: str, sounds: Sounds) -> tuple[list[str], list[np.ndarray], list[np.ndarray]]:
        """Clips with vectors on both sides, the true ones' rows, the generated ones'."""
        clips, true, generated = [], [], []
        for clip, samples in sounds.items():
            reference = self.truths[clip].sound.rows.get(backbone, {}).get("embeddings", np.zeros((0, 1)))
            rows = [sound.rows[backbone]["embeddings"] for sound in samples if backbone in sound.rows]
            rows = [part for part in rows if len(part)]
            if len(reference) and rows:
                clips.append(clip)
                true.append(reference)
                generated.append(np.concatenate(rows))
        return clips, true, generated

    def _frechet(self, backbone: str, sounds: Sounds) -> _Value | str:
        clips, true, generated = self._rows(backbone, sounds)
        if len(clips) < 2:
            return f"needs at least two clips long enough for the backbone, there are {len(clips)}"
        reference, rows = np.concatenate(true), np.concatenate(generated)
        drawn = resampled_distances(true, generated, clip_draws(len(clips), self.resamples, self.seed))
        detail = {"rows": len(rows), "reference_rows": len(reference), "dimensions": rows.shape[1]}
        return _Value(frechet_distance(reference, rows), drawn, tuple(clips), detail)

    def _fad_infinity(self, backbone: str, sounds: Sounds) -> _Value | str:
        clips, true, generated = self._rows(backbone, sounds)
        found = fad_infinity(true, generated, self.seed)
        if found is None:
            return f"needs at least {FEWEST_CLIPS} clips, there are {len(clips)}"
        detail = {"slope": found.slope, "r_squared": found.r_squared, "clips": len(clips)}
        return _Value(found.value, None, tuple(clips), detail)

    def _inception(self, backbone: str, sounds: Sounds) -> _Value | str:
        heard = {clip: [sound.rows[backbone]["logits"] for sound in samples if "logits" in sound.rows.get(backbone, {})]
                 for clip, samples in sounds.items()}
        heard = {clip: logits for clip, logits in heard.items() if logits}
        if len(heard) < 2:
            return f"needs at least two clips long enough for the backbone, there are {len(heard)}"
        clips = list(heard)
        logits = np.concatenate([np.stack(heard[clip]) for clip in clips])
        drawn = np.array([inception_score(np.concatenate([np.stack(heard[clips[i]]) for i in draw]))[0]
                          for draw in clip_draws(len(clips), self.resamples, self.seed)])
        detail = {"splits": 1.0}
        if len(logits) >= 2 * _SPLITS:
            mean, std = inception_score(logits, _SPLITS, seed=2020)
            detail |= {"ten_splits_mean": mean, "ten_splits_std": std}
        return _Value(inception_score(logits)[0], drawn, tuple(clips), detail)


def _level(found: _Value) -> Interval:
    """The interval of a figure that is never negative."""
    interval = _interval(found.value, found.drawn, len(found.clips))
    return replace(interval, low=max(0.0, interval.low)) if interval.low < 0 <= interval.mean else interval


def _interval(value: float, drawn: np.ndarray | None, clips: int) -> Interval:
    if drawn is None:
        return Interval(value, np.nan, np.nan, clips)
    half = _NORMAL * float(np.std(drawn, ddof=1))
    return Interval(value, value - half, value + half, clips)


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
