"""Log-spectral distance, and how late an envelope is."""

from __future__ import annotations

import numpy as np
import pytest

from vta_sam.metrics.signal import energy_envelope, envelope_lag, log_spectral_distance_db
from vta_sam.runtime.errors import InputError


def music(seed: int = 0, samples: int = 32_000) -> np.ndarray:
    rng, t = np.random.default_rng(seed), np.arange(samples) / 16_000
    tones = sum(np.sin(2 * np.pi * f * t) for f in rng.uniform(100, 3000, 6))
    return 0.1 * tones * (0.2 + np.abs(np.sin(2 * np.pi * rng.uniform(0.5, 2) * t)))


def test_equal_sounds_have_no_distance_whatever_their_level():
    assert log_spectral_distance_db(music(), music()) == 0
    assert log_spectral_distance_db(music(), 0.25 * music()) < 1e-3


def test_more_noise_is_further():
    noise = np.random.default_rng(1).normal(size=32_000)
    distances = [log_spectral_distance_db(music(), music() + k * noise) for k in (0.0001, 0.001, 0.01, 0.1)]
    assert distances == sorted(distances) and distances[0] > 0


def test_known_distance():
    """White noise against itself with the upper half of its spectrum 20 dB down: √½ · 20 dB."""
    rng = np.random.default_rng(2)
    noise = rng.normal(size=160_000)
    spectrum = np.fft.rfft(noise)
    spectrum[len(spectrum) // 2:] *= 10 ** (-20 / 20)  # the upper half 20 dB down
    distance = log_spectral_distance_db(noise, np.fft.irfft(spectrum, len(noise)))
    assert distance == pytest.approx(np.sqrt(0.5) * 20, rel=0.05)


def test_the_shorter_counts_and_silence_has_no_spectrum():
    assert log_spectral_distance_db(music(), music()[:16_000]) == pytest.approx(0, abs=0.5)
    assert log_spectral_distance_db(music(), np.zeros(32_000)) is None
    assert log_spectral_distance_db(music(), np.zeros(0)) is None
    with pytest.raises(InputError, match="finite"):
        log_spectral_distance_db(music(), np.full(32_000, np.nan))


@pytest.mark.parametrize("shift_s", [0, 0.07, -0.3, 0.95])
def test_a_late_sound_has_a_positive_lag(shift_s):
    sound = np.zeros(16_000 * 5)
    for time_s in (1.2, 1.9, 2.1, 3.3):
        n = np.arange(4000)
        sound[int(time_s * 16_000) + n] += np.exp(-n / 900) * np.sin(n)
    true = energy_envelope(sound)
    late = energy_envelope(np.roll(sound, round(shift_s * 16_000)))
    lag_s, value = envelope_lag(late, true)
    assert lag_s == pytest.approx(shift_s, abs=0.011) and value > 0.97


def test_no_lag_without_variation():
    steady = np.zeros(500)
    assert envelope_lag(steady, energy_envelope(music())) is None
    assert envelope_lag(np.zeros(0), np.zeros(0)) is None
    with pytest.raises(InputError, match="no lag"):
        envelope_lag(np.full(300, np.nan), steady)
    assert envelope_lag(energy_envelope(music()), energy_envelope(music()))[0] == 0, "of equals the smallest"
