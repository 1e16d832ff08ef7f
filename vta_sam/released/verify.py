"""Is a file on the disk the one that was released?"""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Callable, Literal

from .registry import Entry, ReleasedFile

# bytes done, bytes in all
Progress = Callable[[int, int], None]
State = Literal["present", "missing", "wrong"]
_BLOCK_BYTES = 1 << 20


def state(entry: Entry, folder: Path) -> State:
    """By the names and sizes of its files alone; nothing is read."""
    found = [_state_of(folder / file.path, file) for file in entry.files]
    return "wrong" if "wrong" in found else "missing" if "missing" in found else "present"


def _state_of(path: Path, file: ReleasedFile) -> State:
    if not path.is_file():
        return "wrong" if path.exists() else "missing"
    return "present" if file.size_bytes in (None, path.stat().st_size) else "wrong"


def fault(path: Path, file: ReleasedFile, progress: Progress | None = None) -> str | None:
    """What tells the file at ``path`` from the one released, in words; None if nothing that is known does."""
    if not path.is_file():
        return "it is no file"
    size = path.stat().st_size
    if file.size_bytes is not None and size != file.size_bytes:
        return f"it holds {size} bytes, but {file.size_bytes} were released"
    if file.sha256 is not None and (found := sha256(path, progress)) != file.sha256:
        return f"its sha256 is {found}, but that of the released file is {file.sha256}"
    return None


def sha256(path: Path, progress: Progress | None = None) -> str:
    """The checksum of a file of any size, read in blocks; 64 hexadecimal digits."""
    digest, done, total = hashlib.sha256(), 0, path.stat().st_size
    with open(path, "rb") as stream:
        while block := stream.read(_BLOCK_BYTES):
            digest.update(block)
            done += len(block)
            if progress is not None:
                progress(done, total)
    return digest.hexdigest()
