"""Atoms of mp4 files changed by bytes: what PyAV doesn't write, as edit lists and what a sample's description holds."""

from __future__ import annotations

import struct
from collections.abc import Callable, Sequence
from pathlib import Path

# bytes between an atom's header and the atoms in it
_INNER = {b"moov": 0, b"trak": 0, b"edts": 0, b"mdia": 0, b"minf": 0, b"stbl": 0, b"stsd": 8, b"udta": 0,
          b"avc1": 78, b"hvc1": 78, b"hev1": 78, b"vp09": 78, b"av01": 78}


def change_atom(path: Path, names: str, change: Callable[[bytes], bytes], which: int = 0) -> Path:
    """Replace the content of an atom of a file whose index stands at its end. The sizes of what holds it follow.

    Args:
        path: of the file.
        names: from the outside, as "moov trak edts elst".
        change: content without its header ⇒ new content.
        which: of several of the first name but one, as of two tracks.
    """
    data = path.read_bytes()
    assert data.index(b"mdat") < data.index(b"moov"), "places of packets would be moved"
    path.write_bytes(_changed(data, [name.encode() for name in names.split()], change, which))
    return path


def _changed(data: bytes, names: Sequence[bytes], change: Callable[[bytes], bytes], which: int) -> bytes:
    found, at, parts = 0, 0, []
    for size, kind in iter(lambda: struct.unpack(">I4s", data[at:at + 8]) if at + 8 <= len(data) else None, None):
        content = data[at + 8:at + size]
        if kind == names[0]:
            if found == (which if kind == b"trak" else 0):
                if len(names) == 1:
                    content = change(content)
                else:
                    inner = _INNER[kind]
                    content = content[:inner] + _changed(content[inner:], names[1:], change, which)
            found += 1
        parts.append(struct.pack(">I4s", 8 + len(content), kind) + content)
        at += size
    assert found, f"no atom {names[0].decode()}"
    return b"".join(parts)


def set_edits(path: Path, edits: Sequence[tuple[float, float | None]]) -> Path:
    """Give the first track of a file an edit list.

    Args:
        path: of a file whose pictures are its first track.
        edits: (seconds that it lasts, first time in seconds of the pictures' clock; None: an empty edit).
    """
    data = path.read_bytes()
    ticks, media = (struct.unpack(">I", data[at + 16:at + 20])[0] for at in map(data.index, (b"mvhd", b"mdhd")))

    def content(before: bytes) -> bytes:
        delay = struct.unpack(">i", before[12:16])[0]  # of the first picture, where the order of decoding differs
        entries = ((round(length_s * ticks), -1 if start_s is None else delay + round(start_s * media))
                   for length_s, start_s in edits)
        return struct.pack(">II", 0, len(edits)) + b"".join(struct.pack(">IiI", *entry, 1 << 16) for entry in entries)

    return change_atom(path, "moov trak edts elst", content)


def add_to_sample_description(path: Path, codec: str, name: str, content: bytes) -> Path:
    """Put an atom into the description of the first track's samples.

    Args:
        path: of a file whose pictures are its first track.
        codec: its sample entry, as hvc1.
        name: of the new atom.
        content: of the new atom.
    """
    atom = struct.pack(">I4s", 8 + len(content), name.encode()) + content
    return change_atom(path, f"moov trak mdia minf stbl stsd {codec}", lambda before: before + atom)
