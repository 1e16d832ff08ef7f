"""A job that is asked to stop: it ends the step, saves, and where SLURM asked goes back into the queue."""

from __future__ import annotations

import os
import signal
import subprocess
from collections.abc import Iterator, Mapping
from contextlib import contextmanager

from ..runtime.distributed import Processes

STOP, REQUEUE = 1, 2  # what is asked for; the larger wins where processes were asked different things
_ASKED = {signal.SIGTERM: STOP, signal.SIGUSR1: REQUEUE}
EXIT_STATUS = 75  # EX_TEMPFAIL: not done, to be tried again
_PATIENCE_S = 60


class Preempted(Exception):
    """The job was asked to stop, and has saved what it had. requeue: SLURM is to start it again."""

    def __init__(self, requeue: bool):
        super().__init__("asked to stop")
        self.requeue = requeue


class Preemption:
    """Signals ⇒ a flag that all processes read at the same place. watched: whether somebody is to be listened to.

    SIGUSR1 is what ``--signal`` of a batch script sends ahead of its time limit, and what SLURM may send ahead of a
    preemption: the job goes back into the queue. SIGTERM is how scancel ends a job, and how SLURM preempts one that it
    requeues itself: the job saves, and stays where it is put.
    """

    def __init__(self, processes: Processes):
        self.processes = processes
        self._asked, self._training = 0, False
        self.watched = False

    @contextmanager
    def watching(self) -> Iterator[None]:
        """Inside, signals are taken for the job."""
        before = {number: signal.getsignal(number) for number in _ASKED}
        self.watched = True
        self.listen()
        try:
            yield
        finally:
            self.watched = False
            for number, handler in before.items():
                signal.signal(number, handler)

    def listen(self) -> None:
        """Be the one who hears signals. Lightning's own handler of SIGTERM would end the fit of one process while the
        others wait for it."""
        for number in _ASKED:
            signal.signal(number, self._hear)

    @contextmanager
    def training(self) -> Iterator[None]:
        """Inside, a signal waits until :meth:`asked` is called. Outside, it ends the work at once: what is written
        there is written whole or not at all, and goes on from there."""
        self._training = True
        try:
            yield
        finally:
            self._training = False

    def asked(self) -> int:
        """⇒ STOP, REQUEUE or 0, the same in all processes. Every process has to call it at the same step."""
        return self.processes.highest(self._asked)

    def _hear(self, number: int, frame: object) -> None:
        self._asked = max(self._asked, _ASKED[signal.Signals(number)])
        if not self._training:
            raise Preempted(self._asked == REQUEUE)


def queue_name(environ: Mapping[str, str] = os.environ) -> str | None:
    """This SLURM job, or this task of an array, as scontrol calls it; None outside of SLURM."""
    if "SLURM_ARRAY_JOB_ID" in environ:
        return f"{environ['SLURM_ARRAY_JOB_ID']}_{environ['SLURM_ARRAY_TASK_ID']}"
    return environ.get("SLURM_JOB_ID")


def requeue(job: str) -> str | None:
    """Put a job back into the queue ⇒ None, or why it could not be. SLURM may end this process before it returns."""
    for number in _ASKED:
        signal.signal(number, signal.SIG_IGN)  # what SLURM sends a job that it takes back
    try:
        done = subprocess.run(["scontrol", "requeue", job], capture_output=True, text=True, timeout=_PATIENCE_S)
    except (OSError, subprocess.TimeoutExpired) as error:
        return str(error)
    return done.stderr.strip() or f"scontrol ended with {done.returncode}" if done.returncode else None
