"""The order of samples: each once an epoch, the same however it is dealt, and resumed exactly."""

from collections import Counter
from itertools import islice

import numpy as np
import pytest

from vta_sam.dataset.shards.datamodule import SampleOrder, consecutive
from vta_sam.runtime.errors import InputError

COUNTS = (8, 0, 5, 11, 8)  # 32 records


def take(order, n, start=0, part=0, parts=1):
    return list(islice(order.samples(start, part, parts), n))


@pytest.mark.parametrize("streams", [1, 4, 8, 16, 32])
def test_every_record_once_an_epoch(streams):
    order = SampleOrder(COUNTS, streams, seed=0)
    assert order.epoch_samples == 32
    for epoch in (0, 1, 7):
        assert Counter(map(tuple, order.epoch(epoch))) == Counter(consecutive(COUNTS))


def test_an_uneven_rest_waits_and_is_another_one_each_epoch():
    order = SampleOrder((7, 6), 4, seed=0)
    assert order.epoch_samples == 12
    left_out = set()
    for epoch in range(40):
        seen = [tuple(row) for row in order.epoch(epoch)]
        assert len(seen) == len(set(seen)) == 12
        left_out |= set(consecutive((7, 6))) - set(seen)
    assert left_out == set(consecutive((7, 6)))


def test_order_is_a_function_of_seed_and_epoch():
    first, again = SampleOrder(COUNTS, 8, seed=3), SampleOrder(COUNTS, 8, seed=3)
    again.epoch(5), np.random.random()  # what happened before doesn't matter
    assert np.array_equal(first.epoch(2), again.epoch(2))
    assert not np.array_equal(first.epoch(2), first.epoch(3))
    assert not np.array_equal(first.epoch(2), SampleOrder(COUNTS, 8, seed=4).epoch(2))
    assert [tuple(row) for row in first.epoch(0)] != sorted(map(tuple, first.epoch(0)))


@pytest.mark.parametrize("counts", [COUNTS, (3,), (7, 6)])
@pytest.mark.parametrize("world, workers", [(1, 2), (2, 1), (2, 2), (4, 2), (1, 8)])
def test_parts_make_up_the_single_stream_in_order(counts, world, workers):
    """Dealt as the data module deals: rank r, worker w reads part r + world · w, and loaders take workers in turn."""
    order, start, rounds = SampleOrder(counts, 8, seed=1), 5, 20
    parts = world * workers
    dealt = [take(order, rounds, start, part, parts) for part in range(parts)]
    ranks = [[dealt[rank + world * worker][n] for n in range(rounds) for worker in range(workers)]
             for rank in range(world)]
    merged = [sample for row in zip(*ranks) for sample in row]
    assert merged == take(order, rounds * parts, start)


def test_parts_read_streams_of_their_own():
    order = SampleOrder(COUNTS, 8, seed=1)
    table = order.epoch(0).reshape(-1, 8, 2)  # sample n belongs to stream n % 8
    for part in range(4):
        mine = {sample[1:] for sample in take(order, 8, 0, part, 4)}
        assert mine == {tuple(row) for stream in (part, part + 4) for row in table[:, stream]}


@pytest.mark.parametrize("start", [0, 1, 31, 32, 33, 200])
def test_resuming_goes_on_exactly(start):
    order = SampleOrder(COUNTS, 8, seed=2)
    assert take(order, 70, start) == take(order, start + 70)[start:]
    assert take(order, 1, start)[0][0] == start // 32  # the epoch


@pytest.mark.parametrize("counts, streams, epoch", [((3,), 8, 8), ((5,), 8, 8), ((1,), 16, 16), ((2, 1), 2, 2)])
def test_a_handful_of_clips_comes_round_again(counts, streams, epoch):
    order = SampleOrder(counts, streams, seed=0)
    assert order.epoch_samples == epoch
    seen = Counter(sample[1:] for sample in take(order, 5 * epoch))
    assert set(seen) == set(consecutive(counts))
    if streams > sum(counts):
        within = Counter(map(tuple, order.epoch(0))).values()
        assert max(within) - min(within) <= 1


def test_what_cannot_be_dealt_is_refused_in_words():
    with pytest.raises(InputError, match="every shard is empty"):
        SampleOrder((0, 0), 8, seed=0)
    with pytest.raises(InputError, match="streams=8 is not a multiple of 3"):
        take(SampleOrder(COUNTS, 8, seed=0), 1, parts=3)
