"""Where the files of a dataset lie: a folder here, or a URL."""

from __future__ import annotations

import os
import re
from dataclasses import dataclass, replace
from pathlib import Path
from typing import BinaryIO, Protocol
from urllib.parse import urlsplit

from fsspec.core import url_to_fs

from ...runtime.errors import InputError
from ...runtime.randomness import seed_of
from .remote_storage import Remote, ShardCache


class Place(Protocol):
    """The files of one dataset by their plain names. ``str()`` of it is what the user called it."""

    def where(self, name: str) -> str:
        """A file's path or URL, for messages."""
        ...

    def lacks(self, name: str) -> bool:
        """Is a file known to be missing, as far as that can be told without asking a server?"""
        ...

    def read_text(self, name: str) -> str:
        """A small file. Raises FileNotFoundError; OSError or InputError where it can't be read."""
        ...

    def open(self, name: str) -> BinaryIO:
        """A shard, open for reading at its beginning and seekable. Raises as :meth:`read_text`."""
        ...

    def forget(self, name: str) -> bool:
        """Drop a copy of a file that turned out damaged ⇒ whether opening it again may bring another one."""
        ...

    @property
    def latents_parent(self) -> Path:
        """The local folder in which folders of latent shards lie. Raises InputError where there is none."""
        ...


@dataclass(frozen=True)
class Folder:
    """A local folder. latents: where its latent shards live; None: in the folder itself."""

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

    def forget(self, name: str) -> bool:
        return False

    @property
    def latents_parent(self) -> Path:
        return self.latents or self.path


Root = str | os.PathLike | Place  # what names a dataset


def place_of(root: Root, latents: Path | None = None) -> Place:
    """A folder or a URL ⇒ the place; a place is returned as it is. Nothing is opened yet.

    latents: the local folder of latent shards. Raises InputError for a URL to whose end no file name can be added.
    """
    if not isinstance(root, (str, os.PathLike)):
        return root
    text = os.fspath(root)
    if "://" not in text:
        return Folder(Path(text), latents)
    if text.startswith(("file://", "local://")):
        return Folder(Path(url_to_fs(text)[1]), latents)
    parts = urlsplit(text)
    if parts.scheme in ("http", "https") and (parts.query or parts.fragment):
        raise InputError(f"{text} has a ? or # in it, so that no shard's name can be added to its end; name the folder "
                         "that holds dataset.json")
    return Remote(text.rstrip("/"), latents)


def with_cache(place: Place, folder: Path, limit_gb: float, fingerprint: str) -> Place:
    """A URL's place that keeps shards in a local folder, at most ``limit_gb`` · 10⁹ bytes; a folder as it is.

    fingerprint: of the dataset.json that was read there, so that a dataset that was made anew isn't taken for the old.
    """
    if not limit_gb > 0:
        raise InputError(f"data.cache_gb={limit_gb} is not more than 0; leave out data.cache= to keep no shards")
    if not isinstance(place, Remote):
        return place
    dataset = f"{seed_of(place.url, fingerprint) % 16**12:012x}"
    return replace(place, cache=ShardCache(folder, int(limit_gb * 1e9), dataset))


def is_plain(name: object) -> bool:
    """Is it a file's name and nothing else: letters, digits, ``_ - .``, no dot or dash first? A dataset.json from
    elsewhere can't lead out of its folder, to another server or to a command by such a name."""
    return isinstance(name, str) and re.fullmatch(r"\w[\w.-]*", name) is not None
