"""Progress and summary of extraction on the terminal."""

from __future__ import annotations

import math
import re
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import timedelta
from pathlib import Path

from rich.console import Group
from rich.progress import BarColumn, MofNCompleteColumn, Progress, ProgressColumn, Task, TextColumn, TimeRemainingColumn
from rich.table import Table
from rich.text import Text

from ...runtime.files import printable
from ..shards.schema import DatasetInfo
from .shard_folder import failures

_REASONS, _CLIPS = 5, 3  # that are shown, of failures; clips of each


class _Rate(ProgressColumn):
    """Column with clips a second and failed clips of this run."""

    def render(self, task: Task) -> Text:
        rate = _pace(task.speed) if task.speed else "… clips/s"
        failed = task.fields.get("failed", 0)
        return Text(f"{rate}, {failed} failed", style="red" if failed else "default")


def progress_bar() -> Progress:
    """A progress bar of clips done, time left, clips/s and failures; its tasks have a field ``failed``."""
    return Progress(TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn(), _Rate())


@contextmanager
def terminal_progress(title: str, log_every_s: float = 60.0) -> Iterator[Callable[[int, int, int], None]]:
    """Yields a function of (clips done, clips in all, clips failed) that shows progress.

    It shows a bar on a terminal. Elsewhere, as in the log of a job, it prints lines.

    Args:
        title: of the bar or of each line.
        log_every_s: seconds between two lines; the first and the last call print one in any case.
    """
    bar = progress_bar()
    if not bar.console.is_terminal:
        yield _ProgressLines(title, log_every_s, lambda line: bar.console.print(line, soft_wrap=True, markup=False))
        return
    with bar:
        task = bar.add_task(title, total=None, failed=0)

        def update(done: int, clips: int, failed: int) -> None:
            if bar.tasks[0].total is None:  # clips of earlier runs don't count in the speed
                bar.reset(task, total=clips, completed=done)
            bar.update(task, completed=done, failed=failed)

        yield update


class _ProgressLines:
    """Prints lines with clips done, clips a second in this run, time left and failures."""

    def __init__(self, title: str, every_s: float, print_line: Callable[[str], None]) -> None:
        self.title, self.every_s, self.print_line = title, every_s, print_line
        self.start: tuple[float, int] | None = None  # time, and clips of earlier runs
        self.last_line_s = -math.inf

    def __call__(self, done: int, clips: int, failed: int) -> None:
        now_s = time.monotonic()
        self.start = self.start or (now_s, done)
        if now_s - self.last_line_s < self.every_s and done < clips:
            return
        self.last_line_s = now_s
        elapsed_s, done_here = now_s - self.start[0], done - self.start[1]
        pace = ""
        if done_here and elapsed_s > 0:
            left = timedelta(seconds=round((clips - done) * elapsed_s / done_here))
            pace = f", {_pace(done_here / elapsed_s)}, {left} left"
        self.print_line(f"{self.title}: {done}/{clips}{pace}, {failed} failed")


def _pace(clips_per_s: float) -> str:
    return f"{clips_per_s:.1f} clips/s" if clips_per_s >= 0.5 else f"{1 / clips_per_s:.1f} s a clip"


def summary(info: DatasetInfo, out: Path) -> Group:
    """A table of shards, records and failures of each split, and the most frequent reasons of failures with the first
    clips that they befell, to be printed.

    Args:
        info: the dataset.
        out: its folder.
    """
    table = Table("split", "shards", "records", "failed", title=Text(printable(out)))
    clips: dict[str, list[str]] = {}
    for split, shards in sorted(info.splits.items()):
        failed = sum(shard.failed for shard in shards)
        table.add_row(split, str(len(shards)), str(sum(shard.records for shard in shards)), str(failed))
        for shard in shards:
            if shard.failed:
                for entry in failures(out / f"{Path(shard.name).stem}.failed.jsonl"):
                    # without the file's name, so that the same reasons count together
                    reason = re.sub(rf"[^\s'\"]*{re.escape(entry['path'])}", "…", entry["reason"])
                    clips.setdefault(reason, []).append(entry["id"])
    frequent = sorted(clips.items(), key=lambda item: -len(item[1]))[:_REASONS]
    lines = [Text(printable(f"{len(ids)} clips: {reason} ({', '.join(ids[:_CLIPS])}{', …' * (len(ids) > _CLIPS)})"))
             for reason, ids in frequent]
    if clips:
        lines.append(Text(printable(f"All that failed, with their reasons: {out / '*.failed.jsonl'}; retry_failed=true "
                                    "tries them again.")))
    if not (out / "dataset.json").exists():
        lines.append(Text("Other workers' shards are missing still; dataset.json is written with the last of them."))
    return Group(table, *lines)
