"""Run a study row by row, each in a process of its own, without the finished ones."""

from __future__ import annotations

import os
import subprocess
import time
from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack
from pathlib import Path

from ..runtime import usable_cores
from ..runtime.errors import InputError
from ..runtime.files import claimed, claimed_in_turn, writing_to
from ..runtime.work_plan import Deed, Item, Plan
from .record import Row, Study, measure_row

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
