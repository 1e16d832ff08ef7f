"""The figures as a page shows them: every number with what it rests on, every gap with its reason."""

from __future__ import annotations

import json
import math
from dataclasses import dataclass
from itertools import groupby
from typing import Any

from ...metrics.intervals import Interval
from ..columns import LEVEL, SOUND, TIMING, Column
from ..results import ClipScores, Evaluation, Figure, SystemResult

UNKNOWN = "not measured"
_GROUPS = {"Timing": {column.key for column in TIMING}, "Sound": {column.key for column in SOUND},
           "Level": {column.key for column in LEVEL}}
_FLOW = "av_align"  # what these keys begin with is timing too
_OTHER = "Likeness"


@dataclass(frozen=True)
class Number:
    """One interval in words. mean: empty ⇒ there is none, and missing says why; basis: how many values it rests on."""

    mean: str = ""
    interval: str = ""
    basis: str = ""
    missing: str = ""


@dataclass(frozen=True)
class Entry:
    """One cell of the table of figures. beside: (label, Number) of control, difference to it, and ceiling."""

    score: Number
    beside: list[tuple[str, Number]]
    best: bool


@dataclass(frozen=True)
class Row:
    """One system's. remarks: what its reader must know before the figures."""

    name: str
    reference: bool
    remarks: list[str]
    entries: list[Entry]


def number(interval: Interval, decimals: int) -> Number:
    """An interval as it is shown: nothing is called 0 that is not known."""
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


def shown_columns(evaluation: Evaluation) -> list[Column]:
    """The columns that some system has a figure in; of the others the page tells the reason once."""
    return [column for column in evaluation.columns
            if any((figure := system.figures.get(column.key)) is not None and figure.score is not None
                   for system in evaluation.systems.values())]


def groups(columns: list[Column]) -> list[tuple[str, int]]:
    """Columns in order ⇒ [(name of a group, how many columns in a row belong to it)]."""
    return [(name, len(list(members))) for name, members in groupby(columns, group)]


def group(column: Column) -> str:
    if column.key.startswith(_FLOW):
        return "Timing"
    return next((name for name, keys in _GROUPS.items() if column.key in keys), _OTHER)


def rows(evaluation: Evaluation) -> list[Row]:
    """The table of figures, the true sound first."""
    systems = sorted(evaluation.systems.items(), key=lambda item: item[0] != evaluation.reference)
    found = []
    for name, system in systems:
        reference = name == evaluation.reference
        entries = [_entry(evaluation, name, system, column) for column in shown_columns(evaluation)]
        found.append(Row(name, reference, _remarks(system, reference), entries))
    return found


def missing(evaluation: Evaluation) -> list[tuple[str, list[str]]]:
    """[(reason, the titles that it explains)] of what no system has a figure of."""
    shown = {column.key for column in shown_columns(evaluation)}
    titles = {column.key: column.title for column in evaluation.columns}
    reasons = {key: reason for key, reason in evaluation.missing.items() if key not in shown}
    for column in evaluation.columns:
        if column.key not in shown:
            given = [figure.reason for system in evaluation.systems.values()
                     if (figure := system.figures.get(column.key)) is not None and figure.reason]
            reasons.setdefault(column.key, given[0] if given else UNKNOWN)
    explained: dict[str, list[str]] = {}
    for key, reason in reasons.items():
        explained.setdefault(reason, []).append(titles.get(key, key))
    return list(explained.items())


def differences(evaluation: Evaluation) -> list[tuple[str, list[tuple[Number, bool]]]]:
    """[(pair, per column (difference, whether its interval excludes zero))], in the order of the columns shown."""
    found = []
    for pair, intervals in evaluation.differences.items():
        numbers = []
        for column in shown_columns(evaluation):
            interval = intervals.get(column.key)
            if interval is None:
                numbers.append((Number(missing=UNKNOWN), False))
            else:
                apart = interval.n > 1 and (interval.low > 0 or interval.high < 0)
                numbers.append((number(interval, column.decimals), apart))
        found.append((pair, numbers))
    return found


def clip_scores(columns: list[Column], scores: ClipScores | None) -> list[tuple[str, str]]:
    """[(title, value)] of one clip of one system; only what has a value per clip."""
    if scores is None:
        return []
    found = []
    for column in columns:
        if column.scope == "clip" and column.key in scores.values:
            value = scores.values[column.key]
            shown = "not defined" if value is None or math.isnan(value) else decimal(value, column.decimals)
            unit = column.unit if shown != "not defined" else ""
            found.append((f"{column.title} {column.arrow}".rstrip(), f"{shown} {unit}".rstrip()))
    return found


def provenance(evaluation: Evaluation) -> list[tuple[str, str]]:
    """[(dotted name, value)], leaves only."""
    return _leaves("", evaluation.provenance) if evaluation.provenance else []


def _leaves(prefix: str, value: Any) -> list[tuple[str, str]]:
    if isinstance(value, dict) and value:
        return [leaf for key, item in value.items() for leaf in _leaves(f"{prefix}.{key}".lstrip("."), item)]
    return [(prefix, value if isinstance(value, str) else json.dumps(value, ensure_ascii=False, default=str))]


def _entry(evaluation: Evaluation, name: str, system: SystemResult, column: Column) -> Entry:
    figure = system.figures.get(column.key)
    if figure is None or figure.score is None:
        reason = (figure.reason if figure is not None else "") or evaluation.missing.get(column.key) or UNKNOWN
        return Entry(Number(missing=reason), [], False)
    score = number(figure.score, column.decimals)
    best = evaluation.best.get(column.key) == name and system.ranked and name != evaluation.reference
    return Entry(score, _beside(figure, column), best and bool(score.mean))


def _beside(figure: Figure, column: Column) -> list[tuple[str, Number]]:
    return [(label, number(interval, column.decimals)) for label, interval in (
        ("control", figure.control), ("minus control", figure.score_minus_control), ("ceiling", figure.ceiling),
    ) if interval is not None]


def _remarks(system: SystemResult, reference: bool) -> list[str]:
    found = ["true sound, never ranked"] if reference else []
    if not system.ranked and not reference:
        found.append(f"not ranked: {100 * system.silent_share.mean:.0f} % of its clips are silent")
    elif system.silent_share.mean > 0:
        found.append(f"{100 * system.silent_share.mean:.1f} % of its clips are silent")
    return found
