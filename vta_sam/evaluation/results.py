"""Results of an evaluation as values, as tables for a terminal, and as files."""

from __future__ import annotations

import csv
import io
import json
import os
import sys
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any, TypeGuard

import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure as Picture
from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table
from rich.text import Text

from ..metrics.intervals import Interval
from ..plots.clip_pictures import COLOURS
from ..runtime.errors import InputError
from ..runtime.files import atomic_path, printable, temporary_beside, write_fault, write_text, writing_to
from ..runtime.work_plan import Deed, Item, Plan
from .metric import Metric

FORMAT = 1
MOST_SILENT = 0.05  # a system with more silent clips than this is marked, and never best


@dataclass(frozen=True)
class Figure:
    """One figure of one system. score: None ⇒ missing, and ``reason`` says why. control: the same sounds against a
    fixed derangement of the truth; score_minus_control: their paired difference; ceiling: the true sound through VAE
    and vocoder. detail: numbers that belong to it (dimensions, rows, splits). note: a caution on it."""

    score: Interval | None
    control: Interval | None = None
    score_minus_control: Interval | None = None
    ceiling: Interval | None = None
    reason: str = ""
    detail: dict[str, float] = field(default_factory=dict)
    note: str = ""


@dataclass
class ClipScores:
    """One clip of one system. values: {metric key: mean over its samples; None ⇒ not defined}. onsets_s: of its first
    sample. silent: all of its samples are. notes: in words (padded, stereo, …)."""

    values: dict[str, float | None]
    onsets_s: list[float]
    silent: bool
    notes: list[str] = field(default_factory=list)


@dataclass
class SystemResult:
    """One system. figures: {metric key: Figure}; clips: {id: ClipScores}; samples: sounds in all; silent_share: of its
    sounds under clips that are not silent; padded: sounds with silence appended; bad: {file name: sentence} of skipped
    files; unmatched: files that belong to no clip; absent: ids without a sound."""

    name: str
    figures: dict[str, Figure]
    clips: dict[str, ClipScores]
    samples: int
    silent_share: Interval
    padded: int = 0
    bad: dict[str, str] = field(default_factory=dict)
    unmatched: list[str] = field(default_factory=list)
    absent: list[str] = field(default_factory=list)

    @property
    def ranked(self) -> bool:
        """Whether it may be best: no more than 5 % of its clips are silent."""
        return not self.silent_share.mean > MOST_SILENT


@dataclass
class Evaluation:
    """Systems on the same clips. metrics: in the order to be shown. clips: ids. differences: {"A − B": {metric key:
    Interval}}, paired over clips. best: {metric key: system}, only where every paired difference to another ranked
    system excludes 0. reference: name of the true sound among ``systems``, if it was evaluated too; it is never ranked.
    missing: {metric key or backbone: why it could not be computed}. notes: sentences that figures can't be read
    without."""

    metrics: list[Metric]
    systems: dict[str, SystemResult]
    clips: list[str]
    differences: dict[str, dict[str, Interval]] = field(default_factory=dict)
    best: dict[str, str] = field(default_factory=dict)
    reference: str | None = None
    missing: dict[str, str] = field(default_factory=dict)
    provenance: dict[str, Any] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)

    def save(self, path: Path) -> None:
        """Write JSON; NaN becomes null. Beside every figure and difference stand its metric's unit, direction and
        version."""
        content = {"format": FORMAT, "columns": [metric.described() for metric in self.metrics],
                   **asdict(replace(self, metrics=[]))}
        del content["metrics"]
        tables = [system["figures"] for system in content["systems"].values()] + [*content["differences"].values()]
        for metric in self.metrics:
            for figures in tables:
                if metric.key in figures:
                    figures[metric.key] |= metric.reading
        write_text(path, json.dumps(plain(content), indent=1, ensure_ascii=False, allow_nan=False) + "\n")


def plain(value: Any) -> Any:
    """NaN ⇒ None, numpy numbers ⇒ Python's, down through dicts and lists."""
    if isinstance(value, dict):
        return {str(key): plain(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [plain(item) for item in value]
    if hasattr(value, "item") and not isinstance(value, (str, bytes)):
        value = value.item()
    return None if isinstance(value, float) and value != value else value


_ACROSS, _PANEL_IN, _ROW, _HEAD = 3, 4.2, 0.30, 0.85  # panels side by side; inches


def figures_picture(path: Path, evaluation: Evaluation) -> bool:
    """Write a PNG with a panel per figure: a dot and a bar per system, grey for the control, a line for the ceiling.
    ⇒ False, and no file, where there is nothing to draw."""
    systems = evaluation.systems
    drawn = [metric for metric in evaluation.metrics
             if any(_defined(system.figures[metric.key].score) for system in systems.values())]
    if not drawn:
        return False
    down = -(-len(drawn) // _ACROSS)
    figure = Picture(figsize=(_PANEL_IN * _ACROSS, down * (_HEAD + _ROW * len(systems))), dpi=110, layout="constrained")
    FigureCanvasAgg(figure)
    panels = figure.subplots(down, _ACROSS, squeeze=False)
    for axes, metric in zip(panels.flat, drawn):
        _panel(axes, evaluation, metric)
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


def _panel(axes: Axes, evaluation: Evaluation, metric: Metric) -> None:
    names = list(evaluation.systems)
    for y, (name, system) in enumerate(evaluation.systems.items()):
        figure = system.figures[metric.key]
        if _defined(figure.control):
            _bar(axes, y + 0.22, figure.control, "0.65", 3)
        if _defined(figure.score):
            marked = evaluation.best.get(metric.key) == name
            _bar(axes, y, figure.score, COLOURS[y % len(COLOURS)], 6, "*" if marked else "o")
        if _defined(figure.ceiling):
            axes.plot([figure.ceiling.mean] * 2, [y - 0.35, y + 0.35], color="0.3", linewidth=1, linestyle=":")
    axes.set(ylim=(len(names) - 0.5, -0.5), yticks=range(len(names)))
    axes.set_yticklabels([name if len(name) <= 22 else name[:21] + "…" for name in names], fontsize=8,
                         parse_math=False)
    unit = f" ({metric.unit})" if metric.unit else ""
    axes.set_title(f"{metric.title}{unit} {metric.arrow}", fontsize=9, parse_math=False)
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


_WIDTH = 160  # characters of a log's line
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
    for metric in evaluation.metrics:
        scores = [system.figures[metric.key].score for system in systems.values()]
        if any(score is not None for score in scores):
            cells = [_cell(score, metric, len(systems) > _SIDE_BY_SIDE, evaluation.best.get(metric.key) == name)
                     for name, score in zip(systems, scores)]
            table.add_row(metric.heading, *cells)
    table.add_section()
    table.add_row("sounds", *(_sounds(system) for system in systems.values()))
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
    for metric in evaluation.metrics:
        cells = [rows.get(metric.key) for rows in evaluation.differences.values()]
        if any(cells):
            marked = [bool(cell and cell.beyond_zero) for cell in cells]
            table.add_row(metric.heading, *(_cell(cell, metric, False, mark) for cell, mark in zip(cells, marked)))
    return table


def missing_lines(evaluation: Evaluation) -> list[str]:
    """The notes, and the metrics that could not be computed: a sentence for each reason."""
    titles = {metric.key: metric.title for metric in evaluation.metrics}
    reasons: dict[str, list[str]] = {}
    for key, reason in evaluation.missing.items():
        reasons.setdefault(reason, []).append(titles.get(key, key))
    return [*(f"note: {note}" for note in evaluation.notes),
            *(f"missing: {', '.join(names)}: {reason}" for reason, names in reasons.items())]


def write_clips(path: Path, evaluation: Evaluation) -> None:
    """A csv with a row per system and clip: its values, silence, notes."""
    keys = [metric.key for metric in evaluation.metrics if metric.scope == "clip"]
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(["system", "id", *keys, "silent", "notes"])
    for system in evaluation.systems.values():
        for clip, scores in system.clips.items():
            values = ["" if scores.values.get(key) is None else f"{scores.values[key]:.6g}" for key in keys]
            writer.writerow([system.name, clip, *values, int(scores.silent), "; ".join(scores.notes)])
    write_text(path, text.getvalue())


def shown(interval: Interval, metric: Metric) -> tuple[str, str]:
    """An interval ⇒ its mean and its brackets, in the metric's decimals; no brackets where it has no ends."""
    mean, low, high = (f"{value:.{metric.decimals}f}" for value in (interval.mean, interval.low, interval.high))
    return mean, "" if np.isnan(interval.low) else f"[{low}, {high}]"


def _one(evaluation: Evaluation, system: SystemResult) -> Table:
    table = _table(f"{system.name}: {len(evaluation.clips)} clips, mean [95 % interval]")
    parts = ("score", "control", "score_minus_control", "ceiling")
    titles = ("score", "control", "score − control", "ceiling")
    figures = {metric: system.figures[metric.key] for metric in evaluation.metrics
               if system.figures[metric.key].score is not None}
    used = [i for i, part in enumerate(parts) if any(getattr(figure, part) for figure in figures.values())]
    for title in (*(titles[i] for i in used), "n"):
        table.add_column(title)
    for metric, figure in figures.items():
        assert figure.score is not None
        gone = f" ({figure.score.undefined} undefined)" if figure.score.undefined else ""
        cells = (_cell(getattr(figure, parts[i]), metric, False, False) for i in used)
        table.add_row(metric.heading, *cells, f"{figure.score.n}{gone}")
    table.add_section()
    table.add_row("sounds", _sounds(system))
    table.add_row("silent clips", _share(system))
    table.add_row("padded, skipped, unmatched, absent", _counts(system))
    return table


def _table(title: str) -> Table:
    table = Table(title=title, title_justify="left", box=SIMPLE_HEAD, pad_edge=False)
    table.add_column("figure", min_width=24)
    return table


def _cell(interval: Interval | None, metric: Metric, below: bool, marked: bool) -> Text:
    if interval is None or not interval.n:
        return Text("–")
    mean, brackets = shown(interval, metric)
    text = f"{mean}{'*' if marked else ''}{chr(10) if below else ' '}{brackets}".rstrip()
    return Text(text, style="bold" if marked and interval.seeds > 1 else "")  # one sample tells of no other


def _share(system: SystemResult) -> Text:
    share = system.silent_share
    if not share.n:
        return Text("–")
    over = f" more than {MOST_SILENT:.0%}: not ranked" if not system.ranked else ""
    return Text(f"{share.mean:.1%}{over}", style="" if system.ranked else "red")


def _sounds(system: SystemResult) -> str:
    return f"{system.samples} of {len(system.clips)} clips"


def _counts(system: SystemResult) -> str:
    return f"{system.padded}, {len(system.bad)}, {len(system.unmatched)}, {len(system.absent)}"


EVALUATION_NAME, CLIPS_NAME, PICTURE_NAME = "evaluation.json", "clips.csv", "figures.png"
_SHOWN = 5  # files that a list of bad ones names
_BYTES_OF_CLIP, _BYTES_OF_PICTURE = 3_000, 150_000  # of the reports: a clip of a system, and the picture, about


def plan_report(out: Path, title: str, clips: int, systems: int, facts: Sequence[tuple[str, str]] = (),
                more: Sequence[Item] = ()) -> Plan:
    """What :func:`write_evaluation` writes; nothing is written here.

    Args:
        out: folder of the reports.
        title: of the plan.
        clips: number of them.
        systems: number of them.
        facts: further rows of the plan.
        more: items that are written beside.

    Raises:
        InputError: ``out`` is a file.
    """
    if out.exists() and not out.is_dir():
        raise InputError(f"out={out} is a file; name a folder to write to")
    sizes = {EVALUATION_NAME: clips * systems * _BYTES_OF_CLIP, CLIPS_NAME: None, PICTURE_NAME: _BYTES_OF_PICTURE}
    items = [Item(name, Deed.REPLACE if (out / name).exists() else Deed.MAKE, size=size)
             for name, size in sizes.items()]
    return Plan(title, [*items, *more], out, facts=facts)


def write_evaluation(folder: Path, evaluation: Evaluation, faults: list[str] | None = None) -> list[Path]:
    """evaluation.json, clips.csv and, where there is something to draw, figures.png ⇒ the paths written. They replace
    those of a former evaluation together.

    Args:
        folder: to write to.
        evaluation: of the reports.
        faults: gets a sentence where the picture can't be drawn; None: that is raised.

    Raises:
        EndOfRun: the disk is full, or the folder can't be written to.
    """
    names, picture = [EVALUATION_NAME, CLIPS_NAME], folder / PICTURE_NAME
    with writing_to(folder), ExitStack() as whole:
        temporary = [whole.enter_context(atomic_path(folder / name)) for name in names]
        evaluation.save(temporary[0])
        write_clips(temporary[1], evaluation)
        drawn = temporary_beside(picture)
        if _is_drawn(drawn, folder, evaluation, faults):
            os.replace(drawn, picture)
            names.append(PICTURE_NAME)
        else:
            picture.unlink(missing_ok=True)  # of a former evaluation
    return [folder / name for name in names]


def _is_drawn(path: Path, folder: Path, evaluation: Evaluation, faults: list[str] | None) -> bool:
    try:
        return figures_picture(path, evaluation)
    except Exception as error:  # of any kind that a drawing library may raise
        if faults is None or write_fault(error, folder):
            raise
        faults.append(printable(f"{PICTURE_NAME} could not be drawn ({error})"))
        return False


def bad_files(evaluation: Evaluation) -> dict[str, str]:
    """{system or true sound, and file: why it could not be used} of the files that were left out."""
    found = {f"true sound: {name}": why
             for name, why in evaluation.provenance.get("bad_true_sounds_and_pictures", {}).items()}
    return found | {f"{name}: {file}": why for name, system in evaluation.systems.items()
                    for file, why in system.bad.items()}


def end_of_report(evaluation: Evaluation, faults: Sequence[str]) -> int:
    """Print to stderr what is missing from a report ⇒ exit status: 0: nothing; 1: some of it.

    Args:
        evaluation: that was written.
        faults: sentences on what could not be drawn or shown.
    """
    bad = [f"{name}: {why}" for name, why in bad_files(evaluation).items()]
    lines = [*faults]
    if bad:
        more = f"\n  and {len(bad) - _SHOWN} more, in {EVALUATION_NAME}" if len(bad) > _SHOWN else ""
        lines.append(f"{len(bad)} files could not be used, and are left out:\n  " + "\n  ".join(bad[:_SHOWN]) + more)
    if lines:
        print(printable("\n".join(lines)), file=sys.stderr)
    return 1 if lines else 0
