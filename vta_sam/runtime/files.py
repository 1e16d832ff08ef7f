"""Files that are either whole or absent: written under a temporary name in the same folder, then renamed."""

from __future__ import annotations

import fcntl
import os
import secrets
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Callable, Iterator

# MERGED-DOC """One process at a time, by a file that is locked; a kill leaves no lock behind."""
# MERGED-DOC """How long to wait for a server, and which of its answers are worth asking again."""


@contextmanager
def atomic_path(path: str | os.PathLike, sync: bool = False) -> Iterator[Path]:
    """A temporary path beside ``path`` to write to; renamed onto it when the block ends, removed if the block raises.

    The temporary name keeps the suffix, since encoders choose a container by it, and starts with a dot, so that a glob
    for finished files passes it over. Missing parent folders are made. ``sync=True`` flushes the file and its folder to
    the disk, so that the rename is a commit even if the machine loses power.
    """
    target = Path(path)
    target.parent.mkdir(parents=True, exist_ok=True)
    temporary = target.with_name(f".{target.stem}.{secrets.token_hex(4)}.partial{target.suffix}")
    try:
        yield temporary
        if sync:
            _sync(temporary)
        os.replace(temporary, target)
        if sync:
            _sync(target.parent)
    finally:
        temporary.unlink(missing_ok=True)


def write_bytes(path: str | os.PathLike, data: bytes, sync: bool = False) -> None:
    """Write ``data`` to ``path`` atomically."""
    with atomic_path(path, sync=sync) as temporary:
        temporary.write_bytes(data)


def write_text(path: str | os.PathLike, text: str, sync: bool = False) -> None:
    """Write ``text`` to ``path`` as UTF-8, atomically, with line ends as given."""
    write_bytes(path, text.encode("utf-8"), sync=sync)


def _sync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


@contextmanager
def alone(path: Path, waiting: Callable[[], None] = lambda: None) -> Iterator[None]:
    """Wait until no other process is at ``path``, and keep others waiting. ``waiting`` is called where there is a wait.

    The lock is ``.<name>.lock`` beside ``path``, whose folder must exist; it is removed at the end.
    """
    lock = path.with_name(f".{path.name}.lock")
    while True:
        descriptor = os.open(lock, os.O_RDWR | os.O_CREAT, 0o644)
        try:
            try:
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                waiting()
                fcntl.flock(descriptor, fcntl.LOCK_EX)
            if not _is_still(lock, descriptor):
                continue  # the one who held it has removed it, and a third may hold a new one
            try:
                yield
            finally:
                lock.unlink(missing_ok=True)
            return
        finally:
            os.close(descriptor)


def _is_still(path: Path, descriptor: int) -> bool:
    """Is the open file the one that has this name?"""
    try:
        return os.path.samestat(os.fstat(descriptor), os.stat(path))
    except FileNotFoundError:
        return False


PASSING_STATUSES = (408, 425, 429, 500, 502, 503, 504)  # of HTTP: it may be otherwise a moment later


@dataclass(frozen=True)
class Patience:
    """How long to wait for a server, and how often to ask it again."""

    connect_s: float = 10.0
    read_s: float = 60.0  # without a single byte
    attempts: int = 5  # in a row that bring next to nothing
    wait_s: float = 1.0  # before the second attempt; doubled before each one after it

    def pause_s(self, failures: int) -> float:
        """How long to wait after so many failures in a row."""
        return self.wait_s * 2 ** max(failures - 1, 0)
