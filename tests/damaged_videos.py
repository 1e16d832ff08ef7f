"""A folder of small videos as strangers send them: good ones, damaged ones of every kind, and what is known of each.

Everything comes from one seed. Damage is done to bytes of whole files that PyAV wrote, so that each kind of container
is damaged in the same ways.
"""

from __future__ import annotations

import os
import struct
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import av
import numpy as np
from conftest import write_video

GOOD, FAILS, EITHER = "good", "must fail", "either"
SIZE = (64, 48)  # width, height
RATE_HZ = 16_000
_SUFFIXES = ("mp4", "front.mp4", "parts.mp4", "mov", "mkv", "webm", "avi", "ts")


@dataclass(frozen=True)
class Case:
    """One file.

    Args:
        path: in the folder.
        known: whether a clip of it, pictures with sound, must come out.
        seconds: of good ones, how long it is.
        alone: whether its pictures must come out where its sound isn't wanted; None: as ``known``.
    """

    path: str
    known: str
    seconds: float | None = None
    alone: str | None = None

    @property
    def pictures(self) -> str:
        return self.alone or self.known


def write_corpus(folder: Path, seed: int = 0, everything: bool = False) -> list[Case]:
    """Fill ``folder`` with some three hundred of them, good ones and damaged ones in turn ⇒ what is there.

    Args:
        folder: made where it is missing.
        seed: of the damage.
        everything: with those of more_damaged_videos.py, more than a thousand in all.
    """
    folder.mkdir(parents=True, exist_ok=True)
    rng = np.random.default_rng(seed)
    whole = {suffix: _whole(folder, suffix, rng) for suffix in _SUFFIXES}
    cases = [Case(f"whole.{suffix}", GOOD, 1.0) for suffix in _SUFFIXES]
    writers: tuple[Callable[..., Iterator[Case]], ...] = (
        _truncated, _flipped, _moved, _other_things, _half_videos, _patched, _odd_pictures, _odd_times, _named)
    for write in writers:
        cases += write(folder, whole, rng)
    cases += _special(folder, whole)
    if everything:
        from more_damaged_videos import write_more

        cases += write_more(folder, whole, rng)
    paths = [case.path for case in cases]
    assert len(set(paths)) == len(paths)
    return cases


def noise(seconds: float, rng: np.random.Generator) -> np.ndarray:
    return rng.uniform(-0.3, 0.3, round(seconds * RATE_HZ))


def textured(rng: np.random.Generator, size: tuple[int, int] = SIZE) -> Callable[[int], np.ndarray]:
    """A picture that moves, so that most bytes of its stream matter."""
    texture = rng.integers(0, 255, (size[1], size[0], 3), np.uint8)
    return lambda i: np.roll(texture, 2 * i, axis=1)


def _whole(folder: Path, suffix: str, rng: np.random.Generator) -> bytes:
    """One second with sound ⇒ its bytes. front.mp4: its index stands before the data; parts.mp4: it is fragmented."""
    codecs = {"webm": ("libvpx-vp9", "libopus"), "avi": ("mpeg4", "pcm_s16le")}
    codec, sound_codec = codecs.get(suffix, ("libx264", "aac"))
    path = folder / f"whole.{suffix}"
    write_video(path, size=SIZE, picture=textured(rng), sound=noise(1.0, rng), codec=codec, sound_codec=sound_codec)
    flags = {"front.mp4": "faststart", "parts.mp4": "frag_keyframe+empty_moov"}.get(suffix)
    if flags:
        _remux(path, path, options={"movflags": flags})
    return path.read_bytes()


def _remux(source: Path, target: Path, keep: Callable[[av.Packet], bool] = lambda packet: True,
           options: dict[str, str] | None = None) -> None:
    """Copy packets into another container, those that ``keep`` lets through."""
    beside = target.with_name(f"new.{target.name}")
    with av.open(str(source)) as read, av.open(str(beside), "w", options=options or {}) as written:
        streams = [written.add_stream_from_template(stream) for stream in read.streams]
        for packet in read.demux():
            if packet.dts is not None and keep(packet):
                packet.stream = streams[packet.stream.index]
                written.mux(packet)
    beside.replace(target)


# --- bytes lost or changed --------------------------------------------------------------------------------------------

def _truncated(folder: Path, whole: dict[str, bytes], rng: np.random.Generator) -> Iterator[Case]:
    for suffix, data in whole.items():
        # without the index at their end nobody knows where pictures are
        known = FAILS if suffix in ("mp4", "mov") else EITHER
        for share in (0.02, 0.2, 0.4, 0.6, 0.8):
            name = f"cut {share}.{suffix}"
            (folder / name).write_bytes(data[:round(share * len(data))])
            yield Case(name, FAILS if share == 0.02 else known)
        for count in (1, 200):
            name = f"cut -{count}.{suffix}"
            (folder / name).write_bytes(data[:-count])
            yield Case(name, EITHER)


def _flipped(folder: Path, whole: dict[str, bytes], rng: np.random.Generator) -> Iterator[Case]:
    for suffix, data in whole.items():
        for place, first, last in (("head", 0, 1500), ("data", 1500, len(data) - 1500), ("tail", -1500, 0)):
            for bits in (1, 10, 1000):
                damaged = np.frombuffer(data, np.uint8).copy()
                at = rng.integers(first, last, bits)
                np.bitwise_xor.at(damaged, at, (1 << rng.integers(0, 8, bits)).astype(np.uint8))
                name = f"{bits} bits of {place}.{suffix}"
                (folder / name).write_bytes(damaged.tobytes())
                yield Case(name, EITHER)


def _moved(folder: Path, whole: dict[str, bytes], rng: np.random.Generator) -> Iterator[Case]:
    for suffix, data in whole.items():
        length = 700
        a, b = sorted(int(at) for at in rng.choice(len(data) // length - 1, 2, replace=False) * length + 100)
        first, second = data[a:a + length], data[b:b + length]
        versions = {
            "zeroed": data[:a] + bytes(length) + data[a + length:],
            "head zeroed": bytes(300) + data[300:],
            "swapped": data[:a] + second + data[a + length:b] + first + data[b + length:],
            "cut out": data[:a] + data[a + length:],
            "twice": data + data,
        }
        for what, damaged in versions.items():
            name = f"{what}.{suffix}"
            (folder / name).write_bytes(damaged)
            yield Case(name, EITHER)


# --- no videos --------------------------------------------------------------------------------------------------------

def _other_things(folder: Path, whole: dict[str, bytes], rng: np.random.Generator) -> Iterator[Case]:
    """Other kinds of file under a video's name, and playlists, which could name any file."""
    contents = {
        "empty": b"", "one byte": b"\0", "zeros": bytes(20_000), "text": b"a dog barks\n" * 400,
        "page": b"<!DOCTYPE html><html><head><title>404</title></head><body>Not found</body></html>" * 20,
        "json": b'{"error": {"code": 403, "message": "Video unavailable"}}',
        "zip": b"PK\x03\x04\x14\0\0\0\x08\0" + rng.bytes(3000), "elf": b"\x7fELF\x02\x01\x01\0" + rng.bytes(3000),
        "gzip": b"\x1f\x8b\x08\0" + rng.bytes(3000), "jpg": b"\xff\xd8\xff\xe0\x00\x10JFIF\0" + rng.bytes(3000),
        "random": rng.bytes(20_000), "ftyp": whole["mp4"][:32], "mkv's head": whole["mkv"][:60],
        "riff": whole["avi"][:12], "ts packet": whole["ts"][:188],
        "mp4 without data": whole["front.mp4"][:whole["front.mp4"].index(b"mdat") - 4],
        "m3u8": b"#EXTM3U\n#EXT-X-TARGETDURATION:1\n#EXTINF:1,\nwhole.ts\n#EXT-X-ENDLIST\n",
        "concat": b"ffconcat version 1.0\nfile whole.ts\nfile whole.ts\n",
        "mpd": b'<?xml version="1.0"?><MPD xmlns="urn:mpeg:dash:schema:mpd:2011" type="static"></MPD>',
        "sdp": b"v=0\no=- 0 0 IN IP4 127.0.0.1\ns=x\nc=IN IP4 127.0.0.1\nm=video 5004 RTP/AVP 96\n",
    }
    for what, content in contents.items():
        (folder / f"{what}.mp4").write_bytes(content)
        yield Case(f"{what}.mp4", FAILS)


def _special(folder: Path, whole: dict[str, bytes]) -> list[Case]:
    """What a path can lead to besides a file."""
    (folder / "folder.mp4").mkdir()
    os.mkfifo(folder / "fifo.mp4")
    links = {"loop.mp4": "loop.mp4", "nowhere.mp4": "missing", "device.mp4": "/dev/zero", "null.mp4": "/dev/null"}
    for name, target in links.items():
        (folder / name).symlink_to(target)
    (folder / "link.mp4").symlink_to("whole.mp4")
    cases = [Case(name, FAILS) for name in ("folder.mp4", "fifo.mp4", *links, "missing.mp4")]
    cases += [Case("whole.mp4/inside.mp4", FAILS), Case(f"{'long' * 100}.mp4", FAILS), Case("link.mp4", GOOD, 1.0)]
    if os.geteuid():  # root reads everything
        (folder / "secret.mp4").write_bytes(whole["mp4"])
        (folder / "secret.mp4").chmod(0)
        cases.append(Case("secret.mp4", FAILS))
    return cases


def _named(folder: Path, whole: dict[str, bytes], rng: np.random.Generator) -> Iterator[Case]:
    """Good videos whose names a careless program trips over."""
    for name in ("a b.mp4", "it's \"so\".mp4", "été 日本 🐕.mp4", "-i.mp4", "%03d.mp4", "http:x.mp4", "a#b?c=d&e.mp4",
                 "a,b;c.mp4", "$HOME `x` \\.mp4", "*.mp4", "line\nfeed.mp4", "none.at.all", "suffix"):
        (folder / name).write_bytes(whole["mp4"])
        yield Case(name, GOOD, 1.0)
    for suffix, other in (("mkv", "mp4"), ("webm", "ts"), ("mp4", "avi"), ("ts", "mov")):
        (folder / f"{suffix} in truth.{other}").write_bytes(whole[suffix])
        yield Case(f"{suffix} in truth.{other}", GOOD, 1.0)


# --- whole, but lacking something, or claiming too much ---------------------------------------------------------------

def _half_videos(folder: Path, whole: dict[str, bytes], rng: np.random.Generator) -> Iterator[Case]:
    for suffix in ("mp4", "mkv", "ts"):
        write_video(folder / f"no sound track.{suffix}", size=SIZE)
        yield Case(f"no sound track.{suffix}", FAILS, alone=GOOD)
        for what, kind in (("pictures", "video"), ("sound", "audio")):
            _remux(folder / f"whole.{suffix}", folder / f"no packet of {what}.{suffix}",
                   lambda packet: packet.stream.type != kind)
            yield Case(f"no packet of {what}.{suffix}", FAILS, alone=GOOD if what == "sound" else FAILS)
        for what, seconds, start_s in (("short", 0.4, 0.0), ("long", 3.0, 0.0), ("late", 0.5, 0.5)):
            write_video(folder / f"{what} sound.{suffix}", size=SIZE, sound=noise(seconds, rng), sound_start_s=start_s)
            yield Case(f"{what} sound.{suffix}", GOOD, 1.0)
    stranger = bytearray(whole["ts"])  # its last packet of sound claims to be of a stream that nobody announced
    sound = [at for at in range(0, len(stranger), 188) if stranger[at + 1] & 0x5f == 0x41 and stranger[at + 2] == 1]
    stranger[sound[-1] + 2] = 0xaa
    (folder / "stream begins midway.ts").write_bytes(stranger)
    yield Case("stream begins midway.ts", GOOD, 1.0)
    with av.open(str(folder / "sound only.mp4"), "w") as container:
        stream = container.add_stream("aac", rate=RATE_HZ, layout="mono")
        block = av.AudioFrame.from_ndarray(noise(1.0, rng)[None].astype(np.float32), format="fltp", layout="mono")
        block.sample_rate = RATE_HZ
        container.mux(stream.encode(block))
        container.mux(stream.encode(None))
    yield Case("sound only.mp4", FAILS)


# (atom, which of that name, bytes after the name, format, values)
_ATOMS: tuple[tuple[str, int, int, str, tuple[int, ...]], ...] = (
    ("mvhd", 0, 12, ">I", (0, 2 ** 32 - 1)), ("mvhd", 0, 16, ">I", (2 ** 32 - 1,)),
    ("tkhd", 0, 76, ">II", (30_000 << 16,)), ("avc1", 0, 24, ">HH", (0, 30_000, 65_535)),
    ("mdhd", 0, 12, ">I", (0, 1, 2 ** 32 - 1)), ("mdhd", 0, 16, ">I", (2 ** 32 - 1,)),
    ("mdhd", 1, 12, ">I", (0, 1, 2 ** 32 - 1)),
    ("stts", 0, 12, ">I", (0, 1, 2 ** 30, 2 ** 32 - 1)), ("stts", 0, 4, ">I", (0, 2 ** 32 - 1)),
    ("stts", 0, 8, ">I", (0, 2 ** 31)), ("stts", 1, 12, ">I", (0, 2 ** 30)),
    ("mp4a", 0, 16, ">H", (0, 255, 65_535)), ("mp4a", 0, 24, ">I", (0, 1 << 16, 2 ** 32 - 1)),
    ("stsz", 0, 8, ">I", (0, 2 ** 32 - 1)), ("stsz", 0, 4, ">I", (1, 2 ** 31)), ("stsz", 1, 12, ">I", (2 ** 32 - 1,)),
    ("stco", 0, 8, ">I", (0, 2 ** 32 - 1)), ("stsc", 0, 12, ">I", (0, 2 ** 32 - 1)),
    ("elst", 0, 8, ">I", (0, 2 ** 32 - 1)), ("elst", 0, 12, ">i", (-1, 2 ** 31 - 1)),
    ("hdlr", 0, 8, ">4s", ()), ("avcC", 0, 0, ">I", (0, 2 ** 32 - 1)), ("esds", 0, 4, ">I", (0, 2 ** 32 - 1)),
    ("moov", 0, -4, ">I", (0, 2 ** 32 - 1)), ("trak", 0, -4, ">I", (0, 9, 2 ** 31)), ("mdat", 0, -4, ">I", (0, 1)),
)


def _patched(folder: Path, whole: dict[str, bytes], rng: np.random.Generator) -> Iterator[Case]:
    """One number of a header is absurd: sizes, rates, durations, channels, places."""
    for atom, which, offset, form, values in _ATOMS:
        data = whole["front.mp4"]
        at = -1
        for _ in range(which + 1):
            at = data.index(atom.encode(), at + 1)
        for value in values:
            new = struct.pack(form, *([value] * (len(form) - 1)))
            place = at + 4 + offset if offset >= 0 else at + offset
            name = f"{atom} {which} {offset} {value}.mp4"
            (folder / name).write_bytes(data[:place] + new + data[place + len(new):])
            yield Case(name, EITHER)
    others = {
        "mkv": ((b"\x2a\xd7\xb1\x83", 4, (b"\0\0\0", b"\xff\xff\xff")),  # nanoseconds a tick
                (b"\xb0\x81\x40", 2, (b"\0", b"\x01", b"\xff")),  # width
                (b"\x9f\x81\x01", 2, (b"\0", b"\xff")),  # channels
                (b"\xb5\x88", 2, (bytes(8), struct.pack(">d", 1.0), struct.pack(">d", 1e300)))),  # samples a second
        "avi": ((b"avih", 8, (bytes(4), b"\xff" * 4)), (b"vids", 20, (bytes(4), b"\xff" * 4)),
                (b"vids", 24, (bytes(4), b"\xff" * 4)), (b"auds", 24, (bytes(4), b"\x01\0\0\0", b"\xff" * 4)),
                (b"strf", 12, (b"\x30\x75\0\0\x30\x75\0\0",))),
    }
    for suffix, patches in others.items():
        for number, (mark, offset, contents) in enumerate(patches):
            place = whole[suffix].index(mark) + offset
            for new in contents:
                name = f"patch {number} {new.hex()}.{suffix}"
                (folder / name).write_bytes(whole[suffix][:place] + new + whole[suffix][place + len(new):])
                yield Case(name, EITHER)


def _odd_pictures(folder: Path, whole: dict[str, bytes], rng: np.random.Generator) -> Iterator[Case]:
    for width, height in ((1, 1), (2, 2), (63, 47), (1, 300), (500, 2)):
        name = f"{width}x{height}.mp4"
        write_video(folder / name, size=(width, height), sound=noise(1.0, rng))
        yield Case(name, GOOD, 1.0)
    for width, height in ((8193, 16), (16, 8194)):
        name = f"{width}x{height}.mp4"
        write_video(folder / name, size=(width, height), times_s=[0.0, 0.04], sound=noise(0.1, rng))
        yield Case(name, FAILS)
    write_video(folder / "8192x8192.mp4", size=(8192, 8192), times_s=[0.0], sound=noise(0.1, rng))
    yield Case("8192x8192.mp4", EITHER)
    for what, size in (("smaller", (32, 24)), ("larger", (640, 480)), ("upright", (48, 64)), ("absurd", (8200, 16))):
        second = folder / "second.ts"
        write_video(second, size=size, times_s=1.0 + np.arange(10) / 25)
        (folder / f"{what} halfway.ts").write_bytes(whole["ts"] + second.read_bytes())
        second.unlink()
        yield Case(f"{what} halfway.ts", *((FAILS, None, EITHER) if what == "absurd" else (GOOD, 1.4)))


def _odd_times(folder: Path, whole: dict[str, bytes], rng: np.random.Generator) -> Iterator[Case]:
    """Timestamps that go back, start anywhere, or leave gaps from seconds to years."""
    steps = np.arange(10) / 25
    times = {  # and of which containers is known what must come of it
        "gap of 5 s": (np.append(steps, steps + 5), GOOD, ("mp4", "mkv", "ts")),
        # a clock of 33 bits turns over within 27 hours, and 32 bits of mp4 hold no gap of a day
        "gap of a day": (np.append(steps, 86_400), FAILS, ("mkv", "ts")),
        "gap of a year": (np.append(steps, 3e7), FAILS, ("mkv",)),
        "starts after a year": (steps + 3e7, FAILS, ("mkv",)),
        "starts before zero": (steps - 0.2, EITHER, ()),
        "bursts": (np.sort(steps % 0.1 + 1e-3 * np.arange(10)), EITHER, ()),
    }
    for suffix in ("mp4", "mkv", "ts"):
        for what, (at, known, where) in times.items():
            write_video(folder / f"{what}.{suffix}", size=SIZE, times_s=list(at), sound=noise(0.4, rng))
            yield Case(f"{what}.{suffix}", known if suffix in where else EITHER, 5.4 if known == GOOD else None)
    (folder / "back to zero.ts").write_bytes(whole["ts"] * 3)
    yield Case("back to zero.ts", EITHER)
