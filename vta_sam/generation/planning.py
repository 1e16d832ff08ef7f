"""What generation is asked for, and what it will make, keep and make again: worked out from names, records and settings
before any network is loaded."""

from __future__ import annotations

import hashlib
import os
import re
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from ..dataset.shards.storage import Root
from ..diffusion.sampler import BaseSampler
from ..media.guarded import Media, guarding
from ..media.video import Kept
from ..runtime.cli import check_number
from ..runtime.errors import InputError
from ..runtime.files import reason_of, require_name
from ..runtime.work_plan import Deed, Item, Plan, counted
from .inputs import RESULT_SUFFIXES, ResultFiles, finished_before, is_recut, read_record

LONGEST_WAIT_S = 1800.0  # for another process that makes the same sound


@dataclass(frozen=True)
class Prompt:
    """Words and seed of a generation; arguments as of :meth:`~.pipeline.Pipeline.generate`."""

    caption: str | None = None
    objects: tuple[str, ...] | None = None
    negative_caption: str | None = None
    negative_objects: tuple[str, ...] | None = None
    seed: int = 0

    def __post_init__(self):
        check_number("seed", self.seed, 0, whole=True)


@dataclass(frozen=True)
class Outputs:
    """Outputs beside ``<name>.mp4`` and ``<name>.json``.

    Args:
        folder: to write to.
        mix: gain of the video's own sound; 0 replaces it.
        wav: also write the sound alone.
        picture: also draw the strip of pictures, the objects and the sound.
        overwrite: generate again where a result exists.
        kept: of the video.
    """

    folder: Path
    mix: float = 0.0
    wav: bool = False
    picture: bool = True
    overwrite: bool = False
    kept: Kept = Kept()

    def __post_init__(self):
        check_number("mix", self.mix, 0, 1)

    @property
    def recorded(self) -> dict[str, Any]:
        """Settings for a record. Those of ``kept`` are left out where they aren't given, as in former records."""
        kept = {"sound": self.kept.sound, "keep_location": self.kept.location}
        return {"mix": self.mix, **{name: value for name, value in kept.items() if value not in (None, False)}}


@dataclass(frozen=True)
class SplitRequest:
    """Settings of generation for a split.

    Args:
        shards: folder or URL of the dataset.
        split: its name.
        out: folder to write to.
        samples: sounds a clip.
        seed: of all noise.
        rank: of this worker, which takes its share of the split's clips, in stored order.
        world: number of workers.
        batch_size: clips at once. It changes speed, and results only by rounding.
        consecutive: a share is a run of clips; False: clips rank, rank + world, …
    """

    shards: Root
    split: str
    out: Path
    samples: int = 1
    seed: int = 0
    rank: int = 0
    world: int = 1
    batch_size: int = 16
    consecutive: bool = False

    def __post_init__(self):
        check_number("seed", self.seed, 0, whole=True)
        for name in ("samples", "batch_size", "world"):
            check_number(name, getattr(self, name), 1, whole=True)
        check_number("rank", self.rank, 0, self.world - 1, whole=True)


def check_folder(folder: Path) -> None:
    """Raise InputError, before any work, where a folder can't be written to."""
    if folder.exists() and not folder.is_dir():
        raise InputError(f"out={folder} is a file; name a folder to write to")
    existing = next(parent for parent in (folder, *folder.absolute().parents) if parent.exists())
    if not os.access(existing, os.W_OK | os.X_OK):
        raise InputError(f"out={folder} can't be written to; name another folder")


@dataclass(frozen=True)
class VideoTask:
    """What a plan says of one video.

    Args:
        name: of the result's files.
        video: the input.
        item: its row in the plan.
        former: the record that was there when it was planned.
        finished: name of the finished video that is kept.
        notes: sentences for the new record, such as what the new video will not have of the old one.
    """

    name: str
    video: Path
    item: Item
    former: dict[str, Any] | None = None
    finished: str = ""
    notes: tuple[str, ...] = ()


@dataclass(frozen=True)
class VideosPlan:
    """The plan of a folder of videos.

    Args:
        tasks: one a video, in order.
        plan: the same, to be shown.
        settings: of every result, for the records; the names of the videos are added.
    """

    tasks: tuple[VideoTask, ...]
    plan: Plan
    settings: dict[str, Any]


def plan_videos(videos: dict[str, Path], prompt: Prompt, outputs: Outputs, model: dict[str, str],
                sampler: BaseSampler, media: Media | None = None) -> VideosPlan:
    """Work out what :func:`generate_videos` does, without writing anything; arguments as there.

    Raises:
        InputError: the folder can't be written to.
    """
    check_folder(outputs.folder)
    settings = {**_settings(sampler, prompt), **outputs.recorded, "model_hash": model["hash"]}
    with guarding(media) as reading:
        tasks = tuple(judge(name, video, settings, outputs, reading) for name, video in videos.items())
    title = f"sound for {counted(len(tasks), 'video')}"
    return VideosPlan(tasks, Plan(title, [task.item for task in tasks], outputs.folder), settings)


def judge(name: str, video: Path, settings: dict[str, Any], outputs: Outputs, media: Media) -> VideoTask:
    """What is to be done for one video; settings: of :class:`VideosPlan`; media: reads the video's head."""
    files = ResultFiles(outputs.folder, name)
    target, former, size = f"{name}.mp4", read_record(files.record), None
    try:
        for suffix in RESULT_SUFFIXES:
            require_name(files.path(suffix))
        for path in (files.path(".mp4"), files.path(".mkv")):
            if path.exists() and video.exists() and path.samefile(video):
                raise InputError(f"{video} would be overwritten by its own result; name another folder with out=")
        size = video.stat().st_size if video.exists() else None
        finished, deed, detail, note = None, Deed.MAKE, "", ""
        if not outputs.overwrite:
            finished = finished_before(files.record, {**settings, "video": video.name})
        if finished and not is_recut(former or {}, video):
            return VideoTask(name, video, Item(finished, Deed.KEEP), former, finished)
        if finished:
            deed = Deed.MAKE_AGAIN
            detail = note = f"the video is another than the one that {finished} was made of, so it is made anew"
        elif there := files.there:
            deed, detail = Deed.MAKE_AGAIN, f"{', '.join(there)} {'is' if len(there) == 1 else 'are'} replaced"
        written = media.plan_mux(video, files.path(".mp4"), outputs.kept)
        detail = "; ".join(filter(None, (detail, *written.notes)))
    except Exception as error:
        return VideoTask(name, video, Item(target, Deed.LEAVE_OUT, reason_of(error, video)), former)
    notes = (*filter(None, (note,)), *written.notes)
    return VideoTask(name, video, Item(written.target.name, deed, detail, size), former, notes=notes)


def _settings(sampler: BaseSampler, prompt: Prompt) -> dict[str, Any]:
    lists = {key: None if words is None else list(words)
             for key, words in (("objects", prompt.objects), ("negative_objects", prompt.negative_objects))}
    return {**asdict(prompt), **lists, **sampler.recorded()}


_LONGEST_WORDS = 60  # characters of the caption in a file's name
_LONGEST_CUT = 160  # bytes of them where a hash stands behind them


@dataclass(frozen=True)
class CaptionPlan:
    """The plan of a caption's sound. settings: for its record; plan: to be shown, of one item, the sound's file."""

    settings: dict[str, Any]
    plan: Plan


def plan_caption(prompt: Prompt, folder: Path, model: dict[str, str], overwrite: bool, sampler: BaseSampler,
                 samples: int | None = None) -> CaptionPlan:
    """Work out what :func:`generate_caption` does, without writing anything; arguments as there.

    Args:
        samples: length of the model's sound, for the size.

    Raises:
        InputError: the file exists, made with other settings, or can't be written.
    """
    check_folder(folder)
    settings = {"caption": prompt.caption, "negative_caption": prompt.negative_caption, "seed": prompt.seed,
                **sampler.recorded(), "model_hash": model["hash"]}
    try:
        files = ResultFiles(folder, _caption_name(prompt.caption or "", prompt.seed, folder))
        require_name(files.record)
        kept = not overwrite and finished_before(files.record, settings)
    except Exception as error:
        raise InputError(reason_of(error, "the caption")) from error
    there = [name for name in files.there if name.endswith((".wav", ".json"))]
    deed = Deed.KEEP if kept else Deed.MAKE_AGAIN if there else Deed.MAKE
    size = None if kept or samples is None else 2 * samples
    item = Item(files.path(".wav").name, deed, f"{', '.join(there)} replaced" if there and not kept else "", size)
    return CaptionPlan(settings, Plan("sound for a caption", [item], folder))


def _caption_name(caption: str, seed: int, folder: Path) -> str:
    """The name of a caption's files: of a file that it has already, or of its own."""
    words = re.sub(r"\W+", "-", caption.lower()).strip("-")
    former = f"{words[:_LONGEST_WORDS] or 'caption'}-{seed}"
    cut = words[:_LONGEST_WORDS].encode("utf-8")[:_LONGEST_CUT].decode("utf-8", "ignore").strip("-") or "caption"
    digest = hashlib.sha256(caption.encode("utf-8", "surrogatepass")).hexdigest()
    own = [f"{cut}-{digest[:digits]}-{seed}" for digits in (8, 16)]
    if words and words.replace("-", " ") == caption and len(words) <= _LONGEST_WORDS:
        own.insert(0, former)
    records = {name: read_record(folder / f"{name}.json") for name in (former, *own)}
    of_caption = [name for name, record in records.items() if record and "video" not in record["asked"] and
                  record["asked"].get("caption") == caption]
    free = [name for name in own if records[name] is None]
    return (of_caption + free + own[-1:])[0]
