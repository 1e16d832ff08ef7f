"""Extraction: every clip is decoded once, looked at once, and written to a shard. It can be stopped anywhere.

A shard's tar is the commit: it is renamed into place whole, after the list of its failures, so a run that is killed
loses the slice under work, and the next run does exactly the slices whose tar is missing (output.py).
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

from ... import __version__
from ...clip import ClipFeatures
from ...media.container import check_hwaccel
from ...media.decode_pool import DecodePool
from ...media.decoding import ClipRequest
from ...media.video import CHUNK_FRAMES, ClipStream
from ...perception.base import Encoder, Grounder
from ...perception.captions import tagger_name
from ...perception.features import Extractors, look, words_of
from ...runtime.errors import InputError
from ..manifests.manifest import Row, manifest_hash, read_manifest, slices
from ..shards.schema import FORMAT_VERSION, DatasetInfo, encode_record
from .shard_folder import ShardFolder

SAMPLE_RATE_HZ = 16_000
Progress = Callable[[int, int, int], None]  # clips done, of how many, of those failed in this run


def extract_dataset(manifest: Path, videos: Path, out: Path, grounder: Grounder, encoder: Encoder, fps: float,
                    shard_size: int = 64, workers: int = 2, rank: int = 0, world: int = 1,
                    progress: Progress | None = None, limit_s: float = 60.0, memory_mb: int = 4096,
                    chunk_frames: int = CHUNK_FRAMES, hwaccel: str | None = None,
                    retry_failed: bool = False) -> DatasetInfo:
    """Turn the clips of a manifest into shards in ``out``, or the share of worker ``rank`` of ``world``.

    Whoever finds all shards there at its end writes dataset.json. Returns what is in ``out`` by then; with world > 1
    other workers' shards may still be missing, and dataset.json with them. A clip that can't be read is listed in
    ``<shard>.failed.jsonl`` with the reason. progress is called at the start (what earlier runs did counts as done) and
    after each clip. limit_s and memory_mb bound the decoding of one clip; chunk_frames of its frames travel and are
    looked at at once, decoded on a kind of device where hwaccel names one. retry_failed tries the clips again that
    earlier runs listed as failed. Raises InputError when ``out`` was begun with another manifest or config, when there
    is no such device, when the disk is full, or when no clip at all could be read.
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
    config = _config(grounder, encoder, fps, shard_size, hwaccel)
    all_slices = slices(rows, shard_size)
    folder = ShardFolder(out, _describe(rows, grounder, encoder, fps, config), config, all_slices)
    extractor = ClipExtractor(videos, Extractors(grounder, encoder, chunk_frames), fps)
    mine = all_slices[rank::world]
    with folder.at_work(), DecodePool(workers, limit_s, memory_mb, hwaccel=hwaccel) as pool:
        todo = folder.todo(mine, retry_failed)
        clips = sum(len(part.rows) for part in mine)
        done, failed = clips - sum(len(part.rows) for part in todo), 0
        if progress:
            progress(done, clips, failed)
        decoded = pool.map(extractor.request(row) for part in todo for row in part.rows
                           if row.id not in folder.kept(part))
        for part in todo:
            records, failures_here = [], list[dict[str, str]]()
            for row in part.rows:
                record = folder.kept(part).get(row.id) or extractor.record(row, next(decoded))
                if isinstance(record, InputError):
                    failures_here.append({"id": row.id, "path": row.path, "reason": str(record)})
                else:
                    records.append((row.id, record))
                done, failed = done + 1, failed + isinstance(record, InputError)
                if progress:
                    progress(done, clips, failed)
            folder.commit(part, records, failures_here)
        return folder.finish()


class ClipExtractor:
    """One clip ⇒ its record, by a grounder and an encoder."""

    def __init__(self, videos: Path, extractors: Extractors, fps: float):
        self.videos, self.extractors, self.fps = videos, extractors, float(fps)  # 4 and 4.0 are the same record

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


def _config(grounder: Grounder, encoder: Encoder, fps: float, shard_size: int, hwaccel: str | None) -> dict[str, Any]:
    """Every setting that changes a record, or which record lies where."""
    return {
        "format_version": FORMAT_VERSION, "fps": float(fps), "sample_rate_hz": SAMPLE_RATE_HZ, "shard_size": shard_size,
        "grounder": grounder.fingerprint, "encoder": encoder.fingerprint,
        "grounder_settings": getattr(grounder, "settings", {}), "encoder_settings": getattr(encoder, "settings", {}),
        "fits": [repr(grounder.fit), repr(encoder.fit)],
        "nouns": tagger_name(),  # who finds the objects in captions depends on what is installed
        "hwaccel": hwaccel,  # devices may differ in a picture's last bits
    }


def _describe(rows: list[Row], grounder: Grounder, encoder: Encoder, fps: float, config: dict[str, Any]) -> DatasetInfo:
    return DatasetInfo(
        grounder=grounder.fingerprint, encoder=encoder.fingerprint, fps=float(fps), sample_rate_hz=SAMPLE_RATE_HZ,
        frame_dim=encoder.frame_dim, object_dim=encoder.object_dim, caption_dim=encoder.caption_dim,
        config_hash=hashlib.sha256(json.dumps(config, sort_keys=True).encode()).hexdigest(),
        manifest_hash=manifest_hash(rows), code_version=__version__)
