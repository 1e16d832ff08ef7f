"""Sounds for a whole split of a dataset: n samples a clip, shared among workers, resumable."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, field
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
from ..runtime.files import printable, require_name, writing_to
from ..runtime.randomness import seed_of
from .pipeline import Pipeline
from .videos import changed_settings, check_folder, reason_of, require_finite, write_record

SETTINGS_NAME = "generation.json"
_SHOWN = 10  # failures that a summary names


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


@dataclass
class SplitOutcome:
    """The outcome for one worker's share of a split.

    Args:
        made: number of sounds that were made.
        there: number of sounds that were there.
        failures: {clip, or shard that can't be read: reason}.
    """

    made: int = 0
    there: int = 0
    failures: dict[str, str] = field(default_factory=dict)

    @property
    def exit_status(self) -> int:
        """0: all done. 1: some failed. 2: all failed."""
        return 0 if not self.failures else 1 if self.made + self.there else 2

    @property
    def summary(self) -> str:
        """The first failures and their number, to be printed; "" where there is none."""
        if not self.failures:
            return ""
        first = [f"{name}: {reason}" for name, reason in list(self.failures.items())[:_SHOWN]]
        more = [f"and {len(self.failures) - _SHOWN} more"] if len(self.failures) > _SHOWN else []
        return "\n  ".join([f"{len(self.failures)} clips failed:", *first, *more])


def generate_split(pipeline: Pipeline, request: SplitRequest, model: dict[str, str],
                   progress: Callable[[int, int], None] = lambda made, there: None) -> SplitOutcome:
    """Write ``<key>-<sample>.wav`` and ``.json`` for this worker's clips ⇒ counts, and the clips that failed.

    A sound's seed is seed_of(seed, key, sample), so it is the same on any worker and in any batch. A clip that can't be
    used doesn't stop the others.

    Args:
        pipeline: the model.
        request: what is generated.
        model: name and hash, for the records.
        progress: called with the numbers of sounds made and there so far.

    Raises:
        InputError: the dataset is not of the model's kind, or the folder holds sounds made by other settings.
        EndOfRun: nothing more can be written to the folder, or the model's weights hold NaN.
    """
    info = read_dataset(request.shards)
    _require_same_features(pipeline, request, info)
    check_folder(request.out)
    with writing_to(request.out):
        _claim_folder(pipeline, request, info, model)
    outcome = SplitOutcome()
    waiting: list[_Job] = []
    for job in _jobs(request, info, outcome.failures):
        record = _path(request, job, ".json")
        try:
            require_name(record)
            outcome.there += (there := record.exists())
        except (InputError, OSError) as error:
            outcome.failures[printable(job.features.key)] = reason_of(error, record)
            continue
        if not there:
            waiting.append(job)
        if len(waiting) == request.batch_size:
            _generate(pipeline, request, waiting, outcome)
            waiting = []
        progress(outcome.made, outcome.there)
    _generate(pipeline, request, waiting, outcome)
    progress(outcome.made, outcome.there)
    return outcome


def count_sounds(request: SplitRequest) -> int:
    """The number of sounds in this worker's share."""
    clips = read_dataset(request.shards).records(request.split)
    return len(range(request.rank, clips, request.world)) * request.samples


def _jobs(request: SplitRequest, info: DatasetInfo, failures: dict[str, str]) -> Iterator[_Job]:
    """This worker's sounds; a shard that can't be read goes to ``failures``."""
    position = 0
    for shard in info.shards(request.split):
        mine = [i for i in range(shard.records) if (position + i) % request.world == request.rank]
        position += shard.records
        if mine:
            try:
                records = read_records(request.shards, shard)
            except Exception as error:
                failures[shard.name] = f"{len(mine)} clips: {reason_of(error, shard.name)}"
                continue
            for i in mine:
                for sample in range(request.samples):
                    yield _Job(records[i], sample, seed_of(request.seed, records[i].key, sample))


def _generate(pipeline: Pipeline, request: SplitRequest, jobs: list[_Job], outcome: SplitOutcome) -> None:
    """Clips up to the model's length in one batch, longer ones one by one; one by one too where a batch fails."""
    short = [job for job in jobs if len(job.features.waveform) <= pipeline.spec.samples]
    alone = [[job] for job in jobs if len(job.features.waveform) > pipeline.spec.samples]
    for batch in [short, *alone] if short else alone:
        try:
            waveforms = _sounds(pipeline, batch)
        except Exception as error:
            if len(batch) > 1:
                reason_of(error, "")  # an error of the program, or of all clips, ends the run
                for job in batch:
                    _generate(pipeline, request, [job], outcome)
            else:
                outcome.failures[printable(batch[0].features.key)] = reason_of(error, batch[0].features.key)
            continue
        for job, waveform in zip(batch, waveforms):
            try:
                _write(pipeline, request, job, waveform)
            except Exception as error:
                outcome.failures[printable(job.features.key)] = reason_of(error, job.features.key)
            else:
                outcome.made += 1


def _sounds(pipeline: Pipeline, jobs: list[_Job]) -> list[np.ndarray]:
    spec = pipeline.spec
    if len(jobs) == 1 and len(jobs[0].features.waveform) > spec.samples:
        return [pipeline.generate_features(jobs[0].features, jobs[0].seed)]
    batch = collate([window_of(job.features, spec, job.seed) for job in jobs], spec)
    waveforms = pipeline.generate_batch(batch, [job.seed for job in jobs]).numpy()
    return [waveform[:len(job.features.waveform)] for job, waveform in zip(jobs, waveforms)]


def _write(pipeline: Pipeline, request: SplitRequest, job: _Job, waveform: np.ndarray) -> None:
    require_finite(pipeline, waveform)
    rate_hz = pipeline.spec.sample_rate_hz
    record = {
        "key": job.features.key, "sample": job.sample, "seed": job.seed, "caption": job.features.caption,
        "objects": job.features.objects, "samples": len(waveform), "level": asdict(measure_level(waveform, rate_hz)),
    }
    with writing_to(request.out):
        write_wav(_path(request, job, ".wav"), waveform, rate_hz)
        write_record(_path(request, job, ".json"), record)


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
    write_record(path, content)
