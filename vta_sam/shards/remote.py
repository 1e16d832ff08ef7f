"""A dataset at a URL: files of it through fsspec, asked for again where the line breaks, and kept in a cache."""

from __future__ import annotations

import errno
import io
import logging
import tarfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO, TypeVar

from fsspec.core import url_to_fs
from fsspec.registry import known_implementations

from ..errors import InputError
from ..patience import PASSING_STATUSES, Patience
from .cache import ShardCache
from .tar import require_whole

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
