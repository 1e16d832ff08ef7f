"""Media files opened in a child process with a limit on time and memory, so that a damaged file costs itself alone.

The child is this module run as a program. The parent asks for one chunk of a clip at a time, or for one of OPERATIONS,
pickled over a pipe. The child answers over a socket, without pickle, because it has opened an untrusted file: a JSON
header after its length in four bytes, then the plain bytes of each array that the header announces. Kinds of answer:
``chunk`` (shapes and arrays); ``end`` (duration and sound), after the last chunk; ``value``, an operation's result;
``refused``, ``system`` (an OSError), ``memory`` or ``fault`` in place of any. The parent receives answers in bounded
memory and compares each header with the request before it allocates.
"""

from __future__ import annotations

import json
import os
import resource
import signal
import socket
import sys
import time
import traceback
import warnings
from dataclasses import dataclass, is_dataclass
from multiprocessing.connection import Connection
from typing import Any, Iterator, Sequence

import numpy as np

from ..clip import FrameClock
from ..runtime.errors import InputError
from .muxing import picture_duration_s, plan_mux, write_mux
from .picture_reader import MAX_SIDE_PIXELS, Fit
from .video import CHUNK_FRAMES, ClipStream, probe, stream_clip

_LENGTH_BYTES = 4  # of a header's length, most significant byte first
_MAX_HEADER_BYTES = 1 << 16
_MAX_MESSAGE_CHARACTERS = 5_000  # twelve bytes each at most in JSON


class ProtocolError(Exception):
    """An answer that doesn't fit the request."""


def send_answer(answers: socket.socket, kind: str, arrays: Sequence[np.ndarray] = (), **header_fields: Any) -> None:
    """Send one answer; the child's side.

    Args:
        answers: the child's end.
        kind: of answer.
        arrays: sent after the header.
        header_fields: the header's other fields. A ``message`` is cut to its last characters, where a traceback names
            the error.
    """
    if "message" in header_fields:
        header_fields["message"] = header_fields["message"][-_MAX_MESSAGE_CHARACTERS:]
    header = json.dumps({"kind": kind, **header_fields}, default=_plain).encode()
    answers.sendall(len(header).to_bytes(_LENGTH_BYTES, "big") + header)
    for array in arrays:
        answers.sendall(_bytes_of(array))


class AnswerReader:
    """Receives one answer; the parent's side. Its methods raise TimeoutError at ``deadline_s`` (of the monotonic
    clock), and EOFError when the child is gone."""

    def __init__(self, answers: socket.socket, deadline_s: float):
        self.answers, self.deadline_s = answers, deadline_s

    def header(self) -> dict[str, Any]:
        length = int.from_bytes(self._bytes(_LENGTH_BYTES), "big")
        if length > _MAX_HEADER_BYTES:
            raise ProtocolError(f"a header of {length} bytes")
        try:
            header = json.loads(self._bytes(length))
        except (ValueError, RecursionError) as error:
            raise ProtocolError(f"a header that can't be read: {error}") from error
        if not isinstance(header, dict):
            raise ProtocolError(f"a header that is no object: {header!r:.80}")
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
class ExpectedAnswers:
    """The limits of the answers to one request. It checks every header against the request and the answers before it.

    Args:
        fits: all different.
        fps: as in the request, like duration_s and chunk_frames.
        duration_s: None: to the end of the video.
        samples_per_s: None: without sound.
        chunk_frames: None: one chunk of all frames; then ``memory_mb``, the child's limit, bounds it.
        memory_mb: limit of a chunk.
    """

    fits: Sequence[Fit]
    fps: float
    duration_s: float | None
    samples_per_s: int | None
    chunk_frames: int | None
    memory_mb: int

    def __post_init__(self) -> None:
        self.clock = FrameClock(self.fps)
        self.frames = 0
        self.sizes: list[tuple[int, int]] | None = None

    def shapes(self, header: dict[str, Any]) -> list[tuple[int, int, int, int]]:
        """The shape (n, h, w, 3) of each fit's array, from a chunk's header. Raises ProtocolError."""
        claimed = header.get("shapes")
        if not (isinstance(claimed, list) and len(claimed) == len(self.fits) and all(
                isinstance(shape, list) and len(shape) == 3 and all(type(side) is int for side in shape)
                for shape in claimed)):
            raise ProtocolError(f"shapes {claimed!r:.80}")
        count, sizes = claimed[0][0], [(height, width) for _, height, width in claimed]
        most = self.chunk_frames or (self.memory_mb << 20)
        if any(shape[0] != count for shape in claimed) or not 1 <= count <= most:
            raise ProtocolError(f"chunks of {[shape[0] for shape in claimed]} frames")
        # a size is one that the fit can produce: fitting it again changes nothing
        if self.sizes not in (None, sizes) or not all(
                1 <= min(size) and max(size) <= MAX_SIDE_PIXELS and fit.kept(*fit.scaled(*size)) == size
                for size, fit in zip(sizes, self.fits)):
            raise ProtocolError(f"pictures of {sizes} pixels for {list(self.fits)}")
        if 3 * count * sum(height * width for height, width in sizes) > self.memory_mb << 20:
            raise ProtocolError(f"{count} frames of {sizes} pixels out of {self.memory_mb} MB")
        self.sizes, self.frames = sizes, self.frames + count
        if self.duration_s is not None and self.frames > self.clock.frames_of(self.duration_s):
            raise ProtocolError(f"{self.frames} frames for {self.duration_s:g} s")
        return [(count, height, width, 3) for height, width in sizes]

    def end(self, header: dict[str, Any]) -> tuple[float, int | None]:
        """The clip's duration in seconds, and the samples of its sound or None, from the last header. Raises
        ProtocolError."""
        duration_s, samples = header.get("duration_s"), header.get("samples")
        longest_s = float("inf") if self.duration_s is None else self.duration_s
        if not isinstance(duration_s, float) or not 0 < duration_s <= longest_s or duration_s == float("inf") or (
                self.clock.frames_of(duration_s) != self.frames):
            raise ProtocolError(f"a duration of {duration_s!r:.80} s after {self.frames} frames")
        expected = None if self.samples_per_s is None else round(duration_s * self.samples_per_s)
        if samples != expected or type(samples) is not type(expected):
            raise ProtocolError(f"{samples!r:.80} samples for {duration_s:g} s")
        return duration_s, expected


@dataclass(frozen=True)
class ClipRequest:
    """The arguments of :func:`vta_sam.media.video.stream_clip`, in a form that travels to a child process."""

    path: str
    fps: float
    fits: tuple[Fit, ...]
    want_audio: bool = True
    start_s: float = 0.0
    duration_s: float | None = None
    sample_rate_hz: int = 16_000
    chunk_frames: int | None = CHUNK_FRAMES
    sound: str | None = None


OPERATIONS = {operation.__name__: operation for operation in (probe, plan_mux, picture_duration_s, write_mux)}
_NOTES = 8  # warnings that travel with an answer


def serve(requests: Connection, answers: socket.socket, memory_mb: int, hwaccel: str | None = None) -> None:
    """The child's side: answer requests until the parent is gone.

    A request is (arguments of :func:`stream_clip`, seconds) for the first chunk of a clip, (None, seconds) for the
    next one, or ((name of an operation, its arguments), seconds).
    """
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is the parent's to handle
    limit_bytes = memory_mb << 20
    # drivers reserve far more addresses than they use
    memory = resource.RLIMIT_AS if hwaccel is None else resource.RLIMIT_DATA
    resource.setrlimit(memory, (limit_bytes, limit_bytes))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    notes: list[str] = []
    warnings.simplefilter("always", UserWarning)
    warnings.showwarning = lambda message, *_, **__: notes.append(str(message)[:500])
    stream: ClipStream | None = None
    chunks: Iterator[list[np.ndarray]] = iter(())
    while True:
        try:
            wanted, left_s = requests.recv()
        except (EOFError, ConnectionError):
            return
        # the alarm's default action ends the process, in library code too, should the parent have died meanwhile
        signal.setitimer(signal.ITIMER_REAL, 1.5 * left_s + 5.0)
        arrays: list[np.ndarray] = []
        answer: dict[str, Any]
        try:
            if wanted is not None:
                chunks = iter(())  # closes the stream of an unfinished clip
            if isinstance(wanted, tuple):
                name, arguments = wanted
                answer = {"kind": "value", "value": OPERATIONS[name](*arguments)}
            else:
                if wanted is not None:
                    stream = stream_clip(**wanted, hwaccel=hwaccel)
                    chunks = iter(stream)
                arrays, answer = _next_answer(stream, chunks)
        except InputError as error:
            answer = {"kind": "refused", "message": str(error), "errno": _errno_of(error)}
        except MemoryError:
            answer = {"kind": "memory"}
        except OSError as error:
            answer = {"kind": "system", "message": error.strerror or str(error), "errno": error.errno}
        except Exception:  # the parent raises it
            answer = {"kind": "fault", "message": traceback.format_exc()}
        signal.setitimer(signal.ITIMER_REAL, 0)
        try:
            send_answer(answers, arrays=arrays, notes=notes[:_NOTES], **answer)
        except ConnectionError:
            return
        notes.clear()


def _plain(value: Any) -> Any:
    """What JSON doesn't know of an operation's result: of a dataclass its fields, of a path its text."""
    return vars(value) if is_dataclass(value) else os.fspath(value)


def _errno_of(error: BaseException) -> int | None:
    """Of the system's error that caused it, such as a full disk; None: it has another cause."""
    cause = error.__cause__
    return getattr(cause, "errno", None) if isinstance(cause, OSError) else None


def _next_answer(stream: ClipStream | None, chunks: Iterator[list[np.ndarray]],
                 ) -> tuple[list[np.ndarray], dict[str, Any]]:
    chunk = next(chunks, None)
    assert stream is not None
    if chunk is not None:
        return chunk, {"kind": "chunk", "shapes": [frames.shape[:3] for frames in chunk]}
    sound = stream.waveform
    return [] if sound is None else [sound], {"kind": "end", "duration_s": float(stream.duration_s),
                                              "samples": None if sound is None else len(sound)}


if __name__ == "__main__":
    serve(Connection(int(sys.argv[1]), writable=False), socket.socket(fileno=int(sys.argv[2])), int(sys.argv[3]),
          sys.argv[4] or None)
