"""Preemption of a job: it ends the step, saves, and goes back into SLURM's queue where SLURM asked for that."""

from __future__ import annotations

import os
import signal
import subprocess
from collections.abc import Iterator, Mapping
from contextlib import contextmanager

from ..runtime.distributed import Processes

STOP, REQUEUE = 1, 2  # requests; the larger wins where processes have different ones
_ASKED = {signal.SIGTERM: STOP, signal.SIGUSR1: REQUEUE}
EXIT_STATUS = 75  # EX_TEMPFAIL: not done, to be tried again
_SCONTROL_LIMIT_S = 60


class Preempted(Exception):
    """The job was asked to stop, and has saved what it had. requeue: SLURM is to start it again."""

    def __init__(self, requeue: bool):
        super().__init__("asked to stop")
        self.requeue = requeue


class Preemption:
    """A flag that signals set, and that all processes read at the same step.

    ``--signal`` of a batch script sends SIGUSR1 ahead of its time limit, and SLURM may send it ahead of a preemption:
    the job goes back into the queue. scancel ends a job by SIGTERM, and SLURM so preempts a job that it requeues
    itself: the job saves, and doesn't requeue.

    Args:
        processes: those that train together.

    Attributes:
        watched: whether signals are handled for the job.
    """

    def __init__(self, processes: Processes):
        self.processes = processes
        self._asked, self._training = 0, False
        self.watched = False

    @contextmanager
    def watching(self) -> Iterator[None]:
        """Inside, signals are handled for the job."""
        before = {number: signal.getsignal(number) for number in _ASKED}
        self.watched = True
        self.install_handlers()
        try:
            yield
        finally:
            self.watched = False
            for number, handler in before.items():
                signal.signal(number, handler)

    def install_handlers(self) -> None:
        """Handle SIGTERM and SIGUSR1. Lightning's handler of SIGTERM would end the fit of one process while the others
        wait for it."""
        for number in _ASKED:
            signal.signal(number, self._handle)

    @contextmanager
    def training(self) -> Iterator[None]:
        """Inside, a signal waits until :meth:`asked` is called. Outside, it ends the work at once: files are written
        whole or not at all there, and the next run goes on from them."""
        self._training = True
        try:
            yield
        finally:
            self._training = False

    def asked(self) -> int:
        """STOP, REQUEUE or 0, the same in all processes. Every process has to call it at the same step."""
        return self.processes.highest(self._asked)

    def _handle(self, number: int, frame: object) -> None:
        self._asked = max(self._asked, _ASKED[signal.Signals(number)])
        if not self._training:
            raise Preempted(self._asked == REQUEUE)


def queue_name(environ: Mapping[str, str] = os.environ) -> str | None:
    """The name of this SLURM job, or of this task of an array, for scontrol; None outside of SLURM."""
    if "SLURM_ARRAY_JOB_ID" in environ:
        return f"{environ['SLURM_ARRAY_JOB_ID']}_{environ['SLURM_ARRAY_TASK_ID']}"
    return environ.get("SLURM_JOB_ID")


def requeue(job: str) -> str | None:
    """Put a job back into the queue ⇒ None, or why it failed. SLURM may end this process before it returns."""
    for number in _ASKED:
        signal.signal(number, signal.SIG_IGN)  # SLURM sends these to a job that it requeues
    try:
        done = subprocess.run(["scontrol", "requeue", job], capture_output=True, text=True, timeout=_SCONTROL_LIMIT_S)
    except (OSError, subprocess.TimeoutExpired) as error:
        return str(error)
    return done.stderr.strip() or f"scontrol ended with {done.returncode}" if done.returncode else None
