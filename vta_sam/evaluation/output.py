"""An evaluation as a picture: every figure's mean and interval, system by system."""

from __future__ import annotations

import csv
import io
from pathlib import Path
from typing import TypeGuard

import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table
from rich.text import Text

from ..metrics.intervals import Interval
from ..plots.panels import COLOURS
from ..runtime.files import atomic_path, write_text
from .columns import Column
from .results import MOST_SILENT, Evaluation, SystemResult

# MERGED-DOC """An evaluation as tables for a terminal and as rows for a csv."""
# MERGED-DOC """The files that an evaluation leaves behind."""


_ACROSS, _PANEL_IN, _ROW, _HEAD = 3, 4.2, 0.30, 0.85  # panels side by side; inches


def figures_picture(path: Path, evaluation: Evaluation) -> bool:
    """Write a PNG with a panel per figure: a dot and a bar per system, grey for the control, a line for the ceiling.
    ⇒ False, and no file, where there is nothing to draw."""
    systems = evaluation.systems
    drawn = [column for column in evaluation.columns
             if any(_defined(system.figures[column.key].score) for system in systems.values())]
    if not drawn:
        return False
    down = -(-len(drawn) // _ACROSS)
    figure = Figure(figsize=(_PANEL_IN * _ACROSS, down * (_HEAD + _ROW * len(systems))), dpi=110, layout="constrained")
    FigureCanvasAgg(figure)
    panels = figure.subplots(down, _ACROSS, squeeze=False)
    for axes, column in zip(panels.flat, drawn):
        _panel(axes, evaluation, column)
    for axes in panels.flat[len(drawn):]:
        axes.set_axis_off()
    for row in panels:
        for axes in row[1:]:
            axes.tick_params(labelleft=False)
    figure.supxlabel("mean and 95 % interval over clips · small, grey: against other clips' truth (control) · dotted: "
                     "ceiling · star: better than every other ranked system", fontsize=8)
    with atomic_path(path) as temporary:
        figure.savefig(temporary, format="png", metadata={"Software": None})
    return True


def _panel(axes: Axes, evaluation: Evaluation, column: Column) -> None:
    names = list(evaluation.systems)
    for y, (name, system) in enumerate(evaluation.systems.items()):
        figure = system.figures[column.key]
        if _defined(figure.control):
            _bar(axes, y + 0.22, figure.control, "0.65", 3)
        if _defined(figure.score):
            marked = evaluation.best.get(column.key) == name
            _bar(axes, y, figure.score, COLOURS[y % len(COLOURS)], 6, "*" if marked else "o")
        if _defined(figure.ceiling):
            axes.plot([figure.ceiling.mean] * 2, [y - 0.35, y + 0.35], color="0.3", linewidth=1, linestyle=":")
    axes.set(ylim=(len(names) - 0.5, -0.5), yticks=range(len(names)))
    axes.set_yticklabels([name if len(name) <= 22 else name[:21] + "…" for name in names], fontsize=8,
                         parse_math=False)
    unit = f" ({column.unit})" if column.unit else ""
    axes.set_title(f"{column.title}{unit} {column.arrow}", fontsize=9, parse_math=False)
    axes.tick_params(axis="x", labelsize=8)
    axes.grid(axis="x", color="0.92", linewidth=0.8)
    axes.set_axisbelow(True)
    axes.spines[["top", "right", "left"]].set_visible(False)
    axes.tick_params(axis="y", length=0)


def _bar(axes: Axes, y: float, interval: Interval, colour: str, size: float, marker: str = "o") -> None:
    axes.plot([interval.low, interval.high], [y, y], color=colour, linewidth=1.6, solid_capstyle="butt")
    axes.plot([interval.mean], [y], marker=marker, markersize=size + 4 * (marker == "*"), color=colour)


def _defined(interval: Interval | None) -> TypeGuard[Interval]:
    return interval is not None and interval.n > 0


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


EVALUATION_NAME = "evaluation.json"


def write_evaluation(folder: Path, evaluation: Evaluation) -> list[Path]:
    """evaluation.json, clips.csv and, where there is something to draw, figures.png ⇒ what was written."""
    written = [folder / EVALUATION_NAME, folder / "clips.csv"]
    evaluation.save(written[0])
    write_clips(written[1], evaluation)
    if figures_picture(folder / "figures.png", evaluation):
        written.append(folder / "figures.png")
    return written
