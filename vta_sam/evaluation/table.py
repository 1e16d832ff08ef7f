"""An evaluation as tables for a terminal and as rows for a csv."""

from __future__ import annotations

import csv
import io
from pathlib import Path

import numpy as np
from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table
from rich.text import Text

from ..atomic import write_text
from ..metrics.statistics import Interval
from .columns import Column
from .results import MOST_SILENT, Evaluation, SystemResult

_WIDTH = 160  # columns of a log
_SIDE_BY_SIDE = 3  # systems whose intervals stand beside their means; with more they stand below


def console() -> Console:
    """For tables: as wide as the terminal, and wide enough where the output goes to a file."""
    usual = Console()
    return usual if usual.is_terminal else Console(width=_WIDTH)


def figures_table(evaluation: Evaluation) -> Table:
    """Figures below each other. One system: its score, control and ceiling; several: a column each, the best marked."""
    systems = evaluation.systems
    if len(systems) == 1:
        return _one(evaluation, next(iter(systems.values())))
    table = _table(f"{len(evaluation.clips)} clips, mean [95 % interval]; * better than every other ranked system")
    for system in systems.values():
        table.add_column(system.name + (" (true)" if system.name == evaluation.reference else ""))
    for column in evaluation.columns:
        scores = [system.figures[column.key].score for system in systems.values()]
        if any(score is not None for score in scores):
            cells = [_cell(score, column, len(systems) > _SIDE_BY_SIDE, evaluation.best.get(column.key) == name)
                     for name, score in zip(systems, scores)]
            table.add_row(f"{column.title} {_unit(column)}", *cells)
    table.add_section()
    table.add_row("silent clips", *(_share(system) for system in systems.values()))
    table.add_row("padded, skipped, unmatched, absent", *(_counts(system) for system in systems.values()))
    return table


def differences_table(evaluation: Evaluation) -> Table | None:
    """Paired differences, a column per pair; None with fewer than two systems, or more than fit (four pairs)."""
    if not 0 < len(evaluation.differences) <= 4:
        return None
    table = _table("paired differences over the same clips, mean [95 % interval]; * it excludes 0")
    for pair in evaluation.differences:
        table.add_column(pair)
    for column in evaluation.columns:
        cells = [rows.get(column.key) for rows in evaluation.differences.values()]
        if any(cells):
            table.add_row(f"{column.title} {_unit(column)}",
                          *(_cell(cell, column, False, bool(cell and cell.low * cell.high > 0)) for cell in cells))
    return table


def missing_lines(evaluation: Evaluation) -> list[str]:
    """What could not be computed, and why: a sentence for each reason."""
    titles = {column.key: column.title for column in evaluation.columns}
    reasons: dict[str, list[str]] = {}
    for key, reason in evaluation.missing.items():
        reasons.setdefault(reason, []).append(titles.get(key, key))
    return [f"missing: {', '.join(names)}: {reason}" for reason, names in reasons.items()]


def write_clips(path: Path, evaluation: Evaluation) -> None:
    """A csv with a row per system and clip: its values, silence, notes."""
    columns = [column.key for column in evaluation.columns if column.scope == "clip"]
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(["system", "id", *columns, "silent", "notes"])
    for system in evaluation.systems.values():
        for clip, scores in system.clips.items():
            values = ["" if scores.values.get(key) is None else f"{scores.values[key]:.6g}" for key in columns]
            writer.writerow([system.name, clip, *values, int(scores.silent), "; ".join(scores.notes)])
    write_text(path, text.getvalue())


def shown(interval: Interval, column: Column) -> tuple[str, str]:
    """An interval ⇒ its mean and its brackets, in the column's decimals; no brackets where it has no ends."""
    mean, low, high = (f"{value:.{column.decimals}f}" for value in (interval.mean, interval.low, interval.high))
    return mean, "" if np.isnan(interval.low) else f"[{low}, {high}]"


def _one(evaluation: Evaluation, system: SystemResult) -> Table:
    table = _table(f"{system.name}: {len(evaluation.clips)} clips, mean [95 % interval]")
    parts = ("score", "control", "score_minus_control", "ceiling")
    titles = ("score", "control", "score − control", "ceiling")
    figures = {column: system.figures[column.key] for column in evaluation.columns
               if system.figures[column.key].score is not None}
    used = [i for i, part in enumerate(parts) if any(getattr(figure, part) for figure in figures.values())]
    for title in (*(titles[i] for i in used), "n"):
        table.add_column(title)
    for column, figure in figures.items():
        assert figure.score is not None
        gone = f" ({figure.score.undefined} undefined)" if figure.score.undefined else ""
        table.add_row(f"{column.title} {_unit(column)}",
                      *(_cell(getattr(figure, parts[i]), column, False, False) for i in used),
                      f"{figure.score.n}{gone}")
    table.add_section()
    table.add_row("silent clips", _share(system))
    table.add_row("padded, skipped, unmatched, absent", _counts(system))
    return table


def _table(title: str) -> Table:
    table = Table(title=title, title_justify="left", box=SIMPLE_HEAD, pad_edge=False)
    table.add_column("figure", min_width=24)
    return table


def _cell(interval: Interval | None, column: Column, below: bool, marked: bool) -> Text:
    if interval is None or not interval.n:
        return Text("–")
    mean, brackets = shown(interval, column)
    text = f"{mean}{'*' if marked else ''}{chr(10) if below else ' '}{brackets}".rstrip()
    return Text(text, style="bold" if marked else "")


def _unit(column: Column) -> str:
    return " ".join(filter(None, (column.arrow, column.unit and f"({column.unit})")))


def _share(system: SystemResult) -> Text:
    share = system.silent_share
    if not share.n:
        return Text("–")
    over = f" more than {MOST_SILENT:.0%}: not ranked" if not system.ranked else ""
    return Text(f"{share.mean:.1%}{over}", style="" if system.ranked else "red")


def _counts(system: SystemResult) -> str:
    return f"{system.padded}, {len(system.bad)}, {len(system.unmatched)}, {len(system.absent)}"
