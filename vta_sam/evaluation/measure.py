"""Clips measured in worker processes, which a broken file may crash, hang or bloat without harm to the others.

Of a clip the true sound, every system's sound and the pictures are decoded once each, and only if the cache lacks what
is needed of them. A worker returns small arrays and, where something is still to be computed from them, waveforms.
"""

from __future__ import annotations

import json
import multiprocessing
import resource
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import TimeoutError as LateError
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass, replace
from functools import cached_property
from importlib.metadata import version
from pathlib import Path
from typing import TypeVar

import cv2
import numpy as np
from pebble import ProcessExpired, ProcessPool

from ..media.audio import read_plain
from ..mel import SAMPLE_RATE_HZ
from ..metrics.alignment import FlowTrajectory, measure_flow
from ..metrics.onsets import at_published_rate
from ..runtime.errors import InputError
from ..runtime.files import reason_of
from .metric import ClipMeasurements, Metric, SoundMeasurements, waveform_value
from .pairing import SoundFile
from .sounds import (
    FEATURES_VERSION, FeatureCache, LoadingPolicy, Sound, SoundFeatures, cache_key, content_hash, read_sound,
    sound_features
)

ITEM_FAULTS = (InputError, OSError, UnicodeError)  # of one file; reason_of raises what ends a run again
J = TypeVar("J")
R = TypeVar("R")


def map_guarded(work: Callable[[J], R], jobs: Iterable[J], workers: int, limit_s: float, memory_mb: int,
                failed: Callable[[J, str], R]) -> Iterator[R]:
    """⇒ work(job) for each job, in order, at most a few jobs ahead of the consumer. Errors of ``work`` are raised here.

    Args:
        work: a function of a module, which the workers import.
        jobs: may be endless.
        workers: processes; 0 works here, without any guard.
        limit_s: seconds that a job may take.
        memory_mb: MiB that a process may use.
        failed: the result of a job that takes longer, needs more memory, or ends its process; its second argument is
            the end of a sentence that says which.
    """
    if workers == 0:
        yield from map(work, jobs)
        return
    source, begun = iter(jobs), deque[J]()
    for attempt in range(_POOLS):
        try:
            yield from _through_pool(work, source, begun, workers, limit_s, memory_mb, failed)
            return
        except BrokenProcessPool:  # pebble gives up where a process ends before it has heard of its job
            if attempt == _POOLS - 1:
                raise


_POOLS = 3  # that one another's unfinished jobs are given to


def _through_pool(work: Callable[[J], R], source: Iterator[J], begun: deque[J], workers: int, limit_s: float,
                  memory_mb: int, failed: Callable[[J, str], R]) -> Iterator[R]:
    """Arguments as of :func:`map_guarded`; source: of further jobs; begun: jobs without a result yet, kept up to date.
    """
    context = multiprocessing.get_context("spawn")
    with ProcessPool(workers, context=context, initializer=_confine, initargs=(memory_mb,)) as pool:
        waiting: deque = deque()

        def give(job: J) -> None:
            try:
                waiting.append(pool.schedule(work, args=(job,), timeout=limit_s))
            except RuntimeError as error:
                raise BrokenProcessPool(str(error)) from error

        def first() -> R:
            job, future = begun[0], waiting[0]
            try:
                result = future.result()
            except LateError:
                result = failed(job, f"took longer than {limit_s:g} s")
            except ProcessExpired as error:
                result = failed(job, f"crashed the process that measured it (exit status {error.exitcode})")
            except MemoryError:
                result = failed(job, f"needs more than {memory_mb} MB of memory")
            begun.popleft()
            waiting.popleft()
            return result

        try:
            for job in list(begun):
                give(job)
            for job in source:
                begun.append(job)
                give(job)
                if len(waiting) > 2 * workers:
                    yield first()
            while waiting:
                yield first()
        finally:  # the caller stopped early, a job raised, or the pool broke
            for future in waiting:
                future.cancel()


def _confine(memory_mb: int) -> None:
    import cv2
    import torch

    torch.set_num_threads(1)  # the other workers have the other cores
    cv2.setNumThreads(1)
    resource.setrlimit(resource.RLIMIT_DATA, (memory_mb << 20, memory_mb << 20))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))


# a library's new version may change the figures
LIBRARIES = f"librosa {version('librosa')}"
FLOW_VERSION = f"1, OpenCV {cv2.__version__}"
SOUND_VERSION = f"{FEATURES_VERSION}, {LIBRARIES}"


@dataclass(frozen=True)
class ClipJob:
    """One clip's files, and the measurements to make of them.

    sounds: (system, file) of each sample. flows: variants of optical flow wanted of ``video``. backbones: (name,
    fingerprint) of backbones with a cache. metrics: the ones that need waveforms. keep_reference: the
    true waveform is wanted in any case. sound: which of the reference's sounds is the true one.
    """

    id: str
    reference: SoundFile
    sounds: tuple[tuple[str, SoundFile], ...]
    video: Path | None
    flows: tuple[str, ...]
    policy: LoadingPolicy
    backbones: tuple[tuple[str, str], ...]
    cache: Path | None
    metrics: tuple[Metric, ...] = ()
    keep_reference: bool = False
    sound: str | None = None


@dataclass
class _Reader:
    """A sound file that is decoded once, when its waveform is first needed. samples: to cut or pad to; named: which of
    the file's sounds."""

    path: Path
    policy: LoadingPolicy
    samples: int | None = None
    named: str | None = None

    @cached_property
    def digest(self) -> str:
        """Of the file's bytes and of everything that reading them depends on."""
        policy, named = self.policy, () if self.named is None else (self.named,)
        return cache_key("sound", policy.version, policy.clip_s, self.samples, content_hash(self.path), *named)

    @cached_property
    def sound(self) -> Sound:
        sound = read_sound(self.path, self.policy, self.named)
        return sound if self.samples is None else sound.fitted(self.samples)

    @cached_property
    def published(self) -> np.ndarray | None:
        """(n,) at 22 050 Hz, all of the file as published code reads it; None: that is the sound itself."""
        plain, rate_hz = read_plain(self.path, self.named, self.policy.longest_s)
        same = rate_hz == SAMPLE_RATE_HZ and np.array_equal(plain, self.sound.waveform)
        return None if same else at_published_rate(plain, rate_hz)


def measure_clip(job: ClipJob) -> ClipMeasurements:
    """⇒ everything measured of one clip. A file that can't be used has its sentence in the result; none is raised."""
    cache = FeatureCache(job.cache)
    reference = _Reader(job.reference.path, job.policy, named=job.sound)
    try:
        true = _measured(reference, cache, job, job.keep_reference)
    except ITEM_FAULTS as error:
        return ClipMeasurements(job.id, reason_of(error, reference.path))
    clip = ClipMeasurements(job.id, true)
    for system, file in job.sounds:
        reader = _Reader(file.path, job.policy, true.features.samples)
        try:
            measured = _measured(reader, cache, job)
            measured.pair_values = {m.key: _pair_value(m, reference, reader, cache) for m in job.metrics}
            clip.sounds[system, file.sample] = measured
        except ITEM_FAULTS as error:
            clip.sounds[system, file.sample] = reason_of(error, file.path)
    if job.video is not None:
        for variant in job.flows:
            try:
                clip.flows[variant] = _flow(job.video, variant, job.policy, cache)
            except ITEM_FAULTS as error:
                clip.flows[variant] = reason_of(error, job.video)
    return clip


def failed_clip(job: ClipJob, why: str) -> ClipMeasurements:
    """⇒ the result of a clip whose measuring ended its process: a sentence."""
    return ClipMeasurements(job.id, f"{job.reference.path}: the clip {why}")


def split_by_file(job: ClipJob) -> list[ClipJob]:
    """⇒ one job per file, which shows the file that ends its process: first the true sound alone, then each sound with
    it, then the pictures with it."""
    alone = replace(job, sounds=(), video=None)
    return [alone, *(replace(job, sounds=(sound,), video=None) for sound in job.sounds),
            *([replace(job, sounds=())] if job.video is not None and job.flows else [])]


def join_files(job: ClipJob, parts: list[ClipMeasurements]) -> ClipMeasurements:
    """⇒ the results of :func:`split_by_file`'s jobs as one."""
    if isinstance(parts[0].reference, str):
        return parts[0]
    clip = ClipMeasurements(job.id, parts[0].reference)
    for (system, file), part in zip(job.sounds, parts[1:]):
        broken = part.reference.replace(str(job.reference.path), str(file.path), 1) \
            if isinstance(part.reference, str) else None
        clip.sounds[system, file.sample] = broken or part.sounds[system, file.sample]
    if len(parts) > 1 + len(job.sounds):
        last = parts[-1]
        clip.flows = ({name: f"{job.video}: {last.reference}" for name in job.flows}
                      if isinstance(last.reference, str) else last.flows)
    return clip


def _measured(reader: _Reader, cache: FeatureCache, job: ClipJob, keep: bool = False) -> SoundMeasurements:
    digest = reader.digest
    key = cache_key("features", SOUND_VERSION, job.policy, digest)
    arrays = cache.get(key)
    if arrays is None or reader.samples is not None and "fitted_s" not in arrays:  # as caches of before lack it
        features = sound_features(reader.sound.waveform, reader.published)
        notes, padded, fitted_s = reader.sound.notes, reader.sound.padded, reader.sound.fitted_s
        notes_json = np.frombuffer(json.dumps(notes).encode(), np.uint8)
        cache.put(key, {**features.arrays(), "notes": notes_json, "padded": np.array(padded),
                        "fitted_s": np.array(fitted_s)})
    else:
        features = SoundFeatures.of_arrays(arrays)
        notes, padded = json.loads(arrays["notes"].tobytes()), bool(arrays["padded"])
        fitted_s = float(arrays.get("fitted_s", 0.0))
    embeddings = {name: cached for name, fingerprint in job.backbones
                  if (cached := cache.get(backbone_key(fingerprint, digest))) is not None}
    keep = keep or len(embeddings) < len(job.backbones)
    return SoundMeasurements(features, digest, notes, embeddings, reader.sound.waveform if keep else None,
                             padded=padded, fitted_s=fitted_s)


def backbone_key(fingerprint: str, digest: str) -> str:
    """⇒ the cache key of a backbone's embeddings of a sound."""
    return cache_key("backbone", fingerprint, digest)


def _pair_value(metric: Metric, reference: _Reader, generated: _Reader, cache: FeatureCache) -> float | None:
    key = cache_key("pair", metric.key, metric.version, LIBRARIES, reference.digest, generated.digest)
    arrays = cache.get(key)
    if arrays is None:
        value = waveform_value(metric, reference.sound.waveform, generated.sound.waveform)
        arrays = {"value": np.array(np.nan if value is None else value)}
        cache.put(key, arrays)
    value = float(arrays["value"])
    return None if np.isnan(value) else value


def _flow(video: Path, variant: str, policy: LoadingPolicy, cache: FeatureCache) -> FlowTrajectory:
    key = cache_key("flow", FLOW_VERSION, variant, policy.longest_s, content_hash(video))
    arrays = cache.get(key)
    if arrays is not None:
        return FlowTrajectory(arrays["magnitudes"], float(arrays["fps"]), variant)
    flow = measure_flow(video, variant, longest_s=policy.longest_s)
    cache.put(key, {"magnitudes": flow.magnitudes, "fps": np.array(flow.fps)})
    return flow
