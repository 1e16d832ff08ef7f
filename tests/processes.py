"""Programs watched from outside, by Linux' /proc: who is alive, how much memory each took, who was left behind."""

from __future__ import annotations

import subprocess
import tempfile
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path


@dataclass
class Run:
    """How a program ended. Peaks are resident memory in MiB."""

    status: int
    output: str
    errors: str
    peak_mb: int
    largest_child_mb: int
    children: int  # how many there were in all
    left: dict[int, str]  # what was still alive a moment after it had ended: pid and command


def run_watched(command: Sequence[str | Path], environment: dict[str, str], limit_s: float) -> Run:
    """Run a program in a session of its own, so that its children are known by it, and look at them all many times a
    second. It is killed, and the test fails, after ``limit_s``."""
    peaks: dict[int, int] = {}
    with tempfile.TemporaryFile("w+") as output, tempfile.TemporaryFile("w+") as errors:
        process = subprocess.Popen(list(map(str, command)), env=environment, stdin=subprocess.DEVNULL, stdout=output,
                                   stderr=errors, start_new_session=True)
        end = time.monotonic() + limit_s
        try:
            while process.poll() is None:
                assert time.monotonic() < end, f"it runs for longer than {limit_s} s"
                alive = session_of(process.pid)
                for pid, name in alive.items():
                    # a child that is only about to become another program still shows its parent's memory
                    if pid == process.pid or name != alive.get(process.pid):
                        peaks[pid] = max(peaks.get(pid, 0), _peak_mb(pid))
                time.sleep(0.02)
        finally:
            process.kill()
            process.wait()
        left = survivors(lambda: session_of(process.pid), 3.0)
        output.seek(0)
        errors.seek(0)
        children = [peak for pid, peak in peaks.items() if pid != process.pid]
        return Run(process.returncode, output.read(), errors.read(), peaks.get(process.pid, 0),
                   max(children, default=0), len(children), left)


def survivors(look: Callable[[], dict[int, str]], patience_s: float) -> dict[int, str]:
    """What ``look`` still sees after it had ``patience_s`` to see nothing."""
    end = time.monotonic() + patience_s
    while (alive := look()) and time.monotonic() < end:
        time.sleep(0.02)
    return alive


def session_of(leader: int) -> dict[int, str]:
    """Living processes of the session that ``leader`` began, itself included ⇒ {pid: command}."""
    return _living(lambda pid, parent, session: session == leader)


def children_of(pid: int) -> dict[int, str]:
    """Living children of a process ⇒ {pid: command}."""
    return _living(lambda child, parent, session: parent == pid)


def still_alive(pids: Iterable[int], patience_s: float = 10.0) -> dict[int, str]:
    """Those of some processes that don't end within ``patience_s`` ⇒ {pid: command}. The kernel needs a moment for one
    that was killed; one whose end nobody asked about has an entry in /proc for ever."""
    wanted = set(pids)
    return survivors(lambda: _living(lambda pid, parent, session: pid in wanted), patience_s)


def _living(wanted: Callable[[int, int, int], bool]) -> dict[int, str]:
    found = {}
    for folder in Path("/proc").iterdir():
        if folder.name.isdigit():
            try:
                state, parent, _, session = (folder / "stat").read_text().rpartition(")")[2].split()[:4]
                if state not in "ZX" and wanted(int(folder.name), int(parent), int(session)):  # dead ones may stay
                    command = (folder / "cmdline").read_bytes().replace(b"\0", b" ")
                    found[int(folder.name)] = command.decode(errors="replace")[:200]
            except (OSError, ValueError):  # it ended meanwhile
                continue
    return found


def _peak_mb(pid: int) -> int:
    try:
        lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    except OSError:
        return 0
    return next((int(line.split()[1]) >> 10 for line in lines if line.startswith("VmHWM")), 0)
