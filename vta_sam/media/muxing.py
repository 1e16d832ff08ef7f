"""Putting a new sound under a video without touching its pictures."""

from __future__ import annotations

import io
import os
from fractions import Fraction
from pathlib import Path
from typing import Any, Iterator

import av
import numpy as np
from av.container import InputContainer

from ..runtime.errors import InputError
from ..runtime.files import atomic_path
from .audio import fit_length, read_audio
from .container import open_media, origin_s, packets, picture_length_s, picture_stream

_BLOCK_SAMPLES = 1024  # an AAC frame
_BIT_RATE = 128_000  # bit/s, mono: transparent for a 16 kHz sound


def mux(video_path: str | os.PathLike, waveform: np.ndarray, sample_rate_hz: int, out_path: str | os.PathLike,
        mix: float = 0.0) -> Path:
    """Write a video's pictures with a new sound, atomically ⇒ the path written.

    Picture packets are copied as they are, rotation included. The sound is encoded as AAC, and scaled down where it
    would clip.

    Args:
        video_path: whose pictures are taken.
        waveform: (samples,); starts at the video's time zero, and is cut or padded to last as long as the pictures.
        sample_rate_hz: of the waveform.
        out_path: .mp4, .m4v, .mov or .mkv. Where mp4 can't hold the pictures' codec, the suffix becomes .mkv.
        mix: gain of the video's own sound, which is added; 0: without it.

    Raises:
        InputError: names the file that can't be used.
    """
    waveform = np.asarray(waveform, np.float32)
    if waveform.ndim != 1 or not np.isfinite(waveform).all():
        raise InputError(f"{out_path}: expected a finite waveform of shape (samples,), got shape {waveform.shape}")
    if not 0 <= mix <= 1:
        raise InputError(f"mix={mix:g} is a gain between 0 (without the original sound) and 1")
    with open_media(video_path) as source:
        end_s, length_s = _pictures_end_s(video_path, source)
        duration_s = round(end_s - origin_s(source), 6)
    samples = round(duration_s * sample_rate_hz)
    sound = fit_length(waveform, samples)
    if mix > 0:
        sound = sound + np.float32(mix) * read_audio(video_path, 0.0, duration_s, sample_rate_hz)
    peak = float(np.abs(sound).max(initial=0.0))
    if peak > 1.0:
        sound = sound / np.float32(peak)
    with open_media(video_path) as source:
        target = _suffix_for(Path(out_path), picture_stream(source))
        with atomic_path(target) as temporary:
            _write(source, length_s, sound, sample_rate_hz, temporary, target)
    return target


def picture_duration_s(path: str | os.PathLike) -> float:
    """Seconds from the file's time zero to the end of its last picture, by its packets: the durations that containers
    state are often wrong."""
    with open_media(path) as container:
        end_s, _ = _pictures_end_s(path, container)
        return round(end_s - origin_s(container), 6)


def _pictures_end_s(path: str | os.PathLike, container: InputContainer) -> tuple[float, float]:
    """When the last picture ends on the file's own clock, and how long it lasts, both in seconds."""
    stream = picture_stream(container)
    if stream is None:
        raise InputError(f"{path} has no pictures; name a video file")
    last, claimed, before = None, 0, None
    for packet in packets(container, stream):  # in order of decoding, which may differ from order of time
        if packet.pts is None or packet.is_discard:
            continue
        if last is None or packet.pts > last:
            before, last, claimed = last, packet.pts, packet.duration or 0
        elif before is None or packet.pts > before:
            before = packet.pts
    if last is None:
        raise InputError(f"{path}: its pictures have no timestamps")
    tick_s = float(stream.time_base)
    length_s = picture_length_s(claimed * tick_s, (last - before) * tick_s if before is not None else 0.04)
    return last * tick_s + length_s, length_s


def _suffix_for(path: Path, stream: Any) -> Path:
    """The path to write: Matroska holds the codecs that mp4 can't."""
    if path.suffix.lower() not in (".mp4", ".m4v", ".mov", ".mkv"):
        raise InputError(f"{path}: the video is written as .mp4 or .mkv, so give the file such a name")
    if path.suffix.lower() != ".mkv":
        with av.open(io.BytesIO(), "w", format="mp4") as scratch:
            if stream.codec_context.name not in scratch.supported_codecs:
                return path.with_suffix(".mkv")
    return path


def _write(source: InputContainer, picture_s: float, sound: np.ndarray, sample_rate_hz: int, temporary: Path,
           target: Path) -> None:
    stream: Any = picture_stream(source)
    shift = round(origin_s(source) / stream.time_base)
    try:
        with av.open(f"file:{temporary.absolute()}", "w", options={"fflags": "+bitexact"}) as sink:
            video: Any = sink.add_stream_from_template(stream)
            audio = sink.add_stream("aac", rate=sample_rate_hz, layout="mono")
            audio.bit_rate = _BIT_RATE
            blocks = _blocks(sound, sample_rate_hz)
            sound_s = 0.0
            for packet in packets(source, stream):
                if packet.dts is None or packet.pts is None:
                    continue
                # muxers wait for the stream that lags, so the sound is encoded along
                while sound_s <= float((packet.dts - shift) * stream.time_base):
                    block = next(blocks, None)
                    if block is None:
                        break
                    sink.mux(audio.encode(block))
                    sound_s += block.samples / sample_rate_hz
                packet.pts, packet.dts = packet.pts - shift, packet.dts - shift
                if packet.duration * stream.time_base <= 0.001:  # else the last picture of an mp4 lasts one tick
                    packet.duration = round(picture_s / stream.time_base)
                packet.stream = video
                sink.mux(packet)
            for block in blocks:
                sink.mux(audio.encode(block))
            sink.mux(audio.encode(None))
    except (av.error.FFmpegError, ValueError) as error:
        raise InputError(f"the pictures of {source.name.removeprefix('file:')} can't be copied into {target} "
                         f"({error})") from error


def _blocks(sound: np.ndarray, sample_rate_hz: int) -> Iterator[av.AudioFrame]:
    """(samples,) ⇒ audio frames of up to _BLOCK_SAMPLES with their timestamps."""
    for start in range(0, len(sound), _BLOCK_SAMPLES):
        samples = np.ascontiguousarray(sound[None, start:start + _BLOCK_SAMPLES])
        block = av.AudioFrame.from_ndarray(samples, format="fltp", layout="mono")
        block.sample_rate, block.pts, block.time_base = sample_rate_hz, start, Fraction(1, sample_rate_hz)
        yield block
