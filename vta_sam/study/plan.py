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
_ROW_KEYS = {"exp", "stages", "overrides", "sees", "labels", "aligned", "title", "controls"}
TRAIN = Path(__file__).resolve().parents[2] / "experiments" / "train.py"


@dataclass(frozen=True)
class Row:
    """One trained system of a table.

    Args:
        study, table, name: which.
        exp, stages, overrides: arguments of train.py beside the shared ones.
        sees: its condition.
        labels: the labels that its condition learned from.
        aligned: whether a path keeps time by construction.
        title: for the page of results.
        controls: whether its controls are sampled too (record.py).
    """

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
        """The last word of the run folder: two rows of one experiment differ by their own names."""
        return self.table if self.exp == self.name else f"{self.table}-{self.name}"

    def record_name(self, seed: int) -> str:
        return f"{self.study}-{self.table}-{self.name}-{seed}.json"


@dataclass(frozen=True)
class Difference:
    """A comparison of two rows of a table, clip by clip: mean of first − second. question: that it answers."""

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

    # ------------------------------------------------------------------ commands

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
        """⇒ the rows whose finished models a row uses: its overrides name them as ``{table/row}``."""
        return [self.row(*name.split("/")) for override in row.overrides for name in _NAMED_ROW.findall(override)]

    def _filled(self, override: str, seed: int) -> str:
        return _NAMED_ROW.sub(lambda name: str(self.model(self.row(*name.group(1).split("/")), seed)), override)

    def _command(self, exp: str, seed: int, name: str, stages: Sequence[str], more: Sequence[str]) -> list[str]:
        return [sys.executable, str(TRAIN), f"+exp={exp}", f"seed={seed}", f"name={name}", f"runs={self.runs}",
                f"stages=[{','.join(stages)}]", *self.common, *more]


def study_of(settings: dict[str, Any]) -> Study:
    """The content of a conf/study/*.yaml ⇒ Study.

    Raises:
        InputError: a row lacks something, or has an unknown key.
    """
    rows, titles = [], {}
    for table, content in settings["tables"].items():
        titles[table] = content["title"]
        for name, given in content["rows"].items():
            of_row = {**content.get("defaults", {}), **(given or {})}
            unknown = set(of_row) - _ROW_KEYS
            if unknown or not of_row.get("stages"):
                raise InputError(f"study {settings['name']}, row {table}/{name}: "
                                 f"{'unknown ' + ', '.join(sorted(unknown)) if unknown else 'stages is missing'}")
            rows.append(Row(settings["name"], table, name, of_row.get("exp", name), tuple(of_row["stages"]),
                            tuple(of_row.get("overrides", ())), of_row.get("sees", ""), of_row.get("labels", ""),
                            bool(of_row.get("aligned", False)), of_row.get("title", name),
                            bool(of_row.get("controls", False))))
    study = Study(
        settings["name"], settings["title"], Path(settings["runs"]), tuple(settings["seeds"]),
        tuple(settings["common"]), dict(settings["shared"]), titles, tuple(rows),
        tuple(Difference(**difference) for difference in settings.get("differences", ())), settings.get("note", ""))
    for difference in study.differences:
        study.row(difference.table, difference.first)
        study.row(difference.table, difference.second)
    return study
