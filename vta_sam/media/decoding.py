"""Reading clips in a child process that can be killed, with a limit on time and memory: a damaged file costs one clip.

The child is this module run as a program. It is asked for one chunk at a time, pickled over a pipe, and answers over a
socket without pickle (see decoding_answers): ``chunk`` (shapes and arrays), at last ``end`` (duration and sound), or in
the place of either why there is none: ``refused``, ``memory`` or ``fault``.
"""

from __future__ import annotations

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
from typing import Any, Iterator

import numpy as np

from ..errors import InputError
from .decoding_answers import Claims, Incoming, Nonsense, send_answer
from .fit import Fit
from .video import CHUNK_FRAMES, Chunks, ClipStream, stream_clip


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


class GuardedReader:
    """One child process that reads clips, started when first needed and again after it had to be killed. Close it, or
    use it as a context. Not for use by two threads at once.

    Args:
        limit_s: how long the child may work on a clip; time in which its next chunk isn't asked for doesn't count.
        memory_mb: address space that the child may use, in MiB.
        hwaccel: kind of device that decodes, as in conf/extract.yaml.
    """

    command: tuple[str, ...] = (sys.executable, "-m", "vta_sam.media.decoding")

    def __init__(self, limit_s: float = 60.0, memory_mb: int = 4096, hwaccel: str | None = None):
        self.limit_s, self.memory_mb, self.hwaccel = limit_s, memory_mb, hwaccel
        self.process: subprocess.Popen | None = None
        self.requests: Connection | None = None
        self.answers: socket.socket | None = None
        self.current: Claims | None = None  # of the clip under work
        self.killed = False

    def stream(self, request: ClipRequest) -> ClipStream:
        """Its iteration raises InputError naming the file when it can't be read, takes too long, needs too much memory,
        or crashes the decoder. Another request ends it."""
        return ClipStream(self._chunks(request))

    def _chunks(self, request: ClipRequest) -> Chunks:
        fits = list(dict.fromkeys(request.fits))  # equal ones travel once
        asked: dict[str, Any] | None = {**vars(request), "fits": fits}
        claims = self.current = Claims(
            fits, request.fps, request.duration_s, request.sample_rate_hz if request.want_audio else None,
            request.chunk_frames, self.memory_mb)
        left_s = self.limit_s
        while True:
            if self.current is not claims:
                raise RuntimeError(f"{request.path}: the process that decoded it was given another clip")
            began = time.monotonic()
            arrays, end = self._ask(request.path, asked, claims, left_s)
            left_s, asked = left_s - (time.monotonic() - began), None
            if end is not None:
                return end
            fitted = dict(zip(fits, arrays))
            yield [fitted[fit] for fit in request.fits]

    def _ask(self, path: str, asked: dict[str, Any] | None, claims: Claims, left_s: float,
             ) -> tuple[list[np.ndarray], tuple[np.ndarray | None, float] | None]:
        """Ask for the first chunk of a clip, or for the next one (``asked`` None) ⇒ its arrays and None, or after the
        last one no arrays and (waveform, duration_s)."""
        try:
            requests, answers = self._connect()
            requests.send((asked, left_s))
            incoming = Incoming(answers, time.monotonic() + left_s)
            header = incoming.header()
            kind = header.get("kind")
            if kind == "chunk":
                arrays = [np.empty(shape, np.uint8) for shape in claims.shapes(header)]
                for array in arrays:
                    incoming.fill(array)
                return arrays, None
            if kind == "end":
                duration_s, samples = claims.end(header)
                waveform = None if samples is None else np.empty(samples, np.float32)
                if waveform is not None:
                    incoming.fill(waveform)
                return [], (waveform, duration_s)
            message = str(header.get("message"))
        except TimeoutError:
            self.close()
            raise InputError(f"{path}: decoding took longer than {self.limit_s:g} s") from None
        except (EOFError, ConnectionError):
            status = self.close()
            raise InputError(f"{path}: the decoder crashed on it (exit status {status})") from None
        except Nonsense as error:
            self.close()
            raise InputError(f"{path}: the decoder's process broke on it (it answers {error})") from None
        except BaseException:  # of what is said next nobody knows what it answers
            self.close()
            raise
        if kind == "refused":
            raise InputError(message)
        self.close()  # what an allocation left behind when it failed is anyone's guess
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
            try:  # a child that crashed has a status of its own to tell; an idle one ends when its pipe closes
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
            asked, left_s = requests.recv()
        except (EOFError, ConnectionError):
            return
        # the alarm's default action ends the process, in library code too, should the parent have died meanwhile
        signal.setitimer(signal.ITIMER_REAL, 1.5 * left_s + 5.0)
        arrays: list[np.ndarray] = []
        answer: dict[str, Any]
        try:
            if asked is not None:
                chunks = iter(())  # closes what was left of another clip
                stream = stream_clip(**asked, hwaccel=hwaccel)
                chunks = iter(stream)
            arrays, answer = _next_answer(stream, chunks)
        except InputError as error:
            answer = {"kind": "refused", "message": str(error)}
        except MemoryError:
            answer = {"kind": "memory"}
        except Exception:  # told to the parent, which raises it
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
