"""Shards: tars of records. The same records give the same bytes."""

from __future__ import annotations

import io
import os
import tarfile
from typing import BinaryIO, Callable, Iterable, Iterator, TypeVar

from webdataset.handlers import reraise_exception
from webdataset.tariterators import group_by_keys, tar_file_expander

from ...clip import ClipFeatures
from ...runtime.errors import InputError
from ...runtime.files import atomic_path
from .schema import MEMBERS, ShardInfo, decode_record, encode_record, member_key
from .storage import Root, Storage, require_whole, storage_of

Members = dict[str, bytes]  # of a record, by suffix
T = TypeVar("T")


def write_shard(path: str | os.PathLike, clips: Iterable[ClipFeatures]) -> int:
    """Write clips as a WebDataset tar ⇒ their number; none is legal. See :func:`write_records`."""
    return write_records(path, ((clip.key, encode_record(clip)) for clip in clips))


def write_records(path: str | os.PathLike, records: Iterable[tuple[str, dict[str, bytes]]]) -> int:
    """Write records as a WebDataset tar ⇒ their number.

    Times and owners are zero and the header format is fixed, so the bytes depend on the records alone. The tar is
    written under a temporary name, flushed to the disk, then renamed: it is whole or absent.

    Args:
        path: of the tar.
        records: (key, members) pairs, members as ``encode_record`` returns them.

    Raises:
        InputError: two records share a key.
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
    """The clips of a shard, in order.

    Raises:
        InputError: the file is missing, cut short or holds a damaged record.
    """
    yield from _decoded(str(path), read_members(path))


def read_records(root: Root, shard: ShardInfo) -> list[ClipFeatures]:
    """All clips of one shard of a dataset, in order. A damaged copy in a cache is fetched again once.

    Args:
        root: the dataset's folder, URL or storage.
        shard: of the dataset.

    Raises:
        InputError: the file is missing, damaged, or holds another number of records than dataset.json says.
    """
    where = storage_of(root).where(shard.name)
    return _again_if_damaged(root, shard, lambda storage: list(_decoded(where, _all_members(storage, shard))))


def read_stored(root: Root, shard: ShardInfo) -> list[tuple[str, Members]]:
    """The records of one shard as they are stored, for ``decode_record``; arguments and errors as of
    :func:`read_records`, but for what is inside a record."""
    return _again_if_damaged(root, shard, lambda storage: _all_members(storage, shard))


def _again_if_damaged(root: Root, shard: ShardInfo, read: Callable[[Storage], T]) -> T:
    storage = storage_of(root)
    try:
        return read(storage)
    except InputError:
        if not storage.evict(shard.name):
            raise
    return read(storage)


def _all_members(storage: Storage, shard: ShardInfo) -> list[tuple[str, Members]]:
    where = storage.where(shard.name)
    with _opened(where, lambda: storage.open(shard.name)) as file:
        records = list(_members(where, file))
    if len(records) != shard.records:
        raise InputError(f"{where} holds {len(records)} records, dataset.json says {shard.records}: the file was cut "
                         "or replaced; delete it and extract again")
    return records


def read_members(path: str | os.PathLike) -> Iterator[tuple[str, dict[str, bytes]]]:
    """The records of a shard as they are stored, in order: (key, {suffix: bytes}), for ``decode_record`` or
    ``write_records``.

    Raises:
        InputError: the file is missing, cut short, or no plain tar.
    """
    with _opened(str(path), lambda: open(path, "rb")) as file:
        yield from _members(str(path), file)


def _opened(where: str, opener: Callable[[], BinaryIO]) -> BinaryIO:
    try:
        return opener()
    except FileNotFoundError:
        raise InputError(f"{where} doesn't exist") from None
    except OSError as error:
        raise _cut_short(where, error) from error


def _decoded(where: str, members: Iterable[tuple[str, dict[str, bytes]]]) -> Iterator[ClipFeatures]:
    for key, found in members:
        try:
            yield decode_record(key, found)
        except InputError as error:
            raise InputError(f"{where}: {error}") from error


def _members(where: str, file: BinaryIO) -> Iterator[tuple[str, dict[str, bytes]]]:
    """(key, {suffix: bytes}) of consecutive members with one key. webdataset gets the open file and never a name, which
    it would open, or run, itself."""
    try:
        require_whole(file)
        _require_order(where, file)
        members = tar_file_expander([{"url": where, "stream": file}], handler=reraise_exception)
        for sample in group_by_keys(members, suffixes=set(MEMBERS)):
            yield sample["__key__"], {suffix: sample[suffix] for suffix in MEMBERS if suffix in sample}
    except InputError:
        raise
    except (tarfile.TarError, EOFError, OSError, ValueError) as error:
        raise _cut_short(where, error) from error


def _require_order(where: str, file: BinaryIO) -> None:
    """Raise InputError where the tar's members are no records that a reader of the stream could put together. The file
    is left at its beginning."""
    ended: set[str] = set()
    key, suffixes = "", set[str]()
    with tarfile.open(fileobj=file, mode="r:") as tar:
        for member in tar:
            folder, _, name = member.name.rpartition("/")
            stem, dot, suffix = name.partition(".")
            if not member.isfile() or not stem or not dot:
                continue
            if suffix not in MEMBERS:
                if suffix.rpartition(".")[2] in MEMBERS:
                    raise InputError(f"{where}: {member.name} has a dot in its clip's name, which readers cut at the "
                                     "first dot; write it as %2E, or extract again")
                continue
            if (now := f"{folder}/{stem}") != key:
                ended.add(key)
                key, suffixes = now, set()
            if now in ended:
                raise InputError(f"{where}: {member.name} stands apart from the other members of its clip; the "
                                 "members of a clip must stand together in the tar: write it again in that order, or "
                                 "extract again")
            if suffix in suffixes:
                raise InputError(f"{where}: {member.name} stands twice in the tar; a clip stands there once: write it "
                                 "again without the other, or extract again")
            suffixes.add(suffix)
    file.seek(0)


def _cut_short(where: str, error: Exception) -> InputError:
    return InputError(f"{where} is cut short or is no tar ({error}); delete it and extract again")
