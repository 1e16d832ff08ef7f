"""SLURM: a job becomes a batch script, which sbatch takes from its input. Saved to a file, the script
works with sbatch too.
"""

from __future__ import annotations

import os
import re
import shlex
import shutil
import subprocess
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from ..errors import InputError
from ..files import write_bytes
from .scheduler import Job, Scheduler, choice, require_counts, require_lines

_COUNTS = ("nodes", "tasks_per_node", "cpus_per_task", "signal_s", "max_at_once", "shards_per_job")
_SCONTROL_LIMIT_S = 60
# A time without a colon is a number of minutes to SLURM, and 24:00:00 without quotes is the number 86400 to YAML
_TIME = re.compile(r"(\d+-\d+(:\d+){0,2}|\d+(:\d+){1,2})")


@dataclass(frozen=True)
class Slurm(Scheduler):
    """The settings of ``conf/launcher/slurm.yaml``, whose comments explain each. None: the cluster's default."""

    partition: str | None = None
    account: str | None = None
    time: str | None = None
    nodes: int | None = None
    gpus: int | str | None = None
    tasks_per_node: int | None = None
    cpus_per_task: int | None = None
    memory: int | str | None = None
    requeue: bool | None = None
    signal_s: int | None = None
    max_at_once: int | None = None
    shards_per_job: int | None = None
    setup: Sequence[str] = ()
    container: str | None = None
    extra: Sequence[str] = ()
    logs: str = "runs/slurm"
    dry_run: bool = False

    def __post_init__(self):
        require_counts(self, _COUNTS)
        if self.time is not None and not _TIME.fullmatch(str(self.time)):
            raise InputError(f'launcher.time={self.time}: expected "hours:minutes:seconds" or '
                             '"days-hours:minutes:seconds"; in a file it stands in quotes')
        require_lines(self, ("setup", "extra"))
        for line in self.extra:
            if not line.startswith("-") or not line.isprintable():
                raise InputError(f"launcher.extra has {line!r}: expected options of sbatch, such as --qos=high")

    @property
    def processes(self) -> int:
        return (self.nodes or 1) * (self.tasks_per_node or 1)

    def submit(self, job: Job) -> None:
        submit(self, job)

    @classmethod
    def running_job(cls, environ: Mapping[str, str] = os.environ) -> str | None:
        if "SLURM_ARRAY_JOB_ID" in environ:
            return f"{environ['SLURM_ARRAY_JOB_ID']}_{environ['SLURM_ARRAY_TASK_ID']}"
        return environ.get("SLURM_JOB_ID")

    @classmethod
    def requeue_job(cls, job: str) -> str | None:
        try:
            done = subprocess.run(["scontrol", "requeue", job], capture_output=True, text=True,
                                  timeout=_SCONTROL_LIMIT_S)
        except (OSError, subprocess.TimeoutExpired) as error:
            return str(error)
        return done.stderr.strip() or f"scontrol ended with {done.returncode}" if done.returncode else None


def batch_script(slurm: Slurm, job: Job) -> str:
    """⇒ the script. Raises InputError where a setting can't stand in an #SBATCH line."""
    return "\n".join([
        "#!/usr/bin/env bash",
        *_directives(slurm, job),
        "# Submitted by hand, this file needs the folder of --output to be there: SLURM doesn't make it.",
        "set -euo pipefail",
        f"cd {shlex.quote(str(job.folder))}",
        *slurm.environment(job),
        "",
        *choice(job, "SLURM_ARRAY_TASK_ID"),
        "",
        "# A step even for one process: SLURM sends the signal before the time limit to steps alone. exec: no shell",
        "# stands between SLURM and srun, which passes signals on. One process that fails ends the others.",
        f"exec {_step(slurm)}\"${{command[@]}}\"",
        "",
    ])


def log_pattern(slurm: Slurm, job: Job) -> Path:
    """Where the log goes, in SLURM's patterns."""
    folder = str(job.folder / slurm.logs).replace("%", "%%")
    return Path(folder) / ("%x-%A_%a.log" if job.is_array else "%x-%j.log")


def _directives(slurm: Slurm, job: Job) -> list[str]:
    array = None
    if job.is_array:
        throttle = f"%{slurm.max_at_once}" if slurm.max_at_once else ""
        array = f"0-{len(job.commands) - 1}{throttle}"
    options = {
        "job-name": job.safe_name, "partition": slurm.partition, "account": slurm.account, "time": slurm.time,
        "nodes": slurm.nodes, "ntasks-per-node": slurm.tasks_per_node, "gpus-per-node": slurm.gpus,
        "cpus-per-task": slurm.cpus_per_task, "mem": slurm.memory, "array": array,
        # without "B:", which would send it to the shell alone
        "signal": slurm.signal_s and f"USR1@{slurm.signal_s}",
        "output": log_pattern(slurm, job), "open-mode": "append",  # a job that is requeued goes on in its log
    }
    lines = [f"--{option}={_sbatch_word(option, str(value))}" for option, value in options.items() if value is not None]
    if slurm.requeue is not None:
        lines.append("--requeue" if slurm.requeue else "--no-requeue")
    return [f"#SBATCH {line}" for line in (*lines, *slurm.extra)]


def _sbatch_word(option: str, value: str) -> str:
    """Quoted as sbatch reads its lines: quotes as in a shell, but a backslash counts inside them too."""
    if not value.isprintable() or "\\" in value:
        raise InputError(f"--{option}={value!r} can't stand in a batch script: no backslash, tab or line end, please")
    return shlex.quote(value)


def _step(slurm: Slurm) -> str:
    words = ["srun", "--kill-on-bad-exit=1"]
    if slurm.cpus_per_task is not None:  # from SLURM 22.05 on a step doesn't take it over from its job
        words.append(f"--cpus-per-task={slurm.cpus_per_task}")
    return f"{shlex.join(words)} {slurm.container_step}"


def submit(slurm: Slurm, job: Job) -> None:
    """Submit a job and print its id and its log; with dry_run print its script alone.

    The script stays beside the log, named by the job's id. Raises InputError where sbatch is missing or refuses;
    nothing is written then.
    """
    script = batch_script(slurm, job)
    if slurm.dry_run:
        print(script, end="")
        return
    logs = job.folder / slurm.logs
    made = _make_folder(logs) if shutil.which("sbatch") else []
    try:
        number = _sbatch(script, job.folder)
    except InputError:
        for folder in made:
            folder.rmdir()
        raise
    tasks = f", an array of {len(job.commands)} tasks" if job.is_array else ""
    print(f"job {number} ({job.safe_name}{tasks})")
    print(f"log: {_log(log_pattern(slurm, job), job, number)}")
    write_bytes(logs / f"{job.safe_name}-{number}.sh", os.fsencode(script))


def _sbatch(script: str, folder: Path) -> str:
    """⇒ the job's number."""
    try:
        # through its input: no file is left where it refuses
        ended = subprocess.run(["sbatch", "--parsable"], input=os.fsencode(script), capture_output=True, cwd=folder)
    except OSError as error:
        raise InputError(f"launcher=slurm needs sbatch, which can't be started here ({error.strerror}): submit from a "
                         "login node of the cluster; launcher.dry_run=true prints the script") from error
    said = [stream.decode(errors="replace").strip() for stream in (ended.stdout, ended.stderr)]
    if ended.returncode:
        words = "; ".join(line.strip() for line in (said[1] or said[0]).splitlines() if line.strip())
        raise InputError(f"sbatch refused the job with status {ended.returncode}: {words or 'it gave no reason'}")
    number = said[0].splitlines()[-1].partition(";")[0] if said[0] else ""  # "number" or "number;cluster"
    if not number.isdecimal():
        raise InputError(f"sbatch answered {said[0]!r}, expected the job's number; squeue --me shows whether there "
                         "is a job")
    return number


def _make_folder(folder: Path) -> list[Path]:
    """SLURM doesn't make the folder of a log ⇒ the folders that were missing, the innermost first."""
    missing = [path for path in (folder, *folder.parents) if not path.exists()]
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise InputError(f"launcher.logs={folder} can't be made ({error.strerror})") from error
    return missing


def _log(pattern: Path, job: Job, number: str) -> str:
    """The pattern with what SLURM will put in, for people: of an array, the first and the last."""
    def filled(task: int) -> str:
        named = pattern.name.replace("%x", job.safe_name).replace("%j", number).replace("%A", number)
        return named.replace("%a", str(task))

    first = Path(str(pattern.parent).replace("%%", "%")) / filled(0)
    return f"{first} … {filled(len(job.commands) - 1)}" if job.is_array else str(first)
