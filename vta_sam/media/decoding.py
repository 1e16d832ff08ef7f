"""Reading clips in a child process with a limit on time and memory, so that a damaged file costs one clip.

The child is this module run as a program. The parent asks for one chunk at a time, pickled over a pipe. The child
answers over a socket, without pickle, because it has opened an untrusted file: a JSON header after its length in four
bytes, then the plain bytes of each array that the header announces. Kinds of answer: ``chunk`` (shapes and arrays);
``end`` (duration and sound), after the last chunk; ``refused``, ``memory`` or ``fault`` in place of either. The parent
receives answers in bounded memory and compares each header with the request before it allocates.
"""

from __future__ import annotations

import json
import os
import resource
import signal
import socket
import subprocess
import sys
import time
import traceback
from dataclasses import dataclass
from multiprocessing.connection import Connection, Pipe
from pathlib import Path
from typing import Any, Iterator, Sequence

import numpy as np

from ..clip import FrameClock
from ..runtime.errors import InputError
from .picture_reader import MAX_SIDE_PIXELS, Fit
from .video import CHUNK_FRAMES, Chunks, ClipStream, stream_clip

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
    header = json.dumps({"kind": kind, **header_fields}).encode()
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


class GuardedReader:
    """One child process that reads clips. It is started when first needed, and again after it was killed. Close it, or
    use it as a context. Not for use by two threads at once.

    Args:
        limit_s: how long the child may work on a clip; time between a chunk and the request for the next isn't counted.
        memory_mb: address space that the child may use, in MiB.
        hwaccel: kind of device that decodes, as in conf/extract.yaml.
    """

    command: tuple[str, ...] = (sys.executable, "-m", "vta_sam.media.decoding")

    def __init__(self, limit_s: float = 60.0, memory_mb: int = 4096, hwaccel: str | None = None):
        self.limit_s, self.memory_mb, self.hwaccel = limit_s, memory_mb, hwaccel
        self.process: subprocess.Popen | None = None
        self.requests: Connection | None = None
        self.answers: socket.socket | None = None
        self.current: ExpectedAnswers | None = None  # of the clip under work
        self.killed = False

    def stream(self, request: ClipRequest) -> ClipStream:
        """The clip of a request, read while it is iterated. The next request ends it.

        Raises:
            InputError: while it is iterated; names the file and says that it can't be read, takes too long, needs too
                much memory, or crashes the decoder.
        """
        return ClipStream(self._chunks(request))

    def _chunks(self, request: ClipRequest) -> Chunks:
        fits = list(dict.fromkeys(request.fits))  # equal ones travel once
        arguments: dict[str, Any] | None = {**vars(request), "fits": fits}
        expected = self.current = ExpectedAnswers(
            fits, request.fps, request.duration_s, request.sample_rate_hz if request.want_audio else None,
            request.chunk_frames, self.memory_mb)
        left_s = self.limit_s
        while True:
            if self.current is not expected:
                raise RuntimeError(f"{request.path}: the process that decoded it was given another clip")
            began = time.monotonic()
            arrays, end = self._request(request.path, arguments, expected, left_s)
            left_s, arguments = left_s - (time.monotonic() - began), None
            if end is not None:
                return end
            fitted = dict(zip(fits, arrays))
            yield [fitted[fit] for fit in request.fits]

    def _request(self, path: str, arguments: dict[str, Any] | None, expected: ExpectedAnswers, left_s: float,
                 ) -> tuple[list[np.ndarray], tuple[np.ndarray | None, float] | None]:
        """Request the first chunk of a clip (by arguments of stream_clip) or the next one (None) ⇒ its arrays and None;
        after the last chunk, no arrays and (waveform, duration_s)."""
        try:
            requests, answers = self._connect()
            requests.send((arguments, left_s))
            reader = AnswerReader(answers, time.monotonic() + left_s)
            header = reader.header()
            kind = header.get("kind")
            if kind == "chunk":
                arrays = [np.empty(shape, np.uint8) for shape in expected.shapes(header)]
                for array in arrays:
                    reader.fill(array)
                return arrays, None
            if kind == "end":
                duration_s, samples = expected.end(header)
                waveform = None if samples is None else np.empty(samples, np.float32)
                if waveform is not None:
                    reader.fill(waveform)
                return [], (waveform, duration_s)
            message = str(header.get("message"))
        except TimeoutError:
            self.close()
            raise InputError(f"{path}: decoding took longer than {self.limit_s:g} s") from None
        except (EOFError, ConnectionError):
            status = self.close()
            raise InputError(f"{path}: the decoder crashed on it (exit status {status})") from None
        except ProtocolError as error:
            self.close()
            raise InputError(f"{path}: the decoder's process broke on it (it answers {error})") from None
        except BaseException:  # Ctrl-C, say: the answer may still come, and would be taken for that to the next request
            self.close()
            raise
        if kind == "refused":
            raise InputError(message)
        self.close()  # after a failed allocation the state of the decoder's libraries is undefined
        if kind == "memory":
            raise InputError(f"{path}: decoding needs more than {self.memory_mb} MB of memory")
        if kind == "fault":
            raise RuntimeError(f"reading {path} failed in the decoding process:\n{message}")
        raise InputError(f"{path}: the decoder's process broke on it (it answers {kind!r:.80})")

    def _connect(self) -> tuple[Connection, socket.socket]:
        if self.requests is not None and self.answers is not None:
            return self.requests, self.answers
        their_requests, self.requests = Pipe(duplex=False)
        self.answers, their_answers = socket.socketpair()
        package_parent = str(Path(__file__).resolve().parents[2])
        paths = [package_parent, *filter(None, [os.environ.get("PYTHONPATH")])]
        # threads of numerical libraries would take address space and the cores of the other workers
        environment = {**os.environ, "OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1", "MKL_NUM_THREADS": "1",
                       "PYTHONPATH": os.pathsep.join(paths)}
        passed = their_requests.fileno(), their_answers.fileno()
        try:
            self.process = subprocess.Popen(
                [*self.command, *map(str, passed), str(self.memory_mb), self.hwaccel or ""], pass_fds=passed,
                stdin=subprocess.DEVNULL, env=environment)
        finally:
            their_requests.close()
            their_answers.close()
        if self.killed:  # while it was being started
            self.process.kill()
        return self.requests, self.answers

    def kill(self) -> None:
        """End the child at once and for good, from whichever thread; a read under way fails with InputError."""
        self.killed = True
        process = self.process
        if process is not None:
            process.kill()

    def close(self) -> int | None:
        """Kill the child, if there is one ⇒ its exit status."""
        for channel in (self.requests, self.answers):
            if channel is not None:
                channel.close()
        status = None
        if self.process is not None:
            try:  # a crashed child has an exit status to report; an idle one ends when its pipe closes
                status = self.process.wait(timeout=0.2)
            except subprocess.TimeoutExpired:
                self.process.kill()
                status = self.process.wait()
        self.process = self.requests = self.answers = None
        return status

    def __enter__(self) -> "GuardedReader":
        return self

    def __exit__(self, *_) -> None:
        self.close()


def serve(requests: Connection, answers: socket.socket, memory_mb: int, hwaccel: str | None = None) -> None:
    """The child's side: answer requests until the parent is gone."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is the parent's to handle
    limit_bytes = memory_mb << 20
    # drivers reserve far more addresses than they use
    memory = resource.RLIMIT_AS if hwaccel is None else resource.RLIMIT_DATA
    resource.setrlimit(memory, (limit_bytes, limit_bytes))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    stream: ClipStream | None = None
    chunks: Iterator[list[np.ndarray]] = iter(())
    while True:
        try:
            arguments, left_s = requests.recv()
        except (EOFError, ConnectionError):
            return
        # the alarm's default action ends the process, in library code too, should the parent have died meanwhile
        signal.setitimer(signal.ITIMER_REAL, 1.5 * left_s + 5.0)
        arrays: list[np.ndarray] = []
        answer: dict[str, Any]
        try:
            if arguments is not None:
                chunks = iter(())  # closes the stream of an unfinished clip
                stream = stream_clip(**arguments, hwaccel=hwaccel)
                chunks = iter(stream)
            arrays, answer = _next_answer(stream, chunks)
        except InputError as error:
            answer = {"kind": "refused", "message": str(error)}
        except MemoryError:
            answer = {"kind": "memory"}
        except Exception:  # the parent raises it
            answer = {"kind": "fault", "message": traceback.format_exc()}
        signal.setitimer(signal.ITIMER_REAL, 0)
        try:
            send_answer(answers, arrays=arrays, **answer)
        except ConnectionError:
            return


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
