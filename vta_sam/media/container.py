"""Opening a media file: what is refused, where time zero is, and how packets become pictures and sound.

Files come from strangers, so only demuxers of plain media files are allowed (a playlist could name other files), and
only the file protocol.
"""

from __future__ import annotations

import os
import stat
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, Iterator, TypeVar

import av
from av.container import InputContainer

from ..errors import InputError
from .hardware import accelerator

if TYPE_CHECKING:
    from .audio import SoundCollector

MAX_SIDE_PIXELS = 8192
_THREADED_PIXELS = 320 * 240  # pictures no larger than this decode as fast on one thread
_THREADS = min(4, (os.cpu_count() or 1) + 1)  # one of them mostly waits
_DEMUXERS = (
    "aac,ac3,aiff,asf,avi,caf,dv,flac,flv,gif,h264,hevc,ivf,m4v,matroska,webm,mov,mp4,m4a,3gp,3g2,mj2,mp3,mpeg,mpegts,"
    "mpegvideo,mxf,nut,ogg,w64,wav,wtv"
)
_LONGEST_GAP_S = 600.0  # between two pictures, as between two stretches of sound
_SEEK_MARGIN_S = 1.0  # sound may lie that much earlier in the file than the pictures it belongs to
S = TypeVar("S", bound="av.stream.Stream")


@contextmanager
def open_media(path: str | os.PathLike, hwaccel: str | None = None) -> Iterator[InputContainer]:
    """An open container, whose pictures are decoded on a kind of device where ``hwaccel`` names one. Raises InputError
    naming the file when it is missing, empty, no media file, or breaks inside the block; what is missing in it
    (pictures, sound) is for the caller to refuse."""
    path = Path(path)
    try:
        status = path.stat()
    except (FileNotFoundError, NotADirectoryError):
        raise InputError(f"{path} doesn't exist") from None
    except OSError as error:  # a closed folder, a loop of links, a name too long, a disk that is gone
        raise InputError(f"{path} can't be opened ({error.strerror})") from error
    if not stat.S_ISREG(status.st_mode):
        raise InputError(f"{path} is not a regular file; name a video file")
    if status.st_size == 0:
        raise InputError(f"{path} is empty; fetch it again")
    options = {"format_whitelist": _DEMUXERS, "protocol_whitelist": "file", "fflags": "+genpts"}
    try:
        with av.open(f"file:{path.absolute()}", options=options, metadata_errors="replace",
                     hwaccel=None if hwaccel is None else accelerator(hwaccel)) as container:
            yield container
    except av.error.FFmpegError as error:
        if isinstance(error, MemoryError):
            raise MemoryError(str(error)) from error
        raise InputError(f"{path} can't be read as a video or sound file ({error.strerror}); is it damaged or of "
                         "another kind?") from error


def picture_stream(container: InputContainer) -> Any | None:
    """The first stream of moving pictures, or None. The cover of a song is none."""
    for stream in container.streams.video:
        if stream.codec_context is not None and not stream.disposition & av.stream.Disposition.attached_pic:
            return stream
    return None


def sound_stream(container: InputContainer) -> Any | None:
    """The first sound stream that can be decoded, or None."""
    return next((stream for stream in container.streams.audio if stream.codec_context is not None), None)


def origin_s(container: InputContainer) -> float:
    """Time zero of the file in seconds of its own clock: where its earliest stream starts (broadcast streams start
    anywhere), but never below zero, since what lies there is an encoder's run-in."""
    starts = [float(s.start_time * s.time_base) for s in (picture_stream(container), sound_stream(container))
              if s is not None and s.start_time is not None and s.time_base is not None]
    return max(0.0, min(starts, default=0.0))


def seek_before(container: InputContainer, start_s: float) -> None:
    """Move to where pictures and sound at ``start_s`` after time zero can be decoded from, or leave it at the start."""
    if start_s > _SEEK_MARGIN_S:
        target_s = origin_s(container) + start_s - _SEEK_MARGIN_S
        try:
            container.seek(int(target_s * av.time_base), backward=True)
        except av.error.FFmpegError:  # no index, or beyond the end: reading from the start is slow but right
            container.seek(0, backward=True, any_frame=True)


def picture_length_s(claimed_s: float, interval_s: float) -> float:
    """How long the last picture stays: as its container claims, or as long as the one before (``interval_s``) where
    that claim is missing or no longer than a tick of its clock, as some writers leave it."""
    return claimed_s if claimed_s > 1e-3 else interval_s


def packets(container: InputContainer, streams: Any) -> Iterator[av.Packet]:
    """The packets of some streams, then the empty ones that flush their decoders. Behind those PyAV looks for streams
    that began midway, as broadcasts and damaged files have them, among those that were there at the start."""
    try:
        yield from container.demux(streams)
    except IndexError:
        return


class Decoder:
    """Packets ⇒ frames, passing over a few damaged packets, as players do, and refusing a file that has many."""

    def __init__(self, path: str | os.PathLike):
        self.path = path
        self.packets = self.damaged = 0

    def decode(self, packet: av.Packet) -> list[Any]:
        self.packets += 1
        try:
            return list(packet.decode())
        except (av.error.InvalidDataError, av.error.UndefinedError) as error:
            self.damaged += 1
            if self.damaged > 4 + self.packets // 10:
                raise InputError(f"{self.path}: {self.damaged} of {self.packets} packets are damaged") from error
            return []
        except av.error.EOFError:  # the decoder was flushed already
            return []


class PictureReader:
    """Decodes a container from ``start_s`` on ⇒ (time_s after start_s, length_s, av.VideoFrame), in order of time.
    Sound met on the way goes to ``collector``."""

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
        previous_s, longest_s = None, 1.0
        for frame in self._frames():
            _check_size(self.path, frame.width, frame.height)
            time_s = frame.time - zero_s if frame.time is not None else (previous_s or 0.0) + nominal_s
            gap_s = time_s - (previous_s or 0.0)
            if gap_s > _LONGEST_GAP_S:  # filled with frames it would cost hours
                raise InputError(f"{self.path}: its pictures have a gap of {gap_s:.0f} s; its timestamps look damaged")
            if previous_s is not None and gap_s > 0:
                nominal_s = gap_s
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


def require_pictures(path: str | os.PathLike, container: InputContainer) -> Any:
    video = picture_stream(container)
    if video is None:
        raise InputError(f"{path} has no pictures ({'only sound' if sound_stream(container) else 'no stream at all'}); "
                         "name a video file")
    _check_size(path, video.codec_context.width, video.codec_context.height)
    # one thread starts faster and many workers decode side by side; large pictures are worth a few threads (each holds
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
