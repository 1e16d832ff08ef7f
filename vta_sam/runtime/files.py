"""Files that are either whole or absent, locks between processes, and the policy of retries."""

from __future__ import annotations

import errno
import os
import secrets
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Callable, Iterator

from filelock import BaseFileLock, FileLock, SoftFileLock, Timeout


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
def exclusive(path: Path, waiting: Callable[[], None] = lambda: None) -> Iterator[None]:
    """Hold a lock on ``path`` while the block runs, so that one process at a time works there.

    The lock is the file ``.<name>.lock`` beside ``path``; it stays there, unlocked, and a killed process leaves it
    unlocked too. A file system that can't lock files (Lustre without flock, some NFS servers) gets a lock file that
    holds its owner's process id instead.

    Args:
        path: file or folder to lock; its parent must exist.
        waiting: called once if another process holds the lock.
    """
    name = path.with_name(f".{path.name}.lock")
    lock: BaseFileLock = FileLock(name)
    try:
        _acquire(lock, waiting)
    except OSError as error:
        if error.errno not in (errno.ENOLCK, errno.EOPNOTSUPP):
            raise
        lock = SoftFileLock(name.with_suffix(".soft"))
        _acquire(lock, waiting)
    try:
        yield
    finally:
        lock.release()


def _acquire(lock: BaseFileLock, waiting: Callable[[], None]) -> None:
    try:
        lock.acquire(timeout=0)
    except Timeout:
        waiting()
        lock.acquire()


RETRIED_STATUSES = (408, 425, 429, 500, 502, 503, 504)  # of HTTP: a later attempt may succeed


@dataclass(frozen=True)
class RetryPolicy:
    """Time limits and retries of requests to a server.

    Args:
        connect_s: limit of a connection attempt.
        read_s: longest time without a single byte.
        attempts: failed attempts in a row before giving up; one that brought data starts the count anew.
        wait_s: pause before the second attempt; doubled before each one after it.
    """

    connect_s: float = 10.0
    read_s: float = 60.0
    attempts: int = 5
    wait_s: float = 1.0

    def pause_s(self, failures: int) -> float:
        """The pause after so many failures in a row, in seconds."""
        return self.wait_s * 2 ** max(failures - 1, 0)
