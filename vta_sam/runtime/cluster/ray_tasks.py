"""Ray: a job's tasks are Ray's own. Each runs its command in a process of its own, so that a crash costs that task
alone. The command that submits them waits for their end.
"""

from __future__ import annotations

import os
import shlex
import socket
import time
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from ..errors import InputError
from ..work_plan import counted
from .scheduler import Job, Scheduler, choice, require_counts, require_lines

INDEX = "VTA_SAM_TASK"  # counts the tasks of an array, from 0
_TO_CONNECT_S = 10.0
_TO_END_S = 30.0  # for a process that was asked to stop
_SHOWN = 5  # failed tasks that a sentence names
_STORE_BYTES = 100 << 20  # of Ray's object store on this machine, which no task uses


@dataclass(frozen=True)
class Ray(Scheduler):
    """The settings of ``conf/launcher/ray.yaml``, whose comments explain each."""

    address: str = "local"
    gpus: float | None = 1
    cpus_per_task: int = 4
    memory_gb: float | None = None
    retries: int = 3
    max_at_once: int | None = None
    shards_per_job: int | None = None
    setup: Sequence[str] = ()
    container: str | None = None
    logs: str = "runs/ray"
    dry_run: bool = False

    def __post_init__(self):
        require_counts(self, ("cpus_per_task", "max_at_once", "shards_per_job"))
        require_counts(self, ("retries",), low=0)
        require_lines(self, ("setup",))
        if not isinstance(self.address, str) or not self.address:
            raise InputError(f"launcher.address={self.address}: expected local, auto or HOST:PORT")
        for key in ("gpus", "memory_gb"):
            value = getattr(self, key)
            if value is not None and (isinstance(value, bool) or not isinstance(value, (int, float)) or not value > 0):
                raise InputError(f"launcher.{key}={value}: expected a number above 0, or null")

    @property
    def resources(self) -> dict[str, float]:
        """What a task takes, by Ray's names."""
        return {"CPU": self.cpus_per_task, **({"GPU": self.gpus} if self.gpus else {}),
                **({"memory": self.memory_gb * 1e9} if self.memory_gb else {})}

    def submit(self, job: Job) -> None:
        """Run a job and wait for its end; with dry_run print the script of its tasks alone. Ctrl-C ends the tasks.

        Raises:
            InputError: Ray is not installed or can't be reached, no machine has what a task takes, or tasks failed,
                each as often as it may be tried.
        """
        if self.dry_run:
            print(task_script(self, job), end="")
            return
        ray = _import_ray()
        _connect(ray, self)
        try:
            _require_machine(ray, self)
            _Run(ray, self, job).finish()
        finally:
            ray.shutdown()


def task_script(launcher: Ray, job: Job) -> str:
    """⇒ the script that the tasks of a job run by bash."""
    tasks = len(job.commands)
    index = f", ${INDEX} from 0 to {tasks - 1}" if job.is_array else ""
    takes = ", ".join(f"{name} {amount:g}" for name, amount in launcher.resources.items())
    return "\n".join([
        "#!/usr/bin/env bash",
        f"# {counted(tasks, 'task')} of Ray{index}; each takes {takes}, and is tried {launcher.retries + 1} times",
        "set -euo pipefail",
        f"cd {shlex.quote(str(job.folder))}",
        "# A Ray that srun or torchrun started would hand its own rank on",
        "unset RANK WORLD_SIZE LOCAL_RANK LOCAL_WORLD_SIZE ${!SLURM_@}",
        *launcher.environment(job),
        "",
        *choice(job, INDEX),
        "",
        f"exec {launcher.container_step}\"${{command[@]}}\"",
        "",
    ])


def _import_ray() -> Any:
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    try:
        import ray
    except ImportError as error:
        raise InputError(f'launcher=ray needs Ray, which can\'t be imported here ({error}): pip install '
                         "\"vta-sam[ray]\". launcher.dry_run=true prints what would run") from error
    return ray


def _connect(ray: Any, launcher: Ray) -> None:
    here = {"include_dashboard": False, "object_store_memory": _STORE_BYTES} if launcher.address == "local" else {}
    try:
        host, _, port = launcher.address.removeprefix("ray://").rpartition(":")
        if host and port.isdecimal():  # Ray itself would try for minutes
            socket.create_connection((host, int(port)), _TO_CONNECT_S).close()
        ray.init(launcher.address, log_to_driver=False, logging_level="ERROR", **here)
    except (ConnectionError, RuntimeError, ValueError, OSError) as error:
        words = " ".join(str(error).split()) or type(error).__name__
        raise InputError(f"launcher.address={launcher.address}: Ray can't be reached ({words}); auto is a cluster that "
                         "this machine belongs to, HOST:PORT another one, and local starts Ray here") from error


def _require_machine(ray: Any, launcher: Ray) -> None:
    """Refuse a task that no machine has room for: it would wait for ever. A cluster that grows may get one later."""
    machines = [node["Resources"] for node in ray.nodes() if node["Alive"]]
    if any(all(machine.get(name, 0) >= amount for name, amount in launcher.resources.items()) for machine in machines):
        return
    there = "; ".join(", ".join(f"{name} {machine.get(name, 0):g}" for name in ("CPU", "GPU", "memory"))
                      for machine in machines[:_SHOWN])
    words = (f"a task takes {', '.join(f'{name} {amount:g}' for name, amount in launcher.resources.items())}, and no "
             f"machine of this Ray has that ({there}); launcher.gpus, cpus_per_task and memory_gb say what it takes")
    if launcher.address == "local":
        raise InputError(words)
    print(f"waiting for a machine: {words}", flush=True)


@dataclass
class _Run:
    """One run of a job's tasks."""

    ray: Any
    launcher: Ray
    job: Job
    pending: dict[Any, int] = field(default_factory=dict)
    failed: dict[int, str] = field(default_factory=dict)

    def __post_init__(self):
        self.count = len(self.job.commands)
        self.name = f"{self.job.safe_name}-{time.strftime('%Y%m%d-%H%M%S')}"
        options = {"num_cpus": self.launcher.cpus_per_task, "num_gpus": self.launcher.gpus or 0,
                   "max_retries": self.launcher.retries, "retry_exceptions": True, "max_calls": 1}
        if self.launcher.memory_gb:
            options["memory"] = round(self.launcher.memory_gb * 1e9)
        self.task = self.ray.remote(**options)(_task_function())

    def log(self, index: int) -> Path:
        name = f"{self.name}_{index}.log" if self.job.is_array else f"{self.name}.log"
        return self.job.folder / self.launcher.logs / name

    def finish(self) -> None:
        """Start the tasks and wait for them. Raises InputError where some failed."""
        of = f" … {self.log(self.count - 1)}" if self.job.is_array else ""
        print(f"{counted(self.count, 'task')} ({self.job.safe_name})\nlog: {self.log(0)}{of}", flush=True)
        waiting = deque(range(self.count))
        try:
            while waiting or self.pending:
                while waiting and len(self.pending) < (self.launcher.max_at_once or self.count):
                    index = waiting.popleft()
                    # its own command alone: that of all tasks may be longer than an argument can be
                    script = task_script(self.launcher, replace(self.job, commands=[self.job.commands[index]]))
                    self.pending[self.task.remote(script, index, str(self.log(index)))] = index
                for ended in self.ray.wait(list(self.pending))[0]:
                    self._end(ended)
        except BaseException:
            if self.pending:
                for task in self.pending:
                    self.ray.cancel(task)
                self.ray.wait(list(self.pending), num_returns=len(self.pending), timeout=_TO_END_S + 5)
            raise
        if self.failed:
            named = "; ".join(f"task {index}: {why} ({self.log(index)})"
                              for index, why in sorted(self.failed.items())[:_SHOWN])
            raise InputError(f"{len(self.failed)} of {counted(self.count, 'task')} failed: {named}. What is finished "
                             "is kept; the same command makes the rest")

    def _end(self, ended: Any) -> None:
        index = self.pending.pop(ended)
        try:
            self.ray.get(ended)
        except self.ray.exceptions.RayError as error:
            lines = str(getattr(error, "cause", None) or error).strip().splitlines()
            self.failed[index] = lines[0] if lines else type(error).__name__
        print(f"task {index}: {self.failed.get(index, 'done')}", flush=True)


def _task_function() -> Callable[[str, int, str], None]:
    """The function that Ray's workers run. A nested one travels by value: a worker needs Ray, and not this package."""
    variable, to_end_s = INDEX, _TO_END_S

    def run(script: str, index: int, log: str) -> None:
        """Run a task's script; RuntimeError where it fails, so that Ray tries it again."""
        import contextlib
        import ctypes
        import os
        import signal
        import subprocess
        import time

        libc, parent = ctypes.CDLL(None), os.getpid()

        def die_with_parent() -> None:
            """A worker that is killed must not leave a process behind that goes on beside the next try."""
            if hasattr(libc, "prctl"):
                libc.prctl(1, signal.SIGKILL)  # PR_SET_PDEATHSIG
                if os.getppid() != parent:
                    os.kill(os.getpid(), signal.SIGKILL)

        os.makedirs(os.path.dirname(log), exist_ok=True)
        with open(log, "ab") as said:  # a further try goes on in it
            process = subprocess.Popen(["bash", "-c", script], stdin=subprocess.DEVNULL, stdout=said, stderr=said,
                                       env={**os.environ, variable: str(index)}, start_new_session=True,
                                       preexec_fn=die_with_parent)
            try:
                while process.poll() is None:
                    time.sleep(0.2)  # in between a request to end is noticed
            except BaseException:
                process.terminate()
                with contextlib.suppress(subprocess.TimeoutExpired):
                    process.wait(to_end_s)
                raise
            finally:
                with contextlib.suppress(ProcessLookupError):
                    os.killpg(process.pid, signal.SIGKILL)  # it, or what it has left behind
                status = process.wait()
        if status:
            how = f"killed by signal {-status}" if status < 0 else f"ended with status {status}"
            raise RuntimeError(how)

    return run
