"""Figures about whole sets of sounds, over the vectors and classes that backbones hear in them."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace

import numpy as np

from ..metrics.classes import inception_score
from ..metrics.frechet import FEWEST_CLIPS, clip_draws, fad_infinity, frechet_distance, resampled_distances
from ..metrics.statistics import Interval
from .bank import Truth
from .measure import Measured
from .results import Figure

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
