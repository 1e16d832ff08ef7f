"""An evaluation as the page shows it: five headline figures as dots, and tables of every number with its interval; a
missing number has its reason."""

from __future__ import annotations

import json
import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from itertools import compress, groupby
from typing import Any

from ...metrics.intervals import Interval
from ..metric import Metric
from ..results import ClipScores, Evaluation, Figure, SystemResult

UNKNOWN = "not measured"
# Keys of the figures that the picture shows, as far as they are known: of timing, of what sounds, of quality
HEADLINES = ("envelope_correlation", "event_f1", "sync_probability", "onset_f1", "sound_class", "frechet_*", "kl_*",
             "av_align_matched", "onset_ap_matched", "inception_*", "log_spectral_distance_db")
MOST_HEADLINES = 5


@dataclass(frozen=True)
class Number:
    """One interval in words. mean: empty ⇒ there is none, and ``missing`` says why; basis: the number of values."""

    mean: str = ""
    interval: str = ""
    basis: str = ""
    missing: str = ""


@dataclass(frozen=True)
class Entry:
    """One cell of the table of figures. beside: (label, Number) of its control, the difference to that, and its
    ceiling."""

    score: Number
    beside: list[tuple[str, Number]]
    best: bool


@dataclass(frozen=True)
class Dot:
    """One system in a panel of the picture. left, right, at: of its interval and its mean, in per cent of the panel's
    axis; reference: it is the true sound; score: the same in words, without places where there is none."""

    name: str
    reference: bool
    best: bool
    score: Number
    left: float = 0.0
    right: float = 0.0
    at: float | None = None


@dataclass(frozen=True)
class Panel:
    """One headline figure: a dot per system. column: its number in the table of figures; low, high: the ends of its
    axis; zero: its place in per cent, None: it lies beyond the ends."""

    metric: Metric
    column: int
    dots: list[Dot]
    low: str
    high: str
    zero: float | None


@dataclass(frozen=True)
class Row:
    """One system's line of the table of figures. remarks: shown under its name."""

    name: str
    reference: bool
    remarks: list[str]
    entries: list[Entry]


def number(interval: Interval, decimals: int) -> Number:
    """⇒ an interval in words. Where there is no value it is missing, never 0; of one value there is no interval."""
    gone = f"{interval.undefined} undefined" if interval.undefined else ""
    if not interval.n or math.isnan(interval.mean):
        return Number(missing=f"not defined ({gone})" if gone else UNKNOWN)
    known = interval.n > 1 and not (math.isnan(interval.low) or math.isnan(interval.high))
    bounds = f"{decimal(interval.low, decimals)} to {decimal(interval.high, decimals)}" if known else "no interval"
    return Number(decimal(interval.mean, decimals), bounds, f"n = {interval.n}" + (f", {gone}" if gone else ""))


def decimal(value: float, decimals: int) -> str:
    """A number with a true minus, and without one where it rounds to zero."""
    shown = f"{value:.{decimals}f}"
    return shown.lstrip("-") if float(shown) == 0 else shown.replace("-", "−")


def shown_metrics(evaluation: Evaluation) -> list[Metric]:
    """⇒ the metrics that some system has a figure of, in order."""
    return [metric for metric in evaluation.metrics
            if any((figure := system.figures.get(metric.key)) is not None and figure.score is not None
                   for system in evaluation.systems.values())]


def groups(metrics: list[Metric]) -> list[tuple[str, int]]:
    """Metrics in order ⇒ [(name of a group, number of successive metrics that belong to it)]."""
    return [(name, len(list(members))) for name, members in groupby(metrics, lambda metric: metric.group)]


def rows(evaluation: Evaluation) -> list[Row]:
    """⇒ the lines of the table of figures, the true sound first."""
    systems = sorted(evaluation.systems.items(), key=lambda item: item[0] != evaluation.reference)
    found = []
    for name, system in systems:
        reference = name == evaluation.reference
        entries = [_entry(evaluation, name, system, metric) for metric in shown_metrics(evaluation)]
        found.append(Row(name, reference, _remarks(system, reference), entries))
    return found


def headlines(evaluation: Evaluation) -> list[Panel]:
    """⇒ the panels of the picture: figures of :data:`HEADLINES` that the systems have, one for each pattern, five at
    most. The true sound stands in those that it isn't perfect in by definition."""
    metrics, ordered = shown_metrics(evaluation), rows(evaluation)
    found = [next((i for i, metric in enumerate(metrics) if fnmatchcase(metric.key, pattern)), None)
             for pattern in HEADLINES]
    chosen = [i for i in found if i is not None][:MOST_HEADLINES]
    return [_panel(evaluation, metrics[i], i, ordered) for i in sorted(chosen)]


def _panel(evaluation: Evaluation, metric: Metric, place_in_table: int, ordered: Sequence[Row]) -> Panel:
    entries = [row.entries[place_in_table] for row in ordered]
    scores = [evaluation.systems[row.name].figures[metric.key].score if entry.score.mean else None
              for row, entry in zip(ordered, entries)]
    if any(score is not None and not row.reference for row, score in zip(ordered, scores)):
        shown = [not (row.reference and score is not None and _same_words(metric, score.low, score.high))
                 for row, score in zip(ordered, scores)]
        ordered, entries = list(compress(ordered, shown)), list(compress(entries, shown))
        scores = list(compress(scores, shown))
    reach = [(score, *_ends(score)) for score in scores if score is not None]
    low, high = min(left for _, left, _ in reach), max(right for *_, right in reach)
    span = high - low or 1.0

    def place(value: float) -> float:
        return round(100 * (value - low) / span, 2)

    dots = []
    for row, entry, score in zip(ordered, entries, scores):
        if score is None:
            dots.append(Dot(row.name, row.reference, False, entry.score))
        else:
            left, right = map(place, _ends(score))
            dots.append(Dot(row.name, row.reference, entry.best, entry.score, left, right, place(score.mean)))
    return Panel(metric, place_in_table + 1, dots, decimal(low, metric.decimals), decimal(high, metric.decimals),
                 place(0.0) if low < 0 < high and 1 < place(0.0) < 99 else None)


def _same_words(metric: Metric, low: float, high: float) -> bool:
    return decimal(low, metric.decimals) == decimal(high, metric.decimals)


def _ends(score: Interval) -> tuple[float, float]:
    """⇒ the ends of an interval; the mean where it has none."""
    if math.isnan(score.low) or math.isnan(score.high):
        return score.mean, score.mean
    return min(score.low, score.mean), max(score.high, score.mean)


def usual_basis(shown: Sequence[Row]) -> str:
    """⇒ the number of values that most numbers have; a cell says its own only where it differs."""
    counted = Counter(entry.score.basis for row in shown for entry in row.entries if entry.score.basis)
    return counted.most_common(1)[0][0] if counted else ""


def missing(evaluation: Evaluation) -> list[tuple[str, list[str]]]:
    """⇒ [(reason, titles of the metrics)] of the metrics that no system has a figure of."""
    shown = {metric.key for metric in shown_metrics(evaluation)}
    titles = {metric.key: metric.title for metric in evaluation.metrics}
    reasons = {key: reason for key, reason in evaluation.missing.items() if key not in shown}
    for metric in evaluation.metrics:
        if metric.key not in shown:
            given = [figure.reason for system in evaluation.systems.values()
                     if (figure := system.figures.get(metric.key)) is not None and figure.reason]
            reasons.setdefault(metric.key, given[0] if given else UNKNOWN)
    explained: dict[str, list[str]] = {}
    for key, reason in reasons.items():
        explained.setdefault(reason, []).append(titles.get(key, key))
    return list(explained.items())


def differences(evaluation: Evaluation) -> list[tuple[str, list[tuple[Number, bool]]]]:
    """⇒ [(pair, [(difference, whether its interval excludes zero)])], in the order of :func:`shown_metrics`."""
    found = []
    for pair, intervals in evaluation.differences.items():
        numbers = []
        for metric in shown_metrics(evaluation):
            interval = intervals.get(metric.key)
            if interval is None:
                numbers.append((Number(missing=UNKNOWN), False))
            else:
                apart = interval.n > 1 and (interval.low > 0 or interval.high < 0)
                numbers.append((number(interval, metric.decimals), apart))
        found.append((pair, numbers))
    return found


def clip_scores(metrics: list[Metric], scores: ClipScores | None) -> list[tuple[str, str]]:
    """⇒ [(title, value)] of one clip of one system, of the metrics that have a value per clip."""
    if scores is None:
        return []
    found = []
    for metric in metrics:
        if metric.scope == "clip" and metric.key in scores.values:
            value = scores.values[metric.key]
            shown = "not defined" if value is None or math.isnan(value) else decimal(value, metric.decimals)
            unit = metric.unit if shown != "not defined" else ""
            found.append((f"{metric.title} {metric.arrow}".rstrip(), f"{shown} {unit}".rstrip()))
    return found


def provenance(evaluation: Evaluation) -> list[tuple[str, str]]:
    """⇒ [(dotted name, value)] of the provenance's leaves."""
    return _leaves("", evaluation.provenance) if evaluation.provenance else []


def _leaves(prefix: str, value: Any) -> list[tuple[str, str]]:
    if isinstance(value, dict) and value:
        return [leaf for key, item in value.items() for leaf in _leaves(f"{prefix}.{key}".lstrip("."), item)]
    return [(prefix, value if isinstance(value, str) else json.dumps(value, ensure_ascii=False, default=str))]


def _entry(evaluation: Evaluation, name: str, system: SystemResult, metric: Metric) -> Entry:
    figure = system.figures.get(metric.key)
    if figure is None or figure.score is None:
        reason = (figure.reason if figure is not None else "") or evaluation.missing.get(metric.key) or UNKNOWN
        return Entry(Number(missing=reason), [], False)
    score = number(figure.score, metric.decimals)
    best = evaluation.best.get(metric.key) == name and system.ranked and name != evaluation.reference
    return Entry(score, _beside(figure, metric), best and bool(score.mean))


def _beside(figure: Figure, metric: Metric) -> list[tuple[str, Number]]:
    return [(label, number(interval, metric.decimals)) for label, interval in (
        ("control", figure.control), ("minus control", figure.score_minus_control), ("ceiling", figure.ceiling),
    ) if interval is not None]


def _remarks(system: SystemResult, reference: bool) -> list[str]:
    found = ["true sound, never ranked"] if reference else []
    if not system.ranked and not reference:
        found.append(f"not ranked: {100 * system.silent_share.mean:.0f} % of its clips are silent")
    elif system.silent_share.mean > 0:
        found.append(f"{100 * system.silent_share.mean:.1f} % of its clips are silent")
    return found
