"""Run a study row by row, each in a process of its own; what is finished is passed over."""

from __future__ import annotations

import subprocess
import time
from collections.abc import Callable, Sequence
from pathlib import Path

from ..errors import InputError
from .plan import Row, Study
from .record import measure_row

Say = Callable[[str], None]


def run_study(study: Study, records: Path, only: Sequence[str], cache: Path | None, say: Say) -> int:
    """Train and measure every row that has no record yet ⇒ how many were made.

    A killed study goes on by the same command: train.py resumes from its checkpoints, and a row is done when its record
    is written, which is the last thing that happens. Raises InputError when a row's training fails.
    """
    waiting = [(row, seed) for row, seed in study.order(only) if not (records / row.record_name(seed)).exists()]
    if not waiting:
        say(f"{study.name}: every row has its record in {records}")
        return 0
    say(f"{study.name}: {len(waiting)} rows to run")
    if not (study.shared_folder / "vae" / "done").exists():
        _train(study.shared_command(), "the VAE that all rows share")
    for row, seed in waiting:
        began = time.monotonic()
        say(f"{row.table}/{row.name}, seed {seed}")
        command = study.command(row, seed)
        _train(command, f"{row.table}/{row.name}, seed {seed}")
        first = not list(records.glob(f"{study.name}-*.json"))
        record = measure_row(row, seed, study.folder(row, seed), command[2:], cache, ceiling=first)
        record.write(records / row.record_name(seed))
        say(f"{row.table}/{row.name}, seed {seed}: {_summary(row, record.figures)}; "
            f"{(time.monotonic() - began) / 60:.1f} minutes")
    return len(waiting)


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
