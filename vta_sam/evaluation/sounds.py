"""The one policy by which every evaluated sound is read. Six published evaluations load in six ways, which alone moves
a Fréchet distance by tens; here there is one, its name stands in every result, and it is part of every cached figure's
key."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from ..errors import InputError
from ..media.audio import fit_length, read_audio
from ..media.container import open_media, sound_stream
from ..mel import SAMPLE_RATE_HZ

PADDED_S = 0.01  # a sound that ends this much before the true one is counted as padded; less is a codec's rounding


@dataclass(frozen=True)
class LoadingPolicy:
    """Mean of the channels, nothing subtracted; FFmpeg's resampler to 16 kHz; the end cut, or zeros appended, to the
    length of the true sound, which itself is cut to ``clip_s`` if that is given. Backbones of other rates get the
    16 kHz sound resampled, so that no system gains by its bandwidth.

    Sounds below ``lowest_rate_hz`` (half of the spectrum would be missing), shorter than ``shortest_s`` or longer than
    ``longest_s`` are refused.
    """

    clip_s: float | None = None
    lowest_rate_hz: int = SAMPLE_RATE_HZ
    shortest_s: float = 0.5
    longest_s: float = 600.0

    name = "mean of channels, FFmpeg to 16 kHz, cut or zero-padded to the true sound"
    version = 1


@dataclass
class Sound:
    """A sound as the policy reads it. waveform (samples,) float32, mono 16 kHz; notes: what was done to it; padded:
    whether silence was appended."""

    waveform: np.ndarray
    notes: list[str]
    padded: bool = False

    def fitted(self, samples: int) -> "Sound":
        """Cut or zero-padded to exactly ``samples``."""
        missing_s = (samples - len(self.waveform)) / SAMPLE_RATE_HZ
        padded = missing_s > PADDED_S
        notes = self.notes + ([f"{missing_s:.2f} s of silence appended"] if padded else [])
        return Sound(fit_length(self.waveform, samples), notes, padded)


def read_sound(path: Path, policy: LoadingPolicy) -> Sound:
    """Read a sound or video file. InputError, in one sentence: it can't be decoded, has no sound, holds NaN or
    infinity, or is not what the policy takes."""
    with open_media(path) as container:
        stream = sound_stream(container)
        if stream is None:
            raise InputError(f"{path} has no sound; it needs a sound track")
        rate_hz, channels = stream.codec_context.sample_rate, stream.codec_context.layout.nb_channels
    if rate_hz < policy.lowest_rate_hz:
        raise InputError(f"{path} is sampled at {rate_hz} Hz, so that what lies above {rate_hz // 2} Hz is missing; "
                         f"at least {policy.lowest_rate_hz} Hz are expected (lowest_rate_hz={rate_hz} takes it)")
    waveform = read_audio(path, sample_rate_hz=SAMPLE_RATE_HZ, longest_s=policy.longest_s)
    duration_s = len(waveform) / SAMPLE_RATE_HZ
    if duration_s < policy.shortest_s:
        raise InputError(f"{path} lasts {duration_s:.3f} s; at least {policy.shortest_s:g} s are needed")
    if not np.isfinite(waveform).all():
        raise InputError(f"{path} holds NaN or infinity; it was written by a broken model or program")
    if policy.clip_s is not None:
        waveform = waveform[:round(policy.clip_s * SAMPLE_RATE_HZ)]
    return Sound(waveform, [f"the mean of {channels} channels is taken"] if channels > 1 else [])


def content_hash(path: Path) -> str:
    """SHA-256 of a file's bytes. InputError: it can't be read."""
    try:
        with open(path, "rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()
    except OSError as error:
        raise InputError(f"{path} can't be opened ({error.strerror})") from error
