"""Extraction: every clip is decoded once, looked at once, and written to a shard. It can be stopped anywhere.

A shard's tar is the commit: it is renamed into place whole, after the list of its failures, so a run that is killed
loses the slice under work, and the next run does exactly the slices whose tar is missing.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

from .._version import __version__
from ..atomic import write_text
from ..clip import ClipFeatures
from ..decode_pool import DecodePool
from ..decoding import ClipRequest
from ..encoders.base import Encoder
from ..errors import InputError
from ..features import Extractors, look, words_of
from ..grounding.base import Grounder
from ..hardware import check_hwaccel
from ..shards.schema import FORMAT_VERSION, DatasetInfo, ShardInfo, encode_record
from ..shards.writer import write_records
from ..video import CHUNK_FRAMES, ClipStream
from .manifest import Row, Slice, manifest_hash, read_manifest, slices

SAMPLE_RATE_HZ = 16_000
STATE_FILE = "extraction.json"


Progress = Callable[[int, int, int], None]  # clips done, of how many, of those failed in this run


def extract_dataset(manifest: Path, videos: Path, out: Path, grounder: Grounder, encoder: Encoder, fps: float,
                    shard_size: int = 64, workers: int = 2, rank: int = 0, world: int = 1,
                    progress: Progress | None = None, limit_s: float = 60.0, memory_mb: int = 4096,
                    chunk_frames: int = CHUNK_FRAMES, hwaccel: str | None = None) -> DatasetInfo:
    """Turn the clips of a manifest into shards in ``out``, or the share of worker ``rank`` of ``world``.

    Whoever finds all shards there at its end writes dataset.json. Returns what is in ``out`` by then; with world > 1
    other workers' shards may still be missing, and dataset.json with them. A clip that can't be read is listed in
    ``<shard>.failed.jsonl`` with the reason. progress is called at the start (what earlier runs did counts as done) and
    after each clip. limit_s and memory_mb bound the decoding of one clip; chunk_frames of its frames travel and are
    looked at at once, decoded on a kind of device where hwaccel names one. Raises InputError when ``out`` was begun
    with another manifest or config, when there is no such device, or when no clip at all could be read.
    """
    manifest, videos, out = Path(manifest), Path(videos), Path(out)
    if not 0 <= rank < world:
        raise InputError(f"rank={rank} of world={world}: ranks count from 0 to world - 1")
    if chunk_frames < 1:
        raise InputError(f"chunk_frames={chunk_frames}: at least one frame has to be looked at at once")
    if not videos.is_dir():
        raise InputError(f"videos={videos} is not a folder")
    check_hwaccel(hwaccel)
    rows = read_manifest(manifest)
    info = _describe(rows, grounder, encoder, fps, shard_size, hwaccel)
    out.mkdir(parents=True, exist_ok=True)
    _claim(out, info)
    all_slices = slices(rows, shard_size)
    mine = all_slices[rank::world]
    todo = [part for part in mine if not (out / part.name).exists()]
    clips = sum(len(part.rows) for part in mine)
    done, failed = clips - sum(len(part.rows) for part in todo), 0
    if progress:
        progress(done, clips, failed)
    extractor = ClipExtractor(videos, Extractors(grounder, encoder, chunk_frames), fps)
    with DecodePool(workers, limit_s, memory_mb, hwaccel=hwaccel) as pool:
        decoded = pool.map(extractor.request(row) for part in todo for row in part.rows)
        for part in todo:
            records, failures_here = [], list[dict[str, str]]()
            for row in part.rows:
                record = extractor.record(row, next(decoded))
                if isinstance(record, InputError):
                    failures_here.append({"id": row.id, "path": row.path, "reason": str(record)})
                else:
                    records.append((row.id, record))
                done, failed = done + 1, failed + isinstance(record, InputError)
                if progress:
                    progress(done, clips, failed)
            _commit(out, part, records, failures_here)
    return _finish(out, info, all_slices)


class ClipExtractor:
    """One clip ⇒ its record, by a grounder and an encoder."""

    def __init__(self, videos: Path, extractors: Extractors, fps: float):
        self.videos, self.extractors, self.fps = videos, extractors, fps

    def request(self, row: Row) -> ClipRequest:
        return ClipRequest(
            path=str(self.videos / row.path), fps=self.fps, start_s=row.start_s, duration_s=row.duration_s,
            fits=self.extractors.fits, sample_rate_hz=SAMPLE_RATE_HZ, chunk_frames=self.extractors.chunk_frames)

    def record(self, row: Row, clip: ClipStream) -> dict[str, bytes] | InputError:
        """What is being decoded ⇒ the members of its record, or the reason why there is none."""
        try:
            return encode_record(self.features(row, clip))
        except InputError as error:
            return error

    def features(self, row: Row, clip: ClipStream) -> ClipFeatures:
        """Raises InputError where the clip can't be read, the grounder or the encoder refuses it, or says what can't be
        stored."""
        extractors = self.extractors.for_clip(self.videos / row.path, self.fps, row.start_s)
        encoder, words = extractors.encoder, words_of(row.caption, row.objects or None, extractors.known_words)
        embedding, [grounding] = look(clip, extractors, [words.objects])
        assert clip.waveform is not None  # asked for by request()
        return ClipFeatures(
            key=row.id, caption=row.caption, objects=words.objects, fps=self.fps, waveform=clip.waveform,
            frame_embedding=embedding, probs=grounding.probs, boxes=grounding.boxes, areas=grounding.areas,
            object_embedding=encoder.encode_objects(words.objects),
            caption_tokens=encoder.encode_caption(words.caption), sample_rate_hz=SAMPLE_RATE_HZ, label=row.label,
            source=row.path, start_s=row.start_s, duration_s=clip.duration_s, mask_embedding=grounding.mask_embedding)


def _commit(out: Path, part: Slice, records: list[tuple[str, dict[str, bytes]]], failed: list[dict[str, str]]) -> None:
    lines = "".join(json.dumps(entry, ensure_ascii=False, sort_keys=True) + "\n" for entry in failed)
    write_text(out / part.failed_name, lines, sync=True)
    write_records(out / part.name, records)


def _describe(rows: list[Row], grounder: Grounder, encoder: Encoder, fps: float, shard_size: int,
              hwaccel: str | None) -> DatasetInfo:
    config = {
        "format_version": FORMAT_VERSION, "fps": float(fps), "sample_rate_hz": SAMPLE_RATE_HZ, "shard_size": shard_size,
        "grounder": grounder.fingerprint, "encoder": encoder.fingerprint,
        "fits": [repr(grounder.fit), repr(encoder.fit)],
        "hwaccel": hwaccel,  # devices may differ in a picture's last bits
    }
    return DatasetInfo(
        grounder=grounder.fingerprint, encoder=encoder.fingerprint, fps=float(fps), sample_rate_hz=SAMPLE_RATE_HZ,
        frame_dim=encoder.frame_dim, object_dim=encoder.object_dim, caption_dim=encoder.caption_dim,
        config_hash=hashlib.sha256(json.dumps(config, sort_keys=True).encode()).hexdigest(),
        manifest_hash=manifest_hash(rows), code_version=__version__)


def _claim(out: Path, info: DatasetInfo) -> None:
    """Write down what this folder is made of before its first shard, or refuse to go on with something else."""
    path = out / STATE_FILE
    ours = {name: getattr(info, name) for name in ("manifest_hash", "config_hash", "grounder", "encoder", "fps")}
    if not path.exists():
        if next(out.glob("*.tar"), None) is not None:
            raise InputError(f"{out} holds tars but no {STATE_FILE}: they were not made by this program; choose "
                             "another out=")
        write_text(path, json.dumps(ours, indent=1, sort_keys=True) + "\n", sync=True)
    try:
        theirs = json.loads(path.read_text(encoding="utf-8"))  # another worker may have been faster
    except (OSError, ValueError) as error:
        raise InputError(f"{path} can't be read ({error}); choose another out=, or delete the folder") from error
    if not isinstance(theirs, dict):
        raise InputError(f"{path} doesn't hold what extraction writes; choose another out=, or delete the folder")
    if theirs.get("manifest_hash") != ours["manifest_hash"]:
        raise InputError(f"{out} was begun with another manifest; choose another out=, or delete the folder")
    changed = [f"{name} {theirs.get(name)} then, {ours[name]} now" for name in ("grounder", "encoder", "fps")
               if theirs.get(name) != ours[name]]
    if theirs.get("config_hash") != ours["config_hash"]:
        what = "; ".join(changed) or "shard_size, the size of pictures, or hwaccel"
        raise InputError(f"{out} was begun with another config ({what}); choose another out=, or delete the folder")


def _finish(out: Path, info: DatasetInfo, all_slices: list[Slice]) -> DatasetInfo:
    splits: dict[str, list[ShardInfo]] = {}
    for part in all_slices:
        if (out / part.name).exists():
            failed = len(failures(out / part.failed_name))
            splits.setdefault(part.split, []).append(ShardInfo(part.name, len(part.rows) - failed, failed))
    info = replace(info, splits=splits)
    shards = [shard for found in splits.values() for shard in found]
    if len(shards) < len(all_slices):
        return info
    if not any(shard.records for shard in shards):
        first = failures(out / all_slices[0].failed_name)[0]
        for shard in shards:  # they hold nothing; the next run shall try again
            (out / shard.name).unlink(missing_ok=True)
        raise InputError(f"none of the {sum(s.failed for s in shards)} clips could be read. The first reason: "
                         f"{first['reason']}")
    info.write(out)
    return info


def failures(path: str | os.PathLike) -> list[dict[str, str]]:
    """A ``<shard>.failed.jsonl`` ⇒ its entries {id, path, reason}."""
    try:
        return [json.loads(line) for line in Path(path).read_text(encoding="utf-8").splitlines()]
    except (OSError, ValueError) as error:
        raise InputError(f"{path} can't be read ({error}); delete it and its tar, and extract again") from error
