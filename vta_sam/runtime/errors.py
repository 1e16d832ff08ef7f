"""The errors that a user is meant to read, and the faults of a machine that other errors tell of."""

from __future__ import annotations

import errno
import os
import sys
from pathlib import Path
from typing import Any


class InputError(ValueError):
    """Something given from outside (a file, a config value, a checkpoint) can't be used.

    The message is one sentence or two: which file or key, what was expected, what was found, and what to do. Entry
    scripts print it without a traceback and exit with status 2.
    """


class EndOfRun(InputError):
    """None of the further items could be done either, as on a full disk: it ends a loop in which an InputError is one
    item's failure."""


# in the words of torch, of CUDA and of its libraries
_NO_MEMORY = ("out of memory", "DefaultCPUAllocator", "ALLOC_FAILED")


def is_out_of_memory(error: BaseException) -> bool:
    """Whether the machine or one of its devices had too little memory."""
    # by its name, since this module doesn't import torch
    return isinstance(error, MemoryError) or type(error).__name__ == "OutOfMemoryError" or (
        isinstance(error, RuntimeError) and any(words in str(error) for words in _NO_MEMORY))


_PASSING = frozenset(getattr(errno, name) for name in (
    "EIO", "ESTALE", "EREMOTEIO", "EMFILE", "ENFILE", "ETIMEDOUT", "ENOTCONN", "ESHUTDOWN", "EHOSTDOWN", "EHOSTUNREACH",
    "ENETDOWN", "ENETUNREACH", "ENOLINK", "ENODEV", "ENXIO") if hasattr(errno, name))
_PIECE_BYTES = 1 << 20
_MISSING = (errno.ENOENT, errno.ENOTDIR)


def passing_fault(error: BaseException, path: Path | None = None, folder: Path | None = None) -> OSError | None:
    """The fault of the machine or its file server by which a file could not be used; None where the file has its own.

    Args:
        error: raised while the file was used; it, or one of its causes, is looked at.
        path: of the file. One that was missing then and is there now was not at fault.
        folder: that holds the files. It is at fault where it is gone, or empty as the place of an unmounted share is.
    """
    cause: BaseException | None = error
    while cause is not None:
        if isinstance(cause, OSError) and cause.errno in _PASSING:
            name = cause.filename if isinstance(cause.filename, str) else None  # it may be a descriptor
            return OSError(cause.errno, os.strerror(cause.errno or 0), name)
        if isinstance(cause, OSError) and cause.errno in _MISSING and path is not None and os.path.exists(path):
            return OSError(cause.errno, "it was missing, and is there again", str(path))
        cause = cause.__cause__
    if folder is None:
        return None
    try:
        with os.scandir(folder) as entries:
            if next(entries, None) is None:
                return OSError(errno.ENOENT, "its folder is empty now", str(folder))
    except OSError as gone:
        return OSError(gone.errno, f"its folder can't be listed ({gone.strerror})", str(folder))
    return None


def is_readable(path: str | os.PathLike) -> bool:
    """Whether a file can be read from its beginning to its end."""
    try:
        with open(path, "rb", buffering=0) as file:
            while file.read(_PIECE_BYTES):
                pass
    except OSError:
        return False
    return True


def cuda_in_use() -> Any | None:
    """``torch.cuda`` where this process uses it; torch isn't imported for it."""
    torch = sys.modules.get("torch")
    return torch.cuda if torch is not None and torch.cuda.is_initialized() else None


def device_is_lost() -> bool:
    """Whether a GPU answers every call with an error, as after an illegal access, until another process is started."""
    try:
        if cuda := cuda_in_use():
            cuda.synchronize()
    except Exception:
        return True
    return False
