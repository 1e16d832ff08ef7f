"""Evaluation of systems on the same clips: a request, whose settings are checked before anything is measured, and the
measuring, scoring and comparing."""

from __future__ import annotations

import hashlib
import resource
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from functools import partial
from importlib.metadata import version
from pathlib import Path
from typing import Any

import cv2
import numpy as np

from .. import __version__
from ..dataset.shards.schema import read_dataset
from ..metrics.alignment import VARIANTS
from ..metrics.intervals import Resampling
from ..runtime.cli import check_number
from ..runtime.distributed import choose_device
from ..runtime.errors import InputError
from .aggregate import Aggregate, SetFigures
from .embeddings import BackboneEmbeddings, Ceiling, SyncTracks, read_in_av_benchmark
from .measure import ClipJob, failed_clip, join_files, map_guarded, measure_clip, split_by_file
from .metric import ClipMeasurements, Measurements, Metric, SoundMeasurements
from .metric_table import metrics_for
from .pairing import CAPTIONS_NAME, Plan, Words, find_systems, make_plan, read_ids, read_words
from .results import Evaluation
from .sounds import FeatureCache, LoadingPolicy

TRUE_SOUND = "true sound"
METRIC_SETS = ("standard", "all")
FLOWS: dict[str, tuple[str, ...]] = {"none": (), "full": ("full",), "fast": ("fast",), "both": ("full", "fast")}


@dataclass
class Request:
    """Settings of an evaluation.

    Args:
        systems: {name: folder of sounds}.
        reference: folder of true sounds.
        videos, ids, skip_bad: see :func:`~.pairing.make_plan`.
        words: {id: Words}, for labels.
        policy: of reading sounds.
        sound: which of a true video's sounds, by number or language; None: the one that a player plays.
        backbones: names; backbones without weights are reported as missing.
        weights: folder of their weights; None: the usual one.
        flows: variants of optical flow for AV-Align; () for none.
        shards: dataset of the clips, whose features the sync network reads, or None.
        sync: model folder of the sync network; None: the shipped one, of the embedded world.
        ceiling: model folder through whose VAE and vocoder the true sound is sent, or None.
        cache: folder, or None.
        seed, resamples: of bootstrap and control.
        set_resamples: of figures of whole sets, which cost more.
        workers: processes; 0 measures here, unguarded.
        limit_s: seconds for one file.
        flow_limit_s: seconds for one video's flow.
        memory_mb: MiB of one process.
        batch_size: sounds at once in a backbone.
        device: of torch.
        metrics: "standard", or "all": slow and misleading metrics too.
    """

    systems: Mapping[str, Path]
    reference: Path
    videos: Path | None = None
    ids: Sequence[str] | None = None
    words: Mapping[str, Words] = field(default_factory=dict)
    policy: LoadingPolicy = LoadingPolicy()
    backbones: Sequence[str] = ("tiny",)
    weights: Path | None = None
    flows: Sequence[str] = ()
    shards: Path | None = None
    sync: Path | None = None
    ceiling: Path | None = None
    cache: Path | None = None
    skip_bad: bool = False
    seed: int = 0
    resamples: int = 2000
    set_resamples: int = 200
    workers: int = 0
    limit_s: float = 60.0
    flow_limit_s: float = 900.0
    memory_mb: int = 4096
    batch_size: int = 16
    device: str = "cpu"
    metrics: str = "standard"
    sound: str | None = None

    def __post_init__(self):
        for name, low in (("seed", 0), ("resamples", 100), ("set_resamples", 20), ("workers", 0), ("memory_mb", 512),
                          ("batch_size", 1)):
            check_number(name, getattr(self, name), low, whole=True)
        for name in ("limit_s", "flow_limit_s"):
            check_number(name, getattr(self, name), 1)
        if self.metrics not in METRIC_SETS:
            raise InputError(f"metrics={self.metrics}: expected one of {', '.join(METRIC_SETS)}")
        unknown = [flow for flow in self.flows if flow not in VARIANTS]
        if unknown:
            raise InputError(f"flow: {', '.join(unknown)} is no variant of optical flow; there are "
                             f"{', '.join(VARIANTS)}")


def request_of(settings: Mapping[str, Any], systems: Mapping[str, Path], reference: Path) -> Request:
    """The settings of conf/evaluate.yaml or conf/compare.yaml ⇒ Request.

    Raises:
        InputError: a setting is wrong; the message names its key.
    """
    flow = settings["flow"]
    if flow not in FLOWS:
        raise InputError(f"flow={flow}: expected one of {', '.join(FLOWS)}")
    for name in ("clip_s", "lowest_rate_hz", "shortest_s", "longest_s"):
        if settings[name] is not None:
            check_number(name, settings[name], 1e-3)
    captions = settings["captions"]
    if captions is not None and not Path(captions).is_file():
        raise InputError(f"captions={captions} is no file; name a csv with a column id")
    candidates = [folder / CAPTIONS_NAME for folder in (reference, reference.parent)]
    table = Path(captions) if captions else next((path for path in candidates if path.is_file()), candidates[0])
    videos, weights, ceiling, cache, shards, sync = (
        None if settings[name] is None else Path(settings[name])
        for name in ("videos", "weights", "ceiling", "cache", "shards", "sync"))
    policy = LoadingPolicy(settings["clip_s"], settings["lowest_rate_hz"], settings["shortest_s"],
                           settings["longest_s"])
    unchanged: dict[str, Any] = {name: settings[name] for name in (
        "metrics", "skip_bad", "seed", "resamples", "set_resamples", "workers", "limit_s", "flow_limit_s", "memory_mb",
        "batch_size")}
    backbones = settings["backbones"]
    backbones = [backbones] if isinstance(backbones, str) else list(backbones or ())
    ids = None if settings["ids"] is None else read_ids(Path(settings["ids"]), settings["split"])
    device = str(choose_device(settings["device"], settings["threads"]))
    return Request(systems, reference, videos, ids, read_words(table), policy, backbones, weights, FLOWS[flow], shards,
                   sync, ceiling, cache, device=device, sound=settings.get("sound"), **unchanged)


def named_folders(given: str | Sequence[str] | Mapping[str, str]) -> dict[str, Path]:
    """One folder, several, or {name: folder} ⇒ {name: folder}. Unnamed folders go by their own name, with their
    parent's where two are alike.

    Raises:
        InputError: two folders have one name, or there is none.
    """
    if isinstance(given, Mapping):
        return {str(name): Path(folder) for name, folder in given.items()}
    folders = [Path(folder) for folder in ([given] if isinstance(given, (str, int)) else given)]
    names = [folder.name or str(folder.absolute().name) for folder in folders]
    if len(set(names)) < len(names):
        names = ["/".join(folder.absolute().parts[-2:]) for folder in folders]
    if len(set(names)) < len(names) or not names:
        raise InputError(f"generated={given}: name one folder or several different ones, or {{name: folder, …}}")
    return dict(zip(names, folders))


def systems_and_reference(systems: str | Mapping[str, str], reference: str) -> tuple[dict[str, Path], Path]:
    """⇒ (systems, reference). The true sound comes first among the systems, under its own name or as "true sound".

    Args:
        systems: a folder of folders, or {name: folder}.
        reference: a system's name, or a folder.

    Raises:
        InputError: the reference is neither.
    """
    folders = named_folders(systems) if isinstance(systems, Mapping) else find_systems(Path(systems))
    if reference in folders:
        return {reference: folders[reference], **folders}, folders[reference]
    if not Path(reference).is_dir():
        raise InputError(f"reference={reference} is no folder, and none of the systems {', '.join(folders)}; name the "
                         "true sounds")
    return {TRUE_SOUND: Path(reference), **folders}, Path(reference)


_PACKAGES = ("torch", "numpy", "scipy", "librosa", "mir_eval", "av")


def provenance(policy: LoadingPolicy, settings: dict[str, Any],
               sounds: dict[str, Iterable[SoundMeasurements]]) -> dict[str, Any]:
    """⇒ all inputs that a result depends on, in JSON's types: files, policy, versions, seeds.

    Args:
        policy: of loading.
        settings: of the evaluation.
        sounds: {name: measured sounds}; each set gets one hash, which changes with any file in it.
    """
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


def pair_files(request: Request) -> Plan:
    """Which file is which clip's. Raises InputError as :func:`~.pairing.make_plan`."""
    return make_plan(request.systems, request.reference, request.videos, request.ids, request.skip_bad)


def evaluate(request: Request, progress: Progress = lambda done, clips, failed: None,
             paired: Plan | None = None) -> tuple[Evaluation, Plan]:
    """Measure every file once and score it ⇒ the evaluation, and which file is which clip's.

    Memory grows by a few ten kB a sound (envelope, onsets, embeddings), never by waveforms or pictures.

    Args:
        request: what is evaluated.
        progress: called after each clip.
        paired: by :func:`pair_files`; None: it is found here.

    Raises:
        InputError: a file can't be used. With ``skip_bad`` it is listed with its sentence and left out.
        EndOfRun: the cache can't be written to.
    """
    began = time.monotonic()
    plan = paired or pair_files(request)
    cache = FeatureCache(request.cache)
    embeddings = BackboneEmbeddings.of(request.backbones, request.weights, request.device, request.batch_size, cache)
    tracks, no_tracks = _picture_tracks(request, plan, embeddings)
    metrics = metrics_for(embeddings.titles, request.flows, everything=request.metrics == "all",
                          detectors=embeddings.detectors)
    on_waveforms = tuple(metric for metric in metrics if metric.needs_waveform)
    ceiling = Ceiling(request.ceiling, on_waveforms, request.device, cache, request.batch_size) if request.ceiling \
        else None
    measured = Measurements(plan, request.skip_bad)
    clips = _measured(request, plan, on_waveforms, embeddings.fingerprints, ceiling is not None)
    for done, clip in enumerate(clips, 1):
        measured.add(clip, request.words.get(clip.id, Words()))
        if clip.id in measured.truths:
            sounds = [sound for sound in clip.sounds.values() if not isinstance(sound, str)]
            true = measured.truths[clip.id].sound
            measured.truths[clip.id].pictures = tracks.get(clip.id)
            if ceiling is not None:
                bounds = ceiling.add(clip.id, true)
                measured.ceiling |= bounds
                sounds += bounds.values()
            embeddings.add([true, *sounds])
        progress(done, len(plan.clips), measured.failed)
    if ceiling is not None:
        measured.ceiling |= (bounds := ceiling.finish())
        embeddings.add(bounds.values())
    embeddings.finish()
    if not measured.truths:
        raise InputError(f"none of the {len(plan.clips)} clips of {request.reference} can be scored; the first: "
                         f"{next(iter(measured.bad_clips.values()))}")
    if not any(measured.sounds.values()):
        raise InputError(f"none of the sounds of {', '.join(measured.sounds)} can be scored; the first: "
                         f"{next(why for bad in measured.bad.values() for why in bad.values())}")
    scenes = any(truth.objects is not None for truth in measured.truths.values())
    metrics = [metric for metric in metrics if (scenes or not metric.needs_objects)
               and (not metric.needs_label or _labelled(metric, measured, embeddings))]
    sets = SetFigures(measured.truths, Resampling(request.seed, request.set_resamples, request.device))
    missing = _missing(metrics, measured, embeddings, no_tracks)
    evaluation = Aggregate(measured, metrics, missing, sets, request.seed, request.resamples,
                           _reference_among(request), embeddings.classes).evaluation()
    evaluation.missing |= embeddings.not_shipped()
    evaluation.provenance = _provenance(request, measured, embeddings, ceiling, time.monotonic() - began)
    read_in_av_benchmark(evaluation, request.systems)
    return evaluation, plan


def _measured(request: Request, plan: Plan, metrics: tuple[Metric, ...], backbones: tuple[tuple[str, str], ...],
              keep_reference: bool) -> Iterator[ClipMeasurements]:
    def jobs() -> Iterator[ClipJob]:
        for clip_id in plan.clips:
            sounds = tuple((name, file) for name, found in plan.sounds.items() for file in found.get(clip_id, ()))
            yield ClipJob(clip_id, plan.references[clip_id], sounds, plan.videos.get(clip_id), tuple(request.flows),
                          request.policy, backbones, request.cache, metrics, keep_reference, request.sound)

    files = 1 + max(sum(len(found.get(clip, ())) for found in plan.sounds.values()) for clip in plan.clips)
    limit_s = files * request.limit_s + len(request.flows) * request.flow_limit_s
    guarded: Any = partial(map_guarded, workers=request.workers, limit_s=limit_s, memory_mb=request.memory_mb)
    for outcome in guarded(measure_clip, jobs(), failed=lambda job, why: job):
        if isinstance(outcome, ClipJob):  # one of its files ended the process: measured file by file, it is named
            yield join_files(outcome, list(guarded(measure_clip, split_by_file(outcome), failed=failed_clip)))
        else:
            yield outcome


def _labelled(metric: Metric, measured: Measurements, embeddings: BackboneEmbeddings) -> bool:
    """Whether some clip has a label that the metric can score: any, or one of its backbone's classes."""
    known = embeddings.classes.get(metric.backbone, ())
    labels = [truth.label for truth in measured.truths.values() if truth.label]
    return any(label in known for label in labels) if metric.backbone else bool(labels)


def _picture_tracks(request: Request, plan: Plan, embeddings: BackboneEmbeddings) -> tuple[dict[str, np.ndarray], str]:
    """⇒ ({clip: track of its pictures}, why there are none). Where there are some, sounds get theirs too."""
    if request.shards is None:
        return {}, "needs the features of the clips' pictures: name their dataset with shards="
    network = SyncTracks(request.sync, request.device)
    found = network.pictures(request.shards, plan.clips)
    if isinstance(found, str):
        return {}, found
    embeddings.backbones[network.name] = network
    return found, ""


def _missing(metrics: Sequence[Metric], measured: Measurements, embeddings: BackboneEmbeddings, no_tracks: str,
             ) -> dict[str, str]:
    """⇒ {metric key: reason} where a metric can't be computed, for want of its backbone or of pictures. no_tracks: why
    the sync network has read no pictures."""
    missing = {metric.key: embeddings.missing[metric.backbone] for metric in metrics
               if metric.backbone in embeddings.missing}
    if no_tracks:
        missing |= {metric.key: no_tracks for metric in metrics if "true.pictures" in metric.needs}
    if not any(truth.flows for truth in measured.truths.values()):
        why = "needs pictures: name a folder of videos with videos=" if not measured.plan.videos else \
            "no video's pictures could be read"
        missing |= {metric.key: why for metric in metrics if metric.flow}
    return missing


def _reference_among(request: Request) -> str | None:
    """The system that is the true sound itself, if it was named as one."""
    return next((name for name, folder in request.systems.items()
                 if folder.exists() and folder.samefile(request.reference)), None)


def _provenance(request: Request, measured: Measurements, embeddings: BackboneEmbeddings, ceiling: Ceiling | None,
                took_s: float) -> dict[str, Any]:
    settings = {
        "systems": {name: str(folder) for name, folder in request.systems.items()},
        "reference": str(request.reference), "clips": len(measured.truths), "seed": request.seed,
        "resamples": request.resamples, "set_resamples": request.set_resamples, "skip_bad": request.skip_bad,
        "bad_true_sounds_and_pictures": measured.bad_clips,
        "true_onsets": {True: "events of the scene", False: "detected in the true sound"}[
            all(truth.exact for truth in measured.truths.values())],
        "shards": None if request.shards is None else read_dataset(request.shards).fingerprint,
        "flow": list(request.flows), "backbones": dict(embeddings.fingerprints),
        "ceiling": None if ceiling is None else {"model": str(ceiling.folder), "hash": ceiling.hash},
        **({} if request.sound is None else {"sound": request.sound}), "took_s": round(took_s, 1),
        "peak_memory_mb": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024,
    }
    sounds = {name: [sound for samples in clips.values() for sound in samples]
              for name, clips in measured.sounds.items()}
    true = [truth.sound for truth in measured.truths.values()]
    return provenance(request.policy, settings, {**sounds, "true sound": true})
