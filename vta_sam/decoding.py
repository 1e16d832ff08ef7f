"""Reading clips in child processes that can be killed, with a limit on time and memory: a damaged file costs one clip.

The child is this module run as a program. It serves requests over a socket pair until the parent closes it:
``{path, …}`` as for :func:`vta_sam.video.read_clip`, answered by a Clip or by the reason why there is none.
"""

from __future__ import annotations

import os
import queue
import resource
import signal
import subprocess
import sys
import traceback
from collections import deque
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from multiprocessing.connection import Connection, Pipe
from pathlib import Path
from typing import Iterable, Iterator

from .errors import InputError
from .fit import Fit
from .video import Clip, read_clip


@dataclass(frozen=True)
class ClipRequest:
    """The arguments of :func:`vta_sam.video.read_clip`, in a form that travels to a child process."""

    path: str
    fps: float
    fits: tuple[Fit, ...]
    want_audio: bool = True
    start_s: float = 0.0
    duration_s: float | None = None
    sample_rate_hz: int = 16_000


class GuardedReader:
    """One child process that reads clips, started when first needed and again after it had to be killed. Close it, or
    use it as a context. Not for use by two threads at once."""

    command: tuple[str, ...] = (sys.executable, "-m", "vta_sam.decoding")

    def __init__(self, limit_s: float = 60.0, memory_mb: int = 4096):
        self.limit_s, self.memory_mb = limit_s, memory_mb
        self.process: subprocess.Popen | None = None
        self.connection: Connection | None = None

    def read(self, request: ClipRequest) -> Clip:
        """Raises InputError naming the file when it can't be read, takes too long, needs too much memory, or crashes
        the decoder."""
        connection = self._connect()
        try:
            connection.send(vars(request))
            if not connection.poll(self.limit_s):
                self.close()
                raise InputError(f"{request.path}: decoding took longer than {self.limit_s:g} s")
            kind, answer = connection.recv()
        except (EOFError, ConnectionError):
            status = self.close()
            raise InputError(f"{request.path}: the decoder crashed on it (exit status {status})") from None
        if kind == "memory":
            self.close()  # what an allocation left behind when it failed is anyone's guess
            raise InputError(f"{request.path}: decoding needs more than {self.memory_mb} MB of memory")
        if kind == "refused":
            raise InputError(answer)
        if kind == "fault":
            raise RuntimeError(f"reading {request.path} failed in the decoding process:\n{answer}")
        return answer

    def _connect(self) -> Connection:
        if self.connection is not None:
            return self.connection
        ours, theirs = Pipe(duplex=True)
        package_parent = str(Path(__file__).resolve().parents[1])
        paths = [package_parent, *filter(None, [os.environ.get("PYTHONPATH")])]
        # threads of numerical libraries would take address space and the cores of the other workers
        environment = {**os.environ, "OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1", "MKL_NUM_THREADS": "1",
                       "PYTHONPATH": os.pathsep.join(paths)}
        try:
            self.process = subprocess.Popen(
                [*self.command, str(theirs.fileno()), str(self.limit_s), str(self.memory_mb)],
                pass_fds=[theirs.fileno()], stdin=subprocess.DEVNULL, env=environment)
        finally:
            theirs.close()
        self.connection = ours
        return ours

    def kill(self) -> None:
        """End the child at once, from whichever thread; a read under way fails with InputError."""
        process = self.process
        if process is not None:
            process.kill()

    def close(self) -> int | None:
        """Kill the child, if there is one ⇒ its exit status."""
        if self.connection is not None:
            self.connection.close()
        status = None
        if self.process is not None:
            try:  # a child that crashed has a status of its own to tell; an idle one ends when the socket closes
                status = self.process.wait(timeout=0.2)
            except subprocess.TimeoutExpired:
                self.process.kill()
                status = self.process.wait()
        self.process = self.connection = None
        return status

    def __enter__(self) -> "GuardedReader":
        return self

    def __exit__(self, *_) -> None:
        self.close()


def read_clip_guarded(request: ClipRequest, limit_s: float = 60.0, memory_mb: int = 4096) -> Clip:
    """Read one clip in a child process of its own. For many clips use a GuardedReader or a DecodePool."""
    with GuardedReader(limit_s, memory_mb) as reader:
        return reader.read(request)


class DecodePool:
    """Several children that read ahead. ``map`` keeps the order and holds at most ``ahead`` clips in memory."""

    def __init__(self, workers: int, limit_s: float = 60.0, memory_mb: int = 4096, ahead: int | None = None):
        if workers < 1:
            raise InputError(f"workers must be at least 1, got {workers}")
        self.ahead = ahead or 2 * workers + 2
        self.readers = [GuardedReader(limit_s, memory_mb) for _ in range(workers)]
        self.idle: queue.SimpleQueue[GuardedReader] = queue.SimpleQueue()
        for reader in self.readers:
            self.idle.put(reader)
        self.threads = ThreadPoolExecutor(workers, thread_name_prefix="decode")

    def map(self, requests: Iterable[ClipRequest]) -> Iterator[Clip | InputError]:
        """Requests ⇒ for each, in order, its Clip, or the InputError that says why it can't be read."""
        pending: deque[Future] = deque()
        try:
            for request in requests:
                pending.append(self.threads.submit(self._read, request))
                if len(pending) >= self.ahead:
                    yield pending.popleft().result()
            while pending:
                yield pending.popleft().result()
        finally:  # the caller stopped early: what hasn't begun is not begun
            for future in pending:
                future.cancel()

    def _read(self, request: ClipRequest) -> Clip | InputError:
        reader = self.idle.get()
        try:
            return reader.read(request)
        except InputError as error:
            return error
        finally:
            self.idle.put(reader)

    def close(self) -> None:
        """End all children, in the middle of a clip too."""
        self.threads.shutdown(wait=False, cancel_futures=True)
        for reader in self.readers:
            reader.kill()  # the thread that waits for it wakes up
        self.threads.shutdown(wait=True)
        for reader in self.readers:
            reader.close()

    def __enter__(self) -> "DecodePool":
        return self

    def __exit__(self, *_) -> None:
        self.close()


def serve(connection: Connection, limit_s: float, memory_mb: int) -> None:
    """The child's side: answer requests until the parent is gone."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is the parent's to handle
    limit_bytes = memory_mb << 20
    resource.setrlimit(resource.RLIMIT_AS, (limit_bytes, limit_bytes))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    while True:
        try:
            request = connection.recv()
        except (EOFError, ConnectionError):
            return
        # the alarm's default action ends the process, in library code too, should the parent have died meanwhile
        signal.setitimer(signal.ITIMER_REAL, 1.5 * limit_s + 5.0)
        answer: tuple[str, object]
        try:
            answer = "clip", read_clip(**request)
        except InputError as error:
            answer = "refused", str(error)
        except MemoryError:
            answer = "memory", None
        except Exception:  # told to the parent, which raises it
            answer = "fault", traceback.format_exc()
        signal.setitimer(signal.ITIMER_REAL, 0)
        try:
            connection.send(answer)
        except ConnectionError:
            return


if __name__ == "__main__":
    serve(Connection(int(sys.argv[1])), float(sys.argv[2]), int(sys.argv[3]))
