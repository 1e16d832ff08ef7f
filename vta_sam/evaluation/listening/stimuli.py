"""Stimuli of a listening test: every system's sound, the hidden reference and two anchors, alike in all but sound."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyloudnorm
from scipy.signal import butter, sosfiltfilt

from ...media.audio import write_wav
from ...media.muxing import mux
from ...mel import SAMPLE_RATE_HZ
from ...runtime.errors import InputError
from ..pairing import SoundFile
from ..sounds import LoadingPolicy, read_sound

REFERENCE, SHIFTED, LOW_PASSED = "hidden reference", "anchor: shifted", "anchor: low-passed"
HIDDEN = (REFERENCE, SHIFTED, LOW_PASSED)
SHIFT_S = 1.0  # the anchor of alignment: the true sound, this much late, its end moved to the start
LOW_PASS_HZ = 3500.0  # the anchor of quality: the low anchor of ITU-R BS.1534
TARGET_LUFS = -23.0  # EBU R 128
PEAK = 0.95
_ORDER = 8  # of the Butterworth filter, run forwards and backwards


@dataclass(frozen=True)
class Stimulus:
    """One sound of one clip. condition: a system's name, or one of HIDDEN."""

    clip: str
    condition: str
    waveform: np.ndarray


def clip_stimuli(clip: str, reference: SoundFile, systems: dict[str, SoundFile], keep_level: bool = False,
                 longest_s: float = 30.0) -> list[Stimulus]:
    """The stimuli of one clip, all of the true sound's length ⇒ one per system, then the hidden ones.

    Unless ``keep_level``, all have one loudness (ITU-R BS.1770): -23 LUFS, or less where one of them would pass a peak
    of 0.95, so that none gives itself away by level. A silent one stays silent. InputError naming the file: it can't be
    read, or the true sound is silent.
    """
    policy = LoadingPolicy(longest_s=longest_s)
    true = read_sound(reference.path, policy)
    waveforms = {name: read_sound(file.path, policy).fitted(len(true.waveform)).waveform
                 for name, file in systems.items()}
    waveforms |= {REFERENCE: true.waveform, SHIFTED: shifted(true.waveform), LOW_PASSED: low_passed(true.waveform)}
    if not np.any(true.waveform):
        raise InputError(f"{reference.path} is silent; a silent clip can't be judged, leave it out")
    if not keep_level:
        waveforms = equally_loud(waveforms)
    return [Stimulus(clip, name, waveform) for name, waveform in waveforms.items()]


def shifted(waveform: np.ndarray) -> np.ndarray:
    """One second later, circularly. InputError: no longer than that."""
    if len(waveform) <= round(SHIFT_S * SAMPLE_RATE_HZ):
        raise InputError(f"a clip of {len(waveform) / SAMPLE_RATE_HZ:.2f} s is too short for the anchor that is "
                         f"shifted by {SHIFT_S:g} s")
    return np.roll(waveform, round(SHIFT_S * SAMPLE_RATE_HZ))


def low_passed(waveform: np.ndarray) -> np.ndarray:
    """The sound below 3.5 kHz, without delay."""
    sections = butter(_ORDER, LOW_PASS_HZ, fs=SAMPLE_RATE_HZ, output="sos")
    return sosfiltfilt(sections, waveform.astype(np.float64)).astype(np.float32)


def equally_loud(waveforms: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Scaled to one integrated loudness."""
    meter = pyloudnorm.Meter(SAMPLE_RATE_HZ)
    loudness = {name: float(meter.integrated_loudness(waveform.astype(np.float64)))
                for name, waveform in waveforms.items()}
    audible = {name: lufs for name, lufs in loudness.items() if np.isfinite(lufs)}
    highest = [lufs + 20 * np.log10(PEAK / np.abs(waveforms[name]).max()) for name, lufs in audible.items()]
    target = min([TARGET_LUFS, *highest])
    return {name: waveform * np.float32(10 ** ((target - audible[name]) / 20)) if name in audible else
            np.zeros_like(waveform) for name, waveform in waveforms.items()}


def write_stimulus(stimulus: Stimulus, video: Path | None, path: Path) -> Path:
    """Write it under the clip's pictures (copied, the same for all its stimuli), or as a sound file where there are
    none ⇒ the path with its suffix."""
    if video is None:
        write_wav(path.with_suffix(".wav"), stimulus.waveform, SAMPLE_RATE_HZ)
        return path.with_suffix(".wav")
    written = mux(video, stimulus.waveform, SAMPLE_RATE_HZ, path.with_suffix(".mp4"))
    if written.suffix != ".mp4":
        written.unlink()
        raise InputError(f"{video}: its pictures don't go into an mp4, which browsers play; convert it to H.264 first")
    return written


def headphone_trials(seed: int, trials: int = 6) -> Iterator[tuple[np.ndarray, int]]:
    """Trials of the headphones check of Woods et al. (2017) ⇒ (stereo sound (samples, 2), which interval is quietest).

    Three 200 Hz tones of a second, one of them 6 dB quieter; one of the others has its channels in antiphase. Over
    loudspeakers antiphase cancels in the air and that one seems quietest; over headphones the quiet one does.
    """
    rng = np.random.default_rng([seed, 2017])
    rate, n = SAMPLE_RATE_HZ, np.arange(SAMPLE_RATE_HZ)
    fade = np.minimum(1, np.minimum(n, n[::-1]) / (0.1 * rate))
    tone = 0.25 * np.sin(2 * np.pi * 200 * n / rate) * fade
    for _ in range(trials):
        quiet, antiphase, _ = (int(i) for i in rng.permutation(3))
        parts = []
        for interval in range(3):
            left = tone * (10 ** (-6 / 20) if interval == quiet else 1)
            right = -left if interval == antiphase else left
            parts += [np.stack([left, right], axis=1), np.zeros((rate // 2, 2))]
        yield np.concatenate(parts[:-1]).astype(np.float32), quiet
