"""Which file belongs to which clip, in folders of sounds, by explicit id; files without a partner are named. And which
record of a dataset is a clip's."""

from __future__ import annotations

import csv
import json
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from ..clip import ClipFeatures
from ..dataset.shards.records import read_shard
from ..dataset.shards.schema import read_dataset
from ..media import SOUND_SUFFIXES, VIDEO_SUFFIXES
from ..runtime.errors import InputError
from ..runtime.work_plan import counted

IDS_NAME = "ids.csv"
CAPTIONS_NAME = "captions.csv"
LARGEST_RECORD_BYTES = 1 << 20


@dataclass(frozen=True)
class SoundFile:
    """One sound of one clip. sample: which, where a system has several for a clip. path: the file that its sound is
    read from; video: the file of the same name with pictures, if there is one (often the same file)."""

    id: str
    sample: int
    path: Path
    video: Path | None


@dataclass(frozen=True)
class Words:
    """A table's entry of a clip, with empty fields where the table has none."""

    label: str = ""
    caption: str = ""
    objects: tuple[str, ...] = ()


def find_sounds(folder: Path) -> dict[str, list[SoundFile]]:
    """A folder's sound and video files ⇒ {clip id: its samples in order}, sorted by id. Subfolders are not looked into.

    The id is, in this order: what ``ids.csv`` (columns file, id) in the folder says; the ``key`` and ``sample`` in the
    json that ``generate.py shards=`` writes beside a sound; the file's name without suffix. Of files that differ in the
    suffix alone the sound file is read and the video shown. InputError: no such folder, no sound in it, two files for
    one sample of a clip, a table that doesn't fit.
    """
    if not folder.is_dir():
        raise InputError(f"{folder} {'is a file' if folder.exists() else 'does not exist'}; name a folder of sounds "
                         "or videos")
    stems: dict[str, list[Path]] = {}
    for path in sorted(folder.iterdir()):
        if path.suffix.lower() in SOUND_SUFFIXES | VIDEO_SUFFIXES and not path.name.startswith(".") and path.is_file():
            stems.setdefault(path.stem, []).append(path)
    if not stems:
        raise InputError(f"{folder} holds no sound or video file; known suffixes are "
                         f"{' '.join(sorted(SOUND_SUFFIXES | VIDEO_SUFFIXES))}")
    named = _named_files(folder)
    sounds: dict[str, dict[int, SoundFile]] = {}
    for stem, paths in stems.items():
        listed = next((named[path.name] for path in paths if path.name in named), None)
        if named and listed is None:
            raise InputError(f"{folder / IDS_NAME} gives no id for {paths[0].name}; list every file, or remove the "
                             "table")
        clip_id, sample = (listed, None) if listed is not None else _recorded(folder / f"{stem}.json", stem)
        samples = sounds.setdefault(clip_id, {})
        sample = len(samples) if sample is None else sample
        if sample in samples:
            raise InputError(f"{folder}: {samples[sample].path.name} and {paths[0].name} are both sample {sample} of "
                             f"clip {clip_id!r}; keep one")
        samples[sample] = _chosen(clip_id, sample, paths)
    return {clip_id: [sounds[clip_id][n] for n in sorted(sounds[clip_id])] for clip_id in sorted(sounds)}


def find_systems(folder: Path) -> dict[str, Path]:
    """A folder with one folder of sounds per system ⇒ {system: folder}, sorted by name. InputError: fewer than one."""
    if not folder.is_dir():
        raise InputError(f"systems={folder} is no folder; name one that holds a folder of clips per system")
    known = SOUND_SUFFIXES | VIDEO_SUFFIXES
    systems = {path.name: path for path in sorted(folder.iterdir())
               if path.is_dir() and not path.name.startswith(".")
               and any(file.suffix.lower() in known for file in path.iterdir())}
    if not systems:
        raise InputError(f"systems={folder} holds no folder with sounds or videos in it; expected one folder per "
                         "system")
    return systems


def read_words(path: Path) -> dict[str, Words]:
    """``captions.csv`` (id and, as far as known, label, caption, objects with ; between them) ⇒ {id: Words}; {} where
    the file is missing. InputError: no column id, or an id twice."""
    if not path.exists():
        return {}
    words: dict[str, Words] = {}
    for row in _rows(path, ("id",)):
        if row["id"] in words:
            raise InputError(f"{path} lists id {row['id']!r} twice")
        objects = tuple(word.strip() for word in (row.get("objects") or "").split(";") if word.strip())
        words[row["id"]] = Words(row.get("label") or "", row.get("caption") or "", objects)
    return words


def read_ids(path: Path, split: str | None = None) -> list[str]:
    """A csv with a column id ⇒ its ids, sorted; of those whose column split is ``split``, if that is given. InputError:
    no such columns, or none is left."""
    rows = _rows(path, ("id",) if split is None else ("id", "split"))
    ids = sorted({row["id"] for row in rows if split is None or row["split"] == split})
    if not ids:
        raise InputError(f"{path} lists no id{'' if split is None else f' of split {split!r}'}")
    return ids


def _named_files(folder: Path) -> dict[str, str]:
    path = folder / IDS_NAME
    if not path.exists():
        return {}
    named: dict[str, str] = {}
    for row in _rows(path, ("file", "id")):
        name = row["file"]
        if Path(name).name != name or not (folder / name).is_file():
            raise InputError(f"{path}: {name!r} is no file of this folder")
        if name in named:
            raise InputError(f"{path} lists {name!r} twice")
        named[name] = row["id"]
    return named


def _rows(path: Path, columns: tuple[str, ...]) -> list[dict[str, str]]:
    try:
        with open(path, newline="", encoding="utf-8-sig") as file:
            reader = csv.DictReader(file)
            missing = [name for name in columns if name not in (reader.fieldnames or ())]
            if missing:
                raise InputError(f"{path} has no column {', '.join(missing)}; its first line must name "
                                 f"{', '.join(columns)}")
            rows = list(reader)
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise InputError(f"{path} can't be read as a table ({error})") from error
    for number, row in enumerate(rows, 2):
        empty = [name for name in columns if not row[name]]
        if empty:
            raise InputError(f"{path}, line {number}: {', '.join(empty)} is empty")
    return rows


def _recorded(record: Path, stem: str) -> tuple[str, int | None]:
    """(id, sample) by the json beside a generated sound, or (stem, None) where there is none of that kind."""
    try:
        if record.stat().st_size > LARGEST_RECORD_BYTES:
            return stem, None
        content = json.loads(record.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return stem, None
    if not isinstance(content, dict):
        return stem, None
    key, sample = content.get("key"), content.get("sample")
    if isinstance(key, str) and key and isinstance(sample, int) and stem.endswith(f"-{sample}"):
        return key, sample
    return stem, None


def _chosen(clip_id: str, sample: int, paths: list[Path]) -> SoundFile:
    sounds = [path for path in paths if path.suffix.lower() in SOUND_SUFFIXES]
    videos = [path for path in paths if path.suffix.lower() in VIDEO_SUFFIXES]
    sounds.sort(key=lambda path: (path.suffix.lower() not in (".wav", ".flac"), path.name))
    videos.sort(key=lambda path: (path.suffix.lower() != ".mp4", path.name))
    return SoundFile(clip_id, sample, (sounds or videos)[0], videos[0] if videos else None)


_SHOWN = 5


@dataclass
class Plan:
    """Clips in order of their id. references: the true sound of each; sounds: {system: {id: samples}}; videos: {id: the
    pictures}, as far as known. unmatched: {system: files whose id no reference has}; absent: {system: ids without a
    sound}."""

    clips: list[str]
    references: dict[str, SoundFile]
    sounds: dict[str, dict[str, list[SoundFile]]]
    videos: dict[str, Path]
    unmatched: dict[str, list[str]] = field(default_factory=dict)
    absent: dict[str, list[str]] = field(default_factory=dict)

    @property
    def facts(self) -> list[tuple[str, str]]:
        """Rows for the plan of a report: clips and sounds that are measured, and what is left out."""
        rows = [("measures", f"{counted(len(self.clips), 'clip')}, {len(self.videos)} with pictures")]
        for name, found in self.sounds.items():
            left_out = [f"{len(names)} {what}" for names, what in (
                (self.absent.get(name, []), "clips without a sound"),
                (self.unmatched.get(name, []), "files of no clip")) if names]
            rows.append((name, ", ".join([counted(sum(map(len, found.values())), "sound"), *left_out])))
        return rows


def make_plan(systems: Mapping[str, Path], reference: Path, videos: Path | None = None,
              ids: Collection[str] | None = None, skip_bad: bool = False) -> Plan:
    """Pair the files of each system's folder with the reference's.

    videos: folder of the pictures; None ⇒ the reference's own files where they have pictures. ids: the clips to be
    evaluated; None ⇒ all of the reference. With skip_bad a sound without a reference, or a clip without a sound, is
    listed; without it, InputError names them. InputError too where nothing pairs at all.
    """
    references = {clip_id: samples[0] for clip_id, samples in _single(find_sounds(reference), reference).items()}
    if ids is not None:
        unknown = sorted(set(ids) - set(references))
        if unknown:
            raise InputError(f"reference={reference} has no clip {_some(unknown)}, which the list of ids names")
        references = {clip_id: references[clip_id] for clip_id in sorted(set(ids))}
    pictures = {clip_id: file.video for clip_id, file in references.items() if file.video}
    if videos is not None:
        found = _single(find_sounds(videos), videos)
        pictures = {clip_id: found[clip_id][0].video or found[clip_id][0].path for clip_id in references
                    if clip_id in found}
    plan = Plan(list(references), references, {}, {k: v for k, v in pictures.items() if v})
    for name, folder in systems.items():
        found = find_sounds(folder)
        plan.sounds[name] = {clip_id: found[clip_id] for clip_id in references if clip_id in found}
        if not plan.sounds[name]:
            raise InputError(f"{name}: no file in {folder} belongs to a clip of {reference}; there the ids are "
                             f"{_some(list(references))}, here {_some(list(found))}. An ids.csv (file,id) in the "
                             "folder can name them")
        if ids is None:
            plan.unmatched[name] = [file.path.name for clip_id in sorted(set(found) - set(references))
                                    for file in found[clip_id]]
        plan.absent[name] = [clip_id for clip_id in references if clip_id not in found]
        if not skip_bad:
            _refuse(name, folder, reference, plan)
    return plan


def _refuse(name: str, folder: Path, reference: Path, plan: Plan) -> None:
    way_out = "mend the names, list ids.csv (file,id), or evaluate the rest with skip_bad=true"
    if plan.unmatched.get(name):
        raise InputError(f"{name}: {len(plan.unmatched[name])} files of {folder} belong to no clip of {reference}: "
                         f"{_some(plan.unmatched[name])}; {way_out}")
    if plan.absent[name]:
        raise InputError(f"{name}: {folder} has no sound for {len(plan.absent[name])} clips: "
                         f"{_some(plan.absent[name])}; {way_out}")


def _single(sounds: dict[str, list[SoundFile]], folder: Path) -> dict[str, list[SoundFile]]:
    for clip_id, samples in sounds.items():
        if len(samples) > 1:
            raise InputError(f"{folder} has {len(samples)} files for clip {clip_id!r} ({samples[0].path.name}, "
                             f"{samples[1].path.name}); there is one true sound")
    return sounds


def _some(names: list[str]) -> str:
    more = f" and {len(names) - _SHOWN} more" if len(names) > _SHOWN else ""
    return ", ".join(names[:_SHOWN]) + more


@dataclass(frozen=True)
class Timeline:
    """Probabilities (T, K) of K objects over a clip of ``duration_s``."""

    objects: list[str]
    probs: np.ndarray
    duration_s: float


def records_of(shards: Path, clips: Collection[str]) -> Iterator[ClipFeatures]:
    """⇒ the records of these clips, as far as a dataset has them. One shard is in memory at a time.

    Raises:
        InputError: the dataset has none of them.
    """
    info, wanted, found = read_dataset(shards), set(clips), 0
    for split in info.splits:
        for shard in info.shards(split):
            if found == len(wanted):
                return
            for record in read_shard(shards / shard.name):
                if record.key in wanted:
                    found += 1
                    yield record
    if not found:
        raise InputError(f"shards={shards} has none of the {len(wanted)} clips; is it the dataset of these sounds?")


def timelines(shards: Path, clips: Collection[str]) -> dict[str, Timeline]:
    """⇒ {id: Timeline} of these clips. Arguments and errors as of :func:`records_of`."""
    return {record.key: Timeline(list(record.objects), np.asarray(record.probs, np.float32), float(record.duration_s))
            for record in records_of(shards, clips)}
