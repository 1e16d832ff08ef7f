"""A batch script ⇒ a job of SLURM. Asks sbatch once, and waits for nothing else."""

from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path

from ..atomic import write_bytes
from ..errors import InputError
from .batch_script import Job, Slurm, batch_script, log_pattern


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
