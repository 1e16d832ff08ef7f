"""Putting a new sound under a video without touching its pictures: planned, written, and read back."""

from __future__ import annotations

import io
import os
from collections.abc import Iterator
from dataclasses import dataclass, field
from fractions import Fraction
from functools import cache
from itertools import islice, pairwise
from pathlib import Path
from typing import Any

import av
import numpy as np
from av.container import InputContainer, OutputContainer

from ..runtime.errors import InputError
from ..runtime.files import atomic_path
from .audio import fit_length, read_audio
from .container import Decoder, end_of_stream_s, open_media, origin_s, packets, picture_length_s, picture_stream
from .video import Kept

_BLOCK_SAMPLES = 1024  # an AAC frame
_BIT_RATE = 128_000  # bit/s, mono: transparent for a 16 kHz sound
_TICK_S = 1e-3  # of the coarsest clock, Matroska's
_COMPARED = 24  # pictures from the start that are decoded again from the written file
# suffix ⇒ codecs that players take from such a file; others go into Matroska, or are encoded anew
_ISO_CODECS = frozenset("h264 hevc av1 vp9 mpeg4 mpeg2video mpeg1video mjpeg vc1 vvc".split())
_PLAYED = {".mp4": _ISO_CODECS, ".m4v": _ISO_CODECS, ".mov": _ISO_CODECS | {"prores", "dnxhd"}}
_FORMATS = {".mp4": "mp4", ".m4v": "mp4", ".mov": "mov", ".mkv": "matroska"}
_OF_THE_FILE = ("major_brand", "minor_version", "compatible_brands", "encoder", "creation_tool")
_NEW_CODEC, _QUALITY = "libx264", {"crf": "18"}  # visually lossless


@dataclass(frozen=True)
class MuxPlan:
    """What a new file will be.

    Args:
        target: its path; the suffix follows the codec.
        codec: of the source's pictures, by FFmpeg's name of the format.
        encoded: whether the pictures are encoded anew, as H.264, since no container here holds their codec.
        notes: sentences on what differs from the source, and what is left out.
        kept: of the source, as it was asked for.
    """

    target: Path
    codec: str
    encoded: bool = False
    notes: tuple[str, ...] = ()
    kept: Kept = Kept()


@dataclass
class PictureTimes:
    """Times of a stream's packets that hold data, in the order in which they are stored, in ticks after the file's time
    zero; and the length of the last picture in seconds."""

    pts: list[int] = field(default_factory=list)
    dts: list[int] = field(default_factory=list)
    last_s: float = 0.0
    end_s: float = 0.0


def plan_mux(video_path: str | os.PathLike, out_path: str | os.PathLike, kept: Kept = Kept()) -> MuxPlan:
    """What :func:`mux` will write. Only the head of the video is read.

    Args:
        video_path: whose pictures are taken.
        out_path: .mp4, .m4v, .mov or .mkv.
        kept: of the video.

    Raises:
        InputError: the video has no pictures, they can't be written, or it has other sounds than the named one.
    """
    with open_media(video_path) as source:
        kept.require(video_path, source)
        return _plan(video_path, source, Path(out_path), kept)


def _plan(video_path: str | os.PathLike, source: InputContainer, target: Path, kept: Kept) -> MuxPlan:
    suffix, stream = target.suffix.lower(), picture_stream(source)
    if suffix not in _FORMATS:
        raise InputError(f"{target}: the video is written as .mp4 or .mkv, so give the file such a name")
    if stream is None:
        raise InputError(f"{video_path} has no pictures; name a video file")
    codec, notes, encoded = stream.codec_context.codec.canonical_name, [], False
    if codec not in _PLAYED.get(suffix, ()) or codec not in _held(suffix):
        if codec in _held(".mkv") and codec != "rawvideo":
            target = target.with_suffix(".mkv")
        else:
            encoded = True
            _require_encoder(video_path, codec)
            notes.append(f"no container here holds {codec} pictures, so they are encoded anew, as H.264")
    if left_out := [*_left_out(source, stream, target.suffix.lower()), *kept.left_out(source, stream)]:
        notes.append(f"left out: {', '.join(left_out)}")
    return MuxPlan(target, codec, encoded, tuple(notes), kept)


@cache
def _held(suffix: str) -> frozenset[str]:
    """Codecs that a container holds, by FFmpeg's names of the formats."""
    with av.open(io.BytesIO(), "w", format=_FORMATS[suffix]) as scratch:
        return frozenset(scratch.supported_codecs)


def _require_encoder(path: str | os.PathLike, codec: str) -> None:
    try:
        av.Codec(_NEW_CODEC, "w")
    except av.codec.codec.UnknownCodecError:
        raise InputError(f"{path} holds {codec} pictures, which neither mp4 nor Matroska holds, and this build of "
                         f"FFmpeg has no {_NEW_CODEC} to encode them anew; convert the video first") from None


def _left_out(source: InputContainer, pictures: Any, suffix: str) -> Iterator[str]:
    """What the source holds that the new file won't."""
    for stream in source.streams:
        kind = stream.type
        if kind == "video" and stream.index != pictures.index:
            cover = stream.disposition & av.stream.Disposition.attached_pic
            yield "its cover" if cover else f"another picture stream ({stream.index})"
        elif kind == "subtitle" and not _held_subtitles(stream, suffix):
            name = stream.language or f"stream {stream.index}"
            yield f"its {name} subtitles ({stream.codec_context.codec.canonical_name if stream.codec_context else '?'})"
        elif kind in ("data", "attachment"):
            yield {"data": "a data stream", "attachment": "an attachment"}[kind] + f" ({stream.index})"


def _held_subtitles(stream: Any, suffix: str) -> bool:
    return stream.codec_context is not None and stream.codec_context.codec.canonical_name in _held(suffix)


def mux(video_path: str | os.PathLike, waveform: np.ndarray, sample_rate_hz: int, out_path: str | os.PathLike,
        mix: float = 0.0, kept: Kept = Kept()) -> Path:
    """Write a video's pictures with a new sound, atomically, after the new file was read back ⇒ the path written.

    Packets of pictures are copied as they are, with rotation, colours and pixel shape; where no container holds their
    codec they are encoded anew, as H.264 (:func:`plan_mux` says so before). Titles, chapters and subtitles are kept
    where the container can. The sound is encoded as AAC, and scaled down where it would clip.

    Args:
        video_path: whose pictures are taken.
        waveform: (samples,); starts at the video's time zero, and is cut or padded to last as long as the pictures.
        sample_rate_hz: of the waveform.
        out_path: .mp4, .m4v, .mov or .mkv. Where players take the pictures' codec from Matroska alone, the suffix
            becomes .mkv.
        mix: gain of the video's own sound, which is added; 0: without it.
        kept: of the video.

    Raises:
        InputError: names the file that can't be used, or written whole.
    """
    waveform = np.asarray(waveform, np.float32)
    if waveform.ndim != 1 or not np.isfinite(waveform).all():
        raise InputError(f"{out_path}: expected a finite waveform of shape (samples,), got shape {waveform.shape}")
    if not 0 <= mix <= 1:
        raise InputError(f"mix={mix:g} is a gain between 0 (without the original sound) and 1")
    with open_media(video_path) as source:
        plan = _plan(video_path, source, Path(out_path), kept)
        times = _picture_times(video_path, source)
    duration_s = round(times.end_s, 6)
    sound = fit_length(waveform, round(duration_s * sample_rate_hz))
    if mix > 0:
        sound = sound + np.float32(mix) * read_audio(video_path, 0.0, duration_s, sample_rate_hz, sound=kept.sound)
    peak = float(np.abs(sound).max(initial=0.0))
    if peak > 1.0:
        sound = sound / np.float32(peak)
    with atomic_path(plan.target) as temporary:
        with open_media(video_path) as source:
            _Writer(source, plan, times, sound, sample_rate_hz).write(temporary)
        _read_back(video_path, plan, times, len(sound) / sample_rate_hz, temporary)
    return plan.target


def picture_duration_s(path: str | os.PathLike) -> float:
    """Seconds from the file's time zero to the end of its last picture, by its packets: the durations that containers
    state are often wrong."""
    with open_media(path) as container:
        return round(_picture_times(path, container).end_s, 6)


def _picture_times(path: str | os.PathLike, container: InputContainer) -> PictureTimes:
    """Times as the new file will have them.

    Decoding times that are missing, as in Matroska, or don't rise are rebuilt from the order of display and the
    longest delay. Of two pictures at one time the second comes a tick later.
    """
    stream: Any = picture_stream(container)
    if stream is None:
        raise InputError(f"{path} has no pictures; name a video file")
    shift, tick_s = round(origin_s(container) / stream.time_base), float(stream.time_base)
    times, shown, claimed = PictureTimes(), [], {}
    given: list[int | None] = []
    for packet in packets(container, stream):
        if not packet.size or packet.pts is None and packet.dts is None:
            continue
        pts = (packet.dts if packet.pts is None else packet.pts) - shift
        times.pts.append(pts)
        given.append(None if packet.dts is None else packet.dts - shift)
        if not packet.is_discard:
            shown.append(pts)
            claimed[pts] = (packet.duration or 0) * tick_s
    if not shown:
        raise InputError(f"{path}: its pictures have no timestamps")
    shown.sort()
    last = shown[-1]
    before = next((pts for pts in reversed(shown) if pts < last), None)
    interval_s = (last - before) * tick_s if before is not None else 0.04
    end_s = end_of_stream_s(stream)
    left_s = None if end_s is None else end_s - (shift + last) * tick_s
    times.last_s = picture_length_s(claimed[last], interval_s, left_s)
    times.end_s = last * tick_s + times.last_s
    _make_unique(times.pts)
    times.dts = _decoding_times(times.pts, given)
    return times


def _make_unique(pts: list[int]) -> None:
    """Move each picture that would be shown at the time of another by a tick."""
    latest: int | None = None
    for place in sorted(range(len(pts)), key=pts.__getitem__):
        if latest is not None and pts[place] <= latest:
            pts[place] = latest + 1
        latest = pts[place]


def _decoding_times(pts: list[int], given: list[int | None]) -> list[int]:
    """The given ones where all are there, rise, and come no later than their pictures are shown; else new ones."""
    if all(dts is not None and dts <= shown for dts, shown in zip(given, pts)) and \
            all(first < second for first, second in pairwise(given)):  # type: ignore[operator]
        return [dts for dts in given if dts is not None]
    in_order = sorted(pts)
    delay = max(time - shown for time, shown in zip(in_order, pts))
    return [time - delay for time in in_order]


class _Writer:
    """Writes the new file of a plan. source: open, at its start."""

    def __init__(self, source: InputContainer, plan: MuxPlan, times: PictureTimes, sound: np.ndarray,
                 sample_rate_hz: int):
        self.source, self.plan, self.times = source, plan, times
        self.sound, self.sample_rate_hz = sound, sample_rate_hz
        self.pictures: Any = picture_stream(source)
        assert self.pictures is not None, "the plan has found them"
        self.shift = round(origin_s(source) / self.pictures.time_base)
        self.sound_s = 0.0

    def write(self, path: Path) -> None:
        try:
            with av.open(f"file:{path.absolute()}", "w", format=_FORMATS[self.plan.target.suffix.lower()],
                         options={"fflags": "+bitexact"}) as sink:
                self._write(sink)
        except (av.error.FFmpegError, ValueError) as error:
            raise InputError(f"the pictures of {self.source.name.removeprefix('file:')} can't be written to "
                             f"{self.plan.target} ({error})") from error

    def _write(self, sink: OutputContainer) -> None:
        self._keep_tags(sink)
        self.sink = sink
        video = self._encoder() if self.plan.encoded else self._copied()
        self.audio: Any = sink.add_stream("aac", rate=self.sample_rate_hz, layout="mono")
        self.audio.bit_rate = _BIT_RATE
        subtitles = {stream.index: sink.add_stream_from_template(stream, opaque=True)
                     for stream in self.source.streams.subtitles
                     if _held_subtitles(stream, self.plan.target.suffix.lower())}
        self.blocks = _blocks(self.sound, self.sample_rate_hz)
        wanted = [self.pictures, *(self.source.streams[index] for index in subtitles)]
        if self.plan.encoded:
            self._encode(video, wanted, subtitles)
        else:
            self._copy(video, wanted, subtitles)
        for block in [*self.blocks, None]:
            sink.mux(self.audio.encode(block))

    def _keep_tags(self, sink: OutputContainer) -> None:
        sink.metadata.update(self.plan.kept.tags(self.source.metadata, _OF_THE_FILE))
        chapters = self.source.chapters()
        if chapters:
            sink.set_chapters(chapters)

    def _copied(self) -> Any:
        """The stream of pictures, opaque: a decoder's name (libdav1d) is no encoder's."""
        video: Any = self.sink.add_stream_from_template(self.pictures, opaque=True)
        video.metadata.update(self.plan.kept.tags(self.pictures.metadata))
        if self.plan.codec == "hevc" and self.plan.target.suffix.lower() != ".mkv":
            video.codec_context.codec_tag = "hvc1"  # Apple's players know no other
        return video

    def _copy(self, video: Any, wanted: list[Any], subtitles: dict[int, Any]) -> None:
        places, last = zip(self.times.pts, self.times.dts), max(self.times.pts)
        for packet in packets(self.source, wanted):
            if packet.stream.index in subtitles:
                self._copy_subtitle(packet, subtitles)
                continue
            if not packet.size or packet.pts is None and packet.dts is None:
                continue
            packet.pts, packet.dts = next(places)
            self._sound_until(float(packet.dts * self.pictures.time_base))
            if packet.pts == last or packet.duration * self.pictures.time_base <= _TICK_S:
                packet.duration = round(self.times.last_s / self.pictures.time_base)
            packet.stream = video
            self.sink.mux(packet)

    def _copy_subtitle(self, packet: av.Packet, subtitles: dict[int, Any]) -> None:
        if packet.pts is None or not packet.size:
            return
        shift = round(origin_s(self.source) / packet.time_base)
        packet.pts -= shift
        packet.dts = packet.pts
        packet.stream = subtitles[packet.stream.index]
        self.sink.mux(packet)

    def _encoder(self) -> Any:
        rate = self.pictures.average_rate or self.pictures.guessed_rate or 25
        video: Any = self.sink.add_stream(_NEW_CODEC, rate=Fraction(rate).limit_denominator(100_000), options=_QUALITY)
        context = self.pictures.codec_context
        # H.264 in the colours that all players know has even sides
        video.width, video.height = (max(2, side // 2 * 2) for side in (context.width, context.height))
        video.pix_fmt = "yuv420p"
        video.codec_context.time_base = self.pictures.time_base
        if context.sample_aspect_ratio:
            video.codec_context.sample_aspect_ratio = context.sample_aspect_ratio
        return video

    def _encode(self, video: Any, wanted: list[Any], subtitles: dict[int, Any]) -> None:
        decoder, latest = Decoder(self.source.name), None
        for packet in packets(self.source, wanted):
            if packet.stream.index in subtitles:
                self._copy_subtitle(packet, subtitles)
                continue
            for frame in decoder.decode(packet):
                pts = frame.pts - self.shift if frame.pts is not None else (latest or 0) + 1
                latest = pts if latest is None else max(latest + 1, pts)
                picture = frame.reformat(video.width, video.height, "yuv420p")
                picture.pts, picture.time_base = latest, self.pictures.time_base
                picture.pict_type = av.video.frame.PictureType.NONE
                self._sound_until(float(latest * self.pictures.time_base))
                self.sink.mux(video.encode(picture))
        self.sink.mux(video.encode(None))

    def _sound_until(self, time_s: float) -> None:
        """Encode the sound along: muxers wait for the stream that lags."""
        while self.sound_s <= time_s:
            block = next(self.blocks, None)
            if block is None:
                return
            self.sink.mux(self.audio.encode(block))
            self.sound_s += block.samples / self.sample_rate_hz


def _blocks(sound: np.ndarray, sample_rate_hz: int) -> Iterator[av.AudioFrame]:
    """(samples,) ⇒ audio frames of up to _BLOCK_SAMPLES with their timestamps."""
    for start in range(0, len(sound), _BLOCK_SAMPLES):
        samples = np.ascontiguousarray(sound[None, start:start + _BLOCK_SAMPLES])
        block = av.AudioFrame.from_ndarray(samples, format="fltp", layout="mono")
        block.sample_rate, block.pts, block.time_base = sample_rate_hz, start, Fraction(1, sample_rate_hz)
        yield block


def _read_back(video_path: str | os.PathLike, plan: MuxPlan, times: PictureTimes, sound_s: float, path: Path) -> None:
    """Raise InputError unless the written file holds the pictures at their times, and the sound."""
    with open_media(path) as written, open_media(video_path) as source:
        found = _picture_times(path, written)
        streams: list[Any] = [picture_stream(each) for each in (source, written)]
        tick_s, read_tick_s = (float(stream.time_base) for stream in streams)
        was, now = (np.sort(np.array(each.pts)) * tick for each, tick in ((times, tick_s), (found, read_tick_s)))
        missing = f"{len(now)} of {len(was)} pictures" if len(now) != len(was) and not plan.encoded else ""
        late_s = 0.0 if len(now) != len(was) else float(np.abs(now - was).max(initial=0.0))
        if not missing and late_s > max(tick_s, read_tick_s, _TICK_S) + 1e-6:
            missing = f"pictures up to {late_s:.3f} s beside their times"
    if not missing and abs(_sound_end_s(path) - sound_s) > 2 * _BLOCK_SAMPLES / 8000:
        missing = "a sound of another length"
    if not missing:
        was_shown, is_shown = (_first_pictures(each) for each in (video_path, path))
        if is_shown < was_shown and not plan.encoded:
            missing = f"pictures of which {is_shown} of the first {was_shown} can be decoded"
    if missing:
        raise InputError(f"{video_path}: what was written to {plan.target} holds {missing}, so it is not kept; convert "
                         "the video first")


def _sound_end_s(path: Path) -> float:
    """When a written file's sound ends, after time zero."""
    with open_media(path) as container:
        stream: Any = container.streams.audio[0]
        ends = [(packet.pts + (packet.duration or 0)) * stream.time_base for packet in packets(container, stream)
                if packet.pts is not None]
        return float(max(ends, default=0)) - origin_s(container)


def _first_pictures(path: str | os.PathLike) -> int:
    """How many pictures come out of a file's first packets of pictures."""
    with open_media(path) as container:
        decoder, stored = Decoder(path), packets(container, picture_stream(container))
        first = islice((packet for packet in stored if packet.size), _COMPARED)
        return sum(len(decoder.decode(packet)) for packet in first)
