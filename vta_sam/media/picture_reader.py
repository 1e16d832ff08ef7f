"""Pictures of a container, decoded in order of time and upright, and the rules that bring them to a model's size."""

from __future__ import annotations

import os
from dataclasses import dataclass
from typing import Any, ClassVar, Iterator, Protocol

from av.container import InputContainer

from ..runtime.errors import InputError
from .audio import SoundCollector
from .container import (
    LONGEST_GAP_S, Decoder, end_of_stream_s, origin_s, packets, picture_length_s, picture_stream, seek_before,
    sound_stream,
)


class Fit(Protocol):
    """A rule that brings upright pictures to a model's size, as in the model's training.

    Frozen and hashable: a reader converts a picture once per rule. Its repr names it where an extraction's config is
    compared.

    Attributes:
        interpolation: FFmpeg's name of the scaler; all of them average over what they shrink.
    """

    interpolation: ClassVar[str]

    def scaled(self, height: int, width: int) -> tuple[int, int]:
        """(height, width) of an upright picture ⇒ the (height, width) it is scaled to."""
        ...

    def kept(self, height: int, width: int) -> tuple[int, int]:
        """The scaled (height, width) ⇒ the (height, width) cut out of its middle."""
        ...


@dataclass(frozen=True)
class Squeeze:
    """Exactly this size, whatever the shape before: fractions of the picture stay fractions of it."""

    height: int
    width: int
    interpolation: ClassVar[str] = "AREA"

    def scaled(self, height: int, width: int) -> tuple[int, int]:
        return self.height, self.width

    def kept(self, height: int, width: int) -> tuple[int, int]:
        return height, width


@dataclass(frozen=True)
class Within:
    """No larger than ``short_side`` × ``long_side`` pixels, shape kept. Smaller pictures stay as they are: the model's
    device enlarges them, so that fewer bytes are moved to it."""

    short_side: int
    long_side: int
    interpolation: ClassVar[str] = "BILINEAR"

    def scaled(self, height: int, width: int) -> tuple[int, int]:
        scale = min(1.0, self.short_side / min(height, width), self.long_side / max(height, width))
        return max(1, round(scale * height)), max(1, round(scale * width))

    def kept(self, height: int, width: int) -> tuple[int, int]:
        return height, width


@dataclass(frozen=True)
class CentreCrop:
    """The short side becomes ``side`` pixels, and the square in the middle is kept, as for CLIP."""

    side: int
    interpolation: ClassVar[str] = "BICUBIC"

    def scaled(self, height: int, width: int) -> tuple[int, int]:
        # the longer side is cut down to a whole pixel, as in CLIP's own transform
        if height <= width:
            return self.side, self.side * width // height
        return self.side * height // width, self.side

    def kept(self, height: int, width: int) -> tuple[int, int]:
        return self.side, self.side


MAX_SIDE_PIXELS = 8192
_THREADED_PIXELS = 320 * 240  # pictures no larger than this decode as fast on one thread
_THREADS = min(4, (os.cpu_count() or 1) + 1)  # one of them mostly waits


class PictureReader:
    """Iterates over (time_s after start_s, length_s, av.VideoFrame), in order of time.

    Args:
        path: of the file, for messages.
        container: read from ``start_s`` on.
        start_s: after the file's time zero.
        collector: gets the sound that lies between the pictures in the file.
    """

    def __init__(self, path: str | os.PathLike, container: InputContainer, start_s: float,
                 collector: SoundCollector | None = None):
        self.path, self.container, self.start_s, self.collector = path, container, start_s, collector
        self.video = require_pictures(path, container)
        self.wants_pictures = True
        seek_before(container, start_s)
        streams = [self.video] if collector is None else [self.video, sound_stream(container)]
        self.packets = packets(container, streams)
        self.decoder = Decoder(path)

    def __iter__(self) -> Iterator[tuple[float, float, Any]]:
        zero_s = origin_s(self.container) + self.start_s
        nominal_s = float(1 / self.video.average_rate) if self.video.average_rate else 0.04
        tolerance_s = 0.5 * float(self.video.time_base)  # timestamps are rounded to the container's clock
        ends_s = end_of_stream_s(self.video)
        previous_s, longest_s = None, 1.0
        for frame in self._frames():
            _check_size(self.path, frame.width, frame.height)
            time_s = frame.time - zero_s if frame.time is not None else (previous_s or 0.0) + nominal_s
            gap_s = time_s - (previous_s or 0.0)
            if gap_s > LONGEST_GAP_S:  # decoding would fill it with frames for hours
                raise InputError(f"{self.path}: its pictures have a gap of {gap_s:.0f} s; its timestamps look damaged")
            if previous_s is not None and gap_s > 0:
                nominal_s = gap_s
                longest_s = max(longest_s, nominal_s)
            previous_s = time_s
            claimed_s = float(frame.duration * frame.time_base) if frame.duration and frame.time_base else 0.0
            left_s = None if ends_s is None else ends_s - zero_s - time_s
            length_s = picture_length_s(claimed_s, nominal_s, left_s)
            # lengths are limited to the longest gap so far: some containers state hours for the last picture
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
        """Read on for the sound that lies in the file after the last picture."""
        self.wants_pictures = False
        if self.collector is not None and not self.collector.done:
            for _ in self._frames():
                pass


def require_pictures(path: str | os.PathLike, container: InputContainer) -> Any:
    video = picture_stream(container)
    if video is None:
        raise InputError(f"{path} has no pictures ({'only sound' if sound_stream(container) else 'no stream at all'}); "
                         "name a video file")
    _check_size(path, video.codec_context.width, video.codec_context.height)
    # one thread starts faster, and many workers decode at once; large pictures are worth a few threads (each holds
    # pictures of its own), unless a device decodes them
    video.codec_context.thread_type = "AUTO"
    small = video.codec_context.width * video.codec_context.height <= _THREADED_PIXELS
    video.codec_context.thread_count = 1 if small or video.codec_context.is_hwaccel else _THREADS
    return video


def quarter_turns(frame: Any) -> int:
    """How many quarter turns counter-clockwise make a decoded picture upright (its display matrix)."""
    return round(frame.rotation / 90) % 4


def upright_size(frame: Any) -> tuple[int, int]:
    """(height, width) of a decoded picture once it is turned."""
    return (frame.height, frame.width) if quarter_turns(frame) % 2 == 0 else (frame.width, frame.height)


def _check_size(path: str | os.PathLike, width: int, height: int) -> None:
    if max(width, height) > MAX_SIDE_PIXELS:
        raise InputError(f"{path}: pictures of {width}x{height} pixels; at most {MAX_SIDE_PIXELS} a side are read, "
                         "so scale it down first")
