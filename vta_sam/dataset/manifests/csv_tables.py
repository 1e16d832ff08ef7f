"""Tables of clips and captions in their various forms, and the video files that they name.

A row keeps its line number for error messages. A table of captions has free columns, or the columns of AudioCaps' csv,
where a video's id and a start name a clip.
"""

from __future__ import annotations

import csv
import json
import os
import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path, PurePosixPath

from ...clip import MAX_OBJECTS
from ...media import VIDEO_SUFFIXES
from ...runtime.errors import InputError

CUTS = ("auto", "yes", "no")
CLIP_S = 10.0  # length of the clips of AudioSet, VGGSound and AudioCaps
# the column that names the video; of several the first counts
NAME_COLUMNS = ("path", "file", "filename", "file_name", "video", "video_path", "name", "id", "video_id")
_AUDIOCAPS = ("youtube_id", "start_time")


def list_videos(folder: Path, recursive: bool = False) -> list[os.DirEntry[str]]:
    """Files with a video's suffix, in order of their path. No file is opened.

    Hidden files and folders behind links are left out.

    Args:
        folder: of the videos.
        recursive: list folders inside it too.

    Raises:
        InputError: the folder can't be listed, or holds no video.
    """
    found: list[os.DirEntry[str]] = []
    folders = [os.fspath(folder)]
    while folders:
        try:
            with os.scandir(folders.pop()) as entries:
                for entry in entries:
                    if entry.name.startswith("."):
                        continue
                    if entry.is_dir(follow_symlinks=False):
                        folders += [entry.path] if recursive else []
                    elif os.path.splitext(entry.name)[1].lower() in VIDEO_SUFFIXES:
                        found.append(entry)
        except OSError as error:
            raise InputError(f"--videos: {error.filename} can't be listed ({error.strerror}); name the folder "
                             "of the videos") from error
    if not found:
        raise InputError(f"--videos {folder} holds no video file"
                         f"{'' if recursive else ' (folders inside it are not looked into)'}; known suffixes are "
                         f"{' '.join(sorted(VIDEO_SUFFIXES))}")
    return sorted(found, key=lambda entry: entry.path)


def by_stem(paths: Iterable[str]) -> dict[str, str]:
    """{file name without suffix: path} of relative paths. Of files that differ in the suffix alone the mp4 is taken."""
    stems: dict[str, str] = {}
    for path in sorted(paths, key=lambda path: (not path.lower().endswith(".mp4"), path)):
        stems.setdefault(PurePosixPath(path).stem, path)
    return stems


@dataclass(frozen=True)
class ClipFile:
    """The file of a clip, and the clip's stretch of it.

    Attributes:
        path: of the file.
        start_s: of the clip in the file, in seconds.
        duration_s: of the clip; None: to the end of the file.
        rule: the form of the file's name, and its meaning, for the summary.
    """

    path: str
    start_s: float
    duration_s: float | None
    rule: str


def find_clip(stems: Mapping[str, str], video: str, start_s: int, cut: str = "auto") -> ClipFile | None:
    """The file of a clip that starts ``start_s`` into a video, or None.

    Args:
        stems: of :func:`by_stem`. ``<id>_000030``, ``<id>_30`` and ``<id>`` are looked up, in this order.
        video: id of the video.
        start_s: start of the clip in the video, in whole seconds.
        cut: "yes": the file is the clip itself. "no": the file is the whole video. "auto": a file named by id and start
            is the clip, and a file named by the bare id is the whole video.
    """
    for stem in (f"{video}_{start_s:06d}", f"{video}_{start_s}", video):
        if stem in stems:
            has_start = stem != video
            already_cut = has_start if cut == "auto" else cut == "yes"
            name = "named by id and start" if has_start else "named by the bare id"
            if already_cut:
                return ClipFile(stems[stem], 0.0, None, f"{name}, taken as the clip itself")
            return ClipFile(stems[stem], float(start_s), CLIP_S,
                            f"{name}, taken as the whole video: {CLIP_S:g} s from the start on")
    return None


def whole_seconds(where: str, text: str) -> int:
    """A start in whole seconds, from its text in a table.

    Args:
        where: file and line, for messages.
        text: of the cell.

    Raises:
        InputError: the text is no whole number >= 0.
    """
    try:
        number = float(text)
    except ValueError:
        number = -1.0
    if not 0 <= number < 1e6 or number != int(number):
        raise InputError(f"{where}: the start is {text!r}, expected whole seconds >= 0")
    return int(number)


def read_cells(path: str | os.PathLike, delimiter: str = ",") -> Iterator[tuple[int, list[str]]]:
    """Yields (line number, stripped cells) of each row of a CSV in UTF-8.

    A byte order mark and any line ends are legal. A row over several lines has the number of its last line. Empty lines
    are skipped.

    Args:
        path: of the CSV.
        delimiter: between cells.

    Raises:
        InputError: the file doesn't exist, is no UTF-8, or has quotes that don't close. The message names the line.
    """
    line = 0
    try:
        with open(path, encoding="utf-8-sig", newline="") as file:
            reader = csv.reader(file, delimiter=delimiter, strict=True, skipinitialspace=True)
            for cells in reader:
                line = reader.line_num
                if cells:
                    yield line, [cell.strip() for cell in cells]
    except FileNotFoundError:
        raise InputError(f"{path} doesn't exist; name a table of clips") from None
    except UnicodeDecodeError:
        raise InputError(f"{path}, line {_first_foreign_line(path)}: not UTF-8; save the file as UTF-8") from None
    except csv.Error as error:
        raise InputError(f"{path}, after line {line}: no row of a CSV ({error}); texts that hold quotes or line breaks "
                         "need quotes around them, and quotes inside them doubled") from error
    except OSError as error:
        raise InputError(f"{path} can't be read ({error})") from error


def read_table(path: str | os.PathLike) -> Iterator[tuple[str, dict[str, str]]]:
    """Yields ("line 7", {column: text}) of each row of a .csv, .tsv or .json (a list of objects) with a header.

    Raises:
        InputError: as :func:`read_cells`; or a row has another number of cells than the header, or a column is named
            twice.
    """
    if Path(path).suffix.lower() == ".json":
        yield from _read_json(path)
        return
    rows = read_cells(path, "\t" if Path(path).suffix.lower() in (".tsv", ".tab") else ",")
    header_line, header = next(rows, (0, []))
    if len(set(header)) < len(header) or not all(header):
        raise InputError(f"{path}, line {header_line}: the header {header} names a column twice, or none")
    for line, cells in rows:
        if len(cells) != len(header):
            raise InputError(f"{path}, line {line}: {len(cells)} cells, the header has {len(header)}; quote texts that "
                             "hold commas")
        yield f"line {line}", dict(zip(header, cells))


def _read_json(path: str | os.PathLike) -> Iterator[tuple[str, dict[str, str]]]:
    try:
        content = json.loads(Path(path).read_text(encoding="utf-8-sig"))
    except FileNotFoundError:
        raise InputError(f"{path} doesn't exist; name a table of clips") from None
    except UnicodeDecodeError:
        raise InputError(f"{path}, line {_first_foreign_line(path)}: not UTF-8; save the file as UTF-8") from None
    except json.JSONDecodeError as error:
        raise InputError(f"{path}, line {error.lineno}: no JSON ({error.msg})") from error
    except (OSError, RecursionError) as error:
        raise InputError(f"{path} can't be read ({error})") from error
    if not isinstance(content, list) or not all(isinstance(entry, dict) for entry in content):
        raise InputError(f"{path} holds no list of objects; expected [{{\"file\": …, \"caption\": …}}, …]")
    for number, entry in enumerate(content, 1):
        yield f"entry {number}", {key: "" if value is None else str(value).strip() for key, value in entry.items()}


def _first_foreign_line(path: str | os.PathLike) -> int:
    """The number of the first line that is not UTF-8. No longer character of UTF-8 contains a line feed's byte."""
    with open(path, "rb") as file:
        for number, line in enumerate(file, 1):
            try:
                line.decode("utf-8")
            except UnicodeDecodeError:
                return number
    return 1


@dataclass(frozen=True)
class Caption:
    """One row of a table of captions.

    Args:
        where: the row, for messages.
        text: the caption.
        name: the video's path, file name or id; "" in AudioCaps, where video and start_s name it.
        video: AudioCaps' id of the video.
        start_s: AudioCaps' start, in seconds.
        objects: words; () where the table has none.
        label: class of the sound; "" where the table has none.
        split: of the dataset; "" where the table has none.
    """

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
        """The video's name, or AudioCaps' id and start."""
        return self.name or f"{self.video}_{self.start_s:06d}"


def read_captions(path: str | os.PathLike) -> list[Caption]:
    """The rows of a table (.csv, .tsv, .json) of captions.

    The table has the column ``caption``, and a column with the video's name (NAME_COLUMNS) or AudioCaps' youtube_id and
    start_time. ``objects`` (a;b), ``label`` and ``split`` are optional. Other columns are not read.

    Raises:
        InputError: the table has another form. The message names the file and the line.
    """
    captions = []
    for where, cells in read_table(path):
        name_column = next((column for column in NAME_COLUMNS if column in cells), None)
        audiocaps = all(column in cells for column in _AUDIOCAPS)
        if "caption" not in cells or not (name_column or audiocaps):
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
        elif name_column:
            caption = replace(caption, name=cells[name_column].replace("\\", "/").removeprefix("./"))
        if not (caption.name or caption.video):
            raise InputError(f"{path}, {where}: it doesn't say which video; its name is empty")
        captions.append(caption)
    if not captions:
        raise InputError(f"{path} has no rows; it needs one per video")
    return captions
