"""Checks of a finished dataset: every record against dataset.json, statistics of the clips, and films of some clips.

A film shows the frames of a clip, read from its video, under the grounding of its record.
"""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any
from urllib.parse import unquote

import numpy as np

from ...checkpoints.parts import differing_settings
from ...clip import FEATURES, ClipFeatures, FrameClock
from ...media.picture_reader import Fit, Squeeze
from ...media.video import CHUNK_FRAMES, probe, stream_clip
from ...perception.base import Grounder
from ...plots.overlay import SHOWN, Overlay, picture_size, write_film
from ...runtime.errors import InputError
from ...runtime.files import printable, reason_of, write_fault, write_text, writing_to
from ...runtime.work_plan import Deed, Item, Plan, counted
from ..shards.records import members_in
from ..shards.schema import DatasetInfo, ShardInfo, decode_record, member_key, read_dataset, source_video
from ..shards.storage import LocalStorage, Root, Storage, storage_of
from .dataset_statistics import SEEN, DatasetStatistics, Fault, statistics_picture
from .shard_folder import STATE_FILE, config_of, failures, hash_of

_ROUNDING, _LONGEST_S = 1e-3, 1e6  # half a step of fp16 at 1; bound of a clip's duration, and of its frame rate
REPORTS = ("faults.jsonl", "statistics.json", "statistics.png")
OVERLAYS = "overlays"  # folder of films
Progress = Callable[[int, int, int], None]  # clips read, clips in all, faults


def report_folders(places: Sequence[str], out: Path | None) -> dict[str, Path]:
    """{dataset: folder of its reports}.

    Args:
        places: folders or URLs of datasets.
        out: the folder, of several datasets that of their folders; None: check/ in a local folder, else check/ here.

    Raises:
        InputError: a dataset is named twice.
    """
    names = [place.rstrip("/").rpartition("/")[2] or "shards" for place in places]
    if len(set(places)) < len(places):
        raise InputError(f"shards=[{', '.join(places)}] names a dataset twice; leave one out")
    if len(places) == 1:
        storage = storage_of(places[0])
        return {places[0]: out or (storage.path / "check" if isinstance(storage, LocalStorage) else Path("check"))}
    return {place: (out or Path("check")) / (name if names.count(name) == 1 else f"{number}-{name}")
            for number, (place, name) in enumerate(zip(places, names))}


def check_dataset(root: Root, progress: Progress | None = None, seen: float = SEEN,
                  ) -> tuple[DatasetStatistics, list[Fault]]:
    """Read every record of a dataset, one at a time ⇒ statistics of the readable clips, and all faults.

    Args:
        root: the dataset's folder, URL or storage. At a URL nobody knows of tars that dataset.json doesn't name, nor of
            lists of failures.
        progress: called before the first record and after each.
        seen: probability above which an object was seen in a frame.

    Raises:
        InputError: dataset.json itself can't be used.
    """
    storage = storage_of(root)
    info, local = read_dataset(storage), storage.path if isinstance(storage, LocalStorage) else None
    shards = [(split, shard) for split, found in info.splits.items() for shard in found]
    total = sum(shard.records for _, shard in shards)
    statistics, faults = DatasetStatistics(seen), _mixed_config(storage, info)
    faults += _unlisted(local, {shard.name for _, shard in shards}) if local else []
    key_hashes: set[bytes] = set()
    read = 0
    if progress:
        progress(read, total, len(faults))  # shows the total before the first record
    for split, shard in shards:
        records = 0
        for record in read_records(storage, shard.name):
            records += bool(record.key)  # a fault without a key is the shard's
            if isinstance(record, Fault):
                faults.append(record)
            else:
                faults += [Fault(shard.name, record.key, what) for what in record_faults(record, info)]
                faults += _repeated(key_hashes, shard, record.key)
                statistics.add(split, record)
            if progress:
                progress(read + records, total, len(faults))
        read += records
        faults += _count_faults(local, shard, records)
    return statistics, faults + _mixed_features(statistics)


def plan_check(root: Root, out: Path, count: int = 0, keys: Sequence[str] = ()) -> Plan:
    """What a check writes: three reports, and the films of :func:`write_overlays`. Nothing is written.

    Args:
        root: the dataset's folder, URL or storage.
        out: folder of the reports.
        count: number of films of the first clips, if ``keys`` is empty.
        keys: ids of the clips.

    Raises:
        InputError: dataset.json can't be used, or ``out`` is a file.
    """
    info = read_dataset(root)
    if out.exists() and not out.is_dir():
        raise InputError(f"out={out} is a file; name a folder to write to")
    chosen = keys or ([clip.key for clip in _chosen(root, count, ())] if count else ())
    names = [*REPORTS, *(f"{OVERLAYS}/{member_key(key)}.mp4" for key in chosen)]
    clips = sum(info.records(split) for split in info.splits)
    return Plan(f"check of {storage_of(root)}, of {counted(clips, 'clip')}", [
        Item(name, Deed.REPLACE if (out / name).exists() else Deed.MAKE) for name in names], out)


def write_check(out: Path, statistics: DatasetStatistics, faults: list[Fault], title: str,
                info: DatasetInfo | None = None) -> str:
    """Write statistics.json, statistics.png and faults.jsonl (empty without faults) ⇒ why there is no picture, or "".

    Args:
        out: folder of the three files.
        statistics: of the clips.
        faults: of the records.
        title: of the picture.
        info: dataset.json, of which the statistics say what made the records.

    Raises:
        EndOfRun: the disk is full, or the folder can't be written to.
    """
    lines = "".join(json.dumps(asdict(fault), ensure_ascii=False) + "\n" for fault in faults)
    content = {**statistics.to_dict(), "faults": len(faults)} | ({"made_by": made_by(info)} if info else {})
    with writing_to(out):
        write_text(out / "faults.jsonl", printable(lines))
        write_text(out / "statistics.json", printable(json.dumps(content, ensure_ascii=False, indent=1)) + "\n")
        try:
            statistics_picture(out / "statistics.png", statistics, f"{title}: {statistics.clips} clips, "
                                                                   f"{statistics.seconds / 3600:.2f} hours")
        except Exception as error:  # of any kind that a drawing library may raise
            if write_fault(error, out):
                raise
            (out / "statistics.png").unlink(missing_ok=True)  # of a former check, whose numbers are gone
            return f"statistics.png could not be drawn ({error})"
    return ""


def record_faults(clip: ClipFeatures, info: DatasetInfo) -> list[str]:
    """The faults of a clip: contradictions to its dataset or in itself, and numbers out of range.

    Shapes that contradict each other, and NaN, were refused when the clip was read.

    Args:
        clip: as read.
        info: dataset.json.
    """
    faults = []

    def expect(holds: bool, what: str) -> None:
        if not holds:
            faults.append(what)

    for name, row in FEATURES.items():
        array = clip.features.get(name)
        if array is None:
            expect(name not in info.features, f"it has no {name}, dataset.json names its extractor")
            continue
        size = info.dimensions.get(row.dim_key(name), array.shape[-1])
        expect(array.shape[-1] == size,
               f"{name} has shape {array.shape}, expected ({', '.join(['…'] * (array.ndim - 1) + [str(size)])})")
        if row.limits and array.size:
            (low, high), least, most = row.limits, float(array.min()), float(array.max())
            expect(least >= low - _ROUNDING and most <= high + _ROUNDING,
                   f"{name} go from {least:g} to {most:g}, expected {low:g} to {high:g}")
    expect(clip.fps == info.fps, f"fps is {clip.fps}, dataset.json says {info.fps}")
    expect(clip.sample_rate_hz == info.sample_rate_hz,
           f"sample_rate_hz is {clip.sample_rate_hz}, dataset.json says {info.sample_rate_hz}")
    if 0 < clip.duration_s < _LONGEST_S and 0 < clip.fps < _LONGEST_S:
        frames, samples = FrameClock(clip.fps).frames_of(clip.duration_s), round(clip.duration_s * clip.sample_rate_hz)
        expect(len(clip.probs) == frames, f"{len(clip.probs)} frames, expected {frames} in {clip.duration_s} s")
        expect(len(clip.waveform) == samples,
               f"{len(clip.waveform)} samples of sound, expected {samples} in {clip.duration_s} s")
    else:
        faults.append(f"duration_s is {clip.duration_s} at {clip.fps} fps, expected more than 0 and what a video can "
                      "have")
    expect(math.isfinite(clip.start_s) and clip.start_s >= 0, f"start_s is {clip.start_s}, expected seconds >= 0")
    expect(all(clip.objects) and len(set(clip.objects)) == len(clip.objects),
           f"objects are {clip.objects}, expected words that differ")
    return faults


def read_records(storage: Storage, name: str) -> Iterator[ClipFeatures | Fault]:
    """The clips of a shard, in order, with a Fault in place of each damaged clip, and at the end of a damaged shard."""
    try:
        for key, members in members_in(storage, name):
            try:
                yield decode_record(key, members)
            except InputError as error:
                yield Fault(name, unquote(key), str(error))
    except InputError as error:
        yield Fault(name, "", str(error))


def made_by(info: DatasetInfo) -> dict[str, Any]:
    """What dataset.json says of the making of its records, for JSON and for comparison."""
    further = {name: {"fingerprint": fingerprint} for name, fingerprint in info.features.items()}
    extractors: dict[str, dict[str, Any]] = {
        "grounder": {"fingerprint": info.grounder}, "encoder": {"fingerprint": info.encoder}, **further}
    for role, found in (info.known_settings or {}).items():
        extractors.setdefault(role, {}).update(found)
    rates = {"fps": info.fps, "sample_rate_hz": info.sample_rate_hz}
    dims = {"frame_dim": info.frame_dim, "object_dim": info.object_dim, "caption_dim": info.caption_dim, **info.dims}
    return {"dataset": {"format_version": info.format_version, "code_version": info.code_version},
            "records": rates | dims, **extractors, "nouns": info.nouns}


def origin_lines(info: DatasetInfo) -> list[str]:
    """The same in lines to be printed, and what dataset.json lacks."""
    lines = [f"{part}: {', '.join(f'{name} {value}' for name, value in found.items())}"
             for part, found in made_by(info).items() if found]
    return [*lines, *([info.lacks] if info.lacks else [])]


def differing_datasets(roots: Sequence[Root]) -> list[str]:
    """Differences of datasets in what made their records, as sentences; each is compared with the first.

    Execution (number formats) doesn't count, nor what one of the two doesn't say. Where both folders have their
    extraction.json, settings are compared that dataset.json doesn't say, such as ``sound`` and ``hwaccel``.
    """
    first, *others = map(storage_of, roots)
    before, found = read_dataset(first), []
    for storage in others:
        info = read_dataset(storage)
        settings_said = None not in (before.known_settings, info.known_settings)
        said = {"settings": settings_said, "nouns": before.nouns and info.nouns}
        unsaid: dict[str, Any] = {name: {} for name, by_both in said.items() if not by_both}
        facts = [{part: facts for part, facts in made_by(replace(each, **unsaid)).items() if part != "dataset"}
                 for each in (before, info)]
        configs = [config for each in (first, storage) if (config := config_of(each)) is not None]
        for made, config in zip(facts, configs if len(configs) == 2 else ()):
            made["config"] = {name: config.get(name) for name in _CONFIG_ALONE}
        wrong = differing_settings(facts[0], facts[1], f"in {first} it is")
        found += [f"{storage}: {difference}" for difference in wrong]
    return found


_CONFIG_ALONE = ("sound", "hwaccel", "fits")  # of extraction.json, that change a record and that dataset.json lacks


def _mixed_config(storage: Storage, info: DatasetInfo) -> list[Fault]:
    """A fault where dataset.json is of another extraction than the folder was begun with."""
    config = config_of(storage)
    if config is None or hash_of(config) == info.config_hash:
        return []
    return [Fault("dataset.json", "", f"it is of another extraction than {STATE_FILE} of this folder: shards of two "
                                      "may be mixed")]


def _mixed_features(statistics: DatasetStatistics) -> list[Fault]:
    """A fault where clips with objects differ in their optional features, as of grounders with masks and without."""
    if len(statistics.with_objects) < 2:
        return []
    kinds = "; ".join(f"{', '.join(names) or 'none'} in {clips}" for names, clips in statistics.with_objects.items())
    return [Fault("dataset.json", "", f"clips with objects have different optional features ({kinds}): shards of two "
                                      "extractions may be mixed")]


def _repeated(key_hashes: set[bytes], shard: ShardInfo, key: str) -> list[Fault]:
    """A fault if the key's hash of 8 bytes is among ``key_hashes``; else it is added."""
    short = hashlib.blake2b(key.encode(), digest_size=8).digest()
    if short in key_hashes:
        return [Fault(shard.name, key, "the id stands in the dataset before; ids must differ")]
    key_hashes.add(short)
    return []


def _count_faults(root: Path | None, shard: ShardInfo, records: int) -> list[Fault]:
    """Faults of a shard whose records or failures are not as many as dataset.json says."""
    faults = []
    if records != shard.records:
        faults.append(Fault(shard.name, "", f"it holds {records} records, dataset.json says {shard.records}"))
    listed = (root or Path()) / f"{Path(shard.name).stem}.failed.jsonl"
    if root and (shard.failed or listed.exists()):
        try:
            failed = len(failures(listed))
            if failed != shard.failed:
                what = f"{listed.name} lists {failed} clips that failed, dataset.json says {shard.failed}"
                faults.append(Fault(shard.name, "", what))
        except InputError as error:
            faults.append(Fault(shard.name, "", str(error)))
    return faults


def _unlisted(root: Path, known: set[str]) -> list[Fault]:
    """Faults of tars that dataset.json doesn't name, which training would leave out."""
    return [Fault(path.name, "", "it is not in dataset.json") for path in sorted(root.glob("*.tar"))
            if path.name not in known and not path.name.startswith(".")]


def write_overlays(root: Root, videos: Path, out: Path, count: int = 3, keys: Sequence[str] = (),
                   grounder: Grounder | None = None, shown: float = SHOWN,
                   failures: dict[str, str] | None = None) -> Iterator[Path]:
    """Write films ``out``/<id>.mp4 of clips of a dataset ⇒ their paths, one by one.

    Args:
        root: the dataset's folder, URL or storage.
        videos: folder that the clips were extracted from.
        out: folder of the films.
        count: number of the first clips, if ``keys`` is empty.
        keys: ids of the clips.
        grounder: draws the masks anew, since shards hold only their areas; None: boxes alone.
        shown: least probability of objects whose boxes and masks are drawn.
        failures: {id: reason} of clips whose film can't be made, to be filled; None: the first of them ends it.

    Raises:
        InputError: a video or a key is missing, or the grounder draws no masks, or another made the shards.
        EndOfRun: the disk is full, or the folder can't be written to.
    """
    videos, out = Path(videos), Path(out)
    if not videos.is_dir():
        raise InputError(f"videos={videos} is not a folder; overlays need the videos that the shards were made from")
    if grounder is not None and not grounder.draws_masks:
        raise InputError(f"the grounder {grounder.fingerprint} draws no masks; choose another, or masks=false")
    if grounder is not None:  # masks of another grounder would not fit the areas in the shards
        _require_same_grounder(root, grounder)
    for clip in _chosen(root, count, keys):
        try:
            with writing_to(out):
                path = write_overlay(clip, source_video(videos, clip), out / f"{member_key(clip.key)}.mp4", grounder,
                                     shown)
        except Exception as error:
            if failures is None:
                raise
            failures[printable(clip.key)] = reason_of(error, clip.key)
            continue
        yield path


def _require_same_grounder(root: Root, grounder: Grounder) -> None:
    """Raise InputError where another grounder made the shards, or one with other settings."""
    storage = storage_of(root)
    info = read_dataset(storage)
    info.require(str(storage), grounder=grounder.fingerprint)
    known = info.known_settings
    wrong = [] if known is None else differing_settings(
        {"grounder": known.get("grounder")}, {"grounder": grounder.settings}, "the shards were made with")
    if wrong:
        raise InputError(f"{'; '.join(wrong)}; name the grounder that made {storage} (grounder.KEY=)")


def write_overlay(clip: ClipFeatures, video: Path, out: Path, grounder: Grounder | None = None,
                  shown: float = SHOWN) -> Path:
    """Write the film of one clip ⇒ its path.

    Args:
        clip: the record.
        video: file that the clip was extracted from.
        out: path of the film.
        grounder: draws the masks anew; None: boxes alone.
        shown: least probability of objects whose boxes and masks are drawn.
    """
    info = probe(video)
    size = picture_size(info.height, info.width)
    overlay = Overlay(clip, size, shown)
    return write_film(out, _frames(overlay, video, size, grounder), clip.fps, clip.waveform, clip.sample_rate_hz)


def _frames(overlay: Overlay, video: Path, size: tuple[int, int], grounder: Grounder | None) -> Iterator[np.ndarray]:
    clip = overlay.clip
    grounder = grounder and grounder.for_clip(video, clip.start_s, clip.fps)  # one may remember earlier frames
    fits: list[Fit] = [Squeeze(*size)] + ([grounder.fit] if grounder is not None else [])
    t = 0
    for pictures, *grounded in stream_clip(video, start_s=clip.start_s, duration_s=clip.duration_s, fps=clip.fps,
                                           fits=fits, want_audio=False, chunk_frames=CHUNK_FRAMES):
        masks = grounder.masks(grounded[0], clip.objects) if grounder is not None else None
        for i, picture in enumerate(pictures[:len(clip.probs) - t]):
            yield overlay.frame(picture, t, masks[i] if masks is not None else None)
            t += 1
    if t != len(clip.probs):
        raise InputError(f"{video} gives {t} frames of clip {clip.key!r}, its shard has {len(clip.probs)}; is it "
                         "another video than was extracted?")


def _chosen(root: Root, count: int, keys: Sequence[str]) -> Iterator[ClipFeatures]:
    wanted, left, storage = set(keys), len(set(keys)) or count, storage_of(root)
    shards = (shard for found in read_dataset(storage).splits.values() for shard in found)
    for record in (record for shard in shards for record in read_records(storage, shard.name)):
        if not left:
            return
        if isinstance(record, ClipFeatures) and (not keys or record.key in wanted):
            left -= 1
            wanted.discard(record.key)
            yield record
    if wanted:
        missing = ", ".join(map(repr, sorted(wanted)))
        raise InputError(f"{storage} has no clip {missing}; keys= names ids of the manifest")
