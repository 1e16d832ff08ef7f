"""A manifest in the making: the rows that it gets, and what was left out, each with its reason."""

from __future__ import annotations

import csv
import hashlib
import io
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path

from rich.console import Group
from rich.table import Table
from rich.text import Text

from ...runtime.errors import InputError
from ...runtime.files import write_text
from .manifest import Row, write_manifest


@dataclass(frozen=True)
class LeftOut:
    """A clip or file that gets no row. id: its name. reason: one of a few, to be counted. detail: where and what."""

    id: str
    reason: str
    detail: str = ""


@dataclass
class Draft:
    """rows and left_out as they are; rules: how the clips were found in their files ⇒ how many."""

    rows: list[Row] = field(default_factory=list)
    left_out: list[LeftOut] = field(default_factory=list)
    rules: Counter[str] = field(default_factory=Counter)

    def leave_out(self, id: str, reason: str, detail: str = "") -> None:
        self.left_out.append(LeftOut(id, reason, detail))

    def hold_out(self, split: str, count: int, video_of: Callable[[Row], str], last: bool = False) -> None:
        """Move ``count`` clips from train to ``split``, chosen by a hash of their video: the same ones on every
        machine, and few others when videos are added. Clips of one video stay together, so that rarely a few less are
        moved.

        last: from the other end of the hash's order, so that two splits don't depend on each other's size. Raises
        InputError where train would be left empty, or there is such a split already.
        """
        if not count:
            return
        there = Counter(row.split for row in self.rows)
        if there[split]:
            raise InputError(f"--{split} {count}: there are {there[split]} clips of the split {split} already; leave "
                             f"--{split} out")
        if count >= there["train"]:
            raise InputError(f"--{split} {count}: the split train has {there['train']} clips, of which some must stay")
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

    def write(self, out: Path) -> Path:
        """Write the manifest, and beside it the list of what was left out ⇒ the list's path. Raises InputError where
        there is no row."""
        left_out = out.with_name(f"{out.stem}.left_out.csv")
        if not self.rows:
            first = self.left_out[0] if self.left_out else None
            why = f" The first of {len(self.left_out)}: {first.id}, {first.reason} ({first.detail})" if first else ""
            raise InputError(f"no clip is left for {out}.{why}")
        text = io.StringIO()
        writer = csv.writer(text, lineterminator="\n")
        writer.writerow(("id", "reason", "detail"))
        writer.writerows((entry.id, entry.reason, entry.detail) for entry in self.left_out)
        # names of files may hold bytes that are no UTF-8
        write_text(left_out, text.getvalue().encode("utf-8", "backslashreplace").decode("utf-8"))
        write_manifest(out, self.rows)
        return left_out

    def summary(self, out: Path, left_out: Path) -> Group:
        """Clips and labels of each split, how clips were found, and why others were left out, to be printed."""
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
