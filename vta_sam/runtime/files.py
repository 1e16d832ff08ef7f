"""Files that are either whole or absent, tars among them, locks between processes, and the policy of retries."""

from __future__ import annotations

import errno
import hashlib
import os
import secrets
import tarfile
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO, Callable, Iterator, cast

from filelock import BaseFileLock, FileLock, SoftFileLock, Timeout

from . import private_folder
from .errors import EndOfRun, InputError, is_out_of_memory

_LONGEST_NAME = 255  # bytes; of nearly all file systems
REPORT = "report"  # its claim is that of a whole folder
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


_NO_LINKS = (errno.EPERM, errno.EOPNOTSUPP, errno.ENOSYS, errno.EMLINK)


def write_new(path: Path, text: str) -> bool:
    """Write ``text`` to ``path`` as UTF-8, whole and flushed to the disk, unless there is such a file ⇒ whether it was
    written here.

    Of several processes one writes it, on a network file system too: a hard link is made by one of them alone. A file
    system without links gets the file under a lock.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = temporary_beside(path)
    try:
        temporary.write_bytes(text.encode("utf-8"))
        _sync(temporary)
        try:
            os.link(temporary, path)
        except FileExistsError:
            return False
        except OSError as error:
            if error.errno not in _NO_LINKS:
                raise
            with exclusive(path):
                if path.exists():
                    return False
                os.replace(temporary, path)
        _sync(path.parent)
        return True
    finally:
        with suppress(OSError):
            temporary.unlink(missing_ok=True)


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


def reason_of(error: Exception, item: object) -> str:
    """The sentence on an error that is one item's alone; any other error is raised again.

    Args:
        error: just caught.
        item: a video, a file, or the name of a clip.
    """
    if isinstance(error, EndOfRun):
        raise error
    if isinstance(error, InputError):
        return printable(error)
    if is_out_of_memory(error):
        return printable(f"{item} needs more memory than there is")
    if isinstance(error, (OSError, UnicodeError)):
        return printable(f"{item}: {error}")
    raise error


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
def exclusive(path: Path, waiting: Callable[[], None] = lambda: None, limit_s: float | None = None) -> Iterator[None]:
    """Hold a lock on ``path`` while the block runs, so that one process at a time works there.

    The lock is the file ``.<name>.lock`` beside ``path``, with a hash of the name where it would be too long; it stays
    there, unlocked, and a killed process leaves it unlocked too. A file system that can't lock files (Lustre without
    flock, some NFS servers) gets a lock file that holds its owner's process id instead.

    Args:
        path: file or folder to lock; its parent must exist.
        waiting: called once if another process holds the lock.
        limit_s: seconds to wait at most; None: as long as it takes.

    Raises:
        InputError: another process holds the lock for longer than the limit.
    """
    lock = _acquired(_beside(path, "lock"), 0)
    if lock is None:
        waiting()
        lock = _acquired(_beside(path, "lock"), -1 if limit_s is None else limit_s)
        if lock is None:
            raise InputError(f"{path}: another process has been at it for {limit_s:g} s; see whether that one goes on, "
                             "and give the same command again")
    try:
        yield
    finally:
        lock.release()


@contextmanager
def claimed(path: Path, wait_s: float = 0, repeatable: bool = False) -> Iterator[bool]:
    """Whether this process alone makes ``path`` while the block runs; False where another process is making it.

    The claim is a lock on the file ``.<name>.claim`` beside ``path``, which is removed when the block ends. A killed
    process leaves it behind, unlocked; :func:`sweep_claims` removes it. The folder is made where it is missing, and
    removed again where nothing was written to it.

    Args:
        path: file that is to be made.
        wait_s: seconds to wait for the other process.
        repeatable: two processes that make it at once do no harm, since they write the same bytes. Where the file
            system can't lock files, only processes of one machine are kept apart then: a lock file that a machine left
            behind when it went away would hold its work up for ever.
    """
    new = not path.parent.exists()
    path.parent.mkdir(parents=True, exist_ok=True)
    place = _beside(path, "claim")
    lock = _acquired(place, wait_s, repeatable)
    try:
        yield lock is not None
    finally:
        if lock is not None:
            for file in {place, Path(lock.lock_file)}:
                with suppress(OSError):
                    file.unlink(missing_ok=True)  # before it is unlocked: later it may be another process's
            lock.release()
        if new:
            with suppress(OSError):
                path.parent.rmdir()


@contextmanager
def claimed_in_turn(path: Path, waiting: Callable[[], None], limit_s: float) -> Iterator[None]:
    """A context in which this process alone makes ``path``; another one that is at it is waited for.

    Args:
        path: see :func:`claimed`.
        waiting: called once if another process is at it.
        limit_s: seconds to wait at most.

    Raises:
        InputError: the other process is at it for longer.
    """
    with ExitStack() as until_done:
        if not until_done.enter_context(claimed(path)):
            waiting()
            if not until_done.enter_context(claimed(path, limit_s)):
                raise InputError(f"{path}: another process has been at it for {limit_s / 60:.0f} minutes; see whether "
                                 "that one goes on, and give the same command again")
        yield


@contextmanager
def alone_in(folder: Path, key: str = "out") -> Iterator[None]:
    """A context in which no other process writes a report to a folder.

    Args:
        folder: made where it is missing, and removed again where nothing was written to it.
        key: the setting that named it.

    Raises:
        InputError: another process is at it.
        EndOfRun: the folder can't be written to.
    """
    with ExitStack() as until_done:
        with writing_to(folder, key):
            alone = until_done.enter_context(claimed(folder / REPORT))
        if not alone:
            raise InputError(f"another process is writing to {key}={folder}; wait until it has ended, or name another "
                             "folder")
        yield


def sweep_claims(folder: Path) -> None:
    """Remove the claims in a folder that killed processes left behind."""
    for place in folder.glob(".*.claim"):
        with suppress(OSError):
            lock = _acquired(place, 0)
            if lock is not None:
                place.unlink(missing_ok=True)
                lock.release()


def _beside(path: Path, kind: str) -> Path:
    own = os.fsencode(path.name)
    fits = len(own) <= _LONGEST_NAME - len(f"..{kind}.soft")
    return path.with_name(f".{path.name if fits else hashlib.sha256(own).hexdigest()}.{kind}")


_LOCKLESS = (errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP)  # of a file system that can't lock files


def _acquired(place: Path, wait_s: float, of_machine: bool = False) -> BaseFileLock | None:
    """A lock on a file, or None where another process holds it for longer; -1 waits as long as it takes. of_machine:
    where the file system can't lock files, the lock is one among the processes of this machine."""
    try:
        return _acquire(FileLock(place, fallback_to_soft=False), wait_s)
    except OSError as error:
        if error.errno not in _LOCKLESS:
            raise
    if of_machine:
        name = hashlib.sha256(os.fsencode(place.absolute())).hexdigest()
        return _acquire(FileLock(private_folder() / f"{name}.claim"), wait_s)
    return _acquire(SoftFileLock(place.with_name(f"{place.name}.soft")), wait_s)


def _acquire(lock: BaseFileLock, wait_s: float) -> BaseFileLock | None:
    try:
        lock.acquire(timeout=wait_s)
    except Timeout:
        return None
    return lock


_LARGEST_MEMBER = 2**30  # bytes of one file of a record; ten minutes of features are some 50 MB
_LARGEST_HEADER = 2**20  # bytes of a member's header with its extensions; a name has hundreds


class _Headers:
    """A tar's file as tarfile gets it to walk the headers. tarfile would read a header's extension, such as a long
    name, at the size that it claims, for which memory is taken before the file turns out to be shorter."""

    def __init__(self, file: BinaryIO):
        self.tell, self.seek, self._read = file.tell, file.seek, file.read

    def read(self, size: int) -> bytes:
        if not 0 <= size <= _LARGEST_HEADER:
            raise tarfile.ReadError(f"a header claims {size} bytes, at most {_LARGEST_HEADER} are read")
        return self._read(size)


def require_whole(file: BinaryIO) -> list[tarfile.TarInfo]:
    """The members of a whole tar that unpacks to no more than its size. ``file`` is left at its beginning.

    A tar ends with two empty blocks. tarfile takes a file that was cut between two members for a whole one, and reads a
    sparse member at the size that its header claims.

    Raises:
        tarfile.TarError: it is no plain tar, was cut anywhere, or has a member that is sparse or larger than 1 GiB, or
            a header larger than 1 MiB.
    """
    file.seek(0)
    size = file.seek(0, os.SEEK_END)
    file.seek(max(0, size - 2 * tarfile.BLOCKSIZE))
    ends = size >= 2 * tarfile.BLOCKSIZE and not file.read().strip(b"\0")
    file.seek(0)
    members = []
    # plain: a small compressed file may unpack to more than memory
    with tarfile.open(fileobj=cast(BinaryIO, _Headers(file)), mode="r:") as tar:
        if not ends:
            raise tarfile.ReadError("its end mark is missing")
        for member in tar:  # each before the next: one of negative size leads back, again and again
            if member.issparse() or not 0 <= member.size <= _LARGEST_MEMBER:
                raise tarfile.ReadError(f"its member {member.name!r:.100} is sparse, or larger than "
                                        f"{_LARGEST_MEMBER >> 30} GiB, with {member.size} bytes")
            members.append(member)
    file.seek(0)
    return members


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
