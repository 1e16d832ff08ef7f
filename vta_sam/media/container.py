"""Opening a media file: which files are refused, where time zero is, how packets are decoded, on which device.

Files are untrusted: only demuxers of plain media files are allowed, since a playlist could name other files, and only
the file protocol.
"""

from __future__ import annotations

import os
import stat
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Iterator, TypeVar

import av
from av.codec.hwaccel import HWAccel, hwdevices_available
from av.container import InputContainer

from ..runtime.errors import InputError

_CODECS = ("h264", "hevc", "vp9", "av1", "vp8", "mpeg4", "mpeg2video")  # what videos are coded with


def accelerator(device_type: str) -> HWAccel:
    """A kind of device by FFmpeg's name (cuda, vaapi, …) ⇒ what av.open takes. Streams that the device can't decode are
    decoded in software."""
    return HWAccel(device_type=device_type, allow_software_fallback=True)


def check_hwaccel(device_type: str | None) -> None:
    """Raises InputError where this build of FFmpeg doesn't know such devices, none of its decoders uses them, or none
    can be opened here: then every clip would fail, or would quietly be decoded in software. None is always fine."""
    if device_type is None:
        return
    known = hwdevices_available()
    if device_type not in known:
        raise InputError(f"hwaccel={device_type} is not known here; this build of FFmpeg has "
                         f"{', '.join(known) or 'none'}; hwaccel=null decodes in software")
    reason = "none of its decoders uses it"
    for codec in _CODECS:
        try:
            accelerator(device_type).create(av.Codec(codec, "r"))
            return
        except (av.codec.codec.UnknownCodecError, NotImplementedError):
            continue  # not a codec of this device
        except av.error.FFmpegError as error:
            reason = error.strerror or str(error)
            break
    raise InputError(f"hwaccel={device_type} can't be used here ({reason}); hwaccel=null decodes in software")


_DEMUXERS = (
    "aac,ac3,aiff,asf,avi,caf,dv,flac,flv,gif,h264,hevc,ivf,m4v,matroska,webm,mov,mp4,m4a,3gp,3g2,mj2,mp3,mpeg,mpegts,"
    "mpegvideo,mxf,nut,ogg,w64,wav,wtv"
)
LONGEST_GAP_S = 600.0  # between two pictures, as between two stretches of sound
_SEEK_MARGIN_S = 1.0  # sound may lie that much earlier in the file than the pictures it belongs to
S = TypeVar("S", bound="av.stream.Stream")


@contextmanager
def open_media(path: str | os.PathLike, hwaccel: str | None = None) -> Iterator[InputContainer]:
    """An open container, whose pictures are decoded on a kind of device where ``hwaccel`` names one. Raises InputError
    naming the file when it is missing, empty, no media file, or breaks inside the block. The caller has to
    refuse a container without pictures or sound."""
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
    anywhere), but never below zero, where only an encoder's run-in lies."""
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
    """The packets of some streams, then the empty packets that flush their decoders.

    Broadcasts and damaged files may have a stream that begins midway. PyAV then raises IndexError after the last
    packet, because its list of streams was made at the start.
    """
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
