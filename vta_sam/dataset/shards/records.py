"""Shards: tars of records. The same records give the same bytes."""

from __future__ import annotations

import io
import os
import re
import tarfile
from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from typing import BinaryIO, TypeVar

from webdataset.tariterators import base_plus_ext

from ...clip import ClipFeatures
from ...runtime.errors import InputError
from ...runtime.files import atomic_path, require_whole
from .schema import MEMBERS, ShardInfo, decode_record, encode_record, member_key
from .storage import Root, Storage, storage_of

Members = dict[str, bytes]  # of a record, by suffix
Rates = tuple[float, int]  # frames a second, and samples a second of the sound, as DatasetInfo.rates
Place = tuple[int, int]  # of a member: its first byte in the tar, and how many it has
T = TypeVar("T")
_OF_THE_TAR = re.compile(r"__[^/]*__($|/)")  # names that webdataset passes over


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


def read_records(root: Root, shard: ShardInfo, rates: Rates | None = None) -> list[ClipFeatures]:
    """All clips of one shard of a dataset, in order. A damaged copy in a cache is fetched again once.

    Args:
        root: the dataset's folder, URL or storage.
        shard: of the dataset.
        rates: that dataset.json says; None: not compared.

    Raises:
        InputError: the file is missing, damaged, or holds another number of records than dataset.json says, or one at
            other rates.
    """
    where = storage_of(root).where(shard.name)
    return again_if_damaged(root, shard, lambda storage: list(_decoded(where, _all_members(storage, shard), rates)))


def read_stored(root: Root, shard: ShardInfo) -> list[tuple[str, Members]]:
    """The records of one shard as they are stored, for ``decode_record``; arguments and errors as of
    :func:`read_records`, but for what is inside a record."""
    return again_if_damaged(root, shard, lambda storage: _all_members(storage, shard))


def again_if_damaged(root: Root, shard: ShardInfo, read: Callable[[Storage], T]) -> T:
    """``read`` of a storage; a second time where it raises InputError and a damaged copy in a cache can be replaced."""
    storage = storage_of(root)
    try:
        return read(storage)
    except InputError:
        if not storage.evict(shard.name):
            raise
    return read(storage)


def _all_members(storage: Storage, shard: ShardInfo) -> list[tuple[str, Members]]:
    where = storage.where(shard.name)
    with opened(where, lambda: storage.open(shard.name)) as file:
        records = list(_members(where, file))
    require_count(where, len(records), shard)
    return records


def require_count(where: str, found: int, shard: ShardInfo) -> None:
    """Raise InputError where a shard holds another number of records than dataset.json says."""
    if found != shard.records:
        raise InputError(f"{where} holds {found} records, dataset.json says {shard.records}: the file was cut "
                         "or replaced; delete it and extract again")


def read_members(path: str | os.PathLike) -> Iterator[tuple[str, dict[str, bytes]]]:
    """The records of a shard as they are stored, in order: (key, {suffix: bytes}), for ``decode_record`` or
    ``write_records``.

    Raises:
        InputError: the file is missing, cut short, or no plain tar.
    """
    with opened(str(path), lambda: open(path, "rb")) as file:
        yield from _members(str(path), file)


def members_in(storage: Storage, name: str) -> Iterator[tuple[str, Members]]:
    """As :func:`read_members`, of a shard of a storage."""
    where = storage.where(name)
    with opened(where, lambda: storage.open(name)) as file:
        yield from _members(where, file)


def opened(where: str, opener: Callable[[], BinaryIO]) -> BinaryIO:
    """``opener``'s file. Raises InputError where it is missing or can't be opened."""
    try:
        return opener()
    except FileNotFoundError:
        raise InputError(f"{where} doesn't exist") from None
    except OSError as error:
        raise cut_short(where, error) from error


def _decoded(where: str, members: Iterable[tuple[str, dict[str, bytes]]], rates: Rates | None = None,
             ) -> Iterator[ClipFeatures]:
    for key, found in members:
        yield decoded_record(where, key, found, rates=rates)


def decoded_record(where: str, key: str, members: Members, unread: Collection[str] = (),
                   rates: Rates | None = None) -> ClipFeatures:
    """``decode_record`` of a record of the shard ``where``, which its errors name.

    Args:
        where: the shard.
        key: as of ``decode_record``, like members and unread.
        rates: that the record has to have, since frames at another rate would stand at wrong times; None: any.
    """
    try:
        clip = decode_record(key, members, unread)
    except InputError as error:
        raise InputError(f"{where}: {error}") from error
    if rates is not None and (clip.fps, clip.sample_rate_hz) != rates:
        raise InputError(f"{where}: clip {clip.key!r} has {clip.fps:g} frames and {clip.sample_rate_hz} samples a "
                         f"second, dataset.json says {rates[0]:g} and {rates[1]}: shards of two extractions lie in one "
                         "folder; extract again into a folder of its own")
    return clip


def _members(where: str, file: BinaryIO) -> Iterator[tuple[str, Members]]:
    """(key, {suffix: bytes}) of consecutive members with one key."""
    for key, places in places_of(where, file):
        try:
            yield key, {suffix: stretch(file, *places[suffix]) for suffix in MEMBERS if suffix in places}
        except (OSError, EOFError) as error:
            raise cut_short(where, error) from error


def stretch(file: BinaryIO, start: int, size: int) -> bytes:
    """``size`` bytes of a file from ``start`` on. Raises EOFError where it ends before."""
    file.seek(start)
    parts = []
    while size:
        part = file.read(size)  # a raw file may give fewer
        if not part:
            raise EOFError("unexpected end of data")
        parts.append(part)
        size -= len(part)
    return parts[0] if len(parts) == 1 else b"".join(parts)


def places_of(where: str, file: BinaryIO) -> list[tuple[str, dict[str, Place]]]:
    """(key, {suffix: place}) of a tar's records, which are the consecutive members with one key.

    Raises:
        InputError: the file is no whole tar, or its members are no records that a reader of the stream could put
            together.
    """
    try:
        return list(_grouped(where, require_whole(file)))
    except InputError:
        raise
    except (tarfile.TarError, EOFError, OSError, ValueError) as error:
        raise cut_short(where, error) from error


def _grouped(where: str, members: Sequence[tarfile.TarInfo]) -> Iterator[tuple[str, dict[str, Place]]]:
    """Records as webdataset groups a tar's members, which are parted at the first dot of a name."""
    ended: set[str] = set()
    key, places = None, dict[str, Place]()
    for member in members:
        name = member.name
        now, suffix = base_plus_ext(name)
        if not member.isreg() or now is None or _OF_THE_TAR.match(name):
            continue
        if (suffix := suffix.lower()) not in MEMBERS and suffix.rpartition(".")[2] in MEMBERS:
            raise InputError(f"{where}: {name} has a dot in its clip's name, which readers cut at the "
                             "first dot; write it as %2E, or extract again")
        if now != key:
            if key is not None:
                ended.add(key)
                yield key, places
            key, places = now, {}
        if suffix in MEMBERS and now in ended:
            raise InputError(f"{where}: {name} stands apart from the other members of its clip; the "
                             "members of a clip must stand together in the tar: write it again in that order, or "
                             "extract again")
        if suffix in places:
            raise InputError(f"{where}: {name} stands twice in the tar; a clip stands there once: write it "
                             "again without the other, or extract again")
        if suffix in MEMBERS:
            places[suffix] = (member.offset_data, member.size)
    if key is not None:
        yield key, places


def cut_short(where: str, error: Exception) -> InputError:
    """The error of a shard that can't be read."""
    return InputError(f"{where} is cut short or is no tar ({error}); delete it and extract again")
