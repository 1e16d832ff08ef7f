"""The order of training samples: a pure function of (seed, epoch), so that resuming is exact.

Shards are shuffled, and records within each; the resulting list is cut into S equally long *streams*, and sample n of
an epoch is taken from stream n % S. S is a multiple of (processes × loader workers), so every worker reads streams of
its own, and how many workers there are changes nothing about the order.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from ..errors import InputError
from ..randomness import seed_of


@dataclass(frozen=True)
class SampleOrder:
    """Which record is the g-th sample of a run.

    counts: records in each shard. streams: S. seed: of the run. Records that do not fill all streams evenly (fewer
    than S of them) wait for another epoch's shuffle.
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
        """⇒ (epoch_samples, 2) int: shard and record of each sample, in order."""
        random = np.random.Generator(np.random.PCG64(seed_of("order", self.seed, epoch)))
        parts = [
            np.stack([np.full(self.counts[shard], shard), random.permutation(self.counts[shard])], axis=1)
            for shard in random.permutation(len(self.counts))
            if self.counts[shard]
        ]
        records = np.concatenate(parts)
        if len(records) < self.streams:  # a handful of clips: let them come round again
            records = np.resize(records, (self.epoch_samples, 2))
        length = self.epoch_samples // self.streams
        return records[: self.epoch_samples].reshape(self.streams, length, 2).swapaxes(0, 1).reshape(-1, 2)

    def samples(self, start: int, part: int = 0, parts: int = 1) -> Iterator[tuple[int, int, int]]:
        """Endlessly (epoch, shard, record) from the ``start``-th sample of the run on, every ``parts``-th of them."""
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
