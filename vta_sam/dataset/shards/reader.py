"""Random access to the records of shards, without keeping their bytes; and reading ahead of what will be asked for."""

from __future__ import annotations

import io
import threading
from collections import OrderedDict, deque
from collections.abc import Callable, Collection, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import nullcontext
from pathlib import Path
from typing import Any, BinaryIO, TypeVar, cast
from urllib.parse import unquote

import numpy as np

from ...clip import ClipFeatures
from ...runtime.errors import InputError
from .latents import OpenLatents
from .records import (
    Members, Place, Rates, again_if_damaged, cut_short, decoded_record, opened, places_of, require_count, stretch
)
from .schema import MEMBERS, SOUND_HEADER_BYTES, ShardInfo
from .storage import Root, Storage, storage_of

T = TypeVar("T")
U = TypeVar("U")
Stored = tuple[str, Members, np.ndarray | None]  # a record's key and members, and its moments, as they are stored
Decoded = tuple[ClipFeatures, np.ndarray | None]  # a record, and its moments (fp16) where there are latents
CACHED_BYTES = 1 << 30  # of a reader that isn't told how many
_OPEN_FILES = 128  # of a reader; a process may have 1024 on most machines
_WALK_BYTES = 4 << 20  # read at a time while a shard is opened: across a network many small reads take longest
_JOINED_BYTES = 64 << 10  # members that are no further apart are read at once


class OpenShard:
    """One shard of a dataset, whose records are read one by one, by several threads.

    Opening reads the shard once from its beginning to its end, a few MB at a time, and keeps where each member lies.
    The bytes of a local file are left to the operating system's cache. A shard that a server sent, and that no
    :class:`~.storage.ShardCache` keeps, is in memory until :meth:`release`.

    Args:
        root: the dataset's folder, URL or storage.
        shard: of the dataset.

    Attributes:
        kept_bytes: of the shard, in this process' memory.

    Raises:
        InputError: the file is missing, damaged, or holds another number of records than dataset.json says.
    """

    _file: BinaryIO | None = None

    def __init__(self, root: Root, shard: ShardInfo):
        self.storage, self.name = storage_of(root), shard.name
        self.where = self.storage.where(shard.name)
        self._lock = threading.Lock()
        self._file, self._places = again_if_damaged(root, shard, lambda storage: _opened_places(storage, shard))
        self.kept_bytes = self._file.getbuffer().nbytes if isinstance(self._file, io.BytesIO) else 0

    def __del__(self) -> None:
        if self._file is not None:
            self._file.close()

    @property
    def is_open(self) -> bool:
        """False once it was released."""
        return self._file is not None

    def release(self) -> None:
        """Let the open file, or the bytes, go. A record that is read later is asked of the storage by itself."""
        with self._lock:
            if self._file is not None:
                self._file.close()
            self._file, self.kept_bytes = None, 0

    def record(self, index: int, unread: Collection[str] = ()) -> tuple[str, Members]:
        """One record's key and members, for ``decode_record``.

        Args:
            index: of the record.
            unread: as of ``decode_record``; without its waveform a record's flac member is its first bytes.

        Raises:
            InputError: the file can't be read.
        """
        key, places = self._places[index]
        if "waveform" in unread and "flac" in places:
            places = {**places, "flac": (places["flac"][0], min(places["flac"][1], SOUND_HEADER_BYTES))}
        found: Members = {}
        try:
            for joined in _joined(places):
                first, (start, size) = places[joined[0]][0], places[joined[-1]]
                data = memoryview(self._read(first, start + size - first))
                for suffix in joined:
                    begin = places[suffix][0] - first
                    found[suffix] = bytes(data[begin:begin + places[suffix][1]])
        except (OSError, EOFError) as error:
            raise cut_short(self.where, error) from error
        return key, {suffix: found[suffix] for suffix in MEMBERS if suffix in found}

    def _read(self, start: int, size: int) -> bytes:
        with self._lock:
            if self._file is not None:
                return stretch(self._file, start, size)
        return self.storage.read(self.name, start, size)


def _joined(places: dict[str, Place]) -> Iterator[list[str]]:
    """Members that are read at once, in the order in which they lie."""
    together: list[str] = []
    for suffix, (start, _) in sorted(places.items(), key=lambda item: item[1]):
        if together and start - sum(places[together[-1]]) > _JOINED_BYTES:
            yield together
            together = []
        together.append(suffix)
    if together:
        yield together


def _opened_places(storage: Storage, shard: ShardInfo) -> tuple[BinaryIO, list[tuple[str, dict[str, Place]]]]:
    """The shard's open file, and where each record's members lie in it."""
    where = storage.where(shard.name)
    file = opened(where, lambda: storage.open(shard.name))
    if isinstance(file, io.BufferedReader):
        file = cast(BinaryIO, file.detach())  # its buffer is small, and would be one of each open shard
    try:
        walked = io.BufferedReader(cast(io.RawIOBase, file), _WALK_BYTES) if isinstance(file, io.RawIOBase) else file
        places = places_of(where, cast(BinaryIO, walked))
        if isinstance(walked, io.BufferedReader):
            walked.detach()
        require_count(where, len(places), shard)
    except BaseException:
        file.close()
        raise
    return file, places


class ShardReader:
    """Random access to the records of one split, by several threads. A record is decoded when it is asked for.

    An open shard is a file and the places of its records. Its bytes are in memory only where no local file holds them.

    Args:
        root: the dataset's folder, URL or storage.
        shards: of the split.
        cached_shards: number of shards that are open, the most recently used.
        latents: folder of latent shards, or None.
        unread: fields of a clip that nobody reads, as of :func:`~.schema.decode_record`.
        cached_bytes: the most that the reader keeps in memory. Where a shard without a local file doesn't fit in, each
            of its records is asked of the server by itself.
        keep_decoded: for readers that come back: decoded records are kept where the split's take no more than half of
            ``cached_bytes``. A part of them would save little, since each comes once in an epoch.
        rates: that dataset.json says, see :func:`~.records.decoded_record`; None: not compared.
    """

    def __init__(self, root: Root, shards: list[ShardInfo], cached_shards: int, latents: Path | None = None,
                 unread: Collection[str] = (), cached_bytes: int = CACHED_BYTES, keep_decoded: bool = False,
                 rates: Rates | None = None):
        self.storage, self.shards, self.cached_shards, self.latents = storage_of(root), shards, cached_shards, latents
        self.unread, self.cached_bytes, self.keep_decoded = frozenset(unread), cached_bytes, keep_decoded
        self.rates = rates
        self._decoded: dict[tuple[int, int], Decoded] = {}
        self._decoded_bytes = 0
        self._open: OrderedDict[int, Future[tuple[OpenShard, OpenLatents | None]]] = OrderedDict()
        self._lock, self._fetching = threading.Lock(), threading.Lock()
        self._in_memory = True  # until a shard turns out to be a file

    def __reduce__(self) -> tuple[Any, ...]:
        return ShardReader, (self.storage, self.shards, self.cached_shards, self.latents, self.unread,
                             self.cached_bytes, self.keep_decoded, self.rates)

    @property
    def counts(self) -> tuple[int, ...]:
        return tuple(shard.records for shard in self.shards)

    @property
    def kept_bytes(self) -> int:
        """Bytes of shards and of decoded records that are in memory."""
        return self._decoded_bytes + sum(shard.kept_bytes for shard in self._opened())

    def record(self, shard: int, index: int) -> Decoded:
        """The record, and its moments.

        Args:
            shard: index of the shard.
            index: of the record in it.
        """
        return self.decoded(shard, index, self.stored(shard, index))

    def stored(self, shard: int, index: int) -> Stored | None:
        """The record as it is stored: the part of :meth:`record` that waits for a disk. None: it is kept decoded."""
        return None if (shard, index) in self._decoded else self._read(shard, index)

    def _read(self, shard: int, index: int) -> Stored:
        open_shard, latents = self._shard(shard)
        key, members = open_shard.record(index, self.unread)
        return key, members, latents.moments(unquote(key)) if latents else None

    def decoded(self, shard: int, index: int, stored: Stored | None) -> Decoded:
        """What :meth:`record` returns, of what :meth:`stored` returned. A damaged copy in a cache is fetched again."""
        if stored is None:
            return self._decoded[shard, index]
        name = self.shards[shard].name
        try:
            found = self._decode(name, stored)
        except InputError:
            if not self.storage.evict(name):
                raise
            with self._lock:
                self._open.pop(shard, None)
            found = self._decode(name, self._read(shard, index))
        if self.keep_decoded:
            self._keep((shard, index), found)
        return found

    def _decode(self, name: str, stored: Stored) -> Decoded:
        key, members, moments = stored
        return decoded_record(self.storage.where(name), key, members, self.unread, self.rates), moments

    def _keep(self, place: tuple[int, int], found: Decoded) -> None:
        record, moments = found
        arrays = [*record.features.values(), *([] if "waveform" in self.unread else [record.waveform]),
                  *([] if moments is None else [moments])]
        size, room = sum(array.nbytes for array in arrays), self.cached_bytes // 2
        if not self._decoded:
            self.keep_decoded = size * sum(self.counts) <= room
        if self.keep_decoded and place not in self._decoded and self._decoded_bytes + size <= room:
            self._decoded[place] = found
            self._decoded_bytes += size

    def _shard(self, shard: int) -> tuple[OpenShard, OpenLatents | None]:
        with self._lock:
            is_new = shard not in self._open
            found = self._open.setdefault(shard, Future())
            self._open.move_to_end(shard)
        if is_new:  # other threads that want it wait for this one
            info = self.shards[shard]
            try:
                with self._fetching if self._in_memory else nullcontext():  # one that isn't counted yet, and no more
                    open_shard = OpenShard(self.storage, info)
                self._in_memory = open_shard.kept_bytes > 0
                found.set_result((open_shard, OpenLatents(self.latents, info) if self.latents else None))
            except BaseException as error:
                with self._lock:
                    self._open.pop(shard, None)
                found.set_exception(error)
            self._release()
        return found.result()

    def _release(self) -> None:
        """Let go of the shards that were used longest ago, where more are open or in memory than may be."""
        with self._lock:
            while len(self._open) > max(1, self.cached_shards):
                self._open.popitem(last=False)  # it closes once no thread reads it
        shards = self._opened()
        files, kept = sum(shard.is_open for shard in shards), self.kept_bytes
        for shard in shards:
            if (shard.kept_bytes and kept > self.cached_bytes) or (shard.is_open and files > _OPEN_FILES):
                kept, files = kept - shard.kept_bytes, files - 1
                shard.release()

    def _opened(self) -> list[OpenShard]:
        with self._lock:
            found = list(self._open.values())
        return [each.result()[0] for each in found if each.done() and not each.exception()]


def read_ahead(places: Iterable[T], read: Callable[[T], U], ahead: int, threads: int) -> Iterator[tuple[T, U]]:
    """Each place with ``read(place)``, in order. An error of ``read`` is raised where its place would come.

    Args:
        places: without end, or with one.
        read: called in threads.
        ahead: places that are read before they are asked for.
        threads: number of them, which end with the iterator; 0: nothing is read ahead.
    """
    if not threads:
        yield from ((place, read(place)) for place in places)
        return
    pool, coming = ThreadPoolExecutor(threads, "read-ahead"), deque[tuple[T, Future[U]]]()
    try:
        for place in places:
            coming.append((place, pool.submit(read, place)))
            if len(coming) > ahead:
                first, found = coming.popleft()
                yield first, found.result()
        for first, found in coming:
            yield first, found.result()
    finally:
        pool.shutdown(wait=False, cancel_futures=True)
