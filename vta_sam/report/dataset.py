"""A dataset's statistics as tables for the terminal, and as one picture."""

from __future__ import annotations

import os
from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from rich.console import Group
from rich.table import Table
from rich.text import Text

from ..atomic import atomic_path
from ..metrics.level import LOWEST_DBFS
from .panels import COLOURS

if TYPE_CHECKING:
    from ..extraction.fault import Fault
    from ..extraction.statistics import DatasetStatistics

SHOWN = 20  # words, labels, faults
_SPARKS = " ▁▂▃▄▅▆▇█"


def statistics_tables(statistics: DatasetStatistics, title: str) -> Group:
    """What a dataset holds in a few lines, its most frequent words, and its labels, to be printed."""
    found = statistics.to_dict()
    if not statistics.clips:
        return Group(Text(f"{title}: no clip could be read"))
    duration, sound, missing = found["duration_s"], found["sound"], found["missing_objects"]
    splits = ", ".join(f"{count} {split}" for split, count in found["splits"].items())
    level = "–" if sound["mean_level_dbfs"] is None else f"{sound['mean_level_dbfs']:.1f} dBFS"
    objects = ", ".join(f"{n} with {count}" for count, n in found["objects_per_clip"].items() if n)
    lines = [
        f"{title}: {found['clips']} clips ({splits}), {found['hours']:.2f} hours",
        f"durations: {duration['min']:.2f} to {duration['max']:.2f} s, median {duration['median']:.2f} s",
        f"objects per clip: {objects}",
        f"missing objects (never above 0.3 in their clip): {missing['missing']} of {missing['of']}",
        f"silent clips: {sound['silent_clips']} ({100 * sound['silent_share']:.1f} %); mean level of others {level}",
    ]
    never = missing["never_seen_words"]
    if never:
        lines.append(f"words never seen in any clip: {', '.join(never[:SHOWN])}{' …' if len(never) > SHOWN else ''}")
    return Group(*map(Text, lines), *_word_table(statistics), *_label_table(statistics))


def _word_table(statistics: DatasetStatistics) -> list[Table]:
    words = statistics.frequent_words[:SHOWN]
    if not words:
        return []
    table = Table("object", "clips", "missing", "mean p", "p > 0.5", "p from 0 to 1", title_justify="left",
                  title=f"objects ({len(words)} of {len(statistics.words)} words)")
    for name in words:
        word = statistics.words[name].to_dict()
        table.add_row(Text(name), str(word["clips"]), str(word["missing_clips"]), f"{word['mean_prob']:.2f}",
                      f"{100 * word['share_above_half']:.0f} %", _sparks(word["histogram"]))
    return [table]


def _sparks(counts: Sequence[int]) -> str:
    """Counts ⇒ a column of blocks each; what occurs at all is seen."""
    highest = max(max(counts), 1)
    return "".join(_SPARKS[-(-count * (len(_SPARKS) - 1) // highest)] for count in counts)


def _label_table(statistics: DatasetStatistics) -> list[Table]:
    labels = [(label, count) for label, count in statistics.labels.most_common() if label]
    if not labels:
        return []
    table = Table("label", "clips", title=f"labels ({min(len(labels), SHOWN)} of {len(labels)})", title_justify="left")
    for label, count in labels[:SHOWN]:
        table.add_row(Text(label), str(count))
    return [table]


def faults_table(faults: Sequence[Fault]) -> Table:
    """The first faults, to be printed."""
    table = Table("shard", "clip", "fault", title=f"faults ({min(len(faults), SHOWN)} of {len(faults)})",
                  title_justify="left", title_style="red")
    for fault in faults[:SHOWN]:
        table.add_row(Text(fault.shard), Text(fault.key), Text(fault.what))
    return table


def statistics_picture(path: str | os.PathLike, statistics: DatasetStatistics, title: str = "") -> None:
    """Write a PNG: how probable objects are in the frames, word by word; durations, objects per clip, levels."""
    words = statistics.frequent_words[:SHOWN]
    height = max(5.2, 1.6 + 0.27 * len(words))
    figure = Figure(figsize=(11, height), dpi=110, layout="constrained")
    FigureCanvasAgg(figure)
    left, right = figure.subfigures(1, 2, squeeze=False, width_ratios=(1.55, 1))[0]
    _draw_words(left.subplots(), statistics, words)
    durations, objects, levels = right.subplots(3, 1)
    _draw_durations(durations, statistics)
    objects.bar(range(len(statistics.objects)), statistics.objects, color=COLOURS[0], width=0.8)
    objects.set(xlabel="objects named in a clip", ylabel="clips", xticks=range(len(statistics.objects)))
    _draw_levels(levels, statistics)
    for axes in (durations, objects, levels):
        axes.spines[["top", "right"]].set_visible(False)
        axes.grid(axis="y", color="0.9", linewidth=0.8)
        axes.set_axisbelow(True)
    figure.suptitle(title or f"{statistics.clips} clips, {statistics.seconds / 3600:.2f} hours", fontsize=11,
                    parse_math=False)
    with atomic_path(path) as temporary:
        figure.savefig(temporary, format="png", metadata={"Software": None})


def _draw_words(axes: Axes, statistics: DatasetStatistics, words: Sequence[str]) -> None:
    axes.set(xlabel="probability in a frame")
    axes.set_title("share of frames by probability", fontsize=10)
    if not words:
        axes.set(xticks=[], yticks=[])
        axes.text(0.5, 0.5, "no objects named", transform=axes.transAxes, ha="center", va="center", color="0.4")
        return
    counts = np.stack([statistics.words[word].histogram for word in words]).astype(np.float64)
    shares = counts / np.maximum(counts.sum(axis=1, keepdims=True), 1)
    image = axes.imshow(shares, aspect="auto", cmap="Blues", vmin=0, vmax=1, extent=(0, 1, len(words) - 0.5, -0.5),
                        interpolation="nearest")
    for row, column in np.ndindex(*shares.shape):
        if shares[row, column] >= 0.005:
            axes.text((column + 0.5) / shares.shape[1], row, f"{100 * shares[row, column]:.0f}", ha="center",
                      va="center", fontsize=7, color="white" if shares[row, column] > 0.55 else "black")
    names = [f"{word if len(word) <= 22 else word[:21] + '…'}  ({statistics.words[word].clips})" for word in words]
    axes.set(xticks=np.linspace(0, 1, 11))
    axes.set_yticks(range(len(words)), names, fontsize=9)
    for text in axes.get_yticklabels():
        text.set_parse_math(False)
    axes.set_ylabel("object (clips)")
    bar = axes.figure.colorbar(image, ax=axes, fraction=0.04, pad=0.02)
    bar.set_label("share of the word's frames; numbers in %", fontsize=8)
    bar.ax.tick_params(labelsize=8)


def _draw_durations(axes: Axes, statistics: DatasetStatistics) -> None:
    axes.set(xlabel="duration (s)", ylabel="clips")
    edges, clips = statistics.duration_histogram()
    axes.bar(edges[:-1], clips, width=np.diff(edges), align="edge", color=COLOURS[0])
    if statistics.clips:
        axes.set_title(f"median {statistics.median_duration_s():.2f} s", fontsize=9)


def _draw_levels(axes: Axes, statistics: DatasetStatistics) -> None:
    bins = np.linspace(LOWEST_DBFS, 0, len(statistics.levels) + 1)
    axes.bar(bins[:-1], statistics.levels, width=np.diff(bins), align="edge", color=COLOURS[0])
    used = np.flatnonzero(statistics.levels)
    low = min(-60.0, bins[used[0]]) if len(used) else -60.0
    axes.set(xlabel="RMS level (dBFS)", ylabel="clips", xlim=(low, 0))
    axes.set_title(f"without {statistics.silent} silent clips", fontsize=9)
