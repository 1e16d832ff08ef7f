"""Entry scripts played in this process as their commands are run, on one processor thread and without a GPU.

In one process, because importing torch and its friends takes longer than what is done here. What is played is the
checkout that Python's path leads to, so that a record can be made of another one: PYTHONPATH=THERE python record.py.
"""

from __future__ import annotations

import contextlib
import io
import os
import platform
import runpy
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from importlib import metadata
from pathlib import Path
from unittest import mock

import one_thread  # noqa: F401  isort: skip  before numpy

from forks import Fork

import vta_sam

CHECKOUT = Path(vta_sam.__file__).resolve().parents[1]
ONE_THREAD = {name: "1" for name in ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS")}
# whose versions and builds decide how numbers are rounded and videos are encoded
_LIBRARIES = ("torch", "numpy", "scipy", "opencv-python", "av", "soundfile", "diffusers", "lightning", "librosa")
_LIMIT_S = 1800.0


@dataclass
class Job:
    """A command: the script, its arguments, the folder it is run in, environment variables besides those that there
    are, and a file that it waits for."""

    script: str
    arguments: Sequence[str]
    folder: str
    environ: dict[str, str] = field(default_factory=dict)
    after: str | None = None


def platform_line() -> str:
    """⇒ what has to be the same where results are to be the same to the last bit."""
    import torch

    known = {}
    with contextlib.suppress(OSError):
        lines = Path("/proc/cpuinfo").read_text().split("\n\n")[0].splitlines()
        known = {key.strip(): value.strip() for key, _, value in (line.partition(":") for line in lines)}
    processor = ", ".join(f"{key} {known[key]}" for key in ("model name", "cpu family", "model", "stepping") if
                          key in known) or platform.processor()
    versions = []
    for name in _LIBRARIES:
        with contextlib.suppress(metadata.PackageNotFoundError):
            versions.append(f"{name} {torch.__version__ if name == 'torch' else metadata.version(name)}")
    return "; ".join([processor, f"{platform.machine()}, {torch.backends.cpu.get_cpu_capability()}",
                      " ".join(platform.libc_ver()), ", ".join(versions), "1 thread"])


@contextlib.contextmanager
def _one_thread() -> Iterator[None]:
    import torch
    from threadpoolctl import threadpool_limits

    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        with threadpool_limits(1), mock.patch("torch.cuda.is_available", return_value=False):
            yield
    finally:
        torch.set_num_threads(before)


def play(job: Job) -> str:
    """⇒ what it printed. Raises RuntimeError, with all that it said, where it doesn't end with status 0."""
    script, said = CHECKOUT / job.script, io.StringIO()
    with contextlib.ExitStack() as stage:
        stage.enter_context(_one_thread())
        stage.enter_context(contextlib.chdir(job.folder))
        stage.enter_context(mock.patch.object(sys, "argv", [str(script), *job.arguments]))
        stage.enter_context(mock.patch.object(sys, "path", [str(script.parent), *sys.path]))
        stage.enter_context(mock.patch.dict(os.environ, {**ONE_THREAD, **job.environ}))
        stage.enter_context(contextlib.redirect_stdout(said))
        stage.enter_context(contextlib.redirect_stderr(said))
        try:
            runpy.run_path(str(script), run_name="__main__")
        except SystemExit as end:
            if end.code:
                raise RuntimeError(f"{job.script} {' '.join(job.arguments)} ended with {end.code}:\n"
                                   f"{said.getvalue()}") from end
    return said.getvalue()


def play_beside(parts: Sequence[Sequence[Job]]) -> None:
    """Several lists of jobs at once, each by a process of its own. Raises RuntimeError where one fails."""
    environ = {**os.environ, **ONE_THREAD, "CUDA_VISIBLE_DEVICES": "", "PYTHONPATH": str(CHECKOUT)}
    processes = [Fork(play_in_turn, jobs, environ=environ) for jobs in parts]
    end = time.monotonic() + _LIMIT_S
    try:
        while any(process.poll() is None for process in processes):
            failed = [process for process in processes if process.poll()]
            if failed or time.monotonic() > end:
                words = "\n".join(process.read()[-4000:] for process in failed or processes)
                raise RuntimeError(f"jobs failed, or took more than {_LIMIT_S:g} s:\n{words}")
            time.sleep(0.1)
        if any(process.poll() for process in processes):
            raise RuntimeError("jobs failed:\n" + "\n".join(process.read()[-4000:] for process in processes))
    finally:
        for process in processes:
            process.close()


def play_in_turn(jobs: Sequence[Job]) -> None:
    """One after the other, each once the file is there that it waits for."""
    for job in jobs:
        end = time.monotonic() + _LIMIT_S
        while job.after and not (Path(job.folder) / job.after).exists():
            if time.monotonic() > end:
                sys.exit(f"{job.after} never came")
            time.sleep(0.1)
        print(play(job), flush=True)
