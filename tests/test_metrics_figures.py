"""Levels, intervals, controls, and the share of a mel's variance that a reconstruction misses."""

from __future__ import annotations

import numpy as np
import pytest

from vta_sam.mel import LOG_FLOOR, SAMPLE_RATE_HZ
from vta_sam.metrics.intervals import bootstrap_interval, derangement, paired_difference
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
