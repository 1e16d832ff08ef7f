"""Pictures at their true times: frame i of a clip is the picture on screen at ``start_s + (i + 0.5) / fps``."""

from __future__ import annotations

import os
from dataclasses import dataclass
from typing import Any, Generic, Iterable, Iterator, Sequence, TypeVar

import numpy as np
from av.container import InputContainer
from av.video.reformatter import VideoReformatter

from .audio import SoundCollector
from .clip import ClipSpec
from .container import (Decoder, open_media, origin_s, picture_length_s, picture_stream, seek_before,
                        sound_stream)
from .errors import InputError
from .fit import Fit

MAX_SIDE_PIXELS = 8192
_THREADED_PIXELS = 640 * 480  # smaller pictures decode faster on one thread
P = TypeVar("P")


@dataclass(frozen=True)
class MediaInfo:
    """What a file is, upright. duration_s and fps are the container's claims (None where it makes none): good for a
    message, not for arithmetic."""

    width: int
    height: int
    rotation: int  # degrees counter-clockwise that turn the stored picture upright
    fps: float | None
    duration_s: float | None
    video_codec: str
    audio_codec: str | None
    sample_rate_hz: int | None
    channels: int | None


@dataclass
class Clip:
    """A stretch of a video: for each fit asked for an array (T, h, w, 3) uint8 RGB; the sound or None.

    duration_s is what was asked for, or less where the video ends before; T = ClipSpec.frames_of(duration_s), and the
    waveform has round(duration_s · rate) samples.
    """

    frames: list[np.ndarray]
    waveform: np.ndarray | None
    duration_s: float


def probe(path: str | os.PathLike) -> MediaInfo:
    """What is in a video, by decoding its first picture. Raises InputError when it has none."""
    with open_media(path) as container:
        video, sound = _require_pictures(path, container), sound_stream(container)
        first = next((frame for _, _, frame in _PictureReader(path, container, 0.0)), None)
        if first is None:
            raise InputError(f"{path}: no picture could be decoded")
        height, width = _upright_size(first)
        return MediaInfo(
            width=width,
            height=height,
            rotation=90 * _quarter_turns(first),
            fps=float(video.average_rate) if video.average_rate else None,
            duration_s=container.duration / 1e6 if container.duration is not None else None,
            video_codec=video.codec_context.name,
            audio_codec=sound.codec_context.name if sound else None,
            sample_rate_hz=sound.codec_context.sample_rate if sound else None,
            channels=sound.codec_context.layout.nb_channels if sound else None,
        )


def read_clip(path: str | os.PathLike, *, start_s: float = 0.0, duration_s: float | None = None, fps: float,
              fits: Sequence[Fit], want_audio: bool, sample_rate_hz: int = 16_000) -> Clip:
    """A stretch of a video in one pass, its pictures brought to size by each of ``fits``.

    duration_s None ⇒ to the end. Only the chosen pictures are kept, so memory is that of the result. Raises InputError
    naming the file when it can't be read, has no pictures, has no sound and ``want_audio``, or ends before ``start_s``.
    """
    _check_stretch(path, start_s, duration_s)
    with open_media(path) as container:
        collector = None
        if want_audio:
            if sound_stream(container) is None:
                raise InputError(f"{path} has no sound, which is needed here; leave it out or give it a sound track")
            collector = SoundCollector(path, origin_s(container) + start_s, duration_s)
        reader = _PictureReader(path, container, start_s, collector)
        chosen = OnScreen(reader, fps, duration_s)
        pictures: dict[Fit, list[np.ndarray]] = {fit: [] for fit in fits}
        for fitted in _fitted(path, start_s, chosen, list(pictures)):
            for column, picture in zip(pictures.values(), fitted):
                column.append(picture)
        reader.read_sound()
    waveform = collector.waveform(sample_rate_hz, chosen.duration_s) if collector is not None else None
    # one fit at a time: never a second copy of everything. Equal fits are one array
    frames = {fit: np.stack(pictures.pop(fit)) for fit in list(pictures)}
    return Clip([frames[fit] for fit in fits], waveform, chosen.duration_s)


def stream_frames(path: str | os.PathLike, *, start_s: float = 0.0, duration_s: float | None = None, fps: float,
                  fits: Sequence[Fit], chunk_frames: int = 64) -> Iterator[list[np.ndarray]]:
    """The frames of :func:`read_clip` in chunks of up to ``chunk_frames``: memory is that of one chunk."""
    _check_stretch(path, start_s, duration_s)
    with open_media(path) as container:
        chosen = OnScreen(_PictureReader(path, container, start_s), fps, duration_s)
        chunk: list[list[np.ndarray]] = []
        for fitted in _fitted(path, start_s, chosen, fits):
            chunk.append(fitted)
            if len(chunk) == chunk_frames:
                yield [np.stack(column) for column in zip(*chunk)]
                chunk = []
        if chunk:
            yield [np.stack(column) for column in zip(*chunk)]


class OnScreen(Generic[P]):
    """(time_s, length_s, picture) in order of time, time 0 = start of the clip ⇒ for each frame i the picture on screen
    at (i + 0.5) / fps: the last that came up before or then; the first one, if none had come up yet.

    After iteration ``duration_s`` holds the clip's duration: what was asked for, or what the pictures last if they end
    more than half a picture earlier. Without any picture on screen after time 0 nothing is yielded and it stays 0.
    """

    def __init__(self, pictures: Iterable[tuple[float, float, P]], fps: float, duration_s: float | None = None):
        self.pictures, self.asked_s, self.duration_s = pictures, duration_s, 0.0
        # any legal duration does here: only the rule for stretches is used
        self.spec = ClipSpec(duration_s=1.0, fps=fps, latent_stride_frames=1)

    def __iter__(self) -> Iterator[P]:
        asked_frames = None if self.asked_s is None else self.spec.frames_of(self.asked_s)
        frame, end_s, length_s = 0, 0.0, 0.0
        held: P | None = None
        for time_s, length_s, picture in self.pictures:
            while held is not None and frame != asked_frames and (frame + 0.5) / self.spec.fps < time_s - 1e-6:
                yield held
                frame += 1
            if frame == asked_frames:
                break
            held, end_s = picture, time_s + length_s
        if frame != asked_frames:
            if held is None or end_s <= 1e-6:
                return
            self.duration_s = round(end_s, 6)  # sums of timestamps are off in the last digit, which costs a frame
            if self.asked_s is not None and end_s >= self.asked_s - 0.5 * length_s - 1e-6:
                self.duration_s = self.asked_s
            for _ in range(frame, self.spec.frames_of(self.duration_s)):
                yield held
        else:
            assert self.asked_s is not None
            self.duration_s = self.asked_s


class _PictureReader:
    """Decodes a container from ``start_s`` on ⇒ (time_s after start_s, length_s, av.VideoFrame), in order of time.
    Sound met on the way goes to ``collector``."""

    def __init__(self, path: str | os.PathLike, container: InputContainer, start_s: float,
                 collector: SoundCollector | None = None):
        self.path, self.container, self.start_s, self.collector = path, container, start_s, collector
        self.video = _require_pictures(path, container)
        self.wants_pictures = True
        seek_before(container, start_s)
        streams = [self.video] if collector is None else [self.video, sound_stream(container)]
        self.packets = container.demux(streams)
        self.decoder = Decoder(path)

    def __iter__(self) -> Iterator[tuple[float, float, Any]]:
        zero_s = origin_s(self.container) + self.start_s
        nominal_s = float(1 / self.video.average_rate) if self.video.average_rate else 0.04
        tolerance_s = 0.5 * float(self.video.time_base)  # timestamps are rounded to the container's clock
        previous_s, longest_s = None, 1.0
        for frame in self._frames():
            _check_size(self.path, frame.width, frame.height)
            time_s = frame.time - zero_s if frame.time is not None else (previous_s or 0.0) + nominal_s
            if previous_s is not None and time_s > previous_s:
                nominal_s = time_s - previous_s
                longest_s = max(longest_s, nominal_s)
            previous_s = time_s
            claimed_s = float(frame.duration * frame.time_base) if frame.duration and frame.time_base else 0.0
            length_s = picture_length_s(claimed_s, nominal_s)
            # a length is believed up to the longest gap seen: some containers claim hours for the last picture
            yield time_s - tolerance_s, min(length_s, longest_s) + tolerance_s, frame

    def _frames(self) -> Iterator[Any]:
        for packet in self.packets:
            if packet.stream.index == self.video.index:
                if self.wants_pictures:
                    yield from self.decoder.decode(packet)
            elif self.collector is not None:
                for frame in self.decoder.decode(packet):
                    self.collector.add(frame)
                if self.collector.done and not self.wants_pictures:
                    return

    def read_sound(self) -> None:
        """Read on for the sound that lies in the file behind the last picture that was needed."""
        self.wants_pictures = False
        if self.collector is not None and not self.collector.done:
            for _ in self._frames():
                pass


def _fitted(path: str | os.PathLike, start_s: float, chosen: Iterable[Any], fits: Sequence[Fit],
            ) -> Iterator[list[np.ndarray]]:
    """av.VideoFrames ⇒ for each one picture (h, w, 3) uint8 RGB per fit, upright. A picture that stays on screen is
    converted once, and once for equal fits."""
    fitters = {fit: _Fitter(fit) for fit in fits}
    last, fitted = None, dict[Fit, np.ndarray]()
    for frame in chosen:
        if frame is not last:
            last, fitted = frame, {fit: fitter(frame) for fit, fitter in fitters.items()}
        yield [fitted[fit] for fit in fits]
    if last is None:
        raise InputError(f"{path}: no picture is on screen {start_s:g} s after its start; is the video shorter, or "
                         "damaged?")


class _Fitter:
    """Pictures of one clip ⇒ arrays of one size, as a fit wants them. The first picture says which: a stream may change
    its pictures' size midway."""

    def __init__(self, fit: Fit):
        self.fit, self.reformatter = fit, VideoReformatter()
        self.scaled: tuple[int, int] | None = None  # (height, width), upright

    def __call__(self, frame: Any) -> np.ndarray:
        turns = _quarter_turns(frame)
        if self.scaled is None:
            self.scaled = self.fit.scaled(*_upright_size(frame))
        height, width = self.scaled if turns % 2 == 0 else self.scaled[::-1]
        picture = self.reformatter.reformat(frame, width, height, "rgb24", interpolation=self.fit.interpolation,
                                            threads=1)
        upright = np.rot90(picture.to_ndarray(), turns)
        height, width = self.fit.kept(*self.scaled)
        top, left = (self.scaled[0] - height) // 2, (self.scaled[1] - width) // 2
        return np.ascontiguousarray(upright[top:top + height, left:left + width])


def _upright_size(frame: Any) -> tuple[int, int]:
    """(height, width) of a decoded picture once it is turned."""
    return (frame.height, frame.width) if _quarter_turns(frame) % 2 == 0 else (frame.width, frame.height)


def _quarter_turns(frame: Any) -> int:
    """How many quarter turns counter-clockwise make a decoded picture upright (its display matrix)."""
    return round(frame.rotation / 90) % 4


def _require_pictures(path: str | os.PathLike, container: InputContainer) -> Any:
    video = picture_stream(container)
    if video is None:
        raise InputError(f"{path} has no pictures ({'only sound' if sound_stream(container) else 'no stream at all'}); "
                         "name a video file")
    _check_size(path, video.codec_context.width, video.codec_context.height)
    # one thread starts faster and many workers decode side by side; large pictures are worth the threads
    video.codec_context.thread_type = "AUTO"
    small = video.codec_context.width * video.codec_context.height < _THREADED_PIXELS
    video.codec_context.thread_count = 1 if small else 0
    return video


def _check_size(path: str | os.PathLike, width: int, height: int) -> None:
    if max(width, height) > MAX_SIDE_PIXELS:
        raise InputError(f"{path}: pictures of {width}x{height} pixels; at most {MAX_SIDE_PIXELS} a side are read, "
                         "so scale it down first")


def _check_stretch(path: str | os.PathLike, start_s: float, duration_s: float | None) -> None:
    if not 0 <= start_s < float("inf") or duration_s is not None and not 0 < duration_s < float("inf"):
        raise InputError(f"{path}: a clip needs start >= 0 s and duration > 0 s, got start {start_s} s and duration "
                         f"{duration_s} s")
