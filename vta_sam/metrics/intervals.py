"""Means with intervals, differences between systems, figures of sets, and the derangement behind every control."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np

from ..runtime.errors import InputError

CONFIDENCE = 0.95


@dataclass(frozen=True)
class Interval:
    """A mean over clips with its 95 % bootstrap interval. n: values that entered; undefined: values that had none.

    With n = 0 all three figures are NaN; with n = 1 the interval is the value itself and says nothing.
    """

    mean: float
    low: float
    high: float
    n: int
    undefined: int = 0

    def __str__(self) -> str:
        gone = f", {self.undefined} undefined" if self.undefined else ""
        return f"{self.mean:.3f} [{self.low:.3f}, {self.high:.3f}] (n = {self.n}{gone})"


def bootstrap_interval(values: Sequence[float | None], seed: int = 0, n: int = 2000) -> Interval:
    """⇒ the mean of per-clip values and its percentile bootstrap interval (Efron, 1979).

    The same values and seed give the same interval.

    Args:
        values: one per clip; None and NaN mean "not defined on this clip": they are left out and counted.
        seed: of the resampling.
        n: resamples of the clips.

    Raises:
        InputError: a value is infinite.
    """
    array = np.array([np.nan if value is None else value for value in values], dtype=np.float64)
    if np.isinf(array).any():
        raise InputError(f"a mean over {array.size} clips: {int(np.isinf(array).sum())} of the values are infinite")
    defined = array[~np.isnan(array)]
    undefined = int(array.size - defined.size)
    if not defined.size:
        return Interval(np.nan, np.nan, np.nan, 0, undefined)
    draws = np.random.default_rng(seed).integers(defined.size, size=(n, defined.size))
    tail = 100 * (1 - CONFIDENCE) / 2
    low, high = np.percentile(defined[draws].mean(axis=1), [tail, 100 - tail])
    return Interval(float(defined.mean()), float(low), float(high), int(defined.size), undefined)


def paired_difference(
    first: Sequence[float | None], second: Sequence[float | None], seed: int = 0, n: int = 2000
) -> Interval:
    """⇒ the mean of first - second over the same clips in the same order, with its interval.

    A pair counts as undefined if either of its values is.

    Raises:
        InputError: the two have unequal numbers of clips.
    """
    if len(first) != len(second):
        raise InputError(f"a paired difference needs the same clips twice, got {len(first)} and {len(second)} values")
    pairs = zip(first, second)
    return bootstrap_interval([None if a is None or b is None else a - b for a, b in pairs], seed, n)


def derangement(n: int, seed: int = 0) -> np.ndarray:
    """⇒ (n,) int, a fixed random permutation of n clips that leaves none in its place: clip i is scored against [i].

    It is uniform over all derangements, by drawing until one comes (e times on average).

    Raises:
        InputError: there are fewer than two clips.
    """
    if n < 2:
        raise InputError(f"a control needs at least two clips to exchange, got {n}")
    rng = np.random.default_rng(seed)
    while True:
        order = rng.permutation(n)
        if not np.any(order == np.arange(n)):
            return order


def clip_draws(clips: int, resamples: int, seed: int = 0) -> np.ndarray:
    """⇒ (resamples, clips) int: clips drawn with replacement. The same draws for two systems make their difference
    paired."""
    return np.random.default_rng(seed).integers(clips, size=(resamples, clips))


def standard_error(resampled: np.ndarray) -> float:
    """⇒ the standard deviation of a figure's bootstrap distribution."""
    return float(np.std(resampled, ddof=1))


@dataclass(frozen=True)
class Resampling:
    """How a figure of a set is bootstrapped. seed: of the draws; resamples: how many."""

    seed: int = 0
    resamples: int = 200

    def draws(self, clips: int) -> np.ndarray:
        """⇒ (resamples, clips) int; they depend on the number of clips and the seed alone."""
        return clip_draws(clips, self.resamples, self.seed)


@dataclass(frozen=True)
class SetValue:
    """A figure of a whole set. value: of all clips; resampled: of each draw of clips, or None where there is no
    interval; detail: numbers that belong to it (rows, dimensions, splits)."""

    value: float
    resampled: np.ndarray | None = None
    detail: dict[str, float] = field(default_factory=dict)
