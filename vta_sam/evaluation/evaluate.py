"""What a result rests on: files, policy, versions, seeds."""

from __future__ import annotations

import hashlib
import resource
import time
from collections.abc import Callable, Iterable, Iterator
from datetime import UTC, datetime
from functools import partial
from importlib.metadata import version
from typing import Any

import cv2

from .. import __version__
from ..runtime.errors import InputError
from .aggregate import Judge, SetFigures
from .backbone_embeddings import Ceiling, Ears
from .clip_measurements import Bank
from .columns import all_columns, flow_columns
from .measure import ClipJob, ClipMeasures, Measured, apart, failed_clip, joined, map_guarded, measure_clip
from .pairing import Plan, Words, make_plan
from .request import Request
from .results import Evaluation
from .sounds import FeatureCache, LoadingPolicy

# MERGED-DOC """Systems on the same clips: measured once, scored, compared. All of an evaluation but its table, plots
# and page."""


_PACKAGES = ("torch", "numpy", "scipy", "librosa", "mir_eval", "av")


def provenance(policy: LoadingPolicy, settings: dict[str, Any],
               sounds: dict[str, Iterable[Measured]]) -> dict[str, Any]:
    """⇒ JSON's types. sounds: {name: what was measured}; each set has one hash, which changes with any file in it."""
    return {
        "code_version": __version__,
        "versions": {**{name: version(name) for name in _PACKAGES}, "OpenCV": cv2.__version__},
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        "loading": {"policy": f"{policy.name} (version {policy.version})", "clip_s": policy.clip_s,
                    "lowest_rate_hz": policy.lowest_rate_hz, "shortest_s": policy.shortest_s,
                    "longest_s": policy.longest_s},
        **settings,
        "sets": {name: hashlib.sha256("".join(sorted(sound.digest for sound in found)).encode()).hexdigest()[:16]
                 for name, found in sounds.items()},
    }


Progress = Callable[[int, int, int], None]  # clips done, of how many, files that could not be used


def evaluate(request: Request, progress: Progress = lambda done, clips, failed: None) -> tuple[Evaluation, Plan]:
    """Measure every file once and score it ⇒ the evaluation, and which file was which clip's.

    Memory grows by a few ten kB a sound (envelope, onsets, vectors), never by waveforms or pictures. InputError at the
    first file that can't be used, unless ``skip_bad``: then it is listed with its sentence and left out.
    """
    began = time.monotonic()
    plan = make_plan(request.systems, request.reference, request.videos, request.ids, request.skip_bad)
    cache = FeatureCache(request.cache)
    ears = Ears.of(request.backbones, request.weights, request.device, request.batch_size, cache)
    ceiling = Ceiling(request.ceiling, request.device, cache) if request.ceiling else None
    bank = Bank(plan, request.skip_bad)
    for done, clip in enumerate(_measured(request, plan, ears, ceiling is not None), 1):
        bank.add(clip, request.words.get(clip.id, Words()))
        if clip.id in bank.truths:
            measured = [sound for sound in clip.sounds.values() if not isinstance(sound, str)]
            true = bank.truths[clip.id].sound
            if ceiling is not None:
                bank.ceiling[clip.id] = ceiling.measure(true)
                measured.append(bank.ceiling[clip.id])
            ears.hear([true, *measured])
        progress(done, len(plan.clips), bank.failed)
    ears.finish()
    if not bank.truths:
        raise InputError(f"none of the {len(plan.clips)} clips of {request.reference} can be scored; the first: "
                         f"{next(iter(bank.bad_clips.values()))}")
    labelled = any(truth.label in ears.tiny_classes for truth in bank.truths.values())
    columns = all_columns(ears.titles, request.flows, labelled)
    missing = {**ears.missing_columns(), **_no_pictures(request, bank)}
    sets = SetFigures(bank.truths, request.seed, request.set_resamples)
    judge = Judge(bank, columns, missing, sets, request.seed, request.resamples, _reference_among(request),
                  ears.tiny_classes)
    evaluation = judge.evaluation()
    evaluation.missing |= ears.not_shipped()
    evaluation.provenance = _provenance(request, bank, ears, ceiling, time.monotonic() - began)
    return evaluation, plan


def _measured(request: Request, plan: Plan, ears: Ears, keep_reference: bool) -> Iterator[ClipMeasures]:
    def jobs() -> Iterator[ClipJob]:
        for clip_id in plan.clips:
            sounds = tuple((name, file) for name, found in plan.sounds.items() for file in found.get(clip_id, ()))
            yield ClipJob(clip_id, plan.references[clip_id], sounds, plan.videos.get(clip_id), tuple(request.flows),
                          request.policy, ears.fingerprints, request.cache, keep_reference)

    files = 1 + max(sum(len(found.get(clip, ())) for found in plan.sounds.values()) for clip in plan.clips)
    limit_s = files * request.limit_s + len(request.flows) * request.flow_limit_s
    guarded: Any = partial(map_guarded, workers=request.workers, limit_s=limit_s, memory_mb=request.memory_mb)
    for outcome in guarded(measure_clip, jobs(), failed=lambda job, why: job):
        if isinstance(outcome, ClipJob):  # one of its files ended the process: which?
            yield joined(outcome, list(guarded(measure_clip, apart(outcome), failed=failed_clip)))
        else:
            yield outcome


def _no_pictures(request: Request, bank: Bank) -> dict[str, str]:
    """Columns of AV-Align that can't be had, and why."""
    if any(truth.flows for truth in bank.truths.values()):
        return {}
    why = "needs pictures: name a folder of videos with videos=" if not bank.plan.videos else \
        "no video's pictures could be read"
    return {column.key: why for column in flow_columns(request.flows)}


def _reference_among(request: Request) -> str | None:
    """The system that is the true sound itself, if it was named as one."""
    return next((name for name, folder in request.systems.items()
                 if folder.exists() and folder.samefile(request.reference)), None)


def _provenance(request: Request, bank: Bank, ears: Ears, ceiling: Ceiling | None, took_s: float) -> dict[str, Any]:
    settings = {
        "systems": {name: str(folder) for name, folder in request.systems.items()},
        "reference": str(request.reference), "clips": len(bank.truths), "seed": request.seed,
        "resamples": request.resamples, "set_resamples": request.set_resamples, "skip_bad": request.skip_bad,
        "bad_true_sounds_and_pictures": bank.bad_clips,
        "true_onsets": {True: "events of the scene", False: "detected in the true sound"}[
            all(truth.exact for truth in bank.truths.values())],
        "flow": list(request.flows), "backbones": dict(ears.fingerprints),
        "ceiling": None if ceiling is None else {"model": str(ceiling.folder), "hash": ceiling.hash},
        "took_s": round(took_s, 1),
        "peak_memory_mb": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024,
    }
    sounds = {name: [sound for samples in found.values() for sound in samples] for name, found in bank.sounds.items()}
    true = [truth.sound for truth in bank.truths.values()]
    return provenance(request.policy, settings, {**sounds, "true sound": true})
