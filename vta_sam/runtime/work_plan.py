"""What a program will write: worked out before anything is done, said, and then done."""

from __future__ import annotations

import shutil
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path
from typing import TextIO

from rich.console import Console
from rich.filesize import decimal
from rich.markup import escape
from rich.table import Table

from .files import existing_folder, printable

_ROWS = 12  # items that stand in a row each; of more, each deed is a row
_NAMED = 3  # items that the row of a deed names
_WIDTH = 200  # characters of a log's line


class Deed(StrEnum):
    """What happens to one thing."""

    MAKE = "make"
    GO_ON = "go on"  # begun before with the same settings
    KEEP = "keep"
    TRAIN_ON = "train further"  # a stage that goes on to more steps, as if it had been that long from the start
    MAKE_AGAIN = "make again"  # what is there goes once the new one is finished
    TAKE_BACK = "take back"  # what was put aside is what is asked for now
    THROW_AWAY = "throw away"  # unfinished work of other settings
    REPLACE = "replace"  # a report that every run writes anew
    LEAVE_OUT = "leave out"  # it can't be made; the detail says why


@dataclass(frozen=True)
class Item:
    """One thing of a plan.

    Args:
        name: of a file, a stage or a clip.
        deed: what happens to it.
        detail: what it is made of, or why.
        size: bytes that will be written, where that is known.
    """

    name: str
    deed: Deed
    detail: str = ""
    size: int | None = None


@dataclass(frozen=True)
class Plan:
    """Everything that a program will write.

    Args:
        title: what is made.
        items: in the order in which they are done.
        writes_to: folder or file.
        share: which share of the work this process takes, and who says so; "" for all of it.
        facts: (name, words) of further rows, above the items.
        notes: sentences below the table.
    """

    title: str
    items: Sequence[Item]
    writes_to: Path
    share: str = ""
    facts: Sequence[tuple[str, str]] = ()
    notes: Sequence[str] = ()

    def counts(self) -> dict[Deed, int]:
        """Number of items of each deed, in the order of :class:`Deed`."""
        return {deed: found for deed in Deed if (found := sum(item.deed is deed for item in self.items))}

    @property
    def size(self) -> int | None:
        """Bytes that will be written, or None where no item knows."""
        known = [item.size for item in self.items if item.size is not None]
        return sum(known) if known else None

    def of(self, *deeds: Deed) -> list[Item]:
        """The items of these deeds."""
        return [item for item in self.items if item.deed in deeds]

    def say(self, file: TextIO | None = None) -> None:
        """Print the plan; in a log its rows are wide enough for most paths.

        Args:
            file: to print to; None: stdout.
        """
        usual = Console(file=file or sys.stdout, highlight=False)
        self.show(usual if usual.is_terminal else Console(file=file or sys.stdout, highlight=False, width=_WIDTH))

    def show(self, console: Console) -> None:
        """Print the plan: a row an item, or of more than twelve a row a deed, with the first names."""
        table = Table(show_header=False, box=None)
        table.add_column(no_wrap=True)
        table.add_column(overflow="fold")
        rows = [*self.facts, *(self._item_rows() if len(self.items) <= _ROWS else self._deed_rows())]
        if self.share:
            rows.append(("share", self.share))
        rows.append(("writes to", f"{self.writes_to}{self._size_in_words()}"))
        for name, words in rows:
            table.add_row(_plain(name), _plain(words))
        console.print(_plain(self.title), highlight=False, soft_wrap=True)
        console.print(table)
        for note in self.notes:
            console.print(f"note: {printable(note)}", highlight=False, markup=False, soft_wrap=True)

    def _item_rows(self) -> list[tuple[str, str]]:
        return [(item.name, f"{item.deed}{f': {item.detail}' if item.detail else ''}") for item in self.items]

    def _deed_rows(self) -> list[tuple[str, str]]:
        rows = []
        for deed, count in self.counts().items():
            why = deed is Deed.LEAVE_OUT
            names = [f"{item.name} ({item.detail})" if why else item.name for item in self.of(deed)[:_NAMED]]
            rows.append((str(deed), f"{count}: {', '.join(names)}{', …' if count > _NAMED else ''}"))
        return rows

    def _size_in_words(self) -> str:
        if not self.size:
            return ""
        free = shutil.disk_usage(existing_folder(self.writes_to)).free
        short = "; that is not enough" if free < self.size else ""
        return f", about {decimal(self.size)} ({decimal(free)} are free{short})"


def counted(count: int, noun: str) -> str:
    """"1 clip", "2 clips"."""
    return f"{count} {noun}{'s' * (count != 1)}"


def _plain(text: str) -> str:
    return escape(printable(text))
