"""librosa, for many processes at once.

Its loops are compiled by numba, which keeps the machine code in files. Where two processes compile the same generalised
ufunc at once, the function of one and the wrapper of the other come to lie together, and from then on every process
that loads them ends with a segmentation fault. So the processes of this project do it one after the other, in a folder
of their own: ``$XDG_CACHE_HOME/vta_sam/numba``, by default under ~/.cache.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory

import numba.core.config

from .files import exclusive


@contextmanager
def _own_cache() -> Iterator[None]:
    """Inside, numba keeps its files in a folder that no other process is in. Where there can be no such folder, it
    keeps none: compiling takes seconds, a damaged file ends the program."""
    folder = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "vta_sam" / "numba"
    config = vars(numba.core.config)
    before = config["CACHE_DIR"]
    with ExitStack() as until_compiled:
        try:
            folder.mkdir(parents=True, exist_ok=True)
            until_compiled.enter_context(exclusive(folder / "librosa"))
        except OSError:
            folder = Path(until_compiled.enter_context(TemporaryDirectory()))
        try:
            config["CACHE_DIR"] = str(folder)
            yield
        finally:
            config["CACHE_DIR"] = before


with _own_cache():
    import librosa
    import librosa.core.audio  # these hold generalised ufuncs, compiled as they are imported
    import librosa.core.pitch
    import librosa.util.utils

__all__ = ["librosa"]
