"""Is a file a tar, and all of it?"""

from __future__ import annotations

import contextlib
import errno
import io
import logging
import os
import tarfile
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO, TypeVar

from fsspec.core import url_to_fs
from fsspec.registry import known_implementations

from ...runtime.errors import InputError
from ...runtime.files import PASSING_STATUSES, Patience, alone, atomic_path

# MERGED-DOC """Shards that were fetched from elsewhere, kept in a local folder that many processes share."""
# MERGED-DOC """A dataset at a URL: files of it through fsspec, asked for again where the line breaks, and kept in a
# cache."""


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


T = TypeVar("T")
_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Remote:
    """The files of a dataset at ``url`` (without a slash at its end).

    latents: the local folder that latent shards live in, where there is one. cache: None keeps nothing. Credentials are
    those that the protocol's package finds (environment, its own files, fsspec's configuration).
    """

    url: str
    latents: Path | None = None
    cache: ShardCache | None = None
    patience: Patience = Patience()

    def __str__(self) -> str:
        return self.url

    @property
    def latents_parent(self) -> Path:
        """The folder of folders of latent shards. Raises InputError where none was named."""
        if self.latents is None:
            raise InputError(f"latent shards of {self.url} need a local folder to live in; name one with data.latents= "
                             "(encode_latents.py: out=)")
        return self.latents

    def where(self, name: str) -> str:
        return f"{self.url}/{name}"

    def lacks(self, name: str) -> bool:
        """Never known beforehand: asking for each of thousands of shards would take minutes."""
        return False

    def read_text(self, name: str) -> str:
        """A small file, as UTF-8. Raises InputError where it can't be had."""
        data: bytes = self._persist(name, lambda system, path: system.cat_file(path))
        return data.decode("utf-8")

    def open(self, name: str) -> BinaryIO:
        """A shard, whole and open for reading: of the cache, or of memory. Raises as :meth:`read_text`."""
        if self.cache is not None:
            return self.cache.open(name, lambda local: self._fetch(name, local))

        def load(system: Any, path: str) -> BinaryIO:
            file = io.BytesIO(system.cat_file(path))
            require_whole(file)
            return file

        return self._persist(name, load)

    def forget(self, name: str) -> bool:
        """Drop a shard that turned out damaged from the cache ⇒ whether it makes sense to open it again."""
        return self.cache is not None and self.cache.forget(name)

    def _fetch(self, name: str, local: Path) -> None:
        """Write a shard to a local path."""
        def load(system: Any, path: str) -> None:
            system.get_file(path, str(local))
            with open(local, "rb") as file:
                require_whole(file)

        self._persist(name, load)

    def _persist(self, name: str, attempt: Callable[[Any, str], T]) -> T:
        """Try until it works, or until patience ends. attempt: (file system, path there) ⇒ its result."""
        where, failures = self.where(name), 0
        while True:
            system, root = self._system()
            try:
                return attempt(system, f"{root}/{name}")
            except Exception as error:  # each protocol's package has errors of its own
                _refuse_lasting(where, error)
                failures += 1
                if failures >= self.patience.attempts:
                    raise InputError(f"{where} did not come through in {failures} attempts, the last: {_words(error)}; "
                                     "see whether the server answers and the file there is whole, then give the same "
                                     "command again") from error
                pause_s = self.patience.pause_s(failures)
                _log.warning("%s: %s; asking again in %g s", where, _words(error), pause_s)
                time.sleep(pause_s)

    def _system(self) -> tuple[Any, str]:
        """⇒ fsspec's file system, and the path of the dataset in it. fsspec keeps one per process and thread, so this
        is cheap, and right in a loader process that was forked."""
        protocol = self.url.partition("://")[0]
        options: dict[str, Any] = {}
        if protocol in ("http", "https"):
            from aiohttp import ClientTimeout  # comes with fsspec[http]

            # aiohttp would end a download after five minutes, however well it goes, and pass over the proxies
            timeout = ClientTimeout(total=None, sock_connect=self.patience.connect_s, sock_read=self.patience.read_s)
            options = {"client_kwargs": {"timeout": timeout, "trust_env": True}}
        try:
            system, root = url_to_fs(self.url, **options)
        except ImportError as error:
            raise InputError(f"{self.url} can't be read: {error}: pip install {_package(protocol)}") from error
        except ValueError as error:
            raise InputError(f"{self.url} can't be read ({error}); a dataset is a local folder or a URL that fsspec "
                             "opens (https://, s3://, gs://, …)") from error
        return system, root.rstrip("/")


def _package(protocol: str) -> str:
    """What to install for a protocol: ``s3fs``, or ``'fsspec[sftp]'`` where fsspec has the class itself."""
    package = known_implementations[protocol]["class"].partition(".")[0]
    return f"'fsspec[{protocol}]'" if package == "fsspec" else package


def _refuse_lasting(where: str, error: Exception) -> None:
    """Raise InputError where asking again won't help."""
    status = getattr(error, "status", None)
    if isinstance(error, FileNotFoundError):
        raise InputError(f"{where} doesn't exist; upload it, or see whether the address is right") from None
    if isinstance(error, PermissionError) or status in (401, 403, 407):
        raise InputError(f"{where} may not be read ({_words(error)}); see whether your credentials are set") from error
    if isinstance(status, int) and 400 <= status < 500 and status not in PASSING_STATUSES:
        raise InputError(f"{where} can't be read ({_words(error)}); see whether the address is right") from error
    if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT):
        raise InputError(f"there is no room to keep {where} ({error.strerror}); make room on the disk of data.cache, "
                         "or lower data.cache_gb") from error


def _words(error: Exception) -> str:
    if isinstance(error, tarfile.TarError):
        return f"what came is no whole tar, {error}"
    return str(error) or type(error).__name__
