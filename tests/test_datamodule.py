"""Shards to batches: the same samples with or without loader processes, exact resuming, crops, damaged files."""

from itertools import islice
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from tiny_data import COUNTS, FRAME_DIM, SPEC, a_clip, write_dataset

from vta_sam.dataset.shards import reader as reader_module
from vta_sam.dataset.shards.datamodule import SampleOrder, ShardDataModule
from vta_sam.dataset.shards.reader import ShardReader
from vta_sam.dataset.shards.schema import from_pcm16, to_pcm16
from vta_sam.runtime.errors import InputError
from vta_sam.runtime.randomness import SampleDraws


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    folder = tmp_path_factory.mktemp("shards")
    write_dataset(folder)
    return folder


@pytest.fixture(scope="module")
def long_root(tmp_path_factory):
    folder = tmp_path_factory.mktemp("long")
    write_dataset(folder, {"train": 3, "val": 1}, duration_s=6.4)  # 8 columns to spare
    return folder


def data_of(root, batch_size=4, seed=0, stage="vae", **more):
    return ShardDataModule(root, SPEC, batch_size, seed, stage, **more)


def batches(data, n):
    return list(islice(iter(data.train_dataloader()), n))


def assert_same(left, right):
    assert len(left) == len(right) > 0
    for a, b in zip(left, right):
        assert a.keys == b.keys and torch.equal(a.seeds, b.seeds)
        assert torch.equal(a.waveform, b.waveform) and torch.equal(a.frame_embedding, b.frame_embedding)


def test_loader_processes_change_nothing(root):
    assert_same(batches(data_of(root, batch_size=3, workers=2), 7), batches(data_of(root, batch_size=3), 7))


def test_parts_of_batches_go_through_a_pipe_where_shared_memory_is_small(root, monkeypatch):
    """As in a container, which often has 64 MB of it."""
    monkeypatch.setattr("torch.UntypedStorage._share_filename_cpu_", None)
    monkeypatch.setattr("torch.UntypedStorage._share_fd_cpu_", None)
    monkeypatch.setattr("vta_sam.dataset.shards.datamodule._ENOUGH_BYTES", 1 << 60)
    data = data_of(root, batch_size=3, workers=2)
    data.draw = noise_of_rows
    piped = batches(data, 7)
    assert_same(piped, batches(data_of(root, batch_size=3), 7))
    assert all(torch.equal(batch.draws["noise"], SampleDraws(batch.seeds, "test").normal(3)) for batch in piped)


def noise_of_rows(batch):
    return {"noise": SampleDraws(batch.seeds, "test").normal(3), "key": list(batch.keys)}


@pytest.mark.parametrize("workers", [0, 2])
def test_loaders_make_the_draws_of_a_stage(root, workers):
    """A row's belong to its seed, whichever process makes them; a stage without any has none."""
    data = data_of(root, batch_size=3, workers=workers)
    assert batches(data, 1)[0].draws is None
    data.draw = noise_of_rows
    for batch in [*batches(data, 4), *data.val_dataloader()]:
        assert batch.draws["key"] == batch.keys
        assert torch.equal(batch.draws["noise"], SampleDraws(batch.seeds, "test").normal(3))


@pytest.mark.parametrize("workers", [0, 2])
def test_on_a_gpu_batches_lie_in_pinned_memory(root, monkeypatch, workers):
    pinned = []
    monkeypatch.setattr(torch.Tensor, "pin_memory", lambda tensor: pinned.append(tensor) or tensor)
    full = torch.full
    monkeypatch.setattr(torch, "full", lambda *shape, pin_memory=False, **kinds: (
        pinned.append(shape) if pin_memory else None, full(*shape, **kinds))[1])
    data = data_of(root, workers=workers)
    assert len(batches(data, 1)[0]) == 4 and not pinned
    strategy = SimpleNamespace(root_device=torch.device("cuda"))
    data.trainer = SimpleNamespace(global_rank=0, world_size=1, strategy=strategy)
    batch = batches(data, 1)[0]
    tensors = [each for each in (*vars(batch).values(), *batch.features.values()) if isinstance(each, torch.Tensor)]
    assert len(pinned) == len(tensors) - 1, "everything but the seeds"
    pinned.clear()
    list(data.val_dataloader())
    assert pinned


def test_an_epoch_holds_every_record_once(root):
    keys = [key for batch in batches(data_of(root, streams=4), 5) for key in batch.keys]
    assert sorted(keys) == sorted(f"train-{i}" for i in range(COUNTS["train"])) and keys != sorted(keys)


def test_batches_hold_what_was_stored(root):
    batch = batches(data_of(root), 1)[0]
    for i, key in enumerate(batch.keys):
        clip = a_clip(key)
        assert np.array_equal(batch.waveform[i], from_pcm16(to_pcm16(clip.waveform)))
        assert np.array_equal(batch.frame_embedding[i], clip.frame_embedding.astype(np.float16).astype(np.float32))
        assert batch.objects[i] == clip.objects


def test_batch_size_changes_no_sample(root):
    small = [(k, int(s)) for b in batches(data_of(root, batch_size=2), 6) for k, s in zip(b.keys, b.seeds)]
    large = [(k, int(s)) for b in batches(data_of(root, batch_size=12), 1) for k, s in zip(b.keys, b.seeds)]
    assert small == large


def test_seed_stage_and_epoch_change_draws(root):
    def seeds(**change):
        data = data_of(root, batch_size=20, streams=4, **change)
        first, second = batches(data, 2)
        return [dict(zip(b.keys, b.seeds.tolist())) for b in (first, second)]

    first, second = seeds()
    assert set(first) == set(second)
    for other in (second, seeds(seed=1)[0], seeds(stage="condition")[0]):
        assert all(first[key] != other[key] for key in first)


@pytest.mark.parametrize("world", [2, 4])
def test_processes_share_one_stream(root, world):
    ranks = []
    for rank in range(world):
        data = data_of(root, batch_size=1)
        data.trainer = SimpleNamespace(global_rank=rank, world_size=world)
        ranks.append([b.keys[0] for b in batches(data, 6)])
    together = [b.keys for b in batches(data_of(root, batch_size=world), 6)]
    assert together == [list(keys) for keys in zip(*ranks)]


def test_resuming_continues_the_stream(root):
    whole = batches(data_of(root), 9)
    stopped = data_of(root)
    stopped.trainer = SimpleNamespace(global_rank=0, world_size=1, global_step=3, accumulate_grad_batches=2)
    state = stopped.state_dict()
    assert state == {"samples": 24}
    resumed = data_of(root)
    resumed.load_state_dict(state)
    assert_same(batches(resumed, 3), whole[6:])


def test_two_processes_count_their_samples_together(root):
    data = data_of(root, batch_size=2)
    data.trainer = SimpleNamespace(global_rank=1, world_size=2, global_step=5, accumulate_grad_batches=3)
    assert data.state_dict() == {"samples": 60}


def test_long_records_are_cropped_at_columns(long_root):
    clips = {key: a_clip(key, 6.4) for key in ("train-0", "train-1", "train-2")}
    starts = set()
    for batch in batches(data_of(long_root, batch_size=8, cached_shards=1), 25):
        for i, key in enumerate(batch.keys):
            waveform = from_pcm16(to_pcm16(clips[key].waveform))
            start = [c for c in range(9)
                     if np.array_equal(waveform[c * 2560:c * 2560 + SPEC.samples], batch.waveform[i])]
            assert len(start) == 1, "a crop begins at a column and lies inside the record"
            frames = clips[key].frame_embedding[2 * start[0]:2 * start[0] + 64].astype(np.float16)
            assert np.array_equal(batch.frame_embedding[i], frames.astype(np.float32))
            assert batch.column_mask[i].all() and batch.frame_mask[i].all()
            starts.add(start[0])
    assert min(starts) == 0 and max(starts) == 8 and len(starts) > 5


def test_validation_is_the_same_at_every_pass_and_never_cropped(long_root, root):
    loader = data_of(long_root).val_dataloader()
    assert_same(list(loader), list(loader))
    waveform = from_pcm16(to_pcm16(a_clip("val-0", 6.4).waveform))
    assert np.array_equal(next(iter(loader)).waveform[0], waveform[: SPEC.samples])
    assert [len(b) for b in data_of(root, batch_size=3).val_dataloader()] == [3, 1]
    assert [b.keys for b in data_of(root, val_clips=2).val_dataloader()] == [["val-0", "val-1"]]


def test_few_shards_in_memory_are_enough(root):
    data = data_of(root, cached_shards=1)
    assert_same(batches(data, 5), batches(data_of(root), 5))
    reader = data.reader("train")
    for shard in (0, 1, 2, 1):
        reader.record(shard, 0)
    assert len(reader._open) == 1


@pytest.mark.parametrize("world, workers", [(1, 0), (2, 0), (2, 2), (1, 8)])
def test_no_loader_reads_a_shard_twice_in_an_epoch(tmp_path, monkeypatch, world, workers):
    """However few shards may be kept; and with many loader processes each keeps few."""
    write_dataset(tmp_path, {"train": 32, "val": 1, "test": 1}, shard_records=2)
    data, read = data_of(tmp_path, workers=workers, cached_shards=1), []
    once = reader_module.OpenShard
    monkeypatch.setattr(reader_module, "OpenShard", lambda place, shard: read.append(shard.name) or once(place, shard))
    parts = world * max(1, workers)
    for part in range(parts):
        reader = ShardReader(tmp_path, data.info.shards("train"), data._open_shards(world))
        order = SampleOrder(reader.counts, data.streams, 0)
        for _, shard, index in islice(order.samples(0, part, parts), order.epoch_samples // parts):
            reader.record(shard, index)
        assert len(read) == len(set(read)) and len(reader._open) <= max(2, 16 // parts)
        read.clear()


@pytest.mark.parametrize("change, words", [
    (dict(expect={"frame_dim": FRAME_DIM + 1}), "frame_dim is 6, expected 7"),
    (dict(expect={"encoder": "clip"}), "encoder is 'encoder of a test', expected 'clip'"),
    (dict(train_split="nowhere"), "no split 'nowhere'; it has test, train, val"),
    (dict(streams=3, workers=2), "streams=3 is not a multiple of 2"),
])
def test_what_does_not_fit_is_refused(root, change, words):
    with pytest.raises(InputError, match=words):
        batches(data_of(root, **change), 1)
