"""Shards ⇒ batches, for every stage: exact order, exact resume, crops at the latent's columns.

The order of training samples is a pure function of (seed, epoch), so that resuming is exact. Shards are shuffled, and
records within each. The resulting list is cut into S *streams* of equal length, and sample n of an epoch is taken from
stream n % S. S is a multiple of (processes × loader workers), so every worker reads streams of its own, and the number
of workers doesn't change the order.
"""

from __future__ import annotations

import gc
import itertools
import os
import shutil
import signal
import threading
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

import lightning as L
import numpy as np
from torch.utils.data import DataLoader, IterableDataset, get_worker_info

from ...clip import FEATURES, ClipFeatures, ClipSpec, register_feature
from ...runtime.errors import InputError
from ...runtime.randomness import seed_of
from .batch import ClipBatch, ClipWindow, Draw, collate, interleave, window_of
from .reader import ShardReader, Stored, read_ahead
from .schema import DatasetInfo, read_dataset
from .storage import Root, storage_of

CACHED_GB = 8.0  # of a node
_AHEAD, _THREADS = 32, 4  # records that a loader process reads in advance, and the threads that do it
_SAMPLES_AHEAD = 8  # that a loader process makes in advance, besides what two batches need


@dataclass(frozen=True)
class SampleOrder:
    """The order of a run's samples. Up to S - 1 records of an epoch, which don't fill all streams, are left out of it;
    the next epoch's shuffle chooses others.

    Args:
        counts: records in each shard.
        streams: S.
        seed: of the run.
    """

    counts: tuple[int, ...]
    streams: int
    seed: int

    def __post_init__(self):
        if sum(self.counts) == 0:
            raise InputError("there is nothing to train on: every shard is empty")

    @property
    def epoch_samples(self) -> int:
        """Samples in an epoch: a multiple of the number of streams."""
        total = sum(self.counts)
        repeats = -(-self.streams // total) if total < self.streams else 1
        return total * repeats // self.streams * self.streams

    def epoch(self, epoch: int) -> np.ndarray:
        """Shard and record of each sample, in order ⇒ (epoch_samples, 2) int."""
        random = np.random.Generator(np.random.PCG64(seed_of("order", self.seed, epoch)))
        parts = [
            np.stack([np.full(self.counts[shard], shard), random.permutation(self.counts[shard])], axis=1)
            for shard in random.permutation(len(self.counts))
            if self.counts[shard]
        ]
        records = np.concatenate(parts)
        if len(records) < self.streams:  # a handful of clips: they are repeated
            records = np.resize(records, (self.epoch_samples, 2))
        length = self.epoch_samples // self.streams
        return records[: self.epoch_samples].reshape(self.streams, length, 2).swapaxes(0, 1).reshape(-1, 2)

    def samples(self, start: int, part: int = 0, parts: int = 1) -> Iterator[tuple[int, int, int]]:
        """(epoch, shard, record) of every ``parts``-th sample, without end.

        Args:
            start: sample of the run to begin at.
            part: offset from it, 0 to parts - 1.
            parts: processes × workers.

        Raises:
            InputError: streams is not a multiple of parts.
        """
        if self.streams % parts:
            raise InputError(f"streams={self.streams} is not a multiple of {parts} (processes × workers)")
        epoch, table = -1, np.empty((0, 2), int)
        position = start + part
        while True:
            wanted, n = divmod(position, self.epoch_samples)
            if wanted != epoch:
                epoch, table = wanted, self.epoch(wanted)
            yield epoch, int(table[n, 0]), int(table[n, 1])
            position += parts


def consecutive(counts: Sequence[int]) -> Iterator[tuple[int, int]]:
    """Every (shard, record) once, as stored."""
    for shard, count in enumerate(counts):
        for record in range(count):
            yield shard, record


class _TrainingSamples(IterableDataset):
    """One process' share of the samples from ``start`` on, as parts of its batches: sample n of the process is read by
    loader worker n % workers, from streams of its own. A part holds a batch's samples of one worker; it is None where
    the batch has none of them.

    Args:
        reader: of the split.
        order: of the run's samples.
        spec: of the clips.
        stage: whose draws the samples' seeds are for.
        start: sample of the run to begin at.
        rank: of this process.
        world: number of processes.
        batch_size: of this process.
        draw: the stage's draws, made here; None: the step makes its own.
        piped: parts come as :meth:`ClipBatch.parted`, through the worker's pipe; else torch hands them over in shared
            memory.
    """

    def __init__(self, reader: ShardReader, order: SampleOrder, spec: ClipSpec, stage: str, start: int,
                 rank: int, world: int, batch_size: int = 1, draw: Draw | None = None, piped: bool = False):
        self.reader, self.order, self.spec, self.stage = reader, order, spec, stage
        self.start, self.rank, self.world = start, rank, world
        self.batch_size, self.draw, self.piped = batch_size, draw, piped
        self.table = dict(FEATURES)

    def __iter__(self) -> Iterator[ClipBatch | tuple[ClipBatch, list[np.ndarray]] | None]:
        for name, row in self.table.items():
            register_feature(name, row)  # a spawned worker has this project's own features alone
        info = get_worker_info()
        worker, workers = (info.id, info.num_workers) if info else (0, 1)
        windows = self._windows(self.rank + self.world * worker, self.world * workers, _THREADS if info else 0)
        for batch in itertools.count():
            first = (worker - batch * self.batch_size) % workers  # row of the batch
            rows = list(islice(windows, len(range(first, self.batch_size, workers))))
            part = collate(rows, self.spec, self.reader.unread).with_draws(self.draw) if rows else None
            yield part.parted() if part is not None and self.piped else part

    def _windows(self, part: int, parts: int, threads: int) -> Iterator[ClipWindow]:
        samples = self.order.samples(self.start, part, parts)
        for (epoch, shard, index), stored in read_ahead(samples, self._stored, _AHEAD, threads):
            record, moments = self.reader.decoded(shard, index, stored)
            seed = seed_of(self.order.seed, self.stage, epoch, record.key)
            yield window_of(record, self.spec, seed, self._crop(record, seed), moments)

    def _stored(self, sample: tuple[int, int, int]) -> Stored | None:
        _, shard, index = sample
        return self.reader.stored(shard, index)

    def _crop(self, record: ClipFeatures, seed: int) -> int:
        """The first column of a crop: uniform over the starts that keep the crop inside the record."""
        spare = int(record.waveform.shape[0] / self.spec.sample_rate_hz / self.spec.column_s + 1e-6) - self.spec.columns
        step = self.spec.start_step_columns
        return seed_of("crop", seed) % (spare // step + 1) * step if spare > 0 else 0


def _begin(worker: int) -> None:
    """Prepare a loader process."""
    gc.freeze()  # a collection would write to every object that it shares with its parent, and so copy half a GB
    _outlive_signals(worker)


def _outlive_signals(worker: int) -> None:
    """Make a loader process ignore SIGUSR1, and SIGTERM unless its parent sends it.

    SLURM signals every process of a job. If a loader process ended by that signal, its training would fail before it
    has written a checkpoint. The training process itself ends its loaders by SIGTERM, and waits for them to end.
    """
    signal.signal(signal.SIGUSR1, signal.SIG_IGN)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGUSR1})
    signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM})  # left to the thread, which gets the sender's process id
    threading.Thread(target=_end_by_sigterm_of, args=(os.getppid(),), daemon=True).start()


def _end_by_sigterm_of(process: int) -> None:
    while signal.sigwaitinfo({signal.SIGTERM}).si_pid != process:
        pass
    os._exit(0)


def _unchanged(part: Any) -> Any:
    """In place of torch's own function, which makes tensors of arrays."""
    return part


_SHARED_MEMORY, _ENOUGH_BYTES = Path("/dev/shm"), 1 << 30


def _is_shared_memory_small() -> bool:
    """Whether the place through which torch hands tensors over holds but a few batches: 64 MB in many a container."""
    return _SHARED_MEMORY.is_dir() and shutil.disk_usage(_SHARED_MEMORY).free < _ENOUGH_BYTES


class _Batches:
    """Batches out of the parts that the loader's workers have made, so that neither order nor content depends on their
    number.

    Args:
        parts: the loader.
        batch_size: of this process.
        pinned: batches are made in pinned memory.
    """

    def __init__(self, parts: DataLoader, batch_size: int, pinned: bool):
        self.parts, self.batch_size, self.pinned = parts, batch_size, pinned

    def __iter__(self) -> Iterator[ClipBatch]:
        # loader processes are born with these blocked: a signal to all of a job's processes would else end one that has
        # not come to _outlive_signals yet
        before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM, signal.SIGUSR1})
        try:
            iterator = iter(self.parts)
        finally:
            signal.pthread_sigmask(signal.SIG_SETMASK, before)
        workers = max(1, self.parts.num_workers)
        for batch in itertools.count():
            parts = [part[0].joined(part[1]) if isinstance(part, tuple) else part for part in islice(iterator, workers)]
            if workers == 1:
                yield parts[0].pin_memory() if self.pinned else parts[0]
            else:
                yield interleave(parts, batch * self.batch_size % workers, self.pinned)


class _FixedBatches:
    """The same batches at every pass. Lightning takes a plain list for a list of loaders."""

    def __init__(self, batches: list[ClipBatch]):
        self.batches = batches

    def __iter__(self) -> Iterator[ClipBatch]:
        return iter(self.batches)

    def __len__(self) -> int:
        return len(self.batches)


class ShardDataModule(L.LightningDataModule):
    """Batches of one stage.

    Args:
        root: the dataset's folder, URL or storage, with dataset.json and tars.
        spec: of the clips.
        batch_size: of each process.
        seed: with stage, epoch and key it decides every random draw.
        stage: name of the stage.
        streams: see the module's docstring; a multiple of processes × workers.
        workers: loader processes; 0: the main process loads.
        cached_shards: shards that the loader processes hold open together, and at least those that their streams are in
            and as many that come next, so that none is opened twice in an epoch. An open shard is a file and some 500
            bytes a record.
        latents: folder of latent shards.
        val_clips: how many clips of the validation split to use.
        train_split: name of the training split.
        val_split: name of the validation split.
        expect: fields of dataset.json that the model relies on.
        val_batch_size: in validation, where every process gets every clip; None: as in training.
        cached_gb: 10⁹ bytes that the loader processes of one node keep in memory together: of shards that no local file
            holds, and of decoded records where all of the training split's fit in.

    Attributes:
        draw: the stage's random draws, which the loader's workers make for every batch; None: the step makes its own.
        unread: fields of a batch that the stage doesn't read, "waveform" or optional features: they are neither decoded
            nor sent, except by :meth:`reader` and :meth:`batches`.

    Raises:
        InputError: dataset.json can't be read, or contradicts spec and expect.
    """

    def __init__(self, root: Root, spec: ClipSpec, batch_size: int, seed: int, stage: str, streams: int = 8,
                 workers: int = 0, cached_shards: int = 64, latents: Path | None = None, val_clips: int = 64,
                 train_split: str = "train", val_split: str = "val", expect: dict[str, object] | None = None,
                 val_batch_size: int | None = None, cached_gb: float = CACHED_GB):
        super().__init__()
        self.storage, self.spec, self.batch_size = storage_of(root), spec, batch_size
        self.val_batch_size = val_batch_size or batch_size
        self.seed, self.stage, self.streams, self.workers = seed, stage, streams, workers
        self.cached_shards, self.cached_gb, self.latents, self.val_clips = cached_shards, cached_gb, latents, val_clips
        self.train_split, self.val_split = train_split, val_split
        self.info: DatasetInfo = read_dataset(self.storage)
        wanted = {"fps": spec.fps, "sample_rate_hz": spec.sample_rate_hz, **(expect or {})}
        self.info.require(str(self.storage), **wanted)
        self.draw: Draw | None = None
        self.unread: Collection[str] = ()
        self._start = 0

    def reader(self, split: str, unread: Collection[str] = ()) -> ShardReader:
        """The records of a split, whole but for ``unread``."""
        return ShardReader(self.storage, self.info.shards(split), self.cached_shards, self.latents, unread,
                           rates=self.info.rates)

    def _open_shards(self, world: int) -> int:
        """Shards that a loader process holds open: its part of ``cached_shards``, and at least those that its streams
        are in and as many that come next."""
        workers = max(1, self.workers)
        return max(2 * -(-self.streams // (world * workers)), self.cached_shards // workers)

    def train_dataloader(self) -> _Batches:
        rank, world = (self.trainer.global_rank, self.trainer.world_size) if self.trainer else (0, 1)
        loaders = world // getattr(self.trainer, "num_nodes", 1) * max(1, self.workers)  # of this node
        cached_bytes = int(self.cached_gb * 1e9) // loaders
        reader = ShardReader(self.storage, self.info.shards(self.train_split), self._open_shards(world), self.latents,
                             self.unread, cached_bytes, keep_decoded=True, rates=self.info.rates)
        order = SampleOrder(reader.counts, self.streams, self.seed)
        samples = _TrainingSamples(reader, order, self.spec, self.stage, self._start, rank, world, self.batch_size,
                                   self.draw, piped=self.workers > 0 and _is_shared_memory_small())
        ahead = max(2, -(-_SAMPLES_AHEAD * self.workers // self.batch_size))  # of parts, which hold few samples or none
        loader = DataLoader(samples, batch_size=None, num_workers=self.workers, worker_init_fn=_begin,
                            collate_fn=_unchanged, prefetch_factor=ahead if self.workers else None)
        return _Batches(loader, self.batch_size, self._on_gpu)

    def val_dataloader(self) -> _FixedBatches:
        clips = self._clips(self.val_split, self.val_clips, self.unread)
        batches = (batch.with_draws(self.draw) for batch in clips)
        return _FixedBatches([batch.pin_memory() if self._on_gpu else batch for batch in batches])

    @property
    def _on_gpu(self) -> bool:
        """Does the trainer compute on a GPU? Batches then lie in pinned memory, out of which they are sent without
        waiting."""
        device = getattr(getattr(self.trainer, "strategy", None), "root_device", None)
        return device is not None and device.type == "cuda"

    def batches(self, split: str, limit: int | None = None) -> Iterator[ClipBatch]:
        """Clips of a split in stored order, cut from their beginning; the last batch may be short."""
        return self._clips(split, limit)

    def _clips(self, split: str, limit: int | None, unread: Collection[str] = ()) -> Iterator[ClipBatch]:
        reader = self.reader(split, unread)
        windows = (self._stored(reader, shard, index) for shard, index in islice(consecutive(reader.counts), limit))
        while chunk := list(islice(windows, self.val_batch_size)):
            yield collate(chunk, self.spec, unread)

    def _stored(self, reader: ShardReader, shard: int, index: int) -> ClipWindow:
        record, moments = reader.record(shard, index)
        return window_of(record, self.spec, seed_of(self.seed, self.stage, "fixed", record.key), 0, moments)

    def state_dict(self) -> dict[str, int]:
        """Samples consumed by all processes; checkpoints are written between optimiser steps only."""
        assert self.trainer is not None, "a datamodule's state is saved by a trainer"
        per_step = self.batch_size * self.trainer.world_size * self.trainer.accumulate_grad_batches
        return {"samples": self.trainer.global_step * per_step}

    def load_state_dict(self, state_dict: dict[str, int]) -> None:
        self._start = state_dict["samples"]
