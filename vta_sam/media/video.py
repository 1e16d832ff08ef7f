"""Pictures at their true times: frame i of a clip is the picture on screen at ``start_s + (i + 0.5) / fps``."""

from __future__ import annotations

import math
import os
import warnings
from dataclasses import dataclass
from typing import Any, Generator, Generic, Iterable, Iterator, Mapping, Sequence, TypeVar

import numpy as np
from av.container import InputContainer

from ..clip import FrameClock
from ..runtime.errors import InputError
from .audio import SoundCollector, choice_of_sound, require_sound
from .container import open_media, origin_s, require_length, sound_stream
from .picture_reader import (
    Fit, Orientation, PictureConverter, PictureReader, pixel_aspect, require_pictures, upright_size
)

CHUNK_FRAMES = 32
_MAX_SCALED_PIXELS = 1 << 15  # a side, before what sticks out is cut off
P = TypeVar("P")
Chunks = Generator[list[np.ndarray], None, tuple[np.ndarray | None, float]]  # returns (waveform, duration_s)


@dataclass(frozen=True)
class MediaInfo:
    """The properties of a video file.

    Args:
        width: of an upright picture, in pixels; height too.
        rotation: degrees counter-clockwise that turn the stored picture upright.
        fps: as the container states it, or None; good for a message, not for arithmetic. duration_s too.
        choice_of_sound: which one of several sounds is heard, as a sentence.
    """

    width: int
    height: int
    rotation: int
    fps: float | None
    duration_s: float | None
    video_codec: str
    audio_codec: str | None
    sample_rate_hz: int | None
    channels: int | None
    choice_of_sound: str = ""


_LOCATION = ("com.apple.quicktime.location.", "gps", "location", "recording_location")  # beginnings of tags' names
_APPLES = "com.apple.quicktime.location.iso6709"


@dataclass(frozen=True)
class Kept:
    """What a new file keeps of a video on demand.

    Args:
        sound: which of the video's sounds is mixed in, as of :func:`.container.sound_stream`.
        location: where it was filmed.
    """

    sound: str | None = None
    location: bool = False

    def require(self, path: str | os.PathLike, container: InputContainer) -> None:
        """Raise InputError where the video has sounds, and the named one is none of them."""
        if self.sound is not None and container.streams.audio:
            require_sound(path, container, self.sound, "")

    def left_out(self, container: InputContainer, pictures: Any) -> list[str]:
        """What of the video's tags the new file won't have, in words."""
        told = any(tag.lower().startswith(_LOCATION) for tag in (*container.metadata, *pictures.metadata))
        return ["where it was filmed"] if told and not self.location else []

    def tags(self, stored: Mapping[str, str], own: Sequence[str] = ()) -> dict[str, str]:
        """The tags of a file or a stream that the new one gets, without ``own``, which are of the file itself."""
        found = {tag: text for tag, text in stored.items()
                 if tag.lower() not in own and (self.location or not tag.lower().startswith(_LOCATION))}
        for tag, text in stored.items():
            if self.location and tag.lower() == _APPLES:  # which mp4 has under another name
                found.setdefault("location", text)
        return found


@dataclass
class Clip:
    """A stretch of a video.

    Args:
        frames: for each requested fit an array (T, h, w, 3) uint8 RGB; T = FrameClock.frames_of(duration_s).
        waveform: (round(duration_s · rate),), or None.
        duration_s: as requested, or less where the video ends before.
    """

    frames: list[np.ndarray]
    waveform: np.ndarray | None
    duration_s: float


def probe(path: str | os.PathLike) -> MediaInfo:
    """The properties of a video, for which its first picture is decoded. Raises InputError when it has none."""
    with open_media(path) as container:
        video, sound = require_pictures(path, container), sound_stream(container)
        first = next((frame for _, _, frame in PictureReader(path, container, 0.0)), None)
        if first is None:
            raise InputError(f"{path}: no picture could be decoded")
        height, width = upright_size(first, pixel_aspect(video))
        return MediaInfo(
            width=width,
            height=height,
            rotation=90 * Orientation.of(first).turns,
            fps=float(video.average_rate) if video.average_rate else None,
            duration_s=container.duration / 1e6 if container.duration is not None else None,
            video_codec=video.codec_context.name,
            audio_codec=sound.codec_context.name if sound else None,
            sample_rate_hz=sound.codec_context.sample_rate if sound else None,
            channels=sound.codec_context.layout.nb_channels if sound else None,
            choice_of_sound=choice_of_sound(container, None),
        )


def read_clip(path: str | os.PathLike, *, start_s: float = 0.0, duration_s: float | None = None, fps: float,
              fits: Sequence[Fit], want_audio: bool, sample_rate_hz: int = 16_000, sound: str | None = None) -> Clip:
    """A stretch of a video, read in one pass. It takes no memory beyond the result.

    Args:
        path: of the video.
        start_s: after the file's time zero.
        duration_s: None: to the end.
        fps: frames a second to take.
        fits: each brings every picture to one size.
        want_audio: read the sound too.
        sample_rate_hz: of the sound.
        sound: which of several, as of :func:`.container.sound_stream`; None: the one that a player plays.

    Raises:
        InputError: names the file, which can't be read, has no pictures, has no such sound and ``want_audio``, or ends
            before ``start_s``.
    """
    stream = stream_clip(path, start_s=start_s, duration_s=duration_s, fps=fps, fits=fits, want_audio=want_audio,
                         sample_rate_hz=sample_rate_hz, chunk_frames=None, sound=sound)
    [frames] = stream
    return Clip(frames, stream.waveform, stream.duration_s)


class ClipStream:
    """A :class:`Clip` in chunks. It can be iterated once, and gives chunks of frames in order: lists of one array
    (n, h, w, 3) per fit; equal fits share one. After the last chunk ``waveform`` and ``duration_s`` are set.

    Args:
        chunks: yields the chunks, and returns (waveform, duration_s).
    """

    waveform: np.ndarray | None
    duration_s: float

    def __init__(self, chunks: Chunks):
        self._chunks = chunks

    def __iter__(self) -> Iterator[list[np.ndarray]]:
        self.waveform, self.duration_s = yield from self._chunks


def stream_clip(path: str | os.PathLike, *, start_s: float = 0.0, duration_s: float | None = None, fps: float,
                fits: Sequence[Fit], want_audio: bool, sample_rate_hz: int = 16_000,
                chunk_frames: int | None = CHUNK_FRAMES, hwaccel: str | None = None, sound: str | None = None,
                ) -> ClipStream:
    """The clip of :func:`read_clip`, in chunks. It takes the memory of one chunk and the sound.

    Args:
        path: as of :func:`read_clip`, like the others that are not named here.
        chunk_frames: up to so many frames a chunk; None: one chunk of all frames.
        hwaccel: kind of device that decodes; it may differ from software in a picture's last bits.

    Raises:
        InputError: as :func:`read_clip`, also during iteration.
    """
    return ClipStream(_stream(path, start_s, duration_s, fps, fits, want_audio, sample_rate_hz, chunk_frames, hwaccel,
                              sound))


def _stream(path: str | os.PathLike, start_s: float, duration_s: float | None, fps: float, fits: Sequence[Fit],
            want_audio: bool, sample_rate_hz: int, chunk_frames: int | None, hwaccel: str | None,
            sound: str | None) -> Chunks:
    _check_stretch(path, start_s, duration_s)
    with open_media(path, hwaccel) as container:
        collector = stream = None
        if want_audio:
            stream = require_sound(path, container, sound,
                                   ", which is needed here; leave it out or give it a sound track")
            if choice := choice_of_sound(container, sound):
                warnings.warn(f"{path}: {choice}", stacklevel=2)
            collector = SoundCollector(path, origin_s(container) + start_s, duration_s)
        reader = PictureReader(path, container, start_s, collector, stream)
        chosen = OnScreen(reader, fps, duration_s)
        fitters = {fit: _Fitter(path, fit, pixel_aspect(reader.video)) for fit in fits}
        chunks = _chunks(chosen, list(fitters.values()), chunk_frames or CHUNK_FRAMES)
        empty = True
        for arrays in chunks if chunk_frames is not None else _joined(chunks):
            fitted, empty = dict(zip(fitters, arrays)), False
            yield [fitted[fit] for fit in fits]
        if empty:
            raise InputError(f"{path}: no picture is on screen {start_s:g} s after its start; is the video shorter, or "
                             "damaged?")
        require_length(path, chosen.duration_s)
        reader.read_sound()
        waveform = collector.waveform(sample_rate_hz, chosen.duration_s) if collector is not None else None
    return waveform, chosen.duration_s


class OnScreen(Generic[P]):
    """Iterates over the picture of each frame i: the one on screen at (i + 0.5) / fps, which is the last that came up
    until then, or the first one if none had come up yet.

    After iteration ``duration_s`` holds the clip's duration: the requested one, or the pictures' if they end more
    than half a picture earlier. Without any picture on screen after time 0 nothing is yielded and it stays 0.

    Args:
        pictures: (time_s, length_s, picture) in order of time; time 0 is the start of the clip.
        fps: frames a second.
        duration_s: requested; None: until the last picture ends.
    """

    def __init__(self, pictures: Iterable[tuple[float, float, P]], fps: float, duration_s: float | None = None):
        self.pictures, self.requested_s, self.duration_s = pictures, duration_s, 0.0
        self.clock = FrameClock(fps)

    def __iter__(self) -> Iterator[P]:
        requested_frames = None if self.requested_s is None else self.clock.frames_of(self.requested_s)
        frame, last_s, end_s, length_s = 0, -math.inf, 0.0, 0.0
        held: P | None = None
        for time_s, length_s, picture in self.pictures:
            while held is not None and frame != requested_frames and self.clock.time_s(frame) < time_s - 1e-6:
                yield held
                frame += 1
            if frame == requested_frames:
                break
            held = picture
            if time_s >= last_s:  # damaged timestamps may go back; of the others only the last one's length counts
                last_s, end_s = time_s, time_s + length_s
        if frame != requested_frames:
            if held is None or end_s <= 1e-6:
                return
            self.duration_s = round(end_s, 6)  # sums of timestamps are off in the last digit, which costs a frame
            if self.requested_s is not None and end_s >= self.requested_s - 0.5 * length_s - 1e-6:
                self.duration_s = self.requested_s
            for _ in range(frame, self.clock.frames_of(self.duration_s)):
                yield held
        else:
            assert self.requested_s is not None
            self.duration_s = self.requested_s


def _chunks(chosen: Iterable[Any], fitters: Sequence[_Fitter], size: int) -> Iterator[list[np.ndarray]]:
    """av.VideoFrames ⇒ up to ``size`` of them at a time, an array (n, h, w, 3) per fitter."""
    last, count = None, 0
    for frame in chosen:
        for fitter in fitters:
            if frame is not last:  # a picture that stays on screen is converted once
                fitter.convert(frame)
            fitter.write(count, size)
        last, count = frame, count + 1
        if count == size:
            yield [fitter.take(count) for fitter in fitters]
            count = 0
    if count:
        yield [fitter.take(count) for fitter in fitters]


def _joined(chunks: Iterable[list[np.ndarray]]) -> Iterator[list[np.ndarray]]:
    """All chunks as one; none ⇒ none."""
    columns = [list(column) for column in zip(*chunks)]
    if columns:
        joined = []
        while columns:  # one fit at a time: never a second copy of everything
            column = columns.pop(0)
            joined.append(column[0] if len(column) == 1 else np.concatenate(column))
        yield joined


class _Fitter:
    """Pictures of one clip ⇒ arrays of one size, by a fit. The first picture decides the size: a stream may change its
    pictures' size midway."""

    def __init__(self, path: str | os.PathLike, fit: Fit, aspect: float):
        self.path, self.fit, self.aspect, self.converter = path, fit, aspect, PictureConverter()
        self.scaled: tuple[int, int] | None = None  # (height, width), upright
        self.picture: np.ndarray = np.empty((0, 0, 3), np.uint8)  # the last one converted, in the decoder's memory
        self.chunk: np.ndarray | None = None

    def convert(self, frame: Any) -> None:
        if self.scaled is None:
            self.scaled = self.fit.scaled(*upright_size(frame, self.aspect))
            if max(self.scaled) > _MAX_SCALED_PIXELS:
                raise InputError(f"{self.path}: pictures of {frame.width}x{frame.height} pixels are too long and thin "
                                 "to be brought to size; crop them first")
        upright = self.converter.convert(frame, *self.scaled, self.fit.interpolation)
        height, width = self.fit.kept(*self.scaled)
        top, left = (self.scaled[0] - height) // 2, (self.scaled[1] - width) // 2
        self.picture = upright[top:top + height, left:left + width]

    def write(self, place: int, size: int) -> None:
        """Copy the last picture into its place of a chunk of ``size``."""
        if self.chunk is None:
            self.chunk = np.empty((size, *self.picture.shape), np.uint8)
        self.chunk[place] = self.picture

    def take(self, count: int) -> np.ndarray:
        """The chunk's first pictures ⇒ (count, h, w, 3)."""
        assert self.chunk is not None
        chunk, self.chunk = self.chunk[:count], None
        return chunk


def _check_stretch(path: str | os.PathLike, start_s: float, duration_s: float | None) -> None:
    if not 0 <= start_s < float("inf") or duration_s is not None and not 0 < duration_s < float("inf"):
        raise InputError(f"{path}: a clip needs start >= 0 s and duration > 0 s, got start {start_s} s and duration "
                         f"{duration_s} s")
