"""The report of every benchmark: its figures, and the machine that they were measured on."""

from __future__ import annotations

import argparse
import json
import os
import platform
import resource
import statistics
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any


def parser(description: str) -> argparse.ArgumentParser:
    """With ``--json``, which all benchmarks have."""
    made = argparse.ArgumentParser(description=description, formatter_class=argparse.ArgumentDefaultsHelpFormatter)
    made.add_argument("--json", action="store_true", help="print one line of JSON instead of a table")
    return made


def machine() -> dict[str, Any]:
    """Versions and hardware that figures depend on. Imports no torch, since the start of programs is measured too."""
    facts: dict[str, Any] = {"cpu": _cpu_model(), "cores": len(os.sched_getaffinity(0)),
                             "load_1min": round(os.getloadavg()[0], 2), "python": platform.python_version()}
    for package in ("torch", "diffusers", "vta-sam"):
        try:
            facts[package] = version(package)
        except PackageNotFoundError:
            facts[package] = "not installed"
    return facts


def _cpu_model() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor() or platform.machine()
    return next((line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")), platform.machine())


def peak_memory_gb() -> float:
    """Of this process, and of the largest of its children that ended: an upper bound while they run at once."""
    peak = sum(resource.getrusage(process).ru_maxrss for process in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN))
    return round(peak / 1024 ** 2, 2)


@dataclass
class Report:
    """A title, facts about the run, and rows of figures (equal keys, units in their names)."""

    title: str
    rows: list[dict[str, Any]] = field(default_factory=list)
    facts: dict[str, Any] = field(default_factory=dict)
    more_rows: list[dict[str, Any]] = field(default_factory=list)  # a second table of other columns

    def show(self, as_json: bool) -> None:
        """Print it, with the machine's facts."""
        if as_json:
            more = {"more_rows": self.more_rows} if self.more_rows else {}
            print(json.dumps({"title": self.title, "rows": self.rows, **more, **self.facts, "machine": machine()}))
            return
        print(self.title)
        for rows in (self.rows, self.more_rows):
            print("".join(f"  {line}\n" for line in table(rows)), end="")
        for facts in (self.facts, machine()):
            if facts:
                print("  " + ", ".join(f"{name} {value}" for name, value in facts.items()))


def table(rows: list[dict[str, Any]]) -> list[str]:
    """Rows ⇒ lines: a header, then columns as wide as their longest cell."""
    if not rows:
        return []
    columns = list(dict.fromkeys(key for row in rows for key in row))
    cells = [columns] + [[str(row.get(column, "")) for column in columns] for row in rows]
    widths = [max(map(len, column)) for column in zip(*cells)]
    return ["  ".join(cell.ljust(width) for cell, width in zip(line, widths)).rstrip() for line in cells]


def seconds(work: Callable[[], Any], repeat: int) -> list[float]:
    """Wall time of each of ``repeat`` calls."""
    times = []
    for _ in range(repeat):
        start = time.perf_counter()
        work()
        times.append(time.perf_counter() - start)
    return times


def median(values: Iterable[float], digits: int = 3) -> float:
    return round(statistics.median(values), digits)
