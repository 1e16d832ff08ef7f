"""VGGSound's csv and a folder of its clips ⇒ a manifest."""

from __future__ import annotations

import os
import re
from collections import defaultdict
from dataclasses import dataclass
from pathlib import Path

from ...runtime.errors import InputError
from ...runtime.files import printable
from .csv_tables import by_stem, clip_names, find_clip, list_videos, read_cells, whole_seconds
from .manifest import ManifestDraft, Row


@dataclass(frozen=True)
class VGGSoundClip:
    """One line of VGGSound's csv.

    Attributes:
        line: its number.
        video: YouTube id.
        start_s: start of the clip in the video, in seconds.
        label: class of the sound.
        split: train or test.
    """

    line: int
    video: str
    start_s: int
    label: str
    split: str

    @property
    def id(self) -> str:
        """The video's id and the start."""
        return f"{self.video}_{self.start_s:06d}"


def read_vggsound(path: str | os.PathLike) -> list[VGGSoundClip]:
    """The lines of VGGSound's csv as published: YouTube id, start in seconds, label, train or test; no header.

    Raises:
        InputError: a line has another form. The message names the line.
    """
    clips = []
    for line, cells in read_cells(path, cells=4):
        where = f"{path}, line {line}"
        if len(cells) != 4:
            raise InputError(f"{where}: {len(cells)} cells, expected 4: YouTube id, start, label, split; quote labels "
                             "that hold commas")
        video, start, label, split = cells
        if not re.fullmatch(r"[A-Za-z0-9_-]+", video):
            raise InputError(f"{where}: {video!r} is no id of a YouTube video")
        if split not in ("train", "test"):
            raise InputError(f"{where}: the split is {split!r}, expected train or test; VGGSound's csv has no header")
        clips.append(VGGSoundClip(line, video, whole_seconds(where, start), label, split))
    if not clips:
        raise InputError(f"{path} has no rows; it needs one per clip")
    return clips


def vggsound_draft(csv: Path, videos: Path, cut: str = "auto", val: int = 0) -> ManifestDraft:
    """A draft of the csv's clips whose file is in ``videos``. Caption and label are VGGSound's label.

    Equal lines count once. Lines that contradict each other are left out. Where less than half of the clips have a
    file, the reason names one of the folder's files, whose name shows what differs.

    Args:
        csv: VGGSound's.
        videos: folder of its clips or videos; folders inside it are looked into.
        cut: see :func:`~.csv_tables.find_clip`.
        val: number of clips of train that become the split val.

    Raises:
        InputError: the csv or the folder can't be used.
    """
    clips = read_vggsound(csv)
    paths = [Path(video.path).relative_to(videos).as_posix() for video in list_videos(videos, recursive=True)]
    stems = by_stem(path for path in paths if printable(path) == path == path.strip())
    draft = ManifestDraft()
    unique = _unique_clips(clips, draft)
    files = [find_clip(stems, clip.video, clip.start_s, cut) for clip in unique]
    used = {found.path for found in files if found}
    example = next((f"; a file there is {path}" for path in paths if path not in used), "")
    for clip, found in zip(unique, files):
        if found is None:
            *names, bare = clip_names(clip.video, clip.start_s)
            shown = printable(example) if 2 * sum(map(bool, files)) < len(files) else ""
            draft.leave_out(clip.id, "no file", f"line {clip.line}: neither {', '.join(names)} nor {bare} in {videos}"
                                                f"{shown}")
            continue
        draft.rules[found.rule] += 1
        draft.rows.append(Row(clip.id, clip.label, found.path, found.start_s, found.duration_s, label=clip.label,
                              split=clip.split))
    draft.hold_out("val", val, lambda row: row.id.rpartition("_")[0])
    return draft


def _unique_clips(clips: list[VGGSoundClip], draft: ManifestDraft) -> list[VGGSoundClip]:
    """One line per clip, in the csv's order. The others go to ``draft.left_out``."""
    by_id: dict[str, list[VGGSoundClip]] = defaultdict(list)
    for clip in clips:
        by_id[clip.id].append(clip)
    unique = []
    for id, same in by_id.items():
        where = f"lines {', '.join(str(clip.line) for clip in same)}"
        labels, splits = ({getattr(clip, name) for clip in same} for name in ("label", "split"))
        if len(labels) > 1 or len(splits) > 1:
            differing = [" and ".join(map(repr, sorted(values))) for values in (labels, splits) if len(values) > 1]
            draft.leave_out(id, "lines of the csv contradict each other", f"{where}: {'; '.join(differing)}")
            continue
        unique.append(same[0])
        for again in same[1:]:
            draft.leave_out(id, "stands in the csv again", f"line {again.line}, as in line {same[0].line}")
    return unique
