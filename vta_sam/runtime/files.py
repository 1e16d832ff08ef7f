"""Files that are either whole or absent, locks between processes, and the policy of retries."""

from __future__ import annotations

import errno
import hashlib
import os
import secrets
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Callable, Iterator

from filelock import BaseFileLock, FileLock, SoftFileLock, Timeout

from .errors import EndOfRun, InputError

_LONGEST_NAME = 255  # bytes; of nearly all file systems
_LONGEST_SUFFIX = 16  # bytes that a temporary name takes over from its target


def temporary_beside(path: Path) -> Path:
    """A hidden path beside ``path`` that nothing has yet: ``.<16 hex digits>.partial<suffix>``.

    The length of its name doesn't depend on the target's. It keeps the suffix, since encoders choose a container by it,
    and starts with a dot, so that a glob for finished files passes it over.
    """
    suffix = path.suffix if len(os.fsencode(path.suffix)) <= _LONGEST_SUFFIX else ""
    return path.with_name(f".{secrets.token_hex(8)}.partial{suffix}")


@contextmanager
def atomic_path(path: str | os.PathLike, sync: bool = False) -> Iterator[Path]:
    """A temporary path beside ``path`` to write to; renamed onto it when the block ends, removed if the block raises.

    Its name is that of :func:`temporary_beside`. Missing parent folders are made. ``sync=True`` flushes the file and
    its folder to the disk, so that the rename is a commit even if the machine loses power.
    """
    target = Path(path)
    target.parent.mkdir(parents=True, exist_ok=True)
    temporary = temporary_beside(target)
    try:
        yield temporary
        if sync:
            _sync(temporary)
        os.replace(temporary, target)
        if sync:
            _sync(target.parent)
    finally:
        with suppress(OSError):  # of a file system that became read-only, whose own error is the one to tell
            temporary.unlink(missing_ok=True)


def write_bytes(path: str | os.PathLike, data: bytes | memoryview, sync: bool = False) -> None:
    """Write ``data`` to ``path`` atomically."""
    with atomic_path(path, sync=sync) as temporary:
        temporary.write_bytes(data)


def write_text(path: str | os.PathLike, text: str, sync: bool = False) -> None:
    """Write ``text`` to ``path`` as UTF-8, atomically, with line ends as given."""
    write_bytes(path, text.encode("utf-8"), sync=sync)


def require_name(path: Path) -> None:
    """Raise InputError where the file system can't hold a file of this name, since it is too long."""
    try:
        longest = os.pathconf(existing_folder(path.parent), "PC_NAME_MAX")
    except (OSError, ValueError, AttributeError):  # a file system or a system that doesn't say
        longest = 0
    longest, length = longest if longest > 0 else _LONGEST_NAME, len(os.fsencode(path.name))
    if length > longest:
        raise InputError(f"{printable(path.name)} can't be a file's name: it has {length} bytes in UTF-8, at most "
                         f"{longest} are possible; give a shorter name")


def printable(text: object) -> str:
    """Text that can be printed and written as UTF-8: bytes of a file's name that are none stand as ``\\udcXX``."""
    return str(text).encode("utf-8", "backslashreplace").decode("utf-8")


def write_fault(error: BaseException, folder: Path | None = None, key: str = "out") -> str | None:
    """The sentence for users on a full disk, or on a folder that can't be written to; None for every other error.

    Args:
        error: it, or one of its causes, is looked at.
        folder: that was written to; None: the path in the error.
        key: the setting that named the folder.
    """
    cause: BaseException | None = error
    while cause is not None:
        code, name = getattr(cause, "errno", None), getattr(cause, "filename", None)
        place = f"{key}={folder}" if folder is not None else printable(os.fsdecode(name)) if name else "the files"
        if code in (errno.ENOSPC, errno.EDQUOT):
            return f"no space left for {place}; make room, and the same command goes on where it ended"
        where = existing_folder(folder) if folder is not None else Path(os.fsdecode(name)).parent if name else None
        refused = code in (errno.EACCES, errno.EPERM) and where is not None and not os.access(where, os.W_OK | os.X_OK)
        if code is not None and (code == errno.EROFS or refused):
            return f"{place} can't be written to ({os.strerror(code)}); name another folder"
        cause = cause.__cause__
    return None


@contextmanager
def writing_to(folder: Path, key: str = "out") -> Iterator[None]:
    """A context for writing results to a folder.

    Raises:
        EndOfRun: the disk is full, or the folder can't be written to.
    """
    try:
        yield
    except EndOfRun:
        raise
    except Exception as error:
        sentence = write_fault(error, folder, key)
        if sentence is None:
            raise
        raise EndOfRun(sentence) from error


def existing_folder(folder: Path) -> Path:
    """The folder, or the nearest one above it that exists."""
    return next((parent for parent in (folder, *folder.absolute().parents) if parent.is_dir()), Path("/"))


def _sync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


@contextmanager
def exclusive(path: Path, waiting: Callable[[], None] = lambda: None) -> Iterator[None]:
    """Hold a lock on ``path`` while the block runs, so that one process at a time works there.

    The lock is the file ``.<name>.lock`` beside ``path``, with a hash of the name where it would be too long; it stays
    there, unlocked, and a killed process leaves it unlocked too. A file system that can't lock files (Lustre without
    flock, some NFS servers) gets a lock file that holds its owner's process id instead.

    Args:
        path: file or folder to lock; its parent must exist.
        waiting: called once if another process holds the lock.
    """
    own = os.fsencode(path.name)
    short = path.name if len(own) <= _LONGEST_NAME - len("..lock") else hashlib.sha256(own).hexdigest()
    name = path.with_name(f".{short}.lock")
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
