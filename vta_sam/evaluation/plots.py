"""An evaluation as a picture: every figure's mean and interval, system by system."""

from __future__ import annotations

from pathlib import Path
from typing import TypeGuard

from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from ..atomic import atomic_path
from ..metrics.statistics import Interval
from ..report.panels import COLOURS
from .columns import Column
from .results import Evaluation

_ACROSS, _WIDTH, _ROW, _HEAD = 3, 4.2, 0.30, 0.85  # panels side by side; inches


def figures_picture(path: Path, evaluation: Evaluation) -> bool:
    """Write a PNG with a panel per figure: a dot and a bar per system, grey for the control, a line for the ceiling.
    ⇒ False, and no file, where there is nothing to draw."""
    systems = evaluation.systems
    drawn = [column for column in evaluation.columns
             if any(_defined(system.figures[column.key].score) for system in systems.values())]
    if not drawn:
        return False
    down = -(-len(drawn) // _ACROSS)
    figure = Figure(figsize=(_WIDTH * _ACROSS, down * (_HEAD + _ROW * len(systems))), dpi=110, layout="constrained")
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
