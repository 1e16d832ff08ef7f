"""Small videos of kinds that people have, whose pictures don't simply begin at zero and follow each other: what is on
screen when is known of each. Pictures have their number coded in brightness."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from typing import Any

import av
import numpy as np
from conftest import write_video
from mp4_atoms import set_edits

WRAP_S = 2**33 / 90_000  # when the clock of MPEG streams turns over, 26.5 h
PLAIN = {"g": "100"}
REORDERED = {"bf": "2", "b-adapt": "0", "g": "100"}
HEVC = {"preset": "ultrafast", "crf": "12", "x265-params": "log-level=none:bframes=2:b-adapt=0:pools=1"}
STEPS = [i / 25 for i in range(12)]


@dataclass(frozen=True)
class Odd:
    """A file, and what a player shows of it.

    Args:
        path: of the file.
        times_s: when each picture comes on screen, after the start of its earliest stream.
        numbers: of these pictures.
        encoded: whether mp4 can't hold it, so that it is encoded anew.
    """

    path: Path
    times_s: Sequence[float]
    numbers: Sequence[int]
    encoded: bool = False


def sound(seconds: float) -> np.ndarray:
    return 0.3 * np.sin(np.arange(round(16_000 * seconds)))


def whole(path: Path, times_s: Sequence[float], after_s: float = 0.0, **settings: Any) -> Odd:
    """All pictures, ``after_s`` later than written on the file's own clock."""
    write_video(path, times_s=times_s, **{"options": REORDERED, **settings})
    return Odd(path, [time_s + after_s for time_s in times_s], range(len(times_s)))


def edited(path: Path, edits: Sequence[tuple[float, float | None]], numbers: Sequence[int], begins_s: float = 0.0,
           encoded: bool = False, **settings: Any) -> Odd:
    """Of twelve pictures those that an edit list shows, which follow each other."""
    write_video(path, times_s=STEPS, **{"options": REORDERED, **settings})
    return Odd(set_edits(path, edits), [begins_s + i / 25 for i in range(len(numbers))], numbers, encoded)


def piece(path: Path, first: int, shown: int, begins_s: float, codec: str, open_ended: dict[str, str]) -> Odd:
    """What is left of a stream whose first packets are lost: whole pictures come every six, and pictures before one of
    them need the six before. ``shown`` is the first that can be decoded."""
    stream = write_video(path.with_name(f"stream of {path.name}"), times_s=[i / 25 for i in range(24)], codec=codec,
                         options=open_ended)
    with av.open(str(stream)) as read, av.open(str(path), "w") as written:
        pictures = written.add_stream_from_template(read.streams.video[0], opaque=True)
        for packet in [packet for packet in read.demux(video=0) if packet.size][first:]:
            packet.stream = pictures
            written.mux(packet)
    stream.unlink()
    return Odd(path, [begins_s + i / 25 for i in range(24 - shown)], range(shown, 24))


OPEN = {"bf": "2", "b-adapt": "0", "x264-params": "open-gop=1:keyint=6:min-keyint=1:scenecut=0"}
OPEN_HEVC = {**HEVC, "x265-params": f"{HEVC['x265-params']}:keyint=6:min-keyint=6:open-gop=1"}


def before_zero(path: Path) -> Odd:
    """Matroska whose first five pictures have times below zero, of which FFmpeg tells none."""
    write_video(path, times_s=STEPS, options=PLAIN)
    data = bytearray(path.read_bytes())
    at = 0
    for i in range(len(STEPS)):
        at = data.index(b"\x81" + (40 * i).to_bytes(2, "big"), at) + 1
        data[at:at + 2] = (40 * i - 200).to_bytes(2, "big", signed=True)
    path.write_bytes(data)
    return Odd(path, STEPS[:7], range(5, 12))


def still_with_sound(path: Path, **settings: Any) -> Odd:
    write_video(path, times_s=[0.0], sound=sound(10), **settings)
    return Odd(path, [0.064 if path.suffix == ".ts" else 0.0], [0])


RUN_IN_S = 0.064  # an AAC frame before the first sample, which MPEG streams and FLV can't hide

# name ⇒ how it is made in a folder
KINDS: dict[str, Callable[[Path], Odd]] = {
    "edit that cuts the head, mp4": lambda f: edited(f / "a.mp4", [(0.28, 0.2)], range(5, 12), options=PLAIN),
    "edit that cuts the head among B-frames, mp4": lambda f: edited(f / "a.mp4", [(0.28, 0.2)], range(5, 12)),
    "edit that cuts the head among B-frames, mov": lambda f: edited(f / "a.mov", [(0.32, 0.16)], range(4, 12)),
    "edit that cuts the tail, mp4": lambda f: edited(f / "a.mp4", [(0.2, 0.0)], range(5), options=PLAIN),
    "edit that cuts the tail among B-frames, mp4": lambda f: edited(f / "a.mp4", [(0.2, 0.0)], range(5)),
    "edit that cuts both, with sound, mp4": lambda f: edited(f / "a.mp4", [(0.2, 0.2)], range(5, 10),
                                                             sound=sound(0.5)),
    "empty edit, mp4": lambda f: edited(f / "a.mp4", [(0.5, None), (0.48, 0.0)], range(12)),
    "empty edit before the pictures of a sound, mp4": lambda f: edited(
        f / "a.mp4", [(0.5, None), (0.48, 0.0)], range(12), 0.5, sound=sound(1)),
    "empty edit and a cut head and tail, mp4": lambda f: edited(
        f / "a.mp4", [(0.5, None), (0.2, 0.08)], range(2, 7), 0.5, encoded=True, sound=sound(1)),
    "two edits, mp4": lambda f: edited(f / "a.mp4", [(0.12, 0.0), (0.16, 0.24)], [0, 1, 2, 6, 7, 8, 9], encoded=True,
                                       options=PLAIN),
    "edit shown twice, mp4": lambda f: edited(f / "a.mp4", [(0.24, 0.0), (0.24, 0.0)], [*range(6), *range(6)],
                                              encoded=True, options=PLAIN),
    **{f"one picture, {suffix}": lambda f, s=suffix, c=codec, p=pixels: whole(  # type: ignore[misc]
        f / f"a.{s}", [0.0], codec=c, options={}, pixel_format=p)
       for suffix, codec, pixels in (("mp4", "libx264", None), ("mkv", "libx264", None), ("ts", "libx264", None),
                                     ("avi", "mjpeg", "yuvj420p"), ("mov", "mjpeg", "yuvj420p"),
                                     ("webm", "libvpx-vp9", None))},
    "one picture, gif": lambda f: Odd(write_video(f / "a.gif", times_s=[0.0], codec="gif", pixel_format="rgb8"), [0.0],
                                      [0], True),
    **{f"one picture with 10 s of sound, {suffix}": lambda f, s=suffix: still_with_sound(f / f"a.{s}")
       for suffix in ("mp4", "mkv", "mov", "ts")},
    **{f"pictures 2 s after the sound, {suffix}": lambda f, s=suffix, r=run_in_s: whole(
        f / f"a.{s}", [2 + time_s for time_s in STEPS], r, sound=sound(2.5))
       for suffix, run_in_s in (("mp4", 0.0), ("mkv", 0.0), ("ts", RUN_IN_S), ("flv", RUN_IN_S))},
    "pictures 8 s after the sound, ts": lambda f: whole(f / "a.ts", [8 + time_s for time_s in STEPS], RUN_IN_S,
                                                        sound=sound(8.5)),
    **{f"sound that begins late, {suffix}": lambda f, s=suffix: whole(
        f / f"a.{s}", STEPS, sound=sound(0.3), sound_start_s=0.25) for suffix in ("mp4", "mkv", "ts", "flv")},
    "pictures before zero, mkv": lambda f: before_zero(f / "a.mkv"),
    **{f"two pictures 0.1 ms apart, {suffix}": lambda f, s=suffix: whole(
        f / f"a.{s}", [0.0, 0.04, 0.08, 0.0801, 0.12, 0.16]) for suffix in ("mp4", "ts")},
    **{f"begins at 10 h, {suffix}": lambda f, s=suffix: whole(
        f / f"a.{s}", [36_000 + time_s for time_s in STEPS], -36_000) for suffix in ("ts", "mkv", "mp4", "mov")},
    **{f"begins {before_s:g} s before the clock turns over, {name}": lambda f, b=before_s, n=name: whole(
        f / n, [4 * time_s for time_s in STEPS], container_options={"output_ts_offset": f"{WRAP_S - 1.4 - b:.4f}"})
       for before_s, name in ((0.2, "a.ts"), (1.0, "a.ts"), (0.2, "a.m2ts"))},
    "passes 26.5 h, ts": lambda f: whole(f / "a.ts", [12.0 * i for i in range(12)],
                                         container_options={"output_ts_offset": f"{WRAP_S - 1.4 - 100:.4f}"}),
    **{f"variable rate with B-frames, {suffix}": lambda f, s=suffix: whole(
        f / f"a.{s}", [0, 0.033, 0.1, 0.5, 0.52, 0.7, 1.5, 1.54, 1.6, 1.64]) for suffix in ("mp4", "mkv", "ts", "flv")},
    "very long distance of whole pictures, mp4": lambda f: whole(
        f / "a.mp4", [i / 25 for i in range(90)], options={**REORDERED, "g": "600", "keyint_min": "600"}),
    "no whole picture first, ts": lambda f: piece(f / "a.ts", 7, 12, 0.12, "libx264", OPEN),
    "no whole picture first, mkv": lambda f: piece(f / "a.mkv", 7, 12, 0.12, "libx264", OPEN),
    "no whole picture first, mp4": lambda f: piece(f / "a.mp4", 7, 12, 0.12, "libx264", OPEN),
    "open groups of pictures, ts": lambda f: whole(f / "a.ts", [i / 25 for i in range(24)], options=OPEN),
    "lines of two fields, ts": lambda f: whole(f / "a.ts", STEPS, options={**REORDERED, "x264-params": "tff=1"}),
    "lines of two fields, mkv": lambda f: whole(f / "a.mkv", STEPS, options={**REORDERED, "x264-params": "bff=1"}),
    **{f"{pixels} {width}x{height}, {suffix}": lambda f, s=suffix, p=pixels, w=width, h=height: whole(
        f / f"a.{s}", STEPS, pixel_format=p, size=(w, h))
       for pixels, width, height, suffix in (
           ("yuv444p", 17, 33, "mp4"), ("yuv444p", 1, 1, "mkv"), ("yuv422p", 64, 48, "mp4"),
           ("yuv420p10le", 64, 48, "mp4"), ("yuv422p10le", 64, 48, "mkv"), ("yuv444p10le", 64, 48, "mov"))},
}
# those whose encoders take longer
SLOW_KINDS: dict[str, Callable[[Path], Odd]] = {
    "no whole picture first, HEVC ts": lambda f: piece(f / "a.ts", 7, 12, 0.12, "libx265", OPEN_HEVC),
    "no whole picture first, HEVC mkv": lambda f: piece(f / "a.mkv", 7, 12, 0.12, "libx265", OPEN_HEVC),
    "leading pictures without what they need, HEVC mp4": lambda f: piece(f / "a.mp4", 4, 6, 0.0, "libx265", OPEN_HEVC),
    "leading pictures, HEVC ts": lambda f: whole(f / "a.ts", [i / 25 for i in range(24)], codec="libx265",
                                                 options=OPEN_HEVC),
    "variable rate with B-frames, HEVC mkv": lambda f: whole(
        f / "a.mkv", [0, 0.033, 0.1, 0.5, 0.52, 0.7, 1.5, 1.54, 1.6, 3.0], codec="libx265", options=HEVC),
    "edit that cuts both among B-frames, HEVC mov": lambda f: edited(
        f / "a.mov", [(0.2, 0.2)], range(5, 10), codec="libx265", options=HEVC),
    "pictures with alpha, VP9 webm": lambda f: whole(f / "a.webm", STEPS, codec="libvpx-vp9", pixel_format="yuva420p",
                                                     options={"cpu-used": "8"}),
    "two fields, MPEG-2 mpg": lambda f: whole(f / "a.mpg", STEPS, codec="mpeg2video",
                                              options={"flags": "+ilme+ildct", "q": "2", "bf": "2"}),
    "turns over, MPEG-2 mpg": lambda f: whole(
        f / "a.mpg", STEPS, codec="mpeg2video", options={"q": "2", "bf": "2"},
        container_options={"output_ts_offset": f"{WRAP_S - 0.7:.4f}"}),
}
RATES = [Fraction(1), Fraction(5), Fraction(25, 2), Fraction(24_000, 1001), Fraction(24), Fraction(25),
         Fraction(30_000, 1001), Fraction(50), Fraction(60_000, 1001), Fraction(120), Fraction(240)]
