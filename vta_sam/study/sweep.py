"""Many runs. Sweeps: a wandb sweep file as a Hydra multirun, and finished runs as one table and picture. Studies: row
by row, each in a process of its own, without the finished ones."""

from __future__ import annotations

import csv
import json
import math
import os
import re
import subprocess
import time
from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import dataclass
from itertools import product
from pathlib import Path
from typing import Any

import yaml
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from ..metrics.intervals import Interval, interval_of
from ..runtime import usable_cores
from ..runtime.errors import InputError
from ..runtime.files import atomic_path, claimed, claimed_in_turn, writing_to
from ..runtime.typed_text import quoted
from ..runtime.work_plan import Deed, Item, Plan
from .record import Row, Study, measure_row

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


# ---------------------------------------------------------------------- studies

Say = Callable[[str], None]
_LONGEST_WAIT_S = 24 * 3600.0  # for another process that trains the VAE that all rows share


def plan_study(study: Study, records: Path, only: Sequence[str], page: Path) -> Plan:
    """What a study makes, without making anything: a record a row and seed, and the runs that they need.

    Args:
        study: to run.
        records: folder of the records.
        only: names of rows; none: all.
        page: of the results, which every run writes anew.

    Raises:
        InputError: ``only`` names no row, or ``records`` is a file.
    """
    if records.exists() and not records.is_dir():
        raise InputError(f"records={records} is a file; name a folder")
    items = []
    for row, seed in study.order(only):
        name = row.record_name(seed)
        there, begun = (records / name).exists(), study.folder(row, seed).exists()
        detail = f"{study.folder(row, seed)} {'goes on, or is kept where it is finished' if begun else 'is trained'}"
        items.append(Item(name, Deed.KEEP if there else Deed.GO_ON if begun else Deed.MAKE, "" if there else detail))
    if any(item.deed is not Deed.KEEP for item in items) and not _shared_is_done(study):
        items.insert(0, Item(str(study.shared_folder), Deed.GO_ON if study.shared_folder.exists() else Deed.MAKE,
                             "the VAE that all rows share"))
    items.append(Item(page.name, Deed.REPLACE if page.exists() else Deed.MAKE, f"in {page.parent}"))
    return Plan(f"study {study.name}: runs in {study.runs}", items, records)


def _shared_is_done(study: Study) -> bool:
    return (study.shared_folder / "vae" / "done").exists()


def run_study(study: Study, records: Path, only: Sequence[str], cache: Path | None, say: Say,
              beside: int = 0) -> int:
    """Train and measure every row that has no record yet ⇒ how many were made. A row that another process is at is
    left to that one.

    A killed study goes on by the same command: train.py resumes from its checkpoints. A row is done when its record
    is written, which is its last step.

    Args:
        study: to run.
        records: folder of the records.
        only: names of rows; none: all.
        cache: of evaluation.
        say: prints a line.
        beside: how many other rows run at the same time, for the record.

    Raises:
        InputError: a row's training fails.
    """
    made = 0
    for row, seed in _waiting(study, records, only, say):
        began, path = time.monotonic(), records / row.record_name(seed)
        with ExitStack() as until_done:
            with writing_to(records, "records"):
                mine = until_done.enter_context(claimed(path))
            if not mine or path.exists():
                say(f"{row.table}/{row.name}, seed {seed}: another process {'has made it' if mine else 'is at it'}")
                continue
            say(f"{row.table}/{row.name}, seed {seed}")
            command = study.command(row, seed)
            _train(command, f"{row.table}/{row.name}, seed {seed}")
            first = not list(records.glob(f"{study.name}-*.json"))
            record = measure_row(row, seed, study.folder(row, seed), command[2:], cache, ceiling=first, beside=beside)
            with writing_to(records, "records"):
                record.write(path)
        made += 1
        say(f"{row.table}/{row.name}, seed {seed}: {_summary(row, record.figures)}; "
            f"{(time.monotonic() - began) / 60:.1f} minutes")
    return made


def run_side_by_side(study: Study, records: Path, only: Sequence[str], jobs: int, command: Sequence[str],
                     say: Say) -> int:
    """The same with ``jobs`` rows at a time, which share the processor's cores evenly ⇒ how many were made.

    One small network doesn't keep two cores busy, two do. Each row is a process of its own, its output in a log beside
    the runs. A row that is sampled from another one's model waits for it. The first row that fails ends the study,
    after those that run already.

    Args:
        study, records, only, say: see :func:`run_study`.
        jobs: rows at a time.
        command: this study's program with its settings; ``only=`` and ``seeds=`` are added for each row.

    Raises:
        InputError: a row fails.
    """
    waiting = _waiting(study, records, only, say)
    logs = study.runs / "logs"
    logs.mkdir(parents=True, exist_ok=True)
    threads = str(max(1, usable_cores() // jobs))
    running: dict[tuple[Row, int], Future] = {}

    def run(row: Row, seed: int, before: Sequence[Future]) -> None:
        for other in before:
            other.result()
        began, log = time.monotonic(), logs / f"{row.table}-{row.name}-{seed}.log"
        say(f"{row.table}/{row.name}, seed {seed}: {log}")
        arguments = [f"only=[{row.table}/{row.name}]", f"seeds=[{seed}]", "jobs=1", f"beside={jobs - 1}"]
        with open(log, "ab") as file:
            status = subprocess.run([*command, *arguments], stdout=file, stderr=subprocess.STDOUT,
                                    env={**os.environ, "OMP_NUM_THREADS": threads}).returncode
        if status:
            raise InputError(f"{row.table}/{row.name}, seed {seed} ended with status {status}; {log} says why. The "
                             "same command goes on from there")
        say(f"{row.table}/{row.name}, seed {seed}: {(time.monotonic() - began) / 60:.1f} minutes")

    with ThreadPoolExecutor(jobs) as pool:
        for row, seed in waiting:
            before = [running[key] for other in study.needs(row) if (key := (other, seed)) in running]
            running[row, seed] = pool.submit(run, row, seed, before)
        try:
            for done in running.values():
                done.result()
        except BaseException:
            pool.shutdown(wait=True, cancel_futures=True)
            raise
    return len(waiting)


def _waiting(study: Study, records: Path, only: Sequence[str], say: Say) -> list[tuple[Row, int]]:
    """⇒ rows and seeds without a record. The VAE that all rows share is trained here, and so are models that rows are
    sampled from, whose record is here and whose run was on another machine."""
    waiting = [(row, seed) for row, seed in study.order(only) if not (records / row.record_name(seed)).exists()]
    if not waiting:
        say(f"{study.name}: every row has its record in {records}")
        return []
    say(f"{study.name}: {len(waiting)} rows to run")
    if not _shared_is_done(study):
        with claimed_in_turn(records / study.shared_folder.name, lambda: say(
                f"another process trains {study.shared_folder}; waiting for it"), _LONGEST_WAIT_S):
            if not _shared_is_done(study):
                _train(study.shared_command(), "the VAE that all rows share")
    for needed, seed in dict.fromkeys((other, seed) for row, seed in waiting for other in study.needs(row)):
        if (needed, seed) not in waiting and not study.model(needed, seed).is_dir():
            _train(study.command(needed, seed), f"{needed.table}/{needed.name}, seed {seed}")
    return waiting


def _train(command: list[str], what: str) -> None:
    status = subprocess.run(command).returncode
    if status == 130:
        raise KeyboardInterrupt
    if status:
        raise InputError(f"{what}: training ended with status {status}; its own message stands above. The same command "
                         "goes on from there")


def _summary(row: Row, figures: dict) -> str:
    def mean(key: str) -> str:
        value = figures.get(key, {}).get("score", {}).get("mean")
        return "not defined" if value is None else f"{value:.3f}"

    return f"envelope correlation {mean('envelope_correlation')}, onset F1 {mean('onset_f1')}"
