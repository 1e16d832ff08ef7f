"""Statistics of a finished dataset, as tables for the terminal and as one picture, and the faults of its records.

Clips are added one by one. Memory grows with the number of words and labels, not with the number of clips.
"""

from __future__ import annotations

import math
import os
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from rich.console import Group
from rich.table import Table
from rich.text import Text

from ...clip import FEATURES, MAX_OBJECTS, ClipFeatures
from ...metrics.signal import LOWEST_DBFS, measure_level
from ...plots.clip_pictures import COLOURS
from ...runtime.files import atomic_path

SEEN = 0.3  # an object whose probability never exceeds this in a clip was not seen there
SILENT_PEAK = 1e-4  # 3 steps of 16-bit sound
PROB_BINS = 10
LEVEL_BIN_DB = 5.0
SHOWN = 20  # words, labels, faults
_DURATION_BINS = 20
_CENTI = 100  # durations are counted in hundredths of a second
_SPARKS = " ▁▂▃▄▅▆▇█"


@dataclass(frozen=True)
class Fault:
    """A fault of a shard or of one of its records.

    Attributes:
        shard: name of the tar.
        key: of the record; "" for the shard itself.
        what: the fault in words.
    """

    shard: str
    key: str
    what: str


@dataclass
class FeatureStatistics:
    """Statistics of one feature over all clips that have it."""

    clips: int = 0
    values: int = 0
    total: float = 0.0
    low: float = math.inf
    high: float = -math.inf

    def add(self, array: np.ndarray) -> None:
        """Add the array of one clip."""
        self.clips += 1
        self.values += array.size
        self.total += float(array.sum(dtype=np.float64))
        self.low = float(array.min(initial=self.low))
        self.high = float(array.max(initial=self.high))

    def to_dict(self) -> dict[str, Any]:
        """The statistics for JSON. Without a value, as in clips without objects, the figures are None."""
        figures = (self.low, self.total / self.values, self.high) if self.values else (None, None, None)
        return {"clips": self.clips, **{key: figure if figure is None else round(figure, 5)
                                        for key, figure in zip(("min", "mean", "max"), figures)}}


@dataclass
class WordStatistics:
    """Statistics of one object word over all clips that name it.

    Attributes:
        clips: that name the word: how often it was asked for.
        missing: clips in which it was not seen.
        frames: of these clips.
        prob_sum: sum of the frames' probabilities.
        above_half: frames with a probability above 0.5.
        histogram: (10,) frames by their probability, in tenths.
    """

    clips: int = 0
    missing: int = 0
    frames: int = 0
    prob_sum: float = 0.0
    above_half: int = 0
    histogram: np.ndarray = field(default_factory=lambda: np.zeros(PROB_BINS, np.int64))

    def add(self, probs: np.ndarray, seen: float = SEEN) -> None:
        """Add the probabilities (T,) of one clip, in which the object was seen if one is above ``seen``."""
        self.clips += 1
        self.missing += not (probs > seen).any()
        self.frames += len(probs)
        self.prob_sum += float(probs.sum(dtype=np.float64))
        self.above_half += int((probs > 0.5).sum())
        self.histogram += np.bincount(np.clip(probs * PROB_BINS, 0, PROB_BINS - 1).astype(int), minlength=PROB_BINS)

    def to_dict(self) -> dict[str, Any]:
        """The statistics for JSON."""
        frames = max(self.frames, 1)
        return {"clips": self.clips, "seen_clips": self.clips - self.missing, "missing_clips": self.missing,
                "frames": self.frames, "mean_prob": round(self.prob_sum / frames, 5),
                "share_above_half": round(self.above_half / frames, 5), "histogram": self.histogram.tolist()}


@dataclass
class DatasetStatistics:
    """Counts over the clips that were added.

    Attributes:
        seen: probability above which an object was seen in a frame.
        splits: {split: clips}.
        durations: {hundredths of a second: clips}.
        objects: (9,) clips by the number of objects that they name.
        labels: {label: clips}.
        words: {object word: statistics}.
        features: {feature: statistics}.
        with_objects: clips that name objects, by the optional features that they have.
        levels: (24,) clips by their RMS level in steps of 5 dB from -120 dBFS on, without silent clips.
        level_sum_db: sum of the levels of these clips.
        silent: clips whose peak is below SILENT_PEAK.
        left_out: {nouns beyond the first 8 of a caption: clips}.
        seconds: duration of all clips.
    """

    seen: float = SEEN
    splits: Counter[str] = field(default_factory=Counter)
    durations: Counter[int] = field(default_factory=Counter)
    objects: np.ndarray = field(default_factory=lambda: np.zeros(MAX_OBJECTS + 1, np.int64))
    labels: Counter[str] = field(default_factory=Counter)
    words: dict[str, WordStatistics] = field(default_factory=dict)
    features: dict[str, FeatureStatistics] = field(default_factory=lambda: {n: FeatureStatistics() for n in FEATURES})
    with_objects: Counter[tuple[str, ...]] = field(default_factory=Counter)
    levels: np.ndarray = field(default_factory=lambda: np.zeros(round(-LOWEST_DBFS / LEVEL_BIN_DB), np.int64))
    level_sum_db: float = 0.0
    silent: int = 0
    left_out: Counter[int] = field(default_factory=Counter)
    seconds: float = 0.0

    @property
    def clips(self) -> int:
        """Number of clips."""
        return sum(self.splits.values())

    def add(self, split: str, clip: ClipFeatures) -> None:
        """Add one clip."""
        seconds = len(clip.waveform) / clip.sample_rate_hz  # not duration_s, which may be wrong in a faulty record
        self.splits[split] += 1
        self.durations[round(seconds * _CENTI)] += 1
        self.seconds += seconds
        self.objects[len(clip.objects)] += 1
        self.labels[clip.label] += 1
        self.left_out[clip.dropped] += clip.dropped > 0
        for name, array in clip.features.items():
            self.features[name].add(array)
        if clip.objects:
            self.with_objects[tuple(name for name in clip.features if FEATURES[name].optional)] += 1
        for k, word in enumerate(clip.objects):
            self.words.setdefault(word, WordStatistics()).add(clip.probs[:, k], self.seen)
        level = measure_level(clip.waveform, clip.sample_rate_hz)
        if level.peak < SILENT_PEAK:
            self.silent += 1
        else:
            self.levels[min(int((level.rms_dbfs - LOWEST_DBFS) / LEVEL_BIN_DB), len(self.levels) - 1)] += 1
            self.level_sum_db += level.rms_dbfs

    @property
    def frequent_words(self) -> list[str]:
        """All words, those of the most clips first, then in alphabetical order."""
        return sorted(self.words, key=lambda word: (-self.words[word].clips, word))

    def duration_histogram(self) -> tuple[np.ndarray, np.ndarray]:
        """Histogram of durations ⇒ edges (21,) in seconds from 0 to the longest clip, clips (20,)."""
        values = np.array(list(self.durations), np.float64) / _CENTI
        clips, edges = np.histogram(values, bins=_DURATION_BINS, range=(0.0, max(values, default=0.0)),
                                    weights=list(self.durations.values()))
        return edges, clips.astype(np.int64)

    def median_duration_s(self) -> float:
        """Median of the clips' durations in seconds."""
        values = sorted(self.durations)
        ends = np.cumsum([self.durations[value] for value in values])
        return values[int(np.searchsorted(ends, ends[-1] / 2))] / _CENTI

    def to_dict(self) -> dict[str, Any]:
        """All statistics for JSON. Without a clip, figures that need one are None."""
        clips, sounding = self.clips, int(self.levels.sum())
        edges, by_duration = self.duration_histogram()
        words = {word: self.words[word].to_dict() for word in self.frequent_words}
        return {
            "clips": clips, "hours": round(self.seconds / 3600, 4), "splits": dict(sorted(self.splits.items())),
            "duration_s": {
                "min": min(self.durations) / _CENTI if clips else None,
                "median": self.median_duration_s() if clips else None,
                "max": max(self.durations) / _CENTI if clips else None,
                "histogram": {"edges_s": edges.round(3).tolist(), "clips": by_duration.tolist()}},
            "left_out_nouns": {"clips": self.left_out.total(),
                               "nouns": sum(nouns * clips for nouns, clips in self.left_out.items())},
            "objects_per_clip": {str(count): int(n) for count, n in enumerate(self.objects)},
            "features": {name: {"axes": list(FEATURES[name].axes), **feature.to_dict()}
                         for name, feature in self.features.items()},
            "words": words,
            "missing_objects": {
                "of": sum(word.clips for word in self.words.values()),
                "missing": sum(word.missing for word in self.words.values()), "seen_above": self.seen,
                "never_seen_words": [word for word in words if self.words[word].missing == self.words[word].clips]},
            "sound": {
                "silent_clips": self.silent, "silent_share": round(self.silent / clips, 5) if clips else None,
                "mean_level_dbfs": round(self.level_sum_db / sounding, 2) if sounding else None,
                "level_histogram": {f"{LOWEST_DBFS + LEVEL_BIN_DB * i:g}": int(n) for i, n in enumerate(self.levels)}},
            "labels": dict(self.labels.most_common()),
        }


def statistics_tables(statistics: DatasetStatistics, title: str) -> Group:
    """A dataset's counts in a few lines, and tables of its features, most frequent words and labels, to be printed.

    Args:
        statistics: of the dataset.
        title: name of the dataset.
    """
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
        f"missing objects (never above {statistics.seen:g} in their clip): {missing['missing']} of {missing['of']}",
        f"silent clips: {sound['silent_clips']} ({100 * sound['silent_share']:.1f} %); mean level of others {level}",
    ]
    if (left_out := found["left_out_nouns"])["clips"]:
        lines.append(f"nouns left out, beyond the first {MAX_OBJECTS} of a caption: {left_out['nouns']} in "
                     f"{left_out['clips']} clips")
    unseen = missing["never_seen_words"]
    if unseen:
        lines.append(f"words never seen in any clip: {', '.join(unseen[:SHOWN])}{' …' if len(unseen) > SHOWN else ''}")
    return Group(*map(Text, lines), _feature_table(found["features"]), *_word_table(statistics),
                 *_label_table(statistics))


def _feature_table(features: dict[str, dict[str, Any]]) -> Table:
    table = Table("feature", "axes", "clips", "min", "mean", "max", title="features", title_justify="left")
    for name, found in features.items():
        figures = ("–" if found[key] is None else f"{found[key]:.3g}" for key in ("min", "mean", "max"))
        table.add_row(name, " ".join(map(str, found["axes"])), str(found["clips"]), *figures)
    return table


def _word_table(statistics: DatasetStatistics) -> list[Table]:
    words = statistics.frequent_words[:SHOWN]
    if not words:
        return []
    table = Table("object", "asked", "seen", "seen in", "mean p", "p > 0.5", "p from 0 to 1", title_justify="left",
                  title=f"objects ({len(words)} of {len(statistics.words)} words)")
    for name in words:
        word = statistics.words[name].to_dict()
        table.add_row(Text(name), str(word["clips"]), str(word["seen_clips"]),
                      f"{100 * word['seen_clips'] / word['clips']:.0f} %", f"{word['mean_prob']:.2f}",
                      f"{100 * word['share_above_half']:.0f} %", _sparks(word["histogram"]))
    return [table]


def _sparks(counts: Sequence[int]) -> str:
    """A histogram as text, with one block character a count. A count above zero is visible."""
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
    """Write a PNG of probabilities in the frames by object word, durations, objects per clip, and levels.

    Args:
        path: of the PNG.
        statistics: of the dataset.
        title: of the picture; "": clips and hours.
    """
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
