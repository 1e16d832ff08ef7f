"""What a decoding child answers: a JSON header, after its length in four bytes, then the plain bytes of each array that
the header announces. The child has opened a stranger's file, so what it says is received in bounded memory, and is
compared with what was asked before it is believed.
"""

from __future__ import annotations

import json
import socket
import time
from dataclasses import dataclass
from typing import Any, Sequence

import numpy as np

from ..clip import ClipSpec
from .fit import Fit
from .picture_reader import MAX_SIDE_PIXELS

_LENGTH_BYTES = 4  # of a header's length, most significant byte first
_MAX_HEADER_BYTES = 1 << 16
_MAX_MESSAGE_CHARACTERS = 5_000  # twelve bytes each at most in JSON


class Nonsense(Exception):
    """An answer that doesn't fit what was asked."""


def send_answer(answers: socket.socket, kind: str, arrays: Sequence[np.ndarray] = (), **claims: Any) -> None:
    """The child's side. A ``message`` is cut to its last characters, where a traceback says what was wrong."""
    if "message" in claims:
        claims["message"] = claims["message"][-_MAX_MESSAGE_CHARACTERS:]
    header = json.dumps({"kind": kind, **claims}).encode()
    answers.sendall(len(header).to_bytes(_LENGTH_BYTES, "big") + header)
    for array in arrays:
        answers.sendall(_bytes_of(array))


class Incoming:
    """One answer on its way. Raises TimeoutError at ``deadline_s`` (of the monotonic clock), EOFError where the child
    is gone."""

    def __init__(self, answers: socket.socket, deadline_s: float):
        self.answers, self.deadline_s = answers, deadline_s

    def header(self) -> dict[str, Any]:
        length = int.from_bytes(self._bytes(_LENGTH_BYTES), "big")
        if length > _MAX_HEADER_BYTES:
            raise Nonsense(f"a header of {length} bytes")
        try:
            header = json.loads(self._bytes(length))
        except (ValueError, RecursionError) as error:
            raise Nonsense(f"a header that can't be read: {error}") from error
        if not isinstance(header, dict):
            raise Nonsense(f"a header that is no object: {header!r:.80}")
        return header

    def fill(self, array: np.ndarray) -> None:
        """Receive an array's bytes into it."""
        self._fill(_bytes_of(array))

    def _bytes(self, length: int) -> bytes:
        data = bytearray(length)
        self._fill(memoryview(data))
        return bytes(data)

    def _fill(self, buffer: memoryview) -> None:
        while buffer:
            left_s = self.deadline_s - time.monotonic()
            if left_s <= 0:
                raise TimeoutError
            self.answers.settimeout(left_s)
            received = self.answers.recv_into(buffer)
            if not received:
                raise EOFError
            buffer = buffer[received:]


def _bytes_of(array: np.ndarray) -> memoryview:
    return array.reshape(-1).view(np.uint8).data


@dataclass
class Claims:
    """What was asked of a clip, and how much of it came: the measure of every claim in a header.

    chunk_frames and duration_s may be None, as they may in a request; then ``memory_mb``, which the child can't have
    more of, bounds a chunk.
    """

    fits: Sequence[Fit]  # different ones
    fps: float
    duration_s: float | None
    samples_per_s: int | None  # None: no sound was asked for
    chunk_frames: int | None
    memory_mb: int

    def __post_init__(self) -> None:
        # any legal duration does here: only the rule for stretches is used
        self.spec = ClipSpec(duration_s=1.0, fps=self.fps, latent_stride_frames=1)
        self.frames = 0
        self.sizes: list[tuple[int, int]] | None = None

    def shapes(self, header: dict[str, Any]) -> list[tuple[int, int, int, int]]:
        """A chunk's header ⇒ the shape (n, h, w, 3) of the array of each fit."""
        claimed = header.get("shapes")
        if not (isinstance(claimed, list) and len(claimed) == len(self.fits) and all(
                isinstance(shape, list) and len(shape) == 3 and all(type(side) is int for side in shape)
                for shape in claimed)):
            raise Nonsense(f"shapes {claimed!r:.80}")
        count, sizes = claimed[0][0], [(height, width) for _, height, width in claimed]
        most = self.chunk_frames or (self.memory_mb << 20)
        if any(shape[0] != count for shape in claimed) or not 1 <= count <= most:
            raise Nonsense(f"chunks of {[shape[0] for shape in claimed]} frames")
        # what a fit made is left as it is by that fit
        if self.sizes not in (None, sizes) or not all(
                1 <= min(size) and max(size) <= MAX_SIDE_PIXELS and fit.kept(*fit.scaled(*size)) == size
                for size, fit in zip(sizes, self.fits)):
            raise Nonsense(f"pictures of {sizes} pixels for {list(self.fits)}")
        if 3 * count * sum(height * width for height, width in sizes) > self.memory_mb << 20:
            raise Nonsense(f"{count} frames of {sizes} pixels out of {self.memory_mb} MB")
        self.sizes, self.frames = sizes, self.frames + count
        if self.duration_s is not None and self.frames > self.spec.frames_of(self.duration_s):
            raise Nonsense(f"{self.frames} frames for {self.duration_s:g} s")
        return [(count, height, width, 3) for height, width in sizes]

    def end(self, header: dict[str, Any]) -> tuple[float, int | None]:
        """The last header ⇒ the clip's duration in seconds and the samples of its sound, None without."""
        duration_s, samples = header.get("duration_s"), header.get("samples")
        longest_s = float("inf") if self.duration_s is None else self.duration_s
        if not isinstance(duration_s, float) or not 0 < duration_s <= longest_s or duration_s == float("inf") or (
                self.spec.frames_of(duration_s) != self.frames):
            raise Nonsense(f"a duration of {duration_s!r:.80} s after {self.frames} frames")
        due = None if self.samples_per_s is None else round(duration_s * self.samples_per_s)
        if samples != due or type(samples) is not type(due):
            raise Nonsense(f"{samples!r:.80} samples for {duration_s:g} s")
        return duration_s, due
