"""Processes that are forked from one that has imported torch and its friends already: importing them takes longer than
what most tests have a process do."""

from __future__ import annotations

import multiprocessing
import os
import sys
import tempfile
from collections.abc import Callable, Mapping
from pathlib import Path

# The first test of a file that forks starts the server, which imports these once
PRELOAD = ["pytest", "inflect", "nltk", "textblob", "torch", "lightning", "vta_sam.training.diffusion_stage",
           "vta_sam.training.part_stages", "vta_sam.dataset.extraction.extract", "vta_sam.embedded.extractors",
           "vta_sam.generation.pipeline"]


class Fork:
    """A process that can be asked as a subprocess.Popen is; what it prints goes to a file that :meth:`read` reads."""

    def __init__(self, function: Callable[..., object], *arguments: object,
                 environ: Mapping[str, str] | None = None, folder: Path | None = None):
        context = multiprocessing.get_context("forkserver")
        context.set_forkserver_preload(PRELOAD)
        number, name = tempfile.mkstemp(suffix=".txt")
        os.close(number)
        self.output = Path(name)
        self.process = context.Process(target=_run, args=(
            function, arguments, dict(os.environ if environ is None else environ), str(folder or Path.cwd()), name))
        self.process.start()
        assert self.process.pid is not None
        self.pid, self.kill = self.process.pid, self.process.kill

    def poll(self) -> int | None:
        return self.process.exitcode

    def wait(self, timeout_s: float | None = None) -> int:
        """The exit status; that of a signal is negative. AssertionError where it goes on for longer."""
        self.process.join(timeout_s)
        assert self.process.exitcode is not None, f"it goes on after {timeout_s} s: {self.output.read_text()[-2000:]}"
        return self.process.exitcode

    def read(self) -> str:
        """What it has printed, of both streams."""
        return self.output.read_text()

    def close(self) -> None:
        """Kill it, and remove its file."""
        self.kill()
        self.process.join()
        self.output.unlink(missing_ok=True)


def _run(function: Callable[..., object], arguments: tuple, environ: dict[str, str], folder: str, output: str) -> None:
    import torch

    os.setsid()  # so that its children are known by it
    torch.set_num_threads(1)
    os.environ.clear()
    os.environ.update(environ)
    os.chdir(folder)
    said = os.open(output, os.O_WRONLY | os.O_APPEND)
    for stream in (sys.stdout, sys.stderr):
        stream.flush()
        os.dup2(said, stream.fileno())
    function(*arguments)
