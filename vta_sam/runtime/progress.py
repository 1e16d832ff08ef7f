"""Progress on the terminal and in a job's log: of clips, and of a job of several stages with the time that is left."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from datetime import timedelta
from importlib.util import find_spec

from rich.cells import cell_len
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, ProgressColumn, Task, TextColumn, TimeRemainingColumn
from rich.text import Text

from .work_plan import PartTimes, StepPace

LOG_EVERY_S, FIRST_LINE_S = 60.0, 10.0  # between two lines of progress in a log; before a phase's first
_BAR_FROM = 100  # columns of a terminal that has room for a bar


def duration(seconds: float) -> str:
    """"45 s", "12 min", "5.5 h", "3.2 days"."""
    for unit, length, below in (("s", 1, 90), ("min", 60, 90 * 60), ("h", 3600, 36 * 3600)):
        if seconds < below:
            return f"{seconds / length:.{1 if unit == 'h' else 0}f} {unit}"
    return f"{seconds / 86400:.1f} days"


def pace(clips_per_s: float) -> str:
    """"35.0 clips/s", "3.1 s a clip"."""
    return f"{clips_per_s:.1f} clips/s" if clips_per_s >= 0.5 else f"{1 / clips_per_s:.1f} s a clip"


class _Rate(ProgressColumn):
    """Column with clips a second and failed clips of this run."""

    def render(self, task: Task) -> Text:
        rate = pace(task.speed) if task.speed else "… clips/s"
        failed = task.fields.get("failed", 0)
        return Text(f"{rate}, {failed} failed", style="red" if failed else "default")


def progress_bar() -> Progress:
    """A progress bar of clips done, time left, clips/s and failures; its tasks have a field ``failed``."""
    return Progress(TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn(), _Rate())


@contextmanager
def terminal_progress(title: str, log_every_s: float = 60.0) -> Iterator[Callable[[int, int, int], None]]:
    """Yields a function of (clips done, clips in all, clips failed) that shows progress.

    It shows a bar on a terminal. Elsewhere, as in the log of a job, it prints lines.

    Args:
        title: of the bar or of each line.
        log_every_s: seconds between two lines; the first and the last call print one in any case.
    """
    bar = progress_bar()
    if not bar.console.is_terminal:
        yield _ProgressLines(title, log_every_s, lambda line: bar.console.print(line, soft_wrap=True, markup=False))
        return
    with bar:
        task = bar.add_task(title, total=None, failed=0)

        def update(done: int, clips: int, failed: int) -> None:
            if bar.tasks[0].total is None:  # clips of earlier runs don't count in the speed
                bar.reset(task, total=clips, completed=done)
            bar.update(task, completed=done, failed=failed)

        yield update


class _ProgressLines:
    """Prints lines with clips done, clips a second in this run, time left and failures."""

    def __init__(self, title: str, every_s: float, print_line: Callable[[str], None]) -> None:
        self.title, self.every_s, self.print_line = title, every_s, print_line
        self.start: tuple[float, int] | None = None  # time, and clips of earlier runs
        self.last_line_s = -math.inf

    def __call__(self, done: int, clips: int, failed: int) -> None:
        now_s = time.monotonic()
        self.start = self.start or (now_s, done)
        if now_s - self.last_line_s < self.every_s and done < clips:
            return
        self.last_line_s = now_s
        elapsed_s, done_here = now_s - self.start[0], done - self.start[1]
        ahead = ""
        if done_here and elapsed_s > 0:
            left = timedelta(seconds=round((clips - done) * elapsed_s / done_here))
            ahead = f", {pace(done_here / elapsed_s)}, {left} left"
        self.print_line(f"{self.title}: {done}/{clips}{ahead}, {failed} failed")


def _redraws(console: Console) -> bool:
    """Whether a line can be drawn anew where it stands: on a terminal, and in a notebook by its widgets."""
    if console.is_jupyter:
        return find_spec("ipywidgets") is not None
    return console.is_terminal and not console.is_dumb_terminal


class Phase:
    """One count of a stage, such as its training steps or the clips that are rendered. See :meth:`JobProgress.phase`.
    """

    def __init__(self, job: "JobProgress", name: str, total: int, last: bool, steps: StepPace | None, begun: int):
        self.job, self.name, self.last, self.steps = job, name, last, steps
        self.note, self.ended = "", False
        self.begun = begun if steps else None  # what was done before; None until the first clip tells
        self.before_s = job.elapsed_s
        console, self._since = job.console, time.monotonic()
        self._live = not console.quiet and _redraws(console)
        columns = [*([BarColumn(20)] if console.width >= _BAR_FROM else []), _Line(self)]
        self.bar = Progress(*columns, console=console, refresh_per_second=2, disable=not self._live,
                            get_time=time.monotonic)
        self.bar.add_task(name, total=total, completed=begun)
        [self._task] = self.bar.tasks
        self._line_due_s = FIRST_LINE_S

    @property
    def done(self) -> int:
        return int(self._task.completed)

    @property
    def total(self) -> int:
        return int(self._task.total or 0)

    def update(self, done: int, note: str | None = None) -> None:
        """So many are done, of all and not only here. note: to be shown from now on, as "loss 0.21"."""
        self.begun = done if self.begun is None else self.begun
        self.note = self.note if note is None else note
        self.bar.update(self._task.id, completed=done)
        waited = time.monotonic() - self._since
        if not self._live and waited >= self._line_due_s and done < self.total:
            self._line_due_s = waited + LOG_EVERY_S
            self.say()

    def advance(self, more: int) -> None:
        """So many more are done."""
        self.begun = self.done if self.begun is None else self.begun
        self.update(self.done + more)

    def end(self) -> None:
        """All is done. The line stays, unless all was done before."""
        self.ended = True
        if self.steps or (self.begun is not None and self.begun < self.total):
            self.say()
        else:
            self.bar.update(self._task.id, visible=False)

    def say(self) -> None:
        """Print the line, in a log."""
        if not self._live:
            self.job.console.print(self.line(), soft_wrap=True, markup=False, highlight=False)

    @property
    def left_s(self) -> float | None:
        """Of this phase; None: nothing is known yet."""
        return self.steps.seconds(self.done) if self.steps else self._task.time_remaining

    @property
    def whole_s(self) -> float | None:
        """From the stage's start to the end of this phase, as if all had been done here; None: not known."""
        if self.job.partly and not self.steps:
            return None
        own = self.steps.seconds() if self.steps else self.total / self._task.speed if self._task.speed else None
        return None if own is None else self.before_s + own

    def line(self, width: int | None = None) -> str:
        """As much of the line as fits into so many columns. None: all of it."""
        rate = None
        if self.steps:
            count = f"step {self.done}/{self.total}"
            rate = self.steps.clips / self.steps.step_s if self.steps.step_s else None
        else:
            count, rate = f"{self.name} {self.done}/{self.total} clips", self._task.speed
        took = duration(time.monotonic() - self._since)
        long, short = (f"took {took}",) * 2 if self.ended else self.job.left_in_words(self)
        head, speed = self.job.place, pace(rate) if rate else ""
        for parts in ((head, count, speed, self.note, long), (head, count, self.note, long), (head, count, long),
                      (head, count, short)):
            line = " · ".join(filter(None, parts))
            if width is None or cell_len(line) <= width:
                break
        return line


class _Line(ProgressColumn):
    """The line of a phase. It is never folded: what doesn't fit is left out."""

    def __init__(self, phase: Phase):
        super().__init__()
        self.phase = phase

    def render(self, task: Task) -> Text:
        width = self.phase.job.console.width
        return Text(self.phase.line(width - 21 if width >= _BAR_FROM else width), no_wrap=True, overflow="ellipsis")


class JobProgress:
    """The progress of a job of several stages: a line on a terminal, or now and then one in a log.

    Times are this machine's. What a stage took elsewhere only says how stages compare: a stage that hasn't begun is
    taken to differ from that as much as the stages did that ran here.

    Args:
        console: to print to; a quiet one shows nothing.
        stages: of the job, in their order.
        ahead: those that are to be made, in their order.
        elsewhere_s: {stage: seconds on another machine}; 0: not known.
        seen_s: {stage: seconds on this machine}, from earlier runs and earlier starts.
    """

    def __init__(self, console: Console | None = None, stages: Sequence[str] = (), ahead: Sequence[str] = (),
                 elsewhere_s: Mapping[str, float] | None = None, seen_s: Mapping[str, float] | None = None):
        self.console = console or Console()
        self.stages, self.ahead = list(stages), list(ahead)
        self.elsewhere_s, self.seen_s = dict(elsewhere_s or {}), dict(seen_s or {})
        self.name, self.times = "", PartTimes()
        self.partly = False  # whether a phase of this stage found things done before
        self._last: Phase | None = None

    @property
    def elapsed_s(self) -> float:
        """Of the present stage."""
        return time.perf_counter() - self.times.began

    @property
    def place(self) -> str:
        """"diffusion 3/4"."""
        if self.name not in self.stages:
            return self.name
        return f"{self.name} {self.stages.index(self.name) + 1}/{len(self.stages)}"

    @contextmanager
    def stage(self, name: str) -> Iterator[PartTimes]:
        """Inside, a stage is made, whose seconds this yields."""
        self.name, self.times, self.partly, self._last = name, PartTimes(), False, None
        yield self.times
        if name in self.ahead:
            self.ahead.remove(name)
        self.seen_s.pop(name, None)  # another run's
        if self._last:  # a stage without phases found everything there
            seen_s = self._last.whole_s if self.partly else self.elapsed_s
            self.seen_s |= {} if seen_s is None else {name: seen_s}

    @contextmanager
    def phase(self, name: str, total: int, last: bool = True, steps: StepPace | None = None, begun: int = 0,
              ) -> Iterator[Phase]:
        """Inside, clips or steps are counted, and shown.

        Args:
            name: of the part of the stage's time, and on the line.
            total: clips or steps.
            last: whether this is the stage's last phase.
            steps: the pace of training steps; None: clips are counted.
            begun: how many were done before.
        """
        phase = Phase(self, name, total, last, steps, begun)
        with self.times.part(name, last), phase.bar:
            yield phase
            phase.end()
        self._last = phase if last else None
        # clips are told of after the first, or before it
        self.partly |= (phase.begun or 0) > (0 if steps else 1) or phase.done < phase.total

    def seconds_of(self, stage: str, running: Mapping[str, float] | None = None) -> float | None:
        """What a stage takes here; None: nothing tells.

        Args:
            stage: that may not have begun.
            running: {the stage that is running: what it will have taken}.
        """
        seen = self.seen_s | dict(running or {})
        if stage in seen:
            return seen[stage]
        compared = {name: found for name, found in seen.items() if self.elsewhere_s.get(name)}
        if not compared or not self.elsewhere_s.get(stage):
            return None
        return self.elsewhere_s[stage] * sum(compared.values()) / sum(self.elsewhere_s[name] for name in compared)

    def left_in_words(self, phase: Phase) -> tuple[str, str]:
        """What is left of the stage and of the job, at length and in short; "" where nothing is known."""
        whole_s = phase.whole_s if phase.last else None
        running = {} if whole_s is None else {self.name: whole_s}
        left_s, known_s = phase.left_s, self.seconds_of(self.name) if self.name in self.ahead else None
        if known_s is not None and (left_s is None or not phase.last) and known_s > self.elapsed_s:
            left_s = max(left_s or 0.0, known_s - self.elapsed_s)
        if left_s is None:
            return "", ""
        own = f"{duration(left_s)} left"
        if not phase.last and known_s is None:  # the stage's phases to come are not known, nor the job's stages
            return own, own
        to_come = {name: self.seconds_of(name, running) for name in self.ahead if name != self.name}
        missing = ", ".join(name for name, found in to_come.items() if found is None)
        rest = [found for found in to_come.values() if found is not None]
        if not rest:
            return (f"{own}, then {missing}" if missing else own), own
        job, without = duration(left_s + sum(rest)), f" without {missing}" if missing else ""
        return f"{own}, {job} of the job{without}", f"{own}, job {job}{without}"

    def outlook(self) -> str:
        """What the stages ahead will take, before any of them has begun."""
        if not self.ahead:
            return "nothing is left to be made"
        to_come = {name: self.seconds_of(name) for name in self.ahead}
        rest = [found for found in to_come.values() if found is not None]
        missing = ", ".join(name for name, found in to_come.items() if found is None)
        if not rest:
            return "told once the first steps are timed"
        without = f", without {missing}" if missing else ""
        return f"about {duration(sum(rest))}{without}, by what was seen on this machine"
