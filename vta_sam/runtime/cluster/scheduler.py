"""The contract of a scheduler, behind ``launcher=`` and behind the requeueing of a job.

Texts of a config or a command line are quoted, so that the program gets them byte for byte. The shell interprets only
the lines of a launcher's ``setup``.
"""

from __future__ import annotations

import importlib
import os
import re
import shlex
import sys
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from ..errors import InputError


@dataclass(frozen=True)
class Job:
    """Commands for a scheduler to run.

    Args:
        name: of the job and of its log.
        folder: absolute; where the commands run.
        commands: one a task, each a list of words; several make an array, in this order.
        interpreter: the Python that the word ``python`` of a command means.
    """

    name: str
    folder: Path
    commands: Sequence[Sequence[str]]
    interpreter: Path = Path(sys.executable)

    @property
    def safe_name(self) -> str:
        """The name in letters that file names and schedulers' patterns take as they are."""
        return re.sub(r"[^\w.+=-]+", "_", self.name, flags=re.ASCII).strip("_") or "job"

    @property
    def is_array(self) -> bool:
        return len(self.commands) > 1


class Scheduler(ABC):
    """A cluster's way to run a job: one class, and one file conf/launcher/<name>.yaml that names it by ``_target_``.

    The yaml's keys are the class's arguments; ``launcher.KEY=…`` on the command line sets them.
    """

    container: str | None = None  # image that the commands run in; then ``python`` is the image's own
    setup: Sequence[str] = ()  # lines of the shell before the command
    shards_per_job: int | None = None  # of programs that part their work: an array of one process a task

    @property
    def processes(self) -> int:
        """Processes of one task, over all its machines."""
        return 1

    @property
    def container_step(self) -> str:
        """Words of bash that run a command in the container, with a blank behind them; "" without one."""
        if self.container is None:
            return ""
        # the folder's own code, not the code in the image
        return f"apptainer exec --nv --bind \"$PWD\" --env PYTHONPATH=\"$PWD\" {shell_word(self.container)} "

    @abstractmethod
    def submit(self, job: Job) -> None:
        """Hand a job over and print its id and the place of its log, without waiting for it; Ray's is waited for.

        Raises:
            InputError: a setting can't be expressed, or the scheduler refuses; nothing is left behind then.
        """

    @classmethod
    def running_job(cls, environ: Mapping[str, str] = os.environ) -> str | None:
        """The job or the task of an array that this process runs in, as :meth:`requeue_job` takes it, else None."""
        return None

    @classmethod
    def requeue_job(cls, job: str) -> str | None:
        """Put a running job back into the queue ⇒ None, or why it failed. This process may be ended before."""
        return f"{cls.__name__} can't put a job back into the queue"

    def environment(self, job: Job) -> list[str]:
        """Lines of bash before a job's command: the Python that submitted, this scheduler's class, ``setup``."""
        lines = ["export PYTHONUNBUFFERED=1  # what is printed is in the log at once"]
        if type(self).__module__ != f"{__package__}.slurm":  # which is known by its own variables
            lines += [f"export {VARIABLE}={shlex.quote(f'{type(self).__module__}.{type(self).__qualname__}')}"]
        if self.container is None:
            lines += ["# the Python that submitted, unless the setup below brings another",
                      f"export PATH={shlex.quote(str(job.interpreter.parent))}:\"$PATH\""]
        if self.setup:  # modules and environments read unset variables
            lines += ["", "set +u", *self.setup, "set -u"]
        return lines


def require_counts(launcher: Scheduler, keys: Sequence[str], low: int = 1) -> None:
    """Raise InputError where a setting of a launcher is neither null nor a whole number from ``low`` on."""
    for key in keys:
        value = getattr(launcher, key)
        if value is not None and (not isinstance(value, int) or isinstance(value, bool) or value < low):
            raise InputError(f"launcher.{key}={value}: expected a whole number from {low} on, or null")


def require_lines(launcher: Scheduler, keys: Sequence[str]) -> None:
    """Raise InputError where a setting of a launcher is no list of lines."""
    for key in keys:
        lines = getattr(launcher, key)
        if isinstance(lines, str) or not all(isinstance(line, str) for line in lines):
            raise InputError(f"launcher.{key}={lines!r}: expected a list of lines, such as "
                             f"\"launcher.{key}=['first line','second line']\"")


VARIABLE = "VTA_SAM_SCHEDULER"  # names the class of the scheduler that a job runs under; without it, SLURM's


def scheduler_of(environ: Mapping[str, str] = os.environ) -> type[Scheduler]:
    """The class of the scheduler that this process may run under.

    Raises:
        InputError: :data:`VARIABLE` names no such class.
    """
    path = environ.get(VARIABLE) or f"{__package__}.slurm.Slurm"
    module, _, name = path.rpartition(".")
    try:
        found = getattr(importlib.import_module(module), name)
    except (ImportError, AttributeError, ValueError) as error:
        raise InputError(f"${VARIABLE} is {path!r}, which can't be imported ({error}); put its folder on PYTHONPATH, "
                         "or unset the variable") from error
    if not (isinstance(found, type) and issubclass(found, Scheduler)):
        raise InputError(f"${VARIABLE} is {path!r}, expected a subclass of vta_sam.runtime.cluster.scheduler.Scheduler")
    return found


def choice(job: Job, index_variable: str, first_index: int = 0) -> list[str]:
    """Lines of bash that set the array ``command``: a job's command, or this task's command of an array.

    Args:
        job: to run.
        index_variable: of the environment, which counts the tasks of an array.
        first_index: of the first task.
    """
    commands = [f"command=({' '.join(map(shell_word, command))})" for command in job.commands]
    if not job.is_array:
        return commands
    last = first_index + len(commands) - 1
    return [f"case \"${index_variable}\" in",
            *(f"    {task}) {command} ;;" for task, command in enumerate(commands, first_index)),
            f"    *) echo \"no task ${index_variable}: the array has {first_index} to {last}\" >&2; exit 2 ;;",
            "esac"]


def shell_word(word: str) -> str:
    """Quoted for bash, and without a line end: a scheduler takes any line that begins with its #word for options."""
    if "\n" in word:
        escaped = word.replace("\\", "\\\\").replace("'", "\\'").replace("\n", "\\n")
        return f"$'{escaped}'"
    return shlex.quote(word)
