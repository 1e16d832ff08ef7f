"""The manifest, a CSV with one row per clip: reading, writing, drafting, and the slices that become shards."""

from __future__ import annotations

import csv
import hashlib
import io
import json
import math
import os
import re
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path, PurePosixPath

from rich.console import Group
from rich.table import Table
from rich.text import Text

from ...clip import MAX_OBJECTS
from ...runtime.errors import InputError
from ...runtime.files import write_text
from ...runtime.work_plan import Deed, Item, Plan

COLUMNS = ("id", "caption", "path", "start", "duration", "objects", "label", "split")
_REQUIRED = ("id", "caption")


@dataclass(frozen=True)
class Row:
    """One clip.

    Args:
        id: of the clip, unique in the manifest.
        caption: may be empty.
        path: of the video, relative to the folder of the videos.
        start_s: start of the clip in the video, in seconds.
        duration_s: length of the clip in seconds; None: to the end of the video.
        objects: words to ground; (): the caption's nouns.
        label: class of the sound, or "".
        split: of the dataset.
    """

    id: str
    caption: str
    path: str
    start_s: float = 0.0
    duration_s: float | None = None
    objects: tuple[str, ...] = ()
    label: str = ""
    split: str = "train"


def read_manifest(path: str | os.PathLike) -> list[Row]:
    """The rows of a manifest in its order. Its columns are of COLUMNS; id and caption are required.

    Raises:
        InputError: the file is missing or unreadable, a column is missing or unknown, there is no row, an id is given
            twice, a number is expected, a row has more than 8 objects, or a path leaves the folder of the videos. The
            message names the line.
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
    """Write rows as a CSV, atomically ⇒ its path.

    :func:`read_manifest` returns the same rows for any text in them, but for space around a cell.

    Args:
        path: of the CSV.
        rows: in the CSV's order.
    """
    text = io.StringIO()
    # csv quotes line feeds, but no lone carriage return, which ends a line for readers as well
    returns = any("\r" in cell for row in rows for cell in (row.caption, row.label, row.path, *row.objects))
    writer = csv.writer(text, lineterminator="\n", quoting=csv.QUOTE_ALL if returns else csv.QUOTE_MINIMAL)
    writer.writerow(COLUMNS)
    for row in rows:
        duration = "" if row.duration_s is None else f"{row.duration_s:.12g}"
        objects = ";".join(row.objects)
        if len(row.objects) == 1 and object_words("", objects) != row.objects:
            objects += ";"  # a name with a comma
        writer.writerow((row.id, row.caption, row.path, f"{row.start_s:.12g}", duration, objects, row.label, row.split))
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
    objects = object_words(where, text["objects"])
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


def object_words(where: str, cell: str) -> tuple[str, ...]:
    """The names in a cell: a JSON list of them, or parted by ``;``, else by ``|``, else by ``,``.

    Args:
        where: file and line, for messages.
        cell: its text; () where it is empty.

    Raises:
        InputError: it is another list, or has more than 8 names.
    """
    cell = cell.strip()
    if cell.startswith("[") and cell.endswith("]"):
        try:
            words = json.loads(cell)
        except ValueError:
            words = None
        if not isinstance(words, list) or not all(isinstance(word, str) for word in words):
            raise InputError(f"{where}: the objects are {cell!r}; expected names parted by ; or a JSON list such as "
                             '["dog", "cat"]')
    else:
        words = cell.split(next((mark for mark in ";|," if mark in cell), ";"))
    objects = tuple(word.strip() for word in words if word.strip())
    if len(objects) > MAX_OBJECTS:
        raise InputError(f"{where}: {len(objects)} objects, at most {MAX_OBJECTS} are allowed")
    return objects


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
    """sha256 of the rows' content, independent of their order, of quoting and of absent columns."""
    content = json.dumps(sorted((asdict(row) for row in rows), key=lambda row: row["id"]), sort_keys=True)
    return hashlib.sha256(content.encode()).hexdigest()


@dataclass(frozen=True)
class Slice:
    """The rows of one shard.

    Attributes:
        split: of the rows.
        index: of the shard in its split.
        rows: of the manifest.
    """

    split: str
    index: int
    rows: tuple[Row, ...]

    @property
    def name(self) -> str:
        """File name of the shard."""
        return f"{self.split}-{self.index:06d}.tar"

    @property
    def failed_name(self) -> str:
        """File name of the list of failed clips."""
        return f"{self.split}-{self.index:06d}.failed.jsonl"


def slices(rows: list[Row], shard_size: int) -> list[Slice]:
    """The slices of a manifest, split by split.

    Rows are ordered by a hash of their id, so that a manifest sorted by class doesn't give shards of one class.

    Args:
        rows: of the manifest.
        shard_size: rows in a slice, fewer in the last of a split.

    Raises:
        InputError: shard_size is below 1.
    """
    if shard_size < 1:
        raise InputError(f"shard_size must be at least 1, got {shard_size}")
    found = []
    for split in sorted({row.split for row in rows}):
        ordered = sorted((row for row in rows if row.split == split),
                         key=lambda row: hashlib.sha256(row.id.encode()).digest())
        found += [Slice(split, i // shard_size, tuple(ordered[i:i + shard_size]))
                  for i in range(0, len(ordered), shard_size)]
    return found


@dataclass(frozen=True)
class SkippedClip:
    """A clip or file without a row.

    Attributes:
        id: of the clip, or the file's name.
        reason: in a few words, the same for all clips of a kind.
        detail: place and content of the fault.
    """

    id: str
    reason: str
    detail: str = ""


def _left_out_path(out: Path) -> Path:
    return out.with_name(f"{out.stem}.left_out.csv")


@dataclass
class ManifestDraft:
    """A manifest before it is written.

    Attributes:
        rows: of the manifest.
        left_out: clips and files without a row.
        rules: {rule that assigned a clip to its file: number of clips}.
    """

    rows: list[Row] = field(default_factory=list)
    left_out: list[SkippedClip] = field(default_factory=list)
    rules: Counter[str] = field(default_factory=Counter)

    def leave_out(self, id: str, reason: str, detail: str = "") -> None:
        """Add a :class:`SkippedClip`."""
        self.left_out.append(SkippedClip(id, reason, detail))

    def hold_out(self, split: str, count: int, video_of: Callable[[Row], str], last: bool = False) -> None:
        """Move clips from train to another split, chosen by a hash of their video.

        The choice is the same on every machine, and changes little when videos are added. Clips of one video stay
        together. In rare cases a few clips less than ``count`` are moved for that.

        Args:
            split: a new split.
            count: number of clips.
            video_of: returns the name of a row's video.
            last: choose from the end of the hash's order, so that the choices of two splits don't depend on each other.

        Raises:
            InputError: train would be left empty, or the split exists already.
        """
        if not count:
            return
        clips = Counter(row.split for row in self.rows)
        if clips[split]:
            raise InputError(f"--{split} {count}: there are {clips[split]} clips of the split {split} already; leave "
                             f"--{split} out")
        if count >= clips["train"]:
            raise InputError(f"--{split} {count}: the split train has {clips['train']} clips, of which some must stay")
        videos: dict[str, list[int]] = {}
        for number, row in enumerate(self.rows):
            if row.split == "train":
                videos.setdefault(video_of(row), []).append(number)
        chosen: list[int] = []
        for video in sorted(videos, key=lambda name: hashlib.sha256(name.encode()).digest(), reverse=last):
            if len(chosen) + len(videos[video]) <= count:
                chosen += videos[video]
            if len(chosen) == count:
                break
        for number in chosen:
            self.rows[number] = replace(self.rows[number], split=split)

    def plan(self, out: Path) -> Plan:
        """What :meth:`write` writes. Raises InputError as it does."""
        self._require_rows(out)
        clips = Counter(row.split for row in self.rows)
        counts = {out: ", ".join(f"{count} {split}" for split, count in sorted(clips.items())) + " clips",
                  _left_out_path(out): f"{len(self.left_out)} clips without a row"}
        items = [Item(path.name, Deed.REPLACE if path.exists() else Deed.MAKE, words) for path, words in counts.items()]
        return Plan("manifest", items, out.parent)

    def _require_rows(self, out: Path) -> None:
        if not self.rows:
            first = self.left_out[0] if self.left_out else None
            why = f" The first of {len(self.left_out)}: {first.id}, {first.reason} ({first.detail})" if first else ""
            raise InputError(f"no clip is left for {out}.{why}")

    def write(self, out: Path) -> Path:
        """Write the manifest, and beside it ``<name>.left_out.csv`` with the skipped clips ⇒ the latter's path.

        Raises:
            InputError: there is no row.
        """
        left_out = _left_out_path(out)
        self._require_rows(out)
        text = io.StringIO()
        writer = csv.writer(text, lineterminator="\n")
        writer.writerow(("id", "reason", "detail"))
        writer.writerows((entry.id, entry.reason, entry.detail) for entry in self.left_out)
        # file names may hold bytes that are no UTF-8
        write_text(left_out, text.getvalue().encode("utf-8", "backslashreplace").decode("utf-8"))
        write_manifest(out, self.rows)
        return left_out

    def summary(self, out: Path, left_out: Path) -> Group:
        """Clips and labels of each split, rules and reasons of skipped clips with their counts, to be printed.

        Args:
            out: path of the manifest.
            left_out: path of the list of skipped clips.
        """
        table = Table("split", "clips", "labels", "captions", title=Text(str(out)), title_justify="left")
        for split in sorted({row.split for row in self.rows}):
            rows = [row for row in self.rows if row.split == split]
            labels = {row.label for row in rows} - {""}
            captions = {row.caption for row in rows} - {""}
            table.add_row(split, str(len(rows)), str(len(labels)), str(len(captions)))
        lines = [Text(f"{count} clips: {rule}") for rule, count in sorted(self.rules.items())]
        if self.left_out:
            reasons = Table("left out", "count", "for example")
            examples = {entry.reason: entry for entry in reversed(self.left_out)}
            for reason, count in Counter(entry.reason for entry in self.left_out).most_common():
                shown = f"{examples[reason].id} ({examples[reason].detail})" if examples[reason].detail else \
                    examples[reason].id
                reasons.add_row(Text(reason), str(count), Text(shown.encode("utf-8", "backslashreplace").decode()))
            return Group(table, *lines, reasons, Text(f"All of them: {left_out}"))
        return Group(table, *lines, Text("Nothing was left out."))
