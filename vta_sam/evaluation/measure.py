"""Clips measured in processes that a broken file may crash, hang or bloat without harm to the others."""

from __future__ import annotations

import json
import multiprocessing
import resource
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import TimeoutError as LateError
from dataclasses import dataclass, field, replace
from functools import cached_property
from importlib.metadata import version
from pathlib import Path
from typing import TypeVar

import cv2
import numpy as np
from pebble import ProcessExpired, ProcessPool

from ..metrics import signal as spectral
from ..metrics.flow import FlowTrajectory, measure_flow
from ..runtime.errors import InputError
from .pairing import SoundFile
from .sounds import (
    FEATURES_VERSION, Arrays, FeatureCache, LoadingPolicy, Sound, SoundFeatures, cache_key, content_hash, read_sound,
    sound_features
)

# MERGED-DOC """One clip measured: its true sound, every system's sound and its pictures, each decoded once, and only
# if the cache does not know it yet. Runs in worker processes; what it gives is small arrays and, where needed,
# waveforms."""


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


# raised when what is measured changes; a library's new version may change it too
FLOW_VERSION = f"1, OpenCV {cv2.__version__}"
SOUND_VERSION = f"{FEATURES_VERSION}, librosa {version('librosa')}"
PAIR_VERSION = f"1, librosa {version('librosa')}"


@dataclass(frozen=True)
class ClipJob:
    """One clip's files. sounds: (system, file) of each sample; flows: names of flow variants wanted of ``video``;
    backbones: (name, fingerprint) of those whose rows may be in the cache; keep_reference: the true waveform is wanted
    in any case."""

    id: str
    reference: SoundFile
    sounds: tuple[tuple[str, SoundFile], ...]
    video: Path | None
    flows: tuple[str, ...]
    policy: LoadingPolicy
    backbones: tuple[tuple[str, str], ...]
    cache: Path | None
    keep_reference: bool = False


@dataclass
class Measured:
    """One sound. digest: of its file and of how it was read; rows: backbone ⇒ its cached arrays; waveform: kept only
    where a backbone's rows are not in the cache. log_spectral_distance_db: to the true sound."""

    digest: str
    features: SoundFeatures
    notes: list[str]
    rows: dict[str, Arrays]
    waveform: np.ndarray | None = None
    log_spectral_distance_db: float | None = None
    padded: bool = False


@dataclass
class ClipMeasures:
    """A clip's reference, its sounds by (system, sample), and its flow by variant; a str in place of any says why it
    could not be measured."""

    id: str
    reference: Measured | str
    sounds: dict[tuple[str, int], Measured | str] = field(default_factory=dict)
    flows: dict[str, FlowTrajectory | str] = field(default_factory=dict)


@dataclass
class _Reader:
    """A file that is decoded when first needed, once."""

    path: Path
    policy: LoadingPolicy
    samples: int | None = None  # to cut or pad to

    @cached_property
    def digest(self) -> str:
        """Of the bytes and of everything that decides what is heard of them."""
        policy = self.policy
        return cache_key("sound", policy.version, policy.clip_s, self.samples, content_hash(self.path))

    @cached_property
    def sound(self) -> Sound:
        sound = read_sound(self.path, self.policy)
        return sound if self.samples is None else sound.fitted(self.samples)


def measure_clip(job: ClipJob) -> ClipMeasures:
    """Everything of one clip. A file that can't be used has its sentence in the result; nothing is raised for it."""
    cache = FeatureCache(job.cache)
    reference = _Reader(job.reference.path, job.policy)
    try:
        true = _measured(reference, cache, job, job.keep_reference)
    except InputError as error:
        return ClipMeasures(job.id, str(error))
    clip = ClipMeasures(job.id, true)
    for system, file in job.sounds:
        reader = _Reader(file.path, job.policy, true.features.samples)
        try:
            measured = _measured(reader, cache, job)
            measured.log_spectral_distance_db = _distance(reference, reader, cache)
            clip.sounds[system, file.sample] = measured
        except InputError as error:
            clip.sounds[system, file.sample] = str(error)
    if job.video is not None:
        for variant in job.flows:
            try:
                clip.flows[variant] = _flow(job.video, variant, job.policy, cache)
            except InputError as error:
                clip.flows[variant] = str(error)
    return clip


def failed_clip(job: ClipJob, why: str) -> ClipMeasures:
    """What is left of a clip whose measuring ended its process."""
    return ClipMeasures(job.id, f"{job.reference.path}: the clip {why}")


def apart(job: ClipJob) -> list[ClipJob]:
    """The job as one per file, so that the one that ends its process is found: first the true sound alone, then each
    sound with it, then the pictures with it."""
    alone = replace(job, sounds=(), video=None)
    return [alone, *(replace(job, sounds=(sound,), video=None) for sound in job.sounds),
            *([replace(job, sounds=())] if job.video is not None and job.flows else [])]


def joined(job: ClipJob, parts: list[ClipMeasures]) -> ClipMeasures:
    """The results of :func:`apart`'s jobs as one."""
    if isinstance(parts[0].reference, str):
        return parts[0]
    clip = ClipMeasures(job.id, parts[0].reference)
    for (system, file), part in zip(job.sounds, parts[1:]):
        broken = part.reference.replace(str(job.reference.path), str(file.path), 1) \
            if isinstance(part.reference, str) else None
        clip.sounds[system, file.sample] = broken or part.sounds[system, file.sample]
    if len(parts) > 1 + len(job.sounds):
        last = parts[-1]
        clip.flows = ({name: f"{job.video}: {last.reference}" for name in job.flows}
                      if isinstance(last.reference, str) else last.flows)
    return clip


def _measured(reader: _Reader, cache: FeatureCache, job: ClipJob, keep: bool = False) -> Measured:
    digest = reader.digest
    key = cache_key("features", SOUND_VERSION, job.policy, digest)
    arrays = cache.get(key)
    if arrays is None:
        features = sound_features(reader.sound.waveform)
        words, padded = reader.sound.notes, reader.sound.padded
        notes = np.frombuffer(json.dumps(words).encode(), np.uint8)
        cache.put(key, {**features.arrays(), "notes": notes, "padded": np.array(padded)})
    else:
        features = SoundFeatures.of_arrays(arrays)
        words, padded = json.loads(arrays["notes"].tobytes()), bool(arrays["padded"])
    rows = {name: found for name, fingerprint in job.backbones
            if (found := cache.get(backbone_key(fingerprint, digest))) is not None}
    keep = keep or len(rows) < len(job.backbones)
    return Measured(digest, features, words, rows, reader.sound.waveform if keep else None, padded=padded)


def backbone_key(fingerprint: str, digest: str) -> str:
    """Where a backbone's rows of a sound are kept."""
    return cache_key("backbone", fingerprint, digest)


def _distance(reference: _Reader, generated: _Reader, cache: FeatureCache) -> float | None:
    key = cache_key("pair", PAIR_VERSION, reference.digest, generated.digest)
    arrays = cache.get(key)
    if arrays is None:
        distance = spectral.log_spectral_distance_db(reference.sound.waveform, generated.sound.waveform)
        arrays = {"log_spectral_distance_db": np.array(np.nan if distance is None else distance)}
        cache.put(key, arrays)
    value = float(arrays["log_spectral_distance_db"])
    return None if np.isnan(value) else value


def _flow(video: Path, variant: str, policy: LoadingPolicy, cache: FeatureCache) -> FlowTrajectory:
    key = cache_key("flow", FLOW_VERSION, variant, policy.longest_s, content_hash(video))
    arrays = cache.get(key)
    if arrays is not None:
        return FlowTrajectory(arrays["magnitudes"], float(arrays["fps"]), variant)
    flow = measure_flow(video, variant, longest_s=policy.longest_s)
    cache.put(key, {"magnitudes": flow.magnitudes, "fps": np.array(flow.fps)})
    return flow
