"""Figures of waveforms and mels: level, energy envelope, its correlation and lag, spectral distance, mel error."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from scipy.ndimage import uniform_filter1d
from scipy.signal import correlate

from ..mel import FIGURES, FRAME_RATE_HZ, LOG_FLOOR, SAMPLE_RATE_HZ, log_mel
from ..runtime.errors import InputError

SILENCE_DBFS = -60.0
FRAME_S = 0.05
LOWEST_DBFS = -120.0  # stands for the level of digital silence, so that means and JSON stay finite
CLIPPED = 32767 / 32768  # the largest value of 16-bit sound


@dataclass(frozen=True)
class Level:
    """rms_dbfs: 20·log10 of the root mean square (a full-scale sine has -3 dBFS). peak: largest absolute sample, 1 is
    full scale. silent_share: share of 50 ms frames below -60 dBFS. silent: all of them are. clipping_rate: share of
    samples at or beyond full scale."""

    rms_dbfs: float
    peak: float
    silent_share: float
    silent: bool
    clipping_rate: float


def to_dbfs(magnitude: np.ndarray | float) -> np.ndarray:
    """Linear magnitude, 1 = full scale ⇒ dBFS, no lower than -120."""
    return 20 * np.log10(np.maximum(magnitude, 10 ** (LOWEST_DBFS / 20)))


def frame_levels_dbfs(waveform: np.ndarray, sample_rate_hz: int) -> np.ndarray:
    """RMS level of consecutive 50 ms frames; the last may be shorter ⇒ (ceil(samples / frame),) dBFS."""
    starts = np.arange(0, len(waveform), round(FRAME_S * sample_rate_hz))
    energy = np.add.reduceat(np.square(waveform, dtype=np.float64), starts)
    return to_dbfs(np.sqrt(energy / np.diff(np.append(starts, len(waveform)))))


def measure_level(waveform: np.ndarray, sample_rate_hz: int) -> Level:
    """Mono sound (samples,) ⇒ :class:`Level`. InputError: an empty sound, or one that is not mono."""
    if waveform.ndim != 1 or waveform.size == 0:
        raise InputError(f"a level needs one mono sound of shape (samples,), got {waveform.shape}")
    levels = frame_levels_dbfs(waveform, sample_rate_hz)
    magnitude = np.abs(waveform.astype(np.float64))
    return Level(
        rms_dbfs=float(to_dbfs(np.sqrt(np.mean(magnitude**2)))),
        peak=float(magnitude.max()),
        silent_share=float(np.mean(levels < SILENCE_DBFS)),
        silent=bool(levels.max() < SILENCE_DBFS),
        clipping_rate=float(np.mean(magnitude >= CLIPPED)),
    )


RANGE_DB = 60.0  # levels further below the clip's maximum count as silence
SMOOTHING_S = 0.05
NATS_PER_DB = float(np.log(10) / 20)  # of a magnitude
MAX_LAG_S = 1.0
_LEAST_OVERLAP = 0.5  # of the shorter envelope; correlations over less are luck
_CONSTANT_NATS = 1e-4  # an envelope that varies less is constant: rounding of a steady sound


def energy_envelope(waveform: np.ndarray, mel: np.ndarray | None = None) -> np.ndarray:
    """Mono 16 kHz sound (samples,) ⇒ its envelope (samples // 160 + 1,) at 100 Hz, in nats.

    The mean over the 64 log-mel bins, clipped at 60 dB below the clip's own maximum of that mean, then smoothed by a
    boxcar of 50 ms whose edges repeat the outermost value. mel: its log-mel by FIGURES, where that is known.
    InputError: NaN or infinity in the sound, or too short.
    """
    if not np.isfinite(waveform).all():
        raise InputError(f"a sound of {waveform.size} samples holds NaN or infinity; it has no envelope")
    envelope = (log_mel(waveform, FIGURES) if mel is None else mel).mean(axis=1, dtype=np.float64)
    envelope = np.maximum(envelope, envelope.max() - RANGE_DB * NATS_PER_DB)
    return uniform_filter1d(envelope, size=round(SMOOTHING_S * FRAME_RATE_HZ), mode="nearest")


def correlation(first: np.ndarray, second: np.ndarray) -> float:
    """Pearson correlation of two envelopes, cut to the shorter; 0 if either is constant over that stretch."""
    length = min(len(first), len(second))
    first, second = first[:length], second[:length]
    if np.ptp(first) < _CONSTANT_NATS or np.ptp(second) < _CONSTANT_NATS:
        return 0.0
    return float(np.corrcoef(first, second)[0, 1])


def envelope_correlation(generated: np.ndarray, true: np.ndarray) -> float:
    """Envelope correlation of two mono 16 kHz sounds ⇒ [-1, 1].

    Both are read from their start, and sounds of different length are compared over the shorter. A sound whose
    envelope is constant (silence, a steady hum) has no timing and scores 0.
    """
    return correlation(energy_envelope(generated), energy_envelope(true))


def envelope_lag(generated: np.ndarray, true: np.ndarray) -> tuple[float, float] | None:
    """Two envelopes at 100 Hz ⇒ (lag in seconds, correlation at that lag): the shift within ±1 s at which they agree
    best. Positive: the generated sound is late. Of equal correlations the smallest shift counts.

    The correlation at a shift is over its own overlap, which is at least half of the shorter envelope. None where no
    overlap has two envelopes that vary. InputError: NaN or infinity in one.
    """
    for envelope in (generated, true):
        if not np.isfinite(envelope).all():
            raise InputError(f"an envelope of {len(envelope)} values holds NaN or infinity; it has no lag")
    if any(not len(envelope) or np.ptp(envelope) < _CONSTANT_NATS for envelope in (generated, true)):
        return None
    best: tuple[float, int] | None = None
    for shift in _likely_shifts(generated, true):
        first, second = max(shift, 0), max(-shift, 0)
        length = min(len(generated) - first, len(true) - second)
        late, early = generated[first:first + length], true[second:second + length]
        if np.ptp(late) < _CONSTANT_NATS or np.ptp(early) < _CONSTANT_NATS:
            continue
        value = float(np.corrcoef(late, early)[0, 1])
        if best is None or value > best[0] + 1e-9:
            best = value, shift
    return None if best is None else (best[1] / FRAME_RATE_HZ, best[0])


def _likely_shifts(generated: np.ndarray, true: np.ndarray) -> list[int]:
    """⇒ the shifts that may have the highest correlation, the smallest first.

    The products at all shifts come from one FFT, their sums over the overlaps from running sums. Rounding may swap
    shifts that are nearly equal, and it drowns an overlap that hardly varies: those are left to the caller.
    """
    most = round(MAX_LAG_S * FRAME_RATE_HZ)
    least = max(2, round(_LEAST_OVERLAP * min(len(generated), len(true))))
    shifts = np.array(sorted(range(-most, most + 1), key=abs))
    firsts, seconds = np.maximum(shifts, 0), np.maximum(-shifts, 0)
    lengths = np.minimum(len(generated) - firsts, len(true) - seconds)
    long = lengths >= least
    shifts, firsts, seconds, lengths = shifts[long], firsts[long], seconds[long], lengths[long]
    late, early = (np.asarray(envelope, np.float64) - np.mean(envelope, dtype=np.float64)
                   for envelope in (generated, true))
    products = correlate(late, early, method="fft")[shifts + len(early) - 1]
    late_sums, late_squares, late_certain = _overlap_sums(late, firsts, lengths)
    early_sums, early_squares, early_certain = _overlap_sums(early, seconds, lengths)
    certain = late_certain & early_certain
    spread = np.sqrt(np.where(certain, late_squares * early_squares, 1.0))
    values = np.where(certain, (products - late_sums * early_sums / lengths) / spread, np.inf)
    highest = values[certain].max(initial=-np.inf)
    return shifts[values >= highest - 1e-6].tolist()


def _overlap_sums(envelope: np.ndarray, firsts: np.ndarray, lengths: np.ndarray) -> tuple[np.ndarray, ...]:
    """⇒ of each overlap its sum, its squared deviations from its mean, and whether rounding leaves these six digits and
    they are those of an envelope that varies."""
    sums, squares = (np.concatenate([[0.0], np.cumsum(values)]) for values in (envelope, np.square(envelope)))
    total = sums[firsts + lengths] - sums[firsts]
    deviations = squares[firsts + lengths] - squares[firsts] - np.square(total) / lengths
    rounding = np.finfo(np.float64).eps * len(envelope) * squares[-1]
    return total, deviations, deviations > np.maximum(1e8 * rounding, lengths * _CONSTANT_NATS**2)


FFT_SAMPLES = 2048
HOP_SAMPLES = 512
FLOOR_DB = -80.0  # below the clip's own maximum; deeper levels are inaudible, and would dominate the distance


def log_spectral_distance_db(true: np.ndarray, generated: np.ndarray) -> float | None:
    """Two mono 16 kHz sounds ⇒ mean over frames of the root mean square over bins of their difference in dB.

    Periodic Hann windows of 2048 samples every 512, centred; power in dB, each sound relative to its own maximum, cut
    off 80 dB below it, so that level doesn't count; compared over the shorter. The usual definition (Gray and Markel,
    1976) leaves these constants open, so that values of different programs don't compare. None where one of the two is
    silent: it has no spectrum. InputError: NaN or infinity, or not mono.
    """
    length = min(len(true), len(generated))
    sounds = [np.asarray(sound[:length], np.float32) for sound in (true, generated)]
    for sound in sounds:
        if sound.ndim != 1 or not np.isfinite(sound).all():
            raise InputError(f"a log-spectral distance needs two finite mono sounds, got shape {sound.shape}"
                             f"{'' if np.isfinite(sound).all() else ' with NaN or infinity'}")
    if not length or any(measure_level(sound, SAMPLE_RATE_HZ).silent for sound in sounds):
        return None
    first, second = (_decibels(sound) for sound in sounds)
    return float(np.mean(np.sqrt(np.mean(np.square(first - second), axis=0))))


def _decibels(sound: np.ndarray) -> np.ndarray:
    """(samples,) ⇒ (bins, frames) dB below the maximum, not below the floor."""
    from ..runtime.librosa_import import librosa

    padded = np.pad(sound, (0, max(0, FFT_SAMPLES - len(sound))))
    power = np.abs(librosa.stft(padded, n_fft=FFT_SAMPLES, hop_length=HOP_SAMPLES)) ** 2
    return np.maximum(10 * np.log10(np.maximum(power / power.max(), 1e-30)), FLOOR_DB)


AUDIBLE_DB = 40.0


@dataclass(frozen=True)
class ErrorShare:
    """Sums over frames and bins, in nats²: squared error, and squared distance from the training mean. Add those of
    several clips to pool them; ``share`` is their quotient: 0 is perfect, 1 no better than the mean spectrum."""

    error: float = 0.0
    variance: float = 0.0

    def __add__(self, other: "ErrorShare") -> "ErrorShare":
        return ErrorShare(self.error + other.error, self.variance + other.variance)

    @property
    def share(self) -> float:
        """NaN if no frame was counted."""
        return self.error / self.variance if self.variance > 0 else float("nan")


def audible_frames(mel: np.ndarray) -> np.ndarray:
    """(frames,) bool: the mean over bins of the log-mel (frames, 64) is within 40 dB of its maximum over the clip.

    Frames at the mel's floor are never audible, so a silent clip has none.
    """
    envelope = mel.mean(axis=1)
    return (envelope >= envelope.max() - AUDIBLE_DB * NATS_PER_DB) & (envelope > LOG_FLOOR + 1e-3)


def mel_error_share(true_mel: np.ndarray, reconstructed_mel: np.ndarray, train_mean: np.ndarray) -> ErrorShare:
    """Error of a reconstructed log-mel over the audible frames of the true one ⇒ :class:`ErrorShare` of one clip.

    true_mel (frames, 64); reconstructed_mel (frames', 64), compared over the shorter; train_mean (64,) the mean of
    each bin over the training clips. InputError: shapes that don't fit.
    """
    if true_mel.ndim != 2 or reconstructed_mel.ndim != 2 or not (
        true_mel.shape[1] == reconstructed_mel.shape[1] == train_mean.shape[-1] == train_mean.size
    ):
        raise InputError(
            f"mel error: expected (frames, bins) twice and (bins,), got {true_mel.shape}, {reconstructed_mel.shape} "
            f"and {train_mean.shape}"
        )
    frames = min(len(true_mel), len(reconstructed_mel))
    audible = audible_frames(true_mel)[:frames]
    true = true_mel[:frames][audible].astype(np.float64)
    error = np.square(true - reconstructed_mel[:frames][audible]).sum()
    return ErrorShare(float(error), float(np.square(true - train_mean).sum()))
