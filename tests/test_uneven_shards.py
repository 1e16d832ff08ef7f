"""Shards of uneven sizes on many processes: everybody takes as many steps, and together they see what one would see."""

import dataclasses
import multiprocessing
from collections import Counter
from datetime import timedelta
from itertools import islice
from types import SimpleNamespace

import pytest
import torch
from tiny_data import SPEC, a_clip, write_dataset

from vta_sam.dataset.shards.datamodule import SampleOrder, ShardDataModule, consecutive
from vta_sam.dataset.shards.records import write_shard
from vta_sam.dataset.shards.schema import ShardInfo

COUNTS = (5, 1, 9, 2, 7, 13)  # 37 records
STREAMS = 16  # an epoch of 32; 5 records wait
SAMPLES = 96  # three epochs, and a multiple of every global batch below
BATCH = 2
SHARES = [(world, workers) for world in (1, 2, 4, 8) for workers in (0, 2)]
LOADED = [share for share in SHARES if share[0] <= 2 or not share[1]]  # 8 x 2 loaders start for no other code


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    folder = tmp_path_factory.mktemp("uneven")
    info = write_dataset(folder, {"val": 3}, shard_records=2, duration_s=1.28)
    shards = []
    for i, count in enumerate(COUNTS):
        name = f"train-{i:06d}.tar"
        write_shard(folder / name, (a_clip(f"{i}-{n}", 1.28) for n in range(count)))
        shards.append(ShardInfo(name, count, 0))
    dataclasses.replace(info, splits={**info.splits, "train": shards}).write(folder)
    return folder


def data_of(root, rank=0, world=1, workers=0, batch_size=BATCH):
    data = ShardDataModule(root, SPEC, batch_size, seed=0, stage="vae", streams=STREAMS, workers=workers)
    data.trainer = SimpleNamespace(global_rank=rank, world_size=world)
    return data


def steps_of(data, steps):
    return [list(zip(batch.keys, batch.seeds.tolist())) for batch in islice(iter(data.train_dataloader()), steps)]


@pytest.fixture(scope="module")
def alone(root):
    """What one process sees, without loader processes: (key, seed) of every sample."""
    return [sample for step in steps_of(data_of(root), SAMPLES // BATCH) for sample in step]


@pytest.mark.parametrize(("world", "workers"), LOADED)
def test_every_process_takes_as_many_steps_and_a_step_is_the_same_global_batch(root, alone, world, workers):
    steps, size = SAMPLES // (BATCH * world), BATCH * world
    ranks = [steps_of(data_of(root, rank, world, workers), steps) for rank in range(world)]
    assert [[len(step) for step in rank] for rank in ranks] == [[BATCH] * steps] * world
    for step in range(steps):
        together = [sample for row in zip(*(rank[step] for rank in ranks)) for sample in row]
        assert together == alone[step * size:(step + 1) * size]


@pytest.mark.parametrize(("world", "workers"), SHARES)
@pytest.mark.parametrize("counts", [COUNTS, (1, 40), (3, 2)])
def test_an_epoch_has_as_many_samples_whatever_the_world(counts, world, workers):
    order, parts = SampleOrder(counts, STREAMS, seed=0), world * max(workers, 1)
    taken = Counter(epoch for part in range(parts)
                    for epoch, *_ in islice(order.samples(0, part, parts), 3 * order.epoch_samples // parts))
    assert taken == {epoch: order.epoch_samples for epoch in range(3)}
    assert order.epoch_samples % STREAMS == 0 and 0 <= abs(sum(counts) - order.epoch_samples) < STREAMS


def test_what_waits_in_one_epoch_comes_in_another(alone):
    order = SampleOrder(COUNTS, STREAMS, seed=0)
    assert order.epoch_samples == 32
    epochs = [[key for key, _ in alone[start:start + 32]] for start in range(0, SAMPLES, 32)]
    everything = {f"{shard}-{record}" for shard, record in consecutive(COUNTS)}
    waiting = [everything - set(epoch) for epoch in epochs]
    assert all(len(set(epoch)) == 32 for epoch in epochs), "no record twice in an epoch"
    assert all(len(left) == 5 for left in waiting) and set.intersection(*waiting) == set()


def test_no_record_waits_often():
    """Those at the end of a shuffle wait: a record of a small shard more often than one of a large shard, since it
    waits whenever its shard comes last (here in one of six epochs), but none for most of the time."""
    order, epochs = SampleOrder(COUNTS, STREAMS, seed=0), 400
    seen = Counter(tuple(row) for epoch in range(epochs) for row in order.epoch(epoch))
    assert set(seen) == set(consecutive(COUNTS)) and sum(seen.values()) == epochs * 32
    assert min(seen.values()) > epochs * 2 / 3


def test_validation_has_as_many_batches_on_every_process(root):
    ranks = [[batch.keys for batch in data_of(root, rank, 4).val_dataloader()] for rank in range(4)]
    assert ranks == [[["val-0", "val-1"], ["val-2"]]] * 4


def _reduce(rank, world, root, store, steps, found):
    torch.set_num_threads(1)
    torch.distributed.init_process_group("gloo", f"file://{store}", timedelta(seconds=20), world, rank)
    total = torch.zeros(1)
    for batch in islice(iter(data_of(root, rank, world).train_dataloader()), steps):
        count = torch.tensor([float(len(batch))])
        torch.distributed.all_reduce(count)  # as gradients are: it waits for every process
        total += count
    torch.distributed.destroy_process_group()
    found.put(float(total))


def test_processes_that_wait_for_each_other_come_to_the_end(root, tmp_path):
    context, world = multiprocessing.get_context("fork"), 2
    found, steps = context.Queue(), 2 * 32 // (BATCH * world) + 3  # into the third epoch
    processes = [context.Process(target=_reduce, args=(rank, world, root, tmp_path / "store", steps, found))
                 for rank in range(world)]
    for process in processes:
        process.start()
    assert [found.get(timeout=30) for _ in processes] == [steps * BATCH * world] * world
    for process in processes:
        process.join(timeout=30)
        assert process.exitcode == 0
