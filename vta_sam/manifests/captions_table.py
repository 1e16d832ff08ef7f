"""Tables of captions as people have them: one of their own, or AudioCaps' csv."""

from __future__ import annotations

import os
import re
from dataclasses import dataclass, replace

from ..clip import MAX_OBJECTS
from ..errors import InputError
from .tables import read_table
from .video_files import whole_seconds

# the column that names the video; of several the first counts
NAME_COLUMNS = ("path", "file", "filename", "file_name", "video", "video_path", "name", "id", "video_id")
_AUDIOCAPS = ("youtube_id", "start_time")


@dataclass(frozen=True)
class Caption:
    """One row. name: the video's path, file name or id, or "" where video and start_s say it as AudioCaps does.
    where: for messages. objects, label and split are empty where the table doesn't say."""

    where: str
    text: str
    name: str = ""
    video: str = ""
    start_s: int = 0
    objects: tuple[str, ...] = ()
    label: str = ""
    split: str = ""

    @property
    def id(self) -> str:
        return self.name or f"{self.video}_{self.start_s:06d}"


def read_captions(path: str | os.PathLike) -> list[Caption]:
    """A table (.csv, .tsv, .json) with the column ``caption`` and one that names the video, or AudioCaps' youtube_id
    and start_time; ``objects`` (a;b), ``label`` and ``split`` are read where they are there, other columns not.

    Raises InputError naming the file and the line.
    """
    captions = []
    for where, cells in read_table(path):
        named = next((column for column in NAME_COLUMNS if column in cells), None)
        audiocaps = all(column in cells for column in _AUDIOCAPS)
        if "caption" not in cells or not (named or audiocaps):
            raise InputError(f"{path} has the columns {', '.join(cells)}; it needs caption, and one that names the "
                             f"video: {', '.join(NAME_COLUMNS)}, or {' and '.join(_AUDIOCAPS)}")
        split = cells.get("split", "")
        if not re.fullmatch(r"[A-Za-z0-9_]*", split):
            raise InputError(f"{path}, {where}: the split {split!r} becomes part of file names; use letters, digits "
                             "and _")
        objects = tuple(word.strip() for word in cells.get("objects", "").split(";") if word.strip())
        if len(objects) > MAX_OBJECTS:
            raise InputError(f"{path}, {where}: {len(objects)} objects, at most {MAX_OBJECTS} are allowed")
        caption = Caption(where, cells["caption"], objects=objects, label=cells.get("label", ""), split=split)
        if audiocaps:
            start_s = whole_seconds(f"{path}, {where}", cells["start_time"])
            caption = replace(caption, video=cells["youtube_id"], start_s=start_s)
        elif named:
            caption = replace(caption, name=cells[named].replace("\\", "/").removeprefix("./"))
        if not (caption.name or caption.video):
            raise InputError(f"{path}, {where}: it doesn't say which video; its name is empty")
        captions.append(caption)
    if not captions:
        raise InputError(f"{path} has no rows; it needs one per video")
    return captions
