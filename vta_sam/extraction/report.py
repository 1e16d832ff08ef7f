"""What extraction shows on the terminal."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

from rich.console import Group
from rich.progress import BarColumn, MofNCompleteColumn, Progress, ProgressColumn, Task, TextColumn, TimeRemainingColumn
from rich.table import Table
from rich.text import Text

from ..shards.schema import DatasetInfo
from .output import failures

_REASONS = 5


class _Rate(ProgressColumn):
    """Clips a second in this run, and how many of them failed."""

    def render(self, task: Task) -> Text:
        rate = f"{task.speed:.1f} clips/s" if task.speed else "… clips/s"
        failed = task.fields.get("failed", 0)
        return Text(f"{rate}, {failed} failed", style="red" if failed else "default")


def progress_bar() -> Progress:
    """A bar whose tasks have a field ``failed``: done of all, time left, clips/s, failures."""
    return Progress(TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn(), _Rate())


def summary(info: DatasetInfo, out: Path) -> Group:
    """Shards, records and failures of each split, and the most frequent reasons of failures."""
    table = Table("split", "shards", "records", "failed", title=str(out))
    reasons: Counter[str] = Counter()
    for split, shards in sorted(info.splits.items()):
        failed = sum(shard.failed for shard in shards)
        table.add_row(split, str(len(shards)), str(sum(shard.records for shard in shards)), str(failed))
        for shard in shards:
            if shard.failed:
                listed = failures(out / f"{Path(shard.name).stem}.failed.jsonl")
                # the same reason names another file each time
                reasons.update(entry["reason"].replace(entry["path"], "…").rpartition("/")[2] for entry in listed)
    lines = [Text(f"{count} clips: {reason}") for reason, count in reasons.most_common(_REASONS)]
    if not (out / "dataset.json").exists():
        lines.append(Text("Other workers' shards are missing still; dataset.json is written with the last of them."))
    return Group(table, *lines)
