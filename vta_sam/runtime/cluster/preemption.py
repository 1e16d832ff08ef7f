"""Preemption of a job: it saves, and goes back into the scheduler's queue where that asked for it.

Training ends its step before, and work that the job's processes part among themselves its round. Work whose files are
each whole or absent ends at once.
"""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import TypeVar

from ..distributed import Processes
from .scheduler import scheduler_of

P = TypeVar("P")
T = TypeVar("T")
STOP, REQUEUE = 1, 2  # requests; the larger wins where processes have different ones
_ASKED = {signal.SIGTERM: STOP, signal.SIGUSR1: REQUEUE}
EXIT_STATUS = 75  # EX_TEMPFAIL: not done, to be tried again


class Preempted(BaseException):
    """The job was asked to stop, and has saved its state. requeue: SLURM is to start it again.

    No Exception: where a signal raises it, code that lists one item's errors and goes on may be running.
    """

    def __init__(self, requeue: bool):
        super().__init__("asked to stop")
        self.requeue = requeue


class Preemption:
    """A flag that signals set, and that all processes read at the same step.

    ``--signal`` of a batch script sends SIGUSR1 ahead of its time limit, and SLURM may send it ahead of a preemption:
    the job goes back into the queue. scancel ends a job by SIGTERM, and SLURM so preempts a job that it requeues
    itself: the job saves, and doesn't requeue.

    Args:
        processes: that train together.

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
        scheduler_of()  # now, so that a wrong name is no surprise when the time is up
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
        before, self._training = self._training, True
        try:
            yield
        finally:
            self._training = before

    def asked(self) -> int:
        """STOP, REQUEUE or 0, the same in all processes. Every process has to call it at the same step."""
        return self.processes.highest(self._asked)

    def parted(self, parts: Sequence[P], work: Callable[[P], T], ends: bool = True) -> Iterator[list[T]]:
        """Have the processes work on parts, in rounds of one part each ⇒ after each round the results of its parts, in
        their order, in the first process; [] in the others.

        All call ``work`` equally often, since a sharded network gathers its parameters from all of them in each call:
        a process without a part in the last round works on the round's first part, for nothing.

        Args:
            parts: the same in every process.
            work: on a part. An InputError of one process ends all. Its results are pickled.
            ends: whether a request to stop ends the work after a round.

        Raises:
            Preempted: the job was asked to stop; in all processes after the same round.
        """
        processes = self.processes
        with self.training():
            for start in range(0, len(parts), processes.world):
                turn, made = parts[start:start + processes.world], list[T]()
                mine = turn[processes.rank if processes.rank < len(turn) else 0]
                processes.on_all_ranks(lambda: made.append(work(mine)))
                found = processes.gathered_by_first(made if processes.rank < len(turn) else [])
                yield [result for results in found for result in results]
                if ends and (asked := self.asked()):
                    raise Preempted(asked == REQUEUE)

    def _handle(self, number: int, frame: object) -> None:
        self._asked = max(self._asked, _ASKED[signal.Signals(number)])
        if not self._training:
            raise Preempted(self._asked == REQUEUE)


def queue_name(environ: Mapping[str, str] = os.environ) -> str | None:
    """The job that this process runs in, or its task of an array, as :func:`requeue` takes it; None outside of one."""
    return scheduler_of(environ).running_job(environ)


def requeue(job: str) -> str | None:
    """Put a job back into the queue ⇒ None, or why it failed. The scheduler may end this process before it returns."""
    for number in _ASKED:
        signal.signal(number, signal.SIG_IGN)  # SLURM sends these to a job that it requeues
    return scheduler_of().requeue_job(job)


def end_preempted(preempted: Preempted, state: str) -> None:
    """Tell the user, then go back into the scheduler's queue where that is asked for: it may be quick.

    Args:
        preempted: the request.
        state: what is kept, in words.
    """
    def say(words: str) -> None:
        print(f"asked to stop: {state}, {words}", file=sys.stderr, flush=True)

    job = queue_name() if preempted.requeue else None
    say(f"job {job} goes back into the queue" if job else "the same command goes on from there")
    sys.stdout.flush()
    if job and (failure := requeue(job)):
        say(f"but job {job} could not go back into the queue ({failure}); submit it again")


@contextmanager
def ends_at_once() -> Iterator[None]:
    """A context for work whose every file is whole or absent, and which another start goes on with: a request to stop
    ends it at once, with status 75, after the job went back into the queue where that was asked for.

    Each process of a job asks for it, since those that are done are gone; the scheduler refuses the later ones.
    """
    try:
        with Preemption(Processes()).watching():
            signal.pthread_sigmask(signal.SIG_UNBLOCK, _ASKED)  # one that the start has held back comes now
            yield
    except Preempted as preempted:
        end_preempted(preempted, "what is finished is kept")
        sys.exit(EXIT_STATUS)
