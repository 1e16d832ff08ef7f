"""Several decoding processes that read ahead of one consumer: clips in order, in bounded memory."""

from __future__ import annotations

import queue
import threading
from collections import deque
from concurrent.futures import ThreadPoolExecutor
from typing import Iterable, Iterator

import numpy as np

from ..runtime.errors import InputError
from .container import on_own_gpu
from .decoding import ClipRequest
from .guarded import GuardedReader
from .video import Chunks, ClipStream

BUFFER_CHUNKS = 2
_MOST_WORKERS = 8  # unless more are asked for: each holds pictures of two clips in memory


class DecodePool:
    """Several decoding processes that read ahead. ``map`` keeps the order and bounds memory.

    Args:
        workers: processes, which is also how many clips are decoded at once; None: one for each core of this
            process, 8 at most.
        limit_s: as of GuardedReader, like memory_mb.
        hwaccel: likewise; ``cuda`` is this process's own GPU.
        ahead: how many clips may be begun, or finished but not consumed, at any time.
        buffer_chunks: how many chunks of a clip wait for the consumer before its decoding pauses.
    """

    def __init__(self, workers: int | None, limit_s: float = 60.0, memory_mb: int = 4096, ahead: int | None = None,
                 buffer_chunks: int = BUFFER_CHUNKS, hwaccel: str | None = None):
        if workers is None:
            from ..runtime.distributed import own_cores  # imports torch, which this room does without

            workers = min(_MOST_WORKERS, own_cores())
        if workers < 1:
            raise InputError(f"workers must be at least 1, got {workers}")
        hwaccel = on_own_gpu(hwaccel)
        self.ahead, self.buffer_chunks = ahead or 2 * workers + 2, buffer_chunks
        *decoding, self.spare = self.readers = [GuardedReader(limit_s, memory_mb, hwaccel) for _ in range(workers + 1)]
        self.idle: queue.SimpleQueue[GuardedReader] = queue.SimpleQueue()
        for reader in decoding:
            self.idle.put(reader)
        self.threads = ThreadPoolExecutor(workers, thread_name_prefix="decode")
        self.clips: set[_Buffer] = set()

    def map(self, requests: Iterable[ClipRequest]) -> Iterator[ClipStream]:
        """The ClipStream of each request, in order. Read each before taking the next one, which drops
        the rest of it.

        Raises:
            InputError: while a stream is iterated, where its clip can't be read any further.
        """
        begun: deque[_Buffer] = deque()
        try:
            for request in requests:
                begun.append(self._begin(request))
                if len(begun) == self.ahead:
                    yield begun[0].stream()
                    self._end(begun.popleft())
            while begun:
                yield begun[0].stream()
                self._end(begun.popleft())
        finally:  # the caller stopped early
            for clip in begun:
                self._end(clip)

    def again(self, request: ClipRequest) -> ClipStream:
        """The ClipStream of a request that ``map`` gave already, read once more. A process of its own decodes it, since
        the others may wait for room with clips whose turn hasn't come. The next such request ends it."""
        return self.spare.stream(request)

    def _begin(self, request: ClipRequest) -> _Buffer:
        clip = _Buffer(self.buffer_chunks)
        self.clips.add(clip)
        self.threads.submit(self._decode, request, clip)
        return clip

    def _decode(self, request: ClipRequest, clip: _Buffer) -> None:
        reader = self.idle.get()
        try:
            clip.fill(reader.stream(request))
        finally:
            self.idle.put(reader)

    def _end(self, clip: _Buffer) -> None:
        clip.give_up()
        self.clips.discard(clip)

    def close(self) -> None:
        """End all processes, also in the middle of a clip."""
        self.threads.shutdown(wait=False, cancel_futures=True)
        for clip in list(self.clips):
            self._end(clip)  # threads that wait for room, or for the next chunk, wake up
        for reader in self.readers:
            reader.kill()  # and threads that wait for a process
        self.threads.shutdown(wait=True)
        for reader in self.readers:
            reader.close()

    def __enter__(self) -> "DecodePool":
        return self

    def __exit__(self, *_) -> None:
        self.close()


class _Buffer:
    """The few chunks of a clip between the thread that fetches them and their consumer."""

    def __init__(self, chunks: int):
        self.room = chunks
        self.changed = threading.Condition()
        self.waiting: deque[list[np.ndarray]] = deque()
        self.end: ClipStream | Exception | None = None
        self.given_up = False

    def fill(self, clip: ClipStream) -> None:
        """Fetch all of ``clip``, pausing while there is no room, until it is given up."""
        chunks = iter(clip)
        end: ClipStream | Exception = clip
        try:
            while self._wait_for_room() and (chunk := next(chunks, None)) is not None:
                with self.changed:
                    self.waiting.append(chunk)
                    self.changed.notify_all()
        except Exception as error:  # raised again in the consumer's iteration
            end = error
        with self.changed:
            self.end = end
            self.changed.notify_all()

    def _wait_for_room(self) -> bool:
        """False once the clip was given up."""
        with self.changed:
            self.changed.wait_for(lambda: self.given_up or len(self.waiting) < self.room)
            return not self.given_up

    def stream(self) -> ClipStream:
        """The consumer's side; can be read once."""
        return ClipStream(self._take())

    def _take(self) -> Chunks:
        while True:
            with self.changed:
                self.changed.wait_for(lambda: self.given_up or self.waiting or self.end is not None)
                if self.given_up:
                    raise RuntimeError("a clip is read before the next one is asked for, and while its pool is open")
                if not self.waiting:
                    break
                chunk = self.waiting.popleft()
                self.changed.notify_all()
            yield chunk
        if isinstance(self.end, ClipStream):
            return self.end.waveform, self.end.duration_s
        assert self.end is not None
        raise self.end

    def give_up(self) -> None:
        """Drop the waiting chunks and release the worker, since the consumer has stopped."""
        with self.changed:
            self.given_up = True
            self.waiting.clear()
            self.changed.notify_all()
