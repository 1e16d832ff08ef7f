"""Clips measured in processes that a broken file may crash, hang or bloat without harm to the others."""

from __future__ import annotations

import multiprocessing
import resource
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import TimeoutError as LateError
from typing import TypeVar

from pebble import ProcessExpired, ProcessPool

J = TypeVar("J")
R = TypeVar("R")


def map_guarded(work: Callable[[J], R], jobs: Iterable[J], workers: int, limit_s: float, memory_mb: int,
                failed: Callable[[J, str], R]) -> Iterator[R]:
    """work(job) for each job, in order, at most a few jobs ahead of the consumer.

    workers 0 ⇒ here, without any guard. A job that takes longer than limit_s, dies, or needs more than memory_mb of
    memory gives ``failed(job, why)`` instead, why being the end of a sentence. What ``work`` raises else is raised.
    """
    if workers == 0:
        yield from map(work, jobs)
        return
    context = multiprocessing.get_context("spawn")
    with ProcessPool(workers, context=context, initializer=_confine, initargs=(memory_mb,)) as pool:
        waiting: deque = deque()

        def first() -> R:
            job, future = waiting.popleft()
            try:
                return future.result()
            except LateError:
                return failed(job, f"took longer than {limit_s:g} s")
            except ProcessExpired as error:
                return failed(job, f"crashed the process that measured it (exit status {error.exitcode})")
            except MemoryError:
                return failed(job, f"needs more than {memory_mb} MB of memory")

        try:
            for job in jobs:
                waiting.append((job, pool.schedule(work, args=(job,), timeout=limit_s)))
                if len(waiting) > 2 * workers:
                    yield first()
            while waiting:
                yield first()
        finally:  # the caller stopped early, or a job raised
            for _, future in waiting:
                future.cancel()


def _confine(memory_mb: int) -> None:
    import cv2
    import torch

    torch.set_num_threads(1)  # the other workers have the other cores
    cv2.setNumThreads(1)
    resource.setrlimit(resource.RLIMIT_DATA, (memory_mb << 20, memory_mb << 20))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
