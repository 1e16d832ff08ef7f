"""Sweeps: a wandb sweep file as a Hydra multirun, and finished runs as one table and picture."""

from __future__ import annotations

import csv
import json
import math
import re
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import product
from pathlib import Path
from typing import Any

import yaml
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from ..metrics.intervals import Interval, interval_of
from ..runtime.errors import InputError
from ..runtime.files import atomic_path
from ..runtime.typed_text import quoted
from ..runtime.work_plan import Deed, Item, Plan

SWEEPS = Path(__file__).resolve().parents[2] / "conf" / "sweep"
FIGURES = ("envelope_correlation", "onset_f1", "sound_class")
_OF_WANDB = ("${", "logger=", "name=")


@dataclass(frozen=True)
class Sweep:
    """A file of conf/sweep. parameters: {override's key: its values}. fixed: overrides of every combination."""

    name: str
    parameters: dict[str, list[Any]]
    fixed: tuple[str, ...]

    def combinations(self) -> list[list[str]]:
        """Overrides of each combination, as the command line takes them."""
        keys = list(self.parameters)
        return [[*self.fixed, *(f"{key}={_text(value)}" for key, value in zip(keys, values))]
                for values in product(*self.parameters.values())]

    def multirun(self, runs: str) -> list[str]:
        """Arguments of train.py for the whole grid, without wandb; each run is named after its varied settings."""
        swept = [f"{key}={','.join(map(_swept, values))}" for key, values in self.parameters.items()]
        return ["--multirun", f"runs={runs}", *self.fixed, *swept, "name=${hydra:job.override_dirname}"]


def read_sweep(name: str, folder: Path = SWEEPS) -> Sweep:
    """⇒ the sweep of a name.

    Raises:
        InputError: there is no such sweep, or a parameter has no list of values.
    """
    path = folder / f"{name}.yaml"
    if not path.is_file():
        raise InputError(f"there is no sweep {name!r}; there are {', '.join(p.stem for p in sorted(folder.glob('*')))}")
    content = yaml.safe_load(path.read_text(encoding="utf-8"))
    without = [key for key, given in content["parameters"].items() if not given.get("values")]
    if without:
        raise InputError(f"{path}: {without[0]} has no values; a sweep of this project lists them")
    fixed = tuple(word for word in content["command"] if not word.startswith(_OF_WANDB))
    return Sweep(name, {key: given["values"] for key, given in content["parameters"].items()}, fixed)


def _text(value: Any) -> str:
    return "null" if value is None else str(value).lower() if isinstance(value, bool) else str(value)


def _swept(value: Any) -> str:
    """A value among several: quoted, where a comma, a quote or a space would part it or change it."""
    if isinstance(value, str) and re.search(r"""[,'" ]""", value) and value[0] not in "[{":
        return quoted(value)
    return _text(value)


# ---------------------------------------------------------------------- what came out

@dataclass(frozen=True)
class Finished:
    """A finished run. varied: {setting: value} of settings that differ between runs; figures {name: Interval}."""

    name: str
    varied: dict[str, Any]
    figures: dict[str, Interval]


def finished_runs(runs: Path) -> list[Finished]:
    """⇒ every run under a folder that has its figures, best envelope correlation first.

    Raises:
        InputError: there is none.
    """
    settings, figures = {}, {}
    for path in sorted(runs.glob("*/figures.json")):
        content = json.loads(path.read_text())
        settings[path.parent.name] = {"exp": content["exp"], "seed": content["seed"], **_settings(path.parent)}
        figures[path.parent.name] = {name: interval_of(score) for name, score in _scores(content).items()
                                     if score["mean"] is not None}
    if not settings:
        raise InputError(f"{runs} holds no finished run; a run ends with {runs}/<run>/figures.json")
    keys = dict.fromkeys(key for of_run in settings.values() for key in of_run)
    varied = [key for key in keys if len({json.dumps(of_run.get(key)) for of_run in settings.values()}) > 1]
    found = [Finished(name, {key: settings[name].get(key) for key in varied}, figures[name]) for name in settings]
    return sorted(found, key=lambda run: -getattr(run.figures.get(FIGURES[0]), "mean", float("-inf")))


def _scores(figures: dict[str, Any]) -> dict[str, dict[str, Any]]:
    of = {**figures["timing"], "sound_class": figures.get("sound_class")}
    return {name: of[name]["score"] for name in FIGURES if of.get(name)}


def _settings(run: Path) -> dict[str, Any]:
    """⇒ the settings of a run's stages, as {a.b.c: value}; where two stages differ, the later one's."""
    flat: dict[str, Any] = {}

    def walk(value: Any, key: str) -> None:
        if isinstance(value, dict):
            for name, inner in value.items():
                walk(inner, f"{key}.{name}" if key else str(name))
        else:
            flat[key] = value

    for stage in ("diffusion", "figures"):
        path = run / stage / "config.yaml"
        if path.exists():
            walk(yaml.safe_load(path.read_text()), "")
    return flat


def plan_table(found: Sequence[Finished], out: Path) -> Plan:
    """What ``sweep.py collect`` writes to a folder, of finished runs."""
    items = [Item(name, Deed.REPLACE if (out / name).exists() else Deed.MAKE, f"{len(found)} finished runs")
             for name in ("runs.csv", "runs.png")]
    return Plan("table of a sweep", items, out)


def write_table(path: Path, runs: list[Finished]) -> None:
    """One row a run: what varied, then each figure with its interval."""
    varied = list(runs[0].varied)
    with atomic_path(path) as temporary, open(temporary, "w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow(["run", *varied, *(f"{name}{end}" for name in FIGURES for end in ("", "_low", "_high"))])
        for run in runs:
            found = [(i.mean, i.low, i.high) if (i := run.figures.get(name)) else (math.nan,) * 3 for name in FIGURES]
            cells = ["" if math.isnan(value) else f"{value:.4f}" for values in found for value in values]
            writer.writerow([run.name, *(run.varied[key] for key in varied), *cells])


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
