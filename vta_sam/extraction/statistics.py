"""What a finished dataset holds, counted clip by clip: memory grows with the words and labels, not with the clips."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from ..clip import MAX_OBJECTS, ClipFeatures
from ..metrics.level import LOWEST_DBFS, measure_level

SEEN = 0.3  # an object whose probability never exceeds this in a clip is missing from it
SILENT_PEAK = 1e-4  # 3 steps of 16-bit sound
PROB_BINS = 10
LEVEL_BIN_DB = 5.0
_DURATION_BINS = 20
_CENTI = 100  # durations are counted in hundredths of a second


@dataclass
class WordStatistics:
    """One object word over all clips that name it. histogram (10,): frames by their probability, in tenths."""

    clips: int = 0
    missing: int = 0  # clips in which it never exceeds SEEN
    frames: int = 0
    prob_sum: float = 0.0
    above_half: int = 0
    histogram: np.ndarray = field(default_factory=lambda: np.zeros(PROB_BINS, np.int64))

    def add(self, probs: np.ndarray) -> None:
        """probs (T,) of one clip."""
        self.clips += 1
        self.missing += not (probs > SEEN).any()
        self.frames += len(probs)
        self.prob_sum += float(probs.sum(dtype=np.float64))
        self.above_half += int((probs > 0.5).sum())
        self.histogram += np.bincount(np.clip(probs * PROB_BINS, 0, PROB_BINS - 1).astype(int), minlength=PROB_BINS)

    def to_dict(self) -> dict[str, Any]:
        frames = max(self.frames, 1)
        return {"clips": self.clips, "missing_clips": self.missing, "frames": self.frames,
                "mean_prob": round(self.prob_sum / frames, 5), "share_above_half": round(self.above_half / frames, 5),
                "histogram": self.histogram.tolist()}


@dataclass
class DatasetStatistics:
    """Counts over the clips that were added. levels (24,): clips by their RMS level in 5 dB from -120 dBFS on; silent
    clips are not among them."""

    splits: Counter[str] = field(default_factory=Counter)
    durations: Counter[int] = field(default_factory=Counter)  # hundredths of a second ⇒ clips
    objects: np.ndarray = field(default_factory=lambda: np.zeros(MAX_OBJECTS + 1, np.int64))  # named in a clip ⇒ clips
    labels: Counter[str] = field(default_factory=Counter)
    words: dict[str, WordStatistics] = field(default_factory=dict)
    levels: np.ndarray = field(default_factory=lambda: np.zeros(round(-LOWEST_DBFS / LEVEL_BIN_DB), np.int64))
    level_sum_db: float = 0.0
    silent: int = 0
    seconds: float = 0.0

    @property
    def clips(self) -> int:
        return sum(self.splits.values())

    def add(self, split: str, clip: ClipFeatures) -> None:
        seconds = len(clip.waveform) / clip.sample_rate_hz  # what a faulty record says of itself may be anything
        self.splits[split] += 1
        self.durations[round(seconds * _CENTI)] += 1
        self.seconds += seconds
        self.objects[len(clip.objects)] += 1
        self.labels[clip.label] += 1
        for k, word in enumerate(clip.objects):
            self.words.setdefault(word, WordStatistics()).add(clip.probs[:, k])
        level = measure_level(clip.waveform, clip.sample_rate_hz)
        if level.peak < SILENT_PEAK:
            self.silent += 1
        else:
            self.levels[min(int((level.rms_dbfs - LOWEST_DBFS) / LEVEL_BIN_DB), len(self.levels) - 1)] += 1
            self.level_sum_db += level.rms_dbfs

    @property
    def frequent_words(self) -> list[str]:
        """Words by the number of their clips, then by the alphabet."""
        return sorted(self.words, key=lambda word: (-self.words[word].clips, word))

    def duration_histogram(self) -> tuple[np.ndarray, np.ndarray]:
        """⇒ edges (21,) in seconds, from 0 to the longest clip's duration; clips (20,)."""
        values = np.array(list(self.durations), np.float64) / _CENTI
        clips, edges = np.histogram(values, bins=_DURATION_BINS, range=(0.0, max(values, default=0.0)),
                                    weights=list(self.durations.values()))
        return edges, clips.astype(np.int64)

    def median_duration_s(self) -> float:
        values = sorted(self.durations)
        ends = np.cumsum([self.durations[value] for value in values])
        return values[int(np.searchsorted(ends, ends[-1] / 2))] / _CENTI

    def to_dict(self) -> dict[str, Any]:
        """All of it, for JSON; without a clip the figures that need one are None."""
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
            "objects_per_clip": {str(count): int(n) for count, n in enumerate(self.objects)},
            "words": words,
            "missing_objects": {
                "of": sum(word.clips for word in self.words.values()),
                "missing": sum(word.missing for word in self.words.values()),
                "never_seen_words": [word for word in words if self.words[word].missing == self.words[word].clips]},
            "sound": {
                "silent_clips": self.silent, "silent_share": round(self.silent / clips, 5) if clips else None,
                "mean_level_dbfs": round(self.level_sum_db / sounding, 2) if sounding else None,
                "level_histogram": {f"{LOWEST_DBFS + LEVEL_BIN_DB * i:g}": int(n) for i, n in enumerate(self.levels)}},
            "labels": dict(self.labels.most_common()),
        }
