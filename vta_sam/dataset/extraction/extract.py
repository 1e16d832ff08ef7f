"""Extraction: every clip is decoded once, goes through the extractors once, and is written to a shard.

A run may be killed at any moment. A shard is done once its tar is renamed into place, after the list of its failures.
The next run makes the shards whose tar is missing (shard_folder.py).
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from ... import __version__
from ...clip import ClipFeatures, MelSpec
from ...media.container import check_hwaccel
from ...media.decode_pool import DecodePool
from ...media.decoding import ClipRequest
from ...media.video import CHUNK_FRAMES, ClipStream
from ...perception.base import Encoder, FrameExtractor, Grounder, settings_of
from ...perception.captions import tagger_name
from ...perception.features import Extractors, extract_features, words_of
from ...runtime.errors import InputError
from ..manifests.manifest import Row, manifest_hash, read_manifest, slices
from ..shards.schema import FORMAT_VERSION, DatasetInfo, encode_record
from .shard_folder import ShardFolder

Progress = Callable[[int, int, int], None]  # clips done, clips in all, clips failed in this run


def extract_dataset(manifest: Path, videos: Path, out: Path, grounder: Grounder, encoder: Encoder, fps: float,
                    shard_size: int = 64, workers: int = 2, rank: int = 0, world: int = 1,
                    progress: Progress | None = None, limit_s: float = 60.0, memory_mb: int = 4096,
                    chunk_frames: int = CHUNK_FRAMES, hwaccel: str | None = None,
                    retry_failed: bool = False, features: Sequence[FrameExtractor] = (),
                    sample_rate_hz: int = MelSpec().sample_rate_hz) -> DatasetInfo:
    """Make the shards of a manifest, or one worker's share of them ⇒ the dataset as it is then in ``out``.

    The worker that ends last writes dataset.json. Until then other workers' shards may be missing. A clip that can't be
    read is listed in ``<shard>.failed.jsonl`` with the reason.

    Args:
        manifest: csv of the clips.
        videos: folder of the videos.
        out: folder of the shards.
        grounder: finds objects in frames.
        encoder: embeds frames, words and captions.
        fps: frame rate of the features.
        shard_size: clips in a shard.
        workers: decoding processes.
        rank: of this worker, from 0.
        world: number of workers.
        progress: called at the start and after each clip; clips of earlier runs count as done.
        limit_s: limit of a clip's decoding, in seconds.
        memory_mb: memory limit of a clip's decoding.
        chunk_frames: frames in one call of an extractor.
        hwaccel: FFmpeg's name of a kind of decoding device; None: software.
        retry_failed: try clips again that earlier runs listed as failed.
        features: extractors of further features per frame.
        sample_rate_hz: of the stored sound.

    Raises:
        InputError: ``out`` was begun with another manifest or config, an argument is out of range, there is no such
            device, the disk is full, or no clip at all could be read.
    """
    manifest, videos, out = Path(manifest), Path(videos), Path(out)
    if not 0 <= rank < world:
        raise InputError(f"rank={rank} of world={world}: ranks count from 0 to world - 1")
    if chunk_frames < 1:
        raise InputError(f"chunk_frames={chunk_frames}: expected at least one frame")
    if sample_rate_hz < 1:
        raise InputError(f"sample_rate_hz={sample_rate_hz}: expected samples a second, at least 1")
    if not videos.is_dir():
        raise InputError(f"videos={videos} is not a folder")
    check_hwaccel(hwaccel)
    rows = read_manifest(manifest)
    extractors = Extractors(grounder, encoder, chunk_frames, features)
    config = _config(extractors, fps, sample_rate_hz, shard_size, hwaccel)
    all_slices = slices(rows, shard_size)
    folder = ShardFolder(out, _describe(rows, extractors, config), config, all_slices)
    extractor = ClipExtractor(videos, extractors, fps, sample_rate_hz)
    mine = all_slices[rank::world]
    with folder.claimed(), DecodePool(workers, limit_s, memory_mb, hwaccel=hwaccel) as pool:
        pending = folder.pending(mine, retry_failed)
        clips = sum(len(part.rows) for part in mine)
        done, failed = clips - sum(len(part.rows) for part in pending), 0
        if progress:
            progress(done, clips, failed)
        decoded = pool.map(extractor.request(row) for part in pending for row in part.rows
                           if row.id not in folder.earlier_records(part))
        for part in pending:
            records, shard_failures = [], list[dict[str, str]]()
            for row in part.rows:
                record = folder.earlier_records(part).get(row.id) or extractor.record(row, next(decoded))
                if isinstance(record, InputError):
                    shard_failures.append({"id": row.id, "path": row.path, "reason": str(record)})
                else:
                    records.append((row.id, record))
                done, failed = done + 1, failed + isinstance(record, InputError)
                if progress:
                    progress(done, clips, failed)
            folder.commit(part, records, shard_failures)
        return folder.finish()


class ClipExtractor:
    """Makes the record of a clip.

    Args:
        videos: folder of the videos.
        extractors: of the features.
        fps: frame rate of the features.
        sample_rate_hz: of the stored sound.
    """

    def __init__(self, videos: Path, extractors: Extractors, fps: float,
                 sample_rate_hz: int = MelSpec().sample_rate_hz):
        self.videos, self.extractors, self.sample_rate_hz = videos, extractors, sample_rate_hz
        self.fps = float(fps)  # 4 and 4.0 are the same record

    def request(self, row: Row) -> ClipRequest:
        """The request to decode a row's clip."""
        return ClipRequest(
            path=str(self.videos / row.path), fps=self.fps, start_s=row.start_s, duration_s=row.duration_s,
            fits=self.extractors.fits, sample_rate_hz=self.sample_rate_hz, chunk_frames=self.extractors.chunk_frames)

    def record(self, row: Row, clip: ClipStream) -> dict[str, bytes] | InputError:
        """The members of a clip's record, or the error that prevents one.

        Args:
            row: of the manifest.
            clip: the decoder's stream of the clip.
        """
        try:
            return encode_record(self.features(row, clip))
        except InputError as error:
            return error

    def features(self, row: Row, clip: ClipStream) -> ClipFeatures:
        """The features of a clip.

        Args:
            row: of the manifest.
            clip: the decoder's stream of the clip.

        Raises:
            InputError: the clip can't be read, an extractor refuses it, or a feature has another shape than its row in
                the table of features.
        """
        extractors = self.extractors.for_clip(self.videos / row.path, self.fps, row.start_s)
        words = words_of(row.caption, row.objects or None, extractors.known_words)
        extracted = extract_features(clip, extractors, [words.objects])
        assert clip.waveform is not None  # request() includes it
        return extracted.record(
            words, extracted.groundings[0], extractors.encoder, key=row.id, caption=row.caption, fps=self.fps,
            waveform=clip.waveform, sample_rate_hz=self.sample_rate_hz, label=row.label, source=row.path,
            start_s=row.start_s, duration_s=clip.duration_s)


def _config(extractors: Extractors, fps: float, sample_rate_hz: int, shard_size: int, hwaccel: str | None,
            ) -> dict[str, Any]:
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
    return config | {"features": further} if further else config  # the same hash as of older datasets without any


def _describe(rows: list[Row], extractors: Extractors, config: dict[str, Any]) -> DatasetInfo:
    grounder, encoder = extractors.grounder, extractors.encoder
    recipes = {role: part.recipe for role, part in extractors.by_role.items() if part.recipe is not None}
    further = {name: recipes.pop(name) for name in extractors.names if name in recipes}
    return DatasetInfo(
        grounder=grounder.fingerprint, encoder=encoder.fingerprint, fps=config["fps"],
        sample_rate_hz=config["sample_rate_hz"], frame_dim=encoder.frame_dim, object_dim=encoder.object_dim,
        caption_dim=encoder.caption_dim,
        config_hash=hashlib.sha256(json.dumps(config, sort_keys=True).encode()).hexdigest(),
        manifest_hash=manifest_hash(rows), code_version=__version__,
        dims=extractors.dims,
        features={part.name: part.fingerprint for part in extractors.features},
        recipes=recipes | ({"features": further} if further else {}), settings=settings_of(extractors.by_role))
