"""librosa, for many processes at once.

Its loops are compiled by numba, which keeps the machine code in files. Where two processes compile the same generalised
ufunc at once, the function of one and the wrapper of the other come to lie together, and from then on every process
that loads them ends with a segmentation fault. So the processes of this project do it one after the other, in a folder
of their own: ``$XDG_CACHE_HOME/vta_sam/numba``, by default under ~/.cache.
"""

from __future__ import annotations

import fcntl
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numba


@contextmanager
def _own_cache() -> Iterator[None]:
    """Inside, numba keeps its files in a folder that no other process is in. Where there can be no such folder, it
    keeps none: compiling takes seconds, a damaged file ends the program."""
    folder = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "vta_sam" / "numba"
    before = numba.config.CACHE_DIR
    try:
        folder.mkdir(parents=True, exist_ok=True)
        lock = open(folder / ".lock", "a")
        fcntl.flock(lock, fcntl.LOCK_EX)
    except (OSError, RuntimeError):
        import tempfile

        with tempfile.TemporaryDirectory() as nowhere:
            numba.config.CACHE_DIR = nowhere
            yield
    else:
        with lock:
            numba.config.CACHE_DIR = str(folder)
            yield
    finally:
        numba.config.CACHE_DIR = before


with _own_cache():
    import librosa
    import librosa.core.audio  # these hold generalised ufuncs, compiled as they are imported
    import librosa.core.pitch
    import librosa.util.utils

__all__ = ["librosa"]
