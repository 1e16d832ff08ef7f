"""Shards that were fetched from elsewhere, kept in a local folder that many processes share."""

from __future__ import annotations

import contextlib
import os
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

from ..atomic import atomic_path
from ..errors import InputError
from ..file_lock import alone

_OURS = "dataset-"  # begins the name of a dataset's folder below the cache; nothing else there is ever removed
_STALE_S = 3600.0  # a download that nobody has added to for so long was left by a kill


@dataclass(frozen=True)
class ShardCache:
    """``folder``/dataset-<dataset>/<shard>: whole files only, at most ``limit_bytes`` over all datasets.

    Where a new file needs room, those that weren't used for longest go first. A file that is being fetched lies beside
    under a temporary name and isn't counted. dataset: tells datasets apart, and versions of one at the same URL.
    """

    folder: Path
    limit_bytes: int
    dataset: str

    def open(self, name: str, fetch: Callable[[Path], None]) -> BinaryIO:
        """The file called ``name``, open for reading; ``fetch`` writes it to a path where it isn't here.

        An open file stays readable when another process removes it. Raises InputError where the folder can't be
        written, or holds less than this one file.
        """
        path = self._path(name)
        try:
            if kept := _open_kept(path):
                return kept
            path.parent.mkdir(parents=True, exist_ok=True)
            with alone(path):
                return _open_kept(path) or self._land(path, fetch)  # another process may have brought it by now
        except OSError as error:
            raise InputError(f"the cache {self.folder} can't be used ({error}); make room there, name another folder "
                             "with data.cache=, or none") from error

    def forget(self, name: str) -> bool:
        """Remove a file, so that it is fetched anew ⇒ whether there was one to remove."""
        try:
            self._path(name).unlink()
        except OSError:
            return False
        return True

    def _path(self, name: str) -> Path:
        return self.folder / f"{_OURS}{self.dataset}" / name

    def _land(self, path: Path, fetch: Callable[[Path], None]) -> BinaryIO:
        with ExitStack() as until_renamed, atomic_path(path) as temporary:
            fetch(temporary)
            size = temporary.stat().st_size
            if size > self.limit_bytes:
                raise InputError(f"{path.name} has {size / 1e9:.3g} GB, more than all of the cache {self.folder} may "
                                 f"hold ({self.limit_bytes / 1e9:.3g} GB); raise data.cache_gb, or leave out "
                                 "data.cache")
            until_renamed.enter_context(alone(self.folder / "room"))
            self._make_room(size)
            return open(temporary, "rb")

    def _make_room(self, wanted: int) -> None:
        kept = sorted(self._files(), key=lambda file: file[1].st_mtime_ns)
        total = sum(status.st_size for _, status in kept)
        for path, status in kept:
            if total + wanted <= self.limit_bytes:
                break
            path.unlink(missing_ok=True)
            total -= status.st_size

    def _files(self) -> Iterator[tuple[Path, os.stat_result]]:
        """Whole files of all datasets; what kills left behind is removed on the way."""
        for path in self.folder.glob(f"{_OURS}*/*"):
            try:
                status = path.stat()
            except FileNotFoundError:
                continue  # another process renamed or removed it
            if not path.name.startswith("."):
                yield path, status
            elif ".partial" in path.suffixes and time.time() - status.st_mtime > _STALE_S:
                path.unlink(missing_ok=True)


def _open_kept(path: Path) -> BinaryIO | None:
    try:
        file = open(path, "rb")
    except FileNotFoundError:
        return None
    with contextlib.suppress(PermissionError):  # of a file that another user has fetched
        os.utime(file.fileno())  # when it was last used; by its name it may be gone already
    return file
