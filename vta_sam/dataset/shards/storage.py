"""Where the files of a dataset lie: in a local folder, or at a URL, whose shards a local cache may keep."""

from __future__ import annotations

import contextlib
import errno
import functools
import io
import logging
import os
import tarfile
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, BinaryIO, Protocol, TypeVar
from urllib.parse import urljoin, urlsplit

from fsspec.core import url_to_fs
from fsspec.registry import known_implementations

from ...runtime.errors import InputError
from ...runtime.files import RETRIED_STATUSES, RetryPolicy, atomic_path, exclusive, require_whole
from ...runtime.randomness import seed_of

T = TypeVar("T")
_log = logging.getLogger(__name__)
_OURS = "dataset-"  # begins the name of a dataset's folder below the cache; nothing else there is ever removed
_STALE_S = 3600.0  # a download without new bytes for so long was left by a kill


class Storage(Protocol):
    """The files of one dataset by their plain names. ``str(storage)`` is the folder or URL that the user named."""

    def where(self, name: str) -> str:
        """A file's path or URL, for messages."""
        ...

    def lacks(self, name: str) -> bool:
        """True where a file is known to be missing. A server isn't asked: for thousands of shards that takes minutes.
        """
        return False

    def read_text(self, name: str) -> str:
        """The text of a small file, in UTF-8. Raises FileNotFoundError; OSError or InputError where it can't be
        read."""
        ...

    def open(self, name: str) -> BinaryIO:
        """A shard, open for reading at its beginning, and seekable. Raises as :meth:`read_text`."""
        ...

    def read(self, name: str, start: int, size: int) -> bytes:
        """``size`` bytes of a shard from ``start`` on, fewer where it ends before. Raises as :meth:`read_text`."""
        with self.open(name) as file:
            file.seek(start)
            return file.read(size)

    def evict(self, name: str) -> bool:
        """Drop the local copy of a damaged file ⇒ True where opening it again may bring another copy."""
        return False

    @property
    def latents_parent(self) -> Path:
        """The local folder in which folders of latent shards lie. Raises InputError where there is none."""
        ...


@dataclass(frozen=True)
class LocalStorage(Storage):
    """A local folder.

    Args:
        path: of the folder.
        latents: folder of its latent shards; None: the folder itself.
    """

    path: Path
    latents: Path | None = None

    def __str__(self) -> str:
        return str(self.path)

    def where(self, name: str) -> str:
        return str(self.path / name)

    def lacks(self, name: str) -> bool:
        return not (self.path / name).is_file()

    def read_text(self, name: str) -> str:
        return (self.path / name).read_text(encoding="utf-8")

    def open(self, name: str) -> BinaryIO:
        return open(self.path / name, "rb")

    @property
    def latents_parent(self) -> Path:
        return self.latents or self.path


@dataclass(frozen=True)
class ShardCache:
    """Whole files at ``folder``/dataset-<dataset>/<shard>, shared by processes and datasets.

    A new file makes room by removing the files whose last use is longest ago. A file that is being fetched has a
    temporary name and isn't counted.

    Args:
        folder: the cache.
        limit_bytes: of all files together, over all datasets.
        dataset: distinguishes datasets, and versions of one at the same URL.
    """

    folder: Path
    limit_bytes: int
    dataset: str

    def open(self, name: str, fetch: Callable[[Path], None]) -> BinaryIO:
        """The file called ``name``, open for reading. It stays readable when another process removes it.

        Args:
            name: of a shard.
            fetch: writes the file to a path; called where the cache lacks it.

        Raises:
            InputError: the folder can't be written, or may hold less than this one file.
        """
        path = self._path(name)
        try:
            if kept := _open_kept(path):
                return kept
            path.parent.mkdir(parents=True, exist_ok=True)
            with exclusive(path):
                return _open_kept(path) or self._add(path, fetch)  # another process may have added it by now
        except OSError as error:
            raise InputError(f"the cache {self.folder} can't be used ({error}); make room there, name another folder "
                             "with data.cache=, or none") from error

    def evict(self, name: str) -> bool:
        """Remove a file, so that it is fetched again ⇒ whether there was one to remove."""
        try:
            self._path(name).unlink()
        except OSError:
            return False
        return True

    def _path(self, name: str) -> Path:
        return self.folder / f"{_OURS}{self.dataset}" / name

    def _add(self, path: Path, fetch: Callable[[Path], None]) -> BinaryIO:
        with ExitStack() as until_renamed, atomic_path(path) as temporary:
            fetch(temporary)
            size = temporary.stat().st_size
            if size > self.limit_bytes:
                raise InputError(f"{path.name} has {size / 1e9:.3g} GB, more than all of the cache {self.folder} may "
                                 f"hold ({self.limit_bytes / 1e9:.3g} GB); raise data.cache_gb, or leave out "
                                 "data.cache")
            until_renamed.enter_context(exclusive(self.folder / "room"))
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
        """Whole files of all datasets. Temporary files that kills left behind are removed on the way."""
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


@dataclass(frozen=True)
class RemoteStorage(Storage):
    """The files of a dataset at a URL, through fsspec; requests that fail in passing are retried.

    Credentials are found by the protocol's package (environment, its own files, fsspec's configuration).

    Args:
        url: without a slash at its end.
        latents: local folder of latent shards, where there is one.
        cache: of shards; None keeps none.
        retry: how often, and after which pauses.
    """

    url: str
    latents: Path | None = None
    cache: ShardCache | None = None
    retry: RetryPolicy = RetryPolicy()

    def __str__(self) -> str:
        return self.url

    @property
    def latents_parent(self) -> Path:
        """The local folder of latent shards. Raises InputError where none was named."""
        if self.latents is None:
            raise InputError(f"latent shards of {self.url} need a local folder to live in; name one with data.latents= "
                             "(encode_latents.py: out=)")
        return self.latents

    def where(self, name: str) -> str:
        return f"{self.url}/{name}"

    def read_text(self, name: str) -> str:
        """The text of a small file, in UTF-8. Raises InputError where it can't be read."""
        data: bytes = self._retried(name, lambda system, path: system.cat_file(path))
        return data.decode("utf-8")

    def open(self, name: str) -> BinaryIO:
        """A whole shard, open for reading, from the cache or from memory. Raises as :meth:`read_text`."""
        if self.cache is not None:
            return self.cache.open(name, lambda local: self._fetch(name, local))

        def load(system: Any, path: str) -> BinaryIO:
            file = io.BytesIO(system.cat_file(path))
            require_whole(file)
            return file

        return self._retried(name, load)

    def read(self, name: str, start: int, size: int) -> bytes:
        """As of :class:`Storage`; without a cache the server is asked for these bytes alone."""
        if self.cache is not None:
            return super().read(name, start, size)
        data: bytes = self._retried(name, lambda system, path: system.cat_file(path, start=start, end=start + size))
        return data if len(data) <= size else data[start:start + size]  # some servers send the whole file

    def evict(self, name: str) -> bool:
        """Drop a damaged shard from the cache ⇒ True where there was one, so that it is fetched again."""
        return self.cache is not None and self.cache.evict(name)

    def _fetch(self, name: str, local: Path) -> None:
        """Write a shard to a local path."""
        def load(system: Any, path: str) -> None:
            system.get_file(path, str(local))
            with open(local, "rb") as file:
                require_whole(file)

        self._retried(name, load)

    def _retried(self, name: str, attempt: Callable[[Any, str], T]) -> T:
        """The result of ``attempt(file system, path)``, called again while it fails in passing."""
        where, failures = self.where(name), 0
        while True:
            system, root = self._system()
            try:
                return attempt(system, f"{root}/{name}")
            except Exception as error:  # each protocol's package has errors of its own
                _refuse_permanent(where, error)
                failures += 1
                if failures >= self.retry.attempts:
                    raise InputError(f"{where} did not come through in {failures} attempts, the last: {_reason(error)}"
                                     "; see whether the server answers and the file there is whole, then give the same "
                                     "command again") from error
                pause_s = self.retry.pause_s(failures)
                _log.warning("%s: %s; asking again in %g s", where, _reason(error), pause_s)
                time.sleep(pause_s)

    def _system(self) -> tuple[Any, str]:
        """fsspec's file system, and the path of the dataset in it. fsspec keeps one file system per process and
        thread, so this is cheap, and right in a loader process that was forked."""
        protocol = self.url.partition("://")[0]
        options: dict[str, Any] = {}
        if protocol in ("http", "https"):
            from aiohttp import ClientTimeout  # comes with fsspec[http]

            # aiohttp would end a download after five minutes, however well it goes, and pass over the proxies
            timeout = ClientTimeout(total=None, sock_connect=self.retry.connect_s, sock_read=self.retry.read_s)
            options = {"client_kwargs": {"timeout": timeout, "trust_env": True, "trace_configs": [_redirects()]}}
        try:
            system, root = url_to_fs(self.url, **options)
        except ImportError as error:
            raise InputError(f"{self.url} can't be read: {error}: pip install {_package(protocol)}") from error
        except ValueError as error:
            raise InputError(f"{self.url} can't be read ({error}); a dataset is a local folder or a URL that fsspec "
                             "opens (https://, s3://, gs://, …)") from error
        return system, root.rstrip("/")


@functools.cache
def _redirects() -> Any:
    """aiohttp's hook that refuses a redirect away from https: what comes could be anyone's. It is one object in a
    process, since fsspec takes a file system with other options for another one."""
    from aiohttp import TraceConfig

    async def look(session: Any, context: Any, redirect: Any) -> None:
        there = redirect.response.headers.get("Location") or redirect.response.headers.get("URI") or ""
        target = urljoin(str(redirect.response.url), there)
        if redirect.response.url.scheme == "https" and urlsplit(target).scheme != "https":
            raise InputError(f"{redirect.url} leads to {target}, which is not https, and was not followed; see whether "
                             "the address is right")

    hook = TraceConfig()
    hook.on_request_redirect.append(look)
    return hook


def _package(protocol: str) -> str:
    """The package to install for a protocol: ``s3fs``, or ``'fsspec[sftp]'`` where fsspec has the class itself."""
    package = known_implementations[protocol]["class"].partition(".")[0]
    return f"'fsspec[{protocol}]'" if package == "fsspec" else package


def _refuse_permanent(where: str, error: Exception) -> None:
    """Raise InputError where a retry can't help."""
    if isinstance(error, InputError):
        raise error
    status = getattr(error, "status", None)
    if isinstance(error, FileNotFoundError):
        raise InputError(f"{where} doesn't exist; upload it, or see whether the address is right") from None
    if isinstance(error, PermissionError) or status in (401, 403, 407):
        raise InputError(f"{where} may not be read ({_reason(error)}); see whether your credentials are set") from error
    if isinstance(status, int) and 400 <= status < 500 and status not in RETRIED_STATUSES:
        raise InputError(f"{where} can't be read ({_reason(error)}); see whether the address is right") from error
    if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT):
        raise InputError(f"there is no room to keep {where} ({error.strerror}); make room on the disk of data.cache, "
                         "or lower data.cache_gb") from error


def _reason(error: Exception) -> str:
    if isinstance(error, tarfile.TarError):
        return f"what came is no whole tar, {error}"
    return str(error) or type(error).__name__


Root = str | os.PathLike | Storage  # what names a dataset


def storage_of(root: Root, latents: Path | None = None) -> Storage:
    """The storage of a folder or URL; a storage is returned as it is. Nothing is opened yet.

    Args:
        root: names the dataset.
        latents: local folder of latent shards.

    Raises:
        InputError: no file name can be added to the end of the URL.
    """
    if not isinstance(root, (str, os.PathLike)):
        return root
    text = os.fspath(root)
    if "://" not in text:
        return LocalStorage(Path(text), latents)
    if text.startswith(("file://", "local://")):
        return LocalStorage(Path(url_to_fs(text)[1]), latents)
    parts = urlsplit(text)
    if parts.scheme in ("http", "https") and (parts.query or parts.fragment):
        raise InputError(f"{text} has a ? or # in it, so that no shard's name can be added to its end; name the folder "
                         "that holds dataset.json")
    return RemoteStorage(text.rstrip("/"), latents)


def with_cache(storage: Storage, folder: Path, limit_gb: float, fingerprint: str) -> Storage:
    """A URL's storage that keeps shards in a local folder; a local storage as it is.

    Args:
        storage: of the dataset.
        folder: the cache.
        limit_gb: the most that the cache holds, in 10⁹ bytes.
        fingerprint: of the dataset.json that was read there; a dataset that was made again has another.

    Raises:
        InputError: limit_gb is not more than 0.
    """
    if not limit_gb > 0:
        raise InputError(f"data.cache_gb={limit_gb} is not more than 0; leave out data.cache= to keep no shards")
    if not isinstance(storage, RemoteStorage):
        return storage
    dataset = f"{seed_of(storage.url, fingerprint) % 16**12:012x}"
    return replace(storage, cache=ShardCache(folder, int(limit_gb * 1e9), dataset))
