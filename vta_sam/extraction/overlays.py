"""Films of a dataset's clips with their grounding drawn over them, made from the shards and the videos."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np

from ..clip import ClipFeatures
from ..errors import InputError
from ..media.fit import Fit, Squeeze
from ..media.video import probe, stream_clip
from ..report.film import write_film
from ..report.overlay import SHOWN, Overlay, picture_size
from ..shards.schema import member_key, read_dataset
from .check import read_records

_CHUNK_FRAMES = 32


def write_overlays(root: Path, videos: Path, out: Path, count: int = 3, keys: Sequence[str] = (),
                   grounder: Any | None = None, shown: float = SHOWN) -> Iterator[Path]:
    """Write ``out``/<id>.mp4 for the first ``count`` clips of a dataset, or those of ``keys`` ⇒ each path when done.

    videos: the folder that they were extracted from. grounder: one with ``masks(frames, objects) -> (T, K, h, w)``,
    which is asked for them again, since shards hold their areas alone; None ⇒ boxes alone. shown: boxes and masks are
    drawn of objects at least this likely. Raises InputError: a video or a key that isn't there, a grounder without
    masks, or another than made the shards.
    """
    root, videos, out = Path(root), Path(videos), Path(out)
    if not videos.is_dir():
        raise InputError(f"videos={videos} is not a folder; overlays need the videos that the shards were made from")
    if grounder is not None and not hasattr(grounder, "masks"):
        raise InputError(f"the grounder {grounder.fingerprint} draws no masks; choose another, or masks=false")
    if grounder is not None:  # another's masks would not be those whose areas the shards hold
        read_dataset(root).require(str(root), grounder=grounder.fingerprint)
    for clip in _chosen(root, count, keys):
        yield write_overlay(clip, _video(videos, clip), out / f"{member_key(clip.key)}.mp4", grounder, shown)


def write_overlay(clip: ClipFeatures, video: Path, out: Path, grounder: Any | None = None,
                  shown: float = SHOWN) -> Path:
    """One clip ⇒ the path of its film."""
    seen = probe(video)
    size = picture_size(seen.height, seen.width)
    overlay = Overlay(clip, size, shown)
    return write_film(out, _frames(overlay, video, size, grounder), clip.fps, clip.waveform, clip.sample_rate_hz)


def _frames(overlay: Overlay, video: Path, size: tuple[int, int], grounder: Any | None) -> Iterator[np.ndarray]:
    clip = overlay.clip
    fits: list[Fit] = [Squeeze(*size)] + ([grounder.fit] if grounder is not None else [])
    t = 0
    for pictures, *grounded in stream_clip(video, start_s=clip.start_s, duration_s=clip.duration_s, fps=clip.fps,
                                           fits=fits, want_audio=False, chunk_frames=_CHUNK_FRAMES):
        masks = grounder.masks(grounded[0], clip.objects) if grounder is not None else None
        for i, picture in enumerate(pictures[:len(clip.probs) - t]):
            yield overlay.frame(picture, t, masks[i] if masks is not None else None)
            t += 1
    if t != len(clip.probs):
        raise InputError(f"{video} gives {t} frames of clip {clip.key!r}, its shard has {len(clip.probs)}; is it "
                         "another video than was extracted?")


def _chosen(root: Path, count: int, keys: Sequence[str]) -> Iterator[ClipFeatures]:
    wanted, left = set(keys), len(set(keys)) or count
    shards = (shard for found in read_dataset(root).splits.values() for shard in found)
    for record in (record for shard in shards for record in read_records(root / shard.name)):
        if not left:
            return
        if isinstance(record, ClipFeatures) and (not keys or record.key in wanted):
            left -= 1
            wanted.discard(record.key)
            yield record
    if wanted:
        raise InputError(f"{root} has no clip {', '.join(map(repr, sorted(wanted)))}; keys= names ids of the manifest")


def _video(videos: Path, clip: ClipFeatures) -> Path:
    source = PurePosixPath(clip.source)
    if source.is_absolute() or ".." in source.parts:
        raise InputError(f"clip {clip.key!r} comes from {clip.source!r}, which leaves the folder of the videos; "
                         "extract it again")
    return videos / source
