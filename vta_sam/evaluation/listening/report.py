"""The outcome of a listening test: tables for a terminal, json and csv, and a plot."""

from __future__ import annotations

import csv
import io
import json
from dataclasses import asdict
from pathlib import Path
from typing import Any

from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from rich.table import Table

from ...plots.clip_pictures import COLOURS
from ...runtime.files import atomic_path, write_text
from .analysis import Analysis, Score, Screening
from .study_files import HIDDEN, QUESTIONS


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


def write_report(folder: Path, analysis: Analysis, screening: Screening, about: dict[str, Any]) -> list[Path]:
    """results.json, scores.csv and scores.png ⇒ their paths."""
    paths = [folder / "results.json", folder / "scores.csv", folder / "scores.png"]
    content = {**about, "screening": asdict(screening), **asdict(analysis)}
    write_text(paths[0], json.dumps(content, indent=1, ensure_ascii=False) + "\n")
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(["question", "condition", "mean", "low", "high", "ratings", "raters", "clips"])
    for question, scores in analysis.scores.items():
        for name, s in scores.items():
            writer.writerow([question, name, *(f"{x:.4f}" for x in (s.mean, s.low, s.high)), s.ratings, s.raters,
                             s.clips])
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
    return "–" if score is None else f"{score.mean:{sign}.2f} [{score.low:{sign}.2f}, {score.high:{sign}.2f}]"
