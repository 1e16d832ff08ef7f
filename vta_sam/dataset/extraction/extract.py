"""Extraction: every clip is decoded once, goes through the extractors once, and is written to a shard.

A run may be killed at any moment. A shard is done once its tar is renamed into place, after the list of its failures.
The next run makes the shards whose tar is missing (shard_folder.py).
"""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from statistics import mean
from typing import Any

from ... import __version__
from ...checkpoints.parts import settings_of
from ...clip import FrameClock, MelSpec
from ...media.decode_pool import DecodePool
from ...media.picture_reader import check_hwaccel
from ...media.video import CHUNK_FRAMES
from ...perception.base import Encoder, FrameExtractor, Grounder
from ...perception.captions import NOUN_RULES_VERSION, noun_rules, tagger_name
from ...perception.features import Extractors
from ...runtime.errors import InputError
from ...runtime.files import RetryPolicy
from ...runtime.work_plan import Deed, Item, Plan, counted, share_of
from ..manifests.manifest import Row, manifest_hash, read_manifest, slices
from ..shards.schema import FORMAT_VERSION, DatasetInfo
from .shard_folder import ShardFolder, ShardTask, hash_of
from .worker import ClipExtractor, Limits, Progress, ShardMaker

_USUAL_S = 10.0  # of a clip whose manifest doesn't say how long it is, for sizes
_OF_OBJECT = 6  # values a frame and object: probability, box, area
_OF_RECORD = 4096  # bytes of words and of the tar's headers


@dataclass(frozen=True)
class ExtractionPlan:
    """The plan of one worker's share of an extraction: a task a shard, and the same to be shown."""

    folder: ShardFolder
    tasks: tuple[ShardTask, ...]
    plan: Plan


@dataclass(frozen=True)
class Extraction:
    """An extraction, or one worker's share of it.

    Args:
        manifest: csv of the clips.
        videos: folder of the videos.
        out: folder of the shards.
        grounder: finds objects in frames.
        encoder: embeds frames, words and captions.
        fps: frame rate of the features.
        shard_size: clips in a shard.
        workers: decoding processes; None: as many as this process has cores, 8 at most.
        rank: of this worker, from 0.
        world: number of workers.
        limit_s: limit of a clip's decoding, in seconds.
        memory_mb: memory limit of a clip's decoding.
        chunk_frames: frames in one call of an extractor.
        hwaccel: FFmpeg's name of a kind of decoding device; None: software.
        retry_failed: try clips again that earlier runs listed as failed.
        features: extractors of further features per frame.
        sample_rate_hz: of the stored sound.
        sound: which of a video's sounds, by number or language; None: the one that a player plays.
        most_faults: unexpected faults of so many clips in a row end the run.
        commit_mostly_failed: write a shard although more than half of its clips failed.
        retry: of a video that can't be read for a reason that lies with the machine or a file server.
        consecutive: the share is a run of slices; False: every world-th.
    """

    manifest: Path
    videos: Path
    out: Path
    grounder: Grounder
    encoder: Encoder
    fps: float
    shard_size: int = 64
    workers: int | None = 2
    rank: int = 0
    world: int = 1
    limit_s: float = 60.0
    memory_mb: int = 4096
    chunk_frames: int = CHUNK_FRAMES
    hwaccel: str | None = None
    retry_failed: bool = False
    features: Sequence[FrameExtractor] = ()
    sample_rate_hz: int = MelSpec().sample_rate_hz
    sound: str | None = None
    most_faults: int = 20
    commit_mostly_failed: bool = False
    retry: RetryPolicy = RetryPolicy()
    consecutive: bool = False

    @property
    def extractors(self) -> Extractors:
        return Extractors(self.grounder, self.encoder, self.chunk_frames, self.features)

    def planned(self, share: str = "") -> ExtractionPlan:
        """Work out what :meth:`run` does, without writing anything.

        Args:
            share: which share of the work this is, in words.

        Raises:
            InputError: ``out`` was begun with another manifest or config, an argument is out of range, or there is no
                such device.
        """
        self._check()
        extractors, rows, out = self.extractors, read_manifest(self.manifest), self.out
        config = _config(extractors, self.fps, self.sample_rate_hz, self.shard_size, self.hwaccel, self.sound)
        all_slices = slices(rows, self.shard_size)
        folder = ShardFolder(out, _describe(rows, extractors, config), config, all_slices)
        folder.require_same()
        mine = share_of(len(all_slices), self.rank, self.world, self.consecutive)
        tasks = [folder.judge(all_slices[i], self.retry_failed) for i in mine]
        known = [(out / part.name).stat().st_size / len(part.rows) for part in all_slices if (out / part.name).exists()]
        tasks = [task if task.item.deed is Deed.KEEP else replace(task, item=replace(task.item, size=round(sum(
            mean(known) if known else self._bytes_of(row) for row in task.part.rows)))) for task in tasks]
        there = (out / "dataset.json").exists()
        kept = all(task.item.deed is Deed.KEEP for task in tasks) and folder.is_described
        last = Item("dataset.json", Deed.KEEP) if kept else Item(
            "dataset.json", Deed.MAKE_AGAIN if there else Deed.MAKE, "once all shards are there")
        plan = Plan(f"shards of {counted(len(rows), 'clip')}", [*(task.item for task in tasks), last], out, share)
        return ExtractionPlan(folder, tuple(tasks), plan)

    def _check(self) -> None:
        if not 0 <= self.rank < self.world:
            raise InputError(f"rank={self.rank} of world={self.world}: ranks count from 0 to world - 1")
        if self.chunk_frames < 1:
            raise InputError(f"chunk_frames={self.chunk_frames}: expected at least one frame")
        if self.most_faults < 1:
            raise InputError(f"most_faults={self.most_faults}: expected at least one fault")
        if self.sample_rate_hz < 1:
            raise InputError(f"sample_rate_hz={self.sample_rate_hz}: expected samples a second, at least 1")
        if not self.videos.is_dir():
            raise InputError(f"videos={self.videos} is not a folder")
        if self.out.exists() and not self.out.is_dir():
            raise InputError(f"out={self.out} is a file; name a folder to write to")
        check_hwaccel(self.hwaccel)

    def _bytes_of(self, row: Row) -> float:
        """About as many bytes as a record has: fp16 arrays, and sound at half of its PCM's size."""
        duration_s, objects = row.duration_s or _USUAL_S, len(row.objects) or 1
        frames, values = FrameClock(self.fps).frames_of(duration_s), self.encoder.frame_dim + objects * _OF_OBJECT
        return 2 * frames * values + duration_s * self.sample_rate_hz + _OF_RECORD

    def run(self, planned: ExtractionPlan | None = None, progress: Progress | None = None) -> DatasetInfo:
        """Do what was planned ⇒ the dataset as it is then in ``out``.

        The worker that ends last writes dataset.json. Until then other workers' shards may be missing. A clip that
        can't be read, or that a part of the program fails on, is listed in ``<shard>.failed.jsonl`` with the reason.
        Processes that were started with the same share part its shards between them, one by one.

        Args:
            planned: by :meth:`planned`; None: it is planned here.
            progress: called at the start and after each clip; clips of earlier runs count as done.

        Raises:
            InputError: as :meth:`planned`, or no clip at all could be read.
            EndOfRun: the disk is full, the folder can't be written to, the videos can't be read for a reason that
                isn't theirs, too many clips in a row had unexpected faults, or most clips of a shard failed. Shards
                that are there stay.
        """
        planned = planned or self.planned()
        folder, extractor = planned.folder, ClipExtractor(
            self.videos, self.extractors, self.fps, self.sample_rate_hz, self.sound)
        limits = Limits(self.most_faults, self.commit_mostly_failed, self.retry)
        with folder.begun(), DecodePool(self.workers, self.limit_s, self.memory_mb, hwaccel=self.hwaccel) as pool, \
                ShardMaker(extractor, pool, folder, limits, planned.tasks, progress) as maker:
            for task in planned.tasks:
                if task.item.deed is Deed.KEEP:
                    folder.keep(task)
            left = [task for task in planned.tasks if task.item.deed is not Deed.KEEP]
            for _ in range(2):  # the second time for shards of a process that has been killed meanwhile
                left = maker.make(left)
            if left:
                warnings.warn(f"{len(left)} shards in {self.out} are being made by another process, which writes "
                              "dataset.json if it ends last; should it be stopped, the same command goes on")
            return folder.finish()


def extract_dataset(manifest: Path, videos: Path, out: Path, grounder: Grounder, encoder: Encoder, fps: float,
                    shard_size: int = 64, workers: int | None = 2, rank: int = 0, world: int = 1,
                    progress: Progress | None = None, limit_s: float = 60.0, memory_mb: int = 4096,
                    chunk_frames: int = CHUNK_FRAMES, hwaccel: str | None = None,
                    retry_failed: bool = False, features: Sequence[FrameExtractor] = (),
                    sample_rate_hz: int = MelSpec().sample_rate_hz, sound: str | None = None, most_faults: int = 20,
                    commit_mostly_failed: bool = False, retry: RetryPolicy = RetryPolicy()) -> DatasetInfo:
    """Plan and run an :class:`Extraction`, whose arguments these are ⇒ the dataset as it is then in ``out``.

    ``progress`` and errors are those of :meth:`Extraction.run`.
    """
    asked = Extraction(Path(manifest), Path(videos), Path(out), grounder, encoder, fps, shard_size, workers, rank,
                       world, limit_s, memory_mb, chunk_frames, hwaccel, retry_failed, features, sample_rate_hz, sound,
                       most_faults, commit_mostly_failed, retry)
    return asked.run(progress=progress)


def _config(extractors: Extractors, fps: float, sample_rate_hz: int, shard_size: int, hwaccel: str | None,
            sound: str | None) -> dict[str, Any]:
    """All settings that change a record, or the assignment of records to shards."""
    grounder, encoder = extractors.grounder, extractors.encoder
    config = {
        "format_version": FORMAT_VERSION, "fps": float(fps), "sample_rate_hz": sample_rate_hz, "shard_size": shard_size,
        "grounder": grounder.fingerprint, "encoder": encoder.fingerprint,
        "grounder_settings": dict(grounder.settings), "encoder_settings": dict(encoder.settings),
        "fits": [repr(grounder.fit), repr(encoder.fit)],
        "nouns": tagger_name(),  # the tagger depends on the installed packages
        "hwaccel": hwaccel,  # devices may differ in a picture's last bits
    }
    further = {name: {"fingerprint": part.fingerprint, "settings": dict(part.settings), "fit": repr(part.fit)}
               for name, part in zip(extractors.names, extractors.features)}
    # left out where there is none, so that the hash is that of older datasets
    config |= {"noun_rules": NOUN_RULES_VERSION} if NOUN_RULES_VERSION > 1 else {}
    return config | ({"features": further} if further else {}) | ({"sound": sound} if sound is not None else {})


def _describe(rows: list[Row], extractors: Extractors, config: dict[str, Any]) -> DatasetInfo:
    grounder, encoder = extractors.grounder, extractors.encoder
    recipes = {role: part.recipe for role, part in extractors.by_role.items() if part.recipe is not None}
    further = {name: recipes.pop(name) for name in extractors.names if name in recipes}
    return DatasetInfo(
        grounder=grounder.fingerprint, encoder=encoder.fingerprint, fps=config["fps"],
        sample_rate_hz=config["sample_rate_hz"], frame_dim=encoder.frame_dim, object_dim=encoder.object_dim,
        caption_dim=encoder.caption_dim,
        config_hash=hash_of(config),
        manifest_hash=manifest_hash(rows), code_version=__version__,
        dims=extractors.dims,
        features={part.name: part.fingerprint for part in extractors.features},
        recipes=recipes | ({"features": further} if further else {}), settings=settings_of(extractors.by_role),
        nouns=noun_rules())
