"""Runs beside each other as a picture: a dot and a 95 % interval per run and figure."""

from __future__ import annotations

from pathlib import Path

from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from ..atomic import atomic_path
from .sweep import FIGURES, Finished

_ROW_INCHES = 0.32


def runs_picture(path: Path, runs: list[Finished]) -> None:
    """runs: from the best to the worst; drawn from top to bottom."""
    shown = [name for name in FIGURES if any(name in run.figures for run in runs)]
    figure = Figure(figsize=(3.4 * len(shown) + 2.5, 1.1 + _ROW_INCHES * len(runs)), layout="constrained")
    FigureCanvasAgg(figure)
    panels = figure.subplots(1, len(shown), sharey=True, squeeze=False)[0]
    for axes, name in zip(panels, shown):
        for y, run in enumerate(runs):
            interval = run.figures.get(name)
            if interval is not None:
                axes.plot([interval.low, interval.high], [y, y], color="#4477aa", linewidth=2, solid_capstyle="round")
                axes.plot(interval.mean, y, "o", color="#4477aa", markersize=6)
        axes.set_title(name.replace("_", " "), fontsize=10)
        axes.grid(axis="x", color="0.9")
        axes.set_axisbelow(True)
        for side in ("top", "right", "left"):
            axes.spines[side].set_visible(False)
        axes.tick_params(axis="y", length=0)
    panels[0].set_yticks(range(len(runs)), [run.name for run in runs], fontsize=8)
    panels[0].set_ylim(len(runs) - 0.4, -0.6)
    with atomic_path(path) as temporary:
        figure.savefig(temporary, dpi=110, format="png")
