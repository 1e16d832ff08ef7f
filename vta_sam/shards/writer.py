"""Tars of records, byte for byte the same for the same records."""

from __future__ import annotations

import io
import os
import tarfile
from pathlib import Path
from typing import Iterable, Iterator

from webdataset.handlers import reraise_exception
from webdataset.tariterators import group_by_keys, tar_file_expander

from ..atomic import atomic_path
from ..clip import ClipFeatures
from ..errors import InputError
from .schema import MEMBERS, decode_record, encode_record, member_key


def write_shard(path: str | os.PathLike, clips: Iterable[ClipFeatures]) -> int:
    """Write clips as a WebDataset tar ⇒ how many; none is legal. See :func:`write_records`."""
    return write_records(path, ((clip.key, encode_record(clip)) for clip in clips))


def write_records(path: str | os.PathLike, records: Iterable[tuple[str, dict[str, bytes]]]) -> int:
    """Write (key, members) pairs, members as ``encode_record`` makes them, as a WebDataset tar ⇒ how many.

    Times and owners are zero and the header format is fixed, so the bytes depend on the records alone. Written under a
    temporary name, flushed to the disk, then renamed: the tar is whole or absent. Raises InputError when two records
    share a key.
    """
    seen: set[str] = set()
    with atomic_path(path, sync=True) as temporary:
        # webdataset's own TarWriter adds today's user and lets tarfile choose the header format
        with tarfile.open(temporary, "w", format=tarfile.PAX_FORMAT) as tar:
            for key, members in records:
                if key in seen:
                    raise InputError(f"{path}: two records have the key {key!r}")
                seen.add(key)
                for suffix, data in members.items():
                    header = tarfile.TarInfo(f"{member_key(key)}.{suffix}")
                    header.size = len(data)
                    header.mode = 0o644
                    header.mtime = header.uid = header.gid = 0
                    tar.addfile(header, io.BytesIO(data))
    return len(seen)


def read_shard(path: str | os.PathLike) -> Iterator[ClipFeatures]:
    """The records of a shard, in order. Raises InputError that names the file when it is missing, cut short or holds a
    damaged record."""
    for key, members in read_members(path):
        try:
            yield decode_record(key, members)
        except InputError as error:
            raise InputError(f"{path}: {error}") from error


def read_members(path: str | os.PathLike) -> Iterator[tuple[str, dict[str, bytes]]]:
    """The records of a shard as they are stored, in order ⇒ (key, {suffix: bytes}), for ``decode_record`` or
    ``write_records``. Raises InputError that names the file when it is missing or cut short."""
    path = Path(path)
    try:
        yield from _groups(path)
    except FileNotFoundError:
        raise InputError(f"{path} doesn't exist") from None
    except (tarfile.TarError, EOFError, OSError) as error:
        raise InputError(f"{path} is cut short or is no tar ({error}); delete it and extract again") from error


def _groups(path: Path) -> Iterator[tuple[str, dict[str, bytes]]]:
    """Consecutive members of one key ⇒ (key, {suffix: bytes})."""
    with tarfile.open(path, "r:") as tar:  # plain: a small compressed file may unpack to more than the memory holds
        _require_end(path, tar)
    with open(path, "rb") as stream:
        members = tar_file_expander([{"url": str(path), "stream": stream}], handler=reraise_exception)
        try:
            for sample in group_by_keys(members, suffixes=set(MEMBERS)):
                yield sample["__key__"], {suffix: sample[suffix] for suffix in MEMBERS if suffix in sample}
        except ValueError as error:  # webdataset's word for a member that stands twice
            raise tarfile.ReadError(str(error)) from error


def _require_end(path: Path, tar: tarfile.TarFile) -> None:
    """A tar ends with two empty blocks. tarfile takes a file that was cut between two members for a whole one."""
    with open(path, "rb") as file:
        size = file.seek(0, os.SEEK_END)
        file.seek(max(0, size - 2 * tarfile.BLOCKSIZE))
        if size < 2 * tarfile.BLOCKSIZE or file.read().strip(b"\0"):
            raise tarfile.ReadError("its end mark is missing")
