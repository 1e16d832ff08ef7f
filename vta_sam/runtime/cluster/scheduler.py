"""What a cluster's scheduler has to offer: the contract behind ``launcher=``."""

from __future__ import annotations

import re
import sys
from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path


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
    shards_per_job: int | None = None  # of programs that part their work: an array of one process a task

    @property
    def processes(self) -> int:
        """Processes of one task, over all its machines."""
        return 1

    @abstractmethod
    def submit(self, job: Job) -> None:
        """Hand a job over and print its id and the place of its log, without waiting for it.

        Raises:
            InputError: a setting can't be expressed, or the scheduler refuses; nothing is left behind then.
        """
