"""Opening a media file: which files are refused, where time zero is, how packets are decoded, on which device.

Files are untrusted: only demuxers of plain media files are allowed, since a playlist could name other files, and only
the file protocol.
"""

from __future__ import annotations

import os
import stat
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

import av
import numpy as np
from av.codec.hwaccel import HWAccel
from av.container import InputContainer

from ..runtime.errors import InputError


def accelerator(device_type: str) -> HWAccel:
    """A kind of device by FFmpeg's name (cuda, vaapi, …), or a device (cuda:1) ⇒ what av.open takes. Streams that it
    can't decode are decoded in software."""
    kind, _, number = device_type.partition(":")
    return HWAccel(device_type=kind, device=number or None, allow_software_fallback=True)


def on_own_gpu(device_type: str | None) -> str | None:
    """The device that decodes for this process: of several GPUs its own, which its networks use too ("cuda:1"). Kinds
    that torch doesn't number are returned as they are."""
    if device_type != "cuda":
        return device_type
    from ..runtime.distributed import choose_device  # imports torch, which a decoding process does without

    device = choose_device("auto")
    return f"cuda:{device.index}" if device.type == "cuda" else device_type


_DEMUXERS = (
    "aac,ac3,aiff,asf,avi,caf,dv,flac,flv,gif,h264,hevc,ivf,m4v,matroska,webm,mov,mp4,m4a,3gp,3g2,mj2,mp3,mpeg,mpegts,"
    "mpegvideo,mxf,nut,ogg,w64,wav,wtv"
)
LONGEST_GAP_S = 600.0  # between two pictures, as between two stretches of sound
_SEEK_MARGIN_S = 1.0  # sound may lie that much earlier in the file than the pictures it belongs to


@contextmanager
def open_media(path: str | os.PathLike, hwaccel: str | None = None) -> Iterator[InputContainer]:
    """An open container, whose pictures are decoded on a kind of device where ``hwaccel`` names one. Raises InputError
    naming the file when it is missing, empty, no media file, or breaks inside the block. The caller has to
    refuse a container without pictures or sound."""
    path = Path(path)
    try:
        status = path.stat()
    except (FileNotFoundError, NotADirectoryError) as error:
        raise InputError(f"{path} doesn't exist") from error
    except OSError as error:  # a closed folder, a loop of links, a name too long, a disk that is gone
        raise InputError(f"{path} can't be opened ({error.strerror})") from error
    if not stat.S_ISREG(status.st_mode):
        raise InputError(f"{path} is not a regular file; name a video file")
    if status.st_size == 0:
        raise InputError(f"{path} is empty; fetch it again")
    try:
        with _opened(path, hwaccel) as container:
            yield container
    except av.error.FFmpegError as error:
        if isinstance(error, MemoryError):
            raise MemoryError(str(error)) from error
        raise InputError(f"{path} can't be read as a video or sound file ({error.strerror}); is it damaged or of "
                         "another kind?") from error


def _opened(path: Path, hwaccel: str | None) -> InputContainer:
    options = {"format_whitelist": _DEMUXERS, "protocol_whitelist": "file", "fflags": "+genpts"}

    def container(**more: str) -> InputContainer:
        return av.open(f"file:{path.absolute()}", options={**options, **more}, metadata_errors="replace",
                       hwaccel=None if hwaccel is None else accelerator(hwaccel))

    opened = container()
    pictures = picture_stream(opened)
    if pictures is not None and not pictures.codec_context.width and opened.format.name in _JOINED:
        opened.close()  # a broadcast's pictures begin later than FFmpeg looks by itself: 5 s, 5 MB
        opened = container(analyzeduration="60000000", probesize="50000000")
    return opened


_ASIDE = (av.stream.Disposition.comment | av.stream.Disposition.hearing_impaired |
          av.stream.Disposition.visual_impaired | av.stream.Disposition.descriptions)


def picture_stream(container: InputContainer) -> Any | None:
    """The first stream of moving pictures, or None. The cover of a song is none."""
    for stream in container.streams.video:
        if stream.codec_context is not None and not stream.disposition & av.stream.Disposition.attached_pic:
            return stream
    return None


def sound_stream(container: InputContainer, sound: str | None = None) -> Any | None:
    """The sound that a player plays, or None: the default stream, else the first that is no commentary and no
    description for people who can't see or hear.

    Args:
        container: an open file.
        sound: names another, by its number among the file's sounds, counted from 0, or by its language as tagged
            ("ger"). Of several in that language the same rule chooses.
    """
    known = [stream for number, stream in enumerate(container.streams.audio)
             if stream.codec_context is not None and (sound is None or _is_named(number, stream, sound))]
    plain = [stream for stream in known if not stream.disposition & _ASIDE]
    default = [stream for stream in plain if stream.disposition & av.stream.Disposition.default]
    return next(iter([*default, *plain, *known]), None)


def _is_named(number: int, stream: Any, sound: str) -> bool:
    if sound.isdecimal():
        return sound == str(number)
    asked, tagged = sound.strip().lower(), (stream.language or "").lower()
    return asked == tagged or {asked, tagged} in _SAME_LANGUAGE


# the two codes of a language in ISO 639-2; files have either
_SAME_LANGUAGE = [set(pair.split("/")) for pair in (
    "alb/sqi arm/hye baq/eus bur/mya chi/zho cze/ces dut/nld fre/fra geo/kat ger/deu gre/ell ice/isl mac/mkd may/msa "
    "per/fas rum/ron slo/slk tib/bod wel/cym").split()]


def origin_s(container: InputContainer) -> float:
    """Time zero of the file in seconds of its own clock: where its earliest stream starts (broadcast streams start
    anywhere), but never below zero, where only an encoder's run-in lies. In broadcast streams times below zero are
    those before their clock turned over."""
    starts = [float(s.start_time * s.time_base) for s in (picture_stream(container), sound_stream(container))
              if s is not None and s.start_time is not None and s.time_base is not None]
    earliest_s = min(starts, default=0.0)
    return earliest_s if container.format.name in _JOINED else max(0.0, earliest_s)


def seek_before(container: InputContainer, start_s: float) -> None:
    """Move to where pictures and sound at ``start_s`` after time zero can be decoded from, or leave it at the start."""
    if start_s > _SEEK_MARGIN_S:
        target_s = origin_s(container) + start_s - _SEEK_MARGIN_S
        try:
            container.seek(int(target_s * av.time_base), backward=True)
        except av.error.FFmpegError:  # no index, or beyond the end: reading from the start is slow but right
            container.seek(0, backward=True, any_frame=True)


def picture_length_s(claimed_s: float, interval_s: float, left_s: float | None, longest_s: float | None) -> float:
    """How long the last picture stays: as its container claims, or as long as the one before (``interval_s``) where
    that claim is missing or no longer than a tick of its clock, as some writers leave it; never beyond the stream's
    end, nor longer than any picture before, since some containers state hours.

    Args:
        claimed_s: of the picture. With B-frames mp4 claims a difference of decoding times, which may be far longer.
        interval_s: between it and the one before.
        left_s: until the stream's end, where the container states one.
        longest_s: interval between pictures before; a second is always possible. None: this is the only picture.
    """
    length_s = claimed_s if claimed_s > 1e-3 else interval_s
    length_s = min(length_s, left_s) if left_s is not None and left_s > 1e-3 else length_s
    return min(length_s, LONGEST_GAP_S if longest_s is None else max(longest_s, 1.0))


def end_of_stream_s(stream: Any) -> float | None:
    """When a stream ends on the file's own clock, as its container says; None: it doesn't say."""
    if stream.duration is None or stream.start_time is None or stream.time_base is None or stream.duration <= 0:
        return None
    return float((stream.start_time + stream.duration) * stream.time_base)


def packets(container: InputContainer, streams: Any) -> Iterator[av.Packet]:
    """The packets of some streams, then the empty packets that flush their decoders.

    Where recordings were joined byte by byte, times start again; they are carried on, as players do. Broadcasts and
    damaged files may have a stream that begins midway. PyAV then raises IndexError after the last packet, because its
    list of streams was made at the start.
    """
    if container.format.name not in _JOINED:
        with suppress(IndexError):
            yield from _with_first_times(container.demux(streams))
        return
    listed = streams if isinstance(streams, (list, tuple)) else [streams]
    wanted, carried = {stream.index for stream in listed}, _CarriedTimes()
    # with all pictures and sound, whichever are wanted: how long a recording was says when the next one begins
    read = {stream.index: stream for stream in (*container.streams.video, *container.streams.audio, *listed)}
    with suppress(IndexError):
        for packet in container.demux(list(read.values())):
            carried.shift(packet)
            if packet.stream.index in wanted:
                yield packet


_UNTIMED = 64  # packets that wait for the first picture with a time


def _with_first_times(stored: Iterable[av.Packet]) -> Iterator[av.Packet]:
    """Packets, the first pictures of which have times too: FFmpeg gives none to Matroska's before zero, which lie
    before the others."""
    waiting: list[av.Packet] | None = []  # None: the first picture with a time has come
    for packet in stored:
        picture = waiting is not None and packet.stream.type == "video" and packet.size > 0
        timed = picture and packet.dts is not None
        if waiting is None or not waiting and (timed or not picture or packet.pts is not None):
            yield packet
            waiting = None if timed else waiting
            continue
        waiting.append(packet)
        if packet.dts is not None and timed:
            untimed = [each for each in waiting if each.stream.type == "video" and each.pts is None]
            for place, each in enumerate(reversed(untimed), 1):
                each.pts = each.dts = packet.dts - place * max(1, each.duration or 1)
        if timed or len(waiting) == _UNTIMED:
            yield from waiting
            waiting = None
    yield from waiting or ()


_JOINED = ("mpegts", "mpeg")  # formats whose files are joined by writing one after the other
_RESTART_S = 1.0  # decoding times that go back by more start again


class _CarriedTimes:
    """Shifts packets of joined recordings so that times go on. All streams of a recording are shifted alike."""

    def __init__(self) -> None:
        self.offsets_s = [0.0]  # of each recording
        self.recording: dict[int, int] = {}  # that a stream is in
        self.last_s: dict[int, float] = {}  # decoding time of a stream's last packet, as stored
        self.end_s = 0.0  # of what came so far, shifted

    def shift(self, packet: av.Packet) -> None:
        if packet.dts is None or packet.time_base is None:
            return
        stream, tick_s = packet.stream.index, float(packet.time_base)
        time_s = packet.dts * tick_s
        if time_s < self.last_s.get(stream, time_s) - _RESTART_S:
            self.recording[stream] = self.recording.get(stream, 0) + 1
            if self.recording[stream] == len(self.offsets_s):
                self.offsets_s.append(self.end_s - time_s)
        self.last_s[stream] = time_s
        shift = round(self.offsets_s[self.recording.get(stream, 0)] / tick_s)
        packet.dts += shift
        if packet.pts is not None:
            packet.pts += shift
        length_s = (packet.duration or 0) * tick_s
        self.end_s = max(self.end_s, packet.dts * tick_s + length_s)


@dataclass(frozen=True)
class PictureTimes:
    """Times of a stream's pictures, in the order in which their packets are stored.

    Args:
        pts: (packets,) int64, when they come on screen, in ticks after the file's time zero; all different.
        dts: (packets,) int64, when they are decoded; rising.
        shown: (packets,) bool; False: an edit list cuts the picture away, it lies before time zero, or can't be
            decoded.
        keys: (packets,) bool; the picture needs no other one.
        tick_s: seconds a tick.
        last_s: length of the last picture that is shown.
        useless: (packets,) bool; no picture that is shown needs the packet.
    """

    pts: np.ndarray
    dts: np.ndarray
    shown: np.ndarray
    keys: np.ndarray
    tick_s: float
    last_s: float
    useless: np.ndarray

    @property
    def shown_s(self) -> np.ndarray:
        """When the pictures come on screen, in order."""
        return np.sort(self.pts[self.shown]) * self.tick_s

    @property
    def last_pts(self) -> int:
        return int(self.pts[self.shown].max())

    @property
    def end_s(self) -> float:
        """When the last picture ends."""
        return self.last_pts * self.tick_s + self.last_s

    @property
    def needed(self) -> np.ndarray:
        """(packets,) bool; no picture that is shown needs those that are stored after all of them."""
        return ~self.useless & (np.arange(len(self.shown)) <= np.flatnonzero(self.shown)[-1])

    @property
    def edited(self) -> frozenset[str]:
        """Where pictures are cut away that have to be stored: "before" time zero, "after" those that are shown, or
        "between"."""
        cut = self.pts[self.needed & ~self.shown]
        before, after = cut < 0, cut > self.last_pts
        places = {"before": before, "after": after, "between": ~before & ~after}
        return frozenset(place for place, those in places.items() if those.any())


def holds_picture(packet: av.Packet) -> bool:
    """Whether a packet has data and a time; others aren't counted in :class:`PictureTimes`."""
    return packet.size > 0 and not (packet.pts is None and packet.dts is None)


def picture_times(path: str | os.PathLike, container: InputContainer) -> PictureTimes:
    """Times of a container's pictures, all packets of which are read.

    Decoding times that are missing, as in Matroska, or don't rise are rebuilt from the order of display and the
    longest delay. Of two pictures at one time the second comes a tick later.

    Raises:
        InputError: there are no pictures, or all are without times.
    """
    stream: Any = picture_stream(container)
    if stream is None:
        raise InputError(f"{path} has no pictures; name a video file")
    shift, tick_s = round(origin_s(container) / stream.time_base), float(stream.time_base)
    pts, flags, lengths_s = [], [], []
    given: list[int | None] = []
    for packet in packets(container, stream):
        if holds_picture(packet):
            pts.append((packet.dts if packet.pts is None else packet.pts) - shift)
            given.append(None if packet.dts is None else packet.dts - shift)
            flags.append((not packet.is_discard and pts[-1] >= 0, packet.is_keyframe))
            lengths_s.append((packet.duration or 0) * tick_s)
    shown, keys = np.array(flags, bool).reshape(-1, 2).T
    if not shown.any():
        why = "edit list shows none of its pictures" if pts else "pictures have no timestamps"
        raise InputError(f"{path}: its {why}; convert the video first")
    in_order = sorted(time for time, seen in zip(pts, shown) if seen)
    last = in_order[-1]
    claimed_s = next(length_s for length_s, time, seen in zip(lengths_s, pts, shown) if seen and time == last)
    gaps_s = np.diff(np.array([0, *in_order], np.float64)) * tick_s
    if gaps_s.max() > LONGEST_GAP_S:
        raise InputError(f"{path}: its pictures have a gap of {gaps_s.max():.0f} s; its timestamps look damaged")
    intervals_s = gaps_s[1:][gaps_s[1:] > 0]
    longest_s, interval_s = (intervals_s.max(), intervals_s[-1]) if len(intervals_s) else (None, 0.04)
    end_s = end_of_stream_s(stream)
    left_s = None if end_s is None else end_s - (shift + last) * tick_s
    last_s = float(picture_length_s(claimed_s, interval_s, left_s, longest_s))
    _make_unique(pts)
    dts = _decoding_times(pts, given)
    if max(map(abs, (*pts, *dts))) >= 1 << 62:
        raise InputError(f"{path}: its timestamps look damaged")
    require_length(path, last * tick_s + last_s)
    return PictureTimes(np.array(pts), np.array(dts), shown, keys, tick_s, last_s, np.zeros(len(pts), bool))


def _make_unique(pts: list[int]) -> None:
    """Move each picture that would be shown at the time of another by a tick."""
    latest: int | None = None
    for place in sorted(range(len(pts)), key=pts.__getitem__):
        if latest is not None and pts[place] <= latest:
            pts[place] = latest + 1
        latest = pts[place]


def _decoding_times(pts: Sequence[int], given: Sequence[int | None]) -> list[int]:
    """The given ones where all are there, rise, and come no later than their pictures are shown; else new ones."""
    if all(dts is not None and dts <= shown for dts, shown in zip(given, pts)) and \
            all(first < second for first, second in pairwise(given)):  # type: ignore[operator]
        return [dts for dts in given if dts is not None]
    in_order = sorted(pts)
    delay = max(time - shown for time, shown in zip(in_order, pts))
    return [time - delay for time in in_order]


def require_length(path: str | os.PathLike, pictures_s: float) -> None:
    """Raise InputError where pictures end in less than a thousandth of a second, in which there is no sound."""
    if pictures_s < 1e-3:
        raise InputError(f"{path}: its pictures last {pictures_s:g} s; its timestamps look damaged")


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
