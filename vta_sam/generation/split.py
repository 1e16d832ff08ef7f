"""Sounds for a whole split of a dataset: n samples a clip, shared among workers, resumable."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np

from .. import __version__
from ..clip import ClipFeatures
from ..dataset.shards.batch import collate, window_of
from ..dataset.shards.records import read_records
from ..dataset.shards.schema import DatasetInfo, member_key, read_dataset
from ..dataset.shards.storage import Root
from ..media.audio import write_wav
from ..metrics.signal import measure_level
from ..perception.base import differing_settings
from ..runtime.cli import check_number
from ..runtime.errors import InputError
from ..runtime.files import write_text
from ..runtime.randomness import seed_of
from .pipeline import Pipeline
from .videos import changed_settings

SETTINGS_NAME = "generation.json"


@dataclass(frozen=True)
class SplitRequest:
    """Settings of generation for a split.

    Args:
        shards: folder or URL of the dataset.
        split: its name.
        out: folder to write to.
        samples: sounds a clip.
        seed: of all noise.
        rank: of this worker, which takes clips rank, rank + world, … of the split, in stored order.
        world: number of workers.
        batch_size: clips at once. It changes speed, and results only by rounding.
    """

    shards: Root
    split: str
    out: Path
    samples: int = 1
    seed: int = 0
    rank: int = 0
    world: int = 1
    batch_size: int = 16

    def __post_init__(self):
        check_number("seed", self.seed, 0, whole=True)
        for name in ("samples", "batch_size", "world"):
            check_number(name, getattr(self, name), 1, whole=True)
        check_number("rank", self.rank, 0, self.world - 1, whole=True)


@dataclass(frozen=True)
class _Job:
    features: ClipFeatures
    sample: int
    seed: int


def generate_split(pipeline: Pipeline, request: SplitRequest, model: dict[str, str],
                   progress: Callable[[int, int], None] = lambda made, there: None) -> tuple[int, int]:
    """Write ``<key>-<sample>.wav`` and ``.json`` for this worker's clips ⇒ (sounds made, sounds that were there).

    A sound's seed is seed_of(seed, key, sample), so it is the same on any worker and in any batch. progress: called
    with both counts so far. Raises InputError where the dataset is not the model's kind, or the folder holds sounds
    made by other settings.
    """
    info = read_dataset(request.shards)
    _require_same_features(pipeline, request, info)
    _claim_folder(pipeline, request, info, model)
    made = there = 0
    waiting: list[_Job] = []
    for job in _jobs(request, info):
        if _path(request, job, ".json").exists():
            there += 1
            progress(made, there)
            continue
        waiting.append(job)
        if len(waiting) == request.batch_size:
            made += _generate(pipeline, request, waiting)
            waiting = []
            progress(made, there)
    made += _generate(pipeline, request, waiting)
    progress(made, there)
    return made, there


def count_sounds(request: SplitRequest) -> int:
    """The number of sounds in this worker's share."""
    clips = read_dataset(request.shards).records(request.split)
    return len(range(request.rank, clips, request.world)) * request.samples


def _jobs(request: SplitRequest, info: DatasetInfo) -> Iterator[_Job]:
    position = 0
    for shard in info.shards(request.split):
        mine = [i for i in range(shard.records) if (position + i) % request.world == request.rank]
        position += shard.records
        if mine:
            records = read_records(request.shards, shard)
            for i in mine:
                for sample in range(request.samples):
                    yield _Job(records[i], sample, seed_of(request.seed, records[i].key, sample))


def _generate(pipeline: Pipeline, request: SplitRequest, jobs: list[_Job]) -> int:
    """Clips up to the model's length in one batch, longer ones one by one ⇒ how many."""
    spec = pipeline.spec
    short = [job for job in jobs if len(job.features.waveform) <= spec.samples]
    if short:
        batch = collate([window_of(job.features, spec, job.seed) for job in short], spec)
        waveforms = pipeline.generate_batch(batch, [job.seed for job in short])
        for job, waveform in zip(short, waveforms.numpy()):
            _write(pipeline, request, job, waveform[:len(job.features.waveform)])
    for job in jobs:
        if len(job.features.waveform) > spec.samples:
            waveform = pipeline.generate_features(job.features, job.seed)
            _write(pipeline, request, job, waveform)
    return len(jobs)


def _write(pipeline: Pipeline, request: SplitRequest, job: _Job, waveform: np.ndarray) -> None:
    rate_hz = pipeline.spec.sample_rate_hz
    write_wav(_path(request, job, ".wav"), waveform, rate_hz)
    record = {
        "key": job.features.key, "sample": job.sample, "seed": job.seed, "caption": job.features.caption,
        "objects": job.features.objects, "samples": len(waveform), "level": asdict(measure_level(waveform, rate_hz)),
    }
    write_text(_path(request, job, ".json"), json.dumps(record, indent=1, ensure_ascii=False) + "\n")


def _path(request: SplitRequest, job: _Job, suffix: str) -> Path:
    return request.out / f"{member_key(job.features.key)}-{job.sample}{suffix}"


def _require_same_features(pipeline: Pipeline, request: SplitRequest, info: DatasetInfo) -> None:
    names = ("grounder", "encoder", "frame_dim", "object_dim", "caption_dim")
    known = {name: pipeline.trained_on[name] for name in names if name in pipeline.trained_on}
    info.require(str(request.shards), fps=pipeline.spec.fps, sample_rate_hz=pipeline.spec.sample_rate_hz, **known)
    if info.settings and "settings" in pipeline.trained_on:
        wrong = differing_settings(pipeline.trained_on["settings"], info.settings)
        if wrong:
            raise InputError(f"{request.shards}: {'; '.join(wrong)}. Extract again with the settings of training")


def _claim_folder(pipeline: Pipeline, request: SplitRequest, info: DatasetInfo, model: dict[str, str]) -> None:
    """Write the settings that the folder's sounds are made with, or refuse a folder made with others."""
    settings = {
        "model_hash": model["hash"], "split": request.split, "seed": request.seed, **pipeline.sampler.recorded(),
        "dataset_config_hash": info.config_hash, "dataset_manifest_hash": info.manifest_hash,
    }
    path = request.out / SETTINGS_NAME
    if path.exists():
        try:
            before = dict(json.loads(path.read_text(encoding="utf-8"))["settings"])
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise InputError(f"{path} can't be read ({error}); name another folder with out=") from error
        former = changed_settings(before, settings)
        if former:
            raise InputError(f"{request.out} holds sounds made with {former}; name another folder with out=")
        return
    content = {"settings": settings, "model": model, "shards": str(request.shards), "code_version": __version__}
    write_text(path, json.dumps(content, indent=1, ensure_ascii=False) + "\n")
