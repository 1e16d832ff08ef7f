"""Metrics that are themselves measured, by how often each tells a true sound from the same sound with a known fault:
the clips with faults, and their evaluation."""

from __future__ import annotations

import csv
import io
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import torch

from ..clip import FrameClock
from ..dataset.extraction.extract import extract_dataset
from ..embedded.extractors import TinyEncoder, TinyGrounder
from ..embedded.render import encode, render
from ..embedded.scene_sounds import render_sound
from ..embedded.timeline import make_scene
from ..embedded.truth import merged_onsets_s, read_truth, write_truth
from ..embedded.world import MANIFEST_COLUMNS
from ..media.audio import end_of_sound_s, fit_length, write_wav
from ..media.video import probe, stream_clip
from ..mel import FIGURES, SAMPLE_RATE_HZ, log_mel
from ..metrics.onsets import detect_onsets
from ..runtime.cli import check_number
from ..runtime.errors import InputError
from ..runtime.files import atomic_path, reason_of, write_text, writing_to
from ..runtime.work_plan import Deed, Item, Plan
from ..vocoder import GriffinLim
from .evaluate import Request, evaluate, request_of
from .faults import IN_STEP, LONGEST_S, MARGIN_S, VERSION, Fault, Original, chosen_faults, faulty, in_step
from .measure import map_guarded
from .meter_report import EMBEDDED, METERS_NAME, PICTURE_NAME, Meters, of_clips, of_set
from .pairing import CAPTIONS_NAME, make_plan, read_ids, timelines
from .sounds import LoadingPolicy, cache_key, content_hash, read_sound

Progress = Callable[[int, int, int], None]
CARRIERS = ("griffin_lim", "none")
_ITERATIONS = 8  # of Griffin-Lim: onset F1 and envelope correlation are those of 32 within 0.001
SPLIT = "meters"  # of the embedded world: no network is trained on it
REFERENCE = "reference"  # folder of the windows as they are


@dataclass(frozen=True)
class ClipWork:
    """One clip, whose window is written as it is and with faults.

    Args:
        id: of the clip.
        number: among the clips.
        seed: of faults, and of the embedded world.
        faults: names.
        carrier: one of :data:`CARRIERS`.
        out: folder of a folder a system.
        path: of the true sound; None: the clip is the embedded world's of this number.
        video: its pictures.
        other: a file of another clip's sound.
        sound: which of the files' sounds.
        policy: of reading them.
    """

    id: str
    number: int
    seed: int
    faults: tuple[str, ...]
    carrier: str
    out: Path
    path: Path | None = None
    video: Path | None = None
    other: Path | None = None
    sound: str | None = None
    policy: LoadingPolicy = LoadingPolicy()

    def file(self, system: str) -> Path:
        return self.out / system / f"{self.id}.wav"


def make_clip(work: ClipWork) -> str:
    """Write a clip's window into the folder "reference" and, through the carrier, in step and with each fault, each
    into its system's folder. What is there is kept ⇒ why the clip can't be used; "": it can.

    Raises:
        EndOfRun: the disk is full, or the folder can't be written to.
    """
    try:
        with writing_to(work.out):
            _make(work)
    except (InputError, OSError, UnicodeError) as error:
        return reason_of(error, work.path or work.id)
    return ""


def _make(work: ClipWork) -> None:
    original = _original(work)
    if not work.file(IN_STEP).exists():
        write_wav(work.file(IN_STEP), _carried(in_step(original), work.carrier), SAMPLE_RATE_HZ)
    for fault in chosen_faults(work.faults):
        for strength in fault.strengths:
            path = work.file(fault.system(strength))
            if path.exists():
                continue
            sound = faulty(original, fault, strength, work.seed)
            if sound is not None:
                write_wav(path, _carried(sound, work.carrier), SAMPLE_RATE_HZ)
    reference = work.file(REFERENCE)
    if not reference.exists():
        _write_pictures(work, original, reference.with_suffix(".mp4"))
        write_wav(reference, in_step(original), SAMPLE_RATE_HZ)


def _original(work: ClipWork) -> Original:
    if work.path is None:
        scene = make_scene(work.seed, SPLIT, work.number)
        onsets_s = merged_onsets_s(event.onset_s for thing in scene.things for event in thing.events)
        return Original(work.id, work.number, render_sound(scene), onsets_s, scene)
    sound, *others = (read_sound(path, work.policy, work.sound).waveform[:round(LONGEST_S * SAMPLE_RATE_HZ)]
                      for path in (work.path, work.other) if path is not None)
    if len(sound) < (2 * MARGIN_S + _SHORTEST_S) * SAMPLE_RATE_HZ:
        raise InputError(f"{work.path} lasts {len(sound) / SAMPLE_RATE_HZ:.2f} s; at least "
                         f"{2 * MARGIN_S + _SHORTEST_S:g} s are needed, of which {MARGIN_S:g} s at either edge are cut "
                         "off")
    return Original(work.id, work.number, sound, detect_onsets(sound), None, *others)


_SHORTEST_S = 1.0  # of a window
_USUAL_FPS = 25.0  # of a file that doesn't say


def _carried(sound: np.ndarray, carrier: str) -> np.ndarray:
    """⇒ the sound through log-mel and Griffin-Lim; "none": as it is."""
    if carrier == "none":
        return sound
    mel = torch.from_numpy(log_mel(sound, FIGURES)[:-1])[None]
    return fit_length(_vocoder()(mel)[0].numpy(), len(sound))


@cache
def _vocoder() -> GriffinLim:
    return GriffinLim(iterations=_ITERATIONS)


@dataclass(frozen=True)
class _Even:
    """Pictures of their own size, but for an odd last row or column, which H.264 can't hold."""

    interpolation: ClassVar[str] = "BILINEAR"

    def scaled(self, height: int, width: int) -> tuple[int, int]:
        return height, width

    def kept(self, height: int, width: int) -> tuple[int, int]:
        return height // 2 * 2, width // 2 * 2


def _write_pictures(work: ClipWork, original: Original, path: Path) -> None:
    """The pictures of the window, and an embedded clip's truth; nothing where the clip has no pictures."""
    sound = in_step(original)
    if original.scene is not None:
        pictures, truth = render(original.scene)
        first = FrameClock(truth.fps).frames_of(MARGIN_S)
        truth = truth.stretch(first, len(pictures) - 2 * first)
        write_truth(path, truth)
        with atomic_path(path) as temporary:
            encode(temporary, pictures[first:len(pictures) - first], sound)
    elif work.video is not None:
        fps = probe(work.video).fps or _USUAL_FPS
        chunks = stream_clip(work.video, start_s=MARGIN_S, duration_s=len(sound) / SAMPLE_RATE_HZ, fps=fps,
                             fits=[_Even()], want_audio=False)
        with atomic_path(path) as temporary:
            encode(temporary, (picture for [chunk] in chunks for picture in chunk), sound, fps)


# ---------------------------------------------------------------------- which clips, and their evaluation

@dataclass(frozen=True)
class Study:
    """What is measured.

    Args:
        works: a clip each.
        folder: of the clips' windows, with and without faults; its name follows from all that they depend on.
        faults: in the order to be shown.
        reference: as the user named it.
        carrier: see :mod:`.faults`.
    """

    works: tuple[ClipWork, ...]
    folder: Path
    faults: tuple[Fault, ...]
    reference: str
    carrier: str

    @property
    def systems(self) -> list[str]:
        return [IN_STEP, *(fault.system(strength) for fault in self.faults for strength in fault.strengths)]

    def plan(self, out: Path) -> Plan:
        """What is made and written."""
        made = sum(work.file(REFERENCE).exists() for work in self.works)
        sounds = (len(self.works) - made) * (len(self.systems) + 1)
        items = [Item(name, Deed.REPLACE if (out / name).exists() else Deed.MAKE) for name in
                 (METERS_NAME, PICTURE_NAME)]
        items.append(Item(f"sounds of {len(self.works)} clips", Deed.MAKE if sounds else Deed.KEEP,
                          f"{len(self.systems)} of each; {made} clips are there", sounds * _BYTES_OF_SOUND))
        facts = [("measures", f"every metric, on {len(self.works)} clips of {self.reference}"),
                 ("faults", ", ".join(self.systems[1:])), ("carrier", self.carrier)]
        return Plan("how well the metrics tell true sounds from faulty ones", items, out, facts=facts)

    def make(self, settings: Mapping[str, Any], progress: Progress) -> dict[str, str]:
        """Make the sounds that are not there yet ⇒ {clip that can't be used: why}.

        Args:
            settings: of conf/meters.yaml.
            progress: called after each clip.

        Raises:
            InputError: a clip can't be used, and bad ones are not skipped.
            EndOfRun: the disk is full, or the folder can't be written to.
        """
        left_out: dict[str, str] = {}
        limit_s = settings["limit_s"] * (len(self.systems) + 1)
        told = map_guarded(make_clip, self.works, settings["workers"], limit_s, settings["memory_mb"],
                           lambda work, why: f"{work.path or work.id}: the clip {why}")
        for done, (work, why) in enumerate(zip(self.works, told), 1):
            if why and not settings["skip_bad"]:
                raise InputError(f"{why}. Mend it, or measure by the rest with skip_bad=true")
            if why:
                left_out[work.id] = why
            progress(done, len(self.works), len(left_out))
        return left_out

    def features(self, workers: int) -> Path:
        """Extract the features of an embedded world's windows, by the tiny grounder and encoder ⇒ the dataset, which
        the sync network reads; what is there is kept.

        Args:
            workers: processes that decode.
        """
        reference = self.folder / REFERENCE
        rows = [(work.id, f"{work.id}.mp4", truth.caption, ";".join(truth.words), "", SPLIT, 0.0, truth.duration_s)
                for work in self.works if work.file(REFERENCE).exists()
                for truth in [read_truth(work.file(REFERENCE))]]
        text = io.StringIO()
        csv.writer(text, lineterminator="\n").writerows([MANIFEST_COLUMNS, *rows])
        write_text(reference / "manifest.csv", text.getvalue())
        out = self.folder / "features"
        extract_dataset(reference / "manifest.csv", reference, out, TinyGrounder(), TinyEncoder(), _FEATURES_FPS,
                        workers=workers)
        return out

    def require_windows(self, shards: Path) -> None:
        """Raise InputError where a dataset is of the whole clips, in place of their windows, whose time zero is another
        moment."""
        for clip, timeline in timelines(shards, [work.id for work in self.works]).items():
            window = self.folder / REFERENCE / f"{clip}.wav"
            window_s = end_of_sound_s(window) if window.exists() else timeline.duration_s
            if abs(timeline.duration_s - window_s) > _SAME_S:
                raise InputError(f"shards={shards}: clip {clip!r} lasts {timeline.duration_s:.2f} s there, and its "
                                 f"window {window_s:.2f} s; extract the windows in {self.folder / REFERENCE}, whose "
                                 "edges are cut off")


_BYTES_OF_SOUND = 140_000
_FEATURES_FPS = 12.5  # that the shipped sync network learned from
_SAME_S = 0.2


def study_of(settings: Mapping[str, Any]) -> Study:
    """The settings of conf/meters.yaml ⇒ Study.

    Raises:
        InputError: a setting is wrong, or there is no clip.
    """
    reference, carrier, seed = settings["reference"], settings["carrier"], settings["seed"]
    if carrier not in CARRIERS:
        raise InputError(f"carrier={carrier}: expected one of {', '.join(CARRIERS)}")
    faults = tuple(chosen_faults(settings["faults"]))
    names = tuple(fault.name for fault in faults)
    if str(reference) == EMBEDDED:
        check_number("clips", settings["clips"], 2, whole=True)
        content = [f"{SPLIT}-{number:06d}" for number in range(settings["clips"])]
        found: list[dict[str, Any]] = [{"id": clip} for clip in content]
    else:
        videos, ids = settings["videos"], settings["ids"]
        plan = make_plan({}, Path(reference), None if videos is None else Path(videos),
                         None if ids is None else read_ids(Path(ids), settings["split"]))
        paths = [plan.references[clip].path for clip in plan.clips]
        content = [content_hash(path) for path in dict.fromkeys([*paths, *plan.videos.values()])]
        found = [{"id": clip, "path": path, "video": plan.videos.get(clip), "other": other}
                 for clip, path, other in zip(plan.clips, paths, [*paths[1:], paths[0]])]
        if len(found) < 2:
            raise InputError(f"reference={reference} holds one clip; at least two are needed")
    policy = LoadingPolicy(None, settings["lowest_rate_hz"], settings["shortest_s"], settings["longest_s"])
    key = cache_key(VERSION, carrier, _ITERATIONS, seed, MARGIN_S, LONGEST_S, settings["sound"], policy,
                    str(reference) == EMBEDDED, *content)
    folder = Path(settings["out"]) / "clips" / key[:12]
    works = tuple(ClipWork(number=number, seed=seed, faults=names, carrier=carrier, out=folder,
                           sound=settings["sound"], policy=policy, **clip) for number, clip in enumerate(found))
    return Study(works, folder, faults, str(reference), carrier)


def run(study: Study, settings: Mapping[str, Any], left_out: dict[str, str], progress: Progress) -> Meters:
    """Evaluate the sounds, and measure the metrics by their scores.

    Args:
        study: whose sounds are made.
        settings: of conf/meters.yaml.
        left_out: {clip that can't be used: why}.
        progress: called after each clip.

    Raises:
        InputError: fewer than two clips can be used.
        EndOfRun: the cache can't be written to.
    """
    kept = [work.id for work in study.works if work.id not in left_out]
    if len(kept) < 2:
        raise InputError(f"{len(kept)} of the {len(study.works)} clips of reference={study.reference} can be used; the "
                         f"first: {next(iter(left_out.values()))}")
    shards = settings.get("shards")
    if shards is not None:
        study.require_windows(Path(shards))
    elif study.reference == EMBEDDED:
        shards = study.features(max(1, settings["workers"]))
    evaluation, _ = evaluate(_request(study, {**settings, "shards": shards}, kept), progress)
    rows = [metric for metric in evaluation.metrics if metric.better != "none" and metric.key not in evaluation.missing]
    figures = {metric.key: {fault.name: of_set(evaluation, metric, fault) if metric.scope == "set" else
                            of_clips(evaluation, metric, fault, settings["seed"]) for fault in study.faults}
               for metric in rows}
    return Meters(study.reference, study.carrier, study.faults, evaluation, figures, left_out)


def _request(study: Study, settings: Mapping[str, Any], kept: Sequence[str]) -> Request:
    systems = {name: study.folder / name for name in study.systems if (study.folder / name).is_dir()}
    captions = settings["captions"]
    if captions is None and study.reference != EMBEDDED:
        reference = Path(study.reference)
        captions = next((path for path in (reference / CAPTIONS_NAME, reference.parent / CAPTIONS_NAME)
                         if path.is_file()), None)
    # intervals of scores are not used; a clip without some fault, such as one more event than it has, is no bad file
    changed = {"captions": captions, "videos": None, "ids": None, "sound": None, "clip_s": None, "skip_bad": True,
               "resamples": 100}
    request = request_of({**settings, **changed}, systems, study.folder / REFERENCE)
    request.ids = sorted(kept)
    return request
