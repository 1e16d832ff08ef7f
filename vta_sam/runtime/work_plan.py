"""What a program will write: worked out before anything is done, said, and then done. And the time that its work takes:
of a stage by part, and of training steps by the recent ones.
"""

from __future__ import annotations

import math
import platform
import shutil
import sys
import time
from collections import deque
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path
from statistics import median
from typing import TextIO

from rich.console import Console
from rich.filesize import decimal
from rich.markup import escape
from rich.table import Table

from .files import existing_folder, printable

_ROWS = 12  # items that stand in a row each; of more, each deed is a row
_NAMED = 3  # items that the row of a deed names
_WIDTH = 200  # characters of a log's line
_TIMED = 3  # steps before a time is said


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


def share_of(count: int, rank: int, world: int, consecutive: bool = False) -> range:
    """The indices of one worker's share of things that are counted from 0.

    Args:
        count: of all things.
        rank: of the worker, from 0.
        world: number of workers.
        consecutive: the share is one run of them, and the shares' sizes differ by one at most; False: every world-th.
    """
    return range(rank * count // world, (rank + 1) * count // world) if consecutive else range(rank, count, world)


def counted(count: int, noun: str) -> str:
    """"1 clip", "2 clips"."""
    return f"{count} {noun}{'s' * (count != 1)}"


def _plain(text: str) -> str:
    return escape(printable(text))


def processor_name() -> str:
    """The model of this machine's processor."""
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        lines = []
    names = (line.split(":", 1)[1].strip() for line in lines if line.startswith("model name"))
    return next(names, platform.processor() or platform.machine())


class PartTimes:
    """Seconds of a stage by part. Every moment belongs to one part, so that their sum is the whole.

    A moment of no part is "start-up" until the stage's last phase has ended, and "finish" after it.

    Attributes:
        began: the moment of the start, by time.perf_counter().
    """

    def __init__(self) -> None:
        self._spent: dict[str, float] = {}
        self._parts = ["start-up"]
        self.began = self._since = time.perf_counter()

    def seconds(self) -> dict[str, float]:
        """{part: seconds} until now."""
        now = time.perf_counter()
        self._spent[self._parts[-1]] = self._spent.get(self._parts[-1], 0.0) + now - self._since
        self._since = now
        return dict(self._spent)

    def begin(self, part: str) -> None:
        """From here on a part within the present one."""
        self.seconds()
        self._parts.append(part)

    def end(self) -> None:
        """The part that was begun last has ended."""
        self.seconds()
        self._parts.pop()

    @contextmanager
    def part(self, name: str, last: bool = False) -> Iterator[None]:
        """Inside, the seconds are a part's, but for those of parts that are begun there. last: of the phases."""
        depth = len(self._parts)
        self.begin(name)
        try:
            yield
        finally:  # an error may have left inner parts open
            self.seconds()
            del self._parts[depth:]
            if last:
                self._parts[0] = "finish"


class StepPace:
    """The time of training steps, by recent ones. Validations and checkpoints count as they were seen, and not before.

    Args:
        steps: of the whole stage.
        validate_every, checkpoint_every: in steps. A validation comes with a checkpoint.
        clips: of a step, of all processes.

    Attributes:
        step_s: seconds of a step with its reading; None: too few were taken.
    """

    def __init__(self, steps: int, validate_every: int, checkpoint_every: int, clips: int):
        self.steps, self.validate_every, self.checkpoint_every = steps, validate_every, checkpoint_every
        self.clips = clips
        self.step_s: float | None = None
        self._steps, self._validations, self._saves = (deque[float](maxlen=size) for size in (50, 5, 5))
        self._warm, self._validation_s, self._save_s = False, 0.0, 0.0

    def add(self, step_s: float, validation_s: float, save_s: float) -> None:
        """Count a step, with what came before it since the last one. The first step warms up, and doesn't count."""
        if validation_s:
            self._validations.append(validation_s + save_s)
            self._validation_s = median(self._validations)
        elif save_s:
            self._saves.append(save_s)
            self._save_s = median(self._saves)
        if self._warm:
            self._steps.append(step_s)
        self._warm = True
        if len(self._steps) >= _TIMED:
            self.step_s = median(self._steps)

    def seconds(self, start: int = 0) -> float | None:
        """Seconds from step ``start`` to the end, with the validation or checkpoint that is due at ``start``; None: too
        few steps were taken."""
        if self.step_s is None:
            return None

        def due(every: int) -> int:
            return self.steps // every - max(0, start - 1) // every

        saves = due(self.checkpoint_every) - due(math.lcm(self.checkpoint_every, self.validate_every))
        return ((self.steps - start) * self.step_s + due(self.validate_every) * self._validation_s
                + saves * self._save_s)
