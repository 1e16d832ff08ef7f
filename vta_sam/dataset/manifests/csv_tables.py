"""Tables of clips and captions in their various forms, and the video files that they name.

A row keeps its line number for error messages. A table of captions has free columns, or the columns of AudioCaps' csv,
where a video's id and a start name a clip.
"""

from __future__ import annotations

import codecs
import csv
import io
import json
import os
import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path, PurePosixPath

from ...media import VIDEO_SUFFIXES
from ...runtime.errors import InputError
from .manifest import object_words

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
    """{file name without suffix: path} of relative paths. Of several an mp4 is taken, then that in fewest folders."""
    stems: dict[str, str] = {}
    for path in sorted(paths, key=lambda path: (not path.lower().endswith(".mp4"), path.count("/"), path)):
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
        stems: of :func:`by_stem`. The names of :func:`clip_names` are looked up, in this order.
        video: id of the video.
        start_s: start of the clip in the video, in whole seconds.
        cut: "yes": the file is the clip itself. "no": the file is the whole video. "auto": a file named by id and start
            is the clip, and a file named by the bare id is the whole video.
    """
    for stem in clip_names(video, start_s):
        if stem in stems:
            has_start = stem != video
            already_cut = has_start if cut == "auto" else cut == "yes"
            name = "named by id and start" if has_start else "named by the bare id"
            if already_cut:
                return ClipFile(stems[stem], 0.0, None, f"{name}, taken as the clip itself")
            return ClipFile(stems[stem], float(start_s), CLIP_S,
                            f"{name}, taken as the whole video: {CLIP_S:g} s from the start on")
    return None


def clip_names(video: str, start_s: int) -> tuple[str, ...]:
    """Names of a clip's file, without the suffix: id and start in seconds (``<id>_000030``, ``<id>_30``), id with start
    and end in milliseconds (``<id>_30000_40000``), and the id alone."""
    end_ms = round((start_s + CLIP_S) * 1000)
    return f"{video}_{start_s:06d}", f"{video}_{start_s}", f"{video}_{start_s * 1000}_{end_ms}", video


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


def read_cells(path: str | os.PathLike, delimiter: str = ",",
               cells: int | None = None) -> Iterator[tuple[int, list[str]]]:
    """Yields (line number, stripped cells) of each row of a CSV in UTF-8, or in UTF-16 with a byte order mark.

    A byte order mark and any line ends are legal. A row over several lines has the number of its last line. Empty lines
    are skipped.

    Args:
        path: of the CSV.
        delimiter: between cells, unless comma, semicolon or tab part the first row better.
        cells: expected in a row; None: the more, the better.

    Raises:
        InputError: the file doesn't exist, is in another encoding, or has quotes that don't close. The message names
            the line.
    """
    text = _text(path)
    found = {mark: _first_row(text, mark) for mark in (delimiter, ",", ";", "\t")}
    delimiter = max(found, key=lambda mark: found[mark] if cells is None else found[mark] == cells)
    line = 0
    try:
        reader = _reader(text, delimiter)
        for row in reader:
            line = reader.line_num
            if row:
                yield line, [cell.strip() for cell in row]
    except csv.Error as error:
        raise InputError(f"{path}, after line {line}: no row of a CSV ({error}); texts that hold quotes or line breaks "
                         "need quotes around them, and quotes inside them doubled") from error


def _reader(text: str, delimiter: str):
    return csv.reader(io.StringIO(text, newline=""), delimiter=delimiter, strict=True, skipinitialspace=True)


def _first_row(text: str, delimiter: str) -> int:
    """The number of cells in the first row; 1 where it is none."""
    try:
        return len(next((cells for cells in _reader(text, delimiter) if cells), [""]))
    except csv.Error:
        return 1


def _text(path: str | os.PathLike) -> str:
    """The text of a table. InputError where there is none."""
    try:
        data = Path(path).read_bytes()
    except FileNotFoundError:
        raise InputError(f"{path} doesn't exist; name a table of clips") from None
    except OSError as error:
        raise InputError(f"{path} can't be read ({error})") from error
    try:
        if data.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)):
            return data.decode("utf-16")
        return data.decode("utf-8-sig")
    except UnicodeDecodeError:
        raise InputError(f"{path}, line {_first_foreign_line(data)}: not UTF-8; save the file as UTF-8") from None


def read_table(path: str | os.PathLike) -> Iterator[tuple[str, dict[str, str]]]:
    """Yields ("line 7", {column: text}) of each row of a table with a header: a CSV, parted by commas, semicolons or
    tabs; a .json with a list of objects; JSON lines, in a .jsonl, .ndjson or .json.

    Raises:
        InputError: as :func:`read_cells`; or a row has another number of cells than the header, or a column is named
            twice.
    """
    suffix = Path(path).suffix.lower()
    if suffix in (".json", ".jsonl", ".ndjson"):
        text = _text(path)
        entries = _json_lines(path, text) if suffix != ".json" or _is_json_lines(text) else _json_list(path, text)
        for where, entry in entries:
            yield where, {key: _cell(value) for key, value in entry.items()}
        return
    rows = read_cells(path, "\t" if suffix in (".tsv", ".tab") else ",")
    header_line, header = next(rows, (0, []))
    if len(set(header)) < len(header) or not all(header):
        raise InputError(f"{path}, line {header_line}: the header {header} names a column twice, or none")
    for line, cells in rows:
        if len(cells) != len(header):
            raise InputError(f"{path}, line {line}: {len(cells)} cells, the header has {len(header)}; quote texts that "
                             "hold commas")
        yield f"line {line}", dict(zip(header, cells))


def _cell(value: object) -> str:
    """A value of JSON as a cell of a CSV has it."""
    if isinstance(value, (list, dict)):
        return json.dumps(value, ensure_ascii=False)
    return "" if value is None else str(value).strip()


def _is_json_lines(text: str) -> bool:
    """Whether each line is an object of its own, by the first; an object alone is such a line too."""
    try:
        return isinstance(json.loads(text.lstrip().partition("\n")[0]), dict)
    except (ValueError, RecursionError):
        return False


def _json_lines(path: str | os.PathLike, text: str) -> Iterator[tuple[str, dict]]:
    for number, line in enumerate(text.split("\n"), 1):
        if line.strip():
            entry = _json(path, line, number)
            if not isinstance(entry, dict):
                raise InputError(f'{path}, line {number}: no object; expected {{"file": …, "caption": …}}')
            yield f"line {number}", entry


def _json_list(path: str | os.PathLike, text: str) -> Iterator[tuple[str, dict]]:
    content = _json(path, text, 1)
    if not isinstance(content, list) or not all(isinstance(entry, dict) for entry in content):
        raise InputError(f"{path} holds no list of objects; expected [{{\"file\": …, \"caption\": …}}, …], or such an "
                         "object on each line")
    for number, entry in enumerate(content, 1):
        yield f"entry {number}", entry


def _json(path: str | os.PathLike, text: str, first_line: int) -> object:
    try:
        return json.loads(text)
    except json.JSONDecodeError as error:
        raise InputError(f"{path}, line {first_line + error.lineno - 1}: no JSON ({error.msg})") from error
    except RecursionError as error:
        raise InputError(f"{path} can't be read ({error})") from error


def _first_foreign_line(data: bytes) -> int:
    """The number of the first line that is not UTF-8. No longer character of UTF-8 contains a line feed's byte."""
    for number, line in enumerate(data.split(b"\n"), 1):
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
    """The rows of a table (see :func:`read_table`) of captions.

    The table has the column ``caption``, and a column with the video's name (NAME_COLUMNS) or AudioCaps' youtube_id and
    start_time. ``objects`` (a;b), ``label`` and ``split`` are optional. Other columns are not read. Capitals and spaces
    in a column's name ("File Name") don't matter.

    Raises:
        InputError: the table has another form. The message names the file and the line.
    """
    captions = []
    for where, given in read_table(path):
        cells = {re.sub(r"\s+", "_", column.strip().lower()): text for column, text in given.items()} | given
        name_column = next((column for column in NAME_COLUMNS if column in cells), None)
        audiocaps = all(column in cells for column in _AUDIOCAPS)
        if "caption" not in cells or not (name_column or audiocaps):
            raise InputError(f"{path} has the columns {', '.join(given)}; it needs caption, and one that names the "
                             f"video: {', '.join(NAME_COLUMNS)}, or {' and '.join(_AUDIOCAPS)}")
        split = cells.get("split", "")
        if not re.fullmatch(r"[A-Za-z0-9_]*", split):
            raise InputError(f"{path}, {where}: the split {split!r} becomes part of file names; use letters, digits "
                             "and _")
        objects = object_words(f"{path}, {where}", cells.get("objects", ""))
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
