"""librosa, for many processes at once.

Its loops are compiled by numba, which keeps the machine code in files. Where two processes compile the same generalised
ufunc at once, the function of one and the wrapper of the other come to lie together, and from then on every process
that loads them ends with a segmentation fault. So the processes of this project do it one after the other, in a folder
of their own: ``vta_sam/numba`` in $XDG_CACHE_HOME, by default in ~/.cache.

Other functions are compiled when they are first called, and in other processes. They are kept in the same folder
unless NUMBA_CACHE_DIR names one, since numba refuses to go on where neither the installation nor a home can be written.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

import numba.core.config

from . import cache_folder, private_folder, takes_files
from .files import exclusive


@contextmanager
def _own_cache() -> Iterator[None]:
    """Inside, numba keeps its files in a folder that no other process is in."""
    folder = cache_folder("numba")
    config = vars(numba.core.config)
    with ExitStack() as until_compiled:
        try:
            until_compiled.enter_context(exclusive(folder / "librosa"))
        except OSError:  # the lock is another user's
            folder = private_folder() / "numba"
            folder.mkdir(exist_ok=True)
            until_compiled.enter_context(exclusive(folder / "librosa"))
        config["CACHE_DIR"] = str(folder)
        yield
    named = os.environ.get("NUMBA_CACHE_DIR")
    if not (named and takes_files(Path(named))):
        os.environ["NUMBA_CACHE_DIR"] = str(folder)  # numba reads it anew from time to time, and children read it
    config["CACHE_DIR"] = os.environ["NUMBA_CACHE_DIR"]


with _own_cache():
    import librosa
    import librosa.core.audio  # these hold generalised ufuncs, compiled as they are imported
    import librosa.core.pitch
    import librosa.util.utils

__all__ = ["librosa"]
