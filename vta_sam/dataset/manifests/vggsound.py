"""VGGSound's csv and a folder of its clips ⇒ a manifest."""

from __future__ import annotations

import os
import re
from collections import defaultdict
from dataclasses import dataclass
from pathlib import Path

from ...runtime.errors import InputError
from .csv_tables import by_stem, find_clip, list_videos, read_cells, whole_seconds
from .manifest import ManifestDraft, Row


@dataclass(frozen=True)
class Entry:
    """One line of VGGSound's csv: the clip of label ``label`` that starts ``start_s`` into a YouTube video."""

    line: int
    video: str
    start_s: int
    label: str
    split: str

    @property
    def id(self) -> str:
        return f"{self.video}_{self.start_s:06d}"


def read_vggsound(path: str | os.PathLike) -> list[Entry]:
    """The lines of the csv as its authors publish it: no header; YouTube id, start in seconds, label, train or test.

    Raises:
        InputError: a line has another form; it names the line.
    """
    entries = []
    for line, cells in read_cells(path):
        where = f"{path}, line {line}"
        if len(cells) != 4:
            raise InputError(f"{where}: {len(cells)} cells, expected 4: YouTube id, start, label, split; quote labels "
                             "that hold commas")
        video, start, label, split = cells
        if not re.fullmatch(r"[A-Za-z0-9_-]+", video):
            raise InputError(f"{where}: {video!r} is no id of a YouTube video")
        if split not in ("train", "test"):
            raise InputError(f"{where}: the split is {split!r}, expected train or test; VGGSound's csv has no header")
        entries.append(Entry(line, video, whole_seconds(where, start), label, split))
    if not entries:
        raise InputError(f"{path} has no rows; it needs one per clip")
    return entries


def vggsound_draft(csv: Path, videos: Path, cut: str = "auto", val: int = 0) -> ManifestDraft:
    """A draft of the clips of the csv whose file is in ``videos``. Caption and label are VGGSound's label.

    Of lines that say the same one counts; lines that contradict each other are left out.

    Args:
        csv: VGGSound's.
        videos: folder of its clips or videos.
        cut: see :func:`~.tables.find_clip`.
        val: how many clips of train become the split val.
    """
    entries = read_vggsound(csv)
    stems = by_stem(entry.name for entry in list_videos(videos))
    draft = ManifestDraft()
    for entry in _agreeing(entries, draft):
        found = find_clip(stems, entry.video, entry.start_s, cut)
        if found is None:
            names = f"neither {entry.id}, {entry.video}_{entry.start_s} nor {entry.video} in {videos}"
            draft.leave_out(entry.id, "no file", f"line {entry.line}: {names}")
            continue
        draft.rules[found.rule] += 1
        draft.rows.append(Row(entry.id, entry.label, found.path, found.start_s, found.duration_s, label=entry.label,
                              split=entry.split))
    draft.hold_out("val", val, lambda row: row.id.rpartition("_")[0])
    return draft


def _agreeing(entries: list[Entry], draft: ManifestDraft) -> list[Entry]:
    """One entry per clip, in the csv's order; the others go to ``draft.left_out``."""
    lines: dict[str, list[Entry]] = defaultdict(list)
    for entry in entries:
        lines[entry.id].append(entry)
    kept = []
    for id, same in lines.items():
        where = f"lines {', '.join(str(entry.line) for entry in same)}"
        labels, splits = ({getattr(entry, name) for entry in same} for name in ("label", "split"))
        if len(labels) > 1 or len(splits) > 1:
            said = "; ".join(" and ".join(map(repr, sorted(values))) for values in (labels, splits) if len(values) > 1)
            draft.leave_out(id, "lines of the csv contradict each other", f"{where}: {said}")
            continue
        kept.append(same[0])
        for again in same[1:]:
            draft.leave_out(id, "stands in the csv again", f"line {again.line}, as in line {same[0].line}")
    return kept
