"""Sound: one policy for reading, resampling, padding and writing. Waveforms are (samples,) float32, mono."""

from __future__ import annotations

import io
import math
import os
import warnings
from fractions import Fraction
from typing import Any, Iterable, Iterator

import av
import numpy as np
import soundfile
from av.container import InputContainer

from ..runtime.errors import InputError
from ..runtime.files import write_bytes
from .container import LONGEST_GAP_S, Decoder, open_media, origin_s, packets, seek_before, sound_stream

_JITTER_S = 0.02  # timestamps that are off by less are rounding of the container, not a gap
_BLOCK_SAMPLES = 1 << 20  # native samples that are resampled at a time
AAC_FRAME_SAMPLES = 1024
_CANCELLED = 0.01  # share of a channel's energy below which the mean of two has lost it
_MARGIN_S = 1  # whole seconds of native samples kept before a stretch, so that the resampler's filter has run in


def read_audio(path: str | os.PathLike, start_s: float = 0.0, duration_s: float | None = None,
               sample_rate_hz: int = 16_000, longest_s: float | None = None, sound: str | None = None) -> np.ndarray:
    """A stretch of a file's sound, the mean of its channels ⇒ (samples,) float32.

    Samples stand at their own timestamps: where a stream starts late or has a gap, there is silence.

    Args:
        path: of a sound file or a video.
        start_s: after the file's time zero.
        duration_s: of the result, exactly: zeros after the sound's end. None: to the end.
        sample_rate_hz: of the result.
        longest_s: longer sounds are refused.
        sound: which of several, as of :func:`.container.sound_stream`; None: the one that a player plays.

    Raises:
        InputError: the file has no such sound, none after ``start_s``, or more than ``longest_s``.
    """
    with open_media(path) as container:
        stream = require_sound(path, container, sound, "; it needs a video or sound file with a sound track")
        collector = decoded_audio(path, container, stream, start_s, duration_s, longest_s)
    return collector.waveform(sample_rate_hz)


def decoded_audio(path: str | os.PathLike, container: InputContainer, stream: Any, start_s: float,
                  duration_s: float | None, longest_s: float | None) -> SoundCollector:
    """A stretch of an open file's sound. Arguments and errors as of :func:`read_audio`; stream: of the container, from
    which nothing was read yet."""
    collector = SoundCollector(path, origin_s(container) + start_s, duration_s)
    decoder = Decoder(path)
    seek_before(container, start_s)
    for packet in packets(container, stream):
        for frame in decoder.decode(packet):
            collector.add(frame)
        if longest_s is not None and collector.end > longest_s * collector.rate_hz:
            raise InputError(f"{path}: its sound is longer than {longest_s:g} s; cut it first")
        if collector.done:
            break
    return collector


def read_plain(path: str | os.PathLike, sound: str | None = None, longest_s: float | None = None,
               ) -> tuple[np.ndarray, int]:
    """All of a file's sound as librosa.load reads it before it resamples: the plain mean of the channels as decoded,
    whatever the timestamps say ⇒ ((samples,) float32, its own rate in Hz).

    Args:
        path: as of :func:`read_audio`, like the others.
        sound: which of several.
        longest_s: longer sounds are refused.

    Raises:
        InputError: the file has no such sound, or a longer one, or can't be decoded.
    """
    parts: list[np.ndarray] = []
    try:
        with soundfile.SoundFile(os.fspath(path)) as file:
            rate_hz = int(file.samplerate)
            if longest_s is None or file.frames <= longest_s * rate_hz:
                for block in file.blocks(_BLOCK_SAMPLES, dtype="float32", always_2d=True):
                    parts.append(block.mean(axis=1))
                return np.concatenate(parts or [np.zeros(0, np.float32)]), rate_hz
    except (soundfile.SoundFileError, OSError):  # of a kind that libsndfile doesn't know
        parts = []
    rate_hz = count = 0
    with open_media(path) as container:
        stream, decoder = require_sound(path, container, sound, "; it needs a sound track"), Decoder(path)
        for packet in packets(container, stream):
            for frame in decoder.decode(packet):
                rate_hz = rate_hz or frame.sample_rate
                parts.append(_channels(frame).mean(axis=0).astype(np.float32))
                count += frame.samples
            if longest_s is not None and count > longest_s * rate_hz:
                raise InputError(f"{path}: its sound is longer than {longest_s:g} s; cut it first")
    if not count:
        raise InputError(f"{path}: no sound could be decoded")
    return np.concatenate(parts), rate_hz


def sounds_of(container: InputContainer) -> tuple[str, ...]:
    """A file's sounds in words: number, language, marks ("1 ger comment")."""
    kinds = av.stream.Disposition
    marks = (kinds.default, kinds.comment, kinds.hearing_impaired, kinds.visual_impaired, kinds.descriptions)
    return tuple(" ".join([str(number), *([stream.language] if stream.language not in (None, "und") else []),
                           *(str(mark.name).replace("_", " ") for mark in marks if stream.disposition & mark)])
                 for number, stream in enumerate(container.streams.audio))


def require_sound(path: str | os.PathLike, container: InputContainer, sound: str | None, advice: str) -> Any:
    """The stream of :func:`.container.sound_stream`.

    Args:
        path: of the file, for messages.
        container: the open file.
        sound: a name, or None.
        advice: end of the message about a file without any sound.

    Raises:
        InputError: there is no such sound.
    """
    stream, sounds = sound_stream(container, sound), sounds_of(container)
    if stream is None and sound is not None and sounds:
        raise InputError(f"{path} has no sound {sound}; name one by number or language (sounds: {', '.join(sounds)})")
    if stream is None:
        raise InputError(f"{path} has no sound{advice}")
    return stream


def choice_of_sound(container: InputContainer, sound: str | None) -> str:
    """Which one of several sounds is heard, as a sentence; "" where there is one, or one is named."""
    sounds, heard = sounds_of(container), sound_stream(container, sound)
    if sound is not None or len(sounds) < 2 or heard is None:
        return ""
    number = next(number for number, stream in enumerate(container.streams.audio) if stream is heard)
    return f"of its {len(sounds)} sounds ({', '.join(sounds)}) number {number} is heard; sound= names another"


class SoundCollector:
    """Decoded audio frames ⇒ one waveform of a stretch.

    Args:
        path: of the file, for messages.
        start_s: of the stretch, on the file's own clock.
        duration_s: of the stretch; None: to the end.
    """

    def __init__(self, path: str | os.PathLike, start_s: float, duration_s: float | None):
        self.path, self.start_s, self.duration_s = path, start_s, duration_s
        self.rate_hz = 0
        self.end = 0  # native samples after start_s; where the next frame is expected
        self.parts: list[tuple[int, np.ndarray]] = []
        self.begin: int | None = None  # native samples after start_s where the earliest frame began
        self.opposed: dict[int, np.ndarray] = {}  # (2, samples) of stretches of stereo whose channels cancel
        self.mixed_energy, self.energy = 0.0, np.zeros(2)  # of the mean of two channels, and of each

    @property
    def done(self) -> bool:
        return self.duration_s is not None and self.rate_hz > 0 and self.end > (self.duration_s + 0.1) * self.rate_hz

    def add(self, frame: Any) -> None:
        """Keep the part of a frame (av.AudioFrame) that lies in the stretch."""
        if not self.rate_hz:
            self.rate_hz = frame.sample_rate
        if frame.sample_rate != self.rate_hz:
            raise InputError(f"{self.path}: its sound changes from {self.rate_hz} to {frame.sample_rate} Hz halfway; "
                             "convert it first")
        if frame.samples == 0:
            return
        at = self.end
        if frame.time is not None:
            at = round((frame.time - self.start_s) * self.rate_hz)
            if self.parts and abs(at - self.end) < _JITTER_S * self.rate_hz:
                at = self.end
            elif self.parts and at - self.end > LONGEST_GAP_S * self.rate_hz:
                raise InputError(f"{self.path}: its sound has a gap of {(at - self.end) / self.rate_hz:.0f} s; its "
                                 "timestamps look damaged")
        self.end = at + frame.samples
        self.begin = at if self.begin is None else min(self.begin, at)
        # where pictures lie later in the file than their sound, frames beyond the stretch are decoded too
        wanted = self.duration_s is None or at < (self.duration_s + 0.2) * self.rate_hz
        if wanted and self.end > -_MARGIN_S * self.rate_hz:
            channels = _channels(frame)
            self.parts.append((at, (_gains(frame.layout) @ channels).astype(np.float32)))
            if len(channels) == 2:
                self._compare(at, channels)

    def _compare(self, at: int, channels: np.ndarray) -> None:
        """Keep both channels of a stretch where their mean has lost nearly all of them."""
        mixed, energy = np.square(channels.mean(axis=0)).sum(), np.square(channels).sum(axis=1)
        self.mixed_energy += float(mixed)
        self.energy += energy
        if mixed < _CANCELLED * energy.max():
            self.opposed[at] = channels.astype(np.float32)

    def _with_louder_channel(self) -> list[tuple[int, np.ndarray]]:
        """The parts; of stereo whose channels cancel each other throughout, the louder channel's."""
        if not self.mixed_energy < _CANCELLED * self.energy.max():
            return self.parts
        warnings.warn(f"{self.path}: its two channels cancel each other, so that the louder one is heard alone",
                      stacklevel=2)
        louder = int(self.energy.argmax())
        return [(at, self.opposed[at][louder] if at in self.opposed else samples) for at, samples in self.parts]

    def waveform(self, sample_rate_hz: int, pictures_s: float | None = None) -> np.ndarray:
        """The collected sound ⇒ (samples,) float32.

        Args:
            sample_rate_hz: of the result.
            pictures_s: duration of the stretch's pictures, and then of the result; sound that begins after them is
                refused.

        Raises:
            InputError: there is no sound in the stretch.
        """
        duration_s = self.duration_s if pictures_s is None else pictures_s
        if self.begin is None:
            raise InputError(f"{self.path}: no sound could be decoded")
        if self.end <= 0:
            early_s = -self.end / self.rate_hz
            raise InputError(f"{self.path}: its sound ends {early_s:.2f} s before the start of the clip")
        if pictures_s is not None and self.begin >= pictures_s * self.rate_hz:
            late_s = self.begin / self.rate_hz - pictures_s
            raise InputError(f"{self.path}: its sound begins {late_s:.2f} s after the end of its pictures")
        lead = _MARGIN_S * self.rate_hz
        length = lead + (self.end if duration_s is None else math.ceil((duration_s + 0.1) * self.rate_hz))
        waveform = _resampled(self._blocks(lead, length), length, self.rate_hz, sample_rate_hz)
        waveform = waveform[_MARGIN_S * sample_rate_hz:]
        exact = len(waveform) if duration_s is None else round(duration_s * sample_rate_hz)
        return fit_length(waveform, exact)

    def _blocks(self, lead: int, length: int) -> Iterator[np.ndarray]:
        """``length`` native samples, beginning ``lead`` before the start, block by block, so that there is never a
        second copy of the whole sound."""
        places: dict[int, list[tuple[int, np.ndarray]]] = {}
        # in order of decoding: of two parts at the same time the second stays
        for at, samples in self._with_louder_channel():
            first, last = max(0, lead + at), min(length, lead + at + len(samples))
            if first < last:
                for block in range(first // _BLOCK_SAMPLES, (last - 1) // _BLOCK_SAMPLES + 1):
                    places.setdefault(block, []).append((lead + at, samples))
        for start in range(0, length, _BLOCK_SAMPLES):
            native = np.zeros(min(_BLOCK_SAMPLES, length - start), np.float32)
            for at, samples in places.pop(start // _BLOCK_SAMPLES, ()):
                first, last = max(start, at), min(start + len(native), at + len(samples))
                native[first - start:last - start] = samples[first - at:last - at]
            yield native


# gains of channels in a downmix to stereo (ITU-R BS.775, without the low-frequency effects), halved to one channel
_GAINS = {"FL": 0.5, "FR": 0.5, "FC": 0.5**0.5, "LFE": 0.0, "BL": 0.5 * 0.5**0.5, "BR": 0.5 * 0.5**0.5,
          "SL": 0.5 * 0.5**0.5, "SR": 0.5 * 0.5**0.5, "BC": 0.5, "FLC": 0.5, "FRC": 0.5}


_USUAL = {4: "4.0", 5: "5.0", 6: "5.1", 7: "6.1", 8: "7.1"}  # layouts of so many channels, as FFmpeg takes them


def _gains(layout: Any) -> np.ndarray:
    """(channels,) float64 of a layout: the usual downmix, or the mean where channels have no known place."""
    names = [channel.name for channel in layout.channels]
    if "NONE" in names and len(names) in _USUAL:  # the file counts its channels alone
        names = [channel.name for channel in av.AudioLayout(_USUAL[len(names)]).channels]
    if len(names) <= 2 or any(name not in _GAINS for name in names):
        return np.full(layout.nb_channels, 1 / layout.nb_channels)
    return np.array([_GAINS[name] for name in names])


def mono(frame: Any) -> np.ndarray:
    """A decoded av.AudioFrame ⇒ (samples,) float32: the mean of stereo, the usual downmix of more channels."""
    return (_gains(frame.layout) @ _channels(frame)).astype(np.float32)


def _channels(frame: Any) -> np.ndarray:
    """A decoded av.AudioFrame ⇒ (channels, samples) float64, 1 is full scale."""
    samples = frame.to_ndarray()
    if not frame.format.is_planar:
        samples = samples.reshape(-1, frame.layout.nb_channels).T
    whole = samples.astype(np.float64)
    if samples.dtype == np.uint8:
        return (whole - 128) / 128
    if samples.dtype.kind == "i":
        return whole / float(1 << (8 * samples.dtype.itemsize - 1))
    return whole


def resample(waveform: np.ndarray, from_hz: int, to_hz: int) -> np.ndarray:
    """(samples,) float32 at one rate ⇒ at another, by FFmpeg's band-limited resampler; sample 0 stays at time 0."""
    if from_hz == to_hz:
        return waveform
    blocks = (waveform[start:start + _BLOCK_SAMPLES] for start in range(0, len(waveform), _BLOCK_SAMPLES))
    return _resampled(blocks, len(waveform), from_hz, to_hz)


def _resampled(blocks: Iterable[np.ndarray], length: int, from_hz: int, to_hz: int) -> np.ndarray:
    """``length`` samples in blocks ⇒ all of them at another rate, in one array."""
    waveform, filled = np.zeros(round(length * to_hz / from_hz), np.float32), 0
    for block in blocks if from_hz == to_hz else _through_resampler(blocks, from_hz, to_hz):
        fitting = block[:len(waveform) - filled]
        waveform[filled:filled + len(fitting)] = fitting
        filled += len(fitting)
    return waveform


def _through_resampler(blocks: Iterable[np.ndarray], from_hz: int, to_hz: int) -> Iterator[np.ndarray]:
    resampler = av.AudioResampler(format="fltp", layout="mono", rate=to_hz)
    samples = 0
    for block in blocks:  # FFmpeg refuses frames of hours
        frame = av.AudioFrame.from_ndarray(np.ascontiguousarray(block[None], np.float32), format="fltp", layout="mono")
        frame.sample_rate, frame.pts, frame.time_base = from_hz, samples, Fraction(1, from_hz)
        samples += len(block)
        yield from (part.to_ndarray()[0] for part in resampler.resample(frame))
    yield from (part.to_ndarray()[0] for part in resampler.resample(None))


def normalise_waveform(waveform: np.ndarray) -> np.ndarray:
    """The waveform minus its mean, scaled to a peak of 0.5; silence stays silence. The VAE's training data."""
    waveform = np.asarray(waveform, np.float32)
    if not waveform.size:
        return waveform
    centred = waveform - waveform.mean(dtype=np.float64).astype(np.float32)
    peak = float(np.abs(centred).max())
    return centred * np.float32(0.5 / peak) if peak > 1e-8 else np.zeros_like(centred)


def fit_length(waveform: np.ndarray, samples: int) -> np.ndarray:
    """The waveform cut, or padded with zeros, to exactly ``samples``."""
    if len(waveform) >= samples:
        return waveform[:samples]
    return np.pad(waveform, (0, samples - len(waveform)))


def write_wav(path: str | os.PathLike, waveform: np.ndarray, sample_rate_hz: int) -> int:
    """Write mono PCM-16, atomically ⇒ how many samples were beyond [-1, 1] and were clipped."""
    waveform = np.asarray(waveform, np.float32)
    if waveform.ndim != 1:
        raise InputError(f"{path}: expected a waveform of shape (samples,), got shape {waveform.shape}")
    if not np.isfinite(waveform).all():
        raise InputError(f"{path}: the sound holds NaN or infinity, so it is not written")
    clipped = int((np.abs(waveform) > 1.0).sum())
    content = io.BytesIO()  # soundfile itself doesn't say that a disk is full
    soundfile.write(content, np.clip(waveform, -1.0, 1.0), sample_rate_hz, format="WAV", subtype="PCM_16")
    write_bytes(path, content.getbuffer())
    return clipped


def read_wav(path: str | os.PathLike) -> tuple[np.ndarray, int]:
    """A sound file that libsndfile knows ⇒ ((samples,) float32, mean of its channels; its sample rate in Hz)."""
    try:
        samples, rate_hz = soundfile.read(os.fspath(path), dtype="float32", always_2d=True)
    except (soundfile.SoundFileError, OSError) as error:
        raise InputError(f"{path} can't be read as a sound file ({error})") from error
    return samples.mean(axis=1), int(rate_hz)


def end_of_sound_s(path: str | os.PathLike) -> float:
    """When a file's first sound ends, after time zero; 0: it has none."""
    with open_media(path) as container:
        if not container.streams.audio:
            return 0.0
        stream: Any = container.streams.audio[0]
        ends = [(packet.pts + (packet.duration or 0)) * stream.time_base for packet in packets(container, stream)
                if packet.pts is not None]
        return float(max(ends, default=0)) - origin_s(container)


def aac_frames(sound: np.ndarray, sample_rate_hz: int) -> Iterator[av.AudioFrame]:
    """(samples,) ⇒ audio frames of up to AAC_FRAME_SAMPLES with their timestamps."""
    for start in range(0, len(sound), AAC_FRAME_SAMPLES):
        samples = np.ascontiguousarray(sound[None, start:start + AAC_FRAME_SAMPLES])
        block = av.AudioFrame.from_ndarray(samples, format="fltp", layout="mono")
        block.sample_rate, block.pts, block.time_base = sample_rate_hz, start, Fraction(1, sample_rate_hz)
        yield block
