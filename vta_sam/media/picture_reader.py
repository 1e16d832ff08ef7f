"""Pictures of a container, decoded in order of time, as a viewer sees them, and the rules that bring them to a model's
size: upright, with square pixels, without fields, in the colours of an ordinary screen. docs/media.md has the table."""

from __future__ import annotations

import math
import os
from contextlib import suppress
from dataclasses import dataclass, replace
from fractions import Fraction
from functools import cache
from itertools import chain, islice
from typing import Any, ClassVar, Iterable, Iterator, Protocol

import av
import numpy as np
from av.codec.hwaccel import hwdevices_available
from av.container import InputContainer
from av.sidedata.sidedata import SideDataContainer
from av.video.reformatter import Colorspace, ColorTrc, VideoReformatter

from ..runtime import usable_cores
from ..runtime.errors import InputError
from .audio import SoundCollector
from .container import (
    LONGEST_GAP_S, Decoder, PictureTimes, accelerator, end_of_stream_s, holds_picture, on_own_gpu, open_media, origin_s,
    packets, picture_length_s, picture_stream, seek_before, sound_stream,
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
class BilinearSqueeze(Squeeze):
    """Exactly this size, by the scaler of SigLIP 2's own processor."""

    interpolation: ClassVar[str] = "BILINEAR"


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
_THREADS = min(4, usable_cores() + 1)  # one of them mostly waits


class PictureReader:
    """Iterates over (time_s after start_s, length_s, av.VideoFrame), in order of time.

    Args:
        path: of the file, for messages.
        container: read from ``start_s`` on.
        start_s: after the file's time zero.
        collector: gets the sound that lies between the pictures in the file.
        sound: its stream.
    """

    def __init__(self, path: str | os.PathLike, container: InputContainer, start_s: float,
                 collector: SoundCollector | None = None, sound: Any = None):
        self.path, self.container, self.start_s, self.collector = path, container, start_s, collector
        self.video = require_pictures(path, container)
        self.wants_pictures = True
        seek_before(container, start_s)
        streams = [self.video] if collector is None else [self.video, sound]
        self.packets = packets(container, streams)
        self.decoder = Decoder(path)
        self.fields = _Fields()

    def __iter__(self) -> Iterator[tuple[float, float, Any]]:
        zero_s = origin_s(self.container) + self.start_s
        nominal_s = float(1 / self.video.average_rate) if self.video.average_rate else 0.04
        tolerance_s = 0.5 * float(self.video.time_base)  # timestamps are rounded to the container's clock
        ends_s = end_of_stream_s(self.video)
        previous_s: float | None = None
        longest_s: float | None = None
        for frame in self._frames():
            _check_size(self.path, frame.width, frame.height)
            time_s = frame.time - zero_s if frame.time is not None else (previous_s or 0.0) + nominal_s
            gap_s = time_s - (previous_s or 0.0)
            if gap_s > LONGEST_GAP_S:  # decoding would fill it with frames for hours
                raise InputError(f"{self.path}: its pictures have a gap of {gap_s:.0f} s; its timestamps look damaged")
            if previous_s is not None and gap_s > 0:
                nominal_s = gap_s
                longest_s = max(longest_s or 0.0, nominal_s)
            previous_s = time_s
            claimed_s = float(frame.duration * frame.time_base) if frame.duration and frame.time_base else 0.0
            left_s = None if ends_s is None else ends_s - zero_s - time_s
            length_s = picture_length_s(claimed_s, nominal_s, left_s, longest_s)
            yield time_s - tolerance_s, length_s + tolerance_s, frame

    def _frames(self) -> Iterator[Any]:
        for packet in self.packets:
            if packet.stream.index == self.video.index:
                if self.wants_pictures:
                    for frame in self.decoder.decode(packet):
                        yield from self.fields.joined(frame)
            elif self.collector is not None:
                for frame in self.decoder.decode(packet):
                    self.collector.add(frame)
                if self.collector.done and not self.wants_pictures:
                    return
        if self.wants_pictures:
            yield from self.fields.last()

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


_CODECS = ("h264", "hevc", "vp9", "av1", "vp8", "mpeg4", "mpeg2video")  # what videos are coded with


def check_hwaccel(device_type: str | None) -> None:
    """Raises InputError where this build of FFmpeg doesn't know such devices, none of its decoders uses them, or none
    can be opened here: then every clip would fail, or would quietly be decoded in software. None is always fine."""
    if device_type is None:
        return
    known = hwdevices_available()
    if device_type not in known:
        raise InputError(f"hwaccel={device_type} is not known here; this build of FFmpeg has "
                         f"{', '.join(known) or 'none'}; hwaccel=null decodes in software")
    reason, device = "none of its decoders uses it", on_own_gpu(device_type) or device_type
    for codec in _CODECS:
        try:
            accelerator(device).create(av.Codec(codec, "r"))
            return
        except (av.codec.codec.UnknownCodecError, NotImplementedError):
            continue  # not a codec of this device
        except av.error.FFmpegError as error:
            reason = error.strerror or str(error)
            break
    raise InputError(f"hwaccel={device_type} can't be used here ({reason}); hwaccel=null decodes in software")


class _Fields:
    """Interlaced pictures ⇒ whole ones. Others pass as they are."""

    def __init__(self) -> None:
        self.graph: Any = None

    def joined(self, frame: Any) -> Iterator[Any]:
        if self.graph is None:
            if not frame.interlaced_frame:
                yield frame
                return
            self.graph = av.filter.Graph()
            source = self.graph.add_buffer(width=frame.width, height=frame.height, format=frame.format,
                                           time_base=frame.time_base)
            # pictures that are not flagged as interlaced pass through it unchanged
            filters = [source, self.graph.add("bwdif", "mode=send_frame:deint=interlaced"),
                       self.graph.add("buffersink")]
            self.graph.link_nodes(*filters).configure()
        self.graph.push(frame)
        yield from self._ready()

    def last(self) -> Iterator[Any]:
        """What the filter holds back."""
        if self.graph is not None:
            self.graph.push(None)
            yield from self._ready()

    def _ready(self) -> Iterator[Any]:
        while True:
            try:
                yield self.graph.pull()
            except (av.error.BlockingIOError, av.error.EOFError):
                return


@dataclass(frozen=True)
class Orientation:
    """How a stored picture becomes upright: mirrored left to right where ``mirrored``, then turned by ``turns`` quarter
    turns counter-clockwise."""

    mirrored: bool = False
    turns: int = 0

    @classmethod
    def of(cls, frame: Any) -> "Orientation":
        """Of a decoded picture, by its display matrix."""
        if (stored := display_matrix(frame)) is None:
            return cls()
        across_x, across_y, _, down_x, down_y = stored[:5]
        mirrored = across_x * down_y - across_y * down_x < 0
        if mirrored:
            across_x, across_y = -across_x, -across_y
        return cls(mirrored, round(-math.degrees(math.atan2(across_y, across_x)) / 90) % 4)

    def upright(self, pixels: np.ndarray) -> np.ndarray:
        """A stored picture (h, w, …), turned."""
        return np.rot90(pixels[:, ::-1] if self.mirrored else pixels, self.turns)


def display_matrix(frame: Any) -> list[int] | None:
    """The nine numbers that turn a decoded picture upright; None: it has none. ``frame.side_data`` would keep the
    picture, and its scaler with all threads, in memory until Python next looks for objects that refer to themselves."""
    stored = SideDataContainer(frame).get("DISPLAYMATRIX")  # type: ignore[call-arg]
    return None if stored is None else np.frombuffer(bytes(stored), np.int32).tolist()


_LARGEST_ASPECT = 16  # of a pixel; a larger one is a damaged header


def pixel_aspect(stream: Any) -> float:
    """Width of a stream's pixels over their height; 1 where the file doesn't say, or says nonsense."""
    stated = stream.sample_aspect_ratio or Fraction(1)
    return float(stated) if 1 / _LARGEST_ASPECT <= stated <= _LARGEST_ASPECT else 1.0


def upright_size(frame: Any, aspect: float = 1.0) -> tuple[int, int]:
    """(height, width) of a decoded picture once its pixels are square and it is turned."""
    height, width = frame.height, max(1, round(frame.width * aspect))
    return (height, width) if Orientation.of(frame).turns % 2 == 0 else (width, height)


_HD_LINES = 720  # from here on players take untagged colours for BT.709


class PictureConverter:
    """Decoded pictures ⇒ arrays (height, width, 3) uint8 in the colours of an ordinary screen, of one size, upright."""

    def __init__(self) -> None:
        self.reformatter = VideoReformatter()

    def convert(self, frame: Any, height: int, width: int, interpolation: str) -> np.ndarray:
        """Args:
            frame: av.VideoFrame.
            height, width: of the upright result.
            interpolation: FFmpeg's name of the scaler.
        """
        orientation = Orientation.of(frame)
        if orientation.turns % 2:
            height, width = width, height
        untagged = frame.colorspace == 2 and frame.format.name.startswith(("yuv", "nv", "p0"))
        colours = Colorspace.ITU709 if untagged and frame.height >= _HD_LINES else None
        wide = frame.color_trc in (ColorTrc.SMPTE2084, ColorTrc.ARIB_STD_B67)
        if wide and frame.colorspace == 2:
            colours = Colorspace.BT2020
        scaled = self.reformatter.reformat(frame, width, height, "rgb48le" if wide else "rgb24", threads=1,
                                           src_colorspace=colours, interpolation=interpolation)
        pixels = scaled.to_ndarray()
        return orientation.upright(_tone_mapped(pixels, ColorTrc(frame.color_trc)) if wide else pixels)


_WHITE_NITS = 203.0  # of HDR's diffuse white (ITU-R BT.2408), which becomes the screen's white but for a little
_KNEE = 0.8  # light up to here stays as it is; what is brighter is compressed into the rest
# linear light of BT.2020 ⇒ of BT.709 (ITU-R BT.2087)
_TO_709 = np.array([[1.6605, -0.5876, -0.0728], [-0.1246, 1.1329, -0.0083], [-0.0182, -0.1006, 1.1187]], np.float32)


@cache
def _light(curve: ColorTrc) -> np.ndarray:
    """Code values of 16 bits ⇒ linear light, 1 is diffuse white."""
    code = np.arange(65536, dtype=np.float64) / 65535
    if curve is ColorTrc.SMPTE2084:  # ITU-R BT.2100, PQ
        power = code ** (1 / 78.84375)
        nits = 10_000 * (np.maximum(power - 0.8359375, 0) / (18.8515625 - 18.6875 * power)) ** (1 / 0.1593017578125)
    else:  # HLG, shown at 1000 nits; of grey, the system gamma of 1.2 on luminance is one on the value
        a, b, c = 0.17883277, 0.28466892, 0.55991073
        scene = np.where(code <= 0.5, code**2 / 3, (np.exp((code - c) / a) + b) / 12)
        nits = 1000 * scene**1.2
    return (nits / _WHITE_NITS).astype(np.float32)


def _tone_mapped(pixels: np.ndarray, curve: ColorTrc) -> np.ndarray:
    """(h, w, 3) uint16 of PQ or HLG, BT.2020 ⇒ (h, w, 3) uint8 of an ordinary screen."""
    light = np.maximum(_light(curve)[pixels] @ _TO_709.T, 0)
    over = np.maximum(light - _KNEE, 0)
    light = np.minimum(light, _KNEE) + (1 - _KNEE) * (1 - np.exp(-over / (1 - _KNEE)))
    return np.rint(255 * light ** (1 / 2.2)).astype(np.uint8)


def _check_size(path: str | os.PathLike, width: int, height: int) -> None:
    if max(width, height) > MAX_SIDE_PIXELS:
        raise InputError(f"{path}: pictures of {width}x{height} pixels; at most {MAX_SIDE_PIXELS} a side are read, "
                         "so scale it down first")


def without_undecodable(path: str | os.PathLike, times: PictureTimes) -> PictureTimes:
    """Times without the pictures before the first one that needs no other, in order of storage or of showing, where
    they can't be decoded, as in a piece of a stream: players want such a picture first."""
    place, first = np.arange(len(times.keys)), int(times.keys.argmax())
    later = np.flatnonzero(times.keys & (place > first))
    early = (place < first) | (place < later.min(initial=len(place))) & (times.pts < times.pts[first])
    if not times.keys.any() or not early.any() or not (times.shown & ~early).any():
        return times
    with open_media(path) as container, suppress(av.error.FFmpegError):
        stream: Any = picture_stream(container)
        shift = round(origin_s(container) / stream.time_base)
        stored = islice(filter(holds_picture, packets(container, stream)), int(np.flatnonzero(early)[-1]) + 1)
        if any(frame.pts is None or frame.pts - shift < times.pts[first]
               for packet in chain(stored, [None]) for frame in stream.codec_context.decode(packet)):
            return times
    return replace(times, shown=times.shown & ~early, useless=early)


def shown_at_first(path: str | os.PathLike, times: PictureTimes, count: int) -> int:
    """How many pictures of a file are shown of the first ``count`` packets that it needs; of more where none is shown
    of those."""
    fed = shown = 0
    with open_media(path) as container:
        stream: Any = picture_stream(container)
        decoder, needed = Decoder(path), iter(times.needed.tolist())
        zero = round(origin_s(container) / stream.time_base)

        def seen(frames: Iterable[Any]) -> int:
            return sum(frame.pts is None or frame.pts >= zero for frame in frames)

        for packet in packets(container, stream):
            if fed >= count and shown:
                with suppress(av.error.FFmpegError):
                    shown += seen(stream.codec_context.decode(None))  # those that the decoder holds back
                break
            if not packet.size or holds_picture(packet) and next(needed):
                fed += 1
                shown += seen(decoder.decode(packet))
    return shown
