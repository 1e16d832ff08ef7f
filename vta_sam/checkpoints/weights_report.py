"""What ``data_prep/weights.py`` shows on the terminal."""

from __future__ import annotations

from pathlib import Path
from typing import Iterable, Iterator

from rich import box
from rich.console import Console, Group
from rich.markup import escape
from rich.progress import BarColumn, DownloadColumn
from rich.progress import Progress as Bar
from rich.progress import TextColumn, TimeRemainingColumn, TransferSpeedColumn
from rich.table import Table
from rich.text import Text

from ..runtime.work_plan import Deed, Item, Plan
from . import registry
from .download import Part, fetch_file
from .registry import Entry, Progress, ReleasedFile, fault, readable, state

_COLOURS = {"present": "green", "missing": "yellow", "wrong": "red"}


def listing(entries: Iterable[Entry], folder: Path) -> Group:
    """One row an entry: its files and source; size, licence, and whether it lies in ``folder``. Below, the groups."""
    table = Table(title=f"released weights in {escape(str(folder))}", box=box.SIMPLE_HEAD, pad_edge=False)
    table.add_column("weights", overflow="fold")
    for heading in ("size", "licence", "state"):
        table.add_column(heading, no_wrap=True)
    for entry in entries:
        files = entry.place if len(entry.files) == 1 else f"{entry.place}/ ({len(entry.files)} files)"
        words = f"[bold]{entry.name}[/]\n  {entry.purpose}\n  {files}\n  {entry.source.removeprefix('https://')}"
        found = state(entry, folder)
        table.add_row(words, readable(entry.size_bytes), entry.licence, f"[{_COLOURS[found]}]{found}[/]")
    groups = (Text(f"{name} = {' + '.join(members)}") for name, members in registry.GROUPS.items())
    return Group(table, *groups, Text("present: of the released size; `check` compares checksums too"))


def examine(file: ReleasedFile, folder: Path) -> tuple[str, bool]:
    """Read one file ⇒ a line about it, and whether it is what was released as far as that is known."""
    path = folder / file.path
    if not path.exists():
        return f"{path}: missing", False
    wrong = fault(path, file)
    if wrong is not None:
        return f"{path}: wrong, {wrong}", False
    if file.sha256 is not None:
        return f"{path}: right", True
    size = f"{path.stat().st_size} bytes"
    known = "as released" if file.size_bytes is not None else "and the size isn't known either"
    return f"{path}: no checksum is publicly known; size {size}, {known}", True


def check(entries: Iterable[Entry], folder: Path, absent_too: bool) -> Iterator[tuple[str, bool]]:
    """:func:`examine` every file; entries of which nothing is there are passed over, unless ``absent_too``."""
    for entry in entries:
        if absent_too or any((folder / file.path).exists() for file in entry.files):
            for file in entry.files:
                yield examine(file, folder)


def fetch_plan(entries: Iterable[Entry], folder: Path, again: bool = False) -> Plan:
    """What :func:`fetch_all` writes of entries, a file an item; files are told by their size, not read."""
    items = []
    for file in (file for entry in entries for file in entry.files):
        path = folder / file.path
        size = path.stat().st_size if path.is_file() else None
        begun = Part.beside(path).size
        if size is None:
            items.append(Item(file.path, Deed.GO_ON if begun else Deed.MAKE, readable(file.size_bytes),
                              file.size_bytes - begun if file.size_bytes is not None else None))
        elif file.size_bytes in (None, size):
            items.append(Item(file.path, Deed.KEEP))
        elif again:
            items.append(Item(file.path, Deed.MAKE_AGAIN, f"{size} bytes, released {file.size_bytes}", file.size_bytes))
        else:
            items.append(Item(file.path, Deed.KEEP, f"wrong: {size} bytes, released {file.size_bytes}; --again fetches "
                                                    "it anew"))
    return Plan("released weights", items, folder)


def fetch_all(files: Iterable[ReleasedFile], folder: Path, again: bool = False, console: Console | None = None) -> None:
    """Fetch what of ``files`` is missing, with a bar. Errors: see :func:`~vta_sam.checkpoints.download.fetch_file`."""
    with transfer_bar(console) as bar:
        for file in files:
            fetch_file(file, folder, again, follow(bar, file),
                       lambda words: bar.console.print(words, soft_wrap=True, markup=False))


def transfer_bar(console: Console | None = None) -> Bar:
    """Bytes of all, speed, time left."""
    return Bar(TextColumn("{task.description}"), BarColumn(), DownloadColumn(), TransferSpeedColumn(),
               TimeRemainingColumn(), console=console)


def follow(bar: Bar, file: ReleasedFile) -> Progress:
    """A new line of ``bar`` ⇒ what to tell of the file's bytes. What came in an earlier run counts as no speed."""
    task = bar.add_task(escape(file.path), total=file.size_bytes, start=False)
    begun = False

    def progress(done: int, total: int) -> None:
        nonlocal begun
        if not begun:
            bar.reset(task, completed=done, total=total)
            begun = True
        bar.update(task, completed=done, total=total)

    return progress
