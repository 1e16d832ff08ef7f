"""A study: rows that share data, VAE, UNet and steps, and differ in one thing each. Read from conf/study/*.yaml."""

from __future__ import annotations

import re
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..runtime.errors import InputError

_NAMED_ROW = re.compile(r"\{(\w+/\w+)\}")
TRAIN = Path(__file__).resolve().parents[2] / "experiments" / "train.py"


@dataclass(frozen=True)
class Row:
    """One trained system of a table. exp, stages, overrides: what train.py is told beside what all rows share. sees:
    what it is conditioned on; labels: what was known to whatever made that; aligned: whether a path keeps time by
    construction. controls: also sample it with what must fail (controls.py)."""

    study: str
    table: str
    name: str
    exp: str
    stages: tuple[str, ...]
    overrides: tuple[str, ...] = ()
    sees: str = ""
    labels: str = ""
    aligned: bool = False
    title: str = ""
    controls: bool = False

    @property
    def run_name(self) -> str:
        """The last word of the run folder: two rows of one experiment are told apart by their own names."""
        return self.table if self.exp == self.name else f"{self.table}-{self.name}"

    def record_name(self, seed: int) -> str:
        return f"{self.study}-{self.table}-{self.name}-{seed}.json"


@dataclass(frozen=True)
class Difference:
    """Two rows of a table to be compared clip by clip: mean of first − second. question: what it answers."""

    table: str
    first: str
    second: str
    question: str


@dataclass(frozen=True)
class Study:
    """name; title, note for its page; runs, folder of its runs; seeds, all rows with the first before any with the
    second; common, overrides of every row; shared, the run whose VAE all rows take; tables {table: its title}."""

    name: str
    title: str
    runs: Path
    seeds: tuple[int, ...]
    common: tuple[str, ...]
    shared: dict[str, Any]
    tables: dict[str, str]
    rows: tuple[Row, ...]
    differences: tuple[Difference, ...] = ()
    note: str = ""

    def row(self, table: str, name: str) -> Row:
        for row in self.rows:
            if (row.table, row.name) == (table, name):
                return row
        raise InputError(f"{self.name} has no row {table}/{name}; it has "
                         f"{', '.join(f'{r.table}/{r.name}' for r in self.rows)}")

    def order(self, only: Sequence[str] = ()) -> list[tuple[Row, int]]:
        """Rows and seeds in the order in which they run. only: names of rows or table/row; none: all."""
        unknown = set(only) - {r.name for r in self.rows} - {f"{r.table}/{r.name}" for r in self.rows}
        if unknown:
            raise InputError(f"only= names {sorted(unknown)[0]!r}, which is no row of {self.name}")
        return [(row, seed) for seed in self.seeds for row in self.rows
                if not only or row.name in only or f"{row.table}/{row.name}" in only]

    # ------------------------------------------------------------------ what is typed for each

    @property
    def shared_folder(self) -> Path:
        return self.runs / f"{self.shared['exp']}-{self.shared['seed']}-shared"

    def shared_command(self) -> list[str]:
        return self._command(self.shared["exp"], self.shared["seed"], "shared", self.shared["stages"], ())

    def folder(self, row: Row, seed: int) -> Path:
        return self.runs / f"{row.exp}-{seed}-{row.run_name}"

    def command(self, row: Row, seed: int) -> list[str]:
        start = (f"vae={self.shared_folder / 'vae' / 'model'}",) if "diffusion" in row.stages else ()
        return self._command(row.exp, seed, row.run_name, row.stages,
                             (*start, *(self._filled(override, seed) for override in row.overrides)))

    def model(self, row: Row, seed: int) -> Path:
        """The finished model of a row that trains one."""
        return self.folder(row, seed) / "diffusion" / "model"

    def needs(self, row: Row) -> list[Row]:
        """Rows whose finished models a row is told to use: those that its overrides name as ``{table/row}``."""
        return [self.row(*name.split("/")) for override in row.overrides for name in _NAMED_ROW.findall(override)]

    def _filled(self, override: str, seed: int) -> str:
        return _NAMED_ROW.sub(lambda name: str(self.model(self.row(*name.group(1).split("/")), seed)), override)

    def _command(self, exp: str, seed: int, name: str, stages: Sequence[str], more: Sequence[str]) -> list[str]:
        return [sys.executable, str(TRAIN), f"+exp={exp}", f"seed={seed}", f"name={name}", f"runs={self.runs}",
                f"stages=[{','.join(stages)}]", *self.common, *more]


def study_of(settings: dict[str, Any]) -> Study:
    """The content of a conf/study/*.yaml ⇒ Study. InputError where a row lacks something."""
    rows, titles = [], {}
    for table, content in settings["tables"].items():
        titles[table] = content["title"]
        for name, given in content["rows"].items():
            told = {**content.get("defaults", {}), **(given or {})}
            unknown = set(told) - {"exp", "stages", "overrides", "sees", "labels", "aligned", "title", "controls"}
            if unknown or not told.get("stages"):
                raise InputError(f"study {settings['name']}, row {table}/{name}: "
                                 f"{'unknown ' + ', '.join(sorted(unknown)) if unknown else 'stages is missing'}")
            rows.append(Row(settings["name"], table, name, told.get("exp", name), tuple(told["stages"]),
                            tuple(told.get("overrides", ())), told.get("sees", ""), told.get("labels", ""),
                            bool(told.get("aligned", False)), told.get("title", name),
                            bool(told.get("controls", False))))
    study = Study(
        settings["name"], settings["title"], Path(settings["runs"]), tuple(settings["seeds"]),
        tuple(settings["common"]), dict(settings["shared"]), titles, tuple(rows),
        tuple(Difference(**difference) for difference in settings.get("differences", ())), settings.get("note", ""))
    for difference in study.differences:
        study.row(difference.table, difference.first)
        study.row(difference.table, difference.second)
    return study
