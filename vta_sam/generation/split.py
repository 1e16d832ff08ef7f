"""Sounds for a whole split of a dataset: n samples a clip, shared among workers, resumable."""

from __future__ import annotations

import hashlib
import itertools
import json
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any
from urllib.parse import unquote

import numpy as np

from .. import __version__
from ..clip import ClipFeatures, ClipSpec
from ..dataset.shards.batch import collate, window_of
from ..dataset.shards.records import Members, decoded_record, read_stored
from ..dataset.shards.schema import ShardInfo, member_key, read_dataset
from ..diffusion.sampler import BaseSampler
from ..media.audio import write_wav
from ..metrics.signal import measure_level
from ..runtime.errors import InputError
from ..runtime.files import claimed, printable, reason_of, require_name, sweep_claims, writing_to
from ..runtime.randomness import seed_of
from ..runtime.work_plan import Deed, Item, Plan, counted, share_of
from .build import notes_on_nouns, require_same_features
from .inputs import ResultFiles, changed_settings, write_record
from .pipeline import Pipeline
from .planning import LONGEST_WAIT_S, SplitRequest, check_folder
from .videos import require_finite

SETTINGS_NAME = "generation.json"
_SHOWN = 10  # failures that a summary names


@dataclass(frozen=True)
class SoundTask:
    """What a plan says of one sound.

    Args:
        shard: that holds its clip.
        index: of the clip in the shard.
        sample: of the clip's sounds.
        key: of the clip; None: the shard has not been read.
        item: its row in the plan; None where the shard has one row.
    """

    shard: ShardInfo
    index: int
    sample: int
    key: str | None = None
    item: Item | None = None


@dataclass(frozen=True)
class SplitPlan:
    """The plan of one worker's share of a split.

    Args:
        tasks: one a sound, in stored order.
        plan: the same, to be shown. While no sound is there, its items are shards.
        settings: of the folder's sounds.
        unread: {shard that can't be read: reason}.
    """

    tasks: tuple[SoundTask, ...]
    plan: Plan
    settings: dict[str, Any]
    unread: dict[str, str]


@dataclass(frozen=True)
class _Job:
    features: ClipFeatures
    sample: int
    seed: int
    digest: str
    files: ResultFiles


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


def plan_split(request: SplitRequest, model: dict[str, str], sampler: BaseSampler, spec: ClipSpec,
               trained_on: dict[str, Any], share: str = "") -> SplitPlan:
    """Work out what :func:`generate_split` does, without writing anything.

    Shards are read only where the folder holds sounds already.

    Args:
        request: what is generated.
        model: name and hash, for the records.
        sampler: with the settings of this run.
        spec: of the model.
        trained_on: the model's features, as model.yaml has them.
        share: which share this is, in words.

    Raises:
        InputError: the dataset is not of the model's kind, the folder holds sounds made by other settings or of another
            dataset, or it can't be written to.
    """
    info = read_dataset(request.shards)
    require_same_features(trained_on, spec, str(request.shards), info)
    check_folder(request.out)
    settings = {
        "model_hash": model["hash"], "split": request.split, "seed": request.seed, **sampler.recorded(),
        "dataset_config_hash": info.config_hash, "dataset_manifest_hash": info.manifest_hash,
        "dataset": info.fingerprint,
    }
    notes = _require_same_settings(request, settings)
    notes += notes_on_nouns(trained_on, info.nouns, "extract again by the rules of training to have the same")
    notes += [info.lacks] if info.lacks else []
    begun = any(path.name != SETTINGS_NAME for path in request.out.glob("*.json"))
    tasks, items, unread = list[SoundTask](), list[Item](), dict[str, str]()
    size, position = 2 * spec.samples, 0
    shards = info.shards(request.split)
    share_of_clips = share_of(sum(shard.records for shard in shards), request.rank, request.world,
                              request.consecutive)
    for shard in shards:
        mine = [i for i in range(shard.records) if position + i in share_of_clips]
        position += shard.records
        if not mine:
            continue
        if not begun:
            tasks += [SoundTask(shard, i, sample) for i in mine for sample in range(request.samples)]
            count = len(mine) * request.samples
            items.append(Item(shard.name, Deed.MAKE, counted(count, "sound"), count * size))
            continue
        try:
            stored = read_stored(request.shards, shard)
        except Exception as error:
            unread[shard.name] = f"{len(mine)} clips: {reason_of(error, shard.name)}"
            items.append(Item(shard.name, Deed.LEAVE_OUT, unread[shard.name]))
            continue
        for i in mine:
            key, digest = _identity(*stored[i])
            for sample in range(request.samples):
                items.append(_judge(request, key, sample, digest, size))
                tasks.append(SoundTask(shard, i, sample, key, items[-1]))
    title = f"sounds for split {request.split} of {request.shards}"
    return SplitPlan(tuple(tasks), Plan(title, items, request.out, share, notes=notes), settings, unread)


def _identity(key: str, members: Members) -> tuple[str, str]:
    """⇒ (key, hash of what a clip's sound depends on) of a stored record."""
    content = hashlib.sha256(members.get("json", b"") + members.get("safetensors", b"")).hexdigest()[:16]
    return unquote(key), content


def _judge(request: SplitRequest, key: str, sample: int, digest: str, size: int | None = None) -> Item:
    """What is to be done for one sound."""
    files = _files(request, key, sample)
    name = files.path(".wav").name
    try:
        require_name(files.record)
        if not files.record.exists():
            return Item(name, Deed.MAKE, size=size)
        made_of = json.loads(files.record.read_text(encoding="utf-8")).get("clip", digest)
    except InputError as error:
        return Item(printable(key), Deed.LEAVE_OUT, str(error))
    except (OSError, ValueError, AttributeError) as error:
        return Item(name, Deed.MAKE_AGAIN, f"its record can't be read ({error})", size)
    if not files.path(".wav").exists():
        return Item(name, Deed.MAKE_AGAIN, "its record is there, and the sound itself is not", size)
    if made_of != digest:
        return Item(name, Deed.MAKE_AGAIN, "its clip has been extracted anew", size)
    return Item(name, Deed.KEEP)


def _files(request: SplitRequest, key: str, sample: int) -> ResultFiles:
    return ResultFiles(request.out, f"{member_key(key)}-{sample}")


def generate_split(pipeline: Pipeline, request: SplitRequest, model: dict[str, str],
                   progress: Callable[[int, int], None] = lambda made, there: None,
                   planned: SplitPlan | None = None) -> SplitOutcome:
    """Write ``<key>-<sample>.wav`` and ``.json`` for this worker's clips ⇒ counts, and the clips that failed.

    A sound's seed is seed_of(seed, key, sample), so it is the same on any worker and in any batch. A clip that can't be
    used doesn't stop the others. A sound that another process is making comes last, and counts as there once that
    process has finished it.

    Args:
        pipeline: the model.
        request: what is generated.
        model: name and hash, for the records.
        progress: called with the numbers of sounds made and there so far.
        planned: by :func:`plan_split`, with the same arguments; None: it is planned here.

    Raises:
        InputError: as :func:`plan_split`.
        EndOfRun: nothing more can be written to the folder, or the model's weights hold NaN.
    """
    planned = planned or plan_split(request, model, pipeline.sampler, pipeline.spec, pipeline.trained_on)
    sweep_claims(request.out)
    with writing_to(request.out):
        _claim_folder(request, planned.settings, model)
    outcome = SplitOutcome(failures=dict(planned.unread))
    left = []
    for task in planned.tasks:
        if task.item is not None and task.item.deed is Deed.LEAVE_OUT:
            outcome.failures[task.item.name] = task.item.detail
        elif task.item is not None and task.item.deed is Deed.KEEP:
            assert task.key is not None
            with writing_to(request.out):
                _files(request, task.key, task.sample).settle()
            outcome.there += 1
        else:
            left.append(task)
    progress(outcome.made, outcome.there)
    for wait_s in (0.0, LONGEST_WAIT_S):
        if left and wait_s:
            warnings.warn(f"another process is making {len(left)} of the sounds in {request.out}; waiting for it")
        left = _make(pipeline, request, left, outcome, progress, wait_s)
    for task in left:
        outcome.failures[f"{task.shard.name}, clip {task.index + 1}"] = (
            f"another process has been at it for {LONGEST_WAIT_S / 60:.0f} minutes; see whether that one goes on")
    return outcome


def _make(pipeline: Pipeline, request: SplitRequest, tasks: Sequence[SoundTask], outcome: SplitOutcome,
          progress: Callable[[int, int], None], wait_s: float) -> list[SoundTask]:
    """Make sounds in batches ⇒ those that another process is making."""
    elsewhere = list[SoundTask]()
    batch, rates = list[_Job](), (pipeline.spec.fps, pipeline.spec.sample_rate_hz)
    with ExitStack() as run:
        claims = run.enter_context(ExitStack())

        def make_batch() -> None:
            _generate(pipeline, request, batch, outcome)
            batch.clear()
            claims.close()

        for task, key, digest, members in _stored(request, tasks, outcome.failures):
            files = _files(request, key, task.sample)
            try:
                require_name(files.record)
                with writing_to(request.out):
                    if not claims.enter_context(claimed(files.record, wait_s, repeatable=True)):
                        elsewhere.append(task)
                        continue
                    files.settle()
                if _judge(request, key, task.sample, digest).deed is Deed.KEEP:  # finished since it was planned
                    outcome.there += 1
                    continue
                features = decoded_record(task.shard.name, member_key(key), members, rates=rates)
            except Exception as error:
                outcome.failures[printable(key)] = reason_of(error, key)
                continue
            batch.append(_Job(features, task.sample, seed_of(request.seed, key, task.sample), digest, files))
            if len(batch) == request.batch_size:
                make_batch()
            progress(outcome.made, outcome.there)
        make_batch()
        progress(outcome.made, outcome.there)
    return elsewhere


def _stored(request: SplitRequest, tasks: Sequence[SoundTask], failures: dict[str, str],
            ) -> Iterator[tuple[SoundTask, str, str, Members]]:
    """(task, key, hash of the clip, its members) of each; a shard that can't be read goes to ``failures``."""
    for shard, of_shard in itertools.groupby(tasks, key=lambda task: task.shard):
        wanted = list(of_shard)
        try:
            stored = read_stored(request.shards, shard)
        except Exception as error:
            clips = len({task.index for task in wanted})
            failures[shard.name] = f"{clips} clips: {reason_of(error, shard.name)}"
            continue
        for task in wanted:
            key, members = stored[task.index]
            yield task, *_identity(key, members), members


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
        "clip": job.digest,
    }
    with writing_to(request.out), job.files.replaced():
        write_wav(job.files.new(".wav"), waveform, rate_hz)
        job.files.commit(record)


def _settings_before(out: Path) -> dict[str, Any] | None:
    """The settings that a folder's sounds were made with; None: it was not begun."""
    path = out / SETTINGS_NAME
    try:
        return dict(json.loads(path.read_text(encoding="utf-8"))["settings"])
    except FileNotFoundError:
        return None
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise InputError(f"{path} can't be read ({error}); name another folder with out=") from error


def _require_same_settings(request: SplitRequest, settings: dict[str, Any]) -> list[str]:
    """Refuse a folder whose sounds were made with other settings ⇒ notes for the plan.

    A dataset is known by its fingerprint, wherever it lies. One of the same manifest and extraction goes on under
    another fingerprint, since failed clips that were tried again bring further clips; records of earlier releases have
    no fingerprint.
    """
    before = _settings_before(request.out)
    if before is None:
        return []
    dataset = ("dataset_config_hash", "dataset_manifest_hash")
    if any(before.get(name) != settings[name] for name in dataset):
        raise InputError(f"{request.out} holds sounds for another dataset than {request.shards} (by its manifest and "
                         "the settings of its extraction); name another folder with out=")
    known = before.get("dataset")
    former = changed_settings({**before, "dataset": settings["dataset"]}, settings)
    if former:
        raise InputError(f"{request.out} holds sounds made with {former}; name another folder with out=")
    return [] if known in (None, settings["dataset"]) else [
        f"the dataset has changed since {request.out} was begun: sounds of clips that are the same are kept"]


def _claim_folder(request: SplitRequest, settings: dict[str, Any], model: dict[str, str]) -> None:
    """Write the settings that the folder's sounds are made with, once for all workers."""
    path = request.out / SETTINGS_NAME
    with claimed(path, LONGEST_WAIT_S, repeatable=True):
        _require_same_settings(request, settings)  # another worker may have been faster
        if (_settings_before(request.out) or {}).get("dataset") != settings["dataset"]:
            write_record(path, {"settings": settings, "model": model, "shards": str(request.shards),
                                "code_version": __version__})
