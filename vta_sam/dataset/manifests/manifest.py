"""The manifest: a CSV with one row per clip, and the order in which rows become shards."""

from __future__ import annotations

import csv
import hashlib
import io
import json
import math
import os
import re
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path, PurePosixPath

from ...clip import MAX_OBJECTS
from ...runtime.errors import InputError
from ...runtime.files import write_text

COLUMNS = ("id", "caption", "path", "start", "duration", "objects", "label", "split")
_REQUIRED = ("id", "caption")


@dataclass(frozen=True)
class Row:
    """One clip. path: relative to the videos' folder. objects: () ⇒ the caption's nouns. duration_s: None ⇒ to the
    video's end."""

    id: str
    caption: str
    path: str
    start_s: float = 0.0
    duration_s: float | None = None
    objects: tuple[str, ...] = ()
    label: str = ""
    split: str = "train"


def read_manifest(path: str | os.PathLike) -> list[Row]:
    """A CSV with the columns of COLUMNS (id and caption required) ⇒ its rows, in its order.

    Raises InputError naming the file and the line: a missing or unknown column, an id given twice, more than 8 objects,
    a number that is none, a path that leaves the folder of the videos, no row at all.
    """
    path = Path(path)
    rows: list[Row] = []
    lines_of: dict[str, int] = {}
    try:
        with open(path, encoding="utf-8-sig", newline="") as file:
            reader = csv.DictReader(file, strict=True)
            _check_columns(path, reader.fieldnames or ())
            for cells in reader:
                row = _row(f"{path}, line {reader.line_num}", cells)
                if row.id in lines_of:
                    raise InputError(f"{path}: the id {row.id!r} stands in line {lines_of[row.id]} and in line "
                                     f"{reader.line_num}; ids must differ")
                lines_of[row.id] = reader.line_num
                rows.append(row)
    except FileNotFoundError:
        raise InputError(f"{path} doesn't exist; manifest= names a CSV with the columns {', '.join(COLUMNS)}") from None
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise InputError(f"{path} can't be read as a CSV in UTF-8 ({error})") from error
    if not rows:
        raise InputError(f"{path} has no rows; it needs one per clip")
    return rows


def write_manifest(path: str | os.PathLike, rows: Sequence[Row]) -> Path:
    """Write rows as a CSV that :func:`read_manifest` reads back as the same rows, whatever their texts hold, but for
    space around a cell. Atomic."""
    text = io.StringIO()
    # csv quotes a line feed by itself, but not a lone carriage return, which readers take for a line's end as well
    returns = any("\r" in cell for row in rows for cell in (row.caption, row.label, row.path, *row.objects))
    writer = csv.writer(text, lineterminator="\n", quoting=csv.QUOTE_ALL if returns else csv.QUOTE_MINIMAL)
    writer.writerow(COLUMNS)
    for row in rows:
        duration = "" if row.duration_s is None else f"{row.duration_s:.12g}"
        writer.writerow((row.id, row.caption, row.path, f"{row.start_s:.12g}", duration, ";".join(row.objects),
                         row.label, row.split))
    write_text(path, text.getvalue())
    return Path(path)


def _check_columns(path: Path, columns: Sequence[str]) -> None:
    missing = [name for name in _REQUIRED if name not in columns]
    unknown = [name for name in columns if name not in COLUMNS]
    faults = [f"the column {' and '.join(missing)} is missing"] if missing else []
    faults += [f"unknown columns {', '.join(map(repr, unknown))}"] if unknown else []
    if faults:
        raise InputError(f"{path}: {'; '.join(faults)}. Columns are {', '.join(COLUMNS)}")


def _row(where: str, cells: dict) -> Row:
    if None in cells or None in cells.values():
        raise InputError(f"{where}: not as many cells as there are columns; quote texts that hold commas")
    text = {name: (cells.get(name) or "").strip() for name in COLUMNS}
    if not text["id"]:
        raise InputError(f"{where}: the id is empty")
    objects = tuple(word.strip() for word in text["objects"].split(";") if word.strip())
    if len(objects) > MAX_OBJECTS:
        raise InputError(f"{where}: {len(objects)} objects, at most {MAX_OBJECTS} are allowed")
    split = text["split"] or "train"
    if not re.fullmatch(r"[A-Za-z0-9_]+", split):
        raise InputError(f"{where}: the split {split!r} becomes part of file names; use letters, digits and _")
    duration_s = _number(where, "duration", text["duration"])
    if duration_s == 0:
        raise InputError(f"{where}: duration is 0; leave it empty for the whole video")
    return Row(
        id=text["id"], caption=text["caption"], path=_inside(where, text["path"] or f"{text['id']}.mp4"),
        start_s=_number(where, "start", text["start"]) or 0.0, duration_s=duration_s, objects=objects,
        label=text["label"], split=split)


def _number(where: str, name: str, text: str) -> float | None:
    if not text:
        return None
    try:
        number = float(text)
    except ValueError:
        number = math.nan
    if not 0 <= number < math.inf:
        raise InputError(f"{where}: {name} is {text!r}, expected seconds >= 0")
    return number


def _inside(where: str, path: str) -> str:
    parts = PurePosixPath(path)
    if parts.is_absolute() or ".." in parts.parts or "\0" in path:
        raise InputError(f"{where}: the path {path!r} leaves the folder of the videos; give it relative to videos=")
    return str(parts)


def manifest_hash(rows: list[Row]) -> str:
    """sha256 over what rows say, whatever their order, quoting or columns left out."""
    content = json.dumps(sorted((asdict(row) for row in rows), key=lambda row: row["id"]), sort_keys=True)
    return hashlib.sha256(content.encode()).hexdigest()


@dataclass(frozen=True)
class Slice:
    """The rows that become one shard."""

    split: str
    index: int
    rows: tuple[Row, ...]

    @property
    def name(self) -> str:
        return f"{self.split}-{self.index:06d}.tar"

    @property
    def failed_name(self) -> str:
        return f"{self.split}-{self.index:06d}.failed.jsonl"


def slices(rows: list[Row], shard_size: int) -> list[Slice]:
    """Rows ⇒ slices of up to ``shard_size``, split by split, in order of a hash of their id: a manifest sorted by class
    must not give shards of one class."""
    if shard_size < 1:
        raise InputError(f"shard_size must be at least 1, got {shard_size}")
    found = []
    for split in sorted({row.split for row in rows}):
        ordered = sorted((row for row in rows if row.split == split),
                         key=lambda row: hashlib.sha256(row.id.encode()).digest())
        found += [Slice(split, i // shard_size, tuple(ordered[i:i + shard_size]))
                  for i in range(0, len(ordered), shard_size)]
    return found
