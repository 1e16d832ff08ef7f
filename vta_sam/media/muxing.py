"""Putting a new sound under a video without touching its pictures: planned, written, and read back."""

from __future__ import annotations

import io
import os
import struct
from collections.abc import Iterator
from dataclasses import dataclass
from fractions import Fraction
from functools import cache
from pathlib import Path
from typing import Any

import av
import numpy as np
from av.container import InputContainer, OutputContainer

from ..runtime.errors import InputError
from ..runtime.files import atomic_path
from .audio import AAC_FRAME_SAMPLES, aac_frames, end_of_sound_s, fit_length, read_audio
from .container import (
    Decoder, PictureTimes, holds_picture, open_media, origin_s, packets, picture_stream, picture_times
)
from .picture_reader import display_matrix, require_pictures, shown_at_first, without_undecodable
from .video import Kept

_BIT_RATE = 128_000  # bit/s, mono: transparent for a 16 kHz sound
_TICK_S = 1e-3  # of the coarsest clock, Matroska's
_COMPARED = 24  # pictures from the start that are decoded again from the written file
# suffix ⇒ codecs that players take from such a file; others go into Matroska, or are encoded anew
_ISO_CODECS = frozenset("h264 hevc av1 vp9 mpeg4 mpeg2video mpeg1video mjpeg vc1 vvc".split())
_PLAYED = {".mp4": _ISO_CODECS, ".m4v": _ISO_CODECS, ".mov": _ISO_CODECS - {"av1", "vp9", "vvc"} | {"prores", "dnxhd"}}
_FORMATS = {".mp4": "mp4", ".m4v": "mp4", ".mov": "mov", ".mkv": "matroska"}
_DOLBY_VISION = ("dvh1", "dvhe")  # tags of HEVC whose colours only such players know
_OF_THE_FILE = ("major_brand", "minor_version", "compatible_brands", "encoder", "creation_tool")
_NEW_CODEC, _QUALITY = "libx264", {"crf": "18"}  # visually lossless


@dataclass(frozen=True)
class MuxPlan:
    """What a new file will be.

    Args:
        target: its path; the suffix follows the codec.
        codec: of the source's pictures, by FFmpeg's name of the format.
        encoded: whether the pictures are encoded anew, as H.264, since no container here holds their codec, or what
            their edit list cuts out.
        notes: sentences on what differs from the source, and what is left out.
        kept: of the source, as it was asked for.
    """

    target: Path
    codec: str
    encoded: bool = False
    notes: tuple[str, ...] = ()
    kept: Kept = Kept()


def plan_mux(video_path: str | os.PathLike, out_path: str | os.PathLike, kept: Kept = Kept(), whole: bool = False,
             ) -> MuxPlan:
    """What :func:`mux` will write.

    Args:
        video_path: whose pictures are taken.
        out_path: .mp4, .m4v, .mov or .mkv.
        kept: of the video.
        whole: all of the video is read; else only its head, but of one with an edit list all. Pictures before time
            zero are known then alone, which may have to be encoded anew.

    Raises:
        InputError: the video has no pictures, they can't be written, or it has other sounds than the named one.
    """
    target = Path(out_path)
    if target.suffix.lower() not in _FORMATS:
        raise InputError(f"{target}: the video is written as .mp4 or .mkv, so give the file such a name")
    with open_media(video_path) as source:
        kept.require(video_path, source)
        stream = picture_stream(source)
        edited = stream is not None and any(entry.is_discard for entry in stream.index_entries)
        times = without_undecodable(video_path, picture_times(video_path, source)) if whole or edited else None
        return _plan(video_path, source, target, kept, times)


def _plan(video_path: str | os.PathLike, source: InputContainer, target: Path, kept: Kept,
          times: PictureTimes | None) -> MuxPlan:
    """times: None where no picture is cut away."""
    suffix, stream = target.suffix.lower(), require_pictures(video_path, source)
    codec, notes, why = stream.codec_context.codec.canonical_name, [], ""
    if codec not in _PLAYED.get(suffix, ()) or codec not in _held(suffix):
        if codec in _held(".mkv") and codec != "rawvideo":
            suffix = ".mkv"
        else:
            why = f"no container here holds {codec} pictures"
    # pictures that are stored but not shown: mp4's edit lists can cut them off at either end, Matroska can't
    if not why and times is not None and times.edited - (set() if suffix == ".mkv" else {"before", "after"}):
        why = f"{suffix} can't cut pictures out as its edit list does"
    if why:
        _require_encoder(video_path, codec)
        notes.append(f"{why}, so they are encoded anew, as H.264")
    elif suffix != target.suffix.lower():
        target = target.with_suffix(suffix)
    if left_out := [*_left_out(source, stream, target.suffix.lower(), bool(why)), *kept.left_out(source, stream)]:
        notes.append(f"left out: {', '.join(left_out)}")
    return MuxPlan(target, codec, bool(why), tuple(notes), kept)


@cache
def _held(suffix: str) -> frozenset[str]:
    """Codecs that a container holds, by FFmpeg's names of the formats."""
    with av.open(io.BytesIO(), "w", format=_FORMATS[suffix]) as scratch:
        return frozenset(scratch.supported_codecs)


def _require_encoder(path: str | os.PathLike, codec: str) -> None:
    try:
        av.Codec(_NEW_CODEC, "w")
    except av.codec.codec.UnknownCodecError:
        raise InputError(f"{path}: its {codec} pictures can't be copied, and this build of FFmpeg has no "
                         f"{_NEW_CODEC} to encode them anew; convert the video first") from None


def _left_out(source: InputContainer, pictures: Any, suffix: str, encoded: bool) -> Iterator[str]:
    """What the source holds that the new file won't."""
    if suffix == ".mov" and pictures.codec_context.codec_tag in _DOLBY_VISION:
        yield "Dolby Vision's settings"
    if suffix != ".mkv" and ("alpha_mode", "1") in {(key.lower(), value) for key, value in pictures.metadata.items()}:
        yield "its transparency"  # of VP8 and VP9, which Matroska keeps beside the pictures
    for stream in source.streams:
        kind = stream.type
        if kind == "video" and stream.index != pictures.index:
            cover = stream.disposition & av.stream.Disposition.attached_pic
            yield "its cover" if cover else f"another picture stream ({stream.index})"
        elif kind == "subtitle" and not _held_subtitles(stream, suffix):
            name = stream.language or f"stream {stream.index}"
            yield f"its {name} subtitles ({stream.codec_context.codec.canonical_name if stream.codec_context else '?'})"
        elif kind == "data" and "timecode" in stream.metadata:
            if encoded or "timecode" not in pictures.metadata:  # from which it is written anew
                yield "its timecode"
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
    plan = plan_mux(video_path, out_path, kept, whole=True)
    with atomic_path(plan.target) as temporary:
        write_mux(video_path, plan, waveform, sample_rate_hz, temporary, mix)
    return plan.target


def write_mux(video_path: str | os.PathLike, plan: MuxPlan, waveform: np.ndarray, sample_rate_hz: int, path: Path,
              mix: float = 0.0) -> None:
    """Write what was planned to ``path``, which belongs to nobody else, and read it back; arguments as of :func:`mux`.
    """
    waveform = np.asarray(waveform, np.float32)
    if waveform.ndim != 1 or not np.isfinite(waveform).all():
        raise InputError(f"{plan.target}: expected a finite waveform of shape (samples,), got shape {waveform.shape}")
    if not 0 <= mix <= 1:
        raise InputError(f"mix={mix:g} is a gain between 0 (without the original sound) and 1")
    with open_media(video_path) as source:
        times = without_undecodable(video_path, picture_times(video_path, source))
    duration_s = round(times.end_s, 6)
    sound = fit_length(waveform, round(duration_s * sample_rate_hz))
    if mix > 0:
        sound = sound + np.float32(mix) * read_audio(video_path, 0.0, duration_s, sample_rate_hz, sound=plan.kept.sound)
    peak = float(np.abs(sound).max(initial=0.0))
    if peak > 1.0:
        sound = sound / np.float32(peak)
    with open_media(video_path) as source:
        shown_s = _Writer(source, plan, times, sound, sample_rate_hz).write(path)
    if "after" in times.edited and not plan.encoded:
        _end_pictures(path, times.end_s)
    _read_back(video_path, plan, times, shown_s, len(sound) / sample_rate_hz, path)


def picture_duration_s(path: str | os.PathLike) -> float:
    """Seconds from the file's time zero to the end of its last picture, by its packets: the durations that containers
    state are often wrong."""
    with open_media(path) as container:
        return round(picture_times(path, container).end_s, 6)


def _end_pictures(path: Path, end_s: float) -> None:
    """End the pictures of an mp4 that was just written by its edit list, as FFmpeg's muxer doesn't."""
    with open(path, "r+b") as file:
        at, size, kind = 0, 0, b""
        while kind != b"moov":
            file.seek(at)
            size, kind, long_size = struct.unpack(">I4sQ", file.read(16))
            size = long_size if size == 1 else size
            at += size
        file.seek(at - size)
        moov = file.read(size)
        movie, edits = moov.index(b"mvhd") + 4, moov.index(b"elst") + 4  # of the first track, which is the pictures'
        ticks, = struct.unpack_from(">I", moov, movie + (20 if moov[movie] else 12))  # version 1 has times of 64 bits
        entry = struct.Struct(">QqI" if moov[edits] else ">IiI")
        count, = struct.unpack_from(">I", moov, edits + 4)
        *before, last = entry.iter_unpack(moov[edits + 8:edits + 8 + count * entry.size])
        file.seek(at - size + edits + 8 + len(before) * entry.size)
        file.write(entry.pack(round(end_s * ticks) - sum(length for length, _, _ in before), *last[1:]))


class _Writer:
    """Writes the new file of a plan. source: open, at its start."""

    def __init__(self, source: InputContainer, plan: MuxPlan, times: PictureTimes, sound: np.ndarray,
                 sample_rate_hz: int):
        self.source, self.plan, self.times = source, plan, times
        self.sound, self.sample_rate_hz = sound, sample_rate_hz
        self.pictures: Any = picture_stream(source)
        assert self.pictures is not None, "the plan has found them"
        self.shift = round(origin_s(source) / self.pictures.time_base)
        stated = (self.pictures.average_rate, self.pictures.guessed_rate, 25)  # the first may be the clock's
        self.rate = Fraction(next(rate for rate in stated if rate and rate <= 255)).limit_denominator(100_000)
        self.sound_s = 0.0

    def write(self, path: Path) -> np.ndarray:
        """Write the file ⇒ (pictures,) when they have to come on screen, in seconds after time zero."""
        try:
            # strict: Dolby Vision's settings are written at all
            with av.open(f"file:{path.absolute()}", "w", format=_FORMATS[self.plan.target.suffix.lower()],
                         options={"fflags": "+bitexact", "strict": "unofficial"}) as sink:
                return self._write(sink)
        except (av.error.FFmpegError, ValueError) as error:
            if isinstance(error, (InputError, MemoryError)):
                raise
            # without the name of the file beside the target, which is gone
            words = [getattr(error, "strerror", None) or str(error), (getattr(error, "log", None) or ("",))[-1].strip()]
            raise InputError(f"the pictures of {self.source.name.removeprefix('file:')} can't be written to "
                             f"{self.plan.target} ({'; '.join(filter(None, words))})") from error

    def _write(self, sink: OutputContainer) -> np.ndarray:
        self._keep_tags(sink)
        self.sink = sink
        video = self._encoder() if self.plan.encoded else self._copied()
        if any(key.lower() == "timecode" for key in (*self.source.metadata, *self.pictures.metadata)):
            video.codec_context.framerate = self.rate  # of the frames that it counts
        self.audio: Any = sink.add_stream("aac", rate=self.sample_rate_hz, layout="mono")
        self.audio.bit_rate = _BIT_RATE
        subtitles = {stream.index: sink.add_stream_from_template(stream, opaque=True)
                     for stream in self.source.streams.subtitles
                     if _held_subtitles(stream, self.plan.target.suffix.lower())}
        self.blocks = aac_frames(self.sound, self.sample_rate_hz)
        wanted = [self.pictures, *(self.source.streams[index] for index in subtitles)]
        work = self._encode if self.plan.encoded else self._copy
        shown_s = work(video, wanted, subtitles)
        for block in [*self.blocks, None]:
            sink.mux(self.audio.encode(block))
        return shown_s

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
            # Apple's players know no other
            video.codec_context.codec_tag = "dvh1" if self.pictures.codec_context.codec_tag in _DOLBY_VISION else "hvc1"
        return video

    def _copy(self, video: Any, wanted: list[Any], subtitles: dict[int, Any]) -> np.ndarray:
        places = zip(self.times.pts.tolist(), self.times.dts.tolist(), self.times.needed.tolist())
        last = self.times.last_pts
        for packet in packets(self.source, wanted):
            if packet.stream.index in subtitles:
                self._copy_subtitle(packet, subtitles)
                continue
            if not holds_picture(packet):
                continue
            packet.pts, packet.dts, needed = next(places)
            if not needed:
                continue
            self._sound_until(float(packet.dts * self.pictures.time_base))
            if packet.pts == last or packet.duration * self.pictures.time_base <= _TICK_S:
                packet.duration = round(self.times.last_s / self.pictures.time_base)
            packet.stream = video
            self.sink.mux(packet)
        return self.times.shown_s

    def _copy_subtitle(self, packet: av.Packet, subtitles: dict[int, Any]) -> None:
        if packet.pts is None or not packet.size:
            return
        shift = round(origin_s(self.source) / packet.time_base)
        packet.pts -= shift
        packet.dts = packet.pts
        packet.stream = subtitles[packet.stream.index]
        self.sink.mux(packet)

    def _encoder(self) -> Any:
        video: Any = self.sink.add_stream(_NEW_CODEC, rate=self.rate, options=_QUALITY)
        context = self.pictures.codec_context
        # H.264 in the colours that all players know has even sides
        video.width, video.height = (max(2, side // 2 * 2) for side in (context.width, context.height))
        video.pix_fmt = "yuv420p"
        video.codec_context.time_base = self.pictures.time_base
        if context.sample_aspect_ratio:
            video.codec_context.sample_aspect_ratio = context.sample_aspect_ratio
        if (context.pix_fmt or "").startswith("yuv"):
            for name in ("color_primaries", "color_trc", "colorspace"):
                setattr(video.codec_context, name, getattr(context, name))
        return video

    def _encode(self, video: Any, wanted: list[Any], subtitles: dict[int, Any]) -> np.ndarray:
        decoder = Decoder(self.source.name.removeprefix("file:"))
        shown: list[int] = []
        for packet in packets(self.source, wanted):
            if packet.stream.index in subtitles:
                self._copy_subtitle(packet, subtitles)
                continue
            for frame in decoder.decode(packet):
                latest = shown[-1] if shown else -1
                pts = frame.pts - self.shift if frame.pts is not None else latest + 1
                if pts < 0:
                    continue
                if not shown and (matrix := display_matrix(frame)) is not None:
                    video.set_display_matrix(matrix)
                shown.append(max(latest + 1, pts))
                picture = frame.reformat(video.width, video.height, "yuv420p")
                picture.pts, picture.time_base = shown[-1], self.pictures.time_base
                picture.pict_type = av.video.frame.PictureType.NONE
                self._sound_until(float(shown[-1] * self.pictures.time_base))
                self.sink.mux(video.encode(picture))
        self.sink.mux(video.encode(None))
        return np.array(shown) * self.times.tick_s

    def _sound_until(self, time_s: float) -> None:
        """Encode the sound along: muxers wait for the stream that lags."""
        while self.sound_s <= time_s:
            block = next(self.blocks, None)
            if block is None:
                return
            self.sink.mux(self.audio.encode(block))
            self.sound_s += block.samples / self.sample_rate_hz


def _read_back(video_path: str | os.PathLike, plan: MuxPlan, times: PictureTimes, shown_s: np.ndarray, sound_s: float,
               path: Path) -> None:
    """Raise InputError unless the written file holds the pictures at their times, and the sound."""
    decodable = shown_at_first(video_path, times, _COMPARED)
    if not decodable:
        raise InputError(f"{video_path}: none of its pictures can be decoded; is it damaged?")
    try:
        missing = _missing(plan, times, shown_s, sound_s, path, decodable)
    except InputError as error:
        raise InputError(f"{video_path}: what was written to {plan.target} can't be read back, so it is not kept; "
                         "convert the video first") from error
    if missing:
        raise InputError(f"{video_path}: what was written to {plan.target} holds {missing}, so it is not kept; convert "
                         "the video first")


def _missing(plan: MuxPlan, times: PictureTimes, shown_s: np.ndarray, sound_s: float, path: Path, decodable: int,
             ) -> str:
    """What a written file has instead of what it should hold; "": nothing."""
    with open_media(path) as written:
        found = picture_times(path, written)
    now_s = found.shown_s
    if len(now_s) != len(shown_s):
        return f"{len(now_s)} of {len(shown_s)} pictures"
    late_s = float(np.abs(now_s - shown_s).max(initial=0.0))
    if late_s > max(times.tick_s, found.tick_s, _TICK_S) + 1e-6:
        return f"pictures up to {late_s:.3f} s beside their times"
    if abs(end_of_sound_s(path) - sound_s) > 2 * AAC_FRAME_SAMPLES / 8000:
        return "a sound of another length"
    is_shown = shown_at_first(path, found, _COMPARED)
    if is_shown < decodable and not plan.encoded:
        return f"pictures of which {is_shown} of the first {decodable} can be decoded"
    return ""
