"""Sounds as an evaluation reads them, the features that metrics need of them, and the features' cache.

There is one loading policy. Six published evaluations load in six ways, which alone moves a Fréchet distance by tens;
here the policy's name stands in every result, and it is part of every cache key. A cached file is found by the content
that it was measured from, whatever the sound's name is, and never after the content, the policy or the measuring code
has changed.
"""

from __future__ import annotations

import hashlib
from dataclasses import astuple, dataclass
from functools import cached_property
from pathlib import Path

import numpy as np
import safetensors
import safetensors.numpy

from ..media.audio import choice_of_sound, decoded_audio, fit_length, require_sound
from ..media.container import open_media
from ..mel import FIGURES, SAMPLE_RATE_HZ, log_mel
from ..metrics.onsets import (
    FoleyOnsets, at_published_rate, detect_onsets, foley_onsets, librosa_onsets_s, onset_strength
)
from ..metrics.signal import Level, energy_envelope, measure_level
from ..runtime.errors import EndOfRun, InputError
from ..runtime.files import write_bytes

Arrays = dict[str, np.ndarray]
_LARGEST_BYTES = 1 << 28


@dataclass(frozen=True)
class FeatureCache:
    """A folder of safetensors files named by their key; ``folder`` None keeps nothing. Any number of processes may
    share it: files are written whole, and equal keys mean equal content."""

    folder: Path | None

    def get(self, key: str) -> Arrays | None:
        """The cached arrays, or None. A damaged file counts as absent: it is measured again and replaced."""
        path = self._path(key)
        if path is None:
            return None
        try:
            if path.stat().st_size > _LARGEST_BYTES:
                return None
            return safetensors.numpy.load(path.read_bytes())
        except (OSError, safetensors.SafetensorError, ValueError):
            return None

    def put(self, key: str, arrays: Arrays) -> None:
        """EndOfRun where the folder can't be written to: no other file's features could be kept either."""
        path = self._path(key)
        if path is not None:
            try:
                write_bytes(path, safetensors.numpy.save({k: np.asarray(a, order="C") for k, a in arrays.items()}))
            except OSError as error:
                raise EndOfRun(f"cache={self.folder} can't be written to ({error.strerror}); name another folder, or "
                               "cache=null") from error

    def _path(self, key: str) -> Path | None:
        return self.folder and self.folder / key[:2] / f"{key}.safetensors"


def cache_key(*parts: object) -> str:
    """Everything that a cached value depends on (content hashes, policy, versions, lengths) ⇒ 40 hex digits."""
    return hashlib.sha256("\0".join(map(str, parts)).encode()).hexdigest()[:40]


PADDED_S = 0.01  # a sound that ends this much before or after the true one is counted; less is a codec's rounding


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
    """A sound as the policy reads it. waveform (samples,) float32, mono 16 kHz; notes: on changes of it; padded:
    whether silence was appended; fitted_s: how much, below 0: seconds cut off."""

    waveform: np.ndarray
    notes: list[str]
    padded: bool = False
    fitted_s: float = 0.0

    def fitted(self, samples: int) -> "Sound":
        """Cut or zero-padded to exactly ``samples``."""
        missing_s = (samples - len(self.waveform)) / SAMPLE_RATE_HZ
        padded = missing_s > PADDED_S
        notes = self.notes + ([f"{missing_s:.2f} s of silence appended"] if padded else
                              [f"{-missing_s:.2f} s cut off"] if -missing_s > PADDED_S else [])
        return Sound(fit_length(self.waveform, samples), notes, padded, missing_s)


def read_sound(path: Path, policy: LoadingPolicy, sound: str | None = None) -> Sound:
    """Read a sound or video file; sound: which of several, as of :func:`.container.sound_stream`. InputError, in one
    sentence: it can't be decoded, has no such sound, holds NaN or infinity, or is refused by the policy."""
    with open_media(path) as container:
        stream = require_sound(path, container, sound, "; it needs a sound track")
        choice = choice_of_sound(container, sound)
        rate_hz, channels = stream.codec_context.sample_rate, stream.codec_context.layout.nb_channels
        if rate_hz < policy.lowest_rate_hz:
            raise InputError(f"{path} is sampled at {rate_hz} Hz, so that what lies above {rate_hz // 2} Hz is "
                             f"missing; at least {policy.lowest_rate_hz} Hz are expected (lowest_rate_hz={rate_hz} "
                             "takes it)")
        waveform = decoded_audio(path, container, stream, 0.0, None, policy.longest_s).waveform(SAMPLE_RATE_HZ)
    duration_s = len(waveform) / SAMPLE_RATE_HZ
    if duration_s < policy.shortest_s:
        raise InputError(f"{path} lasts {duration_s:.3f} s; at least {policy.shortest_s:g} s are needed")
    if not np.isfinite(waveform).all():
        raise InputError(f"{path} holds NaN or infinity; it was written by a broken model or program")
    if policy.clip_s is not None:
        waveform = waveform[:round(policy.clip_s * SAMPLE_RATE_HZ)]
    mixed = f"the mean of {channels} channels is taken" if channels > 1 else ""
    return Sound(waveform, [note for note in (mixed, choice) if note])


def content_hash(path: Path) -> str:
    """SHA-256 of a file's bytes. InputError: it can't be read."""
    try:
        with open(path, "rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()
    except OSError as error:
        raise InputError(f"{path} can't be opened ({error.strerror})") from error


FEATURES_VERSION = 2  # to be raised when a feature changes, so that no cache answers for it


class WaveformFeatures:
    """Features of a waveform, each computed when it is first read.

    Args:
        waveform: (samples,) mono 16 kHz.
        published: (n,) at 22 050 Hz, all of the file as published code reads it; None: the same sound.
    """

    def __init__(self, waveform: np.ndarray, published: np.ndarray | None = None) -> None:
        self.waveform, self._published = waveform, published

    @property
    def samples(self) -> int:
        return len(self.waveform)

    @cached_property
    def envelope(self) -> np.ndarray:
        """At 100 Hz, in nats."""
        return energy_envelope(self.waveform, self._log_mel)

    @cached_property
    def onsets_s(self) -> np.ndarray:
        """By this project's detector."""
        return detect_onsets(self.waveform, self._log_mel)

    @cached_property
    def level(self) -> Level:
        return measure_level(self.waveform, SAMPLE_RATE_HZ)

    @cached_property
    def librosa_onsets_s(self) -> np.ndarray:
        """By librosa's defaults."""
        return librosa_onsets_s(self._at_published_rate, self._strength)

    @cached_property
    def foley(self) -> FoleyOnsets:
        """By CondFoleyGen's settings."""
        return foley_onsets(self._at_published_rate, self._strength)

    @cached_property
    def _log_mel(self) -> np.ndarray | None:
        """None of a sound that has none; the functions that need it say why."""
        return log_mel(self.waveform, FIGURES) if np.isfinite(self.waveform).all() else None

    @cached_property
    def published_onsets_s(self) -> np.ndarray:
        """By librosa's defaults, of all of the file at its own rate."""
        if self._published is None:
            return self.librosa_onsets_s
        return librosa_onsets_s(self._published, self._published_strength)

    @cached_property
    def published_foley(self) -> FoleyOnsets:
        """By CondFoleyGen's settings, likewise."""
        return self.foley if self._published is None else foley_onsets(self._published, self._published_strength)

    @cached_property
    def _at_published_rate(self) -> np.ndarray:
        return at_published_rate(self.waveform)

    @cached_property
    def _strength(self) -> np.ndarray:
        return onset_strength(self._at_published_rate)

    @cached_property
    def _published_strength(self) -> np.ndarray | None:
        return None if self._published is None else onset_strength(self._published)


@dataclass(frozen=True)
class SoundFeatures:
    """All of :class:`WaveformFeatures`, as they are cached: without the waveform, the envelope in float32."""

    samples: int
    envelope: np.ndarray
    onsets_s: np.ndarray
    librosa_onsets_s: np.ndarray
    foley: FoleyOnsets
    published_onsets_s: np.ndarray
    published_foley: FoleyOnsets
    level: Level

    def arrays(self) -> Arrays:
        """⇒ arrays for the cache."""
        return {
            "samples": np.array(self.samples), "envelope": self.envelope.astype(np.float32), "onsets_s": self.onsets_s,
            "librosa_onsets_s": self.librosa_onsets_s, "published_onsets_s": self.published_onsets_s,
            **{f"{name}_{part}": getattr(getattr(self, name), part) for name in _FOLEY for part in _FOLEY_PARTS},
            "level": np.array(astuple(self.level), np.float64),
        }

    @classmethod
    def of_arrays(cls, arrays: Arrays) -> "SoundFeatures":
        """The inverse of :meth:`arrays`."""
        rms, peak, silent_share, silent, clipping = arrays["level"].tolist()
        foley, published = (FoleyOnsets(*(arrays[f"{name}_{part}"] for part in _FOLEY_PARTS)) for name in _FOLEY)
        return cls(int(arrays["samples"]), arrays["envelope"], arrays["onsets_s"], arrays["librosa_onsets_s"], foley,
                   arrays["published_onsets_s"], published,
                   Level(rms, peak, silent_share, bool(silent), clipping))


_FOLEY, _FOLEY_PARTS = ("foley", "published_foley"), ("samples", "heights", "confidences")


def sound_features(waveform: np.ndarray, published: np.ndarray | None = None) -> SoundFeatures:
    """⇒ the features of a sound; arguments as of :class:`WaveformFeatures`."""
    of = WaveformFeatures(waveform, published)
    return SoundFeatures(of.samples, of.envelope.astype(np.float32), of.onsets_s, of.librosa_onsets_s, of.foley,
                         of.published_onsets_s, of.published_foley, of.level)
