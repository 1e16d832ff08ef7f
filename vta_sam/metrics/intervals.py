"""Means with intervals, over clips and over several sounds or seeds of a clip; differences between systems,
proportions, figures of sets, and the derangement behind every control."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from functools import lru_cache
from typing import Any

import numpy as np

from ..runtime.errors import InputError

CONFIDENCE = 0.95
NORMAL = 1.96  # standard errors on each side
_TAIL = 100 * (1 - CONFIDENCE) / 2
_TAILS = [_TAIL, 100 - _TAIL]
_AT_ONCE = 2**20  # drawn values in memory

Table = Sequence[float | None] | Sequence[Sequence[float | None]] | np.ndarray  # (clips,) or (seeds, clips)


@dataclass(frozen=True)
class Interval:
    """A mean over clips with its 95 % interval. n: clips that entered; undefined: clips that had no value; seeds:
    values of a clip that the mean and the interval take in.

    With n = 0 all three figures are NaN. With n = 1 there is no interval: low and high are NaN.
    """

    mean: float
    low: float
    high: float
    n: int
    undefined: int = 0
    seeds: int = 1

    def __str__(self) -> str:
        gone = f", {self.undefined} undefined" if self.undefined else ""
        bounds = "no interval" if np.isnan(self.low) else f"[{self.low:.3f}, {self.high:.3f}]"
        return f"{self.mean:.3f} {bounds} (n = {self.n}{gone})"

    @property
    def beyond_zero(self) -> bool:
        """Whether the interval excludes 0. One without ends excludes nothing."""
        return self.low > 0 or self.high < 0


def interval_json(interval: Interval) -> dict[str, float | int | None]:
    """⇒ an interval as figures.json has it: rounded to four places, NaN as null, seeds where there are several."""
    return {k: (None if isinstance(v, float) and v != v else round(v, 4)) for k, v in asdict(interval).items()
            if k != "seeds" or v > 1}


def interval_of(found: Mapping[str, Any]) -> Interval:
    """The inverse of :func:`interval_json`, up to its rounding. Keys of other things are passed over."""
    known: dict[str, Any] = {name: np.nan if found[name] is None else found[name]
                             for name in Interval.__dataclass_fields__ if name in found}
    return Interval(**known)


def bootstrap_interval(values: Table, seed: int = 0, n: int = 2000, proportion: bool = False) -> Interval:
    """⇒ the mean of per-clip values and its 95 % interval. The same values and seed give the same interval.

    Of one value a clip it is the percentile bootstrap over clips (Efron, 1979). Of several it is the pigeonhole
    bootstrap (Owen, 2007): seeds and clips are both drawn, since another run has other seeds and other clips. Every
    clip weighs the same, whatever number of its values is defined.

    Of a proportion of one value a clip it is Wilson's interval (1927): a bootstrap of 59 successes in 59 clips has no
    width. Of several values a clip each end is the outer one of the pigeonhole's and of Wilson's at the mean, with n
    clips: Wilson's knows no seeds, and the pigeonhole has no width where all values agree.

    Args:
        values: (clips,) or (seeds, clips); None and NaN mean "not defined on this clip": they are left out and counted.
        seed: of the resampling.
        n: resamples.
        proportion: values are shares, 0 or 1 for one value a clip.

    Raises:
        InputError: a value is infinite, or of a proportion not within 0 and 1.
    """
    table = _table(values)
    if proportion and ((table < 0) | (table > 1)).any():
        raise InputError(f"a proportion over {table.shape[1]} clips: its values must lie within 0 and 1, got "
                         f"{np.nanmin(table):g} to {np.nanmax(table):g}")
    found = _mean_interval([table], seed, n)
    return _outer(found, wilson_interval(found.mean, found.n), table) if proportion and found.n > 1 else found


def paired_difference(first: Table, second: Table, seed: int = 0, n: int = 2000, proportion: bool = False) -> Interval:
    """⇒ the mean of first - second over the same clips in the same order, with its interval. Arguments as of
    :func:`bootstrap_interval`. Sides with the same number of seeds are drawn by the same seeds, others by their own.

    Of two proportions, Agresti and Min's interval (2005) takes the place of Wilson's: where no clip differs, a
    bootstrap has no width.

    A pair counts as undefined if either of its values is.

    Raises:
        InputError: the two have unequal numbers of clips.
    """
    one, other = _table(first), _table(second)
    if one.shape[1] != other.shape[1]:
        raise InputError(f"a paired difference needs the same clips twice, got {one.shape[1]} and {other.shape[1]} "
                         "values")
    found = _mean_interval([one, other], seed, n)
    if not proportion or found.n < 2:
        return found
    return _outer(found, _difference_of_proportions(_clip_means(one) - _clip_means(other)), one, other)


def wilson_interval(share: float, n: int) -> tuple[float, float]:
    """⇒ Wilson's score interval (1927) of a share of n cases: (low, high); (NaN, NaN) of none."""
    if not n:
        return np.nan, np.nan
    centre, weight = share + NORMAL**2 / (2 * n), 1 + NORMAL**2 / n
    half = NORMAL * np.sqrt(share * (1 - share) / n + NORMAL**2 / (4 * n**2))
    return max(0.0, float((centre - half) / weight)), min(1.0, float((centre + half) / weight))


def _difference_of_proportions(differences: np.ndarray) -> tuple[float, float]:
    """Differences of two shares per clip (clips,), in [-1, 1] ⇒ (low, high) after Agresti and Min (2005), who add half
    a clip to each of the four cells of "yes" and "no" of both sides."""
    known = differences[~np.isnan(differences)]
    n, mean = len(known) + 2, known.sum() / (len(known) + 2)
    half = NORMAL * np.sqrt(np.square(known).sum() + 1 - n * mean**2) / n
    return max(-1.0, float(mean - half)), min(1.0, float(mean + half))


def _outer(found: Interval, ends: tuple[float, float], *tables: np.ndarray) -> Interval:
    """⇒ the interval with these ends; of several values a clip with the outer of both."""
    low, high = ends
    if max(map(len, tables)) > 1:
        low, high = min(low, found.low), max(high, found.high)
    return replace(found, low=min(low, found.mean), high=max(high, found.mean))


def pigeonhole_interval(values: np.ndarray, seed: int = 0, resamples: int = 2000) -> Interval:
    """(raters, clips), NaN without an answer ⇒ the mean over all answers, and its 95 % interval. n: answers.

    Raters *and* clips are drawn with replacement (the pigeonhole bootstrap, Owen 2007): another test would have other
    raters and other clips. Drawing single answers would take a thousand answers of ten people for a thousand people,
    and give an interval far too narrow. This one is rather too wide than too narrow.
    """
    answered = ~np.isnan(values)
    count = int(answered.sum())
    if not count:
        return Interval(np.nan, np.nan, np.nan, 0)
    filled = np.where(answered, values, 0.0)
    if count == 1:
        return Interval(float(filled.sum()), np.nan, np.nan, 1)
    drawn = []
    for rows, columns in _pigeonholes(values.shape[0], values.shape[1], seed, resamples):
        total = np.einsum("br,rc,bc->b", rows, filled, columns, optimize=True)
        weight = np.einsum("br,rc,bc->b", rows, answered.astype(float), columns, optimize=True)
        drawn.append(total[weight > 0] / weight[weight > 0])
    low, high = np.percentile(np.concatenate(drawn), _TAILS)
    return Interval(float(filled.sum() / count), float(low), float(high), count)


def _table(values: Table) -> np.ndarray:
    """⇒ (seeds, clips) float64, NaN where not defined. InputError: infinity."""
    table = np.atleast_2d(np.array(values, dtype=np.float64))  # None becomes NaN
    if np.isinf(table).any():
        raise InputError(f"a mean over {table.shape[1]} clips: {int(np.isinf(table).sum())} of the values are infinite")
    return table


def _clip_means(table: np.ndarray, weights: np.ndarray | None = None) -> np.ndarray:
    """(seeds, clips) ⇒ (clips,), or of weights (draws, seeds) (draws, clips): means of the defined, NaN without one."""
    if len(table) == 1 and weights is None:
        return table[0]
    known = ~np.isnan(table)
    weights = np.ones(len(table)) if weights is None else weights
    count = weights @ known.astype(np.float64)
    total = weights @ np.where(known, table, 0.0)
    return np.divide(total, count, out=np.full(count.shape, np.nan), where=count > 0)


def _mean_interval(tables: Sequence[np.ndarray], seed: int, n: int) -> Interval:
    """One table (seeds, clips), or two ⇒ the interval of its mean over clips, or of the difference of both."""
    means = [_clip_means(table) for table in tables]
    values = means[0] if len(means) == 1 else means[0] - means[1]
    kept = ~np.isnan(values)
    defined, seeds = values[kept], min(map(len, tables))
    size, undefined = int(defined.size), int(values.size - defined.size)
    if size < 2:
        mean = float(defined[0]) if size else np.nan
        return Interval(mean, np.nan, np.nan, size, undefined, seeds)
    if max(map(len, tables)) == 1:
        drawn = np.concatenate([defined[draws].mean(axis=1) for draws in _clip_draws_in_parts(size, n, seed)])
    else:
        drawn = _pigeonhole_means([table[:, kept] for table in tables], seed, n)
    low, high = np.percentile(drawn, _TAILS)
    return Interval(float(defined.mean()), float(low), float(high), size, undefined, seeds)


def _pigeonhole_means(tables: Sequence[np.ndarray], seed: int, n: int) -> np.ndarray:
    """⇒ (n,) means over drawn clips of the drawn seeds' mean, or of the difference of two."""
    found, others = [], np.random.default_rng([seed, 1])
    for rows, columns in _pigeonholes(len(tables[0]), tables[0].shape[1], seed, n):
        values = _clip_means(tables[0], rows)
        if len(tables) == 2:
            seeds = len(tables[1])
            alike = rows if seeds == len(tables[0]) else others.multinomial(seeds, np.full(seeds, 1 / seeds), len(rows))
            values = values - _clip_means(tables[1], alike)
        weight = columns * ~np.isnan(values)
        total, count = (np.nan_to_num(values) * weight).sum(axis=1), weight.sum(axis=1)
        found.append(total[count > 0] / count[count > 0])
    return np.concatenate(found)


def _pigeonholes(seeds: int, clips: int, seed: int, n: int) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """⇒ how often each seed (part, seeds), and each clip (part, clips), is drawn, for n draws in parts."""
    rng = np.random.default_rng(seed)
    rows = rng.multinomial(seeds, np.full(seeds, 1 / seeds), size=n)
    part = max(1, _AT_ONCE // clips)
    for start in range(0, n, part):
        rows_now = rows[start:start + part]
        yield rows_now, rng.multinomial(clips, np.full(clips, 1 / clips), size=len(rows_now))


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


@lru_cache(maxsize=2)  # an evaluation asks for the draws of as many clips again with every metric
def _small_draws(clips: int, resamples: int, seed: int) -> np.ndarray:
    """As :func:`clip_draws`, in the smallest whole numbers that hold them, drawn in parts."""
    rng, part = np.random.default_rng(seed), max(1, _AT_ONCE // clips)
    found = np.empty((resamples, clips), np.min_scalar_type(clips))
    for start in range(0, resamples, part):
        rows = found[start:start + part]
        rows[:] = rng.integers(clips, size=rows.shape)
    found.flags.writeable = False
    return found


def _clip_draws_in_parts(clips: int, resamples: int, seed: int) -> Iterator[np.ndarray]:
    draws, part = _small_draws(clips, resamples, seed), max(1, _AT_ONCE // clips)
    for start in range(0, resamples, part):
        yield draws[start:start + part]


def standard_error(resampled: np.ndarray) -> float:
    """⇒ the standard deviation of a figure's bootstrap distribution."""
    return float(np.std(resampled, ddof=1))


@dataclass(frozen=True)
class Resampling:
    """How a figure of a set is bootstrapped. seed: of the draws; resamples: how many; device: of torch, where they are
    computed."""

    seed: int = 0
    resamples: int = 200
    device: str = "cpu"

    def draws(self, clips: int) -> np.ndarray:
        """⇒ (resamples, clips) int; they depend on the number of clips and the seed alone."""
        return clip_draws(clips, self.resamples, self.seed)


@dataclass(frozen=True)
class SetValue:
    """A figure of a whole set. value: of all clips; resampled: of each draw of clips, or None where there is no
    interval; detail: numbers that belong to it (rows, dimensions, splits); note: a sentence for the reader, such as
    that there are too few clips; signed: an unbiased estimate, which may lie below 0."""

    value: float
    resampled: np.ndarray | None = None
    detail: dict[str, float] = field(default_factory=dict)
    note: str = ""
    signed: bool = False
