"""Strangers' files, opened in a child process that may crash, hang or bloat: the parent's side."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import time
import warnings
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from functools import cache, partial
from multiprocessing.connection import Connection, Pipe
from pathlib import Path
from typing import Any, TypeVar, get_type_hints

import numpy as np
from pydantic import TypeAdapter, ValidationError

from ..runtime.errors import InputError
from ..runtime.files import atomic_path
from .decoding import OPERATIONS, AnswerReader, ClipRequest, ExpectedAnswers, ProtocolError
from .muxing import MuxPlan, mux, picture_duration_s, plan_mux, write_mux
from .picture_reader import Fit
from .video import CHUNK_FRAMES, Chunks, ClipStream, Kept, MediaInfo, probe, stream_clip

T = TypeVar("T")
# Signals that reach a whole terminal or job: a child that died of one first would be a fault of its clip
_OF_PARENT = {signal.SIGINT, signal.SIGTERM, signal.SIGUSR1}


class GuardedReader:
    """One child process that opens media files. It is started when first needed, and again after it was killed. Close
    it, or use it as a context. Not for use by two threads at once.

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

    def stream(self, request: ClipRequest, limit_s: float | None = None) -> ClipStream:
        """The clip of a request, read while it is iterated. The next request ends it.

        Args:
            request: the clip.
            limit_s: in place of the reader's own.

        Raises:
            InputError: while it is iterated; names the file and says that it can't be read, takes too long, needs too
                much memory, or crashes the decoder.
        """
        return ClipStream(self._chunks(request, self.limit_s if limit_s is None else limit_s))

    def call(self, operation: Callable[..., T], path: str | os.PathLike, *arguments: Any, limit_s: float) -> T:
        """The result of one of :data:`.decoding.OPERATIONS` on a file.

        Args:
            operation: a function; its first argument is the path, and the type of its result is annotated.
            path: of the file.
            arguments: the others.
            limit_s: how long it may take.

        Raises:
            InputError: as the operation does, or as :meth:`stream`.
            OSError: as the operation does.
        """
        self.current = None
        path, result = os.fspath(path), _result_type(operation)

        def received(reader: AnswerReader, header: dict[str, Any]) -> T:
            try:
                return result.validate_python(header.get("value"))
            except ValidationError as error:
                raise ProtocolError(f"{header.get('value')!r:.80}") from error

        return self._exchange(path, (operation.__name__, (path, *arguments)), limit_s, limit_s, {"value": received})

    def _chunks(self, request: ClipRequest, limit_s: float) -> Chunks:
        fits = list(dict.fromkeys(request.fits))  # equal ones travel once
        wanted: dict[str, Any] | None = {**vars(request), "fits": fits}
        expected = self.current = ExpectedAnswers(
            fits, request.fps, request.duration_s, request.sample_rate_hz if request.want_audio else None,
            request.chunk_frames, self.memory_mb)
        kinds = {"chunk": partial(_received_chunk, expected), "end": partial(_received_end, expected)}
        left_s = limit_s
        while True:
            if self.current is not expected:
                raise RuntimeError(f"{request.path}: the process that decoded it was given another clip")
            began = time.monotonic()
            arrays, end = self._exchange(request.path, wanted, left_s, limit_s, kinds)
            left_s, wanted = left_s - (time.monotonic() - began), None
            if end is not None:
                return end
            fitted = dict(zip(fits, arrays))
            yield [fitted[fit] for fit in request.fits]

    def _exchange(self, path: str, wanted: Any, left_s: float, limit_s: float,
                  kinds: Mapping[str, Callable[[AnswerReader, dict[str, Any]], T]]) -> T:
        """Send one request ⇒ what its answer holds.

        Args:
            path: of the file, for messages.
            wanted: the request, see :func:`.decoding.serve`.
            left_s: until the limit.
            limit_s: the whole limit, for messages.
            kinds: {kind of answer: function that receives it}.
        """
        try:
            requests, answers = self._connect()
            requests.send((wanted, left_s))
            reader = AnswerReader(answers, time.monotonic() + left_s)
            header = reader.header()
            kind = str(header.get("kind"))
            for note in _strings(header.get("notes", [])):
                warnings.warn(note, stacklevel=2)
            if kind in kinds:
                return kinds[kind](reader, header)
            message, code = str(header.get("message")), header.get("errno")
        except TimeoutError:
            self.close()
            raise InputError(f"{path}: decoding took longer than {limit_s:g} s; limit_s= allows more") from None
        except (EOFError, ConnectionError):
            status = self.close()
            raise InputError(f"{path}: the decoder crashed on it (exit status {status})") from None
        except ProtocolError as error:
            self.close()
            raise InputError(f"{path}: the decoder's process broke on it (it answers {error})") from None
        except BaseException:  # Ctrl-C, say: the answer may still come, and would be taken for that to the next request
            self.close()
            raise
        cause = OSError(code, message) if type(code) is int else None
        if kind == "refused":
            raise InputError(message) from cause
        if kind == "system" and cause is not None:
            raise cause
        self.close()  # after a failed allocation the state of the decoder's libraries is undefined
        if kind == "memory":
            raise InputError(f"{path}: decoding needs more than {self.memory_mb} MB of memory; memory_mb= allows "
                             "more")
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
        before = signal.pthread_sigmask(signal.SIG_BLOCK, _OF_PARENT)  # for the child, from its first moment on
        try:
            self.process = subprocess.Popen(
                [*self.command, *map(str, passed), str(self.memory_mb), self.hwaccel or ""], pass_fds=passed,
                stdin=subprocess.DEVNULL, env=environment)
        finally:
            signal.pthread_sigmask(signal.SIG_SETMASK, before)
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


@cache
def _result_type(operation: Callable[..., T]) -> TypeAdapter[T]:
    assert OPERATIONS.get(operation.__name__) is operation, "the child knows no other"
    return TypeAdapter(get_type_hints(operation)["return"])


def _strings(value: Any) -> list[str]:
    if not isinstance(value, list) or not all(isinstance(text, str) for text in value):
        raise ProtocolError(f"notes {value!r:.80}")
    return value


End = tuple[np.ndarray | None, float]  # waveform, duration_s


def _received_chunk(expected: ExpectedAnswers, reader: AnswerReader, header: dict[str, Any],
                    ) -> tuple[list[np.ndarray], End | None]:
    arrays = [np.empty(shape, np.uint8) for shape in expected.shapes(header)]
    for array in arrays:
        reader.fill(array)
    return arrays, None


def _received_end(expected: ExpectedAnswers, reader: AnswerReader, header: dict[str, Any],
                  ) -> tuple[list[np.ndarray], End | None]:
    duration_s, samples = expected.end(header)
    waveform = None if samples is None else np.empty(samples, np.float32)
    if waveform is not None:
        reader.fill(waveform)
    return [], (waveform, duration_s)


class Media:
    """Videos read and written in this process, for files that are one's own."""

    def plan_mux(self, video: Path, out: Path, kept: Kept = Kept(), whole: bool = False) -> MuxPlan:
        """See :func:`.muxing.plan_mux`."""
        return plan_mux(video, out, kept, whole)

    def probe(self, video: Path) -> MediaInfo:
        """See :func:`.video.probe`."""
        return probe(video)

    def picture_duration_s(self, video: Path) -> float:
        """See :func:`.muxing.picture_duration_s`."""
        return picture_duration_s(video)

    def stream(self, video: Path, duration_s: float, fps: float, fits: Sequence[Fit],
               chunk_frames: int | None = CHUNK_FRAMES) -> ClipStream:
        """The pictures of a whole video; arguments of :func:`.video.stream_clip`."""
        return stream_clip(video, duration_s=duration_s, fps=fps, fits=fits, want_audio=False,
                           chunk_frames=chunk_frames)

    def mux(self, video: Path, waveform: np.ndarray, sample_rate_hz: int, out: Path, mix: float = 0.0,
            kept: Kept = Kept()) -> Path:
        """See :func:`.muxing.mux`."""
        return mux(video, waveform, sample_rate_hz, out, mix, kept)

    def close(self) -> None:
        """End what was started."""

    def __enter__(self) -> "Media":
        return self

    def __exit__(self, *_) -> None:
        self.close()


_SCANNED_BYTES_PER_S = 5_000_000  # of a slow disk
_LEAST_BYTES_PER_S = 1_000  # of a video: a lying header gets no more time than the file can hold pictures for
_SHARE_S = 10.0  # a video gets the limit once more for each such stretch


class GuardedMedia(Media):
    """Videos of strangers, read and written in a child process, which may crash, hang or bloat without harm.

    Reading the pictures' times may take ``limit_s`` and the time in which a slow disk reads the file. Decoding and
    writing may take ``limit_s``, and as long again for each 10 s of the video. What a killed child has written is
    removed.

    Args:
        limit_s: seconds.
        memory_mb: address space that the child may use, in MiB.
    """

    def __init__(self, limit_s: float = 60.0, memory_mb: int = 4096):
        self.reader = GuardedReader(limit_s, memory_mb)

    def plan_mux(self, video: Path, out: Path, kept: Kept = Kept(), whole: bool = False) -> MuxPlan:
        plan = self._scan(plan_mux, video, str(out), kept, whole)
        if plan.target not in (out, out.with_suffix(".mkv")):
            raise InputError(f"{video}: the decoder's process broke on it (it would write {str(plan.target)!r:.80})")
        return plan

    def probe(self, video: Path) -> MediaInfo:
        return self._scan(probe, video)

    def picture_duration_s(self, video: Path) -> float:
        return self._scan(picture_duration_s, video)

    def stream(self, video: Path, duration_s: float, fps: float, fits: Sequence[Fit],
               chunk_frames: int | None = CHUNK_FRAMES) -> ClipStream:
        request = ClipRequest(str(video), fps, tuple(fits), False, 0.0, duration_s, chunk_frames=chunk_frames)
        return self.reader.stream(request, self._limit_s(video, duration_s))

    def mux(self, video: Path, waveform: np.ndarray, sample_rate_hz: int, out: Path, mix: float = 0.0,
            kept: Kept = Kept()) -> Path:
        plan = self.plan_mux(video, out, kept, whole=True)
        limit_s = self._limit_s(video, len(waveform) / sample_rate_hz)
        with atomic_path(plan.target) as temporary:
            self.reader.call(write_mux, video, plan, waveform, sample_rate_hz, temporary, mix, limit_s=limit_s)
        return plan.target

    def close(self) -> None:
        self.reader.close()

    def _scan(self, operation: Callable[..., T], video: Path, *arguments: Any) -> T:
        scanned_s = _size_of(video) / _SCANNED_BYTES_PER_S
        return self.reader.call(operation, video, *arguments, limit_s=self.reader.limit_s + scanned_s)

    def _limit_s(self, video: Path, duration_s: float) -> float:
        length_s = min(duration_s, _size_of(video) / _LEAST_BYTES_PER_S)
        return self.reader.limit_s * (1 + length_s / _SHARE_S)


def guarding(media: Media | None) -> AbstractContextManager[Media]:
    """A context with what is given, which stays open; None: with a child process of the usual limits, which ends."""
    return GuardedMedia() if media is None else nullcontext(media)


def _size_of(video: Path) -> int:
    """0 where there is no such file, which the child says."""
    try:
        return video.stat().st_size
    except OSError:
        return 0
