"""The greater part of the damaged videos: more containers and codecs, more seeds, and numbers in chosen atoms and
elements. Files are half a second long."""

from __future__ import annotations

import struct
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from conftest import write_video
from damaged_videos import EITHER, FAILS, GOOD, SIZE, Case, noise, textured

SECONDS = 0.6
_HEVC = {"preset": "ultrafast", "x265-params": "log-level=none:bframes=2:b-adapt=0:pools=1"}
_AV1 = {"preset": "13", "svtav1-params": "lp=1"}
# name ⇒ how it is written
_CONTAINERS: dict[str, dict[str, Any]] = {
    "hevc.mp4": {"codec": "libx265", "options": _HEVC}, "hevc.mkv": {"codec": "libx265", "options": _HEVC},
    "reordered.mp4": {"options": {"bf": "2", "b-adapt": "0", "g": "6"}},
    "reordered.mkv": {"options": {"bf": "2", "b-adapt": "0", "g": "6"}},
    "av1.mp4": {"codec": "libsvtav1", "options": _AV1}, "av1.mkv": {"codec": "libsvtav1", "options": _AV1},
    "vp8.webm": {"codec": "libvpx", "sound_codec": "libopus", "options": {"cpu-used": "8"}},
    "a.flv": {"codec": "flv1"}, "a.wmv": {"codec": "wmv2", "sound_codec": "pcm_s16le"},
    "a.mpg": {"codec": "mpeg2video", "sound_codec": "mp2", "options": {"bf": "2"}},
    "a.3gp": {"codec": "mpeg4"}, "a.mts": {}, "a.nut": {"codec": "mpeg4"},
    "a.mxf": {"codec": "mpeg2video", "sound_codec": "pcm_s16le", "sample_rate_hz": 48_000},
    "jpeg.mov": {"codec": "mjpeg", "sound_codec": "pcm_s16le", "pixel_format": "yuvj420p"},
    "ffv1.mkv": {"codec": "ffv1", "sound_codec": "pcm_s16le"},
    "a.ogv": {"codec": "libvpx", "sound_codec": "libopus", "options": {"cpu-used": "8"}},
    "a.gif": {"codec": "gif", "sound_codec": "", "pixel_format": "rgb8"},
    "a.ivf": {"codec": "libvpx-vp9", "sound_codec": "", "options": {"cpu-used": "8"}},
}


def write_more(folder: Path, whole: dict[str, bytes], rng: np.random.Generator) -> list[Case]:
    """Add the files to a folder ⇒ their cases. whole: undamaged files that lie there already, by suffix."""
    cases, files = [], dict(whole)
    for name, settings in _CONTAINERS.items():
        sound_codec = settings.get("sound_codec", "aac")
        rate_hz = settings.get("sample_rate_hz", 48_000 if sound_codec == "libopus" else 16_000)
        sound = {"sound": noise(SECONDS * rate_hz / 16_000, rng), "sound_codec": sound_codec, "sample_rate_hz": rate_hz}
        settings = {key: value for key, value in settings.items() if key not in sound}
        path = write_video(folder / f"whole {name}", size=SIZE, picture=textured(rng), duration_s=SECONDS, **settings,
                           **(sound if sound_codec else {}))
        cases.append(Case(path.name, GOOD if sound_codec else FAILS, alone=GOOD))
        files[name] = path.read_bytes()
    silent = {name for name, settings in _CONTAINERS.items() if settings.get("sound_codec") == ""}
    for name, data in files.items():
        for what, damaged in _damage(data, rng):
            known = FAILS if name in silent else EITHER
            cases.append(_written(folder / f"{what} of {name}", damaged, known))
    for name in ("front.mp4", "hevc.mp4", "av1.mp4", "parts.mp4"):
        cases += [_written(folder / f"{what} of {name}", damaged) for what, damaged in _atoms(files[name], rng)]
    for name in ("mkv", "webm", "reordered.mkv"):
        cases += [_written(folder / f"{what} of {name}", damaged) for what, damaged in _elements(files[name], rng)]
    return cases


def _written(path: Path, data: bytes, known: str = EITHER) -> Case:
    path.write_bytes(data)
    return Case(path.name, known, alone=EITHER)


def _damage(data: bytes, rng: np.random.Generator) -> Iterator[tuple[str, bytes]]:
    """Bits turned, pieces lost, moved, doubled and overwritten, at places of the generator's choice."""
    places = {"head": (0, min(1500, len(data) // 3)), "middle": (len(data) // 3, 2 * len(data) // 3),
              "end": (max(0, len(data) - 1500), len(data))}
    for place, (first, last) in places.items():
        for bits in (1, 8, 60, 600):
            damaged = np.frombuffer(data, np.uint8).copy()
            at = rng.integers(first, last, bits)
            np.bitwise_xor.at(damaged, at, (1 << rng.integers(0, 8, bits)).astype(np.uint8))
            yield f"{bits} turned bits of the {place}", damaged.tobytes()
    for part in range(3):
        yield f"cut {part}", data[:int(rng.integers(1, len(data)))]
    a, b, c = sorted(int(at) for at in rng.integers(0, len(data), 3))
    yield "lost piece", data[:a] + data[b:]
    yield "exchanged pieces", data[:a] + data[b:c] + data[a:b] + data[c:]
    yield "doubled piece", data[:b] + data[a:b] + data[b:]
    yield "overwritten piece", data[:a] + rng.bytes(min(b - a, 4000)) + data[a + min(b - a, 4000):]
    yield "emptied piece", data[:a] + bytes(b - a) + data[b:]
    yield "lost start", data[a:]


_TABLES = {b"stts": 4, b"ctts": 4, b"stsz": 8, b"stco": 4, b"stsc": 4, b"stss": 4, b"elst": 4, b"trun": 4, b"dref": 4,
           b"stsd": 4}  # atom ⇒ where the count of its entries stands
_HEADERS = (b"tkhd", b"mdhd", b"mvhd", b"hdlr", b"avcC", b"hvcC", b"av1C", b"esds", b"tfhd", b"tfdt", b"trex", b"mfhd",
            b"avc1", b"hev1", b"av01", b"mp4a")


def _atoms(data: bytes, rng: np.random.Generator) -> Iterator[tuple[str, bytes]]:
    """Counts that are huge, sizes that lie, and numbers of a table or header that are random, in atoms by name."""
    index = data.index(b"moov")
    for name in (*_TABLES, *_HEADERS):
        at, label = data.find(name, index), name.decode()
        if at < 0:
            continue
        if name in _TABLES:
            for count in (1 << 24, (1 << 32) - 1):
                yield f"{label} count {count}", _with(data, at + 4 + _TABLES[name], struct.pack(">I", count))
        yield f"{label} size", _with(data, at - 4, struct.pack(">I", int(rng.choice([0, 1, 9, 1 << 31]))))
        length = struct.unpack(">I", data[at - 4:at])[0] - 8
        place = at + 4 + int(rng.integers(0, max(1, length - 4)))
        yield f"{label} number", _with(data, place, rng.bytes(4))
        yield f"{label} all ones", _with(data, at + 8, b"\xff" * max(0, length - 4))


# by EBML's identifiers
_ELEMENTS = {"Segment": "18538067", "Info": "1549a966", "TimestampScale": "2ad7b1", "Duration": "4489",
             "Tracks": "1654ae6b", "CodecPrivate": "63a2", "Cluster": "1f43b675", "SeekHead": "114d9b74",
             "Cues": "1c53bb6b", "DefaultDuration": "23e383"}


def _elements(data: bytes, rng: np.random.Generator) -> Iterator[tuple[str, bytes]]:
    """Elements of Matroska with lying sizes, or other contents."""
    for label, identifier in _ELEMENTS.items():
        at = data.find(bytes.fromhex(identifier))
        if at < 0:
            continue
        size_at = at + len(identifier) // 2
        length = next(n for n in range(1, 9) if data[size_at] >> (8 - n) & 1)  # of the size itself
        unknown = (1 << 7 * length) - 1
        for what, value in (("small", int(rng.integers(0, 4))), ("large", unknown - int(rng.integers(0, 4)))):
            number = (value | 1 << 7 * length).to_bytes(length, "big")
            yield f"{label} size {what}", _with(data, size_at, number)
        yield f"{label} random", _with(data, size_at + length, rng.bytes(8))


def _with(data: bytes, place: int, new: bytes) -> bytes:
    return data[:place] + new + data[place + len(new):]
