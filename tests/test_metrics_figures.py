"""Levels, intervals, controls, and the share of a mel's variance that a reconstruction misses."""

from __future__ import annotations

import numpy as np
import pytest

from vta_sam.mel import LOG_FLOOR, SAMPLE_RATE_HZ
from vta_sam.metrics import intervals
from vta_sam.metrics.intervals import (
    Interval, bootstrap_interval, clip_draws, derangement, interval_json, interval_of, paired_difference,
    pigeonhole_interval, wilson_interval
)
from vta_sam.metrics.signal import ErrorShare, measure_level, mel_error_share
from vta_sam.runtime.errors import InputError


def sine(amplitude: float, samples: int = 16_000) -> np.ndarray:
    return amplitude * np.sin(2 * np.pi * 100 * np.arange(samples) / 16_000)


def test_level_of_a_sine():
    level = measure_level(sine(0.5), SAMPLE_RATE_HZ)
    assert level.rms_dbfs == pytest.approx(-9.03, abs=0.01)
    assert level.peak == pytest.approx(0.5)
    assert (level.silent_share, level.silent, level.clipping_rate) == (0, False, 0)


def test_silence_is_counted_by_frames():
    # 0.25 s of sound is five frames of 50 ms; the odd 37 samples make a last, short one
    sound = np.concatenate([sine(0.5, 4000), np.zeros(12_000), np.zeros(37)])
    level = measure_level(sound, SAMPLE_RATE_HZ)
    assert level.silent_share == pytest.approx(16 / 21) and not level.silent
    assert measure_level(sine(0.001), SAMPLE_RATE_HZ).silent  # -63 dBFS
    assert not measure_level(sine(0.002), SAMPLE_RATE_HZ).silent  # -57 dBFS
    assert measure_level(np.zeros(100), SAMPLE_RATE_HZ).rms_dbfs == -120


def test_a_frame_of_a_level_is_50_ms_at_any_rate():
    """0.25 s of sound is five frames of 50 ms at 44.1 kHz too."""
    sound = np.concatenate([sine(0.5, 11_025), np.zeros(33_075), np.zeros(37)])
    assert measure_level(sound, 44_100).silent_share == pytest.approx(16 / 21)


def test_clipping_is_counted():
    assert measure_level(np.clip(sine(2.0), -1, 1), SAMPLE_RATE_HZ).clipping_rate == pytest.approx(2 / 3, abs=0.02)
    assert measure_level(np.array([0.0, 1.0, -1.0, 0.99]), SAMPLE_RATE_HZ).clipping_rate == 0.5


@pytest.mark.parametrize("sound", [np.zeros(0), np.zeros((2, 100))])
def test_no_level_of_what_is_no_sound(sound):
    with pytest.raises(InputError, match="mono"):
        measure_level(sound, SAMPLE_RATE_HZ)


def test_bootstrap_covers_the_mean():
    rng = np.random.default_rng(0)
    intervals = [bootstrap_interval(rng.normal(0.5, 0.2, 40), n=500) for _ in range(200)]
    covered = np.mean([i.low <= 0.5 <= i.high for i in intervals])
    assert 0.89 <= covered <= 0.99
    widths = [i.high - i.low for i in intervals]
    assert np.mean(widths) == pytest.approx(2 * 1.96 * 0.2 / np.sqrt(40), rel=0.1)


def test_undefined_values_are_counted_apart():
    interval = bootstrap_interval([0.2, None, 0.4, float("nan")])
    assert (interval.mean, interval.n, interval.undefined) == (pytest.approx(0.3), 2, 2)
    assert "2 undefined" in str(interval)
    empty = bootstrap_interval([None, None])
    assert np.isnan(empty.mean) and (empty.n, empty.undefined) == (0, 2)
    with pytest.raises(InputError, match="infinite"):
        bootstrap_interval([1.0, float("inf")])


def test_bootstrap_is_a_function_of_its_seed():
    values = np.random.default_rng(1).normal(size=20)
    assert bootstrap_interval(values, seed=3) == bootstrap_interval(values, seed=3)
    assert bootstrap_interval(values, seed=3) != bootstrap_interval(values, seed=4)


def test_pairing_removes_what_two_systems_share():
    rng = np.random.default_rng(0)
    clip = rng.normal(0, 1, 30)
    first, second = clip + 0.1 + rng.normal(0, 0.02, 30), clip + rng.normal(0, 0.02, 30)
    difference = paired_difference(first, second)
    assert 0 < difference.low < 0.1 < difference.high < 0.2
    assert bootstrap_interval(first).low < bootstrap_interval(second).mean
    gone = paired_difference([1.0, None, 3.0], [0.5, 1.0, None])
    assert (gone.mean, gone.n, gone.undefined) == (0.5, 1, 2)
    with pytest.raises(InputError, match="same clips"):
        paired_difference([1.0], [1.0, 2.0])


def test_of_one_value_there_is_no_interval():
    found = bootstrap_interval([0.5, None])
    assert (found.mean, found.n, found.undefined) == (0.5, 1, 1) and not found.beyond_zero
    assert np.isnan([found.low, found.high]).all() and "no interval" in str(found)
    assert interval_json(found)["low"] is None and str(interval_of(interval_json(found))) == str(found)
    assert interval_of({"mean": 0.5, "low": 0.4, "high": 0.6, "n": 3, "undefined": 0}) == Interval(0.5, 0.4, 0.6, 3)
    alone = paired_difference([1.0, 2.0], [0.5, None], proportion=False)
    assert alone.mean == 0.5 and np.isnan(alone.low)


def test_draws_are_the_same_in_parts(monkeypatch):
    """Memory is bounded by drawing in parts; with one value a clip the figures are those of one draw of all."""
    values = np.random.default_rng(2).normal(size=37)
    table = values + np.random.default_rng(3).normal(size=(3, 37))
    expected = np.percentile(values[clip_draws(37, 500, 5)].mean(axis=1), [tail := 100 * (1 - 0.95) / 2, 100 - tail])
    whole = bootstrap_interval(table, 5, 500), pigeonhole_interval(table, 5, 500)
    monkeypatch.setattr(intervals, "_AT_ONCE", 37 * 7)
    intervals._small_draws.cache_clear()
    for given in (values, [*values, None], values[None]):
        found = bootstrap_interval(given, 5, 500)
        assert (found.low, found.high) == tuple(expected), "not the bootstrap over clips to the last digit"
    for before, found in zip(whole, (bootstrap_interval(table, 5, 500), pigeonhole_interval(table, 5, 500))):
        assert interval_json(found) == pytest.approx(interval_json(before), abs=1e-12)
    intervals._small_draws.cache_clear()


def seeds_and_clips(rng: np.random.Generator, seeds: int, clips: int = 40) -> np.ndarray:
    """(seeds, clips) of runs that differ by 0.1, clips by 0.2, and what is neither by 0.1, about 0.5."""
    return 0.5 + rng.normal(0, 0.1, (seeds, 1)) + rng.normal(0, 0.2, clips) + rng.normal(0, 0.1, (seeds, clips))


def test_an_interval_over_clips_and_seeds_covers_other_runs_too():
    rng = np.random.default_rng(0)
    tables = [seeds_and_clips(rng, 8) for _ in range(150)]
    covered = np.mean([(i := bootstrap_interval(table, n=300)).low <= 0.5 <= i.high for table in tables])
    alone = np.mean([(i := bootstrap_interval(table.mean(axis=0), n=300)).low <= 0.5 <= i.high for table in tables])
    assert covered >= 0.88 and alone < covered - 0.05, (covered, alone)
    found = bootstrap_interval(tables[0])
    assert (found.mean, found.n, found.seeds) == (pytest.approx(tables[0].mean()), 40, 8)


def test_a_difference_of_runs_is_drawn_over_clips_and_seeds():
    rng = np.random.default_rng(1)
    first, second = seeds_and_clips(rng, 4), seeds_and_clips(rng, 4)
    found, over_clips = paired_difference(first, second), paired_difference(first.mean(0), second.mean(0))
    assert found.mean == pytest.approx(over_clips.mean) and found.seeds == 4
    assert found.high - found.low > 1.3 * (over_clips.high - over_clips.low)
    assert found.low == pytest.approx(bootstrap_interval(first - second).low), "the same seeds on both sides"
    fewer = paired_difference(first, second[:2])
    assert fewer.mean == pytest.approx((first.mean(0) - second[:2].mean(0)).mean()) and fewer.seeds == 2
    assert fewer.low < fewer.mean < fewer.high


def test_clips_weigh_the_same_whatever_number_of_their_values_is_defined():
    table = np.array([[1.0, 0.0, np.nan], [1.0, np.nan, np.nan], [1.0, np.nan, np.nan]])
    found = bootstrap_interval(table)
    assert (found.mean, found.n, found.undefined, found.seeds) == (0.5, 2, 1, 3)
    assert (found.low, found.high) == (0, 1)


def test_a_share_is_never_certain():
    """Published values: 59 of 59; Newcombe's (1998) 81 of 263 and 0 of 20."""
    assert wilson_interval(1, 59) == pytest.approx((0.9389, 1), abs=1e-4)
    assert wilson_interval(81 / 263, 263) == pytest.approx((0.2553, 0.3662), abs=1e-4)
    assert wilson_interval(0, 20) == pytest.approx((0, 0.1611), abs=1e-4)
    assert np.isnan(wilson_interval(np.nan, 0)).all()
    for values in ([1.0] * 59, np.ones((3, 59))):
        found = bootstrap_interval(values, proportion=True)
        assert (found.mean, found.high) == (1, 1) and found.low == pytest.approx(0.9389, abs=1e-4)
    assert bootstrap_interval([1.0] * 59).low == 1, "a bootstrap is certain"
    with pytest.raises(InputError, match="within 0 and 1, got 0 to 2"):
        bootstrap_interval([0, 2.0], proportion=True)


def test_a_share_of_several_runs_is_as_wide_as_they_differ():
    runs = np.array([[1.0] * 40, [0.0] * 20 + [1.0] * 20])
    found = bootstrap_interval(runs, proportion=True)
    low, high = wilson_interval(0.75, 40)
    assert found.low < low - 0.05 and found.high > high


def test_shares_that_agree_are_not_known_to_be_equal():
    """Agresti and Min (2005): half a clip is added to each of four cells."""
    same = paired_difference([1.0] * 59, [1.0] * 59, proportion=True)
    assert same.mean == 0 and (same.low, same.high) == pytest.approx((-1.96 / 61, 1.96 / 61))
    apart = paired_difference([1.0] * 30, [0.0] * 20 + [1.0] * 10, proportion=True)
    error = np.sqrt(21 - 32 * (20 / 32) ** 2) / 32
    assert (apart.low, apart.high) == pytest.approx((20 / 32 - 1.96 * error, 20 / 32 + 1.96 * error))
    rng = np.random.default_rng(0)
    covered = 0
    for _ in range(200):
        yes = rng.uniform(size=(2, 50)) < np.array([[0.95], [0.9]])
        found = paired_difference(yes[0].astype(float), yes[1].astype(float), proportion=True)
        covered += found.low <= 0.05 <= found.high
    assert covered >= 184


@pytest.mark.parametrize("n", [2, 3, 10, 100])
def test_derangement_leaves_none_in_place(n):
    for seed in range(20):
        order = derangement(n, seed)
        assert sorted(order) == list(range(n))
        assert not np.any(order == np.arange(n))
    np.testing.assert_array_equal(derangement(n, 7), derangement(n, 7))


def test_derangement_needs_two():
    with pytest.raises(InputError, match="at least two"):
        derangement(1)


def test_mel_error_share():
    rng = np.random.default_rng(0)
    true = rng.normal(-4, 1, (100, 64))
    true[50:] = LOG_FLOOR  # silence counts in neither sum
    mean = true[:50].mean(axis=0)
    assert mel_error_share(true, true, mean).share == 0
    assert mel_error_share(true, np.tile(mean, (100, 1)), mean).share == pytest.approx(1)
    worse_in_silence = true.copy()
    worse_in_silence[50:] = 0
    assert mel_error_share(true, worse_in_silence, mean).share == 0
    quarter = true + 0.5 * (mean - true)
    assert mel_error_share(true, quarter[:80], mean).share == pytest.approx(0.25)


def test_mel_error_is_pooled_by_sums():
    pooled = ErrorShare(1.0, 2.0) + ErrorShare(1.0, 8.0)
    assert pooled.share == 0.2
    silent = mel_error_share(np.full((10, 64), LOG_FLOOR), np.zeros((10, 64)), np.zeros(64))
    assert (silent.error, silent.variance) == (0, 0) and np.isnan(silent.share)
    with pytest.raises(InputError, match="bins"):
        mel_error_share(np.zeros((10, 64)), np.zeros((10, 64)), np.zeros(32))
