"""From ratings to mean opinion scores: screening, intervals over raters and clips, differences, agreement; and their
report: tables for a terminal, json and csv, and a plot."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import krippendorff
import numpy as np
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from rich.table import Table

from ...metrics.intervals import pigeonhole_interval
from ...plots.clip_pictures import COLOURS
from ...runtime.files import atomic_path, write_text
from ...runtime.work_plan import Deed, Item, Plan
from .answers import HEADPHONES_PASSED, Rating, Session
from .study_files import HIDDEN, LOW_PASSED, QUESTIONS, REFERENCE, SHIFTED

ANCHOR = {"quality": LOW_PASSED, "alignment": SHIFTED}  # the anchor that the hidden reference has to beat


@dataclass(frozen=True)
class Screening:
    """When a rater doesn't count, after ITU-R BS.1534's post-screening: the hidden reference is rated below
    ``least_reference`` on average, or below the question's own anchor of the same clip in more than ``most_reversed``
    of the cases (and more than once, since one slip is human). Either question decides."""

    least_reference: float = 3.5
    most_reversed: float = 0.15


@dataclass(frozen=True)
class Score:
    """Mean opinion score of a condition: mean, 95 % interval, and from how many ratings, raters and clips."""

    mean: float
    low: float
    high: float
    ratings: int
    raters: int
    clips: int


@dataclass
class Analysis:
    """Results of a listening test.

    Attributes:
        scores: {question: {condition: Score}}.
        differences: {question: {"A − B": Score}} between systems, over pairs of one rater and one clip.
        unscreened: scores of all raters.
        excluded: {rater: reason}.
        agreement: {question: Krippendorff's alpha for ordinal data, None where it is not defined}.
        raters: number of raters.
        complete: raters with a complete file.
        not_headphones: raters who failed the check of headphones.
        hasty: share of answers before the clip's end, or within a second.
        refused: {file: reason}.
    """

    scores: dict[str, dict[str, Score]]
    differences: dict[str, dict[str, Score]]
    unscreened: dict[str, dict[str, Score]]
    excluded: dict[str, str]
    agreement: dict[str, float | None]
    raters: int
    complete: int
    not_headphones: list[str]
    hasty: float
    refused: dict[str, str] = field(default_factory=dict)


def analyse(sessions: Sequence[Session], systems: Sequence[str], screening: Screening = Screening(), seed: int = 0,
            resamples: int = 2000) -> Analysis:
    """Sessions ⇒ everything that can be said of the systems."""
    ratings = [rating for session in sessions for rating in session.ratings]
    excluded = {session.rater: why for session in sessions if (why := unreliable(session.ratings, screening))}
    kept = [rating for rating in ratings if rating.rater not in excluded]
    conditions = [*systems, *HIDDEN]
    return Analysis(
        {question: _scores(kept, question, conditions, seed, resamples) for question in QUESTIONS},
        {question: _differences(kept, question, systems, seed, resamples) for question in QUESTIONS},
        {question: _scores(ratings, question, conditions, seed, resamples) for question in QUESTIONS},
        excluded,
        {question: agreement([r for r in kept if r.question == question]) for question in QUESTIONS},
        len(sessions), sum(session.complete for session in sessions),
        [session.rater for session in sessions if session.headphones < HEADPHONES_PASSED],
        float(np.mean([r.plays < 1 or r.seconds < 1 for r in ratings])) if ratings else 0.0,
    )


def unreliable(ratings: Sequence[Rating], rule: Screening) -> str:
    """Why a rater doesn't count, or ''."""
    for question in QUESTIONS:
        mine = [r for r in ratings if r.question == question]
        reference = {r.item.clip: r.value for r in mine if r.item.condition == REFERENCE}
        anchor = {r.item.clip: r.value for r in mine if r.item.condition == ANCHOR[question]}
        if reference and np.mean(list(reference.values())) < rule.least_reference:
            return f"{question}: rated the hidden reference {np.mean(list(reference.values())):.2f} on average"
        both = [clip for clip in reference if clip in anchor]
        slips = sum(reference[clip] < anchor[clip] for clip in both)
        if slips > max(1, rule.most_reversed * len(both)):
            return f"{question}: rated the hidden reference below the anchor in {slips} of {len(both)} clips"
    return ""


def agreement(ratings: Sequence[Rating]) -> float | None:
    """Krippendorff's alpha for ordinal data of all raters over all stimuli; None with fewer than two raters, or where
    all answers are the same."""
    raters = sorted({r.rater for r in ratings})
    tokens = sorted({r.item.token for r in ratings})
    if len(raters) < 2 or len({r.value for r in ratings}) < 2:
        return None
    table = np.full((len(raters), len(tokens)), np.nan)
    for r in ratings:
        table[raters.index(r.rater), tokens.index(r.item.token)] = r.value
    if (np.isfinite(table).sum(axis=0) < 2).all():
        return None
    return float(krippendorff.alpha(reliability_data=table, level_of_measurement="ordinal"))


def _table(ratings: Sequence[Rating], question: str, condition: str, raters: Sequence[str],
           clips: Sequence[str]) -> np.ndarray:
    """(raters, clips) of one condition, NaN where there is no answer."""
    table = np.full((len(raters), len(clips)), np.nan)
    for r in ratings:
        if r.question == question and r.item.condition == condition:
            table[raters.index(r.rater), clips.index(r.item.clip)] = r.value
    return table


def _axes(ratings: Sequence[Rating]) -> tuple[list[str], list[str]]:
    return sorted({r.rater for r in ratings}, key=int), sorted({r.item.clip for r in ratings})


def _scores(ratings: Sequence[Rating], question: str, conditions: Sequence[str], seed: int,
            resamples: int) -> dict[str, Score]:
    axes = _axes(ratings)
    tables = {name: _table(ratings, question, name, *axes) for name in conditions}
    return {name: _score(table, seed, resamples) for name, table in tables.items() if np.isfinite(table).any()}


def _differences(ratings: Sequence[Rating], question: str, systems: Sequence[str], seed: int,
                 resamples: int) -> dict[str, Score]:
    axes, found = _axes(ratings), {}
    tables = {name: _table(ratings, question, name, *axes) for name in systems}
    for i, first in enumerate(systems):
        for second in systems[i + 1:]:
            table = tables[first] - tables[second]
            if np.isfinite(table).any():
                found[f"{first} − {second}"] = _score(table, seed, resamples)
    return found


def _score(table: np.ndarray, seed: int, resamples: int) -> Score:
    found, answered = pigeonhole_interval(table, seed, resamples), np.isfinite(table)
    return Score(found.mean, found.low, found.high, found.n, int(answered.any(1).sum()), int(answered.any(0).sum()))


def scores_table(analysis: Analysis) -> Table:
    """Mean opinion scores, a row per condition."""
    table = Table(title=f"mean opinion score [95 % interval]; {analysis.raters - len(analysis.excluded)} of "
                        f"{analysis.raters} raters counted", title_justify="left")
    for title in ("condition", *QUESTIONS, "ratings, raters, clips"):
        table.add_column(title)
    for name in dict.fromkeys(name for scores in analysis.scores.values() for name in scores):
        scores = [analysis.scores[question].get(name) for question in QUESTIONS]
        some = next(score for score in scores if score is not None)
        table.add_row(name, *(_cell(score) for score in scores), f"{some.ratings}, {some.raters}, {some.clips}")
    table.add_section()
    table.add_row("agreement (Krippendorff's α)", *("–" if (alpha := analysis.agreement[question]) is None else
                                                    f"{alpha:.2f}" for question in QUESTIONS), "")
    return table


def differences_table(analysis: Analysis) -> Table:
    """Paired differences between systems; * where the interval excludes 0."""
    table = Table(title="differences of the same raters on the same clips [95 % interval]", title_justify="left",
                  caption="* the interval excludes 0")
    for title in ("pair", *QUESTIONS):
        table.add_column(title)
    for pair in dict.fromkeys(pair for rows in analysis.differences.values() for pair in rows):
        scores = [analysis.differences[question].get(pair) for question in QUESTIONS]
        table.add_row(pair, *(_cell(score, "+") + ("*" if score and score.low * score.high > 0 else "")
                              for score in scores))
    return table


def notes(analysis: Analysis) -> list[str]:
    """Sentences on excluded data and on caveats."""
    found = [f"{name}: not counted; {why}" for name, why in analysis.refused.items()]
    found += [f"rater {rater} is screened out: {why}" for rater, why in analysis.excluded.items()]
    if analysis.complete < analysis.raters:
        found.append(f"{analysis.raters - analysis.complete} raters did not finish; what they answered counts")
    if analysis.not_headphones:
        found.append(f"raters {', '.join(analysis.not_headphones)} did not pass the headphones check")
    if analysis.hasty:
        found.append(f"{analysis.hasty:.1%} of answers came within a second, or without hearing the clip to its end")
    return found


REPORT_FILES = ("results.json", "scores.csv", "scores.png")


def plan_report(folder: Path) -> Plan:
    """What :func:`write_report` writes."""
    items = [Item(name, Deed.REPLACE if (folder / name).exists() else Deed.MAKE) for name in REPORT_FILES]
    return Plan("mean opinion scores", items, folder)


def write_report(folder: Path, analysis: Analysis, screening: Screening, about: dict[str, Any]) -> list[Path]:
    """results.json, scores.csv and scores.png ⇒ their paths."""
    paths = [folder / name for name in REPORT_FILES]
    content = json.dumps({**about, "screening": asdict(screening), **asdict(analysis)})
    content = json.loads(content, parse_constant=lambda name: None)  # NaN: one answer has no interval
    write_text(paths[0], json.dumps(content, indent=1, ensure_ascii=False) + "\n")
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(["question", "condition", "mean", "low", "high", "ratings", "raters", "clips"])
    for question, scores in analysis.scores.items():
        for name, s in scores.items():
            writer.writerow([question, name, *("" if np.isnan(x) else f"{x:.4f}" for x in (s.mean, s.low, s.high)),
                             s.ratings, s.raters, s.clips])
    write_text(paths[1], text.getvalue())
    scores_picture(paths[2], analysis)
    return paths


def scores_picture(path: Path, analysis: Analysis) -> None:
    """A dot and a bar per condition, a panel per question; hidden conditions are hollow."""
    names = list(dict.fromkeys(name for scores in analysis.scores.values() for name in scores))
    figure = Figure(figsize=(9.5, 1.3 + 0.36 * max(len(names), 1)), dpi=110, layout="constrained")
    FigureCanvasAgg(figure)
    for axes, question in zip(figure.subplots(1, len(QUESTIONS), sharey=True), QUESTIONS):
        for y, name in enumerate(names):
            score = analysis.scores[question].get(name)
            if score is not None:
                hidden = name in HIDDEN
                colour = "0.4" if hidden else COLOURS[y % len(COLOURS)]
                axes.plot([score.low, score.high], [y, y], color=colour, linewidth=2)
                axes.plot([score.mean], [y], marker="o", markersize=7, color=colour,
                          markerfacecolor="white" if hidden else colour)
        axes.set(xlim=(0.9, 5.1), ylim=(len(names) - 0.5, -0.5), xticks=range(1, 6), yticks=range(len(names)))
        axes.set_yticklabels(names, parse_math=False)
        axes.set_title(question, fontsize=11)
        axes.set_xlabel("mean opinion score")
        axes.grid(axis="x", color="0.9")
        axes.spines[["top", "right"]].set_visible(False)
    with atomic_path(path) as temporary:
        figure.savefig(temporary, format="png", metadata={"Software": None})


def _cell(score: Score | None, sign: str = "") -> str:
    if score is None:
        return "–"
    bounds = "" if np.isnan(score.low) else f" [{score.low:{sign}.2f}, {score.high:{sign}.2f}]"
    return f"{score.mean:{sign}.2f}{bounds}"
