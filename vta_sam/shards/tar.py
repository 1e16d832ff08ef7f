"""Is a file a tar, and all of it?"""

from __future__ import annotations

import os
import tarfile
from typing import BinaryIO


def require_whole(file: BinaryIO) -> None:
    """Raise tarfile.TarError where ``file`` is no plain tar or was cut anywhere; leave it at its beginning.

    A tar ends with two empty blocks. tarfile takes a file that was cut between two members for a whole one.
    """
    file.seek(0)
    with tarfile.open(fileobj=file, mode="r:"):  # plain: a small compressed file may unpack to more than memory holds
        size = file.seek(0, os.SEEK_END)
        file.seek(max(0, size - 2 * tarfile.BLOCKSIZE))
        if size < 2 * tarfile.BLOCKSIZE or file.read().strip(b"\0"):
            raise tarfile.ReadError("its end mark is missing")
    file.seek(0)
