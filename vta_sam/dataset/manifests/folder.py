"""A folder of videos ⇒ a manifest.

Captions of any folder come from a table, from the folders' names, or from the files' names; those of VGGSound's clips
from its csv.
"""

from __future__ import annotations

import hashlib
import os
import re
from collections import defaultdict
from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from pathlib import Path, PurePosixPath

from ...runtime.errors import InputError
from ...runtime.files import printable
from .csv_tables import (
    Caption, by_stem, clip_names, find_clip, list_videos, read_captions, read_cells, whole_seconds
)
from .manifest import ManifestDraft, Row

CAPTION_SOURCES = ("folder", "name")
_SPLITS = {"train": "train", "training": "train", "val": "val", "valid": "val", "validation": "val", "test": "test",
           "testing": "test"}  # names of folders that stand for a split
_LONGEST_ID = 120  # ids become file names, whose limit is 255 bytes
Progress = Callable[[int, int], None]


def folder_draft(videos: Path, captions: Path | None = None, caption_from: str | None = None, recursive: bool = False,
                 split: str | None = None, cut: str = "auto", val: int = 0, test: int = 0, same_content: bool = False,
                 progress: Progress | None = None) -> ManifestDraft:
    """A draft of the manifest of a folder's videos.

    Args:
        videos: the folder.
        captions: a table, see :func:`~vta_sam.dataset.manifests.csv_tables.read_captions`. Only videos in the table get
            a row, with the first of their captions.
        caption_from: "folder" or "name", whose words become the caption. The folder's name becomes the label too. None,
            and no table: the caption is empty.
        recursive: list folders inside the folder too.
        split: of all clips. None: the table's, else a folder named train, val or test, else train.
        cut: for AudioCaps' columns, see :func:`~vta_sam.dataset.manifests.csv_tables.find_clip`.
        val: number of clips of train that become the split val.
        test: number of clips of train that become the split test.
        same_content: leave out copies under another name.
        progress: called with (done, all) after each file that is read for ``same_content``.

    Raises:
        InputError: the folder or the table can't be used, or a split's name can't be part of a file name.
    """
    if split is not None and not re.fullmatch(r"[A-Za-z0-9_]+", split):
        raise InputError(f"--split {split!r} becomes part of file names; use letters, digits and _")
    draft = ManifestDraft()
    sizes = _valid_videos(videos, recursive, draft)
    paths = _without_copies(videos, sizes, draft, progress) if same_content else list(sizes)
    if captions is not None:
        rows = _rows_of_table(paths, read_captions(captions), cut, draft)
    else:
        rows = _rows_of_names(paths, caption_from, draft)
    row_of_id: dict[str, Row] = {}
    for row in rows:
        if row.id in row_of_id:
            draft.leave_out(row.id, "another has the same id", f"{row.path}, as {row_of_id[row.id].path}")
            continue
        row_of_id[row.id] = row
        draft.rows.append(replace(row, split=split or row.split))
    video_ids = {row.path: row.id for row in reversed(draft.rows)}
    draft.hold_out("val", val, lambda row: video_ids[row.path])
    draft.hold_out("test", test, lambda row: video_ids[row.path], last=True)
    return draft


def path_id(path: str) -> str:
    """An id of letters, digits, ``_`` and ``-`` for a relative path: its parts without the suffix, joined by ``__``.

    Other characters of a part are replaced, and a hash is added to it, so that different names stay different.
    """
    parts = PurePosixPath(path).with_suffix("").parts
    id = "__".join(_plain(part) for part in parts)
    return id if len(id) <= _LONGEST_ID else f"{id[:_LONGEST_ID - 17]}_{_hash(path, 16)}"


def _plain(part: str) -> str:
    plain = re.sub(r"[^A-Za-z0-9_-]+", "_", part)
    return part if plain == part else f"{plain.strip('_')}_{_hash(part, 8)}".lstrip("_")


def _hash(text: str, digits: int) -> str:
    return hashlib.sha256(text.encode("utf-8", "surrogateescape")).hexdigest()[:digits]


def _valid_videos(videos: Path, recursive: bool, draft: ManifestDraft) -> dict[str, int]:
    """{relative path: size in bytes} of videos that a manifest can name, in order. Others go to ``draft.left_out``."""
    sizes: dict[str, int] = {}
    root = os.path.realpath(videos)
    for entry in list_videos(videos, recursive):
        path = Path(entry.path).relative_to(videos).as_posix()
        if entry.is_symlink():
            real = os.path.realpath(entry.path)
            if os.path.commonpath((root, real)) != root:
                draft.leave_out(path, "a link that leaves the folder", real)
                continue
        if not entry.is_file():
            draft.leave_out(path, "no file", "a link to nothing, or a device, socket or pipe")
        elif not entry.stat().st_size:
            draft.leave_out(path, "an empty file")
        elif path != path.strip() or not _is_utf8(path):
            draft.leave_out(path, "a name that a manifest can't hold", "space at its ends, or no UTF-8")
        else:
            sizes[path] = entry.stat().st_size
    return sizes


def _is_utf8(text: str) -> bool:
    try:
        text.encode("utf-8")
    except UnicodeEncodeError:
        return False
    return True


def _without_copies(videos: Path, sizes: dict[str, int], draft: ManifestDraft, progress: Progress | None) -> list[str]:
    """The paths without files of the same bytes as an earlier file. Only files of equal size are read."""
    by_size: dict[int, list[str]] = defaultdict(list)
    for path, size in sizes.items():
        by_size[size].append(path)
    same_size = [path for paths in by_size.values() if len(paths) > 1 for path in paths]
    path_of_content: dict[tuple[int, bytes], str] = {}
    copies = set()
    for done, path in enumerate(same_size, 1):
        try:
            with open(videos / path, "rb") as file:
                content = sizes[path], hashlib.file_digest(file, "sha256").digest()
        except OSError as error:
            raise InputError(f"{videos / path} can't be read ({error.strerror})") from error
        if path_of_content.setdefault(content, path) != path:
            copies.add(path)
            draft.leave_out(path, "the same bytes as another", path_of_content[content])
        if progress:
            progress(done, len(same_size))
    return [path for path in sizes if path not in copies]


def _rows_of_names(paths: Iterable[str], caption_from: str | None, draft: ManifestDraft) -> Iterable[Row]:
    """Yields rows with captions from the names of folders or files."""
    for path in paths:
        parts = PurePosixPath(path).parts
        caption = label = ""
        if caption_from == "folder":
            label = parts[-2] if len(parts) > 1 and parts[-2].lower() not in _SPLITS else ""
            caption = _words(label)
        elif caption_from == "name":
            caption = _words(re.sub(r"[\W_]*\d+$", "", PurePosixPath(path).stem))  # without the number of a take
        if caption_from and not caption:
            draft.leave_out(path, f"no caption in the {'folder’s' if caption_from == 'folder' else 'file’s'} name")
            continue
        yield Row(path_id(path), caption, path, label=label, split=_folder_split(path))


def _words(name: str) -> str:
    """ "dog_barking" ⇒ "dog barking"."""
    return " ".join(re.split(r"[\s_.-]+", name)).strip()


def _folder_split(path: str) -> str:
    """The split that the first fitting folder of a path stands for, or train."""
    folders = (part.lower() for part in PurePosixPath(path).parts[:-1])
    return next((_SPLITS[folder] for folder in folders if folder in _SPLITS), "train")


def _rows_of_table(paths: list[str], captions: Iterable[Caption], cut: str, draft: ManifestDraft) -> Iterable[Row]:
    """Yields rows of the videos in a table, in the table's order."""
    stems, names, captions = by_stem(paths), _names(paths), list(captions)
    missing: list[Caption] = []
    captioned: dict[str, str] = {}  # {id of a row: place of its caption in the table}
    used = set()
    for caption in captions:
        row: Row | None
        if caption.name:
            matches = names.get(caption.name, [])
            if len(matches) > 1:
                draft.leave_out(caption.id, "a name that fits several videos", f"{caption.where}: {', '.join(matches)}")
                continue
            row = Row(path_id(matches[0]), caption.text, matches[0]) if matches else None
        else:
            row = _audiocaps_row(caption, stems, cut, draft)
        if row is None:
            missing.append(caption)
            continue
        used.add(row.path)
        if row.id in captioned:
            draft.leave_out(row.id, "another caption of the same clip", f"{caption.where}, as {captioned[row.id]}")
            continue
        captioned[row.id] = caption.where
        split = _SPLITS.get(caption.split.lower(), caption.split)
        yield replace(row, objects=caption.objects, label=caption.label, split=split or _folder_split(row.path))
    unused = [path for path in paths if path not in used]
    # where most of them fail, a file's name beside what was looked for shows what differs
    example = f": no file {{}}; a file there is {unused[0]}" if unused and 2 * len(missing) > len(captions) else ""
    for caption in missing:
        draft.leave_out(caption.id, "a caption without a video", caption.where + example.replace("{}", caption.id))
    for path in unused:
        draft.leave_out(path, "a video that no caption names")


def _audiocaps_row(caption: Caption, stems: dict[str, str], cut: str, draft: ManifestDraft) -> Row | None:
    """The row of a caption with AudioCaps' columns; None where its video is missing."""
    found = find_clip(stems, caption.video, caption.start_s, cut)
    if found is None:
        return None
    draft.rules[found.rule] += 1
    return Row(caption.id, caption.text, found.path, found.start_s, found.duration_s)


def _names(paths: list[str]) -> dict[str, list[str]]:
    """{name of a video in a table: paths that fit}.

    Names are the path and the file name, each with the suffix or without, and the id. A whole path fits its file alone.
    """
    names: dict[str, list[str]] = defaultdict(list)
    for path in paths:
        whole = PurePosixPath(path)
        for name in {str(whole.with_suffix("")), whole.name, whole.stem, path_id(path)} - {path}:
            names[name].append(path)
    return names | {path: [path] for path in paths}


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
